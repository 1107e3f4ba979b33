"""A node that takes large values, and one that sends one there and calls meanwhile. The latter prints what it saw as
JSON; it says READY first and waits for a line."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time

import zmesh


class Large(zmesh.Service):
    @zmesh.rpc
    async def back(self, value: memoryview) -> memoryview:
        return value

    @zmesh.rpc
    async def ping(self) -> None:
        pass


async def serve(config: zmesh.Config) -> None:
    async with zmesh.Node(Large(), name="large", discovery=None, config=config) as node:
        print(f"READY {next(address for address in node.addresses if '127.0.0.1' not in address)}", flush=True)
        await node.serve_forever()


async def ask(address: str, size: int, config: zmesh.Config) -> None:
    states: list[str] = []
    pings: list[float] = []
    async with zmesh.Node(peers=[address], discovery=None, config=config) as node:
        client = node.client(Large)
        await client.ping()
        node.on_change(lambda peer, before: states.append(f"{before} -> {peer.state}"))
        print("READY", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)

        async def ping() -> None:
            while True:
                began = time.monotonic()
                await client.ping()
                pings.append(time.monotonic() - began)
                await asyncio.sleep(0.02)

        pinging = asyncio.create_task(ping())
        value = memoryview(bytes(range(256)) * (size // 256))
        began = time.monotonic()
        back = await client.options(timeout=600.0).back(value)
        seconds = time.monotonic() - began
        pinging.cancel()
        right = bytes(back) == bytes(value)
    print(json.dumps({"seconds": seconds, "right": right, "states": states, "pings": sorted(pings)}), flush=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--ask", metavar="ADDRESS")
    options.add_argument("--size", type=int, default=0)
    options.add_argument("--settings", type=json.loads, default={}, help="of Config, as JSON")
    given = options.parse_args()
    config = zmesh.Config(**given.settings)
    asyncio.run(serve(config) if given.ask is None else ask(given.ask, given.size, config))


if __name__ == "__main__":
    main()
