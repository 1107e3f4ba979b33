"""One question to five nodes, answered as soon as three agree; one of them has a fault.

python examples/quorum.py
"""

import asyncio
from contextlib import AsyncExitStack

import _local  # noqa: F401  (a mesh of its own on this machine)

import zmesh


class Settings(zmesh.Service):
    """One copy of some settings."""

    def __init__(self, broken: bool = False) -> None:
        self.broken = broken

    @zmesh.rpc(idempotent=True)
    async def get(self, name: str) -> str:
        """The value of one setting."""
        if self.broken:
            raise zmesh.Unavailable("being repaired", may_have_run=True)
        return {"color": "blue"}[name]


async def main() -> None:
    async with AsyncExitStack() as nodes:
        for number in range(1, 6):
            copy = Settings(broken=number == 5)
            await nodes.enter_async_context(zmesh.Node(copy, name=f"copy-{number}"))
        client = await nodes.enter_async_context(zmesh.Node())

        ask = client.scatter(Settings.get, expect=5)  # all five, also where one is found late
        replies = await ask("color").quorum(3)  # the other calls are cancelled
        values = {reply.value for reply in replies}
        print(f"{len(replies)} of 5 agree: color = {values.pop()}")

        everyone = [reply async for reply in ask("color")]
        errors = [reply.error for reply in everyone if reply.error is not None]
        print(f"all: {len(everyone) - len(errors)} values, {len(errors)} error ({errors[0]})")

        try:
            await ask("color").quorum(5)
        except zmesh.RpcError:
            print("5 of 5: out of reach")


if __name__ == "__main__":
    asyncio.run(main())
