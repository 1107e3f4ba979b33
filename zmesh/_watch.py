"""Watches whom a secured node trusts: who comes by a link must be whom its key says, and a link ends soon after its key
is revoked.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from ._core.messages import Hello
from ._link import Link
from ._security import Gate
from ._security.keys import fingerprint
from .errors import Code

__all__ = ["Watch"]

_log = logging.getLogger("zmesh.security")

_LOOK_EVERY: Final = 0.25  # seconds: a revoked key's links end within a second, with room for a busy loop
_HANG_UP_AFTER: Final = 0.1  # seconds that the last word to a revoked peer has to leave


class Watch:
    """Of one node, while it runs. links: all that it has now."""

    def __init__(self, gate: Gate, links: Callable[[], list[Link]]) -> None:
        self.gate = gate
        self._links = links
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(_LOOK_EVERY, self._look)

    def admits(self, link: Link, hello: Hello) -> tuple[int, str] | None:
        """None, or with what a link is rejected whose key does not go with what is said on it."""
        key = link.key
        assert key is not None, "every link of a secured node has a key"
        why = self.gate.claim(key, hello.name)
        if why is None:
            return None
        self.gate.refused(link.label, key, why)
        self._hang_up_later(link)  # behind the REJECT, whether it is read or not
        return Code.UNAUTHENTICATED, f"the node at the other end is refused: {why}"

    def close(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        self._timer = self._loop.call_later(_LOOK_EVERY, self._look)
        revoked = self.gate.refresh()
        for key, name in revoked.items():
            _log.warning(
                "the key of %r (fingerprint %s) is not trusted any more: its links end", name, fingerprint(key)
            )
        for link in self._links() if revoked else ():
            if link.key in revoked:
                link.revoke(Code.UNAUTHENTICATED, f"the key of {revoked[link.key]!r} was revoked")
                self._hang_up_later(link)

    def _hang_up_later(self, link: Link) -> None:
        if link.channel is not None:
            self._loop.call_later(_HANG_UP_AFTER, link.channel.hang_up)
