"""`zmq.asyncio`, as its documentation shows it. Large values go by a socket of their own, whose frames are not copied;
an address is that of both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import cbor2
import zmq
import zmq.asyncio

from ..clients import TEXT, Awaiting
from ..worker import ready, run
from .bare import HIGH_WATER


def _socket(kind: int) -> Any:
    socket = zmq.asyncio.Context.instance().socket(kind)
    socket.linger = 0
    socket.sndhwm = socket.rcvhwm = HIGH_WATER
    return socket


async def _answer_large(router: Any) -> None:
    while True:
        caller, method, value = await router.recv_multipart(copy=False)
        answer = cbor2.dumps(len(value.buffer)) if method.bytes == b"size" else value
        del value
        await router.send_multipart([caller, answer], copy=False)
        del answer


async def _serve() -> None:
    router, large = _socket(zmq.ROUTER), _socket(zmq.ROUTER)
    ports = [socket.bind_to_random_port("tcp://127.0.0.1") for socket in (router, large)]
    answering = asyncio.create_task(_answer_large(large))
    ready(" ".join(f"tcp://127.0.0.1:{port}" for port in ports))
    while not answering.done():
        caller, request = await router.recv_multipart()
        number, method, argument = cbor2.loads(request)
        if method == "items":
            for index in range(argument):
                await router.send_multipart([caller, cbor2.dumps([number, {"i": index, "s": TEXT}])])
            argument = None
        await router.send_multipart([caller, cbor2.dumps([number, argument])])


def serve(variant: str, beside: Sequence[str]) -> None:
    run(_serve())


class Client(Awaiting):
    async def open(self, addresses: Sequence[str]) -> None:
        self._dealers = []
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._items: asyncio.Queue[Any] = asyncio.Queue()
        self._reading = []
        for address in addresses:
            dealer = _socket(zmq.DEALER)
            dealer.connect(address.split()[0])
            self._dealers.append(dealer)
            self._reading.append(asyncio.create_task(self._read(dealer)))
        self._large = _socket(zmq.DEALER)
        self._large.connect(addresses[0].split()[1])

    async def _read(self, dealer: Any) -> None:
        while True:
            number, answer = cbor2.loads(await dealer.recv())
            if number < 0:
                self._items.put_nowait(answer)
            else:
                self._waiting.pop(number).set_result(answer)

    async def _echo_of(self, server: int, argument: Any) -> Any:
        number = argument["n"]
        self._waiting[number] = future = asyncio.get_running_loop().create_future()
        await self._dealers[server].send(cbor2.dumps([number, "echo", argument]))
        return await future

    async def echo(self, argument: Any) -> Any:
        return await self._echo_of(0, argument)

    async def size(self, value: bytes) -> int:
        await self._large.send_multipart([b"size", value], copy=False)
        size: int = cbor2.loads(await self._large.recv())
        return size

    async def back(self, value: bytes) -> Any:
        await self._large.send_multipart([b"back", value], copy=False)
        return (await self._large.recv(copy=False)).buffer

    async def items(self, count: int) -> AsyncIterator[Any]:  # type: ignore[override]
        await self._dealers[0].send(cbor2.dumps([-1, "items", count]))
        while (item := await self._items.get()) is not None:
            yield item
