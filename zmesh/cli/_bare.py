"""A bare ROUTER/DEALER loop: the limit that `zmesh bench` shows beside calls.

What a program does that needs nothing but messages: blocking sockets, CBOR, one message a call. It is no part of a
node, so it is the one place besides the transport that opens ZeroMQ sockets. `python -m zmesh.cli._bare` is the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import cbor2
import zmq

__all__ = ["opened", "rate"]

_HIGH_WATER: Final = 20_000  # more than is ever in flight here
_PATIENCE: Final = 1000  # milliseconds without a message, until the server looks for its parent and the client gives up


def rate(address: str, text: str, in_flight: int, seconds: float, stop: threading.Event) -> float:
    """Calls per second, with a window: a new call for each answer. Blocks, until `stop` is set at most; raises
    TimeoutError where no answer comes."""
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    with contextlib.closing(socket):
        socket.linger = 0
        socket.sndhwm = socket.rcvhwm = _HIGH_WATER
        socket.rcvtimeo = _PATIENCE
        socket.connect(address)
        try:
            _window(socket, text, in_flight, 0.0, stop)  # connects
            began = time.perf_counter()
            done = _window(socket, text, in_flight, began + seconds, stop)
        except zmq.Again:
            raise TimeoutError("the bare loop does not answer") from None
        return done / (time.perf_counter() - began)


def _window(socket: zmq.Socket[bytes], text: str, in_flight: int, end: float, stop: threading.Event) -> int:
    send, receive, dumps, loads, now = socket.send, socket.recv, cbor2.dumps, cbor2.loads, time.perf_counter
    waiting: dict[int, str] = {}
    numbers = itertools.count()
    done = 0

    def send_one() -> None:
        number = next(numbers)
        waiting[number] = text
        send(dumps([number, "echo", text]))

    for _ in range(in_flight):
        send_one()
    while waiting:
        number, answer = loads(receive())
        assert waiting.pop(number) == answer
        done += 1
        if now() < end and not stop.is_set():
            send_one()
    return done


@contextlib.asynccontextmanager
async def opened() -> AsyncIterator[str]:
    """The server, as a process of its own; its address."""
    package = Path(__file__).parents[2]
    path = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")]))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __name__),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,  # Ctrl-C at the terminal is for the command
    )
    assert process.stdout is not None
    try:
        yield (await process.stdout.readline()).decode().strip()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def main() -> None:
    """Echo until the process that started this one has ended."""
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
    socket.linger = 0
    socket.sndhwm = socket.rcvhwm = _HIGH_WATER
    socket.router_mandatory = True  # so that a full queue blocks instead of losing answers
    socket.rcvtimeo = _PATIENCE
    print(f"tcp://127.0.0.1:{socket.bind_to_random_port('tcp://127.0.0.1')}", flush=True)
    parent = os.getppid()
    methods: dict[str, Callable[[Any], Any]] = {"echo": lambda argument: argument}
    while True:
        try:
            caller = socket.recv()
        except zmq.Again:
            if os.getppid() != parent:
                return
            continue
        number, method, argument = cbor2.loads(socket.recv())
        socket.send(caller, zmq.SNDMORE)
        socket.send(cbor2.dumps([number, methods[method](argument)]))


if __name__ == "__main__":
    main()
