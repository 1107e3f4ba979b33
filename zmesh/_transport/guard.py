"""Holds the connections of strangers within the limits that libzmq does not have by itself.

What libzmq 4.3.5 does not bound (each was tried):

- one message that never ends: MAXMSGSIZE is of a frame, and its queues count whole messages. So connections are
  weighed: see `scales`.
- messages that wait to be read. RCVHWM would bound their number; but where a queue is full, and its connection ends,
  the next heartbeat ends the process (`!_io_error`, an assertion of libzmq). So there is no such bound, and the same
  scales hold them.
- connections that say nothing, up to the limit of descriptors, and beyond it accepting in a loop on a full core. So
  connections are counted as they are accepted, and some are shut down before the limit.
- connections per address and second.

A connection is ended by shutting down its descriptor, as libzmq has no call for it: it sees the end of the stream and
closes. Numbers of descriptors are used again, so the socket behind one is compared (its inode) before it is touched.

Nothing here runs for a message: a monitor tells of connections that come and go. All of it is Linux's; elsewhere there
is no guard.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Final

import zmq

from .._refusals import Refusals
from ..config import Config
from .scales import Connection, Scales

if sys.platform == "linux":
    import resource

__all__ = ["Guard"]

_EVENTS: Final = int(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
_ACCEPTED: Final = int(zmq.EVENT_ACCEPTED)
_HANDSHAKE_FAILED: Final = int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
_EVENTS_A_TURN: Final = 64  # some 50 us each: calls have their turn between
_BURST: Final = 1_024  # handshakes that an address may make at once
_SILENCE: Final = 2  # handshake timeouts in which a connection has to say something: libzmq waits for ZMTP only
_PEER_CREDENTIALS: Final = struct.Struct("3i")


class _Address:
    """What is known of one address."""

    __slots__ = ("connections", "tokens", "when")

    def __init__(self, now: float) -> None:
        self.connections: dict[Connection, None] = {}  # the oldest first
        self.tokens = float(_BURST)  # handshakes that it may make now
        self.when = now


class Guard(Scales):
    """See the module. Of one ROUTER."""

    def __init__(
        self,
        router: zmq.Socket[bytes],
        loop: asyncio.AbstractEventLoop,
        config: Config,
        refusals: Refusals,
        waiting: Callable[[], bool],
        drain: Callable[[Connection], tuple[int, int]],
        failed: Callable[[str, int], None] | None = None,
    ) -> None:
        """waiting: whether a message waits to be read; it is, then, as asking may swallow the socket's edge.
        drain: receive for a moment; how many messages, and bytes, came from this connection. failed: is told of
        handshakes that fail before ZAP is asked: from which host, and libzmq's code."""
        super().__init__(loop, config, refusals, waiting, drain)
        self._router = router
        self._listening: set[int | str | bytes] = set()  # ports and paths
        self._addresses: dict[str, _Address] = {}
        # Opened now: later there may be none left.
        self._null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._spare = os.dup(self._null)
        self._again: asyncio.Handle | None = None
        self._failed = failed
        self._failure: int | None = None  # of the connection whose end is told next
        self._monitor = _monitor_of(router, _EVENTS if failed is None else _EVENTS | _HANDSHAKE_FAILED)
        self._monitor_descriptor: int = self._monitor.getsockopt(zmq.FD)  # type: ignore[assignment]
        loop.add_reader(self._monitor_descriptor, self._poll)
        self._again = loop.call_soon(self._poll_again)

    def bound(self, endpoint: str) -> None:
        """The ROUTER listens there, too."""
        if endpoint.startswith("ipc://"):
            path = endpoint.removeprefix("ipc://")
            self._listening.add(b"\0" + path[1:].encode() if path.startswith("@") else path)
        else:
            self._listening.add(int(endpoint.rpartition(":")[2]))

    def met(self, descriptor: int, host: str) -> Connection | None:
        """The connection from `host` that the first message of a routing id came by; None where it has ended."""
        while self._poll():  # its event was before the message, and that of another with this number before it
            pass
        connection = self._connections.get(descriptor)
        if connection is None or connection.spoke:
            return None
        if connection.address.startswith("tcp") and connection.address != _address_of(host):
            return None
        connection.spoke = True
        return connection

    def hang_up(self, connection: Connection, *, penalty: bool = False) -> None:
        """End a connection now. penalty: and keep its address away for a while."""
        if penalty:
            self.penalize(connection)
        if self._connections.get(connection.descriptor) is not connection:  # it has ended
            return
        with contextlib.suppress(OSError), self._borrowed(connection.descriptor) as end:
            if os.fstat(end.fileno()).st_ino == connection.inode:
                end.shutdown(socket.SHUT_RDWR)
        self._forget(connection)

    def penalize(self, connection: Connection) -> None:
        """Take no new connection from its address for `Config.penalty` seconds."""
        address = self._addresses.get(connection.address)
        if address is not None:
            address.tokens, address.when = -self._config.penalty * self._config.max_handshakes_per_second, self._time()

    def close(self) -> None:
        super().close()
        self._loop.remove_reader(self._monitor_descriptor)
        if self._again is not None:
            self._again.cancel()
        with contextlib.suppress(zmq.ZMQError):
            self._router.disable_monitor()
        self._monitor.close(linger=0)
        self._addresses.clear()
        for descriptor in (self._null, self._spare):
            os.close(descriptor)

    # -- connections come and go

    def _poll(self) -> bool:
        """Whether there is more."""
        monitor = self._monitor
        if monitor.closed:
            return False
        try:
            for _ in range(_EVENTS_A_TURN):
                event, _ = monitor.recv_multipart(zmq.NOBLOCK)
                kind, descriptor = struct.unpack("=Hi", event)
                if kind == _ACCEPTED:
                    self._accepted(descriptor)
                elif kind == _HANDSHAKE_FAILED:
                    self._failure = descriptor  # it is the code, here
                else:
                    self._ended(self._connections.get(descriptor))
        except zmq.Again:
            return False
        if self._again is None:
            self._again = self._loop.call_soon(self._poll_again)
        return True

    def _poll_again(self) -> None:
        self._again = None
        self._poll()

    def _accepted(self, descriptor: int) -> None:
        now = self._time()
        if descriptor in self._connections:
            self._forget(self._connections[descriptor])
        connection = self._look_at(descriptor, now)
        if connection is None:  # it has ended already
            return
        address = self._addresses.get(connection.address)
        if address is None:
            address = self._addresses[connection.address] = _Address(now)
        self._connections[descriptor] = connection
        address.connections[connection] = None
        rate = self._config.max_handshakes_per_second
        address.tokens = min(address.tokens + (now - address.when) * rate, _BURST)
        address.when = now
        if address.tokens < 1:
            self._refuse(connection, "max_handshakes_per_second", now)
        else:
            address.tokens -= 1
            self._make_room(connection, address, now)
        if self._connections:
            self.watch()

    def _ended(self, connection: Connection | None) -> None:
        if self._failure is not None and self._failed is not None:
            self._failed("?" if connection is None else connection.host, self._failure)
        self._failure = None
        if connection is not None:
            self._forget(connection)

    def _make_room(self, connection: Connection, address: _Address, now: float) -> None:
        """Keep to the limits: of those that have said nothing yet, the oldest has to go."""
        if connection.address.startswith("ipc user") and not _trusted(connection.address):
            self._refuse(connection, "ipc of another user", now)
        elif len(address.connections) > self._config.max_links_per_address:
            self._refuse(_silent(address) or connection, "max_links_per_address", now)
        elif connection.descriptor >= _most_descriptors():
            crowd = max(self._addresses.values(), key=lambda each: len(each.connections))
            self._refuse(_silent(crowd) or connection, "open files (ulimit -n)", now)

    def _refuse(self, connection: Connection, limit: str, now: float) -> None:
        self._refusals.note(limit, connection.address, "a connection was refused", now)
        self.hang_up(connection)

    def _forget(self, connection: Connection) -> None:
        self._connections.pop(connection.descriptor, None)
        address = self._addresses.get(connection.address)
        if address is not None:
            address.connections.pop(connection, None)

    def _look_at(self, descriptor: int, now: float) -> Connection | None:
        """Who is at the other end; None where this is no connection to us (any more)."""
        try:
            with self._borrowed(descriptor) as end:
                inode = os.fstat(end.fileno()).st_ino
                here, there = end.getsockname(), end.getpeername()
                if end.family == socket.AF_UNIX:
                    if here not in self._listening:
                        return None
                    credentials = end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
                    process, user, _ = _PEER_CREDENTIALS.unpack(credentials)
                    return Connection(descriptor, inode, f"ipc user {user}", f"ipc user {user} process {process}", now)
                if here[1] not in self._listening:
                    return None
        except OSError:
            return None
        address = _address_of(there[0])
        return Connection(descriptor, inode, address, f"{address}:{there[1]}", now)

    @contextlib.contextmanager
    def _borrowed(self, descriptor: int) -> Iterator[socket.socket]:
        """libzmq's socket by a descriptor of our own, which costs none: it may close its own at any time. For a moment:
        while ours is open, the other side would not see libzmq's end. Raises OSError where it is no socket."""
        os.dup2(descriptor, self._spare, inheritable=False)
        try:
            end = socket.socket(fileno=self._spare)
            try:
                yield end
            finally:
                end.detach()
        finally:
            os.dup2(self._null, self._spare, inheritable=False)

    # -- what they hold

    def needed(self) -> bool:
        return bool(self._connections or self._addresses)

    def look_at_all(self, now: float) -> None:
        """Weigh every connection; end those that said nothing for too long."""
        config = self._config
        patience = max(_SILENCE * config.handshake_timeout, 1.0)
        for connection in list(self._connections.values()):
            if not connection.spoke and now - connection.since > patience:
                self._refusals.note("handshake_timeout", connection.address, "a connection said nothing", now)
                self.hang_up(connection)
        super().look_at_all(now)
        for name, address in list(self._addresses.items()):
            rate = config.max_handshakes_per_second
            if not address.connections and address.tokens + (now - address.when) * rate >= _BURST:
                del self._addresses[name]


def _address_of(host: str) -> str:
    host = host.removeprefix("::ffff:")
    return f"tcp://[{host}]" if ":" in host else f"tcp://{host}"


def _silent(address: _Address) -> Connection | None:
    """The oldest connection that has said nothing yet."""
    return next((connection for connection in address.connections if not connection.spoke), None)


def _trusted(address: str) -> bool:
    """Whether an ipc connection is of our own user or root: who could stop this process as well."""
    found = re.search(r"\d+", address)
    return found is not None and int(found[0]) in (0, os.geteuid())


def _most_descriptors() -> int:
    """The number of a descriptor from which on too few are left: numbers are given out from below."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft - max(32, min(256, soft // 8))


def _monitor_of(router: zmq.Socket[bytes], events: int) -> zmq.Socket[bytes]:
    """Its monitor, whose queue has no bound: where it is full, libzmq's thread stops for all sockets."""
    address = f"inproc://zmesh-guard-{id(router):x}"
    router.monitor(address, events)
    monitor: zmq.Socket[bytes] = router.context.socket(zmq.PAIR)
    monitor.setsockopt(zmq.RCVHWM, 0)
    monitor.setsockopt(zmq.LINGER, 0)
    monitor.connect(address)
    return monitor
