"""Transports: how frames get from one node to another. Knows nothing of messages, calls or services.

Two implementations stand behind this interface: ZeroMQ (`_transport.zeromq`, the only importer of zmq) and the
in-memory network of `zmesh.testing`.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Sequence
from typing import Final, Protocol

__all__ = ["Accept", "Channel", "Frame", "Handler", "Sent", "Transport", "check_address"]

Frame = bytes | memoryview

_ADDRESS: Final = re.compile(r"tcp://(\[[0-9A-Fa-f:.%\w]+\]|[^\s:/\[\]]+):(\*|\d{1,5})|ipc://\S+")


class Sent(enum.Enum):
    """What became of a `Channel.send`."""

    TAKEN = "taken"  # on its way; says nothing about delivery
    FULL = "full"  # not taken: the queue to that peer is full; try again later
    GONE = "gone"  # not taken: the connection has ended


class Handler(Protocol):
    """Who is told about one channel. Called on the loop, never from inside `send` or `close`."""

    def opened(self) -> None:
        """The dialed connection stands (for ZeroMQ: ZMTP's handshake succeeded). Not called for accepted ones."""

    def received(self, frames: list[Frame]) -> None:
        """A whole message arrived."""

    def closed(self, reason: str) -> None:
        """The connection could not be made or has ended. Called at most once, after everything that had arrived
        was received, and never after our own `close()`. An accepted channel may learn its end only by sending."""


class Channel(Protocol):
    """One connection, for its whole life: it never reconnects."""

    @property
    def remote(self) -> str:
        """The dialed address, or a label for an accepted connection."""

    def send(self, frames: Sequence[Frame]) -> Sent:
        """Hand over one message of one or more frames. Never blocks, never raises for a lost connection."""

    def close(self, linger: float = 0.0) -> None:
        """End the connection; what was taken may still leave for `linger` seconds. No callback comes after."""


Accept = Callable[[Channel], Handler]


class Transport(Protocol):
    """What a node needs of a network."""

    def listen(self, address: str, accept: Accept, *, bulk: bool = False) -> str:
        """Listen at a ZeroMQ-style address (`tcp://host:port`, port 0 or `*`: any) and return the real one.

        bulk: for connections whose silence is not judged, neither by this side nor by that which dials with `bulk`.
        Raises OSError where the address cannot be bound.
        """

    def dial(self, address: str, handler: Handler, *, bulk: bool = False) -> Channel:
        """Start to connect. bulk: to what listens so. Raises ValueError for an address that is no address."""

    def poll(self) -> None:
        """Deliver now everything that has arrived (used after a local pause, before anything is judged)."""

    def close(self) -> None:
        """Close all channels and listeners. Bounded; no callback comes after."""


def check_address(address: str) -> str:
    """The address itself. Raises ValueError that says what an address looks like."""
    match = _ADDRESS.fullmatch(address)
    if match is None or (match[2] not in (None, "*") and int(match[2]) > 65_535):
        raise ValueError(f"{address!r} is no address; write tcp://HOST:PORT, tcp://[IPV6]:PORT or ipc://PATH")
    return address
