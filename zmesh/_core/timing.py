"""Time as the rules see it: deadlines in buckets, and how long a message stood in queues."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

T = TypeVar("T")

_FAR: Final = 2.0  # seconds until a deadline
_MODULUS: Final = 1 << 31
_HALF: Final = _MODULUS // 2
_BURST: Final = 0.05 / 0.95  # the x for which x / (1 + x) is 5 %


def expand(number: int, below: int) -> int:
    """The largest count below `below` with low 31 bits `number` (as QUIC expands its packet numbers, RFC 9000, A.3)."""
    return below - 1 - ((below - 1 - number) % _MODULUS)


class Deadlines(Generic[T]):
    """Who is due when: one timer serves any number of calls, adding and removing are O(1).

    Items are hashable and wait in buckets: of a second while they are far off, of 1/256 s when they come near. Nearly
    all calls end while their deadline is far, so what they touch stays small. An item comes due at most 1/256 s late
    and never early.
    """

    TICKS: Final = 256

    def __init__(self, arm: Callable[[], None]) -> None:
        """arm: told when `next` may have changed: at most once per bucket, not per item."""
        self._arm = arm
        self._far: dict[int, dict[T, float]] = {}  # by whole second, in order of time nearly always
        self._near: dict[int, dict[T, float]] = {}
        self._order: list[int] = []  # the ticks of _near

    def add(self, when: float, item: T, now: float) -> dict[T, float]:
        """Put `item` down for `when`; `pop` it from the bucket that is returned to take it out again.

        An item that was taken out in the last second or so before its time may still come due: let it tell.
        """
        if when - now < _FAR:
            return self._add_near(when, item)
        second = int(when)
        bucket = self._far.get(second)
        if bucket is None:
            bucket = self._far[second] = {}
            self._arm()
        bucket[item] = when
        return bucket

    def _add_near(self, when: float, item: T) -> dict[T, float]:
        tick = int(when * self.TICKS) + 1
        bucket = self._near.get(tick)
        if bucket is None:
            bucket = self._near[tick] = {}
            heapq.heappush(self._order, tick)
            bucket[item] = when
            self._arm()
        else:
            bucket[item] = when
        return bucket

    def next(self) -> float | None:
        """When to look again; None where nothing is put down."""
        while self._order and not self._near[self._order[0]]:
            del self._near[heapq.heappop(self._order)]
        near = self._order[0] / self.TICKS if self._order else None
        far = min(self._far) - 1.0 if self._far else None
        return near if far is None else far if near is None else min(near, far)

    def due(self, now: float) -> list[T]:
        """All items whose time has come, in order; they are taken out."""
        for second in sorted(second for second in self._far if second - 1.0 <= now):
            for item, when in self._far.pop(second).items():
                self._add_near(when, item)
        items: list[T] = []
        limit = now * self.TICKS
        while self._order and self._order[0] <= limit:
            items.extend(self._near.pop(heapq.heappop(self._order)))
        return items


class QueueClock:
    """How long a message stood in queues, from two clocks that were never set alike.

    Each envelope carries its sender's monotonic milliseconds. The smallest difference to our own that was seen is the
    clocks' offset plus the shortest way; what a message has above it is time that it waited somewhere. The minimum is
    taken over the last one to two windows, so that two clocks that drift apart (100 ppm: 12 ms in two minutes) do not
    turn into queueing that never happened.
    """

    WINDOW: Final = 60_000  # ms

    __slots__ = ("_base", "_current", "_least", "_previous", "_until")

    def __init__(self) -> None:
        self._base: int | None = None
        self._previous: int | None = None
        self._current = 0
        self._least = 0  # of these two
        self._until = -1  # when the window ends

    def waited(self, sent: int, now: int) -> int:
        """Milliseconds that a message stood in queues; `sent` modulo 2**31 by its sender's clock, `now` by ours."""
        if now < self._until:
            offset: int = now - sent - self._base  # type: ignore[operator]
            if self._current <= offset < _HALF:  # nothing new of the clocks
                return offset - self._least
        return self._learn(sent, now)

    def _learn(self, sent: int, now: int) -> int:
        if self._base is None:
            self._base, self._until = now - sent, now + self.WINDOW
            return 0
        offset = now - sent - self._base
        if not -_HALF <= offset < _HALF:
            offset = (offset + _HALF) % _MODULUS - _HALF
        if now >= self._until:
            stale = now >= self._until + self.WINDOW
            self._previous, self._current = (None if stale else self._current), offset
            self._until = now + self.WINDOW
        elif offset < self._current:
            self._current = offset
        previous = self._previous
        self._least = self._current if previous is None or previous > self._current else previous
        return offset - self._least if offset > self._least else 0


