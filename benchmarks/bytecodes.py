"""What Python does for a call, counted: bytecodes by module, both sides together.

A count is the same on any machine and under any load, so it shows what a change of the hot path saves where time is
too noisy to. It shows neither what cbor2, pyzmq, msgspec, the loop and the kernel do in C, nor what an object costs to
make. Both sides run in one process, over tcp on 127.0.0.1. Arguments and results are dataclasses, and calls have
metadata. What grows with the number of calls is told from what does not by the difference of two lengths.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import zmesh
import zmesh._link
import zmesh._server
import zmesh._streams
import zmesh._transport.zeromq

from .compare.clients import DATA, TEXT
from .compare.sides import ROOT
from .compare.systems._echo import Echo, Item, Message
from .figures import put, table

PAGE = ROOT / "docs" / "performance.md"
PACKAGE = Path(zmesh.__file__).parent
QUIET = zmesh.Config(ipc=False, heartbeat=30, idle_heartbeat=60, suspect_after=60, timeout=600)
Run = Callable[[int], Awaitable[None]]


class Trace:
    """Counts the bytecodes of each function while it is on."""

    def __init__(self) -> None:
        self.counts = Counter[CodeType]()

    def __call__(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "call":
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        elif event == "opcode":
            self.counts[frame.f_code] += 1
        return self

    async def of(self, run: Run, count: int) -> Counter[CodeType]:
        self.counts.clear()
        sys.settrace(self)
        await run(count)
        sys.settrace(None)
        return self.counts.copy()


async def per_one(run: Run, count: int) -> dict[CodeType, float]:
    """Bytecodes of each function for one call, or item."""
    await run(count)  # everything that is made once
    trace = Trace()
    once, thrice = await trace.of(run, count), await trace.of(run, 3 * count)
    return {code: (thrice[code] - once[code]) / (2 * count) for code in thrice}


def calls(client: Any, in_flight: int) -> Run:
    echo = client.options(metadata={"tenant": "a"}).echo

    async def run(count: int) -> None:
        async def one_after_the_other() -> None:
            for number in range(count // in_flight):
                await echo(Message("World", number, DATA))

        await asyncio.gather(*(one_after_the_other() for _ in range(in_flight)))

    return run


def items(client: Any) -> Run:
    async def run(count: int) -> None:
        number = 0
        async for item in client.items(count):
            assert item == Item(number, TEXT)
            number += 1

    return run


def module_of(code: CodeType) -> str | None:
    """Where a function is, as a row of the table; None for the benchmark's own."""
    path = Path(code.co_filename)
    if path.is_relative_to(PACKAGE):
        return str(path.relative_to(PACKAGE))
    if path.is_relative_to(ROOT / "benchmarks"):
        return None
    return "generated for the method" if code.co_filename.startswith("<string>") else "Python's and other libraries"


async def measure() -> dict[str, dict[CodeType, float]]:
    # Traced code is so slow that what bounds a turn of the loop by time would cut each turn short, and that each answer
    # would have a report of load, not one in a dozen.
    zmesh._link._REPORT_EVERY = 0.05  # type: ignore[misc]
    zmesh._server._LATE = zmesh._streams._SLICE = zmesh._transport.zeromq._SECONDS_A_TURN = 1e9  # type: ignore[misc]
    async with (
        zmesh.Node(Echo(), listen="tcp://127.0.0.1:0", discovery=None, config=QUIET) as server,
        zmesh.Node(peers=[server.addresses[0]], discovery=None, config=QUIET) as node,
    ):
        client = node.client(Echo)
        return {
            "a call, one after the other": await per_one(calls(client, 1), 300),
            "a call, 256 in flight": await per_one(calls(client, 256), 2_048),
            "an item of a stream": await per_one(items(client), 4_096),
        }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--functions", type=int, metavar="N", help="the N functions with the most, too")
    options.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    given = options.parse_args()
    factory = None
    if importlib.util.find_spec("uvloop") is not None:
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        found = runner.run(measure())
    modules: dict[str, Counter[str]] = {}
    for what, codes in found.items():
        for code, count in codes.items():
            where = module_of(code)
            if where is not None:
                modules.setdefault(where, Counter())[what] += count  # type: ignore[assignment]
        if given.functions:
            print(what)
            for code in sorted(codes, key=codes.__getitem__, reverse=True)[: given.functions]:
                print(f"{codes[code]:8.1f}  {module_of(code) or 'benchmark'}:{code.co_firstlineno} {code.co_qualname}")
    rows = [
        [where, *(f"{counts[what]:,.0f}" for what in found)]
        for where, counts in sorted(modules.items(), key=lambda entry: -entry[1]["a call, one after the other"])
        if max(counts.values()) >= 1
    ]
    total = [f"{sum(counts[what] for counts in modules.values()):,.0f}" for what in found]
    text = table(["bytecodes for", *found], [["**all**", *total], *rows])
    print(text)
    if given.write:
        put(PAGE, "bytecodes", text)


if __name__ == "__main__":
    main()
