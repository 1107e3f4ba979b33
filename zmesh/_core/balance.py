"""Choose one peer of several. A policy is any object with `choose`; three come with zmesh."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Final, Protocol

__all__ = ["POLICIES", "Candidate", "LeastLoaded", "Policy", "Random", "RoundRobin", "make_policy"]


class Candidate(Protocol):
    """What a policy sees of a peer."""

    weight: float  # its capacity, less while it starts slowly or its handlers fail
    in_flight: int  # our own calls there
    others: int  # calls that others have there, by its last report

    def latency(self, method: str) -> float | None:
        """Seconds that a call of this method takes there; None while nothing is known."""


class Policy(Protocol):
    """The interface of balancing."""

    def choose(self, candidates: Sequence[Candidate], method: str) -> int:
        """The index of the peer to call. `candidates` has at least two, in an order that changes only with them."""


class LeastLoaded:
    """Power of d choices: of up to four distinct peers, the one whose (in flight + 1) x latency / weight is least.

    Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing" (2001); the cost is Finagle's (pending + 1) x
    latency. Four, not two: where half the peers are slow, two choices meet two slow ones in a sixth of all picks of
    four peers, which alone can overload them. Distinct, as drawing with replacement can feed a peer that hangs
    (envoyproxy/envoy issue 39737). A peer whose latency is not known is tried by one call at a time (Finagle's
    Peak-EWMA penalizes alike), so that a slow newcomer does not attract a burst before its first answer.
    """

    CHOICES: Final = 4
    CLEARLY: Final = 0.8  # costs closer than this are a tie, or noise would starve one of several equal peers
    UNPROVEN: Final = 1e6  # seconds: dearer than any real latency, yet comparable among the unproven

    def __init__(self, random: random.Random) -> None:
        self._random = random.random

    def choose(self, candidates: Sequence[Candidate], method: str) -> int:
        count = len(candidates)
        random = self._random
        start = int(random() * count)
        if count <= self.CHOICES:
            indexes = [(start + step) % count for step in range(count)]
        else:  # one of each quarter of the circle that begins at a random peer: distinct, without a shuffle
            stride = count / self.CHOICES
            indexes = [int(start + (step + random()) * stride) % count for step in range(self.CHOICES)]
        best, least = indexes[0], float("inf")
        for index in indexes:
            cost = self._cost(candidates[index], method)
            if cost < least * self.CLEARLY:
                best, least = index, cost
        return best

    def _cost(self, peer: Candidate, method: str) -> float:
        latency = peer.latency(method)
        load = peer.in_flight + peer.others + 1
        if latency is None:
            return load * self.UNPROVEN / peer.weight if peer.in_flight else 0.0
        return load * latency / peer.weight


class RoundRobin:
    """One after the other, for each method, whatever their load."""

    def __init__(self, random: random.Random) -> None:
        self._random = random
        self._next: dict[str, int] = {}

    def choose(self, candidates: Sequence[Candidate], method: str) -> int:
        turn = self._next.get(method)
        self._next[method] = turn = self._random.randrange(1 << 16) if turn is None else turn + 1
        return turn % len(candidates)


class Random:
    """Any, with equal chances."""

    def __init__(self, random: random.Random) -> None:
        self._random = random.random

    def choose(self, candidates: Sequence[Candidate], method: str) -> int:
        return int(self._random() * len(candidates))


POLICIES: Final[dict[str, Callable[[random.Random], Policy]]] = {
    "least_loaded": LeastLoaded,
    "round_robin": RoundRobin,
    "random": Random,
}


def make_policy(name: str, random: random.Random) -> Policy:
    """A policy by name. Raises ValueError that lists the names there are."""
    try:
        return POLICIES[name](random)
    except KeyError:
        raise ValueError(f"no balancing policy {name!r}; there are {', '.join(sorted(POLICIES))}") from None
