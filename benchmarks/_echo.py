"""The services that `floor` calls."""

from __future__ import annotations

from dataclasses import dataclass

import zmesh


@dataclass
class Message:
    name: str
    n: int
    data: str


class Echo(zmesh.Service):
    @zmesh.rpc
    async def echo(self, arg: dict[str, object]) -> dict[str, object]:
        return arg


class TypedEcho(zmesh.Service):
    @zmesh.rpc
    async def echo(self, arg: Message) -> Message:
        return arg
