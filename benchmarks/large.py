"""Large values: beside a bare ROUTER/DEALER loop and other libraries, in a stream of 4 GiB, and over a slow path.

Values of 1, 16 and 64 MiB go one way and both ways, one call after the other, over tcp on 127.0.0.1, by each system in
the way that its documentation shows for bytes, with its limits raised (`compare.systems`). They take turns as in
`compare`, and are compared within a round.

The stream is read as fast as it comes; beside it unary calls go to the same peer, and both processes' memory is
watched. The slow path (root) is 20 Mbit/s between network namespaces, with the default heartbeats, which wait for 0.75
seconds where a value takes 27.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.net.figures import percentile, table
from tests.net.namespaces import Network, lacking

from .compare import page
from .compare.marks import LARGE_MARKS, SLOW_PATH, STREAM
from .compare.scenarios import LARGE, Results, play
from .compare.sides import opened
from .compare.systems import BARE, SYSTEMS
from .figures import put

MiB = 1024 * 1024
PLAY = [name for name, system in SYSTEMS.items() if "large" in system.plays]
DEFAULT = [name for name in PLAY if name in ("zmesh", "rpyc-large") or not name.startswith("zmesh")]


def compare(results: Results, systems: list[str], rounds: int, minutes: float) -> list[str]:
    there = [system for system in systems if not SYSTEMS[system].missing]
    play(results, {"large": LARGE}, there, rounds, 60 * minutes)
    others = statistics.median(results.others)
    intro = (
        f"{results.rounds[-1]} rounds, {os.cpu_count()} cores, Python {platform.python_version()}. While a cell was "
        f"measured, anything else kept {others:.2f} cores busy (at most {max(results.others):.2f})."
    )
    return [intro, *page.large(results)]


def stream(results: Results, rounds: int, loop: str, gib: float, item_mib: int) -> str:
    rows = []
    for turn in range(rounds):
        with opened(loop, worker=f"{__package__}._large_stream") as sides:
            run: dict[str, Any] = sides.tell(size=item_mib * MiB, count=round(gib * 1024 / item_mib))
        print(f"stream {turn + 1} of {rounds}", file=sys.stderr)
        quiet, beside = percentile(run["quiet"], 99), percentile(run["beside"], 99)
        results.add(STREAM, "zmesh", {"MB": max(run["extra"].values()) / 1e6, "p99 : quiet": beside / quiet})
        extra = [f"{run['extra'][side] / 1e6:,.0f}" for side in ("client", "server")]
        latencies = [f"{1e6 * each:,.0f}" for each in (quiet, beside)]
        rows.append([f"{gib / run['seconds']:.2f}", *extra, *latencies, f"{beside / quiet:.2f}"])
    head = ["GiB/s", "client's memory, MB more", "server's", "unary p99 quiet, µs", "beside the stream", "ratio"]
    return f"{gib:g} GiB as a stream of {item_mib} MiB items, each run in new processes:\n\n{table(head, rows)}"


def transfer(results: Results, size_mib: int, megabits: float) -> str:
    """There and back."""
    with tempfile.TemporaryDirectory() as directory, Network(2, Path(directory)) as network:
        there, here = network.hosts
        address = there.python("tests.net.programs.large").wait_for(r"^READY (\S+)")[1]
        client = here.python("tests.net.programs.large", "--ask", address, "--size", str(size_mib * MiB))
        client.wait_for("^READY")
        for host in network.hosts:
            host.slow_down(megabits)
        client.say("go")
        seen = json.loads(client.wait_for(r"^\{.*\}$", timeout=60 + size_mib * MiB * 16 / megabits / 1e6)[0])
        lost = client.output.count("lost the link")
    pings = seen["pings"]
    results.add(SLOW_PATH, "zmesh", {"links lost": lost, "wrong": 1 - seen["right"]})
    row = [
        f"{size_mib} MiB",
        f"{megabits:g} Mbit/s",
        f"{seen['seconds']:.1f}",
        str(lost),
        ", ".join(seen["states"]),
    ]
    row += [f"{1e3 * percentile(pings, 50):,.0f}", f"{1e3 * max(pings):,.0f}"]
    head = ["there and back", "path", "seconds", "links lost", "states", "unary p50, ms", "longest"]
    return f"Over a slow path, with unary calls beside it:\n\n{table(head, [row])}"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", choices=["calls", "stream", "slow"], help="one of the three")
    options.add_argument("--systems", nargs="+", choices=PLAY, default=DEFAULT, metavar="SYSTEM", help="beside bare")
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--minutes", type=float, default=15.0, help="at most, rather than all rounds")
    options.add_argument("--streams", type=int, default=3)
    options.add_argument("--gib", type=float, default=4.0, help="of one stream")
    options.add_argument("--item", type=int, default=16, help="MiB of one of its items")
    options.add_argument("--slow", type=int, default=64, help="MiB over the slow path")
    options.add_argument("--megabits", type=float, default=20.0)
    options.add_argument("--loop", choices=["uvloop", "asyncio"], default="uvloop", help="of the stream")
    options.add_argument("--write", action="store_true", help="put the tables into docs/performance.md")
    given = options.parse_args()
    systems = list(dict.fromkeys([BARE, *given.systems]))
    results, parts = Results(), []
    if given.only in (None, "calls"):
        parts += [*compare(results, systems, given.rounds, given.minutes), page.about(results, systems)]
    if given.only in (None, "stream"):
        parts.append(stream(results, given.streams, given.loop, given.gib, given.item))
    if given.only in (None, "slow"):
        reason = lacking()
        parts.append(
            f"The slow path was left out: {reason}." if reason else transfer(results, given.slow, given.megabits)
        )
    marks = list(page.judged(results, LARGE_MARKS))
    text = "\n\n".join([page.marks(marks), *parts])
    print(text)
    print(json.dumps({mark.says: statistics.median(values) for mark, values in marks if values}))
    if given.write:
        put(page.PAGE, "large", text)
    sys.exit(1 if results.left_out else 0)


if __name__ == "__main__":
    main()
