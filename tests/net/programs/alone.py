"""A node that serves where the network lacks something: it must start, serve itself, and say what is lacking."""

from __future__ import annotations

import asyncio
import logging

import zmesh
from tests.net.programs.greeter import Greeter


async def main() -> None:
    async with zmesh.Node(Greeter(), name="alone") as node:
        print(f"STARTED {' '.join(node.addresses)}", flush=True)
        try:
            await node.client("Missing").options(timeout=0.5).method()
        except zmesh.RpcError as error:
            print(f"ERROR {error.code} {error.message}", flush=True)
    print("ENDED", flush=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="LOG %(levelname)s %(name)s %(message)s")
    asyncio.run(main())
