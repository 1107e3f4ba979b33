"""zmesh, awaited. Variants: uvloop, asyncio; ipc, untyped, plain, curve and shared, on uvloop."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Any

import zmesh
from zmesh._security.keys import write_secret

from ..clients import IN_FLIGHT_OF_MAP, SECRET, Awaiting
from ..worker import ready, run
from ._echo import Echo, Item, Message

_UNTYPED = ("untyped", "plain")
METADATA = {"tenant": "a"}  # as a program sends it that has tenants


def _node(variant: str, *services: zmesh.Service, **options: Any) -> zmesh.Node:
    security = None
    with tempfile.TemporaryDirectory() as folder:
        if variant == "curve":
            file = Path(folder) / "secret"
            write_secret(file, SECRET)
            security = zmesh.Security(secret_file=file)
        config = zmesh.Config(ipc=variant == "ipc", bulk=variant != "shared")
        return zmesh.Node(*services, discovery=None, security=security, config=config, **options)


async def _serve(variant: str) -> None:
    async with _node(variant, Echo(), listen="tcp://127.0.0.1:0") as node:
        ready(node.addresses[0])
        await node.serve_forever()


def serve(variant: str, beside: Sequence[str]) -> None:
    run(_serve(variant), variant)


class Client(Awaiting):
    def __init__(self, variant: str) -> None:
        super().__init__(variant)
        self.loop = variant

    async def open(self, addresses: Sequence[str]) -> None:
        self._node = await _node(self.variant, peers=addresses).__aenter__()
        client = self._node.client(Echo)
        if self.variant != "plain":
            client = client.options(metadata=METADATA)
        peers = await self._node.discover(settle=0.2, timeout=20.0)
        names = {peer.address: peer.name for peer in peers}
        self._each = [client.options(node=names[address]).echo for address in addresses] if len(peers) > 1 else []
        self.echo = client.echo_untyped if self.variant in _UNTYPED else client.echo  # type: ignore[method-assign]
        self.items = client.items  # type: ignore[method-assign]
        large = self._node.client(Echo).options(timeout=60.0)
        self.size, self.back = large.size, large.back  # type: ignore[method-assign]
        await self.echo(self.make(0))

    async def echo(self, argument: Any) -> Any:
        raise NotImplementedError  # `open` puts the client's method here: nothing is measured but that

    def make(self, number: int) -> Any:
        return super().make(number) if self.variant in _UNTYPED else Message(**super().make(number))

    def item(self, number: int) -> Any:
        return Item(**super().item(number))

    def _echo_of(self, server: int, argument: Any) -> Any:
        return self._each[server](argument)

    def mapped(self, arguments: Iterable[Any]) -> AsyncIterator[Any]:
        return self._node.map(Echo.echo, in_flight=IN_FLIGHT_OF_MAP, metadata=METADATA)(arguments)
