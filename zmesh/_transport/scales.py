"""What connections hold in messages that are not complete, or not read: libzmq bounds neither.

What a connection's kernel has received (TCP_INFO) is compared with what was delivered from it. Nothing here runs for a
message: a look at the memory of this process twenty times a second, one for all nodes that it has, tells whether a look
at each connection is due. Linux only.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Final

from .._core.wire import MARGIN
from .._refusals import Refusals
from ..config import Config

if sys.platform == "linux":
    import fcntl

__all__ = ["Connection", "DialedScales", "Scales"]

_GREETING: Final = 256 * 1024  # bytes of a connection that has not delivered its first message
_LOOK: Final = (
    0.05  # seconds between looks at this process's memory: some 60 MB on the fastest path there is (loopback)
)
_LOOK_CLOSELY: Final = 0.005  # seconds, while much is under way
_LOOK_AT_ALL: Final = 1.0  # seconds between looks at each connection, whatever the memory says
_GROWN: Final = 4 * 1024 * 1024  # bytes more than at the last look at all connections
_BACKLOG: Final = 32 * 1024 * 1024  # bytes of small messages that are not read yet: more than 8,000 calls of 4 KiB
_LARGE: Final = 64 * 1024  # bytes of a message that is none of the small ones
_RECEIVED_AT: Final = 128  # offset of tcpi_bytes_received in struct tcp_info (Linux 4.1)
_FIONREAD: Final = 0x541B


class Connection:
    """One of libzmq's connections."""

    __slots__ = (
        "address", "base", "delivered", "descriptor", "held", "inode", "label", "last", "seen", "since", "spoke",
    )  # fmt: skip

    @property
    def host(self) -> str:
        """The address as a host: an IP address where there is one."""
        return self.address.removeprefix("tcp://").strip("[]") if self.address.startswith("tcp") else "this host"

    def __init__(self, descriptor: int, inode: int, address: str, label: str, now: float) -> None:
        self.descriptor = descriptor
        self.inode = inode
        self.address = address  # without the port: what limits hold for
        self.label = label  # for people
        self.since = now
        self.spoke = False  # whether its first message was delivered
        self.delivered = 0  # bytes of the messages that were
        self.seen = 0  # the same at the last look
        self.last = -1  # bytes that the kernel had received at the last look, where all that was complete was read
        self.base = 0  # of those, what is no part of a message
        self.held = 0  # bytes received and not delivered, at the last look


