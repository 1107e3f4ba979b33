"""Settings of a node: frozen, validated, every limit named with its reason.

`Config()` is made for a LAN; `Config.local()` suits processes of one machine, `Config.test()` a test suite. The names
that a user changes most (`name`, `mesh`, `listen`, ...) are arguments of `Node` itself and not repeated here.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

__all__ = ["Config"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All times in seconds, all sizes in bytes. Raises ValueError where a value makes no sense."""

    timeout: float = 10.0
    """A call's deadline where `timeout` was not given: never wait forever by default (Zenoh's default too)."""

    patience: float = 5.0
    """How long a call waits for a node that offers its service to appear, within its deadline."""

    heartbeat: float = 0.25
    """Ping a peer that was silent this long while calls are open on its link."""

    idle_heartbeat: float = 1.0
    """The same while no call is open: keeps load reports fresh and notices callers that went away."""

    suspect_after: float = 0.375
    """Silence, while calls are open, that makes a peer suspect: 1.5 heartbeats. Reversible, so cheap when wrong."""

    redial_within: float = 0.2
    """A peer whose link closed is dead when no new handshake succeeds within this."""

    transport_heartbeat: float = 0.25
    """ZMTP's PING interval: tells that the peer's IO thread and the path live."""

    transport_timeout: float = 0.75
    """ZMTP closes a connection after this long without a whole frame: a silent host is gone in at most their sum."""

    handshake_timeout: float = 1.0
    """A connection that has not finished its handshake by then is closed."""

    backoff: float = 0.05
    """First pause before a peer is dialed, or a refused call is tried, once more; doubles, with jitter of 20 %."""

    max_backoff: float = 2.0
    """The pause between two attempts to reach a peer that stays away is never longer."""

    drain_grace: float = 10.0
    """How long a drain waits for calls in flight and for callers to let go."""

    subset_above: int = 50
    """Where more nodes than this offer a service, links are kept to some of them only: heartbeats and links of all to
    all grow with the square of their number."""

    subset_size: int = 20
    """To how many. 20 of 1,000 nodes by each of 1,000 callers is 20 ± 4.5 callers for each node."""

    stream_grace: float = 2.0
    """How long a drain lets streams of answers go on that have no deadline. Many have no end either (a sensor's
    readings): long enough for one that nears its end, short enough for whoever waits behind Ctrl-C."""

    ipc: bool = True
    """Whether nodes on one host (same boot, same network namespace) talk over an abstract ipc socket on Linux."""

    send_tracebacks: bool = False
    """Whether INTERNAL errors carry the handler's traceback to the caller: helpful, and an information leak."""

    max_message: int = 64 * 1024 * 1024
    """One frame on the wire at most, and (1 MiB more) all frames of one message together. A peer that sends more loses
    its connection; a message without an end would fill the memory."""

    max_calls: int = 10_000
    """Calls in flight on this node at most; more are refused before they run, and retried elsewhere by the caller."""

    max_peer_calls: int = 8_000
    """The same for one peer, on one link: four fifths of `max_calls`, so that whoever floods a node leaves room for
    others, and more than any program keeps in flight to one node."""

    max_peer_streams: int = 1_000
    """Calls with a stream among them. Each holds windows and a task; a peer that watches a thousand things at once on
    one node would better watch one list."""

    max_peer_memory: int = 256 * 1024 * 1024
    """Bytes of arguments and items that calls of one peer may hold here while they run: four values of the largest
    size. A call that comes alone is taken whatever its size. Also what the connections of one address may have under
    way in messages that are not complete."""

    max_peer_refusals: int = 50_000
    """Calls of one peer refused within 10 s because it had too many in flight; past it the link is closed. A program
    that starts 50,000 calls at once on one node and is refused waits before it tries again, a flood does not."""

    max_links_per_address: int = 512
    """Connections from one IP address (on ipc: of one user). More than processes that use zmesh on one machine; where
    a whole site comes through one address, raise it. The oldest that has said nothing yet makes room for the next."""

    max_handshakes_per_second: int = 100
    """New connections from one address, after a burst of 1,024. Nodes connect once and stay; the burst lets all
    processes of a machine come back at once after this node restarted."""

    penalty: float = 5.0
    """Seconds for which an address gets no new connection after one of its own was cut off for a flood. Connections
    that stand are not touched. Long enough that a flood costs little, short enough for a program that shares the
    address."""

    admission: bool = True
    """Whether this node refuses, before they run, calls that would wait here longer than they have time. A node that is
    not overloaded refuses none."""

    processes: int | None = None
    """Processes for handlers with `pool="process"`, at most, and so how many of them run at once; None: the cores that
    this process may use. They start when they are needed."""

    queue_target: float | None = None
    """Seconds that calls may wait here for their turn, at the most, before some are refused; None: half of the time
    that they have left when they come."""

    stream_items: int = 256
    """Items of one stream that wait here for their reader, at most; then their sender waits. Enough to keep a link
    busy over a millisecond of latency, few enough that a reader that stops costs little."""

    stream_bytes: int = 1024 * 1024
    """The same in bytes: what one stream may occupy of this node's memory, one item more at most."""

    max_queued_messages: int = 20_000
    """Messages waiting for a peer that does not read: past it, its link is closed instead of filling memory."""

    inline_limit: int = 16 * 1024
    """Binary values longer than this travel as frames of their own, without a copy."""

    bulk: bool = True
    """Whether large binary values travel by a second connection to the same peer, where both offer one. It has no
    ZMTP heartbeat, which counts whole frames and takes a slow one for silence; small calls do not wait behind it."""

    bulk_above: int = 256 * 1024
    """A message with more bytes than this in frames of their own goes there: below it a second message costs more than
    others save by not waiting. Where one of up to 1 MiB takes next to no time, and no other call is open, it stays with
    all else."""

    bulk_window: int = 64 * 1024 * 1024
    """Bytes of such messages that may be under way on one link, each way; a larger one goes alone. Enough to fill
    10 Gbit/s over 50 ms; what bounds the memory that a link takes, at both ends."""

    bulk_port: int | None = None
    """The TCP port that a node which listens takes these connections at; None: any. Where a firewall needs to know."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type == "float" and not (isinstance(value, (int, float)) and 0 < value < float("inf")):
                raise ValueError(f"Config.{field.name} must be a positive number of seconds, got {value!r}")
            if field.type == "int" and not (isinstance(value, int) and value > 0):
                raise ValueError(f"Config.{field.name} must be a positive integer, got {value!r}")
        for switch in ("admission", "bulk"):
            if not isinstance(getattr(self, switch), bool):
                raise ValueError(f"Config.{switch} is True or False, got {getattr(self, switch)!r}")
        port = self.bulk_port
        if port is not None and not (isinstance(port, int) and 0 < port < 65_536):
            raise ValueError(f"Config.bulk_port must be a port number or None, got {port!r}")
        if self.processes is not None and not (isinstance(self.processes, int) and self.processes > 0):
            raise ValueError(f"Config.processes must be a positive integer or None, got {self.processes!r}")
        target = self.queue_target
        if target is not None and not (isinstance(target, (int, float)) and 0 < target < float("inf")):
            raise ValueError(f"Config.queue_target must be a positive number of seconds or None, got {target!r}")
        if self.subset_size > self.subset_above:
            raise ValueError(
                f"Config.subset_size ({self.subset_size}) must not be more than subset_above ({self.subset_above})"
            )
        if self.suspect_after <= self.heartbeat:
            raise ValueError(
                f"Config.suspect_after ({self.suspect_after}) must be longer than heartbeat ({self.heartbeat}): "
                "a peer that only waits for its next ping would be suspect"
            )

    def replace(self, **changes: Any) -> Config:
        """This configuration with some settings changed."""
        return dataclasses.replace(self, **changes)

    @classmethod
    def lan(cls) -> Config:
        """The defaults."""
        return cls()

    @classmethod
    def local(cls) -> Config:
        """For nodes on one machine: a lost process is told by the kernel, so silence may last longer."""
        return cls(idle_heartbeat=2.0, transport_heartbeat=1.0, transport_timeout=3.0)

    @classmethod
    def test(cls) -> Config:
        """For test suites on busy machines: patient about silence, quick to give up."""
        return cls(timeout=30.0, patience=20.0, suspect_after=2.0, transport_timeout=5.0, redial_within=1.0,
                   handshake_timeout=10.0, drain_grace=2.0)  # fmt: skip
