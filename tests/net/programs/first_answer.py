"""Times a program's first call, from entering `Node()` to the answer, some times over; a line of JSON."""

from __future__ import annotations

import argparse
import asyncio
import json
import time

import zmesh
from tests.net.programs.greeter import Greeter


async def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--times", type=int, default=10)
    given = options.parse_args()
    seconds = []
    for _ in range(given.times):
        began = time.perf_counter()
        async with zmesh.Node() as node:
            answer = await node.client(Greeter).say_hello("World")
            seconds.append(time.perf_counter() - began)
        assert answer == "Hello, World", answer
    print(f"FIRST {json.dumps(seconds)}", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
