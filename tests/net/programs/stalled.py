"""A client that stops reading: it makes calls, stalls its loop until a file appears, and tells what was answered."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import Counter
from pathlib import Path

import zmesh
from tests.net.programs.work import Work

GIVE_UP = 30.0


async def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--calls", type=int, required=True)
    options.add_argument("--filler", type=int, required=True)
    options.add_argument("--ran", type=Path, required=True, help="where the server notes what it runs")
    options.add_argument("--until", type=Path, required=True)
    given = options.parse_args()

    async with zmesh.Node(name="stalled") as node:
        work = node.client(Work).options(timeout=2 * GIVE_UP)
        filler = "x" * given.filler
        calls = [asyncio.create_task(work.held(f"held-{number}", filler)) for number in range(given.calls)]
        give_up = time.monotonic() + GIVE_UP
        while time.monotonic() < give_up and len(given.ran.read_text().split()) < given.calls:
            await asyncio.sleep(0.005)
        print("STALLED", flush=True)
        while time.monotonic() < give_up and not given.until.exists():
            time.sleep(0.005)  # noqa: ASYNC251 (the loop is to stand still)
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        answered = sum(outcome == filler for outcome in outcomes)
        print(
            f"ANSWERED {answered} {dict(Counter(type(one).__name__ for one in outcomes if one != filler))}", flush=True
        )


if __name__ == "__main__":
    asyncio.run(main())
