"""What the calling half of a node does with its peers, seen from outside and held against the rules: who may be chosen,
who may wait, what ejects, and how many attempts a budget allows. The counts here are kept apart from those that the
rules go by."""

from __future__ import annotations

import asyncio
import functools
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any, Final

from zmesh._core.budget import Budget
from zmesh._core.health import ENOUGH, IN_A_ROW, PANIC, REQUIRED, WINDOW
from zmesh._core.health import State as Wellness
from zmesh._core.peer import State
from zmesh._core.selection import Sticky
from zmesh.testing import Host

from .ledger import Ledger

STEP: Final = 0.5  # seconds: budgets fill twice a second
OVERDUE: Final = (
    2.0  # seconds that a peer whose pause is over may wait for its probe, where calls are made all the time
)


@dataclass
class Answers:
    """What one peer answered to one caller since it was last judged."""

    in_a_row: int = 0
    successes: deque[float] = field(default_factory=deque)
    failures: deque[float] = field(default_factory=deque)

    def reasons(self, now: float) -> tuple[bool, bool]:
        """Whether it must be ejected for failures in a row, and whether it may be for their share."""
        for times in (self.successes, self.failures):
            while times and times[0] < now - WINDOW - 1.0:
                times.popleft()
        answers = len(self.successes) + len(self.failures)
        return self.in_a_row >= IN_A_ROW, answers >= ENOUGH and len(self.successes) <= REQUIRED * answers


