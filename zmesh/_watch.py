"""Watches whom a secured node trusts: who comes by a link must be whom its key says, and a link ends soon after its key
is revoked. Has the permission file looked at, too, and says who was refused.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from typing import Final

from ._core.messages import Hello
from ._link import Link
from ._security import Gate, PermissionFile
from ._security.audit import Audit, What
from ._security.keys import fingerprint
from .errors import Code

__all__ = ["Watch"]

_log = logging.getLogger("zmesh.security")

_LOOK_EVERY: Final = 0.25  # seconds: a revoked key's links end within a second, with room for a busy loop
_HANG_UP_AFTER: Final = 0.1  # seconds that the last word to a revoked peer has to leave


class Watch:
    """Of one node, while it runs. links: all that it has now. permissions: of the permission file, if there is one."""

    def __init__(self, gate: Gate, links: Callable[[], list[Link]], permissions: PermissionFile | None) -> None:
        self.gate = gate
        self.permissions = permissions
        self.audit = Audit()
        gate.on_refused = functools.partial(self._refused, "handshake")
        self._links = links
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(_LOOK_EVERY, self._look)

    def admits(self, link: Link, hello: Hello) -> tuple[int, str] | None:
        """None, or with what a link is rejected whose key does not go with what is said on it."""
        key = link.key
        assert key is not None, "every link of a secured node has a key"
        why = self.gate.claim(key, hello.name, hello.id)
        if why is None:
            return None
        self.gate.refused(_address(link), key, why)
        self._hang_up_later(link)  # behind the REJECT, whether it is read or not
        return Code.UNAUTHENTICATED, f"the node at the other end is refused: {why}"

    def close(self) -> None:
        self._timer.cancel()

    def call_refused(self, link: Link, path: str, why: str) -> None:
        """A peer called what it may not."""
        self._refused("call", _address(link), link.key, f"{path}: {why}")

    def _refused(self, what: What, address: str, key: str | None, reason: str) -> None:
        print_ = None if key is None else fingerprint(key)
        line = self.audit.refused(what, print_, address, reason, self._loop.time())
        if line is not None:
            _log.warning("%s", line)

    def _look(self) -> None:
        self._timer = self._loop.call_later(_LOOK_EVERY, self._look)
        revoked = self.gate.refresh()
        if self.permissions is not None:
            self.permissions.refresh()
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


def _address(link: Link) -> str:
    return "?" if link.channel is None else link.channel.address
