"""Large values: beside a bare ROUTER/DEALER loop, in a stream of 4 GiB, and over a slow path.

Values of 1, 16 and 64 MiB go one way and both ways, one call after the other, over tcp on 127.0.0.1. Both systems send
each without a copy (zmesh-shared: by the connection that all else goes by). They take turns, cell by cell and round by
round, and are compared within a round.

The stream is read as fast as it comes; beside it unary calls go to the same peer, and both processes' memory is
watched. The slow path (root) is 20 Mbit/s between network namespaces, with the default heartbeats, which wait for 0.75
seconds where a value takes 27.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.figures import put
from tests.net.figures import percentile, table
from tests.net.namespaces import Network, lacking

ROOT = Path(__file__).resolve().parents[1]
MiB = 1024 * 1024
SYSTEMS = ["zmesh", "zmesh-shared"]
SIZES, WAYS = (1, 16, 64), ("one way", "both ways")
LEAST_RATIO, MOST_MEMORY, MOST_P99 = 0.9, 300_000_000, 3.0
CELL_MIB = 256  # that a cell moves, at least three values


class Side:
    """One process of a system."""

    def __init__(self, system: str, side: str, loop: str, address: str = "") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks._large_peers", system, side, "--loop", loop, "--address", address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self.address = self._line().removeprefix("READY").strip()

    def tell(self, **order: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        result: dict[str, Any] = json.loads(self._line())
        return result

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._process.args!r} ended with status {self._process.wait()}")
        return line


@contextlib.contextmanager
def clients(systems: list[str], loop: str) -> Iterator[dict[str, Side]]:
    with contextlib.ExitStack() as stack:
        sides = {}
        for system in systems:
            server = Side(system, "serve", loop)
            stack.callback(server.close)
            sides[system] = Side(system, "ask", loop, server.address)
            stack.callback(sides[system].close)
        yield sides


def compare(systems: list[str], rounds: int, loop: str, page: list[str]) -> dict[str, float]:
    figures: dict[tuple[str, int, str], list[float]] = {}
    with clients(systems, loop) as sides:
        for turn in range(rounds):
            for way in WAYS:
                for size in SIZES:
                    for system in systems if turn % 2 == 0 else reversed(systems):
                        calls = max(3, CELL_MIB // size)
                        taken = sides[system].tell(do="calls", way=way, size=size * MiB, calls=calls)["seconds"]
                        figures.setdefault((way, size, system), []).append(statistics.median(taken))
            print(f"round {turn + 1} of {rounds}", file=sys.stderr)
    rows, ratios = [], {}
    for way in WAYS:
        for size in SIZES:
            times = [figures[way, size, system] for system in systems]
            speeds = [f"{size / statistics.median(each) / 1024:.2f}" for each in times]
            compared = []
            for system, ours in zip(systems[1:], times[1:], strict=True):
                pairs = [b / o for b, o in zip(times[0], ours, strict=True)]
                ratios[f"{way}, {size} MiB, {system}"] = round(statistics.median(pairs), 3)
                compared.append(f"{statistics.median(pairs):.2f} ({min(pairs):.2f}–{max(pairs):.2f})")
            rows.append([way, f"{size} MiB", *speeds, *compared])
    head = [*(f"{system}, GiB/s" for system in systems), *(f"{system} : bare" for system in systems[1:])]
    page.append(table(["way", "value", *head], rows))
    return ratios


def stream(rounds: int, loop: str, gib: float, item_mib: int, page: list[str]) -> dict[str, Any]:
    runs = []
    for turn in range(rounds):
        with clients(["zmesh"], loop) as sides:
            runs.append(sides["zmesh"].tell(do="stream", size=item_mib * MiB, count=round(gib * 1024 / item_mib)))
        print(f"stream {turn + 1} of {rounds}", file=sys.stderr)
    rows, ratios = [], []
    for run in runs:
        quiet, beside = percentile(run["quiet"], 99), percentile(run["beside"], 99)
        ratios.append(beside / quiet)
        extra = [f"{run['extra'][side] / 1e6:,.0f}" for side in ("client", "server")]
        latencies = [f"{1e6 * each:,.0f}" for each in (quiet, beside)]
        rows.append([f"{gib / run['seconds']:.2f}", *extra, *latencies, f"{ratios[-1]:.2f}"])
    head = ["GiB/s", "client's memory, MB more", "server's", "unary p99 quiet, µs", "beside the stream", "ratio"]
    page.append(f"{gib:g} GiB as a stream of {item_mib} MiB items, each run in new processes:\n\n{table(head, rows)}")
    return {
        "extra_mb": round(max(max(run["extra"].values()) for run in runs) / 1e6),
        "p99": round(statistics.median(ratios), 2),
    }


def transfer(size_mib: int, megabits: float, page: list[str]) -> dict[str, Any]:
    """There and back; raises where a link was lost."""
    with tempfile.TemporaryDirectory() as directory, Network(2, Path(directory)) as network:
        there, here = network.hosts
        address = there.python("tests.net.programs.large").wait_for(r"^READY (\S+)")[1]
        client = here.python("tests.net.programs.large", "--ask", address, "--size", str(size_mib * MiB))
        client.wait_for("^READY")
        for host in network.hosts:
            host.slow_down(megabits)
        client.say("go")
        seen = json.loads(client.wait_for(r"^\{.*\}$", timeout=60 + size_mib * MiB * 16 / megabits / 1e6)[0])
        lost = "lost the link" in client.output
    pings = seen["pings"]
    row = [
        f"{size_mib} MiB",
        f"{megabits:g} Mbit/s",
        f"{seen['seconds']:.1f}",
        str(not lost),
        ", ".join(seen["states"]),
    ]
    row += [f"{1e3 * percentile(pings, 50):,.0f}", f"{1e3 * max(pings):,.0f}"]
    head = ["there and back", "path", "seconds", "link held", "states", "unary p50, ms", "longest"]
    page.append(f"Over a slow path, with unary calls beside it:\n\n{table(head, [row])}")
    return {"held": not lost and seen["right"], "longest_ping_s": round(max(pings), 3)}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", choices=["calls", "stream", "slow"], help="one of the three")
    options.add_argument("--systems", nargs="+", choices=SYSTEMS, default=["zmesh"], help="beside bare")
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--streams", type=int, default=3)
    options.add_argument("--gib", type=float, default=4.0, help="of one stream")
    options.add_argument("--item", type=int, default=16, help="MiB of one of its items")
    options.add_argument("--slow", type=int, default=64, help="MiB over the slow path")
    options.add_argument("--megabits", type=float, default=20.0)
    options.add_argument("--loop", choices=["uvloop", "asyncio"], default="uvloop", help="where installed")
    options.add_argument("--write", action="store_true", help="put the tables into docs/performance.md")
    given = options.parse_args()
    page: list[str] = []
    found: dict[str, Any] = {"limits": {"ratio": LEAST_RATIO, "extra_mb": MOST_MEMORY // 10**6, "p99": MOST_P99}}
    if given.only in (None, "calls"):
        found["ratios"] = compare(["bare", *given.systems], given.rounds, given.loop, page)
    if given.only in (None, "stream"):
        found["stream"] = stream(given.streams, given.loop, given.gib, given.item, page)
    if given.only in (None, "slow"):
        reason = lacking()
        found["slow"] = f"left out: {reason}" if reason else transfer(given.slow, given.megabits, page)
    print("\n\n".join(page))
    print(json.dumps(found))
    if given.write:
        put(ROOT / "docs" / "performance.md", "large", "\n\n".join(page))


if __name__ == "__main__":
    main()
