"""`zmq.asyncio`, as its documentation shows it."""

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


async def _serve() -> None:
    router = zmq.asyncio.Context.instance().socket(zmq.ROUTER)
    router.sndhwm = router.rcvhwm = HIGH_WATER
    ready(f"tcp://127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}")
    while True:
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
            dealer = zmq.asyncio.Context.instance().socket(zmq.DEALER)
            dealer.linger = 0
            dealer.sndhwm = dealer.rcvhwm = HIGH_WATER
            dealer.connect(address)
            self._dealers.append(dealer)
            self._reading.append(asyncio.create_task(self._read(dealer)))

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

    async def items(self, count: int) -> AsyncIterator[Any]:  # type: ignore[override]
        await self._dealers[0].send(cbor2.dumps([-1, "items", count]))
        while (item := await self._items.get()) is not None:
            yield item
