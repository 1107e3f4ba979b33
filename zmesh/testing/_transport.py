"""Transports in memory: connections with TCP's and ZMTP's handshakes, heartbeats and ends, on a `Network`."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

from .._refusals import Refusals
from .._transport import (
    NOT_TRUSTED,
    ONLY_HERE,
    ONLY_THERE,
    OTHER_KEY,
    PLAIN_STRANGER,
    WRONG_SERVER,
    Accept,
    Channel,
    Frame,
    Gate,
    Handler,
    Sent,
    host_of,
)
from ..config import Config
from ._loop import Process, WorldTimer
from ._network import FIRST_RETRY, Machine, Network

__all__ = ["MemoryTransport"]

QUEUE: Final = 1_000  # messages a connection holds at each end, as the ZeroMQ transport's
MESSAGES_A_TURN: Final = 100  # taken from one queue in one turn of the loop, as there
LAST_WORDS: Final = 0.5  # seconds that a connection which the listener ends has to take what was sent last, as there
FIRST_CONNECT_RETRY: Final = 1.0  # seconds until TCP tries again to connect (RFC 6298), doubled from then on
CONNECT_GIVES_UP: Final = 127.0  # seconds, Linux's default of six retries

_Signal = Literal["connect", "connected", "refused", "greeting", "ready", "denied", "end"]


class _Pipe:
    """One direction of a connection: in order, later on a worse path."""

    __slots__ = ("_arrived", "_last", "_network", "_queue", "_retry", "_source", "_target", "_timer", "waiting")

    def __init__(
        self, network: Network, source: Machine, target: Machine, arrived: Callable[[_Signal | list[bytes]], None]
    ) -> None:
        self._network = network
        self._source = source
        self._target = target
        self._arrived = arrived
        self._queue: deque[tuple[float, float, _Signal | list[bytes]]] = deque()  # arrives, was sent, what
        self._last = 0.0
        self._retry = FIRST_CONNECT_RETRY
        self._timer: WorldTimer | None = None
        self.waiting = 0  # messages that the receiver has not taken yet

    def put(self, item: _Signal | list[bytes]) -> None:
        network = self._network
        now = network.loop.now
        self._last = max(self._last, now + network.way(self._source, self._target))
        self._queue.append((self._last, now, item))
        if not isinstance(item, str):
            self.waiting += 1
        if self._timer is None:
            self._timer = network.loop.call_at_true(self._last, self._arrive)

    def _arrive(self) -> None:
        network = self._network
        queue = self._queue
        now = network.loop.now
        if not network.passes(self._source, self._target):
            self._timer = network.loop.call_at_true(now + self._retry, self._arrive)
            self._retry *= 2
            return
        self._retry = FIRST_RETRY
        self._timer = None
        while queue and queue[0][0] <= now:
            self._arrived(queue.popleft()[2])
        if queue and self._timer is None:
            self._timer = network.loop.call_at_true(queue[0][0], self._arrive)

    def lose_all(self) -> None:
        """Nothing that is on its way arrives."""
        self._queue.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def lose_last(self) -> None:
        """Lose some of what was sent in this very moment: it may not have left the process."""
        now = self._network.loop.now
        fresh = sum(1 for _, sent, item in self._queue if sent == now and not isinstance(item, str))
        for _ in range(self._network.random.randint(0, fresh)):
            self._queue.pop()


class _Connection:
    """A TCP connection with ZMTP's handshake: two round trips, the second answered by the listener's IO thread."""

    def __init__(self, transport: MemoryTransport, address: str, handler: Handler, key: str | None) -> None:
        network = transport.network
        self.network = network
        self._target, self._port = network.find(address, transport.machine)
        self.denial = ""
        self.dialer = _Dialed(self, transport, address, handler, key)
        self.listener: _AcceptedEnd | None = None
        target = transport.machine if self._target is None else self._target
        self.there = _Pipe(network, transport.machine, target, self._at_listener)
        self.back = _Pipe(network, target, transport.machine, self.dialer.arrived)
        self.dialer.begin(target)
        self.there.put("connect")

    def _at_listener(self, item: _Signal | list[bytes]) -> None:
        if item == "connect":
            found = None if self._target is None else self._target.listeners.get(self._port)
            if found is None:
                self.back.put("refused")
            else:
                self.listener = _AcceptedEnd(self, found[0], found[1])
                self.back.put("connected")
        elif item == "greeting":
            self.greeted()
        elif self.listener is not None:
            self.listener.arrived(item)

    def greeted(self) -> None:
        """The dialer's greeting reached the listener's kernel."""
        if self.listener is None or not self.listener.open:
            return
        if self.listener.transport.stopped:
            self.listener.transport.greeted.append(self)
        elif denied := self._denied(self.listener.transport.gate, self.dialer.transport.gate, self.dialer.key):
            self.denial = denied
            self.back.put("denied")
            self.listener.shut()
        else:
            self.listener.establish()
            self.back.put("ready")

    def _denied(self, there: Gate | None, ours: Gate | None, expected: str | None) -> str | None:
        """Why the dialer's handshake fails, as CURVE has it; the listener is told, too."""
        if there is None:
            return None if ours is None else ONLY_HERE
        address = self.dialer.machine.address
        if ours is None:
            there.refused(address, None, PLAIN_STRANGER)
            return ONLY_THERE
        if expected != there.public:
            there.refused(address, None, WRONG_SERVER)
            return OTHER_KEY
        if (why := there.refusal(ours.public)) is not None:
            there.refused(address, ours.public, why)
            return NOT_TRUSTED
        return None

    def reset(self) -> None:
        self.there.lose_all()
        self.back.lose_all()
        for end in (self.dialer, self.listener):
            if end is not None and end.open:
                end.lose("connection lost")
        self.there.lose_all()
        self.back.lose_all()


