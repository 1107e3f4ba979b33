"""Policies to compare with, which zmesh does not ship. They see what they could not see in a real mesh, or too little."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Final

from zmesh._core.balance import POLICIES, Candidate, Policy

__all__ = ["BASELINES", "make"]


class Omniscient:
    """Without any delay: whoever of all has the least (in flight + 1) / speed, by the servers' own state."""

    def __init__(self, random: random.Random) -> None:
        self._random = random.random

    def choose(self, candidates: Sequence[Any], method: str) -> int:
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

    def choose(self, candidates: Sequence[Candidate], method: str) -> int:
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

    def choose(self, candidates: Sequence[Any], method: str) -> int:
        now = candidates[0].link.world.now
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


BASELINES: Final[dict[str, Callable[[random.Random], Policy]]] = {
    "omniscient": Omniscient,
    "local_two": lambda random: TwoChoices(random, reported=False),
    "reported_two": lambda random: TwoChoices(random, reported=True),
    "utilization": Utilization,
}


def make(name: str, random: random.Random) -> Policy:
    """A policy by name: zmesh's own, or one of these."""
    return (BASELINES.get(name) or POLICIES[name])(random)
