"""A live sensor with two readers: the fast one sees every reading, the slow one holds nobody up.

    python examples/sensor.py

The sensor measures on its own clock and keeps only the newest reading for each reader. What a slow reader misses is
gone, as it should be with live data; flow control keeps what is under way small.
"""

import asyncio
from collections.abc import AsyncIterator

import _local  # noqa: F401  (a mesh of its own)

import zmesh

READINGS = 60
PERIOD = 0.02  # seconds


class Sensor(zmesh.Service):
    """Measures all the time, from when it is entered."""

    def __init__(self) -> None:
        self.number = 0
        self.news = asyncio.Condition()

    async def __aenter__(self) -> None:
        self.task = asyncio.create_task(self._measure())

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()

    async def _measure(self) -> None:
        while True:
            await asyncio.sleep(PERIOD)
            async with self.news:
                self.number += 1
                self.news.notify_all()

    @zmesh.rpc(idempotent=True)
    async def readings(self) -> AsyncIterator[int]:
        last = self.number
        while True:
            async with self.news:
                await self.news.wait_for(lambda: self.number > last)  # noqa: B023  (called at once)
                last = self.number
            yield last


async def read(name: str, pause: float) -> None:
    # A small window: for live data, what waits in it is old already.
    async with zmesh.Node(name=name, config=zmesh.Config(stream_items=2)) as node:
        seen: list[int] = []
        async with node.client(Sensor).readings() as readings:
            async for number in readings:
                seen.append(number)
                if number - seen[0] >= READINGS:
                    break
                await asyncio.sleep(pause)
    missed = seen[-1] - seen[0] + 1 - len(seen)
    print(
        f"{name}: {'every reading' if missed <= 2 else 'some readings'} of {READINGS}, in order: {seen == sorted(seen)}"
    )


async def main() -> None:
    async with zmesh.Node(Sensor(), name="sensor"):
        await asyncio.gather(read("fast reader", 0.0), read("slow reader", 10 * PERIOD))


if __name__ == "__main__":
    asyncio.run(main())