class End:
    """One end of a connection, with the kernel and the IO thread that serve it."""

    dialed: bool

    def __init__(self, connection: _Connection, transport: MemoryTransport, inlet: _Inlet) -> None:
        self.connection = connection
        self.transport = transport
        self.machine = transport.machine
        self.network = transport.network
        self.inlet = inlet
        self.open = True
        self.established = False
        self.overdue = False  # its timer ran out while its own process was stopped
        self._timer: WorldTimer | None = None
        self.peer_machine: Machine
        self.network.ends[self] = None

    @property
    def outgoing(self) -> _Pipe:
        raise NotImplementedError

    @property
    def incoming(self) -> _Pipe:
        raise NotImplementedError

    @property
    def peer(self) -> End | None:
        raise NotImplementedError

    def told(self, reason: str) -> None:
        """The connection has ended, and not by us."""
        raise NotImplementedError

    def send(self, frames: Sequence[Frame]) -> Sent:
        if not self.open or not self.transport.process.alive:
            return Sent.GONE
        if not self.established or self.outgoing.waiting >= 2 * QUEUE:
            return Sent.FULL
        self.outgoing.put([bytes(frame) for frame in frames])
        return Sent.TAKEN

    def establish(self) -> None:
        """ZMTP's handshake succeeded: from now on heartbeats are expected."""
        self.established = True
        self.wait_for(None)
        self.listen_for_peer()

    def listen_for_peer(self) -> None:
        """The paths have changed, or a process was stopped or continued: is the other end's heartbeat still heard?"""
        if not self.established or not self.open:
            return
        peer = self.peer
        heard = (
            self.network.passes(self.peer_machine, self.machine)
            and not self.transport.stopped
            and (peer is None or not peer.transport.stopped)
        )
        if heard:
            self.wait_for(None)
        elif self._timer is None and not self.overdue:
            config = self.transport.config
            since_ping = self.network.random.random() * config.transport_heartbeat
            self.wait_for(config.transport_timeout + since_ping)

    def wait_for(self, seconds: float | None) -> None:
        """Give the connection up after so long; None: no longer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.overdue = False
        if seconds is not None:
            self._timer = self.network.loop.call_at_true(self.network.loop.now + seconds, self._waited)

    def _waited(self) -> None:
        self._timer = None
        if self.transport.stopped:
            self.overdue = True
        else:
            self.give_up()

    def give_up(self) -> None:
        """The other end was not heard for too long."""
        self.lose("heartbeat timed out" if self.established else "ZMTP handshake failed")

    def forget_since(self, when: float) -> None:
        """Lose what arrived since then and was not read."""
        self.inlet.forget(self, when)

    def lose(self, reason: str) -> None:
        """Give the connection up and tell who uses it."""
        if self.open:
            self.shut()
            self.told(reason)

    def shut(self) -> None:
        """Close this end without a word to who uses it; the other end will see it."""
        if self.open:
            self.open = False
            self.wait_for(None)
            del self.network.ends[self]
            self.outgoing.put("end")

    def arrived(self, item: _Signal | list[bytes]) -> None:
        if not self.open:
            return
        if not isinstance(item, str):
            self.inlet.put(self, item)
        elif item == "end":
            self.lose("connection lost")


class _Dialed(End):
    """The dialing end, a `Channel`."""

    dialed = True

    def __init__(
        self, connection: _Connection, transport: MemoryTransport, address: str, handler: Handler, key: str | None
    ) -> None:
        super().__init__(connection, transport, _Inlet(transport))
        self.remote = address
        self.address = host_of(address)
        self.key = key
        self._handler = handler
        self._told = False

    def begin(self, target: Machine) -> None:
        self.peer_machine = target
        self.wait_for(CONNECT_GIVES_UP)

    @property
    def outgoing(self) -> _Pipe:
        return self.connection.there

    @property
    def incoming(self) -> _Pipe:
        return self.connection.back

    @property
    def peer(self) -> End | None:
        return self.connection.listener

    def told(self, reason: str) -> None:
        self.inlet.put(self, reason)

    def send(self, frames: Sequence[Frame]) -> Sent:
        if not self.open and not self._told:
            return Sent.TAKEN  # libzmq takes it while nobody has looked at the monitor, and loses it
        return super().send(frames)

    def close(self, linger: float = 0.0) -> None:
        self._told = True
        self.inlet.clear()
        self.transport.inlets.pop(self, None)
        if self.open:
            if not linger:
                self.outgoing.lose_last()
            self.shut()

    def penalize(self) -> None:
        """It is the dialer who comes back, and that is us."""

    def hang_up(self) -> None:
        self.close()

    def arrived(self, item: _Signal | list[bytes]) -> None:
        if not self.open:
            return
        if item == "refused":
            self.lose("connection refused or unreachable")
        elif item == "connected":
            self.wait_for(self.transport.config.handshake_timeout)
            self.outgoing.put("greeting")
        elif item == "ready":
            self.establish()
            self.inlet.put(self, None)
        elif item == "denied":
            self.lose(self.connection.denial)
        else:
            super().arrived(item)

    def handle(self, item: list[bytes] | str | None) -> None:
        """Tell the handler: a message, an end (with its reason), or that the connection stands."""
        if item is None:
            self.network.record(self.machine.name, f"connected to {self.remote}")
            self._handler.opened()
        elif isinstance(item, str):
            self.network.record(self.machine.name, f"{self.remote}: {item}")
            self.close()
            self._handler.closed(item)
        else:
            self.incoming.waiting -= 1
            self.network.record(self.machine.name, f"received {_size(item)} from {self.remote}", item)
            self._handler.received(_as_from_a_socket(item))


class _AcceptedEnd(End):
    """The accepting end: a routing id of the listener's ROUTER."""

    dialed = False

    def __init__(self, connection: _Connection, transport: MemoryTransport, accept: Accept) -> None:
        super().__init__(connection, transport, transport.inbox)
        self.peer_machine = connection.dialer.machine
        self.label = f"connection {transport.next_connection()}"
        self._accept = accept
        self._channel: _AcceptedChannel | None = None  # once something came
        self.wait_for(transport.config.handshake_timeout)

    @property
    def outgoing(self) -> _Pipe:
        return self.connection.back

    @property
    def incoming(self) -> _Pipe:
        return self.connection.there

    @property
    def peer(self) -> End | None:
        return self.connection.dialer

    def told(self, reason: str) -> None:
        """Nobody is: a ROUTER says nothing, until something is sent."""
        self.network.record(self.machine.name, f"{self.label}: {reason}")

    def handle(self, item: list[bytes] | str | None) -> None:
        if not isinstance(item, list):
            return
        self.incoming.waiting -= 1
        self.network.record(self.machine.name, f"received {_size(item)} from {self.peer_machine.name}", item)
        channel = self._channel
        if channel is None:
            channel = self._channel = _AcceptedChannel(self)
            channel.handler = self._accept(channel)
        if channel.handler is not None:
            channel.handler.received(_as_from_a_socket(item))


