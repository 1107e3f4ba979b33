"""Three unlike nodes share one service: a fast one, a slow one and a big one.

    python examples/fast_slow_big.py

The client keeps 16 calls in flight. Nobody told it which node is fast: it sees how long calls take and how many are in
flight, and weighs that with the capacity that a node says of itself. Then the same calls once more, each node in its
turn (round robin), to compare.
"""

import asyncio
import time
from collections import Counter

import _local  # noqa: F401  (a mesh of its own on this machine)

import zmesh

CALLS = 300
IN_FLIGHT = 16


class Render(zmesh.Service):
    """Renders pictures, as fast as its machine can."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    @zmesh.rpc(idempotent=True)
    def frame(self, number: int) -> str:  # a plain def: at most `threads` of them run at once on a node
        """Render one frame."""
        time.sleep(self.seconds)  # stands for work
        return f"frame-{number}.png"


async def load(client: zmesh.Node, label: str) -> None:
    """Make all the calls and tell where they went."""
    await client.discover()  # meet all three before the first call, so that the comparison is fair
    render = client.client(Render)
    answered_by: Counter[str | None] = Counter()
    numbers = iter(range(CALLS))

    async def worker() -> None:
        for number in numbers:
            call = render.frame(number)
            await call
            answered_by[call.node] += 1

    began = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
    seconds = time.perf_counter() - began
    shares = ", ".join(f"{name} {answered_by[name] / CALLS:4.0%}" for name in ("fast", "slow", "big"))
    print(f"{label:12}: {shares}; {CALLS} calls took {seconds:.2f} s")


async def main() -> None:
    async with (
        zmesh.Node() as client,  # balances by load: the default
        zmesh.Node(balance="round_robin") as in_turn,
        zmesh.Node(Render(0.005), name="fast", capacity=2, threads=2),
        zmesh.Node(Render(0.050), name="slow", capacity=2, threads=2),
        zmesh.Node(Render(0.020), name="big", capacity=8, threads=8),
    ):
        print("fast: 2 at a time, 5 ms each; slow: 2 at a time, 50 ms each; big: 8 at a time, 20 ms each")
        await load(client, "least loaded")
        await load(in_turn, "round robin")


if __name__ == "__main__":
    asyncio.run(main())
