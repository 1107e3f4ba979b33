"""The two sides of each system that `large` compares: a server process, and a client process that obeys its input.

Both systems send the value as a frame of its own and copy it on neither side. What came back is compared at both ends
and at its length.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import sys
import time
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import zmq

now = time.perf_counter
END = 4096  # bytes at both ends of a value that are looked at each time


def ready(address: str) -> None:
    print(f"READY {address}", flush=True)


def order() -> dict[str, Any]:
    line = sys.stdin.readline()
    if not line:
        sys.exit()
    order: dict[str, Any] = json.loads(line)
    return order


def answer(result: dict[str, Any]) -> None:
    print(json.dumps(result), flush=True)


def run(main: Coroutine[Any, Any, None], loop: str) -> None:
    factory = None
    if loop == "uvloop" and importlib.util.find_spec("uvloop") is not None:
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main)


def value_of(size: int) -> bytes:
    return bytes(range(256)) * (size // 256)


def check(value: Any, expected: bytes) -> None:
    assert len(value) == len(expected)
    assert value[:END] == expected[:END]
    assert value[-END:] == expected[-END:]


# --- bare: the limit that is measured against


def serve_bare() -> None:
    """A blocking ROUTER that answers a value's length, or the value."""
    router: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
    router.linger = 0
    ready(f"tcp://127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}")
    while True:
        caller, way, frame = router.recv(), router.recv(), router.recv(copy=False)
        router.send(caller, zmq.SNDMORE)
        if way == b"one way":
            router.send(str(len(frame.buffer)).encode())
        else:
            router.send(frame.buffer, copy=False)
        del frame


def ask_bare(address: str) -> None:
    dealer: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    dealer.linger = 0
    dealer.connect(address)

    def call(way: str, value: bytes) -> None:
        dealer.send(way.encode(), zmq.SNDMORE)
        dealer.send(value, copy=False)
        if way == "one way":
            assert int(dealer.recv()) == len(value)
        else:
            check(dealer.recv(copy=False).buffer, value)

    ready("")
    while True:
        told = order()
        value, taken = value_of(told["size"]), []
        for _ in range(told["calls"] + 1):
            began = now()
            call(told["way"], value)
            taken.append(now() - began)
        answer({"seconds": taken[1:]})


# --- zmesh


def service() -> Any:
    import zmesh

    class Large(zmesh.Service):
        @zmesh.rpc
        async def one_way(self, value: memoryview) -> int:
            return len(value)

        @zmesh.rpc
        async def both_ways(self, value: memoryview) -> memoryview:
            return value

        @zmesh.rpc
        async def items(self, size: int, count: int) -> AsyncIterator[memoryview]:
            value = memoryview(value_of(size))
            for _ in range(count):
                yield value

        @zmesh.rpc
        async def echo(self, text: str) -> str:
            return text

        @zmesh.rpc
        async def memory(self, reset: bool) -> int:
            return memory(reset)

    return Large


def memory(reset: bool) -> int:
    """The most memory that this process has had since the last reset, or has now, in bytes."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:" if reset else "VmHWM:"))
    return int(line.split()[1]) * 1024


async def serve_zmesh(bulk: bool) -> None:
    import zmesh

    config = zmesh.Config(ipc=False, bulk=bulk)
    async with zmesh.Node(service()(), listen="tcp://127.0.0.1:0", discovery=None, config=config) as node:
        ready(node.addresses[0])
        await node.serve_forever()


async def ask_zmesh(address: str) -> None:
    import zmesh

    async with zmesh.Node(peers=[address], discovery=None, config=zmesh.Config(ipc=False)) as node:
        client: Any = node.client(service()).options(timeout=60.0)

        async def call(way: str, value: bytes) -> None:
            if way == "one way":
                assert await client.one_way(value) == len(value)
            else:
                check(await client.both_ways(value), value)

        async def echoes(until: asyncio.Event | None, calls: int) -> list[float]:
            """One unary call after the other, with a millisecond between: none stands behind another of these."""
            taken: list[float] = []
            while len(taken) < calls if until is None else not until.is_set():
                began = now()
                assert await client.echo("hello") == "hello"
                taken.append(now() - began)
                await asyncio.sleep(0.001)
            return taken

        async def stream(size: int, count: int) -> dict[str, Any]:
            await echoes(None, 200)
            quiet = await echoes(None, 1000)
            before = {"client": memory(True), "server": await client.memory(True)}
            done = asyncio.Event()
            beside = asyncio.create_task(echoes(done, 0))
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

        await client.echo("hello")
        ready("")
        loop = asyncio.get_running_loop()
        while True:
            # A thread reads, so that the node lives on while another system is measured.
            told = await loop.run_in_executor(None, order)
            if told["do"] == "stream":
                answer(await stream(told["size"], told["count"]))
                continue
            value, taken = value_of(told["size"]), []
            for _ in range(told["calls"] + 1):
                began = now()
                await call(told["way"], value)
                taken.append(now() - began)
            answer({"seconds": taken[1:]})


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("system", choices=["bare", "zmesh", "zmesh-shared"])
    options.add_argument("side", choices=["serve", "ask"])
    options.add_argument("--address", default="")
    options.add_argument("--loop", choices=["uvloop", "asyncio"], default="uvloop")
    given = options.parse_args()
    if given.system == "bare":
        serve_bare() if given.side == "serve" else ask_bare(given.address)
    else:
        run(serve_zmesh(given.system == "zmesh") if given.side == "serve" else ask_zmesh(given.address), given.loop)