class _AcceptedChannel:
    """As the ZeroMQ transport's: once it is closed, what comes is ignored, and a moment later the connection ends."""

    __slots__ = ("_end", "address", "handler", "key", "remote")

    handler: Handler | None

    def __init__(self, end: _AcceptedEnd) -> None:
        self._end = end
        self.remote = end.label
        self.address = end.connection.dialer.machine.address
        gate = end.connection.dialer.transport.gate
        self.key = None if gate is None else gate.public

    def send(self, frames: Sequence[Frame]) -> Sent:
        return self._end.send(frames)

    def close(self, linger: float = 0.0) -> None:
        if self.handler is not None:
            self.handler = None
            network = self._end.network
            network.loop.call_at_true(network.loop.now + linger + LAST_WORDS, self._end.shut)

    def penalize(self) -> None:
        """The network in memory knows no floods."""

    def hang_up(self) -> None:
        self.close()
        self._end.shut()


class _Inlet:
    """What has arrived and was not read yet: one descriptor of a process."""

    def __init__(self, transport: MemoryTransport) -> None:
        self._transport = transport
        self._items: deque[tuple[_Dialed | _AcceptedEnd, list[bytes] | str | None, float]] = deque()
        self._scheduled = False

    def put(self, end: Any, item: list[bytes] | str | None) -> None:
        self._items.append((end, item, self._transport.network.loop.now))
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._transport.network.loop.call_soon(self._wake, context=self._transport.process.context)

    def _wake(self) -> None:
        self._scheduled = False
        try:
            self.drain(MESSAGES_A_TURN)
        finally:
            if self._items:
                self._schedule()

    def drain(self, limit: int | None) -> None:
        """Hand over what has arrived, or a turn's share of it."""
        items = self._items
        while items and limit != 0:
            end, item, _ = items.popleft()
            end.handle(item)
            if limit is not None:
                limit -= 1

    def forget(self, end: End, since: float) -> None:
        self._items = deque(entry for entry in self._items if entry[0] is not end or entry[2] < since)

    def clear(self) -> None:
        self._items.clear()


