"""The health of one peer, as its answers show it: ejected when it fails, one probe to come back, slow start after that.

Beside the state of its link (`_core.peer`): that one tells who is there, this one who is any good. Ejection counts what
is the node's doing: a link that was lost with calls open, a deadline that passed, an answer that says UNAVAILABLE. What
a handler raises is the application's; it costs weight (see `weight`) and never ejects. A refusal before the call ran is
load, not failure; only a node that refuses everything for a while is left alone for a moment.

Small meshes never have the volumes that Envoy's and gRPC's (gRFC A50) statistics ask for, so the rules are Finagle's
(FailureAccrualFactory, FailureAccrualPolicy): 5 failures in a row, or under 80 % successes in 30 s.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from typing import Final

from .timing import Growth, Recent

__all__ = ["TRANSITIONS", "Event", "Health", "Outcome", "State", "in_panic", "outcome_of"]

IN_A_ROW: Final = 5  # failures with no success between them (Finagle's and Envoy's default)
WINDOW: Final = 30.0  # seconds over which successes are set against failures (Finagle)
REQUIRED: Final = 0.8  # of the answers in that window (Finagle)
ENOUGH: Final = 5  # answers in it, before their rate says anything (Finagle's minRequestThreshold)

# Finagle waits 5 to 300 s. On a LAN a node restarts in seconds, and a probe is one call: so 1 to 30 s.
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 30.0
PROBE_PATIENCE: Final = 1.0  # seconds until a probe without an answer does not stand in the way of another one

REFUSING: Final = 0.25  # seconds of refusals in a row, and nothing else, that make a node one that refuses everything
FIRST_REFUSED_PAUSE: Final = 0.1
LONGEST_REFUSED_PAUSE: Final = 2.0

SLOW_START: Final = 10.0  # seconds until a node that came (back) has its full weight (Envoy's slow_start_window)
LEAST_WEIGHT: Final = 0.1  # of the full weight (Envoy's min_weight_percent)
PANIC: Final = 0.2  # of the peers: where fewer are left, all are believed in
EXCEPTION: Final = 1 / 16  # of the weight, that one exception costs, and one success gives back
FORGIVEN: Final = 10.0  # seconds in which exceptions are forgotten where there are no answers: it must be tried again


class State(enum.Enum):
    """How a peer stands."""

    HEALTHY = "healthy"
    EJECTED = "ejected"  # it failed: no calls while others can take them
    DUE = "due"  # its pause is over: the next call that may be one is its probe
    PROBING = "probing"  # the probe is out


class Event(enum.Enum):
    """What can happen to its health."""

    SUCCESS = "success"  # of a call that began in this state
    FAILURE = "failure"
    TRIPPED = "tripped"  # too many failures
    PAUSE_OVER = "pause over"
    PROBED = "probed"


TRANSITIONS: Final[dict[State, dict[Event, State]]] = {
    State.HEALTHY: {
        Event.SUCCESS: State.HEALTHY,
        Event.FAILURE: State.HEALTHY,
        Event.TRIPPED: State.EJECTED,
    },
    State.EJECTED: {  # calls come here in a panic, and as the only one that was asked for
        Event.SUCCESS: State.HEALTHY,
        Event.FAILURE: State.EJECTED,
        Event.PAUSE_OVER: State.DUE,
    },
    State.DUE: {
        Event.SUCCESS: State.HEALTHY,
        Event.FAILURE: State.DUE,
        Event.PROBED: State.PROBING,
    },
    State.PROBING: {
        Event.SUCCESS: State.HEALTHY,
        Event.FAILURE: State.EJECTED,
        Event.PAUSE_OVER: State.DUE,
    },
}


class Outcome(enum.Enum):
    """What an answer says of the node that gave it."""

    SUCCESS = "success"  # it works, whatever the answer is
    FAILURE = "failure"
    RAISED = "raised"  # the handler broke: costs weight
    REFUSED = "refused"  # load
    NOTHING = "nothing"


def outcome_of(code: int, ran: bool) -> Outcome:
    """What an ERROR says. `code`: gRPC's number. `ran`: whether the handler may have started."""
    if not ran:
        return Outcome.REFUSED if code == 8 else Outcome.NOTHING  # RESOURCE_EXHAUSTED
    if code in (4, 14):  # DEADLINE_EXCEEDED, UNAVAILABLE
        return Outcome.FAILURE
    if code in (2, 13, 15):  # UNKNOWN, INTERNAL, DATA_LOSS
        return Outcome.RAISED
    return Outcome.SUCCESS


