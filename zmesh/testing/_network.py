"""A network in memory: transports and discovery of simulated machines, on a `VirtualLoop`.

It behaves as ZeroMQ over TCP does, as far as a node can tell:

- A connection keeps order and loses nothing while it lives. A lost segment is sent again after 200 ms, then 400 ms, and
  what follows it waits; so *loss* shows as delay. Multicast (discovery) is simply lost.
- A cut path is silence. TCP tries again, at doubling intervals, and may get through after the path is healed; but
  ZMTP's heartbeats close a connection whose other end was not heard for `Config.transport_timeout`, counted from a PING
  that goes out every `Config.transport_heartbeat`.
- A killed process's connections are ended by its kernel: what it had sent arrives, then the end. A stopped process
  (SIGSTOP) sends no heartbeats; one that is merely busy does, from another thread.
- The dialing side is told of the end, after everything that had arrived. The accepting side learns it by sending.
- `close()` without linger may lose what was sent in the same moment.

Everything random is drawn from one generator, everything that happens goes into a running hash.
"""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import hashlib
import random
import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from .._transport import Accept, Channel, Frame, Handler, Sent
from ..config import Config
from ..discovery import Found, Lost, Sighting
from ._loop import Process, VirtualLoop

__all__ = ["Link", "Machine", "MemoryDiscovery", "MemoryTransport", "Network"]

QUEUE: Final = 1_000  # messages a connection holds at each end, as the ZeroMQ transport's
MESSAGES_A_TURN: Final = 100  # taken from one queue in one turn of the loop, as there
FIRST_RETRY: Final = 0.2  # seconds until TCP sends a segment again (Linux's least), doubled from then on
FIRST_CONNECT_RETRY: Final = 1.0  # the same for a connection that is being made (RFC 6298)
CONNECT_GIVES_UP: Final = 127.0  # seconds, Linux's default of six retries
MOST_LOSSES: Final = 2  # in a row: more would be silence enough for a heartbeat to fail; cut the path for that
TRACE_LINES: Final = 10_000  # kept for a reader; the hash covers all
FIRST_EPHEMERAL_PORT: Final = 49_152

