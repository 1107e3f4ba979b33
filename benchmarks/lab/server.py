"""The servers of the laboratory: queues, that report their load as `zmesh._server` does."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from zmesh._core.admission import Admission
from zmesh._core.members import LEVEL_LASTS, Member
from zmesh._core.messages import Hello, Offer
from zmesh._core.timing import Average
from zmesh.errors import Code

from .world import SERVICE, Attempt, World

if TYPE_CHECKING:
    from .caller import Caller

__all__ = ["Server"]

MEMORY: Final = 10.0  # seconds, of a server's averages (zmesh._server)
AT_ONCE: Final = 0.0002  # seconds until a refusal or an error is back


class Server:
    """`workers` calls at once, the others wait in order. Reports its load as `zmesh._server` does."""

    def __init__(self, world: World, number: int, workers: int = 4, speed: float = 1.0) -> None:
        self.world = world
        self.number = number
        self.workers = workers
        self.speed = speed
        self.extra = 0.0  # seconds more that each call takes, while it stalls
        self.error: Code | None = None  # what it answers to everything, at once
        self.runs = True  # whether its errors come from a handler
        self.admission: Admission | None = None
        self.in_flight = 0
        self.busy = 0
        self.served = 0  # calls that came
        self.worked = 0.0  # seconds that its workers were busy
        self.most = 0  # in flight at once
        self.queue: deque[Attempt] = deque()
        self.latency = Average(MEMORY)
        self.queue_wait = Average(MEMORY)
        id = world.random(f"server {number}").randbytes(16)
        self.hello = Hello(id, f"server-{number}", "lab", services=(Offer(SERVICE, "1.0", b""),))

    def take(self, attempt: Attempt) -> None:
        """A call arrives."""
        self.served += 1
        if self.error is not None:
            self._answer_at_once(attempt)
            return
        admission = self.admission
        if admission is not None and len(self.queue) >= admission.free:
            world = self.world
            if admission.admit(len(self.queue), attempt.deadline - world.now, attempt.call.rank, world.now):
                world.at(world.now + AT_ONCE, self._refused, attempt)
                return
        self.in_flight = in_flight = self.in_flight + 1
        if in_flight > self.most:
            self.most = in_flight
        if self.busy < self.workers:
            self._begin(attempt)
        else:
            self.queue.append(attempt)

    def _answer_at_once(self, attempt: Attempt) -> None:
        self.world.at(self.world.now + AT_ONCE, self._failed, attempt)

    def _failed(self, attempt: Attempt) -> None:
        if not attempt.over:
            attempt.over = True
            attempt.call.caller.failed(attempt, self.error or Code.UNAVAILABLE, self.runs)

    def _refused(self, attempt: Attempt) -> None:
        if not attempt.over:
            attempt.over = True
            attempt.call.caller.failed(attempt, Code.RESOURCE_EXHAUSTED, False)

    def _begin(self, attempt: Attempt) -> None:
        self.busy += 1
        world = self.world
        attempt.began = now = world.now
        self.queue_wait.add(now - attempt.started, now)
        if self.admission is not None:
            self.admission.begun += 1
        world.at(now + attempt.call.work / self.speed + self.extra, self._end, attempt)

    def _end(self, attempt: Attempt) -> None:
        if attempt.over:  # given up long ago, and its worker with it
            return
        attempt.over = True
        self.busy -= 1
        self.in_flight -= 1
        now = self.world.now
        self.worked += now - attempt.began
        self.latency.add(now - attempt.started, now)
        if self.queue:
            self._next()
        attempt.call.caller.answered(attempt)

    def _next(self) -> None:
        queue, admission, now = self.queue, self.admission, self.world.now
        while queue:
            attempt = queue.pop() if admission is not None and admission.newest_first else queue.popleft()
            if not attempt.over:
                self._begin(attempt)
                break
        if admission is not None and not queue and admission.standing:
            admission.emptied(now)

    def cancel(self, attempt: Attempt) -> None:
        """The caller gave it up: it leaves the queue, or its worker."""
        if attempt.over:
            return
        attempt.over = True
        if attempt.began >= 0.0:
            self.in_flight -= 1
            self.busy -= 1
            self.worked += self.world.now - attempt.began
            self._next()
        elif self.error is None:
            self.in_flight -= 1
            if self.admission is not None:
                self.queue.remove(attempt)
                self.admission.lost()
                if not self.queue and self.admission.standing:
                    self.admission.emptied(self.world.now)

    def report(self, caller: Caller, member: Member[Server]) -> None:
        """Tell one caller our load. Nothing is on its way here, so what it has in flight is what we have of it."""
        now, latency, wait = self.world.now, self.latency, self.queue_wait.value
        known = latency.value if now - latency.when <= MEMORY else None
        level = 0
        if self.admission is not None:
            self.admission.relax(now)
            level = self.admission.level
        microseconds = None if known is None else int(known * 1e6)
        waited = 0 if wait is None else int(wait * 1e6)
        member.report([self.in_flight, member.in_flight, microseconds, waited, level, 0], now)
        if level or member.shedding:
            caller.members.sheds(member, "", level, now + LEVEL_LASTS)
