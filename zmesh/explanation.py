"""Why a call went where it went: what `zmesh.explain` tells of a call, and `Node.explain` of one that is not made.

    call = node.client(Greeter).options(explain=True).say_hello("World")
    await call
    print(zmesh.explain(call))

On the command line: `zmesh why Greeter.say_hello`. docs/balancing.md tells how to read it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from ._call import Call, Stream

__all__ = ["Attempt", "Candidate", "Choice", "Explanation", "Kind", "Outcome", "explain"]

Kind = Literal["first", "retry", "second", "hedge"]
"""What an attempt is for: `second`, because the peer that has the call fell silent; `hedge`, because it takes long."""

Outcome = Literal["answered", "failed", "refused", "lost", "given up", "under way"]
"""`failed`: its answer was an error. `refused`: the handler did not run. `lost`: its link was."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One node that offers the service, as the caller knew it when it chose.

    id: its incarnation, in hex. state, health: see docs/architecture.md.
    in_flight: the caller's own calls there. others: calls that others have there, by its last report.
    report_age: seconds since that report; None before the first.
    latency: seconds that a call of the method takes there, by what the caller saw, else by the report; None while
        nothing is known.
    weight: for balancing. level: the priority from which on it takes calls; 0: all.
    cost: what the policy compares, less is better; None where it has no such number, or this one was not to be had.
    looked_at: whether the policy looked at it; with many nodes it looks at some.
    chosen: whether the attempt went there.
    why_not: why it could not take the call, in words; empty where it could.
    """

    name: str
    id: str
    state: str
    health: str
    in_flight: int
    others: int
    report_age: float | None
    latency: float | None
    weight: float
    level: int
    cost: float | None
    looked_at: bool
    chosen: bool
    why_not: str


@dataclass(frozen=True, slots=True)
class Choice:
    """One time that a node was looked for.

    kind: for what. at: seconds since the call began. node, id: who was chosen; None where nobody could be.
    why: in words. candidates: all who offer the service, those first who could take the call.
    """

    kind: Kind
    at: float
    node: str | None
    id: str | None
    why: str
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at the call, on one node.

    at: seconds since the call began. seconds: how long it took; None while it is under way.
    error: what the node answered where that was an error; empty otherwise.
    """

    kind: Kind
    node: str
    id: str
    at: float
    outcome: Outcome
    seconds: float | None
    error: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a call went where it went, or where it would go now. `str()` is for people, `as_dict()` for programs.

    method: its path. policy: the balancing policy of the caller, by name. made: whether there is a call; else this
        tells where one would go now.
    choices: each time that a node was looked for, in order. attempts: what was sent.
    timeout: seconds that the call had; None: no limit. error: with what it failed; empty where it did not.
    retries_left, hedges_left: what the caller's budget for the service had at the end, or has now.
    """

    method: str
    policy: str
    made: bool
    choices: tuple[Choice, ...]
    attempts: tuple[Attempt, ...]
    timeout: float | None
    error: str
    retries_left: int
    hedges_left: int

    @property
    def choice(self) -> Choice | None:
        """The last choice: where the call went, or would go; None where nothing was looked for yet."""
        return self.choices[-1] if self.choices else None

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """The candidates of the last choice that had some."""
        return next((choice.candidates for choice in reversed(self.choices) if choice.candidates), ())

    @property
    def hedges(self) -> int:
        """How many of the attempts were hedges."""
        return sum(attempt.kind == "hedge" for attempt in self.attempts)

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain dicts, lists, strings and numbers."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        lines = [headline(self)]
        for choice in self.choices:
            lines.append("")
            if self.made:
                lines.append(sentence(choice))
            if choice.candidates:
                rows = [HEADINGS, *(row(candidate) for candidate in choice.candidates)]
                widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
                lines += ["  " + "  ".join(map(str.ljust, each, widths)).rstrip() for each in rows]
        if self.attempts:
            lines.append("")
            lines += map(told, self.attempts)
        lines += ["", budget(self)]
        return "\n".join(lines)


def explain(call: Call[Any] | Stream[Any]) -> Explanation:
    """Why a call went where it went: one that was made by a client with `options(explain=True)`, also while it is under
    way. Raises ValueError for any other: nothing was noted of it."""
    record = getattr(call, "_record", None)
    if record is None:
        raise ValueError(
            "nothing was noted of this call: make it by client.options(explain=True), and explain it once it has begun"
        )
    explanation: Explanation = record.explanation()
    return explanation


# -- as text, for `str` and the command line

HEADINGS: Final = (
    "", "NODE", "STATE", "IN FLIGHT", "OTHERS", "REPORT", "LATENCY", "WEIGHT", "COST", "LOOKED AT", "WHY NOT",
)  # fmt: skip
NUMBERS: Final = frozenset(HEADINGS[3:9])


def duration(seconds: float | None) -> str:
    """Seconds as people read them."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    return f"{seconds:.3g} s" if seconds >= 1.0 else f"{1000.0 * seconds:.3g} ms"


def row(candidate: Candidate) -> Sequence[str]:
    """A candidate, under the headings."""
    health = "" if candidate.health == "healthy" else f", {candidate.health}"
    return (
        "→" if candidate.chosen else "",
        candidate.name,
        candidate.state + health,
        str(candidate.in_flight),
        str(candidate.others),
        "-" if candidate.report_age is None else f"{duration(candidate.report_age)} old",
        duration(candidate.latency),
        f"{candidate.weight:.3g}",
        "-" if candidate.cost is None else f"{candidate.cost:.3g}",
        "yes" if candidate.looked_at else "-",
        candidate.why_not,
    )


def headline(explanation: Explanation) -> str:
    """What became of the call, or would."""
    method, attempts = explanation.method, explanation.attempts
    if not explanation.made:
        choice = explanation.choices[-1]
        return f"{method} would go to {choice.node or 'nobody'} now: {choice.why}"
    if explanation.error:
        return f"{method} failed: {explanation.error}"
    answered = next((attempt for attempt in attempts if attempt.outcome == "answered"), None)
    if answered is None:
        return f"{method}: {attempts[-1].outcome if attempts else 'nothing is sent yet'}"
    count = f"{len(attempts)} attempt{'s' if len(attempts) > 1 else ''}"
    taken = answered.at + (answered.seconds or 0.0)
    return f"{method} was answered by {answered.node} after {duration(taken)}, {count}"


def sentence(choice: Choice) -> str:
    """A choice without its candidates."""
    what = {"first": "first attempt", "second": "second attempt"}.get(choice.kind, choice.kind)
    return f"{what} at {duration(choice.at)}: {choice.node or 'nobody'}, {choice.why}"


def told(attempt: Attempt) -> str:
    """What became of an attempt."""
    took = "" if attempt.seconds is None else f" after {duration(attempt.seconds)}"
    error = f": {attempt.error}" if attempt.error else ""
    return f"{attempt.node}, {attempt.kind} at {duration(attempt.at)}: {attempt.outcome}{took}{error}"


def budget(explanation: Explanation) -> str:
    """The policy, and what the call could spend."""
    left = (
        f"{explanation.policy}; {explanation.retries_left} retries and {explanation.hedges_left} hedges in the budget"
    )
    if not explanation.made:
        return left
    return f"{left}; " + ("no deadline" if explanation.timeout is None else f"deadline {duration(explanation.timeout)}")
