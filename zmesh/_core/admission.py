"""Who may join a queue that calls wait in: refuse early what would come too late, the less important first.

The measure is how long a call would wait, set against the time that calls have left. Not an absolute time: DAGOR (Zhou
and others, "Overload Control for Scaling WeChat Microservices", SoCC 2018) sheds at 20 ms of mean queue wait, which
would turn away a caller that keeps a node busy with 256 calls at a time, or hands it a day's work at once, and is glad
to wait a second of its ten. A node is overloaded when waiting eats the deadlines, and only then.

So a node that is not saturated refuses nothing: its queue runs empty, and nothing here is ever asked. What it is asked
of is a *standing* queue (CoDel's word: one that did not run empty for 100 ms), and it knows the rest by Little's law:
the wait is the length of the queue over the rate at which calls leave it. That is the adaptive limit as well: calls at
work plus as many waiting as fit into the target. It needs no probing for a limit, and is never below the workers.

Above the target a share of the calls is admitted, those of the highest rank (DAGOR's admission level): a rank is the
priority that the caller gave, and below it a lot that is drawn once for a call and inherited by all that its handlers
call, so that of a task with several calls all come through or none. The share follows the queue; the level is told in
reports, so that callers do not send what would be refused. And above the target the newest call is served first
(Facebook's adaptive LIFO: Maurer, "Fail at Scale", ACM Queue 2015): the oldest are the ones that will not make it.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

__all__ = ["DEFAULT_PRIORITY", "LOTS", "PRIORITIES", "Admission", "Refusal", "rank_of"]

PRIORITIES: Final = 10  # 0, shed first, to 9
DEFAULT_PRIORITY: Final = 5
LOTS: Final = 128  # DAGOR's number of user priorities

SHARE: Final = 0.5  # of the time that calls have left: what they may wait, at the most
STANDING: Final = 0.1  # seconds without running empty, before a queue says anything (CoDel's interval)
ENOUGH: Final = 10  # calls that left the queue, before the share of the admitted is changed by what they tell
SETTLE: Final = 0.5  # seconds, or the target where that is longer, in which the queue should come to half the target
FASTEST_DOWN: Final = 0.3  # the share changes at most so much in a tenth of a second,
FASTEST_UP: Final = 1.25  # upwards less, as DAGOR's -5 % and +1 % do; from a fifth to all of it takes 0.8 s
EASY: Final = 0.1  # of the target: a shorter queue is not looked at
SHORTEST: Final = 64  # a queue on the loop that is shorter is not looked at: a page of messages or two
_GRAIN: Final = 4  # ranks that are counted together
_MEMORY: Final = 0.8  # of the counts of ranks, from one tenth of a second to the next


def rank_of(priority: int, lot: int) -> int:
    """What is compared: higher is more important."""
    return priority * LOTS + lot % LOTS


class Refusal(NamedTuple):
    """Why a call may not join, in words; after how many seconds it may be worth another try; and from which rank on
    calls may join until then, where it was for that."""

    reason: str
    retry_after: float
    level: int = 0


class Admission:
    """See the module. Of one queue. Whoever owns it:

    - asks `admit` for a call that arrives while `free` or more calls wait (fewer: it may join);
    - adds 1 to `begun` for each call that leaves the queue for a worker;
    - says `emptied` when the queue runs empty and `standing` is set, and `lost` when a call expired in it;
    - serves the newest call first while `newest_first` is set;
    - tells others `level`: calls of a lower rank are refused.
    """

    __slots__ = (
        "_adjusted", "_admitted", "_begun_then", "_least_free", "_patience", "_ranks", "_rate", "_share", "_start",
        "_target", "begun", "free", "level", "newest_first", "standing",
    )  # fmt: skip

    def __init__(self, workers: int | None = None, target: float | None = None) -> None:
        """workers: how many calls can be at work at once (None: no such limit, as on an event loop).
        target: the most seconds that calls may wait for their turn (None: no limit but their own deadlines)."""
        self._least_free = SHORTEST if workers is None else workers
        self._target = math.inf if target is None else target
        self.free = self._least_free
        self.begun = 0
        self.level = 0
        self.newest_first = False
        self.standing = False
        self._start = 0.0  # of what is measured now
        self._begun_then = 0
        self._admitted = 0  # since then
        self._rate: float | None = None  # calls/s that leave the queue; None before it has stood for a while
        self._patience = 0.0  # seconds that calls have left when they come, a moving mean
        self._share = 1.0  # of all calls, that are admitted
        self._adjusted = 0.0  # when that was last changed
        self._ranks = [0.0] * (PRIORITIES * LOTS // _GRAIN)  # calls seen lately, by rank

    def admit(self, queued: int, remaining: float, rank: int, now: float) -> Refusal | None:
        """Whether a call may join behind `queued` others; None if it may. `remaining`: seconds until its deadline."""
        if not queued:  # its turn is next, and it says nothing of what the node could do
            return None
        if not self.standing:
            self.standing, self._rate = True, None
            self._restart(now)
        self._patience += (remaining - self._patience) * (0.02 if self._patience else 1.0)
        if now - self._start >= STANDING:
            self._look(queued, now)
        if rank < self.level:
            reason = f"it is overloaded, and takes the {self._share:.0%} of all calls that are most important"
            return Refusal(reason, STANDING, self.level)
        self._ranks[rank // _GRAIN] += 1.0
        if self._rate is not None:
            before = 1 if self.newest_first else queued
            wait = before / self._rate
            if wait > remaining:
                return Refusal(
                    f"{before} of {queued} waiting calls take {wait:.3g} s, more than this one has", wait / 2
                )
        self._admitted += 1
        return None

    def emptied(self, now: float) -> None:
        """The queue has run empty."""
        self.standing = self.newest_first = False
        if self._share < 1.0:
            self.relax(now)

    def lost(self) -> None:
        """A call has expired in the queue: look closely from now on."""
        self.free = min(self.free, self._least_free)

    def relax(self, now: float) -> None:
        """Time has passed: where the queue does not stand, more is admitted. Called some times per second, too."""
        elapsed = now - self._adjusted
        if self._share < 1.0 and not self.standing and elapsed >= STANDING:
            self._set_share(self._share * FASTEST_UP ** min(elapsed / STANDING, 100.0), now)

    # -- inside

    def _restart(self, now: float) -> None:
        self._start, self._begun_then, self._admitted = now, self.begun, 0

    def _look(self, queued: int, now: float) -> None:
        """Measure how fast the queue moves; when enough has left it, adjust how much is admitted."""
        elapsed, begun = now - self._start, self.begun - self._begun_then
        self._rate = rate = (begun + 1) / elapsed  # + 1: as if the next left now, so that none at all is no 0
        target = max(min(self._target, SHARE * self._patience), 0.001)
        pressure = queued / (rate * target)
        self.newest_first = pressure > (0.5 if self.newest_first else 1.0)
        if begun < ENOUGH:
            return
        if pressure > 1.0 or self._share < 1.0:
            wanted = rate + (0.5 * target * rate - queued) / max(SETTLE, target)  # calls/s
            change = wanted * elapsed / max(self._admitted, 1)
            self._set_share(self._share * min(max(change, FASTEST_DOWN), FASTEST_UP), now)
        if self._share >= 1.0:
            self.free = max(self._least_free, int(EASY * target * rate))
        self._restart(now)

    def _set_share(self, share: float, now: float) -> None:
        """Admit this share of the calls: the level above which so many are, by the ranks that were seen."""
        self._share = share = min(share, 1.0)
        self._adjusted = now
        ranks, before = self._ranks, self.level // _GRAIN
        most, index = share * sum(ranks), len(ranks)
        while index > 0 and ranks[index - 1] <= most:
            index -= 1
            most -= ranks[index]
        if share >= 1.0:
            self.level, self.free = 0, self._least_free
        else:
            self.level, self.free = min(index, len(ranks) - 1) * _GRAIN, 0
        # What lies below the level does not come, as callers hold it back: what is known of it stays.
        for index in range(before, len(ranks)):
            ranks[index] *= _MEMORY
