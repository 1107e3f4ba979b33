"""Work that keeps a core busy, on more than one: `zmesh serve --workers`, and handlers with `pool="process"`.

One worker beside as many as there are cores, and one process of a pool beside as many; real commands over tcp on
127.0.0.1, called by a client process. The systems take turns, round by round, and ratios are those of a round, because
one machine's speed changes from second to second. The caller needs a part of a core, too: what it takes is told.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import zmesh
from benchmarks.figures import put, table
from zmesh._platform import usable_cores

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
LIMIT = 1.7  # with two cores


def busy(rounds: int) -> int:
    """Pure Python, which no thread runs beside another."""
    total = 0
    for number in range(rounds):
        total = (total * 31 + number) % 1_000_003
    return total


class Crunch(zmesh.Service):
    @zmesh.rpc
    def in_thread(self, rounds: int) -> int:
        return busy(rounds)

    @zmesh.rpc(pool="process")
    def in_process(self, rounds: int) -> int:
        return busy(rounds)


async def serve_pool(processes: int) -> None:
    config = zmesh.Config(processes=processes)
    async with zmesh.Node(Crunch(), listen="tcp://127.0.0.1:0", discovery=None, config=config) as node:
        print(f"ready: {node.name} at {node.addresses[0]}", flush=True)
        await node.serve_forever()


@contextlib.contextmanager
def served(*command: str) -> Iterator[list[str]]:
    """A server process: its addresses."""
    argv = [sys.executable, "-m", *command]
    env = {**os.environ, "ZMESH_MESH": "default"}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=env) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            yield line.strip().rpartition(" at ")[2].split(", ")
        finally:
            process.terminate()


async def measure(
    addresses: list[str], method: str, in_flight: int, rounds: int, seconds: float
) -> tuple[float, float]:
    """Calls a second, and the share of a core that calling took."""
    async with zmesh.Node(peers=addresses, discovery=None, mesh="default") as node:
        await node.discover(expect=len(addresses))
        call = getattr(node.client(Crunch).options(timeout=60.0), method)
        right = busy(rounds)
        done, until = 0, 0.0

        async def caller() -> None:
            nonlocal done
            while time.monotonic() < until:
                assert await call(rounds) == right
                done += 1

        for seconds_now in (0.5, seconds):  # the first: processes start, balancing learns
            done, began, cpu = 0, time.monotonic(), time.process_time()
            until = began + seconds_now
            await asyncio.gather(*(caller() for _ in range(in_flight)))
        elapsed = time.monotonic() - began
        return done / elapsed, (time.process_time() - cpu) / elapsed


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    options.add_argument("--work", type=int, default=100_000, help="turns of the handler's loop")
    options.add_argument("--pool", type=int, help=argparse.SUPPRESS)
    options.add_argument("--write", action="store_true", help=f"put the table into {PAGE.name}")
    given = options.parse_args()
    if given.pool:
        asyncio.run(serve_pool(given.pool))
        return
    cores = usable_cores()
    workers = ["zmesh", "serve", "benchmarks.workers:Crunch", "--no-mdns", "--listen", "tcp://127.0.0.1:0", "--workers"]
    kinds = {
        "`--workers`": ("in_thread", workers),
        '`pool="process"`': ("in_process", ["benchmarks.workers", "--pool"]),
    }
    found: dict[str, list[list[tuple[float, float]]]] = {kind: [] for kind in kinds}
    for turn in range(given.rounds):
        for kind, (method, command) in kinds.items():
            pair = {}
            for count in (1, cores) if turn % 2 == 0 else (cores, 1):
                with served(*command, str(count)) as addresses:
                    work = measure(addresses, method, 2 * count, given.work, given.seconds)
                    pair[count] = asyncio.run(work)
            found[kind].append([pair[1], pair[cores]])
        print(f"round {turn + 1} of {given.rounds}", file=sys.stderr)
    text = report(found, cores)
    print(text)
    if given.write:
        put(PAGE, "workers", text)


def report(found: dict[str, list[list[tuple[float, float]]]], cores: int) -> str:
    rows, ratios = [], {}
    for kind, rounds in found.items():
        one, many = ([pair[at][0] for pair in rounds] for at in (0, 1))
        shares = [b / a for a, b in zip(one, many, strict=True)]
        ratios[kind] = statistics.median(shares)
        caller = statistics.median(pair[1][1] for pair in rounds)
        rows.append(
            [
                kind,
                *(f"{statistics.median(each):,.0f} ({min(each):,.0f}–{max(each):,.0f})" for each in (one, many)),
                f"{ratios[kind]:.2f} ({min(shares):.2f}–{max(shares):.2f})",
                f"{caller:.0%}",
            ]
        )
    head = ["calls/s", "one", f"{cores}, on {cores} cores", "ratio", "of a core, for calling"]
    marks = json.dumps({"ratios": {kind: round(ratio, 2) for kind, ratio in ratios.items()}, "limit on 2 cores": LIMIT})
    print(marks, file=sys.stderr)
    return f"{table(head, rows)}\n\nMedians of {len(rounds)} rounds, with the lowest and the highest."


if __name__ == "__main__":
    main()
