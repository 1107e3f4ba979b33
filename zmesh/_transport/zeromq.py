"""The ZeroMQ transport: a ROUTER inbox, a DEALER per connection that is dialed.

What is unusual here follows from how libzmq 4.3 behaves; each point was tried:

- The sockets' descriptor is edge-triggered. After every receive *and every send* the pending events are looked at
  again, or a message sleeps until the next one comes.
- A DEALER is one connection for its whole life: it never reconnects, so that nothing queued for a process that died is
  ever delivered to its successor. When it loses its connection, what had arrived is read first.
- No routing id is ever set: a stranger who takes a peer's id would mute that peer.
- ROUTER_MANDATORY: a send to a peer that is gone or does not read is an error, not a silent drop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import zmq
import zmq.utils.monitor

from .._refusals import Refusals
from ..config import Config
from . import (
    BROKEN_OFF,
    NOT_TRUSTED,
    ONLY_HERE,
    ONLY_THERE,
    OTHER_KEY,
    Accept,
    Channel,
    Frame,
    Gate,
    Handler,
    Sent,
    check_address,
    host_of,
)
from .curve import MECHANISM_MISMATCH, Descriptor, InboxWatch, Zap, close_context, peer_of, secure, why_failed
from .guard import Guard
from .scales import Connection, DialedScales

__all__ = ["ZeroMQTransport"]

_log = logging.getLogger("zmesh.transport")

_NEVER: Final = 1_000_000_000  # ms; as a reconnection interval: never (-1 would discard what has arrived)
_MAX_SOCKETS: Final = 65_535  # a link needs three (DEALER and its monitor's pair); libzmq's default is 1,023
_QUEUE: Final = 1_000  # envelopes that wait to be sent on a connection, libzmq's default; each carries many messages
_DRAIN: Final = 0.02  # seconds for which one is read that has much under way
_LAST_LOOK: Final = 5.0  # seconds for what a peer had sent when its connection ended
_LAST_WORDS: Final = 0.5  # seconds that a connection which we end has to take what was sent last
_IGNORED: Final = 1_000  # connections that cannot be ended and are ignored instead
_ENVELOPES_A_TURN: Final = 4  # taken from one socket, and answered, before timers and other sockets get their turn
_SECONDS_A_TURN: Final = 0.0005  # the same, where an envelope has many calls: answers to others leave between
_IO_THREADS: Final = 2  # of the context: one for large values, so that small ones do not wait while it copies
_SMALL, _LARGE = 1, 2  # masks of them
_BULK_UNACKNOWLEDGED: Final = 10_000  # ms that the kernel sends in vain on a bulk connection before it gives it up
_BULK_KEEPALIVE: Final = {zmq.TCP_KEEPALIVE: 1, zmq.TCP_KEEPALIVE_IDLE: 15, zmq.TCP_KEEPALIVE_INTVL: 5}  # seconds
_EVENTS: Final = (
    zmq.EVENT_CONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_CLOSED
    | zmq.EVENT_CONNECT_RETRIED
)
# As plain integers: `&` and `|` of pyzmq's enumerations cost more than a send.
_POLLIN: Final = int(zmq.POLLIN)
_EVENTS_OPTION: Final = int(zmq.EVENTS)
_NOBLOCK: Final = int(zmq.NOBLOCK)
_NOBLOCK_MORE: Final = int(zmq.NOBLOCK | zmq.SNDMORE)
_TAKEN: Final = Sent.TAKEN
_REASONS: Final = {
    int(zmq.EVENT_DISCONNECTED): "connection lost",
    int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL): "ZMTP handshake failed: no ZeroMQ peer",
    int(zmq.EVENT_CLOSED): "connection refused or unreachable",
    int(zmq.EVENT_CONNECT_RETRIED): "connection refused or unreachable",
}

_context_lock = threading.Lock()
_context: tuple[int, zmq.Context[zmq.Socket[bytes]]] | None = None


def _shared_context() -> zmq.Context[zmq.Socket[bytes]]:
    """The process's one context (its IO threads serve all nodes); a new one after a fork."""
    global _context
    with _context_lock:
        if _context is None or _context[0] != os.getpid():
            _context = (os.getpid(), _new_context())
        return _context[1]


