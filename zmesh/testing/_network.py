"""A network in memory: simulated machines, the paths between them and their faults, on a `VirtualLoop`.

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

import hashlib
import math
import random
import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .._transport import Accept, Frame
from ._loop import Process, VirtualLoop

if TYPE_CHECKING:
    from ._discovery import MemoryDiscovery
    from ._transport import End, MemoryTransport

__all__ = ["FIRST_RETRY", "Link", "Machine", "Network"]

FIRST_RETRY: Final = 0.2  # seconds until TCP sends a segment again (Linux's least), doubled from then on
MOST_LOSSES: Final = 2  # in a row: more would be silence enough for a heartbeat to fail; cut the path for that
TRACE_LINES: Final = 10_000  # kept for a reader; the hash covers all
FIRST_EPHEMERAL_PORT: Final = 49_152

_ADDRESS: Final = re.compile(r"tcp://([^\s:/]+|\[[^\s/\]]+\]):(\*|\d{1,5})|ipc://\S+")
_HERE: Final = frozenset({"*", "0.0.0.0", "[::]", "127.0.0.1", "[::1]", "localhost"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """How one machine's messages reach another: seconds of delay, seconds of jitter (up to), share lost, and bytes per
    second that each connection has for itself."""

    delay: float = 0.0002
    jitter: float = 0.0001
    loss: float = 0.0
    bandwidth: float = math.inf

    def __post_init__(self) -> None:
        if self.delay < 0 or self.jitter < 0 or not 0 <= self.loss < 1 or not self.bandwidth > 0:
            raise ValueError(f"a link needs delay >= 0, jitter >= 0, 0 <= loss < 1 and bandwidth > 0, got {self}")


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
        self.ends: dict[End, None] = {}
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
        self._path_changed(source, target)

    def heal(self, source: Machine, target: Machine) -> None:
        """Undo `cut`."""
        self._cut.discard((source, target))
        self.record(source.name, f"path to {target.name} healed")
        self._path_changed(source, target)

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
        for end in list(self.ends):
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
        for end in list(self.ends):
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
        discoveries[:] = [discovery for discovery in discoveries if discovery.process.alive]
        for end in list(self.ends):
            if end.transport is transport:
                end.shut()

    def _path_changed(self, source: Machine, target: Machine) -> None:
        for end in list(self.ends):
            if end.peer_machine is source and end.machine is target:
                end.listen_for_peer()

    def _paths_changed(self) -> None:
        for end in list(self.ends):
            end.listen_for_peer()

    # -- for the parts below

    def way(self, source: Machine, target: Machine, size: int) -> tuple[float, float]:
        """How long a message of so many bytes takes that is sent now; and how much longer, behind all before it."""
        link = self._links.get((source, target), self.link)
        seconds = link.delay + link.jitter * self.random.random()
        retry = FIRST_RETRY
        for _ in range(MOST_LOSSES if link.loss else 0):
            if self.random.random() >= link.loss:
                break
            seconds += retry
            retry *= 2
        return seconds, size / link.bandwidth

    def datagram(self, source: Machine, target: Machine, process: Process, callback: Callable[[], None]) -> None:
        """Call back in `process` on the target machine, if the path is open and nothing is lost."""
        link = self._links.get((source, target), self.link)
        if self.passes(source, target) and self.random.random() >= link.loss:
            arrives = self.loop.now + link.delay + link.jitter * self.random.random()
            self.loop.call_at_true(arrives, self._deliver, process, callback)

    def _deliver(self, process: Process, callback: Callable[[], None]) -> None:
        self.loop.call_soon(callback, context=process.context)

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
