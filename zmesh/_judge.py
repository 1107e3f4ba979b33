"""What calls tell of the peers that they went to, and who of those may take the next one: the rules are those of
`_core.health`, `_core.budget` and `_core.admission`. Nothing here is called for a call that just succeeds."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from ._core.admission import DEFAULT_PRIORITY, LOTS, rank_of
from ._core.budget import Budget, Latencies, percentile_of
from ._core.health import PROBE_PATIENCE, Outcome, outcome_of
from ._core.health import State as Wellness
from ._core.members import Member, Members, offers
from ._core.messages import Message
from ._core.peer import State
from ._link import Attempt, Link
from .errors import Code, ResourceExhausted, RpcError

if TYPE_CHECKING:
    from ._client import Outgoing

__all__ = ["Judge"]

_log = logging.getLogger("zmesh.client")

_LEAST_DELAY: Final = 0.001  # seconds that a hedge by percentile waits at least (Finagle's BackupRequestFilter too)

_LEVEL_LASTS: Final = 0.25  # seconds, that what a refusal tells is believed: the next one tells again
_LATE: Final = 0.125  # seconds behind a deadline, from which on it was this process that was late: half a heartbeat


class Judge:
    """See the module."""

    def __init__(self, members: Members[Link], random: random.Random, time: Callable[[], float]) -> None:
        self._members = members
        self._random = random
        self._time = time
        self._budgets: dict[str, Budget] = {}
        self._latencies: dict[str, Latencies] = {}  # by path, of calls that are hedged by a percentile
        self._counts: dict[str, Counter[str]] = {}  # by path: retries, hedges, ..., and errors by code
        self.stood_still = 0.0  # when this process last did: what was late then was not a peer's fault

    def budget(self, service: str) -> Budget:
        """Of all calls of a service from this node."""
        budget = self._budgets.get(service)
        if budget is None:
            budget = self._budgets[service] = Budget(self._time())
        return budget

    def count(self, path: str, what: str) -> None:
        """One more of something that is rare, for `Node.stats`."""
        self._counts.setdefault(path, Counter())[what] += 1

    def stats(self) -> dict[str, Any]:
        """See `Node.stats`."""
        now = self._time()
        peers = {
            member.id.hex(): {
                "name": member.name,
                "state": member.state.value,
                "health": member.health.state.value,
                "in_flight": member.in_flight,
                "answered": member.health.successes,
                **dataclasses.asdict(member.counts),
                "last_ejection": member.health.why,
                "latency": member.latencies(),
            }
            for member in self._members
        }
        services = {
            service: {
                "calls": budget.calls,
                "retries_left": math.floor(budget.left(now)),
                "hedges_left": math.floor(budget.hedges_left(now)),
            }
            for service, budget in self._budgets.items()
        }
        return {
            "peers": peers,
            "services": services,
            "methods": {path: dict(each) for path, each in self._counts.items()},
        }

    def rank(self, priority: int) -> int:
        """Of a call that nothing came before: its lot is drawn here."""
        return rank_of(priority, self._random.getrandbits(7))

    # -- what calls tell

    def failed_answer(self, attempt: Attempt, error: RpcError, now: float) -> None:
        """A peer answered with an error."""
        record = attempt.call._record
        if record is not None:
            record.answered(attempt, error, now)
        member, outcome = attempt.member, outcome_of(error.code, error.may_have_run)
        if outcome is Outcome.FAILURE:
            if error.code is Code.DEADLINE_EXCEEDED:
                self.expired(attempt, now)
            else:
                self._failed(member, f"it answered {error.code.name}", attempt.started, now)
        elif outcome is Outcome.REFUSED:
            if self._members.refused(member, attempt.started, now):
                self._log(member, now)
        elif outcome is Outcome.RAISED:
            self._members.raised(member, now)
        elif outcome is Outcome.SUCCESS:
            member.health.successes += 1
            if member.health.troubled:
                self._members.succeeded(member, attempt.started, now)

    def told(self, attempt: Attempt, fields: object, now: float) -> None:
        """What a refusal says besides: from which rank on calls of the method are taken."""
        level = fields.get("level") if isinstance(fields, dict) else None
        if type(level) is int and level > 0:
            self._members.sheds(attempt.member, attempt.call.target.path, level, now + _LEVEL_LASTS)

    def expired(self, attempt: Attempt, now: float) -> None:
        """The deadline of a call passed while a peer had it. One that was shorter than calls take there anyway, or that
        passed while this process stood still, tells nothing of the peer."""
        member, deadline = attempt.member, attempt.call.deadline
        had = min(deadline, now) - attempt.started
        known = member.latency(attempt.call.target.path)
        ours = attempt.started <= self.stood_still or now - deadline > _LATE
        if not ours and (known is None or had >= known):
            self._failed(member, f"no answer in {had:.3g} s", attempt.started, now)

    def link_lost(self, attempts: Sequence[Attempt], now: float) -> None:
        """A link ended with calls open: one failure, whatever their number."""
        started = max(attempt.started for attempt in attempts)
        self._failed(attempts[0].member, f"its link was lost with {len(attempts)} calls open", started, now)

    def _failed(self, member: Member[Link], why: str, started: float, now: float) -> None:
        if self._members.failed(member, why, started, now):
            self._log(member, now)

    def _log(self, member: Member[Link], now: float) -> None:
        health = member.health
        _log.info("%s gets no calls for %.2f s: %s", member.name, health.until - now, health.why)

    # -- who may take one

    def with_care(
        self, call: Outgoing, candidates: Sequence[Member[Link]], now: float
    ) -> Sequence[Member[Link]] | ResourceExhausted:
        """Where somebody is due for a probe, or sheds load: who of the candidates may take this call; an error where
        all would refuse it."""
        member = self.due(call, now)
        if member is not None:
            self._members.probe(member, now)
            return [member]
        return self.taking(call, candidates, now)

    def due(self, call: Outgoing, now: float) -> Member[Link] | None:
        """Whose probe this call is to be, if anybody's."""
        if call.selection is None:
            for member in self._members.odd:
                if member.health.state is Wellness.DUE and self._may_probe(call, member, now):
                    return member
        return None

    def taking(
        self, call: Outgoing, candidates: Sequence[Member[Link]], now: float
    ) -> Sequence[Member[Link]] | ResourceExhausted:
        """Who of the candidates takes calls of this rank; an error where nobody does."""
        return self._taking(call, candidates, now) or self._held_back(call, candidates)

    def hopeless(self, call: Outgoing, candidates: Sequence[Member[Link]], now: float) -> RpcError | None:
        """The error of a call that was refused, and that everybody would refuse."""
        if not self._members.odd or self._taking(call, candidates, now):
            return None
        return self._held_back(call, candidates)

    def _taking(self, call: Outgoing, candidates: Sequence[Member[Link]], now: float) -> Sequence[Member[Link]]:
        """Who of the candidates takes calls of this rank, as far as they told."""
        levels = [member.level(call.target.path, now) for member in candidates]
        highest = max(levels, default=0)
        if not highest:
            return candidates
        if call.rank is None:
            call.rank, call.marked = self.rank(DEFAULT_PRIORITY), True
        rank = call.rank
        if rank >= highest:
            return candidates
        return [member for member, level in zip(candidates, levels, strict=True) if rank >= level]

    @staticmethod
    def _held_back(call: Outgoing, candidates: Sequence[Member[Link]]) -> ResourceExhausted:
        many, priority = len(candidates), (call.rank or 0) // LOTS
        who = f"all {many} nodes that could take it are" if many > 1 else f"{candidates[0].name!r} is"
        text = f"{call.target.path} was held back here: {who} overloaded; of priority {priority} only a part is taken"
        return ResourceExhausted(text, may_have_run=call.may_have_run)

    @staticmethod
    def _may_probe(call: Outgoing, member: Member[Link], now: float) -> bool:
        """A probe may fail: better the call of an idempotent method, which is then tried elsewhere. Of a peer that is
        silent it would tell nothing."""
        target, link = call.target, member.link
        if member.state is not State.ALIVE or link is None or not link.usable:
            return False
        if member.id in call.avoid or member.hello is None:
            return False
        if not target.idempotent and now - member.health.since < PROBE_PATIENCE:
            return False
        return offers(member.hello, target.service, target.major)

    # -- hedges

    def hedge_delay(self, call: Outgoing, percentile: str, now: float) -> float | None:
        """Seconds after which a call is to be hedged, by how long others took; None while that is not known. This one
        is measured, too: if a hedge answers it, what it took until then is the least that it takes."""
        path = call.target.path
        latencies = self._latencies.get(path)
        if latencies is None:
            latencies = self._latencies[path] = Latencies()
        assert isinstance(call.future, asyncio.Future)
        call.future.add_done_callback(partial(self._took, latencies, now))
        delay = latencies.percentile(percentile_of(percentile))
        return None if delay is None else max(delay, _LEAST_DELAY)

    def _took(self, latencies: Latencies, began: float, future: asyncio.Future[Message]) -> None:
        latencies.add(self._time() - began)
