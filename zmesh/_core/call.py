"""The state of one attempt at a call, as a table, on the side that makes it. docs/architecture.md draws it from here.

What the table settles is the question that matters when a peer is lost: may the handler have run?
"""

from __future__ import annotations

import enum
from typing import Final

__all__ = ["TRANSITIONS", "Event", "State", "Verdict", "judge"]


class State(enum.Enum):
    """How far an attempt has come."""

    WAITING = "waiting"  # in our own outbox: it certainly has not run
    SENT = "sent"  # handed to the transport: unknown until the peer says otherwise
    STREAMING = "streaming"  # the peer has begun with its stream
    ENDED = "ended"


class Event(enum.Enum):
    """What can happen to an attempt."""

    FLUSHED = "flushed"  # the envelope left
    BEGUN = "begun"  # an item of the answer came, or the peer said that it takes those of the arguments
    REPLY = "reply"
    FAILED = "failed"  # ERROR that says it ran
    REFUSED = "refused"  # ERROR that says it did not run
    LINK_LOST = "link lost"
    NEVER_RAN = "never ran"  # GOODBYE with a lower number
    ABANDONED = "abandoned"  # we no longer want it: deadline, cancelled, answered by another attempt


class Verdict(enum.Enum):
    """What follows for the call."""

    NOTHING = "nothing"
    ANSWER = "answer"  # give the caller what came
    RETRY = "retry"  # it did not run: try another peer, whatever the method
    UNKNOWN = "unknown"  # it may have run: only an idempotent method may be tried again
    BROKEN = "broken"  # a part of its stream was handed over, which no other attempt can take back


TRANSITIONS: Final[dict[State, dict[Event, tuple[State, Verdict]]]] = {
    State.WAITING: {
        Event.FLUSHED: (State.SENT, Verdict.NOTHING),
        Event.LINK_LOST: (State.ENDED, Verdict.RETRY),
        Event.NEVER_RAN: (State.ENDED, Verdict.RETRY),
        Event.ABANDONED: (State.ENDED, Verdict.NOTHING),
    },
    State.SENT: {
        Event.BEGUN: (State.STREAMING, Verdict.NOTHING),
        Event.REPLY: (State.ENDED, Verdict.ANSWER),
        Event.FAILED: (State.ENDED, Verdict.ANSWER),
        Event.REFUSED: (State.ENDED, Verdict.RETRY),
        Event.LINK_LOST: (State.ENDED, Verdict.UNKNOWN),
        Event.NEVER_RAN: (State.ENDED, Verdict.RETRY),
        Event.ABANDONED: (State.ENDED, Verdict.NOTHING),
    },
    State.STREAMING: {
        Event.BEGUN: (State.STREAMING, Verdict.NOTHING),
        Event.REPLY: (State.ENDED, Verdict.ANSWER),
        Event.FAILED: (State.ENDED, Verdict.ANSWER),
        Event.REFUSED: (State.ENDED, Verdict.ANSWER),
        Event.LINK_LOST: (State.ENDED, Verdict.BROKEN),
        Event.NEVER_RAN: (State.ENDED, Verdict.BROKEN),
        Event.ABANDONED: (State.ENDED, Verdict.NOTHING),
    },
    State.ENDED: {},
}


def judge(state: State, event: Event) -> Verdict:
    """What `event` means for the call. Raises RuntimeError for what cannot happen."""
    try:
        return TRANSITIONS[state][event][1]
    except KeyError:
        raise RuntimeError(f"an attempt that is {state.value} cannot be '{event.value}'") from None
