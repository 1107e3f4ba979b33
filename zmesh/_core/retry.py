"""What follows when an attempt ends without an answer: the one place that knows."""

from __future__ import annotations

import enum
import math
import random

from .call import Verdict

__all__ = ["Action", "Cost", "after", "backoff", "cost", "pushback", "worth_another_node"]

# A refusal with another code would be repeated by every node: the call itself is wrong, or too late.
_ELSEWHERE = frozenset((8, 12, 14))  # RESOURCE_EXHAUSTED, UNIMPLEMENTED (an older node), UNAVAILABLE


class Action(enum.Enum):
    """What the caller's side does next."""

    WAIT = "wait"  # another attempt is still out
    RETRY = "retry"
    MAYBE_EXECUTED = "maybe executed"


def after(verdict: Verdict, *, idempotent: bool, others_out: bool) -> Action:
    """The three kinds of failure: what never ran is tried again whatever the method, what is unknown if idempotent."""
    if others_out:
        return Action.WAIT
    if verdict is Verdict.RETRY or idempotent:
        return Action.RETRY
    return Action.MAYBE_EXECUTED


class Cost(enum.Enum):
    """What another attempt takes from the service's budget of retries (`_core.budget`)."""

    NOTHING = "nothing"
    CHARGED = "charged"  # one retry, whether there is one or not
    ASKED = "asked"  # one retry; without one there is no other attempt


def cost(verdict: Verdict, code: int | None) -> Cost:
    """Of the attempt that follows one that ended with `verdict`; `code`: with which it was refused, if it was.

    After a refusal for load another attempt is more load: that is what the budget is for. After a lost link it is not:
    each call in flight is tried once more, when the link is lost, and never again for that. What no server saw is free.
    """
    if verdict is Verdict.UNKNOWN:
        return Cost.CHARGED
    return Cost.ASKED if code == 8 else Cost.NOTHING  # RESOURCE_EXHAUSTED


def pushback(fields: object) -> float | None:
    """Seconds that a refusal asks to wait before another try, from its fields; None where it does not say, infinity
    where it asks for none at all (gRFC A6 has the same as a header, there a negative number)."""
    asked = fields.get("retry-after") if isinstance(fields, dict) else None
    if asked is False:
        return math.inf
    return asked / 1000 if type(asked) is int and asked >= 0 else None


def worth_another_node(code: int) -> bool:
    """Whether a call that was refused with this code, before it ran, may be taken by another node."""
    return code in _ELSEWHERE


def backoff(attempt: int, first: float, longest: float, random: random.Random) -> float:
    """The pause before attempt number `attempt` + 1: doubling, capped, times 0.8 to 1.2 (gRFC A6 uses that jitter)."""
    return float(min(first * 2.0 ** min(attempt, 30), longest) * random.uniform(0.8, 1.2))
