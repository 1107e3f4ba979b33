"""The service that zmesh's sides have."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import zmesh

from ..clients import TEXT


@dataclass
class Message:
    name: str
    n: int
    data: str


@dataclass
class Item:
    i: int
    s: str


class Echo(zmesh.Service):
    @zmesh.rpc(idempotent=True)
    async def echo(self, message: Message) -> Message:
        return message

    @zmesh.rpc(idempotent=True)
    async def echo_untyped(self, message: dict[str, object]) -> dict[str, object]:
        return message

    @zmesh.rpc
    async def size(self, value: memoryview) -> int:
        return len(value)

    @zmesh.rpc
    async def back(self, value: memoryview) -> memoryview:
        return value

    @zmesh.rpc
    async def items(self, count: int) -> AsyncIterator[Item]:
        for index in range(count):
            yield Item(index, TEXT)
