"""Where the bulk connections of a node come from: those that it dials, and those that others do."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ._bulk import PORT, Bulk, beside, open_envelope
from ._core import messages as m
from ._core.messages import BulkOffer, Hello, Message, ProtocolError
from ._core.wire import encode
from ._transport import Channel, Frame, Transport
from .config import Config
from .errors import Code

if TYPE_CHECKING:
    from ._link import Link
    from ._outbox import Outbox

__all__ = ["BulkDoor"]

_log = logging.getLogger("zmesh.bulk")


class BulkDoor:
    """Where the bulk connections of a node come from: it listens for those of links that others dialed, and dials."""

    def __init__(self, transport: Transport, config: Config, identity: Hello, token: Callable[[], bytes]) -> None:
        """token: 16 new random bytes at each call, which nobody can guess."""
        self.transport = transport
        self.above = config.bulk_above
        self.window = config.bulk_window
        self.handshake_timeout = config.handshake_timeout
        self._identity = identity
        self._new_token = token
        self._port = config.bulk_port or 0  # that it listens at; 0: any
        self._listens = False
        self._bulks: dict[bytes, tuple[Link, Bulk]] = {}  # of links that others dialed, by token

    def listen(self, addresses: Iterable[str]) -> None:
        """Listen beside each of these addresses, on one port. Where that is not possible, large values go by the
        connection that all else goes by."""
        for address in dict.fromkeys(beside(each, 0) for each in addresses):
            try:
                bound = self.transport.listen(PORT.sub(f":{self._port}", address), self._accept, bulk=True)
            except OSError as error:
                _log.warning("no bulk connections at %s: %s", address, error)
                continue
            self._listens = True
            if bound.startswith("tcp://"):
                self._port = int(bound.rpartition(":")[2])

    def meet(self, link: Link, outbox: Outbox, hello: Hello) -> Bulk | None:
        """The bulk half of a link whose peer said HELLO; None where one of the two does not do this."""
        remote = hello.bulk
        if remote is None:
            return None
        if link.dialed:
            return Bulk(link, outbox, self, remote, remote.token) if remote.token else None
        if not self._listens:
            return None
        token = self._new_token()
        bulk = Bulk(link, outbox, self, remote, token)
        self._bulks[token] = link, bulk
        return bulk

    def offer(self, link: Link) -> BulkOffer | None:
        """What to say of it in the HELLO of a link."""
        if link.dialed:
            return BulkOffer(self.window)
        return None if link.bulk is None else BulkOffer(self.window, link.bulk.token, self._port)

    def forget(self, token: bytes) -> None:
        self._bulks.pop(token, None)

    def greeting(self, token: bytes = b"") -> Message:
        """HELLO on a bulk connection; with the token, where we dialed it."""
        hello = self._identity
        fields: dict[str, object] = {"id": hello.id, "name": hello.name, "mesh": hello.mesh}
        return [m.HELLO, m.MAJOR, m.MINOR, fields | {"channel": token} if token else fields]

    def _accept(self, channel: Channel) -> _Stranger:
        return _Stranger(self, channel)

    def admit(self, channel: Channel, frames: list[Frame]) -> Bulk | None:
        """Whose bulk connection it is, by its first message; None where it is refused."""
        clock = 0
        try:
            messages = open_envelope(frames, m.tag_of(self._identity.id), greeted=False, dialed=False)
            message: Any = messages[0] if len(messages) == 1 else None
            if m.check(message) != m.HELLO or message[1] != m.MAJOR:
                raise ProtocolError("a bulk connection begins with HELLO of this version")
            token, peer = message[3].get("channel"), message[3].get("id")
            link, bulk = self._bulks.get(token, (None, None)) if type(token) is bytes else (None, None)
        except ProtocolError as error:
            self._refuse(channel, Code.INVALID_ARGUMENT, f"not the zmesh protocol: {error}"[:500])
            return None
        if link is None or bulk is None or not bulk.usable or not _is_of(link, channel, peer):
            self._refuse(channel, Code.NOT_FOUND, "no link here has a bulk connection with this token")
            return None
        channel.send([encode(link.to, clock, [self.greeting()])])
        return bulk

    def _refuse(self, channel: Channel, code: int, text: str) -> None:
        _log.info("refused a bulk connection (%s): %s", channel.remote, text)
        channel.send([encode(0, 0, [[m.REJECT, code, text]])])
        channel.close()


class _Stranger:
    """`Handler` of a bulk connection that somebody dialed: it becomes one of a link, or is refused."""

    def __init__(self, door: BulkDoor, channel: Channel) -> None:
        self._door = door
        self._channel = channel
        self._bulk: Bulk | None = None
        self._met = False

    def opened(self) -> None:
        """It was when it was accepted."""

    def received(self, frames: list[Frame]) -> None:
        if self._bulk is not None:
            if self._bulk.usable:
                self._bulk.received(frames)
        elif not self._met:
            self._met = True
            self._bulk = self._door.admit(self._channel, frames)
            if self._bulk is not None:
                self._bulk.join(self._channel)

    def closed(self, reason: str) -> None:
        """An accepted connection learns its end by sending."""


def _is_of(link: Link, channel: Channel, peer: object) -> bool:
    """Whether who says to be `peer` on a new connection is at the other end of a link, by its key, too, where links are
    secured."""
    return link.remote is not None and peer == link.remote.id and channel.key == link.key
