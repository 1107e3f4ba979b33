"""The callers of the laboratory. What a caller does here is what `zmesh._client` and `zmesh._judge` do there: count its
calls in flight, let the policy choose, observe what calls take, take in the reports that come with the answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from zmesh._core.admission import DEFAULT_PRIORITY, LOTS, rank_of
from zmesh._core.budget import Budget
from zmesh._core.health import Outcome, outcome_of
from zmesh._core.health import State as Wellness
from zmesh._core.members import Member, Members
from zmesh._core.peer import Event
from zmesh._core.policies import Policy
from zmesh.errors import Code

from .server import Server
from .world import METHOD, SERVICE, Attempt, Call, World

__all__ = ["Caller"]

HEARTBEAT: Final = 0.25  # Config.heartbeat
REPORT_EVERY: Final = 0.005  # a link's reports are at least so far apart (zmesh._link)


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
        self.first_rank: Callable[[], int] = self.rank
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

    def rank(self, priority: int = DEFAULT_PRIORITY) -> int:
        """Of a call that nothing came before."""
        return rank_of(priority, int(self._lots.random() * LOTS))

    def call(self, work: float, rank: int | None = None) -> Call:
        """Make a call. rank: of the call that it follows, None where it is the first."""
        world = self.world
        call = Call(self, world.now, work, self.first_rank() if rank is None else rank)
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
                return call
        member = candidates[self.policy.choose(candidates, METHOD, world.now) if len(candidates) > 1 else 0]
        self._attempt(call, member)
        return call

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
