"""What one peer may have of a server: how much its calls hold, and how many more it may try.

The usual call never comes here: only one with much in it, a stream, or one that is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ._core.messages import Message
from .config import Config

if TYPE_CHECKING:
    from ._link import Link
    from ._server import Running

__all__ = ["FEW", "LONG", "MUCH_MORE", "Share"]

LONG: Final = 64  # calls that wait: from here on those of peers with few do not stand behind all of them
FEW: Final = 16  # calls of one peer here
MUCH_MORE: Final = 8  # times as many as others have: less is no flood, and priorities alone say who is refused
_WINDOW: Final = 10.0  # seconds over which refusals are counted
_AT_LEAST: Final = 64  # entries, before those of calls that are over are swept out


class Share:
    """Of one link. Refuses by saying why."""

    __slots__ = ("_config", "_held", "_items", "_link", "_refused", "_since", "_streams", "_sweep_at", "_weights")

    def __init__(self, link: Link, config: Config) -> None:
        self._link = link
        self._config = config
        self._weights: list[tuple[Running, int]] = []  # of calls with much in them; some may be over
        self._held = 0  # the sum of these
        self._sweep_at = _AT_LEAST
        self._streams: set[int] = set()  # numbers of calls with streams; some may be over
        self._items = 0  # bytes of large items that came since what streams hold was last counted
        self._refused = 0
        self._since = 0.0

    def objection(self, stream: bool) -> str | None:
        """Why a call of `link.weight` bytes, or with a stream, is not taken; None if it is."""
        config, streams = self._config, self._streams
        if stream and len(streams) >= config.max_peer_streams:
            streams &= self._link.running.keys()
            if len(streams) >= config.max_peer_streams:
                return f"{len(streams)} streams of one peer are open, its limit (Config.max_peer_streams)"
        if self._held + self._link.weight > config.max_peer_memory:
            self._sweep()
            if self._held and self._held + self._link.weight > config.max_peer_memory:
                return f"calls of one peer hold some {self._held} bytes, its limit (Config.max_peer_memory)"
        return None

    def took(self, running: Running, stream: bool) -> None:
        """A call was taken."""
        if stream:
            self._streams.add(running.number)
        if self._link.weight:
            self._held += self._link.weight
            self._weights.append((running, self._link.weight))
            if len(self._weights) >= self._sweep_at:
                self._sweep()

    def item(self) -> str | None:
        """An item of `link.weight` bytes has come: why its call cannot go on, or None."""
        self._items += self._link.weight
        most = self._config.max_peer_memory
        if self._items * 8 < most:  # at the most so much more than at the last count
            return None
        self._items = 0
        self._sweep()
        waiting = sum(each.inlet.size for each in self._link.running.values() if each.inlet is not None)
        if self._held + waiting > most:
            return (
                f"calls and streams of one peer hold {self._held + waiting} bytes, its limit (Config.max_peer_memory)"
            )
        return None

    def refused(self, message: Message, now: float) -> str | None:
        """A call was refused because its peer has too many: why the link has to be closed, or None."""
        if now - self._since > _WINDOW:
            self._since, self._refused = now, 0
        self._refused += 1
        if self._refused > self._config.max_peer_refusals:
            return f"{self._refused} calls beyond the limit of {self._config.max_peer_calls} within {_WINDOW:g} s"
        return None

    def _sweep(self) -> None:
        self._weights = [entry for entry in self._weights if not entry[0].over]
        self._held = sum(weight for _, weight in self._weights)
        self._sweep_at = 2 * len(self._weights) + _AT_LEAST
