"""zmesh, awaited. Variants: uvloop, asyncio; ipc and untyped, on uvloop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import zmesh

from ..clients import IN_FLIGHT_OF_MAP, Awaiting
from ..worker import ready, run
from ._echo import Echo, Item, Message

METADATA = {"tenant": "a"}  # as a program sends it that has tenants


async def _serve(ipc: bool) -> None:
    config = zmesh.Config(ipc=ipc)
    async with zmesh.Node(Echo(), listen="tcp://127.0.0.1:0", discovery=None, config=config) as node:
        ready(node.addresses[0])
        await node.serve_forever()


def serve(variant: str, beside: Sequence[str]) -> None:
    run(_serve(variant == "ipc"), variant)


class Client(Awaiting):
    def __init__(self, variant: str) -> None:
        super().__init__(variant)
        self.loop = variant

    async def open(self, addresses: Sequence[str]) -> None:
        config = zmesh.Config(ipc=self.variant == "ipc")
        self._node = await zmesh.Node(peers=addresses, discovery=None, config=config).__aenter__()
        client = self._node.client(Echo).options(metadata=METADATA)
        peers = await self._node.discover(settle=0.2, timeout=20.0)
        names = {peer.address: peer.name for peer in peers}
        self._each = [client.options(node=names[address]).echo for address in addresses] if len(peers) > 1 else []
        self.echo = client.echo_untyped if self.variant == "untyped" else client.echo  # type: ignore[method-assign]
        self.items = client.items  # type: ignore[method-assign]
        await self.echo(self.make(0))

    async def echo(self, argument: Any) -> Any:
        raise NotImplementedError  # `open` puts the client's method here: nothing is measured but that

    def make(self, number: int) -> Any:
        return super().make(number) if self.variant == "untyped" else Message(**super().make(number))

    def item(self, number: int) -> Any:
        return Item(**super().item(number))

    def _echo_of(self, server: int, argument: Any) -> Any:
        return self._each[server](argument)

    def mapped(self, arguments: Iterable[Any]) -> AsyncIterator[Any]:
        return self._node.map(Echo.echo, in_flight=IN_FLIGHT_OF_MAP, metadata=METADATA)(arguments)
