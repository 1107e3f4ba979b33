"""What `load` does, with a bare DEALER for each server: whichever has the fewest outstanding calls, ties at random."""

from __future__ import annotations

import argparse
import asyncio
import random
from pathlib import Path

import cbor2
import zmq
import zmq.asyncio

from tests.net.programs.openloop import WARM_UP_CALLS, Outcome, Report, drive, lines_of_stdin


class Server:
    """A DEALER to one server, and the calls that it has not answered."""

    def __init__(self, address: str) -> None:
        self.waiting: dict[int, asyncio.Future[str]] = {}
        self._dealer = zmq.asyncio.Context.instance().socket(zmq.DEALER)
        self._dealer.linger = 0
        self._dealer.connect(address)

    async def read(self) -> None:
        while True:
            number, name = cbor2.loads(await self._dealer.recv())
            future = self.waiting.pop(number, None)
            if future is not None and not future.done():
                future.set_result(name)

    async def ask(self, number: int, ms: float) -> str:
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.waiting[number] = future
        await self._dealer.send(cbor2.dumps([number, ms]))
        return await future


async def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--server", action="append", required=True, help="an address, repeated")
    options.add_argument("--rate", type=float, required=True)
    options.add_argument("--seconds", type=float, required=True)
    options.add_argument("--ms", type=float, required=True)
    options.add_argument("--timeout", type=float, default=2.0)
    options.add_argument("--report", type=Path, required=True)
    given = options.parse_args()

    loop = asyncio.get_running_loop()
    chance = random.Random(1)
    servers = [Server(address) for address in given.server]
    readers = [asyncio.create_task(server.read()) for server in servers]

    async def call(number: int, planned: float) -> Outcome:
        started = loop.time()
        chosen = min(servers, key=lambda server: (len(server.waiting), chance.random()))
        try:
            name = await asyncio.wait_for(chosen.ask(number, given.ms), given.timeout)
        except TimeoutError:
            return Outcome(str(number), planned, loop.time() - planned, started - planned, "TimeoutError", "DEADLINE")
        return Outcome(str(number), planned, loop.time() - planned, started - planned, server=name)

    stdin = await lines_of_stdin()
    await asyncio.gather(*(call(-1 - number, loop.time()) for number in range(WARM_UP_CALLS)))
    print("READY", flush=True)
    await stdin.readline()
    start = loop.time() + 0.05
    print(f"START {start}", flush=True)
    outcomes = await drive(given.rate, given.seconds, start, call, asyncio.Event())
    Report(start, outcomes, []).write(given.report)
    print("DONE", flush=True)
    for reader in readers:
        reader.cancel()


if __name__ == "__main__":
    asyncio.run(main())
