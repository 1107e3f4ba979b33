"""The two sides of the stream that `large` measures: a server process, and a client process that obeys its input."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import zmesh

from .compare.worker import answer, end_with_parent, order, ready, run

now = time.perf_counter


class Large(zmesh.Service):
    @zmesh.rpc
    async def items(self, size: int, count: int) -> AsyncIterator[memoryview]:
        value = memoryview(bytes(range(256)) * (size // 256))
        for _ in range(count):
            yield value

    @zmesh.rpc
    async def echo(self, text: str) -> str:
        return text

    @zmesh.rpc
    async def memory(self, reset: bool) -> int:
        return memory(reset)


def memory(reset: bool) -> int:
    """The most memory that this process has had since the last reset, or has now, in bytes."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:" if reset else "VmHWM:"))
    return int(line.split()[1]) * 1024


async def serve() -> None:
    config = zmesh.Config(ipc=False)
    async with zmesh.Node(Large(), listen="tcp://127.0.0.1:0", discovery=None, config=config) as node:
        ready(node.addresses[0])
        await node.serve_forever()


async def echoes(client: Any, until: asyncio.Event | None, calls: int) -> list[float]:
    """One unary call after the other, with a millisecond between: none stands behind another of these."""
    taken: list[float] = []
    while len(taken) < calls if until is None else not until.is_set():
        began = now()
        assert await client.echo("hello") == "hello"
        taken.append(now() - began)
        await asyncio.sleep(0.001)
    return taken


async def stream(client: Any, size: int, count: int) -> dict[str, Any]:
    await echoes(client, None, 200)
    quiet = await echoes(client, None, 1000)
    before = {"client": memory(True), "server": await client.memory(True)}
    done = asyncio.Event()
    beside = asyncio.create_task(echoes(client, done, 0))
    began, bytes_read, items = now(), 0, 0
    async for item in client.options(timeout=600.0).items(size, count):
        bytes_read += len(item)
        items += 1
    seconds = now() - began
    done.set()
    assert (items, bytes_read) == (count, size * count)
    after = {"client": memory(False), "server": await client.memory(False)}
    extra = {side: after[side] - before[side] for side in before}
    return {"seconds": seconds, "extra": extra, "quiet": quiet, "beside": await beside}


async def ask(address: str) -> None:
    async with zmesh.Node(peers=[address], discovery=None, config=zmesh.Config(ipc=False)) as node:
        client: Any = node.client(Large).options(timeout=60.0)
        await client.echo("hello")
        ready()
        while True:
            told = await asyncio.get_running_loop().run_in_executor(None, order)
            answer(await stream(client, told["size"], told["count"]))


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("loop", choices=["uvloop", "asyncio"])
    options.add_argument("side", choices=["serve", "ask"])
    options.add_argument("--address", nargs="*", default=[])
    given = options.parse_args()
    if given.side == "serve":
        end_with_parent()
        run(serve(), given.loop)
    else:
        run(ask(*given.address), given.loop)