_ADDRESS: Final = re.compile(r"tcp://([^\s:/]+|\[[^\s/\]]+\]):(\*|\d{1,5})|ipc://\S+")
_HERE: Final = frozenset({"*", "0.0.0.0", "[::]", "127.0.0.1", "[::1]", "localhost"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """How one machine's messages reach another: seconds of delay, seconds of jitter (up to), share lost."""

    delay: float = 0.0002
    jitter: float = 0.0001
    loss: float = 0.0

    def __post_init__(self) -> None:
        if self.delay < 0 or self.jitter < 0 or not 0 <= self.loss < 1:
            raise ValueError(f"a link needs delay >= 0, jitter >= 0 and 0 <= loss < 1, got {self}")


class Machine:
    """A place on the network: an address, what listens there, and whether it is cut off from all others."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address
        self.isolated = False
        self.listeners: dict[int | str, tuple[MemoryTransport, Accept]] = {}
        self.discoveries: list[MemoryDiscovery] = []
        self._next_port = FIRST_EPHEMERAL_PORT

    def free_port(self) -> int:
        """A port that nobody had before, so that nothing meant for a former process reaches another one."""
        while True:
            port = self._next_port
            self._next_port += 1
            if port not in self.listeners:
                return port


class Network:
    """All machines, the paths between them, their faults, and the trace of what happened."""

    def __init__(self, loop: VirtualLoop, random: random.Random, link: Link | None = None) -> None:
        self.loop = loop
        self.random = random
        self.link = Link() if link is None else link
        self.machines: list[Machine] = []
        self.trace: deque[str] = deque(maxlen=TRACE_LINES)
        self._links: dict[tuple[Machine, Machine], Link] = {}
        self._cut: set[tuple[Machine, Machine]] = set()  # asked, never iterated over
        self._ends: dict[_End, None] = {}
        self._hash = hashlib.blake2b(digest_size=16)

    @property
    def trace_hash(self) -> str:
        """Equal for two runs in which the same happened at the same times."""
        return self._hash.hexdigest()

    def record(self, machine: str, event: str, frames: Sequence[Frame] = ()) -> None:
        """Put an event into the trace; of a message's frames, the bytes into its hash."""
        line = f"{self.loop.now:.6f} {machine}: {event}"
        self.trace.append(line)
        self._hash.update(f"{self.loop.now!r} {line}\n".encode())
        for frame in frames:
            self._hash.update(frame)

    def machine(self, name: str) -> Machine:
        """Add a machine."""
        number = len(self.machines) + 1
        machine = Machine(name, f"10.0.{number >> 8}.{number & 255}")
        self.machines.append(machine)
        return machine

    # -- faults

    def set_link(self, source: Machine, target: Machine, link: Link) -> None:
        """Replace the properties of one direction."""
        self._links[source, target] = link

    def cut(self, source: Machine, target: Machine) -> None:
        """Let nothing through from `source` to `target`."""
        self._cut.add((source, target))
        self.record(source.name, f"path to {target.name} cut")
        self._paths_changed()

    def heal(self, source: Machine, target: Machine) -> None:
        """Undo `cut`."""
        self._cut.discard((source, target))
        self.record(source.name, f"path to {target.name} healed")
        self._paths_changed()

    def is_cut(self, source: Machine, target: Machine) -> bool:
        """Whether `cut` is in force."""
        return (source, target) in self._cut

    def isolate(self, machine: Machine, isolated: bool) -> None:
        """Cut a machine off from all others, or connect it again."""
        machine.isolated = isolated
        self.record(machine.name, "isolated" if isolated else "connected")
        self._paths_changed()

    def reset(self, one: Machine, other: Machine) -> None:
        """Break the connections between two machines, losing what is on its way."""
        self.record(one.name, f"connections with {other.name} reset")
        for end in list(self._ends):
            if end.dialed and {end.machine, end.peer_machine} == {one, other}:
                end.connection.reset()

    def passes(self, source: Machine, target: Machine) -> bool:
        """Whether anything gets from one machine to another now."""
        if source is target:
            return True
        return not (source.isolated or target.isolated or (source, target) in self._cut)

    def stop(self, transport: MemoryTransport) -> None:
        """The transport's process was stopped: its IO thread too."""
        transport.stopped = True
        transport.stopped_at = self.loop.now
        self._paths_changed()

    def cont(self, transport: MemoryTransport) -> None:
        """The transport's process goes on."""
        transport.stopped = False
        for end in list(self._ends):
            if end.transport is transport and end.overdue:
                # libzmq's IO thread looks at its timers before it reads what the kernel holds for it.
                if self.random.random() < 0.5:
                    end.forget_since(transport.stopped_at)
                end.give_up()
        waiting, transport.greeted = transport.greeted, []
        for connection in waiting:
            connection.greeted()
        self._paths_changed()

    def sever(self, transport: MemoryTransport) -> None:
        """The transport's process is gone; its kernel ends what it had open."""
        transport.unlisten()
        discoveries = transport.machine.discoveries
        discoveries[:] = [discovery for discovery in discoveries if discovery._process.alive]
        for end in list(self._ends):
            if end.transport is transport:
                end.shut()

    def _paths_changed(self) -> None:
        for end in list(self._ends):
            end.listen_for_peer()

    # -- for the parts below

    def way(self, source: Machine, target: Machine) -> float:
        """How long a message takes that is sent now."""
        link = self._links.get((source, target), self.link)
        seconds = link.delay + link.jitter * self.random.random()
        retry = FIRST_RETRY
        for _ in range(MOST_LOSSES if link.loss else 0):
            if self.random.random() >= link.loss:
                break
            seconds += retry
            retry *= 2
        return seconds

    def datagram(self, source: Machine, target: Machine, process: Process, callback: Callable[[], None]) -> None:
        """Call back in `process` on the target machine, if the path is open and nothing is lost."""
        link = self._links.get((source, target), self.link)
        if self.passes(source, target) and self.random.random() >= link.loss:
            self.loop.call_at_true(
                self.loop.now + link.delay + link.jitter * self.random.random(),
                lambda: self.loop.call_soon(callback, context=process.context),
            )

    def find(self, address: str, seen_from: Machine) -> tuple[Machine | None, int | str]:
        """The machine of an address (None where there is none) and the port, or the path of an ipc socket."""
        match = _ADDRESS.fullmatch(address)
        if match is None or (match[2] not in (None, "*") and int(match[2]) > 65_535):
            raise ValueError(f"{address!r} is no address; write tcp://HOST:PORT or ipc://PATH")
        if match[1] is None:
            return seen_from, address
        port = 0 if match[2] == "*" else int(match[2])
        if match[1] in _HERE:
            return seen_from, port
        for machine in self.machines:
            if match[1] in (machine.address, machine.name):
                return machine, port
        return None, port


_Signal = Literal["connect", "connected", "refused", "greeting", "ready", "end"]


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
        self._timer: asyncio.TimerHandle | None = None
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

    def __init__(self, transport: MemoryTransport, address: str, handler: Handler) -> None:
        network = transport.network
        self.network = network
        self._target, self._port = network.find(address, transport.machine)
        self.dialer = _Dialed(self, transport, address, handler)
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
        else:
            self.listener.establish()
            self.back.put("ready")

    def reset(self) -> None:
        self.there.lose_all()
        self.back.lose_all()
        for end in (self.dialer, self.listener):
            if end is not None and end.open:
                end.lose("connection lost")
        self.there.lose_all()
        self.back.lose_all()


class _End:
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
        self._timer: asyncio.TimerHandle | None = None
        self.peer_machine: Machine
        self.network._ends[self] = None

    @property
    def outgoing(self) -> _Pipe:
        raise NotImplementedError

    @property
    def incoming(self) -> _Pipe:
        raise NotImplementedError

    @property
    def peer(self) -> _End | None:
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
            del self.network._ends[self]
            self.outgoing.put("end")

    def arrived(self, item: _Signal | list[bytes]) -> None:
        if not self.open:
            return
        if not isinstance(item, str):
            self.inlet.put(self, item)
        elif item == "end":
            self.lose("connection lost")


class _Dialed(_End):
    """The dialing end, a `Channel`."""

    dialed = True

    def __init__(self, connection: _Connection, transport: MemoryTransport, address: str, handler: Handler) -> None:
        super().__init__(connection, transport, _Inlet(transport))
        self.remote = address
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
    def peer(self) -> _End | None:
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


class _AcceptedEnd(_End):
    """The accepting end: a routing id of the listener's ROUTER."""

    dialed = False

    def __init__(self, connection: _Connection, transport: MemoryTransport, accept: Accept) -> None:
        super().__init__(connection, transport, transport.inbox)
        self.peer_machine = connection.dialer.machine
        self.label = f"connection {transport.next_connection()}"
        self._accept = accept
        self._channel: _AcceptedChannel | None = None
        self.wait_for(transport.config.handshake_timeout)

    @property
    def outgoing(self) -> _Pipe:
        return self.connection.back

    @property
    def incoming(self) -> _Pipe:
        return self.connection.there

    @property
    def peer(self) -> _End | None:
        return self.connection.dialer

    def told(self, reason: str) -> None:
        """Nobody is: a ROUTER says nothing, until something is sent."""
        self.network.record(self.machine.name, f"{self.label}: {reason}")

    def forget(self, channel: _AcceptedChannel) -> None:
        if self._channel is channel:
            self._channel = None

    def handle(self, item: list[bytes] | str | None) -> None:
        if not isinstance(item, list):
            return
        self.incoming.waiting -= 1
        self.network.record(self.machine.name, f"received {_size(item)} from {self.peer_machine.name}", item)
        channel = self._channel
        if channel is None:
            channel = self._channel = _AcceptedChannel(self)
            channel.handler = self._accept(channel)
        channel.handler.received(_as_from_a_socket(item))


class _AcceptedChannel:
    """As the ZeroMQ transport's: closing it only forgets it; the connection is the dialer's to end."""

    __slots__ = ("_end", "handler", "remote")

    handler: Handler

    def __init__(self, end: _AcceptedEnd) -> None:
        self._end = end
        self.remote = end.label

    def send(self, frames: Sequence[Frame]) -> Sent:
        return self._end.send(frames)

    def close(self, linger: float = 0.0) -> None:
        self._end.forget(self)


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

    def forget(self, end: _End, since: float) -> None:
        self._items = deque(entry for entry in self._items if entry[0] is not end or entry[2] < since)

    def clear(self) -> None:
        self._items.clear()


class MemoryTransport:
    """See `_transport.Transport`. Belongs to one process on one machine."""

    def __init__(self, network: Network, machine: Machine, process: Process, config: Config) -> None:
        self.network = network
        self.machine = machine
        self.process = process
        self.config = config
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

    def dial(self, address: str, handler: Handler) -> Channel:
        channel = _Connection(self, address, handler).dialer
        self.inlets[channel] = None
        return channel

    def poll(self) -> None:
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


class MemoryDiscovery:
    """See `discovery.Discovery`. Multicast DNS in memory: announcements, questions at growing intervals, goodbyes.

    Every message is a datagram of its own: a cut path loses it, a stopped process answers late, and a process that was
    killed says no goodbye, so that others go on believing in it.
    """

    ANNOUNCED: Final = (0.0, 1.0)  # seconds after the start of advertising (RFC 6762, 8.3)
    FIRST_QUESTION: Final = 0.02  # seconds, up to 0.12: RFC 6762, 5.2
    SECOND_QUESTION: Final = 1.0  # then doubling
    LONGEST_SILENCE: Final = 60.0  # between two questions (RFC 6762 allows up to an hour)

    def __init__(self, network: Network, machine: Machine, process: Process) -> None:
        self._network = network
        self._machine = machine
        self._process = process
        self._found: Found | None = None
        self._lost: Lost | None = None
        self._own: Sighting | None = None
        self._seen: dict[str, Sighting] = {}
        self._timers: list[asyncio.TimerHandle] = []

    async def start(self, found: Found, lost: Lost) -> None:
        self._found, self._lost = found, lost
        self._machine.discoveries.append(self)
        first = self.FIRST_QUESTION + 0.1 * self._network.random.random()
        self._later(first, self._ask, self.SECOND_QUESTION)

    async def advertise(self, sighting: Sighting) -> None:
        key = sighting.key if sighting.id is None else f"{sighting.id.hex()}._zmesh._tcp.local."
        self._own = dataclasses.replace(sighting, key=key)
        for seconds in self.ANNOUNCED:
            self._later(seconds, self._announce)

    async def withdraw(self) -> None:
        if self._own is not None:
            key, self._own = self._own.key, None
            self._to_all(lambda other: other._hear_goodbye(key))

    async def close(self) -> None:
        await self.withdraw()
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        if self in self._machine.discoveries:
            self._machine.discoveries.remove(self)

    def describe(self) -> str:
        return f"mdns on {self._machine.address} (simulated)"

    def _later(self, seconds: float, callback: Callable[..., None], *args: Any) -> None:
        loop = self._network.loop
        self._timers = [timer for timer in self._timers if timer.when() > loop.time()]
        self._timers.append(loop.call_later(seconds, callback, *args, context=self._process.context))

    def _to_all(self, callback: Callable[[MemoryDiscovery], None]) -> None:
        for machine in self._network.machines:
            for other in machine.discoveries:
                if other is not self:
                    self._network.datagram(self._machine, machine, other._process, _call(callback, other))

    def _announce(self) -> None:
        sighting = self._own
        if sighting is not None:
            self._to_all(lambda other: other._hear(sighting))

    def _ask(self, next_in: float) -> None:
        self._to_all(lambda other: other._answer(self))
        self._later(next_in, self._ask, min(next_in * 2, self.LONGEST_SILENCE))

    def _answer(self, asker: MemoryDiscovery) -> None:
        sighting = self._own
        if sighting is not None:
            hear = _call(lambda other: other._hear(sighting), asker)
            self._network.datagram(self._machine, asker._machine, asker._process, hear)

    def _hear(self, sighting: Sighting) -> None:
        if self._found is not None and self._seen.get(sighting.key) != sighting:
            self._seen[sighting.key] = sighting
            self._network.record(self._machine.name, f"found {sighting.name} at {' '.join(sighting.addresses)}")
            self._found(sighting)

    def _hear_goodbye(self, key: str) -> None:
        if self._lost is not None and self._seen.pop(key, None) is not None:
            self._network.record(self._machine.name, f"lost {key}")
            self._lost(key)


def _call(callback: Callable[[MemoryDiscovery], None], other: MemoryDiscovery) -> Callable[[], None]:
    return lambda: callback(other)
