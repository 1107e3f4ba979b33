"""A thousand items spread over three nodes, with a bounded number in flight; the results come in order.

    python examples/parallel_map.py

For each number: how many steps does it take to 1, halving what is even and taking 3n + 1 of what is odd?
"""

import asyncio
from contextlib import AsyncExitStack

import _local  # noqa: F401  (a mesh of its own on this machine)

import zmesh


class Collatz(zmesh.Service):
    """Counts steps."""

    def __init__(self) -> None:
        self.calls = 0

    @zmesh.rpc(idempotent=True)  # an item whose node is lost is tried on another one
    async def steps(self, number: int) -> int:
        """How many steps it takes to 1."""
        self.calls += 1
        steps = 0
        while number != 1:
            number = number // 2 if number % 2 == 0 else 3 * number + 1
            steps += 1
        return steps


async def main() -> None:
    workers = [Collatz() for _ in range(3)]
    async with AsyncExitStack() as nodes:
        for number, worker in enumerate(workers, 1):
            await nodes.enter_async_context(zmesh.Node(worker, name=f"worker-{number}", capacity=4))
        client = await nodes.enter_async_context(zmesh.Node())
        await client.discover(expect=3)

        steps = [count async for count in client.map(Collatz.steps)(range(1, 1001))]
        taking_part = sum(worker.calls > 0 for worker in workers)
        print(f"{len(steps)} numbers, in order; nodes that took part: {taking_part}")
        print(f"the longest way to 1 begins at {steps.index(max(steps)) + 1}: {max(steps)} steps")


if __name__ == "__main__":
    asyncio.run(main())