class _Looks:
    """The looks at this process's memory, for all sockets of one loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._time = time.monotonic  # not the loop's: some show the time of their turn
        self._page = os.sysconf("SC_PAGE_SIZE")
        self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)  # now: later there may be none left
        self._memory = 0  # of this process, at the last look at all connections
        self._looked = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.users = 0
        self.watching: dict[Scales, None] = {}  # those that have connections

    def watch(self, scales: Scales) -> None:
        self.watching[scales] = None
        if self._timer is None:
            self._timer = self._loop.call_later(_LOOK, self._look)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        os.close(self._statm)

    def _look(self) -> None:
        """Time has passed: does anybody send without an end, is anybody silent for too long?"""
        self._timer = None
        now, memory = self._time(), self._resident()
        if memory - self._memory >= _GROWN or now - self._looked >= _LOOK_AT_ALL:
            self._memory, self._looked = memory, now
            for scales in list(self.watching):
                scales.look_at_all(now)
                if not scales.needed():
                    self.watching.pop(scales, None)
        else:
            for scales in list(self.watching):
                if scales.much:
                    scales.weigh_all(scales.much)
        self._memory = min(self._memory, memory)
        if self.watching and self._timer is None:
            pause = _LOOK_CLOSELY if any(scales.much for scales in self.watching) else _LOOK
            taken = self._time() - now  # of many connections: half of the time at most
            self._timer = self._loop.call_later(max(pause, 2 * taken), self._look)

    def _resident(self) -> int:
        """Bytes of memory that this process occupies."""
        return int(os.pread(self._statm, 64, 0).split()[1]) * self._page


_looks: dict[asyncio.AbstractEventLoop, _Looks] = {}


class Scales:
    """See the module. Of one socket, which a subclass knows how to hang up."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        config: Config,
        refusals: Refusals,
        waiting: Callable[[], bool],
        drain: Callable[[Connection], tuple[int, int]],
    ) -> None:
        """waiting: whether a message waits to be read; it is, then, as asking may swallow the socket's edge.
        drain: receive for a moment; how many messages, and bytes, came from this connection."""
        self._loop = loop
        self._time = time.monotonic
        self._config = config
        self._refusals = refusals
        self._waiting = waiting
        self._drain = drain
        self._connections: dict[int, Connection] = {}  # by descriptor
        self.much: list[Connection] = []  # that had much under way at the last look
        looks = _looks.get(loop)
        if looks is None:
            looks = _looks[loop] = _Looks(loop)
        looks.users += 1
        self._looks = looks

    def hang_up(self, connection: Connection, *, penalty: bool = False) -> None:
        """End a connection now. penalty: and keep its address away for a while."""
        raise NotImplementedError

    def needed(self) -> bool:
        """Whether there is anything to look at."""
        return bool(self._connections)

    def watch(self) -> None:
        """A connection came."""
        self._looks.watch(self)

    def close(self) -> None:
        self._connections.clear()
        looks = self._looks
        looks.watching.pop(self, None)
        looks.users -= 1
        if not looks.users:
            looks.close()
            del _looks[self._loop]

    def look_at_all(self, now: float) -> None:
        """Weigh every connection."""
        self.weigh_all(list(self._connections.values()))

    def weigh_all(self, connections: list[Connection]) -> None:
        """Judge those that have too much under way; look closely at those that have much, from now on."""
        most = self._config.max_message + 2 * MARGIN
        held: dict[str, list[Connection]] = {}
        self.much = []
        for connection in connections:
            if self._connections.get(connection.descriptor) is not connection or not self._weigh(connection):
                continue
            if connection.held > (_BACKLOG if connection.spoke else _GREETING):
                self._judge(connection, "max_message", most if connection.spoke else _GREETING)
            if connection.held > _GREETING:
                self.much.append(connection)
                held.setdefault(connection.address, []).append(connection)
        for each in held.values():
            self._judge_together(each)

    def _judge_together(self, connections: list[Connection]) -> None:
        """Cut off the largest of those of one address, where together they hold more than they may."""
        total = sum(connection.held for connection in connections)
        for connection in sorted(connections, key=lambda each: -each.held):
            if total <= self._config.max_peer_memory:
                return
            self._judge(connection, "max_peer_memory", 0)
            total -= connection.held

    def _judge(self, connection: Connection, limit: str, most: int) -> None:
        """Cut off a connection that has more under way than it may, unless it only waits to be read."""
        held = connection.held - self._unread(connection)
        if held <= min(most, _BACKLOG):
            return
        messages, size = self._drain(connection)
        what = "of a message that has no end"
        if messages:  # and we do not keep up with them
            held = self._weigh(connection) and connection.held - self._unread(connection)
            most = self._config.max_peer_memory if size > messages * _LARGE else _BACKLOG
            limit, what = "max_peer_memory", "of messages that come faster than they are read"
        if held > most and self._connections.get(connection.descriptor) is connection:
            self._refusals.note(
                limit, connection.address, f"{held} bytes {what}; its connection was closed", self._time()
            )
            self.hang_up(connection, penalty=True)

    def _weigh(self, connection: Connection) -> bool:
        """How much a connection has under way. False where it is gone, or no kernel counts its bytes."""
        received = self._received(connection)
        if received is None:
            return False
        held = received - connection.delivered - connection.base
        clear = not self._waiting()  # all that is complete is read
        if clear and connection.last >= 0 and connection.delivered != connection.seen:
            held = min(held, received - connection.last)  # what was under way at the last look has come to its end
        held = max(held, 0)
        connection.base = received - connection.delivered - held  # heartbeats and headers are not messages
        connection.seen, connection.held = connection.delivered, held
        connection.last = received if clear else -1
        return True

    def _received(self, connection: Connection) -> int | None:
        """Bytes that its kernel has received, in all. Of another one, if its number was used again: that one is not
        touched when it is judged by them."""
        if connection.address.startswith("ipc"):
            return None
        try:
            end = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, connection.descriptor)
        except OSError:
            return None
        try:
            info = end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        except OSError:
            return None
        finally:
            end.detach()  # it is libzmq's
        if len(info) < _RECEIVED_AT + 8:
            return None
        return int.from_bytes(info[_RECEIVED_AT : _RECEIVED_AT + 8], sys.byteorder)

    def _unread(self, connection: Connection) -> int:
        """Bytes that still are in its kernel: they cost this process nothing."""
        try:
            return int.from_bytes(fcntl.ioctl(connection.descriptor, _FIONREAD, b"\0\0\0\0"), sys.byteorder)
        except OSError:
            return 0


class DialedScales(Scales):
    """Of one DEALER, whose server is held as its callers are: it may be a stranger, too."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        config: Config,
        refusals: Refusals,
        waiting: Callable[[], bool],
        drain: Callable[[Connection], tuple[int, int]],
        cut: Callable[[], None],
    ) -> None:
        """cut: end the connection."""
        super().__init__(loop, config, refusals, waiting, drain)
        self._cut = cut

    def connected(self, connection: Connection, descriptor: int) -> None:
        """It has this descriptor, or had: it may have ended."""
        if connection.address.startswith("tcp"):  # elsewhere no kernel counts
            with contextlib.suppress(OSError):
                connection.inode = os.fstat(descriptor).st_ino
                connection.descriptor = descriptor
                self._connections[descriptor] = connection
                self.watch()

    def weigh_all(self, connections: list[Connection]) -> None:
        for connection in connections:  # here and not where messages are received: that would cost each of them
            connection.spoke = connection.delivered > 0
        super().weigh_all(connections)

    def hang_up(self, connection: Connection, *, penalty: bool = False) -> None:
        """penalty: none. It is the dialer who comes back, and that is us: after a pause."""
        self._connections.clear()
        with contextlib.suppress(OSError):
            if os.fstat(connection.descriptor).st_ino == connection.inode:  # else it has ended, as will be told
                self._cut()
