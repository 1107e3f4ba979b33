"""Transports: how frames get from one node to another. Knows nothing of messages, calls or services.

Two implementations stand behind this interface: ZeroMQ (`_transport.zeromq`) and the in-memory network of
`zmesh.testing`. zmq is imported in this folder only.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from .._refusals import Refusals

__all__ = ["Accept", "Channel", "Frame", "Gate", "Handler", "Sent", "Transport", "check_address", "host_of"]

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

    @property
    def address(self) -> str:
        """The host at the other end, as the network knows it: an IP address where there is one."""

    @property
    def key(self) -> str | None:
        """The public key (40 characters of Z85) that the other side has proven to own; None where the link is not
        secured. Of a dialed channel that is not open yet, the key that it has to prove."""

    def send(self, frames: Sequence[Frame]) -> Sent:
        """Hand over one message of one or more frames. Never blocks, never raises for a lost connection."""

    def close(self, linger: float = 0.0) -> None:
        """End the connection; what was taken may still leave for `linger` seconds. No callback comes after."""

    def penalize(self) -> None:
        """Who made this connection floods: take no new one from its address for `Config.penalty` seconds."""

    def hang_up(self) -> None:
        """Close, and end an accepted connection for the other side, too, at once: `close` leaves that to the other
        side. Only to be trusted after `Handler.received`."""


class Gate(Protocol):
    """The keys of a secured node, and who may connect to it. Keys are 40 characters of Z85."""

    public: str
    secret: str

    def refusal(self, key: str) -> str | None:
        """None, or why nobody may connect who has proven to own this key."""

    def refused(self, address: str, key: str | None, reason: str) -> None:
        """Be told of a handshake that was refused. key: None where none was proven."""


# What a handshake that cannot succeed says to the two sides; here since each transport says it.
ONLY_THERE: Final = "it is secured and this node is not: give this one --secret-file or --key-file"
ONLY_HERE: Final = "this node is secured and it is not: it needs --secret-file or --key-file, too"
OTHER_KEY: Final = "it broke off the handshake: it does not have the key that was expected, or is not secured"
BROKEN_OFF: Final = "it broke off the handshake: it may be secured, and this node is not (--secret-file or --key-file)"
NOT_TRUSTED: Final = "it does not trust this node's key"
PLAIN_STRANGER: Final = "it speaks ZMTP without CURVE"
WRONG_SERVER: Final = "its handshake is not for this node's key, or was recorded and replayed"


Accept = Callable[[Channel], Handler]


class Transport(Protocol):
    """What a node needs of a network."""

    refusals: Refusals
    """What it refused. Limits that others hold are noted there, too."""

    def listen(self, address: str, accept: Accept) -> str:
        """Listen at a ZeroMQ-style address (`tcp://host:port`, port 0 or `*`: any) and return the real one.

        Raises OSError where the address cannot be bound.
        """

    def dial(self, address: str, handler: Handler, key: str | None = None) -> Channel:
        """Start to connect. key: what the other side must prove to own, where this node is secured. Raises ValueError
        for an address that is no address."""

    def poll(self, seconds: float) -> None:
        """Deliver now everything that has arrived (used after a local pause, before anything is judged). A flood has no
        end: for so long at the most, each of those who are connected in turn."""

    def close(self) -> None:
        """Close all channels and listeners. Bounded; no callback comes after."""


def check_address(address: str) -> str:
    """The address itself. Raises ValueError that says what an address looks like."""
    match = _ADDRESS.fullmatch(address)
    if match is None or (match[2] not in (None, "*") and int(match[2]) > 65_535):
        raise ValueError(f"{address!r} is no address; write tcp://HOST:PORT, tcp://[IPV6]:PORT or ipc://PATH")
    return address


def host_of(address: str) -> str:
    """`10.0.0.3` of `tcp://10.0.0.3:7001`; "this host" of an ipc address."""
    return address.removeprefix("tcp://").rpartition(":")[0] if address.startswith("tcp://") else "this host"
