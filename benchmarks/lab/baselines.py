"""Policies to compare with, which zmesh does not ship. They see what nobody can see in a mesh, or too little."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any, Final

from zmesh._core.balance import DRAWN, GRAIN, MEMORY, POLICIES, RECENCY, UNPROVEN
from zmesh._core.policies import Candidate, Policy

__all__ = ["BASELINES", "make"]


class Omniscient:
    """Without any delay: whoever of all has the least (in flight + 1) / speed, by the servers' own state."""

    def __init__(self, random: random.Random) -> None:
        self._random = random.random

    def choose(self, candidates: Sequence[Any], method: str, now: float) -> int:
        count = len(candidates)
        start = int(self._random() * count)
        best, least = 0, float("inf")
        for step in range(count):
            index = start + step if start + step < count else start + step - count
            server = candidates[index].link
            cost = (server.in_flight + 1) / (server.speed * server.workers)
            if cost < least:
                best, least = index, cost
        return best


class TwoChoices:
    """The better of two distinct ones, by calls in flight: our own, or with those that reports tell of."""

    def __init__(self, random: random.Random, reported: bool) -> None:
        self._random = random.random
        self._reported = reported

    def choose(self, candidates: Sequence[Candidate], method: str, now: float) -> int:
        count = len(candidates)
        one = int(self._random() * count)
        other = (one + 1 + int(self._random() * (count - 1))) % count
        a, b = candidates[one], candidates[other]
        if self._reported:
            return one if a.in_flight + a.others <= b.in_flight + b.others else other
        return one if a.in_flight <= b.in_flight else other


class Utilization:
    """Weighted round robin by calls/s over utilization, as gRPC's (gRFC A58), here from the servers' own state: the
    weights are set anew each second of the first caller's calls."""

    EVERY: Final = 1.0

    def __init__(self, random: random.Random) -> None:
        self._random = random.random
        self._weights: dict[Any, float] = {}
        self._seen: dict[Any, tuple[float, float]] = {}
        self._due = 0.0

    def choose(self, candidates: Sequence[Any], method: str, now: float) -> int:
        if now >= self._due:
            self._due = now + self.EVERY
            for peer in candidates:
                server = peer.link
                served, work = self._seen.get(peer, (0, 0.0))
                self._seen[peer] = server.served, server.worked
                used = server.worked - work
                if used > 0.0:
                    self._weights[peer] = (server.served - served) * server.workers / used
        known = self._weights.values()
        mean = sum(known) / len(known) if known else 1.0
        at = self._random() * sum(self._weights.get(peer, mean) for peer in candidates)
        for index, peer in enumerate(candidates):
            at -= self._weights.get(peer, mean)
            if at < 0.0:
                return index
        return len(candidates) - 1


class Tunable:
    """The default policy with every constant open, and the alternatives that it was chosen against. As it comes, it
    chooses what `LeastLoaded` does (a test holds them together), but takes its time.

    fresh: latencies after which half of a report is believed. quantile: of the loads that were seen, above which a peer
    is hot: then the coldest of the hot is taken, else the one of least latency (Prequal's rule); None: by cost.
    """

    def __init__(
        self,
        random: random.Random,
        choices: int = DRAWN,
        remembered: int = 2,
        fresh: float = 1.0,
        recency: float = RECENCY,
        quantile: float | None = None,
        power: float = 1.0,
    ) -> None:
        self._random = random.random
        self._choices, self._remembered = choices, remembered
        self._fresh, self._recency, self._quantile, self._power = fresh, recency, quantile, power
        self._kept = [0, 0]
        self._others, self._latency = 0.0, 1.0
        self._hot = 1.0

    def choose(self, candidates: Sequence[Candidate], method: str, now: float) -> int:
        looked = self._look(len(candidates))
        loads, keys = [], []
        for index in looked:
            peer = candidates[index]
            latency = peer.latency(method)
            if latency is None:
                latency = self._latency * (UNPROVEN if peer.in_flight else 1.0)
            usual = self._others * peer.weight
            scale, later = latency * self._fresh, now + GRAIN + latency
            old = later - latency + scale - peer.reported_at if self._fresh != 1.0 else later - peer.reported_at
            load = peer.in_flight + 1.0 + usual + ((peer.others - usual) * scale / old if old < math.inf else 0.0)
            recent = self._recency * latency / (later - peer.called_at)
            loads.append(load / peer.weight)
            keys.append(latency * load**self._power * (1.0 + recent) / peer.weight)
            if self._quantile is not None:
                keys[-1] = loads[-1] * 1e6 if loads[-1] > self._hot else latency
        for load in loads if self._quantile is not None else ():  # a quantile that follows, without a list of loads
            self._hot += 0.05 * self._hot * (self._quantile if load > self._hot else self._quantile - 1.0)
        order = sorted(range(len(looked)), key=keys.__getitem__)
        best = looked[order[0]]
        self._kept = [best, looked[order[1]]]
        drawn = candidates[looked[0]]
        self._others += (drawn.others / drawn.weight - self._others) * MEMORY
        self._latency = candidates[best].latency(method) or self._latency
        return best

    def _look(self, count: int) -> list[int]:
        choices, random = self._choices, self._random
        place = random() * count
        start = int(place)
        if count <= choices + self._remembered:
            return [*range(start, count), *range(start)]
        stride = count / choices
        shares = [place - start, *(random() for _ in range(choices - 1))]
        indexes = [int(start + (step + share) * stride) % count for step, share in enumerate(shares)]
        for kept in self._kept[: self._remembered]:
            if kept < count and kept not in indexes:
                indexes.append(kept)
        return indexes


def _variant(**knobs: float) -> Callable[[random.Random], Policy]:
    return lambda random: Tunable(random, **knobs)  # type: ignore[arg-type]


BASELINES: Final[dict[str, Callable[[random.Random], Policy]]] = {
    "omniscient": Omniscient,
    "local_two": lambda random: TwoChoices(random, reported=False),
    "reported_two": lambda random: TwoChoices(random, reported=True),
    "utilization": Utilization,
    "tunable": _variant(),
    "2_drawn": _variant(choices=2, remembered=0),
    "4_drawn": _variant(choices=4, remembered=0),
    "2_and_2": _variant(choices=2),
    "3_and_1": _variant(remembered=1),
    "4_and_2": _variant(choices=4),
    "all": _variant(choices=1_000),
    "believing": _variant(fresh=1e9),
    "unbelieving": _variant(fresh=1e-9),
    "fresh_0.3": _variant(fresh=0.3),
    "fresh_3": _variant(fresh=3.0),
    "no_recency": _variant(recency=0.0),
    "recency_1": _variant(recency=1.0),
    "recency_2": _variant(recency=2.0),
    "hot_cold_0.6": _variant(quantile=0.6),
    "hot_cold_0.84": _variant(quantile=0.84),
    "latency_only": _variant(quantile=1.0),
    "load_only": _variant(quantile=0.0),
    "load_squared": _variant(power=2.0),
}


def make(name: str, random: random.Random) -> Policy:
    """A policy by name: zmesh's own, or one of these."""
    return (BASELINES.get(name) or POLICIES[name])(random)
