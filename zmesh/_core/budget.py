"""How many attempts beyond the first the calls of one service may have, and when a second one is worth sending.

Retries that answer overload with more load keep a service down that would have recovered: three layers with four
attempts each are 64 times the load. A budget that is a share of the calls bounds the factor whatever fails.
"""

from __future__ import annotations

import math
from typing import Final

from .timing import Growth

__all__ = ["Budget", "Latencies", "percentile_of"]


class Budget:
    """The retries and hedges that the calls of one service have, as one node makes them: two token buckets.

    Finagle's RetryBudget (20 % of the calls, a floor of 10 a second, what was not used in 10 s expires), but for one
    point: there the floor comes on top of the share, here the larger of both counts. So 20 % is 20 %, as soon as there
    are 50 calls a second. A floor is needed, or a program that makes one call could not retry it.

    What costs:

    - A call that never left this node, or that its node disowned in leaving, costs nothing: no server saw it.
    - A refusal that more load would repeat (RESOURCE_EXHAUSTED) costs a retry; the call waits until there is one.
    - A call that was lost with its link, or waits for a peer that fell silent, is charged but never held back: that is
      one extra attempt for each call in flight at the time, once, and no answer to load. What it overdraws is missing
      for the others.
    - A hedge costs one of its own 5 %, and there is none while retries are used up (Finagle's BackupRequestFilter).

    calls: counted up by whoever makes them, so that a call costs an increment.
    """

    WINDOW: Final = 10.0  # seconds
    RETRIES: Final = 0.2  # of the calls
    LEAST_RETRIES: Final = 10.0  # a second
    HEDGES: Final = 0.05
    LEAST_HEDGES: Final = 1.0  # a second: enough for a program that makes few calls, nothing to a server

    __slots__ = ("_growth", "_hedges", "_retries", "calls")

    def __init__(self, now: float) -> None:
        self.calls = 0
        self._growth = Growth(self.WINDOW, 0, now)
        self._retries = _Bucket(self.RETRIES, self.LEAST_RETRIES, now)
        self._hedges = _Bucket(self.HEDGES, self.LEAST_HEDGES, now)

    def retry(self, now: float) -> bool:
        """Take one retry, if there is one."""
        return self.left(now) >= 1.0 and self._retries.take()

    def charge(self, now: float) -> None:
        """Take one retry, whether there is one or not."""
        self.left(now)
        self._retries.take()

    def hedge(self, now: float) -> bool:
        """Take one hedge, if there is one."""
        if self.left(now) < 1.0:
            return False
        return self.hedges_left(now) >= 1.0 and self._hedges.take()

    def hedges_left(self, now: float) -> float:
        """How many hedges there are."""
        return self._hedges.fill(self.calls, self._growth.of(self.calls, now), now)

    def left(self, now: float) -> float:
        """How many retries there are; below 0 where more were charged."""
        return self._retries.fill(self.calls, self._growth.of(self.calls, now), now)


class _Bucket:
    """Fills by a share of the calls or with time, whichever is more, up to what ten seconds of that are; twice a
    second. What time gave beyond the share is paid back where calls become many: else the first ten seconds' worth,
    which is there from the start, would come on top of the share."""

    __slots__ = ("_calls", "_floor", "_lent", "_share", "_tokens", "_when")

    def __init__(self, share: float, floor: float, now: float) -> None:
        self._share, self._floor = share, floor
        self._tokens = self._lent = floor * Budget.WINDOW
        self._calls, self._when = 0, now

    def fill(self, calls: int, lately: float, now: float) -> float:
        """What is in it, after so many calls in all, and in the last ten seconds."""
        if now - self._when < 0.5:  # in small steps the larger of both would come close to their sum
            return self._tokens
        most = max(self._share * lately, self._floor * Budget.WINDOW)
        more, least = self._share * (calls - self._calls), self._floor * (now - self._when)
        if more > least:
            repaid = min(self._lent, more - least)
            self._lent -= repaid
            more -= repaid
        else:
            self._lent = min(self._lent + least - more, self._floor * Budget.WINDOW)
            more = least
        self._tokens = min(max(self._tokens, -most) + more, most)  # debts end as well
        self._calls, self._when = calls, now
        return self._tokens

    def take(self) -> bool:
        """Take one token."""
        self._tokens -= 1.0
        return True


class Latencies:
    """How long the calls of one method take: any percentile of the last two thousand or so, within 9 %.

    A histogram whose buckets grow by a factor of 2^(1/8), halved every two thousand samples so that it follows changes.
    It takes in lower bounds as well: a call that was given up after a second took at least that.
    """

    GROWTH: Final = 8  # buckets for each doubling
    FIRST: Final = 1e-6  # seconds
    BUCKETS: Final = 30 * GROWTH  # up to 18 minutes
    MEMORY: Final = 2_000  # so that a p99.9 has a sample above it at any time

    __slots__ = ("_counts", "_fresh", "_known", "samples")

    def __init__(self) -> None:
        self._counts = [0.0] * self.BUCKETS
        self.samples = 0.0
        self._fresh = 0
        self._known: dict[float, float] = {}  # what was computed, until there are a few more samples

    def add(self, seconds: float) -> None:
        """Take in a sample."""
        bucket = int(math.log2(max(seconds / self.FIRST, 1.0)) * self.GROWTH)
        self._counts[min(bucket, self.BUCKETS - 1)] += 1.0
        self.samples += 1.0
        self._fresh += 1
        if self._fresh % 20 == 0:
            self._known.clear()
        if self._fresh >= self.MEMORY:
            self._fresh = 0
            self._counts = [count / 2.0 for count in self._counts]
            self.samples /= 2.0

    def percentile(self, share: float) -> float | None:
        """Seconds that this share of the calls stays below, at the least; None while one more sample than would be
        above it is not there."""
        if self.samples * (1.0 - share) < 1.0 - 1e-9:
            return None
        known = self._known.get(share)
        if known is None:
            known = self._known[share] = self._compute(share)
        return known

    def _compute(self, share: float) -> float:
        above = self.samples * (1.0 - share)
        for bucket in range(self.BUCKETS - 1, -1, -1):
            above -= self._counts[bucket]
            if above < -1e-9:
                break
        return float(self.FIRST * 2.0 ** ((bucket + 1) / self.GROWTH))


def percentile_of(text: str) -> float:
    """The share that a name like "p95" or "p99.9" stands for. Raises ValueError for any other text."""
    try:
        percent = float(text.removeprefix("p"))
    except ValueError:
        percent = 0.0
    if not text.startswith("p") or not 50.0 <= percent <= 99.9:
        raise ValueError(f"a percentile is written like 'p95', from p50 to p99.9; got {text!r:.60}")
    return percent / 100.0
