"""The state of one peer, as a table: what is not listed is an error. docs/architecture.md draws it from here."""

from __future__ import annotations

import enum
from typing import Final

__all__ = ["TRANSITIONS", "Event", "State", "follow"]


class State(enum.Enum):
    """How a peer stands, as seen from here."""

    NEW = "new"  # seen by discovery, never spoken to
    ALIVE = "alive"  # its link stands and it answers
    SUSPECT = "suspect"  # silent while calls are open, or its link closed a moment ago: no new work
    DRAINING = "draining"  # it said that it leaves: no new work, what it has taken it finishes
    DEAD = "dead"  # its link is gone and no new handshake came; dialed again with back-off
    IDLE = "idle"  # it was met, and no link is held since nothing that it serves is called


class Event(enum.Enum):
    """What can happen to a peer."""

    HANDSHAKE = "handshake"  # HELLO came on a new link
    HEARD = "heard"  # anything came on its link
    SILENCE = "silence"  # nothing came for `suspect_after` while calls were open
    LINK_LOST = "link lost"  # the connection closed or timed out
    NO_HANDSHAKE = "no handshake"  # none within `redial_within` of losing the link, or the first dial failed
    DRAIN = "drain"  # it said DRAIN
    GOODBYE = "goodbye"  # it said GOODBYE
    RELEASED = "released"  # we closed a link that nobody needs


TRANSITIONS: Final[dict[State, dict[Event, State]]] = {
    State.NEW: {
        Event.HANDSHAKE: State.ALIVE,
        Event.NO_HANDSHAKE: State.DEAD,
    },
    State.ALIVE: {
        Event.HEARD: State.ALIVE,
        Event.SILENCE: State.SUSPECT,
        Event.LINK_LOST: State.SUSPECT,
        Event.DRAIN: State.DRAINING,
        Event.GOODBYE: State.DEAD,
        Event.RELEASED: State.IDLE,
    },
    State.SUSPECT: {
        Event.HEARD: State.ALIVE,
        Event.HANDSHAKE: State.ALIVE,
        Event.SILENCE: State.SUSPECT,
        Event.LINK_LOST: State.SUSPECT,
        Event.NO_HANDSHAKE: State.DEAD,
        Event.DRAIN: State.DRAINING,
        Event.GOODBYE: State.DEAD,
        Event.RELEASED: State.IDLE,
    },
    State.DRAINING: {
        Event.HEARD: State.DRAINING,
        Event.SILENCE: State.DRAINING,
        Event.DRAIN: State.DRAINING,
        Event.LINK_LOST: State.DEAD,
        Event.GOODBYE: State.DEAD,
        Event.RELEASED: State.IDLE,
    },
    State.DEAD: {
        Event.HANDSHAKE: State.ALIVE,
        Event.NO_HANDSHAKE: State.DEAD,
    },
    State.IDLE: {
        Event.HANDSHAKE: State.ALIVE,
        Event.NO_HANDSHAKE: State.DEAD,
    },
}


def follow(state: State, event: Event) -> State:
    """The state after `event`. Raises RuntimeError for what cannot happen: a bug, never the peer's doing."""
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise RuntimeError(f"a peer that is {state.value} cannot have '{event.value}'") from None
