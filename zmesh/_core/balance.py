"""Choose one peer of several: the default policy, and all of them by name."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Final

from .policies import Candidate, LeastRequest, PeakEwma, Policy, Random, RoundRobin, Weighted

__all__ = ["DRAWN", "GRAIN", "MEMORY", "POLICIES", "RECENCY", "UNPROVEN", "LeastLoaded", "make_policy"]

DRAWN: Final = 3
RECENCY: Final = 0.5
UNPROVEN: Final = 1e6  # times dearer than one that is known, while a call is out
GRAIN: Final = 1e-6  # seconds: nothing is fresher than that
MEMORY: Final = 0.1  # the share of one choice in what is usual
_INFINITY: Final = float("inf")


class LeastLoaded:
    """Of three peers drawn at random and the two best of the last choice, the one whose cost is least:

        cost = latency x (our calls in flight + calls of others + 1) x (1 + recency) / weight

    - In flight x latency is Finagle's cost, with the calls of others from the peers' reports.
    - Three drawn and two remembered (Mitzenmacher, Prabhakar and Shah, "Load Balancing with Memory", 2002): where half
      of the peers are slow, those drawn may all be slow; with memory it is nearly as good as looking at all. Distinct,
      as drawing with replacement can feed a peer that hangs (envoyproxy/envoy issue 39737).
    - What others have there is as old as the report. If it were believed as it came, all callers would run to whoever
      looked idle. So it is drawn towards what is usual, by half once it is as old as a call takes (the idea is
      Dahlin's, "Interpreting Stale Load Information", 2000; the form was found in the laboratory).
    - Recency: 0.5 right after we sent a call there, half of that once it is as long ago as a call takes. So each caller
      goes round evenly as far as load lets it, and many callers that know little of each other meet less often.
    - A peer whose latency is not known is taken for a usual one, and tried by one call at a time (Finagle's Peak-EWMA
      penalizes alike), so that a slow newcomer does not attract a burst before its first answer.

    Chosen against the alternatives in docs/balancing.md, hot and cold peers (Prequal) among them.
    """

    def __init__(self, random: random.Random) -> None:
        self._random = random.random
        self._memories: dict[str, _Memory] = {}  # by method

    def choose(self, candidates: Sequence[Candidate], method: str, now: float) -> int:
        memory = self._memories.get(method)
        if memory is None:
            memory = self._memories[method] = _Memory()
        looked = _look(len(candidates), memory, self._random)
        now += GRAIN
        usual_others, usual_latency = memory.others, memory.latency
        best = second = looked[0]
        least = runner_up = taken = _INFINITY
        for index in looked:
            peer = candidates[index]
            latency = peer.latency(method)
            if latency is None:
                latency = usual_latency * UNPROVEN if peer.in_flight else usual_latency
            weight = peer.weight
            later = now + latency
            usual = usual_others * weight
            load = peer.in_flight + 1.0 + usual + (peer.others - usual) * latency / (later - peer.reported_at)
            cost = latency * load * (1.0 + RECENCY * latency / (later - peer.called_at)) / weight
            if cost < least:
                second, runner_up = best, least
                best, least, taken = index, cost, latency
            elif cost < runner_up:
                second, runner_up = index, cost
        memory.best, memory.second = best, second
        drawn = candidates[looked[0]]
        memory.others = usual_others + (drawn.others / drawn.weight - usual_others) * MEMORY
        if taken < usual_latency * UNPROVEN:
            memory.latency = taken
        return best

    def cost(self, peer: Candidate, method: str, now: float) -> float:
        """What the next `choose` compares, for `zmesh.explain`: there it stands without the calls, as it is hot."""
        memory = self._memories.get(method) or _Memory()
        latency, now = peer.latency(method), now + GRAIN
        if latency is None:
            latency = memory.latency * UNPROVEN if peer.in_flight else memory.latency
        weight, usual, later = peer.weight, memory.others * peer.weight, now + latency
        load = peer.in_flight + 1.0 + usual + (peer.others - usual) * latency / (later - peer.reported_at)
        return latency * load * (1.0 + RECENCY * latency / (later - peer.called_at)) / weight


def _look(count: int, memory: _Memory, random: Callable[[], float]) -> list[int]:
    """The indexes to look at, distinct; the first is drawn at random."""
    place = random() * count
    start = int(place)
    if count <= DRAWN + 2:
        return [*range(start, count), *range(start)]
    stride = count / DRAWN  # one of each third of the circle that begins at a random peer
    first = int(start + (place - start) * stride) % count
    second = int(start + (1.0 + random()) * stride) % count
    indexes = [first, second, int(start + (2.0 + random()) * stride) % count]
    kept = memory.best
    if kept < count and kept not in indexes:
        indexes.append(kept)
    kept = memory.second
    if kept < count and kept not in indexes:
        indexes.append(kept)
    return indexes


class _Memory:
    """What is kept from the last choices for a method."""

    __slots__ = ("best", "latency", "others", "second")

    def __init__(self) -> None:
        self.best = self.second = 0
        self.others = 0.0  # calls that others have at a peer of weight 1, on average
        self.latency = 1.0  # of the last that was chosen and is known


POLICIES: Final[dict[str, Callable[[random.Random], Policy]]] = {
    "least_loaded": LeastLoaded,
    "least_request": LeastRequest,
    "peak_ewma": PeakEwma,
    "random": Random,
    "round_robin": RoundRobin,
    "weighted": Weighted,
}


def make_policy(which: str | Policy, random: random.Random) -> Policy:
    """A policy by name, or the user's own. Raises ValueError that lists the names there are, and TypeError for what is
    neither a name nor a policy."""
    if not isinstance(which, str):
        if not callable(getattr(which, "choose", None)) or isinstance(which, type):
            raise TypeError(f"balance is a name or an object with `choose`, got {which!r:.80}")
        return which
    try:
        return POLICIES[which](random)
    except KeyError:
        raise ValueError(f"no balancing policy {which!r}; there are {', '.join(sorted(POLICIES))}") from None
