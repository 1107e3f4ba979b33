"""A service to give to `zmesh serve`, and a client that calls it: once with a text, and once for long."""

from __future__ import annotations

import argparse
import asyncio
import logging
from typing import Any

import zmesh
from tests.net.programs.openloop import lines_of_stdin


class Secured(zmesh.Service):
    @zmesh.rpc
    async def echo(self, text: str) -> str:
        return text

    @zmesh.rpc
    async def wait(self) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            print("HANDLER cancelled", flush=True)
            raise


async def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("text")
    options.add_argument("--then-wait", action="store_true", help="for an answer that comes late, then call again")
    given = options.parse_args()
    async with zmesh.Node() as node:
        secured = node.client(Secured)
        assert await secured.options(timeout=20).echo(given.text) == given.text
        print("ECHOED", flush=True)
        if given.then_wait:
            call = asyncio.ensure_future(error_of(secured.options(timeout=30).wait()))
            stdin = await lines_of_stdin()
            await stdin.readline()
            print(f"ERROR {await call}", flush=True)
            print(f"AGAIN {await error_of(secured.options(timeout=1).echo('again'))}", flush=True)


async def error_of(call: zmesh.Call[Any]) -> str:
    try:
        await call
    except zmesh.RpcError as error:
        return f"{type(error).__name__} {error.message}"
    return "none"


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="LOG %(levelname)s %(name)s %(message)s")
    asyncio.run(main())
