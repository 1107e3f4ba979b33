"""The two sides of each system that `floor` and `blocking` compare: a server process, and a client process that obeys
its input.

The client reads a JSON order a line and answers each with a JSON line. Every reply is compared with what was sent.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import cbor2
import zmq

DATA = "abcdefghijklmnopqrstuvwxyz012345"
SECRET = "a mesh secret that only this machine's benchmarks share"
SYSTEMS = ["bare", "bare-curve", "zmesh", "zmesh-curve", "zmesh-typed", "zmesh-ipc", "zmesh-blocking"]
WARM_UP = 0.15
HIGH_WATER = 20_000

now = time.perf_counter


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


# --- bare: the limit that is measured against


def curve(socket: zmq.Socket[bytes], *, server: bool) -> None:
    """Put CURVE on a socket, with the one pair of keys that both sides have, as in a mesh with a secret."""
    from zmesh._security.keys import derive

    pair = derive(SECRET)
    socket.curve_publickey, socket.curve_secretkey = pair.public.encode(), pair.secret.encode()
    if server:
        socket.curve_server = True
    else:
        socket.curve_serverkey = pair.public.encode()


def serve_bare(secured: bool) -> None:
    """A blocking ROUTER that looks a method up and echoes: one message a call, one thread."""
    router: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
    router.linger = 0
    if secured:
        curve(router, server=True)
    router.sndhwm = router.rcvhwm = HIGH_WATER
    router.router_mandatory = True  # so that a full queue blocks instead of losing replies
    ready(f"tcp://127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}")
    methods: dict[str, Callable[[Any], Any]] = {"echo": lambda argument: argument}
    send, receive = router.send, router.recv
    while True:
        caller = receive()
        number, method, argument = cbor2.loads(receive())
        send(caller, zmq.SNDMORE)
        send(cbor2.dumps([number, methods[method](argument)]))


def ask_bare(address: str, secured: bool) -> None:
    """A blocking DEALER: a window of calls, a new one for each reply."""
    dealer: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    dealer.linger = 0
    if secured:
        curve(dealer, server=False)
    dealer.sndhwm = dealer.rcvhwm = HIGH_WATER
    dealer.connect(address)
    transmit, receive = dealer.send, dealer.recv
    number = 0

    def latency(calls: int, extra: int = 0) -> list[float]:
        nonlocal number
        data, taken = DATA + "x" * extra, []
        for _ in range(calls):
            number += 1
            argument = {"name": "World", "n": number, "data": data}
            began = now()
            transmit(cbor2.dumps([number, "echo", argument]))
            of, result = cbor2.loads(receive())
            taken.append(now() - began)
            assert [of, result] == [number, argument]
        return taken

    def throughput(in_flight: int, seconds: float) -> float:
        nonlocal number
        waiting: dict[int, dict[str, Any]] = {}

        def send() -> None:
            nonlocal number
            number += 1
            waiting[number] = argument = {"name": "World", "n": number, "data": DATA}
            transmit(cbor2.dumps([number, "echo", argument]))

        began = now()
        end = began + seconds
        done = 0
        for _ in range(in_flight):
            send()
        while waiting:
            of, result = cbor2.loads(receive())
            assert waiting.pop(of) == result
            done += 1
            if now() < end:
                send()
        return done / (now() - began)

    latency(10)
    ready("")
    while True:
        told = order()
        if told["do"] == "latency":
            latency(told["calls"] // 10, told.get("extra", 0))
            answer({"seconds": latency(told["calls"], told.get("extra", 0))})
        else:
            throughput(told["in_flight"], WARM_UP)
            answer({"calls_a_second": throughput(told["in_flight"], told["seconds"])})


# --- zmesh


def run(main: Coroutine[Any, Any, None], loop: str) -> None:
    factory = None
    if loop == "uvloop" and importlib.util.find_spec("uvloop") is not None:
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main)


def security(secured: bool, folder: Path) -> Any:
    import zmesh
    from zmesh._security.keys import write_secret

    if not secured:
        return None
    write_secret(folder / "secret", SECRET)
    return zmesh.Security(secret_file=folder / "secret")


async def serve_zmesh(ipc: bool, security: Any) -> None:
    # Imported here, so that the bare processes do not carry it.
    import zmesh
    from benchmarks._echo import Echo, TypedEcho

    config = zmesh.Config(ipc=ipc)
    async with zmesh.Node(
        Echo(), TypedEcho(), listen="tcp://127.0.0.1:0", discovery=None, security=security, config=config
    ) as node:
        ready(node.addresses[0])
        await node.serve_forever()


async def ask_zmesh(address: str, typed: bool, ipc: bool, security: Any) -> None:
    import zmesh
    from benchmarks._echo import Echo, Message, TypedEcho

    config = zmesh.Config(ipc=ipc)
    async with zmesh.Node(peers=[address], discovery=None, security=security, config=config) as node:
        echo: Callable[[Any], Awaitable[Any]] = node.client(TypedEcho).echo if typed else node.client(Echo).echo
        make: Callable[..., Any] = Message if typed else dict
        number = 0

        async def latency(calls: int, extra: int = 0) -> list[float]:
            nonlocal number
            data, taken = DATA + "x" * extra, []
            for _ in range(calls):
                number += 1
                argument = make(name="World", n=number, data=data)
                began = now()
                result = await echo(argument)
                taken.append(now() - began)
                assert result == argument
            return taken

        async def throughput(in_flight: int, seconds: float) -> float:
            end = now() + seconds

            async def one_after_the_other() -> int:
                nonlocal number
                done = 0
                while not done or now() < end:
                    number += 1
                    argument = make(name="World", n=number, data=DATA)
                    assert await echo(argument) == argument
                    done += 1
                return done

            began = now()
            done = await asyncio.gather(*(one_after_the_other() for _ in range(in_flight)))
            return sum(done) / (now() - began)

        await latency(10)
        ready("")
        loop = asyncio.get_running_loop()
        while True:
            # A thread reads, so that the node lives on while another system is measured.
            told = await loop.run_in_executor(None, order)
            if told["do"] == "latency":
                await latency(told["calls"] // 10, told.get("extra", 0))
                answer({"seconds": await latency(told["calls"], told.get("extra", 0))})
            else:
                await throughput(told["in_flight"], WARM_UP)
                answer({"calls_a_second": await throughput(told["in_flight"], told["seconds"])})


def ask_blocking(address: str) -> None:
    import zmesh
    from benchmarks._echo import Echo

    with zmesh.connect(peers=[address], discovery=None, config=zmesh.Config(ipc=False)) as mesh:
        echo = mesh.client(Echo).echo
        number = 0

        def latency(calls: int) -> list[float]:
            nonlocal number
            taken = []
            for _ in range(calls):
                number += 1
                argument = {"name": "World", "n": number, "data": DATA}
                began = now()
                result = echo(argument)
                taken.append(now() - began)
                assert result == argument
            return taken

        latency(10)
        ready("")
        while True:
            told = order()
            latency(told["calls"] // 10)
            answer({"seconds": latency(told["calls"])})


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("system", choices=SYSTEMS)
    options.add_argument("side", choices=["serve", "ask"])
    options.add_argument("--address", default="")
    options.add_argument("--loop", choices=["uvloop", "asyncio"], default="uvloop")
    given = options.parse_args()
    secured = given.system.endswith("-curve")
    if given.system.startswith("bare"):
        serve_bare(secured) if given.side == "serve" else ask_bare(given.address, secured)
    elif given.system == "zmesh-blocking":
        ask_blocking(given.address)  # on uvloop where it is installed, as `zmesh.connect` does
    else:
        ipc = given.system == "zmesh-ipc"
        with tempfile.TemporaryDirectory() as folder:  # it holds what an ordinary node would read
            keys = security(secured, Path(folder))
            if given.side == "serve":
                run(serve_zmesh(ipc, keys), given.loop)
            else:
                run(ask_zmesh(given.address, given.system == "zmesh-typed", ipc, keys), given.loop)