def _new_context() -> zmq.Context[zmq.Socket[bytes]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    context.set(zmq.MAX_SOCKETS, _MAX_SOCKETS)
    context.set(zmq.IO_THREADS, _IO_THREADS)
    _raise_descriptor_limit()
    return context


def _raise_descriptor_limit() -> None:
    """A link costs some five descriptors; the soft limit (often 1,024) is there to be raised by who needs it."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        if soft != resource.RLIM_INFINITY and soft < hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class ZeroMQTransport:
    """See `_transport.Transport`. gate: None for a node that is not secured."""

    def __init__(self, config: Config, gate: Gate | None = None) -> None:
        loop = asyncio.get_running_loop()
        if not hasattr(loop, "add_reader") or "Proactor" in type(loop).__name__:
            raise RuntimeError(
                "zmesh needs an event loop that can watch descriptors; on Windows run "
                "asyncio.set_event_loop_policy(asyncio.WindowsSelectorEventLoopPolicy()) first"
            )
        self._loop = loop
        self._config = config
        self.refusals = Refusals()
        self._gate = gate
        self._context = _shared_context() if gate is None else _new_context()
        self._zap: Zap | None = None
        self._inboxes: dict[bool, _Inbox] = {}  # by whether they are for bulk
        self._dialed: dict[_Dialed, None] = {}

    def listen(self, address: str, accept: Accept, *, bulk: bool = False) -> str:
        check_address(address)
        inbox = self._inboxes.get(bulk)
        if inbox is None:
            if self._gate is not None and self._zap is None:
                self._zap = Zap(self._context, self._gate)
            inbox = self._inboxes[bulk] = _Inbox(self, accept, bulk)
        return inbox.bind(address)

    def dial(self, address: str, handler: Handler, key: str | None = None, *, bulk: bool = False) -> Channel:
        channel = _Dialed(self, check_address(address), handler, key, bulk)
        self._dialed[channel] = None
        return channel

    def poll(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        for inbox in list(self._inboxes.values()):
            inbox.poll(None, until=until)
        for channel in list(self._dialed):
            channel.poll(None, until=until)
            channel.poll_monitor()

    def close(self) -> None:
        for channel in list(self._dialed):
            channel.close()
        for inbox in self._inboxes.values():
            inbox.close()
        self._inboxes.clear()
        if self._zap is not None:
            self._zap.close()
            self._zap = None
        if self._gate is not None:
            close_context(self._context)

    def _socket(self, kind: int, bulk: bool) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        config = self._config
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, _QUEUE)
        # No bound on what was received and not read: see `guard`. Where a queue is full, its connection ends, and a
        # heartbeat is due, an assertion of libzmq ends the process (`!_io_error`).
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.AFFINITY, _LARGE if bulk else _SMALL)
        socket.setsockopt(zmq.MAXMSGSIZE, config.max_message)
        if bulk:
            # A frame of 64 MiB is silence to ZMTP until it is whole. The kernel tells here that the path is lost, and
            # keeps it known to what stands between (firewalls forget idle connections).
            socket.setsockopt(zmq.TCP_MAXRT, _BULK_UNACKNOWLEDGED)
            for option, value in _BULK_KEEPALIVE.items():
                socket.setsockopt(option, value)
        else:
            socket.setsockopt(zmq.HEARTBEAT_IVL, round(config.transport_heartbeat * 1000))
            socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, round(config.transport_timeout * 1000))
        socket.setsockopt(zmq.HANDSHAKE_IVL, round(config.handshake_timeout * 1000))
        return socket


class _Socket:
    """A socket whose descriptor is on the loop. Subclasses say how to `_receive`."""

    def __init__(self, transport: ZeroMQTransport, kind: int, bulk: bool) -> None:
        self._transport = transport
        self._loop = transport._loop
        self._zmq = transport._socket(kind, bulk)
        self._get = self._zmq.getsockopt
        self._receive_frame = self._zmq.recv
        self._send_frame = super(zmq.Socket, self._zmq).send  # without a look at options of draft sockets
        self._descriptor: int = self._zmq.getsockopt(zmq.FD)  # type: ignore[assignment]
        self._again: asyncio.Handle | None = None
        self._polling = False
        self._closed = False

    def _watch(self) -> None:
        # Something happened: nearly always a message came, so the first look is the receipt itself.
        self._loop.add_reader(self._descriptor, self.poll, _ENVELOPES_A_TURN, True)
        self._look_again()  # an edge may have passed before anybody watched

    def poll(self, limit: int | None = _ENVELOPES_A_TURN, came: bool = False, until: float = math.inf) -> None:
        """Receive until there is nothing more, or for a turn's share; the rest follows in the next turn. came: whether
        to receive before the first look. until: when to stop all the same."""
        if self._closed:
            return
        if limit is not None:
            until = time.monotonic() + _SECONDS_A_TURN
        taken, get = 0, self._get
        polling, self._polling = self._polling, True
        try:
            if came:
                self._receive()
                taken = 1
            # Looking costs a third of what an exception for EAGAIN does, and comes first: nearly always there is
            # nothing more, and then this turn is over, however long it was.
            while not self._closed and get(_EVENTS_OPTION) & _POLLIN:  # type: ignore[operator]
                if taken and (taken == limit or time.monotonic() > until):
                    self._look_again()
                    return
                self._receive()
                taken += 1
        except zmq.ZMQError as error:
            if not self._closed and error.errno not in (zmq.EAGAIN, zmq.ETERM, zmq.ENOTSOCK):
                raise
        except BaseException:  # of a task that went on: it ends the loop, or the loop logs it and goes on
            self._look_again()
            raise
        finally:
            self._polling = polling

    def _readable(self) -> bool:
        return self._get(_EVENTS_OPTION) & _POLLIN != 0  # type: ignore[operator]

    def _look_again(self) -> None:
        if self._again is None and not self._closed:
            self._again = self._loop.call_soon(self._poll_again)

    def _poll_again(self) -> None:
        self._again = None
        self.poll()

    def _after_send(self) -> None:
        """A send may swallow the edge of a message that came meanwhile. Not called within `poll`, where the next look
        comes right behind what was received."""
        if self._again is None and self._readable():
            self._look_again()

    def _waiting(self) -> bool:
        """See `Scales`."""
        if not self._readable():
            return False
        self._look_again()
        return True

    def _receive(self) -> None:
        raise NotImplementedError

    def _close_socket(self, linger: float) -> None:
        self._closed = True
        self._loop.remove_reader(self._descriptor)
        if self._again is not None:
            self._again.cancel()
        self._zmq.close(linger=round(linger * 1000))


class _Dialed(_Socket):
    """A DEALER: one connection, never another."""

    def __init__(self, transport: ZeroMQTransport, address: str, handler: Handler, key: str | None, bulk: bool) -> None:
        super().__init__(transport, zmq.DEALER, bulk)
        self.remote = address
        self.address = host_of(address)
        self.key = key
        self._handler = handler
        self._connection = Connection(-1, 0, address.rpartition(":")[0], address, 0.0)
        self._scales: DialedScales | None = None
        if sys.platform == "linux":
            config, refusals = transport._config, transport.refusals
            self._scales = DialedScales(self._loop, config, refusals, self._waiting, self._drain, self._cut)
        socket = self._zmq
        if transport._gate is not None:
            assert key is not None, "a secured node dials whom it can tell by a key"
            secure(socket, transport._gate, key)
        socket.setsockopt(zmq.RECONNECT_IVL, _NEVER)
        if address.startswith("tcp://["):
            socket.setsockopt(zmq.IPV6, 1)
        self._monitor = socket.get_monitor_socket(_EVENTS)
        self._monitor_descriptor: int = self._monitor.getsockopt(zmq.FD)  # type: ignore[assignment]
        self._loop.add_reader(self._monitor_descriptor, self.poll_monitor)
        self._watch()
        self._loop.call_soon(self.poll_monitor)
        try:
            socket.connect(address)
        except zmq.ZMQError as error:
            # No such device, unresolvable: an answer like any other failed dial, but not from inside dial().
            self._loop.call_soon(self._end, f"cannot connect to {address}: {error}")

    def send(self, frames: Sequence[Frame]) -> Sent:
        if self._closed:
            return Sent.GONE
        try:
            if len(frames) == 1:
                self._send_frame(frames[0], _NOBLOCK)
            else:
                _send_all(self._send_frame, frames)
        except zmq.Again:
            return Sent.FULL
        if not self._polling:
            self._after_send()
        return _TAKEN

    def close(self, linger: float = 0.0) -> None:
        if self._closed:
            return
        self._transport._dialed.pop(self, None)
        if self._scales is not None:
            self._scales.close()
        self._loop.remove_reader(self._monitor_descriptor)
        with contextlib.suppress(zmq.ZMQError):
            self._zmq.disable_monitor()
        self._monitor.close(linger=0)
        self._close_socket(linger)

    def penalize(self) -> None:
        """It is the dialer who comes back, and that is us."""

    def hang_up(self) -> None:
        self.close()

    def _receive(self) -> None:
        # A frame knows whether more are behind it: asking the socket costs twice as much as the object.
        first: Any = self._receive_frame(_NOBLOCK, False)
        received: bytes = first.bytes
        if first.more:
            frames = _rest(self._zmq, received)
            self._connection.delivered += sum(map(_size, frames))
            self._handler.received(frames)
        else:
            self._connection.delivered += len(received)
            self._handler.received([received])

    def poll_monitor(self) -> None:
        if self._closed:
            return
        try:
            while not self._closed:
                event = zmq.utils.monitor.recv_monitor_message(self._monitor, zmq.NOBLOCK)
                kind = int(event["event"])
                if kind == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                    self._handler.opened()
                elif kind == zmq.EVENT_CONNECTED:
                    if self._scales is not None:
                        self._scales.connected(self._connection, int(event["value"]))
                else:
                    self._end(self._reason(kind, int(event["value"])))
        except zmq.Again:
            return
        except zmq.ZMQError as error:
            if not self._closed and error.errno not in (zmq.ETERM, zmq.ENOTSOCK):
                raise

    def _drain(self, connection: Connection) -> tuple[int, int]:
        """See `Scales`."""
        began, until, messages = connection.delivered, time.monotonic() + _DRAIN, 0
        while not self._closed and self._readable() and time.monotonic() < until:
            self.poll(1)
            messages += 1
        return messages, connection.delivered - began

    def _cut(self) -> None:
        """The server sends without an end."""
        self.close()
        self._handler.closed("it sent more than it may: its connection was closed here")

    def _reason(self, event: int, value: int) -> str:
        """What a monitor's event means, for people. Of a handshake that fails libzmq tells little: a listener that
        was not meant hangs up without a word."""
        if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value == MECHANISM_MISMATCH:
            return ONLY_THERE if self.key is None else ONLY_HERE
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            return NOT_TRUSTED
        if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
            return BROKEN_OFF if self.key is None else OTHER_KEY
        return _REASONS.get(event, "connection lost")

    def _end(self, reason: str) -> None:
        if self._closed:
            return
        self.poll(None, until=time.monotonic() + _LAST_LOOK)  # replies that had arrived are answers, not losses
        if self._closed:  # one of them made the handler close us
            return
        self.close()
        self._handler.closed(reason)


class _Accepted:
    """A connection that somebody else dialed: a routing id of the inbox."""

    __slots__ = (
        "_descriptor", "_inbox", "address", "connection", "handler", "key", "parted", "remote", "routing_id", "send",
    )  # fmt: skip

    def __init__(self, inbox: _Inbox, routing_id: bytes, first: zmq.Frame, connection: Connection | None) -> None:
        self._inbox = inbox
        self.send: Callable[[Sequence[Frame]], Sent] = partial(inbox.send, routing_id)
        self.handler: Handler | None = None  # None: it is over for us, and what still comes is ignored
        self.parted = False
        self.routing_id = routing_id
        self.remote = f"connection {routing_id.hex()}" if connection is None else connection.label
        self.connection = connection or Connection(-1, 0, "", self.remote, 0.0)  # counts, and nobody looks
        self.address = peer_of(first)
        self.key = str(first.get("User-Id")) if inbox.secured else None  # as ZAP was answered
        self._descriptor = Descriptor.of(first)

    def close(self, linger: float = 0.0) -> None:
        self._inbox.part(self, linger)

    def penalize(self) -> None:
        if self._inbox.guard is not None:
            self._inbox.guard.penalize(self.connection)

    def hang_up(self) -> None:
        self.close()
        self._descriptor.shut()


class _Inbox(_Socket):
    """The ROUTER: everything that others dial."""

    def __init__(self, transport: ZeroMQTransport, accept: Accept, bulk: bool) -> None:
        super().__init__(transport, zmq.ROUTER, bulk)
        self._accept = accept
        self._peers: dict[bytes, _Accepted] = {}
        self._ignored: deque[_Accepted] = deque()
        self._zmq.setsockopt(zmq.ROUTER_MANDATORY, 1)
        gate = transport._gate
        self.secured = gate is not None
        self._handshakes: InboxWatch | None = None
        self.guard: Guard | None = None
        if gate is not None:
            secure(self._zmq, gate, None)
        if sys.platform == "linux":  # a socket has one monitor: the guard tells of handshakes, too
            failed = None if gate is None else lambda host, value: gate.refused(host, None, why_failed(value))
            config, refusals = transport._config, transport.refusals
            self.guard = Guard(self._zmq, self._loop, config, refusals, self._waiting, self._drain, failed)
        elif gate is not None:
            self._handshakes = InboxWatch(self._zmq, gate)
        self._watch()

    def bind(self, address: str) -> str:
        socket = self._zmq
        if address.startswith("tcp://*:"):
            # IPv6 with IPv4 mapped, where the system has it; else IPv4 alone.
            socket.setsockopt(zmq.IPV6, 1)
            try:
                return self._bind(address)
            except OSError as error:
                if error.errno == zmq.EADDRINUSE:
                    raise
                socket.setsockopt(zmq.IPV6, 0)
        elif address.startswith("tcp://["):
            socket.setsockopt(zmq.IPV6, 1)
        return self._bind(address)

    def _bind(self, address: str) -> str:
        try:
            self._zmq.bind(re.sub(r":0$", ":*", address))
        except zmq.ZMQError as error:
            raise OSError(error.errno, f"cannot listen on {address}: {error.strerror}") from None
        endpoint: str = self._zmq.getsockopt(zmq.LAST_ENDPOINT).rstrip(b"\0").decode()  # type: ignore[union-attr]
        if self.guard is not None:
            self.guard.bound(endpoint)
        return endpoint

    def send(self, routing_id: bytes, frames: Sequence[Frame]) -> Sent:
        if self._closed:
            return Sent.GONE
        try:
            self._send_frame(routing_id, _NOBLOCK_MORE)
            if len(frames) == 1:
                self._send_frame(frames[0], _NOBLOCK)
            else:
                _send_all(self._send_frame, frames)
        except zmq.Again:
            return Sent.FULL
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                return Sent.GONE
            raise
        if not self._polling:
            self._after_send()
        return _TAKEN

    def part(self, peer: _Accepted, linger: float) -> None:
        """End a connection once it had time to take what was sent last; ignore what comes until then."""
        if peer.parted or self._closed:
            return
        peer.parted, peer.handler = True, None
        if peer.connection.descriptor >= 0:
            self._loop.call_later(linger + _LAST_WORDS, self._hang_up, peer)
        else:
            self._ignored.append(peer)
            if len(self._ignored) > _IGNORED:
                self._hang_up(self._ignored.popleft())

    def _hang_up(self, peer: _Accepted) -> None:
        if not self._closed:
            self._peers.pop(peer.routing_id, None)
            if self.guard is not None:
                self.guard.hang_up(peer.connection)

    def _receive(self) -> None:
        receive = self._receive_frame
        routing_id = receive(_NOBLOCK)
        frame: Any = receive(_NOBLOCK, False)  # a ROUTER never delivers less than an id and one frame
        first: bytes = frame.bytes
        peer = self._peers.get(routing_id)
        if frame.more:
            frames = _rest(self._zmq, first)
            size = sum(map(_size, frames))
        else:
            frames, size = [first], len(first)
        if peer is None:
            peer = self._meet(routing_id, frame)
        peer.connection.delivered += size
        if peer.handler is not None:
            peer.handler.received(frames)

    def _meet(self, routing_id: bytes, frame: Any) -> _Accepted:
        """The first frame of a connection came."""
        connection = None
        if self.guard is not None:
            with contextlib.suppress(zmq.ZMQError):  # it ended before libzmq asked who was there
                connection = self.guard.met(frame.get(zmq.SRCFD), frame.get("Peer-Address"))
        peer = self._peers[routing_id] = _Accepted(self, routing_id, frame, connection)
        if connection is not None or self.guard is None:
            peer.handler = self._accept(peer)
        else:  # it was refused, and what it had sent comes after it
            self.part(peer, 0.0)
        return peer

    def _drain(self, connection: Connection) -> tuple[int, int]:
        """See `Scales`. Others are served in turn: whoever has a whole message here is among so many."""
        began, until = connection.delivered, time.monotonic() + _DRAIN
        messages = others = 0
        while others < 2 * len(self._peers) + _ENVELOPES_A_TURN and not self._closed and self._readable():
            before = connection.delivered
            self.poll(1)
            if connection.delivered == before:
                others += 1
            else:
                messages, others = messages + 1, 0
            if time.monotonic() > until:
                break
        return messages, connection.delivered - began

    def close(self) -> None:
        if self.guard is not None:
            self.guard.close()
        if self._handshakes is not None:
            self._handshakes.close()
        # What was sent last (GOODBYE) may still be on its way out.
        self._close_socket(linger=0.2)
        self._peers.clear()


def _size(frame: Frame) -> int:
    return frame.nbytes if isinstance(frame, memoryview) else len(frame)


def _send_all(send: Callable[..., object], frames: Sequence[Frame]) -> None:
    """An envelope, which is small, and what is behind it without a copy. Only the first may meet a full queue."""
    send(frames[0], _NOBLOCK_MORE)
    for frame in frames[1:-1]:
        send(frame, _NOBLOCK_MORE, False)
    send(frames[-1], _NOBLOCK, False)


def _rest(socket: zmq.Socket[bytes], first: bytes) -> list[Frame]:
    """The frames behind the first, without a copy."""
    frames: list[Frame] = [first]
    while True:
        frame: Any = socket.recv(zmq.NOBLOCK, copy=False)
        frames.append(frame.buffer)
        if not frame.more:
            return frames