class MemoryTransport:
    """See `_transport.Transport`. Belongs to one process on one machine."""

    def __init__(
        self, network: Network, machine: Machine, process: Process, config: Config, gate: Gate | None = None
    ) -> None:
        self.network = network
        self.gate = gate
        self.machine = machine
        self.process = process
        self.config = config
        self.refusals = Refusals()
        self.inbox = _Inlet(self)
        self.inlets: dict[_Dialed, None] = {}
        self.stopped = False
        self.stopped_at = 0.0
        self.greeted: list[_Connection] = []  # greetings that a stopped IO thread has not answered
        self._connections = 0
        self._closed = False

    def listen(self, address: str, accept: Accept) -> str:
        machine, port = self.network.find(address, self.machine)
        if machine is not self.machine:
            raise OSError(errno.EADDRNOTAVAIL, f"cannot listen on {address}: it is no address of {self.machine.name}")
        if port == 0:
            port = machine.free_port()
        if port in machine.listeners:
            raise OSError(errno.EADDRINUSE, f"cannot listen on {address}: Address already in use")
        machine.listeners[port] = (self, accept)
        return port if isinstance(port, str) else f"tcp://{machine.address}:{port}"

    def dial(self, address: str, handler: Handler, key: str | None = None) -> Channel:
        channel = _Connection(self, address, handler, key).dialer
        self.inlets[channel] = None
        return channel

    def poll(self, seconds: float) -> None:
        self.inbox.drain(None)
        for channel in list(self.inlets):
            channel.inlet.drain(None)

    def close(self) -> None:
        for channel in list(self.inlets):
            channel.close()
        self.inbox.clear()
        self.network.sever(self)
        self._closed = True

    def unlisten(self) -> None:
        """Free what this transport listens at."""
        listeners = self.machine.listeners
        for port in [port for port, (transport, _) in listeners.items() if transport is self]:
            del listeners[port]

    def next_connection(self) -> int:
        """A number for the next accepted connection."""
        self._connections += 1
        return self._connections


def _as_from_a_socket(frames: list[bytes]) -> list[Frame]:
    # The ZeroMQ transport hands the envelope over as bytes, what is behind it without a copy.
    return [frames[0], *(memoryview(frame) for frame in frames[1:])]


def _size(frames: list[bytes]) -> str:
    return f"{len(frames)} frames, {sum(map(len, frames))} bytes"
