"""Servers, callers and the clock of the laboratory. What a caller does here is what `zmesh._client` does there: count
its calls in flight, let the policy choose, observe what calls take, take in the reports that come with the answers."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from zmesh._core.admission import LOTS, Admission, rank_of
from zmesh._core.budget import Budget
from zmesh._core.health import Outcome, outcome_of
from zmesh._core.health import State as Wellness
from zmesh._core.members import LEVEL_LASTS, Member, Members
from zmesh._core.messages import Hello, Offer
from zmesh._core.peer import Event
from zmesh._core.policies import Policy
from zmesh._core.timing import Average
from zmesh.errors import Code

__all__ = ["Attempt", "Call", "Caller", "Server", "World"]

SERVICE: Final = "Lab"
METHOD: Final = "Lab.work"
HEARTBEAT: Final = 0.25  # Config.heartbeat
REPORT_EVERY: Final = 0.005  # a link's reports are at least so far apart (zmesh._link)
MEMORY: Final = 10.0  # seconds, of a server's averages (zmesh._server)
AT_ONCE: Final = 0.0002  # seconds until a refusal or an error is back


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


class Caller:
    """The calling half of a node."""

    def __init__(self, world: World, policy: Policy, outcome: Callable[[Call, bool], None]) -> None:
        """outcome: told of each call that ended, and whether with an answer."""
        self.world = world
        self.policy = policy
        self.members: Members[Server] = Members(lambda member, before: None, world.random("jitter").random)
        self.budget = Budget(world.now)
        self.timeout = 0.0  # 0: none
        self.hedge_after = 0.0  # 0: never
        self.report_every = REPORT_EVERY
        self.heartbeat = HEARTBEAT
        self.attempts = 0
        self._learn = getattr(policy, "learn", None)
        self._lots = world.random("lots")
        self._outcome = outcome
        self._reported: dict[Member[Server], float] = {}

    def meet(self, server: Server) -> None:
        """A link to it opens. The first report comes with its first heartbeat or answer."""
        now = self.world.now
        member = self.members.add(server.hello.id, server.hello.name, (), now)
        self.members.met(member, server.hello, server, now)
        self._reported[member] = now

    def leave(self, server: Server) -> None:
        """It drains: it gets no new calls from here, and finishes what it has."""
        member = self.members.get(server.hello.id)
        if member is not None:
            self.members.happen(member, Event.DRAIN, self.world.now)
            self._reported.pop(member)

    def start(self, phase: float) -> None:
        """Begin to tick, as the hub does."""
        self.world.at(self.world.now + phase, self._tick)

    def _tick(self, _: None) -> None:
        now = self.world.now
        for member, last in self._reported.items():
            if now - last >= (self.heartbeat if member.in_flight else 4.0 * self.heartbeat):
                self._reported[member] = now
                member.link.report(self, member)  # type: ignore[union-attr]
        self.members.tick(now)
        self.world.at(now + self.heartbeat, self._tick)

    def call(self, work: float) -> None:
        """Make a call."""
        world = self.world
        call = Call(self, world.now, work, rank_of(5, int(self._lots.random() * LOTS)))
        self.budget.calls += 1
        if self.timeout:
            world.at(world.now + self.timeout, self._expired, call)
        if self.hedge_after:
            world.at(world.now + self.hedge_after, self._hedge, call)
        candidates: Sequence[Member[Server]] = self.members.candidates(SERVICE, 1)
        if self.members.odd:
            candidates = self._with_care(call, candidates)
            if not candidates:
                self._settle(call, False)
                return
        member = candidates[self.policy.choose(candidates, METHOD, world.now) if len(candidates) > 1 else 0]
        self._attempt(call, member)

    def _with_care(self, call: Call, candidates: Sequence[Member[Server]]) -> Sequence[Member[Server]]:
        """As `zmesh._judge` does: who is due for a probe gets it; who would refuse the call is spared."""
        now = self.world.now
        for member in self.members.odd:
            if member.health.state is Wellness.DUE:
                self.members.probe(member, now)
                return [member]
        return [member for member in candidates if call.rank >= member.level(METHOD, now)]

    def _attempt(self, call: Call, member: Member[Server]) -> None:
        now = self.world.now
        attempt = Attempt(call, member, now, call.started + (self.timeout or 1e9))
        call.attempts.append(attempt)
        self.attempts += 1
        member.in_flight += 1
        member.called_at = now
        member.link.take(attempt)  # type: ignore[union-attr]

    def answered(self, attempt: Attempt) -> None:
        """An answer came."""
        member, started, now = attempt.member, attempt.started, self.world.now
        member.in_flight -= 1
        self._heard(member)
        self._took(member, started)
        member.health.successes += 1
        if member.health.troubled:
            self.members.succeeded(member, started, now)
        attempt.call.attempts.remove(attempt)
        self._settle(attempt.call, True)

    def failed(self, attempt: Attempt, code: Code, ran: bool) -> None:
        """An error came."""
        call, member, now = attempt.call, attempt.member, self.world.now
        member.in_flight -= 1
        self._heard(member)
        outcome = outcome_of(code, ran)
        if outcome is Outcome.FAILURE:
            self.members.failed(member, code.name, attempt.started, now)
        elif outcome is Outcome.RAISED:
            self.members.raised(member, now)
        elif outcome is Outcome.REFUSED:
            self.members.refused(member, attempt.started, now)
        call.attempts.remove(attempt)
        if call.attempts:
            return
        if not ran:
            call.tried.append(member)
            others = [other for other in self.members.candidates(SERVICE, 1) if other not in call.tried]
            if others and self.budget.retry(now):
                self._attempt(call, others[self.policy.choose(others, METHOD, now) if len(others) > 1 else 0])
                return
        self._settle(call, False)

    def _heard(self, member: Member[Server]) -> None:
        now = self.world.now
        if now - self._reported.get(member, now) >= self.report_every:
            self._reported[member] = now
            member.link.report(self, member)  # type: ignore[union-attr]

    def _settle(self, call: Call, well: bool) -> None:
        call.done = True
        attempts, call.attempts = call.attempts, []
        for attempt in attempts:
            self._abandon(attempt)
        self._outcome(call, well)

    def _abandon(self, attempt: Attempt) -> None:
        """As `zmesh._client` does: what it took so far is the least that it takes."""
        member, now = attempt.member, self.world.now
        member.in_flight -= 1
        known = member.latency(METHOD)
        if known is None or now - attempt.started > known:
            self._took(member, attempt.started)
        member.link.cancel(attempt)  # type: ignore[union-attr]

    def _took(self, member: Member[Server], started: float) -> None:
        now = self.world.now
        member.observe(METHOD, started, now)
        if self._learn is not None:
            self._learn(member, METHOD, now - started, now)

    def _expired(self, call: Call) -> None:
        if not call.done:
            for attempt in call.attempts:
                self.members.failed(attempt.member, "it did not answer in time", attempt.started, self.world.now)
            self._settle(call, False)

    def _hedge(self, call: Call) -> None:
        if call.done or len(call.attempts) != 1:
            return
        tried, now = call.attempts[0].member, self.world.now
        others = [member for member in self.members.candidates(SERVICE, 1) if member is not tried]
        if others and self.budget.hedge(now):
            self._attempt(call, others[self.policy.choose(others, METHOD, now) if len(others) > 1 else 0])
