"""What is noted of a call that is to be explained, and where a call would go that is not made.

A call that nobody wants to explain has no `Record`, which costs it one look at an attribute for each attempt.
"""

from __future__ import annotations

import asyncio
import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, overload

from ._core.balance import POLICIES
from ._core.health import State as Wellness
from ._core.members import Member, Members
from ._core.peer import State
from ._core.policies import Policy
from ._core.selection import Sticky
from ._link import Attempt, Link
from ._platform import clock_of
from ._reasons import facts_of, name_of, overloaded, why_not
from .errors import DeadlineExceeded, RpcError
from .explanation import Attempt as AttemptTold
from .explanation import Candidate, Choice, Explanation, Kind, Outcome

if TYPE_CHECKING:
    from ._client import Client, Outgoing

__all__ = ["Record", "foresee"]

_MOST: Final = 50  # choices and attempts that are kept: a call that waits for long may look for a node very often


class _Watched(Sequence[Member[Link]]):
    """Candidates that notice which of them a policy looks at."""

    def __init__(self, members: Sequence[Member[Link]]) -> None:
        self._members = members
        self.seen: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._members)

    @overload
    def __getitem__(self, index: int) -> Member[Link]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Member[Link]]: ...
    def __getitem__(self, index: int | slice) -> Member[Link] | Sequence[Member[Link]]:
        found = self._members[index]
        self.seen.update(each.id for each in (found if isinstance(found, Sequence) else (found,)))
        return found

    def __iter__(self) -> Iterator[Member[Link]]:
        for member in self._members:
            self.seen.add(member.id)
            yield member


@dataclass(slots=True)
class _Look:
    """One time that a node is looked for: how all stood just before the choice."""

    kind: Kind
    when: float
    members: Mapping[bytes, Member[Link]]
    facts: dict[bytes, dict[str, Any]]  # what a `Candidate` says, by id
    levels: dict[bytes, int]  # from which rank on each takes calls
    panic: bool
    shown: _Watched | None = None
    chosen: bytes | None = None
    why: str = ""

    @property
    def eligible(self) -> list[bytes]:
        return [id for id, facts in self.facts.items() if not facts["why_not"]]

    def told(self, began: float) -> Choice:
        """As the user gets it: those first who could take the call, the cheap before the dear."""
        seen = self.shown.seen if self.shown is not None else ()

        def order(candidate: Candidate) -> tuple[bool, bool, float, str]:
            cost = math.inf if candidate.cost is None else candidate.cost
            return (not candidate.chosen, bool(candidate.why_not), cost, candidate.name)

        candidates = [
            Candidate(**facts, id=id.hex(), looked_at=id in seen, chosen=id == self.chosen)
            for id, facts in self.facts.items()
        ]
        name = None if self.chosen is None else self.facts[self.chosen]["name"]
        id = None if self.chosen is None else self.chosen.hex()
        return Choice(self.kind, self.when - began, name, id, self.why, tuple(sorted(candidates, key=order)))


@dataclass(slots=True)
class _Sent:
    """An attempt, and what became of it."""

    kind: Kind
    attempt: Attempt
    outcome: Outcome = "under way"
    ended: float | None = None
    error: str = ""

    def end(self, outcome: Outcome, now: float, error: str = "") -> None:
        if self.ended is None:
            self.outcome, self.ended, self.error = outcome, now, error

    def told(self, began: float) -> AttemptTold:
        """As the user gets it."""
        member, started = self.attempt.member, self.attempt.started
        seconds = None if self.ended is None else self.ended - started
        return AttemptTold(self.kind, member.name, member.id.hex(), started - began, self.outcome, seconds, self.error)


