"""Blocking code, as it is written in a notebook or a script: no `async` anywhere.

python examples/notebook.py
"""

from collections.abc import AsyncIterator

import _local  # noqa: F401  (a mesh of its own)

import zmesh


class Statistics(zmesh.Service):
    @zmesh.rpc(idempotent=True)
    def mean(self, values: list[float]) -> float:
        return sum(values) / len(values)

    @zmesh.rpc
    async def squares(self, upto: int) -> AsyncIterator[int]:
        for number in range(upto):
            yield number * number

    @zmesh.rpc
    async def total(self, values: AsyncIterator[float]) -> float:
        return sum([value async for value in values])


with zmesh.connect(Statistics(), name="statistics"), zmesh.connect() as mesh:
    print("typed:", mesh.call(Statistics.mean)([1, 2, 6]))
    statistics = mesh.client("Statistics")
    print("by name:", statistics.mean(values=[1, 2, 6]))
    print("a stream:", list(statistics.squares(5)))
    print("a generator as argument:", mesh.client(Statistics).total(value / 2 for value in range(5)))