class Average:
    """An exponentially weighted mean that forgets with time: weight e^(-t/tau) on the past, as Finagle's Ema does."""

    __slots__ = ("_faded", "_tau", "samples", "value", "when")

    def __init__(self, tau: float) -> None:
        self._tau = tau
        self._faded: float | None = None  # what it was before it faded
        self.when = 0.0
        self.value: float | None = None
        self.samples = 0

    def fade(self, value: float, now: float) -> None:
        """Take a lower value for now: nothing was heard for long. A next sample above it is set against what was heard
        before."""
        if self._faded is None:
            self._faded = self.value
        self.value, self.when = value, now

    def add(self, sample: float, now: float, count: int = 1) -> None:
        """Take in a sample, or the mean of several that came at once. Samples close together count for little each,
        whatever their number."""
        value = self.value
        if self._faded is not None:
            if value is not None and sample > value:
                value = self._faded
            self._faded = None
        if value is None:
            self.value = sample
        else:
            # 1 - e^-x ~ x / (1 + x): the same limits without a call to exp on the hot path. At least 5 %, so that a
            # burst of replies in one turn of the loop is not taken for one sample.
            x = (now - self.when) / self._tau
            share = x / (1.0 + x) if x > _BURST else 0.05
            if count > 1:  # the first has this share, each other one the least
                share = 1.0 - (1.0 - share) * 0.95 ** (count - 1)
            self.value = value + (sample - value) * share
        self.when = now
        self.samples += count


class Recent:
    """How many events the last `window` seconds had, to a tenth of the window."""

    SLOTS: Final = 10

    __slots__ = ("_counts", "_latest", "_width")

    def __init__(self, window: float) -> None:
        self._width = window / self.SLOTS
        self._counts = [0] * self.SLOTS
        self._latest = 0  # the slot that time stands in, counted from time 0

    def add(self, now: float) -> None:
        """One more, now."""
        self._turn(now)
        self._counts[self._latest % self.SLOTS] += 1

    def total(self, now: float) -> int:
        """How many there were."""
        self._turn(now)
        return sum(self._counts)

    def clear(self) -> None:
        """Forget them."""
        self._counts = [0] * self.SLOTS

    def _turn(self, now: float) -> None:
        slot = int(now / self._width)
        if slot - self._latest >= self.SLOTS:
            self.clear()
        else:
            for passed in range(self._latest + 1, slot + 1):
                self._counts[passed % self.SLOTS] = 0
        self._latest = max(slot, self._latest)


class Growth:
    """How much a counter has grown in the last `window` seconds.

    For counters on the hot path, which cost an increment there and nothing else: this looks at them when somebody asks.
    What it did not see it takes for steady: a counter that was last looked at long ago grew evenly since.
    """

    SPACING: Final = 0.1  # of the window, between two looks that are kept

    __slots__ = ("_looks", "_window")

    def __init__(self, window: float, count: int, now: float) -> None:
        self._window = window
        self._looks: deque[tuple[float, int]] = deque([(now, count)])

    def of(self, count: int, now: float) -> float:
        """The growth, where the counter is now at `count`."""
        looks, since = self._looks, now - self._window
        if now - looks[-1][0] >= self._window * self.SPACING:
            looks.append((now, count))
        while len(looks) > 1 and looks[1][0] <= since:
            looks.popleft()
        when, before = looks[0]
        if when >= since:
            return count - before
        later, after = looks[1] if len(looks) > 1 else (now, count)
        return count - before - (after - before) * (since - when) / (later - when)