def in_panic(left: int, standing: int) -> bool:
    """Whether so few of the peers with a link would be left that it is better to believe in all of them: most likely
    it is us. Envoy does so where under half are available, to spare those; here nodes refuse what is too much for
    them, and with 6 of 10 nodes that fail at once believing in them left a tenth of the goodput (docs/balancing.md)."""
    return PANIC * standing > left


class Health:
    """See the module. Whoever calls adds 1 to `successes` for each success, and tells of it besides if `troubled`.

    successes: counted up by the caller, so that a success costs an increment and a look at `troubled`.
    troubled: whether a success changes anything.
    weight: what the peer's capacity is to be multiplied with: below 1 in a slow start, and by the share of its last
        answers that are exceptions of handlers (after the error penalty of gRFC A58): a node whose handlers all fail
        looks idle, and would attract everything. Where handlers fail alike everywhere, all weigh less: no matter.
    until: when the pause of an ejected peer, or the patience with its probe, is over.
    why: what it was ejected for, in words.
    """

    __slots__ = (
        "_ejections", "_exceptions", "_failures", "_growth", "_in_a_row", "_jitter", "_refusals", "_refused_since",
        "_warm_since", "_weighed", "since", "state", "successes", "troubled", "unsettled", "until", "weight", "why",
    )  # fmt: skip

    def __init__(self, jitter: Callable[[], float], now: float) -> None:
        """jitter: a random number in [0, 1)."""
        self._jitter = jitter
        self.state = State.HEALTHY
        self.since = now
        self.successes = 0
        self.troubled = False
        self.unsettled = False  # whether time changes anything: then `tick` is worth calling
        self.weight = 1.0
        self.until = 0.0
        self.why = ""
        self._ejections = 0  # without a long time of health between them
        self._in_a_row = 0
        self._refusals = 0  # in a row
        self._refused_since = 0.0
        self._warm_since: float | None = None
        self._failures = Recent(WINDOW)
        self._exceptions = 0.0  # their share of the last answers
        self._weighed = now
        self._growth = Growth(WINDOW, 0, now)

    @property
    def good(self) -> bool:
        """Whether calls go to it as to any other."""
        return self.state is State.HEALTHY

    def succeeded(self, started: float, now: float) -> bool:
        """A call that was sent at `started` was answered. These return whether `state` has changed."""
        if self.state is not State.HEALTHY:
            if started < self.since:
                return False
            warm = self._refusals == 0
            self._follow(Event.SUCCESS, now)
            self._failures.clear()
            self._growth = Growth(WINDOW, self.successes, now)
            if warm:
                self.start_slowly(now)
            changed = True
        else:
            changed = False
        self._in_a_row = self._refusals = 0
        if self._exceptions:
            self._exceptions -= self._exceptions * EXCEPTION
            self._weigh(now)
        self.troubled = self._exceptions > 0.0
        return changed

    def failed(self, why: str, started: float, now: float) -> bool:
        """A call that was sent at `started` failed by the node's doing; why, in words."""
        if started < self.since:  # it tells of a time that was judged already
            return False
        self._failures.add(now)
        self._in_a_row += 1
        self._refusals = 0
        self.troubled = True
        if self.state is not State.HEALTHY:
            return self._follow(Event.FAILURE, now, f"its probe failed: {why}")
        failures = self._failures.total(now)
        answers = failures + self._growth.of(self.successes, now)
        if self._in_a_row >= IN_A_ROW:
            return self._follow(Event.TRIPPED, now, f"{self._in_a_row} failures in a row, the last: {why}")
        if answers >= ENOUGH and answers - failures < REQUIRED * answers:
            text = f"{failures} of {answers:.0f} calls failed in {WINDOW:.0f} s, the last: {why}"
            return self._follow(Event.TRIPPED, now, text)
        return False

    def refused(self, started: float, now: float) -> bool:
        """A call that was sent at `started` was refused for load, before it ran."""
        if started < self.since:  # it tells of a time that was judged already
            return False
        if not self._refusals:
            self._refused_since = now
        self._refusals += 1
        self.troubled = True
        if self.state is not State.HEALTHY:
            return self._follow(Event.FAILURE, now, "its probe was refused")
        if self._refusals >= IN_A_ROW and now - self._refused_since >= REFUSING:
            return self._follow(Event.TRIPPED, now, f"it refused {self._refusals} calls in a row")
        return False

    def raised(self, now: float) -> None:
        """A handler there raised an exception that is no answer."""
        self._exceptions += (1.0 - self._exceptions) * EXCEPTION
        self.troubled = True
        self._weigh(now)

    def probe(self, now: float) -> bool:
        """A call goes there to see how it is; only where it is due."""
        self.until = now + PROBE_PATIENCE
        return self._follow(Event.PROBED, now)

    def start_slowly(self, now: float) -> None:
        """It came, or came back: its weight grows from a tenth to all of it."""
        self._warm_since = now
        self._weigh(now)

    def tick(self, now: float) -> bool:
        """Time has passed."""
        self._weigh(now)
        waits = self.state is State.EJECTED or self.state is State.PROBING
        return waits and now >= self.until and self._follow(Event.PAUSE_OVER, now)

    # -- inside

    def _follow(self, event: Event, now: float, why: str = "") -> bool:
        """Raises RuntimeError for what cannot happen: a bug, never the peer's doing."""
        before = self.state
        try:
            state = TRANSITIONS[before][event]
        except KeyError:
            raise RuntimeError(f"the health of a peer that is {before.value} cannot have '{event.value}'") from None
        if state is before:
            return False
        if state is State.EJECTED:
            self._eject(before, why, now)
        self.state, self.since = state, now
        self.unsettled = self.troubled = True
        return True

    def _eject(self, before: State, why: str, now: float) -> None:
        if before is State.HEALTHY and now - self.since >= LONGEST_PAUSE:
            self._ejections = 0  # it was well for a long time
        first, longest = FIRST_PAUSE, LONGEST_PAUSE
        if self._refusals:
            first, longest = FIRST_REFUSED_PAUSE, LONGEST_REFUSED_PAUSE
        pause = min(first * 2.0 ** min(self._ejections, 30), longest)
        self._ejections += 1
        # "Equal jitter": half fixed, half random (Brooker, "Exponential Backoff and Jitter", AWS 2015; Finagle uses it)
        self.until = now + pause / 2.0 * (1.0 + self._jitter())
        self.why = why

    def _weigh(self, now: float) -> None:
        weight = 1.0
        if self._warm_since is not None:
            weight = (now - self._warm_since) / SLOW_START
            if weight >= 1.0:
                weight, self._warm_since = 1.0, None
        if self._exceptions:
            self._exceptions *= math.exp(-max(0.0, now - self._weighed) / FORGIVEN)
            if self._exceptions < EXCEPTION / 4.0:
                self._exceptions = 0.0
            weight *= 1.0 - self._exceptions
        self._weighed = now
        self.weight = max(weight, LEAST_WEIGHT)
        self.unsettled = self.state is not State.HEALTHY or self._exceptions > 0.0 or self._warm_since is not None
