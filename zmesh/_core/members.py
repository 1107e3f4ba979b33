"""Who is here, how they stand, what they serve: answers `who could take this call?` in O(1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from .health import SLOW_START, Health, in_panic
from .health import State as Wellness
from .messages import Hello, Message
from .peer import Event, State, follow
from .timing import Average

__all__ = ["Counts", "Member", "Members"]

LinkT = TypeVar("LinkT")

_LATENCY_MEMORY: Final = 10.0  # seconds; Finagle's Peak-EWMA decays with the same constant
_STALE: Final = 5.0  # seconds without a sample after which a latency halves: a peer that was slow is tried again
_STALE_UNPROVEN: Final = 0.5  # the same after few samples: one cold first call must not starve a fast peer
_PROVEN: Final = 5  # samples
LEVEL_LASTS: Final = 1.0  # seconds: who is not called must report again to be spared any longer


@dataclass(slots=True)
class Counts:
    """What happened to attempts at one peer, but for those that were answered (`Health.successes`): it is rare.

    given_up: by this node, at a deadline, for another attempt's answer, or as nobody wanted it any more.
    """

    retries: int = 0
    hedges: int = 0
    failed: int = 0
    raised: int = 0
    refused: int = 0
    given_up: int = 0
    ejections: int = 0


class Member(Generic[LinkT]):
    """One peer: its incarnation, state, load and link."""

    __slots__ = (
        "_latencies",
        "_levels",
        "_reported",
        "addresses",
        "called_at",
        "capacity",
        "counts",
        "health",
        "hello",
        "id",
        "in_flight",
        "link",
        "name",
        "others",
        "reported_at",
        "round_trip",
        "since",
        "state",
        "weight",
    )

    def __init__(
        self, id: bytes, name: str, addresses: tuple[str, ...], now: float, jitter: Callable[[], float]
    ) -> None:
        self.id = id
        self.name = name
        self.addresses = addresses
        self.state = State.NEW
        self.since = now
        self.hello: Hello | None = None
        self.link: LinkT | None = None
        self.capacity = 1.0
        self.weight = 1.0  # what balancing goes by: the capacity, less while it starts slowly or its handlers fail
        self.health = Health(jitter, now)
        self.counts = Counts()
        self._levels: dict[str, tuple[int, float]] = {}  # by path ("": any): what it refuses below, until when
        self.in_flight = 0
        self.others = 0
        self.reported_at = self.called_at = float("-inf")
        self.round_trip: float | None = None
        self._latencies: dict[str, Average] = {}
        self._reported: float | None = None

    def observe(self, method: str, started: float, now: float, calls: int = 1) -> None:
        """Take in that a call of `method` took from `started` until now, or several did on average.

        A call that began before the peer's last change of state tells how it was then: a node that stood still for
        three seconds is not slow afterwards.
        """
        if started < self.since:
            return
        average = self._latencies.get(method)
        if average is None:
            average = self._latencies[method] = Average(_LATENCY_MEMORY)
        average.add(now - started, now, calls)

    def report(self, report: Message, now: float) -> None:
        """Take in a load report: [in flight, yours, latency us, queue wait us, admission, state]."""
        self.reported_at = now
        in_flight, yours, latency = report[0], report[1], report[2]
        self.others = max(0, in_flight - yours)  # type: ignore[operator]
        self._reported = None if latency is None else latency / 1e6  # type: ignore[operator]

    def latency(self, method: str) -> float | None:
        """Seconds that a call of `method` takes: what we saw, else what the peer reports of all its calls."""
        try:  # cheaper than to ask first: this is looked up five times for a call
            return self._latencies[method].value
        except KeyError:
            return self._reported

    @property
    def shedding(self) -> bool:
        """Whether it told lately that it does not take all calls."""
        return bool(self._levels)

    def sheds(self, method: str, level: int, until: float) -> None:
        """It takes calls of a method ("": of any) from this rank on, until a time."""
        if level:
            self._levels[method] = level, until
        else:
            self._levels.pop(method, None)

    def level(self, method: str, now: float) -> int:
        """From which rank on it takes calls of a method; 0: all."""
        known = [self._levels[key] for key in ("", method) if key in self._levels]
        return max((level for level, until in known if now < until), default=0)

    def latencies(self) -> dict[str, float]:
        """Seconds that calls take here, by method, of those that we called."""
        return {method: average.value for method, average in self._latencies.items() if average.value is not None}

    def forget_levels(self, now: float) -> None:
        """What it told is believed only for a while."""
        self._levels = {method: known for method, known in self._levels.items() if now < known[1]}

    def forget_stale(self, now: float, best: dict[str, float]) -> None:
        """Halve each latency that had no sample for a while: only a call can show that a slow peer has recovered.

        best: the least latency of each method among all peers. None falls below it: who was not called for a while
        is worth a try, not worth every call of the next burst.
        """
        if self.in_flight:
            return
        for method, average in self._latencies.items():
            lasting = _STALE if average.samples >= _PROVEN else _STALE_UNPROVEN
            if now - average.when >= lasting and average.value is not None:
                average.fade(max(average.value / 2.0, best.get(method, 0.0)), now)


class Members(Generic[LinkT]):
    """All peers that were met or seen, by incarnation."""

    def __init__(self, changed: Callable[[Member[LinkT], State], None], jitter: Callable[[], float]) -> None:
        """changed: called with a peer and its former state after each change of state. jitter: a random number in
        [0, 1)."""
        self._changed = changed
        self._jitter = jitter
        self.odd: dict[Member[LinkT], None] = {}  # those due for a probe, and those that shed load: see `Judge`
        self.linked: dict[Member[LinkT], float] = {}  # those with a link, and since when; the oldest first
        self._peers: dict[bytes, Member[LinkT]] = {}
        # Those that time changes: of a large mesh, few.
        self._unsettled: dict[Member[LinkT], None] = {}  # by their health, or as they shed load
        self._used: dict[Member[LinkT], None] = {}  # that have a link, or were called
        self.known: dict[tuple[str, int | None], list[Member[LinkT]]] = {}  # see `candidates`; emptied by each change

    def __iter__(self) -> Iterator[Member[LinkT]]:
        return iter(list(self._peers.values()))

    def __len__(self) -> int:
        return len(self._peers)

    def get(self, id: bytes) -> Member[LinkT] | None:
        return self._peers.get(id)

    def add(self, id: bytes, name: str, addresses: tuple[str, ...], now: float) -> Member[LinkT]:
        """The member with this id; a new one in state NEW where there was none."""
        member = self._peers.get(id)
        if member is None:
            member = self._peers[id] = Member(id, name, addresses, now, self._jitter)
        return member

    def tick(self, now: float, whole: bool = True) -> None:
        """Time has passed: pauses end, weights grow; and, unless it is not the `whole` look, latencies that were not
        measured for a while fade. Called some times per second, the whole some four times."""
        for member in list(self._unsettled):
            if member.health.unsettled:
                self._wellness(member, member.health.tick(now))
            if member.shedding:
                member.forget_levels(now)
                self._look_odd(member)
            if not (member.health.unsettled or member.shedding):
                del self._unsettled[member]
        if whole:
            self._fade(now)

    def _fade(self, now: float) -> None:
        best: dict[str, float] = {}
        for member in list(self._used):
            for method, average in member._latencies.items():
                if average.value is not None and average.value < best.get(method, float("inf")):
                    best[method] = average.value
            if member.link is None and not member._latencies:
                del self._used[member]
        for member in self._used:
            member.forget_stale(now, best)

    def remove(self, member: Member[LinkT]) -> None:
        """Forget a peer for good."""
        self._peers.pop(member.id, None)
        self.linked.pop(member, None)
        self._unsettled.pop(member, None)
        self._used.pop(member, None)
        self.odd.pop(member, None)
        self.known.clear()

    def happen(self, member: Member[LinkT], event: Event, now: float) -> None:
        """Let `event` happen to a peer, by the table of `_core.peer`."""
        before = member.state
        after = follow(before, event)
        if after is before:
            return
        member.state, member.since = after, now
        self.known.clear()
        self._changed(member, before)

    def met(self, member: Member[LinkT], hello: Hello, link: LinkT, now: float) -> None:
        """A handshake succeeded: the link is this member's from now on."""
        member.hello, member.link = hello, link
        member.name, member.capacity = hello.name, hello.capacity
        if member.state in (State.NEW, State.DEAD) and self._settled(now):
            member.health.start_slowly(now)
        member.weight = member.capacity * member.health.weight
        self.linked.pop(member, None)
        self.linked[member] = now
        self._used[member] = None
        self._watch_time(member)
        self.known.clear()
        self.happen(member, Event.HANDSHAKE, now)

    def _settled(self, now: float) -> bool:
        """Whether somebody has been here for so long that a newcomer is one."""
        for member, since in self.linked.items():
            if now - since < SLOW_START:  # nor are those behind it: where all come at once, none is asked twice
                break
            if member.state is State.ALIVE and now - member.since >= SLOW_START:
                return True
        return False

    def parted(self, member: Member[LinkT]) -> None:
        """Its link is over, or not for new calls any more."""
        member.link = None
        self.linked.pop(member, None)
        self.known.clear()

    def candidates(self, service: str, major: int | None) -> list[Member[LinkT]]:
        """Who may take a call of `service` now: the alive that are healthy; where those are fewer than half of who is
        there, the suspect and the ejected as well, but nobody without a link.

        `major`: of the version that the caller was written for, None for any. The list is shared: do not change it.
        """
        key = (service, major)
        found = self.known.get(key)
        if found is None:
            standing = self.standing(service, major)
            found = [m for m in standing if m.state is State.ALIVE and m.health.good]
            if in_panic(len(found), len(standing)):
                found = standing
            self.known[key] = found
        return found

    def standing(self, service: str, major: int | None) -> list[Member[LinkT]]:
        """Who could take a call of `service`, well or not: the alive and the suspect whose link stands."""
        return [
            m for m in self.offering(service, major)
            if m.link is not None and (m.state is State.ALIVE or m.state is State.SUSPECT)
        ]  # fmt: skip

    def offering(self, service: str, major: int | None = None) -> list[Member[LinkT]]:
        """Who is known to serve `service`, in whatever state."""
        return [m for m in self._peers.values() if m.hello is not None and offers(m.hello, service, major)]

    # -- health: what calls tell of a peer. These return whether who may take calls has changed.

    def succeeded(self, member: Member[LinkT], started: float, now: float) -> bool:
        """A call that was sent at `started` was answered, where `member.health.troubled`. (Each success counts up
        `member.health.successes`, which is the caller's to do.)"""
        return self._wellness(member, member.health.succeeded(started, now))

    def failed(self, member: Member[LinkT], why: str, started: float, now: float) -> bool:
        """A call that was sent at `started` failed by the node's doing; why, in words."""
        member.counts.failed += 1
        return self._wellness(member, member.health.failed(why, started, now))

    def refused(self, member: Member[LinkT], started: float, now: float) -> bool:
        """A call that was sent at `started` was refused for load."""
        member.counts.refused += 1
        return self._wellness(member, member.health.refused(started, now))

    def raised(self, member: Member[LinkT], now: float) -> None:
        """A handler there raised an exception that is no answer."""
        member.counts.raised += 1
        member.health.raised(now)
        self._wellness(member, False)

    def probe(self, member: Member[LinkT], now: float) -> None:
        """A call goes to one that is due."""
        self._wellness(member, member.health.probe(now))

    def _wellness(self, member: Member[LinkT], changed: bool) -> bool:
        member.weight = member.capacity * member.health.weight
        self._watch_time(member)
        if changed:
            member.counts.ejections += member.health.state is Wellness.EJECTED
            self.known.clear()
            self._look_odd(member)
        return changed

    def sheds(self, member: Member[LinkT], method: str, level: int, until: float) -> None:
        """A peer told from which rank on it takes calls of a method ("": of any), 0 for all, until a time."""
        member.sheds(method, level, until)
        self._watch_time(member)
        self._look_odd(member)

    def _watch_time(self, member: Member[LinkT]) -> None:
        unsettled = member.health.unsettled or member.shedding
        if unsettled and self._peers.get(member.id) is member:  # else it is nobody that calls are balanced over
            self._unsettled[member] = None

    def _look_odd(self, member: Member[LinkT]) -> None:
        odd = member.shedding or member.health.state is Wellness.DUE
        if odd and self._peers.get(member.id) is member:
            self.odd[member] = None
        else:
            self.odd.pop(member, None)


def offers(hello: Hello, service: str, major: int | None) -> bool:
    """Whether a node serves `service` in a version with this major number (None: any)."""
    return any(offer.name == service and (major is None or offer.major == major) for offer in hello.services)
