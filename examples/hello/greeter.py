"""The serving half of the hello example: a node with one service."""

import asyncio

import zmesh


class Greeter(zmesh.Service):
    """Says hello."""

    @zmesh.rpc
    async def say_hello(self, name: str) -> str:
        """Greet one person."""
        return f"Hello, {name}"

    @zmesh.rpc(idempotent=True)  # may be tried again on another node
    def shout(self, text: str) -> str:  # a plain def runs in a worker thread, never on the loop
        """Say it loudly."""
        return text.upper()


async def main() -> None:
    async with zmesh.Node(Greeter(), name="greeter-1") as node:  # serves, advertises by mDNS
        await node.serve_forever()  # until SIGTERM or Ctrl-C


if __name__ == "__main__":
    asyncio.run(main())
