"""zmesh from blocking code; the server is the one of `zmesh_`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import zmesh

from ..clients import IN_FLIGHT_OF_MAP, Blocking
from ._echo import Echo, Message
from .zmesh_ import METADATA, serve

__all__ = ["Client", "serve"]


class Client(Blocking):
    def open(self, addresses: Sequence[str]) -> None:
        config = zmesh.Config(ipc=False)
        self._mesh = zmesh.connect(peers=addresses, discovery=None, config=config)
        self._mesh.discover(settle=0.2, timeout=20.0)
        self.echo = self._mesh.client(Echo).options(metadata=METADATA).echo  # type: ignore[method-assign]
        self.echo(self.make(0))

    def echo(self, argument: Any) -> Any:
        raise NotImplementedError  # as in `zmesh_`

    def make(self, number: int) -> Any:
        return Message(**super().make(number))

    def mapped(self, arguments: Iterable[Any]) -> Iterable[Any]:
        options = {"in_flight": IN_FLIGHT_OF_MAP, "metadata": METADATA, "progress": False}
        return self._mesh.map(Echo.echo, **options)(arguments)
