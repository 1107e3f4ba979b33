"""What a handler can learn about its call, and how it calls on."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar, overload

from ._core.admission import LOTS
from ._platform import clock_of
from ._security.keys import fingerprint

if TYPE_CHECKING:
    from ._server import Running
    from .node import DynamicClient
    from .service import Service

    S = TypeVar("S", bound=Service)

__all__ = ["Caller", "Context", "context"]

current: ContextVar[Running | None] = ContextVar("zmesh_call", default=None)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: its node's name, its incarnation in hex, and the connection that the call came by.

    key: the public key that it has proven to own, 40 characters of Z85; None where the link is not secured. Name, id
        and metadata are what the caller says of itself; the key is not, nor the name where each node has its own key.
    """

    name: str
    id: str
    address: str
    key: str | None
    _running: Running = field(repr=False, compare=False)

    @property
    def fingerprint(self) -> str | None:
        """What `zmesh keys list` shows of its key."""
        return None if self.key is None else fingerprint(self.key)

    def client(self, service: type[S]) -> S:
        """A client for a service of the node that called, over the link by which it called: progress reports and
        callbacks need no discovery. Its calls inherit what is left of the deadline; they raise Unavailable when the
        caller is gone, and Unimplemented where it does not serve this."""
        running = self._running
        return running.server.node._client_over(service, running.link)


class Context:
    """The call that the running handler serves."""

    __slots__ = ("_running",)

    def __init__(self, running: Running) -> None:
        self._running = running

    @property
    def peer(self) -> Caller:
        """The node that called."""
        link = self._running.link
        assert link.remote is not None
        assert link.channel is not None
        return Caller(link.remote.name, link.remote.id.hex(), link.channel.remote, link.key, self._running)

    @property
    def method(self) -> str:
        """What was called, as `Service.method`."""
        return self._running.method.schema.path

    @property
    def deadline(self) -> float:
        """When the call is over, by the running loop's clock (`loop.time()`), in seconds."""
        return self._running.deadline

    @property
    def remaining(self) -> float:
        """Seconds that are left, never below 0."""
        return max(0.0, self._running.deadline - self._running.server.time())

    @property
    def priority(self) -> int:
        """How important the call is, from 0 (shed first) to 9; 5 where its caller did not say. Calls that are made here
        inherit it."""
        return self._running.rank // LOTS

    @property
    def attempt(self) -> int:
        """Which try at the call this is, from 1: the same call may have run, or be running, on another node."""
        return self._running.attempt

    @property
    def metadata(self) -> Mapping[str, str | bytes]:
        """What the caller sent beside the arguments; read-only, as several calls may share it."""
        return MappingProxyType(self._running.metadata)

    @property
    def reply_metadata(self) -> dict[str, str | bytes]:
        """What goes back beside the result: put entries in; the caller finds them in `call.metadata`."""
        if self._running.reply_metadata is None:
            self._running.reply_metadata = {}
        return self._running.reply_metadata

    @overload
    def client(self, service: type[S]) -> S: ...
    @overload
    def client(self, service: str) -> DynamicClient: ...
    def client(self, service: Any) -> Any:
        """A client for another service, as `Node.client`; its calls inherit what is left of this call's deadline."""
        return self._running.server.node.client(service)


def context() -> Context:
    """The call that the running handler serves.

    Raises RuntimeError outside a handler, and in one that runs in-process (`await Greeter().say_hello("x")`).
    """
    running = current.get()
    if running is None:
        raise RuntimeError(
            "zmesh.context() is for handlers that serve a call from the mesh; here no such call is running"
        )
    return Context(running)


def inheritance() -> tuple[float, int] | None:
    """The deadline, by the running loop's clock, and the rank that a call made here and now inherits: a task that
    outlives its call has none."""
    running = current.get()
    if running is None or running.over:
        return None
    loop, server = asyncio.get_running_loop(), running.server
    if server.loop is loop:
        return running.deadline, running.rank
    # A plain `def`, through a loop of its own.
    return clock_of(loop)() + running.deadline - server.time(), running.rank


def bounds_streams() -> bool:
    """Whether a stream that is read here and now ends with what runs here: not where that is a stream itself, whose
    deadline goes with its first item."""
    running = current.get()
    return running is not None and not running.until_begun and not running.over and running.deadline != math.inf