@dataclass(slots=True, eq=False)
class Record:
    """See the module. `looks`, then `shows` and `went`, at each choice; the rest as it happens."""

    call: Outgoing
    policy: Policy
    made: bool = True
    began: float | None = None
    error: str = ""
    left: tuple[int, int] | None = None  # retries and hedges, when the call was over
    _looks: list[_Look] = field(default_factory=list)
    _sent: list[_Sent] = field(default_factory=list)

    # -- a choice

    def looks(
        self, members: Members[Link], candidates: Sequence[Member[Link]], now: float, kind: Kind | None = None
    ) -> None:
        """A node is looked for, among these candidates."""
        call, target = self.call, self.call.target
        if self.began is None:
            self.began = now
            if self.made:
                assert isinstance(call.future, asyncio.Future)  # as it is `watched`
                call.future.add_done_callback(self._finished)
        everybody = {member.id: member for member in [*members.offering(target.service), *candidates]}
        may, selectable = set(candidates), set(members.candidates(target.service, target.major))
        tried = {sent.attempt.member for sent in self._sent}
        facts = {}
        for id, member in everybody.items():
            why = why_not(call, member, candidates=may, selectable=selectable, tried=tried, now=now)
            facts[id] = facts_of(member, target.path, self.policy, why, now)
        panic = call.selection is None and any(m.state is not State.ALIVE or not m.health.good for m in candidates)
        if kind is None:
            kind = "retry" if self._sent else "first"
        levels = {id: member.level(target.path, now) for id, member in everybody.items()}
        self._add(_Look(kind, now, everybody, facts, levels, panic))

    def _add(self, look: _Look) -> None:
        """Of many looks in vain, one after the other, the first and the last are kept."""
        if len(self._looks) >= _MOST or [each.chosen for each in self._looks[-2:]] == [None, None]:
            del self._looks[-1]
        self._looks.append(look)

    def shows(self, candidates: Sequence[Member[Link]]) -> Sequence[Member[Link]]:
        """The candidates, for the policy to look at."""
        look = self._looks[-1]
        self._sheds(look)
        look.shown = _Watched(candidates)
        return look.shown

    def _sheds(self, look: _Look) -> None:
        """Who took no calls of this rank, which is known where it mattered."""
        rank = self.call.rank
        for id in look.eligible if rank is not None else ():
            if look.levels[id] > rank:  # type: ignore[operator]
                look.facts[id]["why_not"] = overloaded(look.levels[id], rank)  # type: ignore[arg-type]
                look.facts[id]["cost"] = None

    def went(self) -> None:
        """What came of the choice: an attempt, or none."""
        attempts = self.call.attempts
        known = [sent.attempt for sent in self._sent]
        attempt = next((each for each in attempts if each not in known), None)
        if attempt is not None:
            look = self._looks[-1]
            self.chose(attempt.member)
            if len(self._sent) < _MOST:
                self._sent.append(_Sent(look.kind, attempt))

    def chose(self, member: Member[Link]) -> None:
        """The member that the last look ended with."""
        look = self._looks[-1]
        look.chosen, facts = member.id, look.facts[member.id]
        look.why = self._reason(look, facts)
        if facts["health"] == Wellness.DUE.value:
            facts["why_not"] = ""

    def _reason(self, look: _Look, facts: dict[str, Any]) -> str:
        eligible, selection = look.eligible, self.call.selection
        name = name_of(self.policy)
        if facts["health"] == Wellness.DUE.value and selection is None and not look.panic:
            return f"its probe: it was ejected, and its pause is over ({look.members[look.chosen or b''].health.why})"
        if len(eligible) == 1:
            if selection is None:
                why = "the only one that can take it"
            else:
                why = "where its key belongs" if isinstance(selection, Sticky) else "the one that was asked for"
        else:
            seen = [id for id in eligible if look.shown is not None and id in look.shown.seen]
            costs = {id: look.facts[id]["cost"] for id in seen if look.facts[id]["cost"] is not None}
            if look.chosen in costs and costs[look.chosen] <= min(costs.values()) * (1 + 1e-9):
                count = f"all {len(eligible)}" if len(seen) == len(eligible) else f"the {len(seen)} looked at"
                even = sum(cost <= costs[look.chosen] * (1 + 1e-9) for cost in costs.values()) > 1
                why = f"the least cost of {count}" + (", by lot among equals" if even else "")
            else:
                why = f"chosen by {name} among {len(eligible)}"
        return why + ("; so few are well that all are believed in" if look.panic else "")

    def nobody(self, why: str) -> None:
        """Nobody was chosen at the last look."""
        look = self._looks[-1]
        if look.chosen is None and not look.why:
            self._sheds(look)
            look.why = why

    def waits(self, now: float) -> None:
        """The call waits for somebody who takes it."""
        call = self.call
        why = "nobody can take it now: it waits"
        if call.owes:
            why = "the budget has no retry left: it waits for one"
            self._add(_Look("retry", now, {}, {}, {}, False))
        elif call.avoid:
            why = "all who could take it refused, or were lost with it: it waits, and tries them again"
        self.nobody(why)

    # -- what becomes of attempts

    def answered(self, attempt: Attempt, error: RpcError, now: float) -> None:
        """An attempt was answered with an error."""
        self._end(attempt, "failed" if error.may_have_run else "refused", now, str(error))

    def lost(self, attempt: Attempt, now: float) -> None:
        """An attempt ended with its link, where it was not refused."""
        self._end(attempt, "lost", now)

    def _end(self, attempt: Attempt, outcome: Outcome, now: float, error: str = "") -> None:
        for sent in self._sent:
            if sent.attempt == attempt:
                sent.end(outcome, now, error)

    def _finished(self, future: Any) -> None:
        if self.left is not None:
            return
        call = self.call
        now = clock_of(call.client.loop)()
        error = None if future.cancelled() else future.exception()
        if error is not None:
            self.error = str(error)
        late = "by the deadline" if isinstance(error, DeadlineExceeded) else ""
        for sent in self._sent:
            won = error is None and not future.cancelled() and call.link is sent.attempt.link
            sent.end("answered" if won else "given up", now, "" if won else late and f"no answer {late}")
        self.left = self._budget(now)

    def _budget(self, now: float) -> tuple[int, int]:
        budget = self.call.target.budget
        return math.floor(budget.left(now)), math.floor(budget.hedges_left(now))

    # -- for the user

    def explanation(self) -> Explanation:
        """What is known until now."""
        began, deadline = self.began, getattr(self.call, "deadline", math.inf)
        if self.made and began is not None and self.call.future.done():
            self._finished(self.call.future)  # whose callbacks come in the next turn of the loop
        now = clock_of(self.call.client.loop)()
        retries, hedges = self.left if self.left is not None else self._budget(now)
        for look in self._looks:
            if look.chosen is None and not look.why:
                self._sheds(look)
                look.why = self._vain(look)
        return Explanation(
            method=self.call.target.path,
            policy=name_of(self.policy),
            made=self.made,
            choices=tuple(look.told(began or 0.0) for look in self._looks),
            attempts=tuple(sent.told(began or 0.0) for sent in self._sent),
            timeout=deadline - began if began is not None and math.isfinite(deadline) else None,
            error=self.error,
            retries_left=retries,
            hedges_left=hedges,
        )

    def _vain(self, look: _Look) -> str:
        if look.kind in ("second", "hedge"):
            return "nobody else can take it"
        return self.error or "there is no time left"


def foresee(client: Client, call: Outgoing) -> Explanation:
    """Where a call would go now, as `Client._start` would choose; nothing is sent, and nothing learns of it."""
    members, judge, now = client._members, client.judge, clock_of(client.loop)()
    own = type(client._policy) in POLICIES.values()
    # A copy is asked, so that a turn is not lost. Of a user's own policy nobody knows what a copy would do.
    policy = copy.deepcopy(client._policy) if own else client._policy
    record = Record(call, policy, made=False)
    candidates = client._candidates(call)
    record.looks(members, candidates, now)
    if not candidates:
        record.nobody(f"{client._nobody(call)} and can take it: {client._describe(call.target.service)}")
        return record.explanation()
    if members.odd:
        due = judge.due(call, now)
        careful = [due] if due is not None else judge.taking(call, candidates, now)
        if isinstance(careful, RpcError):
            record.nobody(careful.message)
            return record.explanation()
        candidates = careful
    usable = [each for each in candidates if each.link is not None and each.link.usable]
    if not usable:
        record.nobody("no link takes calls now: it would wait")
        return record.explanation()
    shown = record.shows(usable)
    record.chose(usable[policy.choose(shown, call.target.path, now) if len(usable) > 1 else 0])
    return record.explanation()
