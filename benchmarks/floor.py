"""zmesh beside a bare blocking ROUTER/DEALER loop: sequential latency, and calls/s with many calls in flight.

Each system is a server process and a client process, over tcp on 127.0.0.1 (zmesh-ipc: over ipc). The systems take
turns, cell by cell and round by round, and are compared within a round, because one machine's speed changes from
second to second. A figure is the median over the rounds, with the lowest and highest; a ratio is the median of the
ratios of the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.net.figures import percentile, table

ROOT = Path(__file__).resolve().parents[1]
SYSTEMS = ["zmesh", "zmesh-typed", "zmesh-ipc"]


class Side:
    """One process of a system."""

    def __init__(self, system: str, side: str, loop: str, address: str = "", module: str = "benchmarks._peers") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, system, side, "--loop", loop, "--address", address],
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
def clients(systems: list[str], loop: str, module: str = "benchmarks._peers") -> Iterator[dict[str, Side]]:
    with contextlib.ExitStack() as stack:
        sides = {}
        for system in systems:
            server = Side(system, "serve", loop, module=module)
            stack.callback(server.close)
            sides[system] = Side(system, "ask", loop, server.address, module)
            stack.callback(sides[system].close)
        yield sides


def measure(client: Side, cell: str, calls: int, seconds: float) -> dict[str, float]:
    """The figures of one cell, in one round."""
    if cell == "sequential":
        taken = client.tell(do="latency", calls=calls)["seconds"]
        return {"p50 µs": 1e6 * percentile(taken, 50), "p99 µs": 1e6 * percentile(taken, 99)}
    return {"calls/s": client.tell(do="throughput", in_flight=int(cell), seconds=seconds)["calls_a_second"]}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--systems", nargs="+", choices=SYSTEMS, default=["zmesh"], help="beside bare")
    options.add_argument("--in-flight", nargs="+", type=int, default=[1, 64, 256, 1000])
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--calls", type=int, default=2000, help="sequential calls in one cell")
    options.add_argument("--seconds", type=float, default=0.7, help="of one cell with calls in flight")
    options.add_argument("--loop", choices=["uvloop", "asyncio"], default="uvloop", help="where installed")
    options.add_argument("--json", type=Path, help="write all rounds there")
    given = options.parse_args()

    systems = ["bare", *given.systems]
    cells = ["sequential", *map(str, given.in_flight)]
    figures: dict[tuple[str, str, str], list[float]] = {}
    with clients(systems, given.loop) as sides:
        for turn in range(given.rounds):
            for cell in cells:
                # Who comes first changes from round to round: what follows a pause may run faster or slower.
                for system in systems if turn % 2 == 0 else reversed(systems):
                    for name, value in measure(sides[system], cell, given.calls, given.seconds).items():
                        figures.setdefault((cell, name, system), []).append(value)
            print(f"round {turn + 1} of {given.rounds}", file=sys.stderr)

    rows, summary = [], []
    for cell, name in dict.fromkeys((cell, name) for cell, name, _ in figures):
        row = [cell if cell == "sequential" else f"{cell} in flight", name]
        for system in systems:
            values = figures[cell, name, system]
            row.append(f"{statistics.median(values):,.0f} ({min(values):,.0f}–{max(values):,.0f})")
        for system in given.systems:
            pairs = zip(figures[cell, name, system], figures[cell, name, "bare"], strict=True)
            ratios = [ours / bare for ours, bare in pairs]
            row.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})")
            summary.append({"cell": cell, "figure": name, "system": system, "ratio": statistics.median(ratios)})
        rows.append(row)
    print(table(["cell", "figure", *systems, *(f"{system} : bare" for system in given.systems)], rows))
    print(json.dumps({"loop": given.loop, "rounds": given.rounds, "ratios": summary}))
    if given.json:
        rounds = [{"cell": c, "figure": n, "system": s, "values": v} for (c, n, s), v in figures.items()]
        given.json.write_text(json.dumps({"ratios": summary, "rounds": rounds}, indent=1))


if __name__ == "__main__":
    main()
