"""A client that makes one burst of calls on a line of input, and one patient call on the next."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

import zmesh
from tests.net.programs.load import called
from tests.net.programs.openloop import Report, lines_of_stdin
from tests.net.programs.work import Work


async def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--calls", type=int, required=True)
    options.add_argument("--timeout", type=float, required=True)
    options.add_argument("--report", type=Path, required=True)
    given = options.parse_args()

    async with zmesh.Node(name="asking") as node:
        work = node.client(Work)
        await work.options(timeout=20.0).once("first", 0)  # the link stands from here on
        stdin = await lines_of_stdin()
        print("READY", flush=True)

        await stdin.readline()
        start = asyncio.get_running_loop().time()
        hurried = work.options(timeout=given.timeout)
        tokens = [f"paused-{number}" for number in range(given.calls)]
        outcomes = await asyncio.gather(*(called(hurried.once, token, 0, start) for token in tokens))
        Report(start, outcomes, []).write(given.report)
        print("CALLED", flush=True)

        await stdin.readline()
        await work.options(timeout=20.0).once("again", 0)
        print("AGAIN", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
