"""What follows when an attempt ends without an answer: the one place that knows."""

from __future__ import annotations

import enum
import random

from .call import Verdict

__all__ = ["Action", "after", "backoff", "worth_another_node"]

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


def worth_another_node(code: int) -> bool:
    """Whether a call that was refused with this code, before it ran, may be taken by another node."""
    return code in _ELSEWHERE


def backoff(attempt: int, first: float, longest: float, random: random.Random) -> float:
    """The pause before attempt number `attempt` + 1: doubling, capped, times 0.8 to 1.2 (gRFC A6 uses that jitter)."""
    return float(min(first * 2.0 ** min(attempt, 30), longest) * random.uniform(0.8, 1.2))
