"""What a slow reader does to others: the latency of unary calls on a link whose stream is read at one item a second.

One server process and one client process over tcp on 127.0.0.1, on uvloop where it is installed. The producer is never
short of items, so the stream's window is full all the time. Rounds with the stream and without it alternate, and each
is compared with its neighbour, because one machine's speed changes from second to second.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import zmesh
from tests.net.figures import percentile, table

ROOT = Path(__file__).resolve().parents[1]
LIMIT_RATIO, LIMIT_SECONDS = 1.5, 0.002  # the p99 beside the stream, or this much more, whichever is more


class Source(zmesh.Service):
    @zmesh.rpc
    async def echo(self, text: str) -> str:
        return text

    @zmesh.rpc
    async def items(self) -> AsyncIterator[str]:
        while True:
            yield "an item of some length, as a log line or a reading would be"


async def serve() -> None:
    async with zmesh.Node(Source(), listen="tcp://127.0.0.1:0", discovery=None, config=zmesh.Config(ipc=False)) as node:
        print(node.addresses[0], flush=True)
        await node.serve_forever()


@contextlib.contextmanager
def server() -> Iterator[str]:
    command = [sys.executable, "-m", "benchmarks.beside_stream", "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


async def measure(client: Source, calls: int) -> list[float]:
    taken = []
    for _ in range(calls):
        began = time.perf_counter()
        assert await client.echo("hello") == "hello"
        taken.append(time.perf_counter() - began)
    return taken


async def read_slowly(stream: AsyncIterator[str], read: asyncio.Event) -> None:
    async for _ in stream:
        read.set()
        await asyncio.sleep(1)


async def compare(address: str, rounds: int, calls: int) -> dict[str, list[list[float]]]:
    found: dict[str, list[list[float]]] = {"alone": [], "beside": []}
    async with zmesh.Node(peers=[address], discovery=None, config=zmesh.Config(ipc=False)) as node:
        client = node.client(Source)
        await measure(client, 200)
        for turn in range(rounds):
            for cell in ("alone", "beside") if turn % 2 == 0 else ("beside", "alone"):
                reader, read = None, asyncio.Event()
                if cell == "beside":
                    reader = asyncio.create_task(read_slowly(client.items(), read))
                    await read.wait()
                await measure(client, calls // 10)
                found[cell].append(await measure(client, calls))
                if reader is not None:
                    reader.cancel()
                    await asyncio.wait([reader])
            print(f"round {turn + 1} of {rounds}", file=sys.stderr)
    return found


def report(found: dict[str, list[list[float]]]) -> None:
    rows, summary = [], {}
    for percent in (50, 99):
        alone, beside = ([percentile(taken, percent) for taken in found[cell]] for cell in ("alone", "beside"))
        ratios = [b / a for a, b in zip(alone, beside, strict=True)]
        more = [b - a for a, b in zip(alone, beside, strict=True)]
        figures = [f"{1e6 * statistics.median(each):,.0f}" for each in (alone, beside)]
        figures.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})")
        figures.append(f"{1e6 * statistics.median(more):,.0f} ({1e6 * min(more):,.0f}–{1e6 * max(more):,.0f})")
        rows.append([f"p{percent} µs", *figures])
        summary[f"p{percent}"] = round(statistics.median(ratios), 2)
    print(table(["figure", "alone", "beside the stream", "ratio", "more, µs"], rows))
    print(json.dumps({"ratios": summary, "limit": [LIMIT_RATIO, LIMIT_SECONDS]}))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--calls", type=int, default=2000, help="in one round")
    options.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = options.parse_args()
    factory = None
    if importlib.util.find_spec("uvloop") is not None:
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        if given.serve:
            runner.run(serve())
        else:
            with server() as address:
                report(runner.run(compare(address, given.rounds, given.calls)))


if __name__ == "__main__":
    main()
