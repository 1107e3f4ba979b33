"""A queue with workers in virtual time, driven by `Admission`: what the tests of overload measure."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from zmesh._core.admission import DEFAULT_PRIORITY, LOTS, Admission, rank_of


@dataclass
class Job:
    arrived: float
    deadline: float
    rank: int
    done: Callable[[Job, str, float], None]


@dataclass
class Station:
    """One server: some workers, exponential service times, calls in a queue until their turn or their deadline."""

    workers: int
    mean: float
    seed: int = 1
    admission: Admission | None = None
    now: float = 0.0
    queue: deque[Job] = field(default_factory=deque)
    busy: int = 0
    refused: int = 0
    expired: int = 0
    longest_wait: float = 0.0
    events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.order = 0

    @property
    def capacity(self) -> float:
        return self.workers / self.mean

    def at(self, when: float, what: Callable[..., None], *args: Any) -> None:
        self.order += 1
        heapq.heappush(self.events, (when, self.order, what, args))

    def run(self, until: float) -> None:
        while self.events and self.events[0][0] <= until:
            self.now, _, what, args = heapq.heappop(self.events)
            what(*args)
        self.now = until

    def call(
        self,
        timeout: float,
        done: Callable[[Job, str, float], None] = lambda job, how, now: None,
        priority: int = DEFAULT_PRIORITY,
        rank: int | None = None,
    ) -> None:
        job = Job(
            self.now,
            self.now + timeout,
            rank_of(priority, self.rng.randrange(LOTS)) if rank is None else rank,
            done,
        )
        admission = self.admission
        if self.busy < self.workers and not self.queue:
            self.begin(job)
            return
        if admission is not None and len(self.queue) >= admission.free:
            refusal = admission.admit(len(self.queue), timeout, job.rank, self.now)
            if refusal is not None:
                self.refused += 1
                done(job, "refused", self.now)
                return
        self.queue.append(job)

    def begin(self, job: Job) -> None:
        self.busy += 1
        if self.admission is not None:
            self.admission.begun += 1
        self.longest_wait = max(self.longest_wait, self.now - job.arrived)
        self.at(self.now + self.rng.expovariate(1 / self.mean), self.end, job)

    def end(self, job: Job) -> None:
        self.busy -= 1
        job.done(job, "late" if self.now > job.deadline else "good", self.now)
        admission = self.admission
        while self.queue and self.busy < self.workers:
            next = self.queue.pop() if admission is not None and admission.newest_first else self.queue.popleft()
            if next.deadline <= self.now:
                self.expired += 1
                if admission is not None:
                    admission.lost()
                next.done(next, "expired", self.now)
                continue
            self.begin(next)
        while self.queue and self.queue[0].deadline <= self.now:
            self.expired += 1
            dead = self.queue.popleft()
            dead.done(dead, "expired", self.now)
        if admission is not None and not self.queue and admission.standing:
            admission.emptied(self.now)

    def poisson(self, rate: Callable[[float], float], until: float, arrive: Callable[[], None]) -> None:
        """Let calls arrive at `rate(now)` a second."""

        def next() -> None:
            arrive()
            following = self.now + self.rng.expovariate(rate(self.now))
            if following < until:
                self.at(following, next)

        self.at(self.now + self.rng.expovariate(rate(self.now)), next)
