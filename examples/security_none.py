"""The ladder of security, rung 0: none. Who reaches a node may call it, and who is on the wire reads along.

python examples/security_none.py
"""

import asyncio

import _local  # noqa: F401  (a mesh of its own on this machine)

import zmesh


class Safe(zmesh.Service):
    """Holds something."""

    @zmesh.rpc
    async def open(self) -> str:
        """What is inside."""
        caller = zmesh.context().peer
        return f"gold, for {caller.name!r}, who proved {caller.key}"


async def main() -> None:
    async with zmesh.Node(Safe(), name="bank"), zmesh.Node(name="the bank's owner") as anybody:
        print(await anybody.client(Safe).open())


if __name__ == "__main__":
    asyncio.run(main())
