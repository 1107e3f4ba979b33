"""The clock of the laboratory, and what passes between its callers and servers."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from zmesh._core.members import Member

if TYPE_CHECKING:
    from .caller import Caller
    from .server import Server

__all__ = ["METHOD", "SERVICE", "Attempt", "Call", "World"]

SERVICE: Final = "Lab"
METHOD: Final = "Lab.work"


class World:
    """The clock, and who lives by it."""

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self.seed = seed
        self._events: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._order = 0

    def random(self, purpose: str) -> random.Random:
        """Numbers for one purpose: the same whatever other purposes draw, so that policies meet the same calls."""
        return random.Random(f"{self.seed}/{purpose}")

    def at(self, when: float, do: Callable[[Any], None], what: Any = None) -> None:
        """Let `do(what)` happen at a time."""
        self._order += 1
        heapq.heappush(self._events, (when, self._order, do, what))

    def run(self, pause: Callable[[], float], arrive: Callable[[], None], until: float) -> None:
        """Arrivals, `pause()` seconds apart, and all that follows from them until a time."""
        events, pop = self._events, heapq.heappop
        following = pause()
        while following < until:
            if events and events[0][0] <= following:
                self.now, _, do, what = pop(events)
                do(what)
            else:
                self.now = following
                arrive()
                following = self.now + pause()
        while events and events[0][0] <= until:
            self.now, _, do, what = pop(events)
            do(what)


class Call:
    """What somebody waits for: one attempt or several."""

    __slots__ = ("attempts", "caller", "done", "rank", "started", "tried", "work")

    def __init__(self, caller: Caller, started: float, work: float, rank: int) -> None:
        self.caller = caller
        self.started = started
        self.work = work
        self.rank = rank
        self.attempts: list[Attempt] = []
        self.tried: list[Member[Server]] = []
        self.done = False


class Attempt:
    """One try at a call, at one server."""

    __slots__ = ("began", "call", "deadline", "member", "over", "started")

    def __init__(self, call: Call, member: Member[Server], started: float, deadline: float) -> None:
        self.call = call
        self.member = member
        self.started = started
        self.deadline = deadline
        self.began = -1.0  # when a worker took it
        self.over = False
