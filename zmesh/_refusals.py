"""What was refused because it broke a limit: counted by limit, logged once per culprit and minute."""

from __future__ import annotations

import logging
from typing import Final

__all__ = ["Refusals"]

_log = logging.getLogger("zmesh.limits")

_EVERY: Final = 60.0  # seconds between two lines about one culprit and one limit: a flood does not fill a disk
_CULPRITS: Final = 1_000  # that are remembered; past it the oldest may be logged again early


class Refusals:
    """Of one node."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}  # by the name of the limit, a setting of `zmesh.Config` in most cases
        self._logged: dict[tuple[str, str], tuple[float, int]] = {}  # when, and what was counted since

    def note(self, limit: str, who: str, what: str, now: float) -> None:
        """`who`, an address or a name, broke `limit`; `what` says how it was answered."""
        self.counts[limit] = self.counts.get(limit, 0) + 1
        key = (limit, who)
        when, more = self._logged.get(key, (now - _EVERY, 0))
        if now - when < _EVERY:
            self._logged[key] = (when, more + 1)
            return
        self._logged.pop(key, None)  # so that the oldest stay in front
        if len(self._logged) >= _CULPRITS:
            del self._logged[next(iter(self._logged))]
        self._logged[key] = (now, 0)
        _log.warning("%s: %s (%s%s)", who, what, limit, f"; {more} times more since the last line" if more else "")
