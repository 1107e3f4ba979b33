"""What a balancing policy is, and the plain ones. The default is in `_core.balance`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final, Protocol

__all__ = ["Candidate", "LeastRequest", "PeakEwma", "Policy", "Random", "RoundRobin", "Weighted"]


class Candidate(Protocol):
    """What a policy sees of a peer. Times are seconds of this node's monotonic clock."""

    id: bytes  # its incarnation
    name: str
    weight: float  # its capacity, less while it starts slowly or its handlers fail
    in_flight: int  # our own calls there
    others: int  # calls that others have there, by its last report
    reported_at: float  # when that report came; minus infinity before the first
    called_at: float  # when we last sent a call there; minus infinity before the first

    def latency(self, method: str) -> float | None:
        """Seconds that a call of this method takes there; None while nothing is known."""


class Policy(Protocol):
    """The interface of balancing. A policy may also have a method `learn(candidate, method, seconds, now)`: it is told
    how long each call took, also of those that were given up after that time. And `cost(candidate, method, now)`: the
    number that it compares, less is better, for those who ask why (`zmesh.explain`)."""

    def choose(self, candidates: Sequence[Candidate], method: str, now: float) -> int:
        """The index of the peer to call. `candidates` has at least two, in an order that changes only with them; all
        of them can take the call. It is called once for each attempt, so it should take microseconds."""


class RoundRobin:
    """One after the other, for each method, whatever their load."""

    def __init__(self, random: random.Random) -> None:
        self._random = random
        self._next: dict[str, int] = {}

    def choose(self, candidates: Sequence[Candidate], method: str, now: float) -> int:
        turn = self._next.get(method)
        self._next[method] = turn = self._random.randrange(1 << 16) if turn is None else turn + 1
        return turn % len(candidates)


class Random:
    """Any, with equal chances."""

    def __init__(self, random: random.Random) -> None:
        self._random = random.random

    def choose(self, candidates: Sequence[Candidate], method: str, now: float) -> int:
        return int(self._random() * len(candidates))


class LeastRequest:
    """Of two distinct peers, the one with fewer of our own calls in flight for its weight (Envoy's least request)."""

    def __init__(self, random: random.Random) -> None:
        self._random = random.random

    def choose(self, candidates: Sequence[Candidate], method: str, now: float) -> int:
        count = len(candidates)
        one = int(self._random() * count)
        other = (one + 1 + int(self._random() * (count - 1))) % count
        a, b = candidates[one], candidates[other]
        return one if (a.in_flight + 1) * b.weight <= (b.in_flight + 1) * a.weight else other

    def cost(self, peer: Candidate, method: str, now: float) -> float:
        """What `choose` compares, in other words."""
        return (peer.in_flight + 1) / peer.weight


class Weighted:
    """One after the other, each as often as its weight says, for each method.

    gRPC's static stride scheduler (gRFC A58): rounds go over all peers, and one of half the greatest weight takes part
    in every second round. O(1) as long as weights are of one order.
    """

    def __init__(self, random: random.Random) -> None:
        self._random = random
        self._rounds: dict[str, tuple[int, float]] = {}  # turns taken, greatest weight

    def choose(self, candidates: Sequence[Candidate], method: str, now: float) -> int:
        count = len(candidates)
        turn, greatest = self._rounds.get(method) or (self._random.randrange(1 << 16) * count, 0.0)
        for _ in range(100 * count):  # the greatest takes part in every round: as a rule it ends within two
            round, index = divmod(turn, count)
            if not index or not greatest:
                greatest = max(peer.weight for peer in candidates)
            turn += 1
            share = min(candidates[index].weight / greatest, 1.0)
            phase = round + index / count  # so that equal peers do not sit out the same rounds
            if int((phase + 1.0) * share) > int(phase * share):
                break
        self._rounds[method] = turn, greatest
        return index


class PeakEwma:
    """Of two distinct peers, the one with the least peak latency x (our calls in flight + 1) / weight.

    Finagle's Peak-EWMA: a latency above the average replaces it, one below draws it down within ten seconds; while
    nothing is heard it fades. Who is not known is tried with one call at a time.
    """

    MEMORY: Final = 10.0  # seconds (Finagle's decayTime)
    UNPROVEN: Final = 1e6  # seconds: dearer than any real latency
    MOST: Final = 20_000  # pairs of peer and method that are remembered

    def __init__(self, random: random.Random) -> None:
        self._random = random.random
        self._peaks: dict[tuple[bytes, str], tuple[float, float]] = {}  # seconds, and when they were observed

    def learn(self, candidate: Candidate, method: str, seconds: float, now: float) -> None:
        """A call took so long."""
        key = candidate.id, method
        value, when = self._peaks.get(key, (0.0, now))
        if seconds < value:
            left = self.MEMORY / (self.MEMORY + now - when)  # ~ e^(-t/memory), without a call to exp
            seconds += (value - seconds) * left
        elif len(self._peaks) > self.MOST:  # peers that are long gone
            self._peaks.clear()
        self._peaks[key] = seconds, now

    def choose(self, candidates: Sequence[Candidate], method: str, now: float) -> int:
        count = len(candidates)
        one = int(self._random() * count)
        other = (one + 1 + int(self._random() * (count - 1))) % count
        return one if self.cost(candidates[one], method, now) <= self.cost(candidates[other], method, now) else other

    def cost(self, peer: Candidate, method: str, now: float) -> float:
        """What `choose` compares."""
        known = self._peaks.get((peer.id, method))
        if known is None:
            return self.UNPROVEN * peer.in_flight / peer.weight
        value, when = known
        return value * self.MEMORY / (self.MEMORY + now - when) * (peer.in_flight + 1) / peer.weight