class Watch:
    """Of one incarnation of a host. Replaces methods of its `Client` and its `Members` by ones that look first."""

    def __init__(self, ledger: Ledger, host: Host) -> None:
        self._ledger = ledger
        self._place = ledger.places[host.name]
        self._hub: Any = host.node._hub
        self._client: Any = self._hub.client
        self._members: Any = self._hub.members
        self._began = ledger.now()
        self._answers: dict[Any, Answers] = {}
        self.counts = Counter[str]()
        self.chosen: list[tuple[Any, Any]] = []  # calls and the peers of their first attempts, in order
        for target, name, see in (
            (self._client, "begin", self._see_begin),
            (self._client, "_attempt", self._see_attempt),
            (self._client, "_second", self._see_second),
            (self._client, "_park", self._see_park),
            (self._hub, "reply_received", self._see_reply),
            (self._client, "replied", self._see_reply),  # as one of several
            (self._client, "_answered", self._see_answers),
            (self._members, "failed", self._see_failed),
            (self._hub, "link_silent", self._see_silent),
        ):
            setattr(target, name, functools.partial(see, getattr(target, name)))

    def complain(self, what: str, about: object) -> None:
        self._ledger.complain(what, f"{about} at {self._place}, {self._ledger.now():.3f}")

    # -- what is seen

    def _see_begin(self, inner: Any, call: Any, timeout: float) -> Any:
        self.counts["calls"] += 1
        before = self.counts["attempts"]
        bucket = inner(call, timeout)
        if call.tries and self.counts["attempts"] == before:  # it joined the one before it
            (attempt,) = call.attempts
            self._judge_choice(call, attempt.member, attempt.started)
            self.counts["attempts"] += 1
            self.chosen.append((call, attempt.member))
        return bucket

    def _see_second(self, inner: Any, call: Any, *, hedge: bool) -> None:
        before = call.tries
        inner(call, hedge=hedge)
        if call.tries > before:
            self.counts["hedges" if hedge else "second attempts"] += 1

    def _see_attempt(self, inner: Any, call: Any, member: Any, link: Any, now: float) -> None:
        self._judge_choice(call, member, now)
        if any(attempt.member is member for attempt in call.attempts):
            self.complain("has two attempts at one peer", f"{call.target.path} at {member.name}")
        before = call.tries
        inner(call, member, link, now)
        if call.tries > before:
            self.counts["attempts"] += 1
            if not before:
                self.chosen.append((call, member))

    def _see_park(self, inner: Any, call: Any) -> None:
        if call.selection is None and not call.avoid and not call.owes:
            able = [each.name for each in self._standing(call.target.service) if each.link.usable]
            if able:
                self.complain(f"lets a call wait though {able} could take it", call.target.path)
        inner(call)

    def _see_reply(self, inner: Any, link: Any, attempt: Any, message: Any, now: float) -> None:
        before = attempt.member.health.successes
        inner(link, attempt, message, now)
        if attempt.member.health.successes > before:
            answers = self._answers.setdefault(attempt.member, Answers())
            answers.in_a_row = 0
            answers.successes.append(now)
            if attempt.member.health.state is Wellness.HEALTHY and attempt.member.health.since == now:
                self._answers[attempt.member] = Answers()  # it came back

    def _see_answers(self, inner: Any, member: Any, target: Any, calls: int, starts: float, now: float) -> None:
        inner(member, target, calls, starts, now)
        answers = self._answers.setdefault(member, Answers())
        answers.in_a_row = 0
        answers.successes.extend([now] * calls)

    def _see_failed(self, inner: Any, member: Any, why: str, started: float, now: float) -> bool:
        health = member.health
        counts, was = started >= health.since, health.state
        answers = self._answers.setdefault(member, Answers())
        if counts:
            answers.in_a_row += 1
            answers.failures.append(now)
        changed: bool = inner(member, why, started, now)
        must, may = answers.reasons(now)
        if was is Wellness.HEALTHY and counts:
            if health.state is Wellness.EJECTED and not must and not may:
                self.complain(f"ejected {member.name} after {answers.in_a_row} failures in a row", health.why)
            elif health.state is Wellness.HEALTHY and must:
                self.complain(f"did not eject {member.name} after {answers.in_a_row} failures in a row", why)
        return changed

    def _see_silent(self, inner: Any, link: Any) -> None:
        quiet = asyncio.get_running_loop().time() - link._heard
        if quiet < self._hub.config.suspect_after:
            self.complain(f"suspects a peer that it heard of {quiet:.3f} s ago", link.remote.name)
        inner(link)

    # -- what must be true

    def _judge_choice(self, call: Any, member: Any, now: float) -> None:
        """Nobody silent or ejected is called, but for a probe, in a panic, or by name."""
        if call.selection is not None and not isinstance(call.selection, Sticky):
            return
        health = member.health
        if member.state is State.ALIVE and health.state is Wellness.HEALTHY:
            return
        if member.state is State.ALIVE and health.state is Wellness.PROBING and health.since == now:
            self.counts["probes"] += 1
            return
        target = call.target
        standing = self._standing(target.service)
        well = sum(each.state is State.ALIVE and each.health.state is Wellness.HEALTHY for each in standing)
        if PANIC * len(standing) > well:
            self.counts["in panic"] += 1
            return
        what = f"{target.path}: {member.name} is {member.state.value} and {health.state.value}"
        self.complain(f"called one that it should spare, with {well} of {len(standing)} well", what)

    def _standing(self, service: str) -> list[Any]:
        """Who has a link and offers the service, well or not."""
        return [
            each
            for each in self._members._peers.values()
            if each.link is not None
            and each.state in (State.ALIVE, State.SUSPECT)
            and each.hello is not None
            and any(offer.name == service for offer in each.hello.services)
        ]

    def judge_budgets(self, *, retries: bool) -> None:
        """Attempts are bounded by the budgets. retries: whether each one was for a refusal, which has to be paid."""
        seconds, counts = self._ledger.now() - self._began + STEP, self.counts
        hedges = _allowed(Budget.HEDGES, Budget.LEAST_HEDGES, counts["calls"], seconds)
        if counts["hedges"] > hedges:
            self.complain(f"made {counts['hedges']} hedges in {counts['calls']} calls, at most {hedges:.0f}", "budget")
        paid = counts["attempts"] - counts["calls"] - counts["hedges"] - counts["second attempts"]
        allowed = _allowed(Budget.RETRIES, Budget.LEAST_RETRIES, counts["calls"], seconds)
        if retries and paid > allowed:
            self.complain(f"made {paid} retries in {counts['calls']} calls, at most {allowed:.0f}", "budget")

    def judge_calm(self) -> None:
        """Nothing happened to anybody: nothing was tried again, and nobody has a bad name."""
        extra = self.counts["attempts"] - self.counts["calls"] - self.counts["hedges"]
        if extra:
            self.complain(f"made {extra} attempts too many though all was calm", dict(self.counts))
        for member in self._members:
            if member.counts.ejections or member.state is not State.ALIVE:
                self.complain(f"has {member.name} as {member.state.value} though all was calm", member.health.why)

    async def judge_recovery(self) -> None:
        """Whose pause is over gets its probe, where calls are made all the time; a pause ends. Runs in the process."""
        now = asyncio.get_running_loop().time()
        for member in self._members:
            health = member.health
            if health.state is Wellness.DUE and now - health.since > OVERDUE:
                self.complain(f"has not probed {member.name} for {now - health.since:.1f} s", health.why)
            elif health.state in (Wellness.EJECTED, Wellness.PROBING) and now - health.until > STEP:
                self.complain(f"{member.name} is {health.state.value} after its time", health.why)


def _allowed(share: float, floor: float, calls: int, seconds: float) -> float:
    """At the most: what time gives, with ten seconds of it at once in the beginning; or the share of the calls, where
    in some steps time gave more."""
    return max(floor * (Budget.WINDOW + seconds), share * calls + floor * seconds) + 1.0
