"""Servers, callers and the clock of the laboratory. What a caller does here is what `zmesh._client` does there: count
its calls in flight, let the policy choose, observe what calls take, take in the reports that come with the answers."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from zmesh._core.members import Member, Members
from zmesh._core.messages import Hello, Offer
from zmesh._core.policies import Policy
from zmesh._core.timing import Average

__all__ = ["Attempt", "Call", "Caller", "Server", "World"]

SERVICE: Final = "Lab"
METHOD: Final = "Lab.work"
HEARTBEAT: Final = 0.25  # Config.heartbeat
IDLE_HEARTBEAT: Final = 1.0  # Config.idle_heartbeat
REPORT_EVERY: Final = 0.005  # a link's reports are at least so far apart (zmesh._link)
MEMORY: Final = 10.0  # seconds, of a server's averages (zmesh._server)


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

    def run(self, arrivals: Callable[[], float], arrive: Callable[[], None], until: float) -> None:
        """Arrivals, `arrivals()` seconds apart, and all that follows from them until a time."""
        events, pop = self._events, heapq.heappop
        following = arrivals()
        while following < until:
            if events and events[0][0] <= following:
                self.now, _, do, what = pop(events)
                do(what)
            else:
                self.now = following
                arrive()
                following += arrivals()
        while events and events[0][0] <= until:
            self.now, _, do, what = pop(events)
            do(what)


class Call:
    """What somebody waits for: one attempt or several."""

    __slots__ = ("attempts", "caller", "done", "started", "tries", "work")

    def __init__(self, caller: Caller, started: float, work: float) -> None:
        self.caller = caller
        self.started = started
        self.work = work
        self.attempts: list[Attempt] = []
        self.tries = 0
        self.done = False


class Attempt:
    """One try at a call, at one server."""

    __slots__ = ("began", "call", "member", "over", "started")

    def __init__(self, call: Call, member: Member[Server], started: float) -> None:
        self.call = call
        self.member = member
        self.started = started
        self.began = -1.0  # when a worker took it
        self.over = False


class Server:
    """`workers` calls at once, the others wait in order. Reports its load as `zmesh._server` does."""

    def __init__(self, world: World, number: int, workers: int = 4, speed: float = 1.0, capacity: float = 1.0) -> None:
        self.world = world
        self.number = number
        self.workers = workers
        self.speed = speed
        self.extra = 0.0  # seconds more that each call takes, while it stalls
        self.fails = False  # answers at once, with an error
        self.in_flight = 0
        self.busy = 0
        self.served = 0  # calls that came
        self.worked = 0.0  # seconds that its workers were busy
        self.most = 0  # in flight at once
        self.queue: deque[Attempt] = deque()
        self.latency = Average(MEMORY)
        self.queue_wait = Average(MEMORY)
        id = world.random(f"server {number}").randbytes(16)
        self.hello = Hello(id, f"server-{number}", "lab", capacity=capacity, services=(Offer(SERVICE, "1.0", b""),))

    def take(self, attempt: Attempt) -> None:
        """A call arrives."""
        self.in_flight = in_flight = self.in_flight + 1
        self.served += 1
        if in_flight > self.most:
            self.most = in_flight
        if self.fails:
            self.world.at(self.world.now + 0.0002, self._fail, attempt)
        elif self.busy < self.workers:
            self._begin(attempt)
        else:
            self.queue.append(attempt)

    def _begin(self, attempt: Attempt) -> None:
        self.busy += 1
        world = self.world
        attempt.began = now = world.now
        self.queue_wait.add(now - attempt.started, now)
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
        attempt.call.caller.answered(attempt, True)

    def _next(self) -> None:
        queue = self.queue
        while queue:
            attempt = queue.popleft()
            if not attempt.over:
                self._begin(attempt)
                return

    def _fail(self, attempt: Attempt) -> None:
        if not attempt.over:
            attempt.over = True
            self.in_flight -= 1
            attempt.call.caller.answered(attempt, False)

    def cancel(self, attempt: Attempt) -> None:
        """The caller gave it up: it leaves the queue, or its worker."""
        attempt.over = True
        self.in_flight -= 1
        if attempt.began >= 0.0:
            self.busy -= 1
            self._next()

    def report(self, member: Member[Server]) -> None:
        """Tell one caller our load. Nothing is on its way here, so what it has in flight is what we have of it."""
        now, latency, wait = self.world.now, self.latency, self.queue_wait.value
        known = latency.value if now - latency.when <= MEMORY else None
        member.report(
            [
                self.in_flight,
                member.in_flight,
                None if known is None else int(known * 1e6),
                0 if wait is None else int(wait * 1e6),
                0,
                0,
            ],
            now,
        )


class Caller:
    """The calling half of a node."""

    def __init__(self, world: World, policy: Policy, outcome: Callable[[Call, bool], None]) -> None:
        """outcome: told of each call that ended, and whether with an answer."""
        self.world = world
        self.policy = policy
        self._learn = getattr(policy, "learn", None)
        self.members: Members[Server] = Members(lambda member, before: None, world.random("jitter").random)
        self.timeout = 0.0  # 0: none
        self.hedge_after = 0.0  # 0: never
        self.report_every = REPORT_EVERY
        self.heartbeat = HEARTBEAT
        self.attempts = 0
        self._outcome = outcome
        self._reported: dict[Member[Server], float] = {}

    def meet(self, server: Server) -> None:
        """A link to it opens. The first report comes with its first heartbeat or answer."""
        member = self.members.add(server.hello.id, server.hello.name, (), self.world.now)
        self.members.met(member, server.hello, server, self.world.now)
        self._reported[member] = self.world.now

    def start(self, phase: float) -> None:
        """Begin to tick, as the hub does."""
        self.world.at(self.world.now + phase, self._tick)

    def _tick(self, _: None) -> None:
        now = self.world.now
        for member, last in self._reported.items():
            if now - last >= (self.heartbeat if member.in_flight else 4.0 * self.heartbeat):
                self._reported[member] = now
                member.link.report(member)  # type: ignore[union-attr]
        self.members.tick(now)
        self.world.at(now + self.heartbeat, self._tick)

    def call(self, work: float) -> None:
        """Make a call."""
        world = self.world
        call = Call(self, world.now, work)
        if self.timeout:
            world.at(world.now + self.timeout, self._expired, call)
        if self.hedge_after:
            world.at(world.now + self.hedge_after, self._hedge, call)
        candidates = self.members.candidates(SERVICE, 1)
        member = candidates[self.policy.choose(candidates, METHOD, world.now) if len(candidates) > 1 else 0]
        self._attempt(call, member)

    def _attempt(self, call: Call, member: Member[Server]) -> None:
        attempt = Attempt(call, member, self.world.now)
        call.attempts.append(attempt)
        call.tries += 1
        self.attempts += 1
        member.in_flight += 1
        member.called_at = attempt.started
        member.link.take(attempt)  # type: ignore[union-attr]

    def answered(self, attempt: Attempt, well: bool) -> None:
        """An answer came, or an error that says that the call ran."""
        call, member = attempt.call, attempt.member
        now = self.world.now
        member.in_flight -= 1
        if now - self._reported[member] >= self.report_every:
            self._reported[member] = now
            member.link.report(member)  # type: ignore[union-attr]
        if well:
            self._took(member, attempt.started)
        call.attempts.remove(attempt)
        self._settle(call, well)

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
            self._settle(call, False)

    def _hedge(self, call: Call) -> None:
        if call.done or len(call.attempts) != 1:
            return
        tried = call.attempts[0].member
        others = [member for member in self.members.candidates(SERVICE, 1) if member is not tried]
        if others:
            self._attempt(call, others[self.policy.choose(others, METHOD, self.world.now) if len(others) > 1 else 0])
