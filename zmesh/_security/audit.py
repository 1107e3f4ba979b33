"""What was refused, and to whom: counted, and told in the log once per peer and minute. Pure: time is an argument.

An attacker who comes with many addresses or keys costs a bounded table, and a bounded log.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from .._core.messages import printable

__all__ = ["Audit", "What"]

What = Literal["handshake", "call"]

EVERY: Final = 60.0  # seconds between two lines about one peer
MOST: Final = 256  # peers that are remembered: more than an honest mesh refuses in a minute, some 100 KiB
_REASON: Final = 400  # characters of one


class _Peer:
    """What one peer was refused. silent: how often since the last line about it."""

    __slots__ = ("address", "counts", "reason", "said", "silent")

    def __init__(self) -> None:
        self.counts: dict[What, int] = {"handshake": 0, "call": 0}
        self.address = self.reason = ""
        self.silent = 0
        self.said = float("-inf")


class Audit:
    """See the module. handshakes, calls: how many were refused, to whomever."""

    def __init__(self, most: int = MOST) -> None:
        self.handshakes = 0
        self.calls = 0
        self._most = most
        self._peers: dict[str, _Peer] = {}  # the one that came longest ago first
        self._others = _Peer()  # all who came while the table was full of peers of this very minute
        self._forgotten = 0

    def refused(self, what: What, fingerprint: str | None, address: str, reason: str, now: float) -> str | None:
        """Count a refusal; the line for the log, where one is due.

        fingerprint: of the key that the peer has proven; None where it has proven none: then it is remembered by its
        address, that of its host: who connects again comes from another port. now: in seconds.
        """
        if what == "call":
            self.calls += 1
        else:
            self.handshakes += 1
        peer, known = self._find(fingerprint or printable(address), now)
        peer.counts[what] += 1
        peer.address, peer.reason = printable(address), printable(reason, _REASON)
        if now - peer.said < EVERY:
            peer.silent += 1
            return None
        silent, peer.said, peer.silent = peer.silent, now, 0
        who = f"key {fingerprint} at {peer.address}" if fingerprint else f"{peer.address}, without a key"
        more = f" ({silent} more since the last line of this kind)" if silent else ""
        some = "" if known else f" (and others: more than {self._most} peers were refused in a minute)"
        return f"refused a {what} of {who}: {peer.reason}{more}{some}"

    def stats(self) -> dict[str, Any]:
        """As plain values: how many of each were refused; of those that are remembered, by fingerprint or host, how
        many, from which address and why the last time; how many peers are not remembered any more."""
        return {
            "refused_handshakes": self.handshakes,
            "refused_calls": self.calls,
            "refused_peers": {
                name: {
                    "handshakes": peer.counts["handshake"],
                    "calls": peer.counts["call"],
                    "address": peer.address,
                    "reason": peer.reason,
                }
                for name, peer in self._peers.items()
            },
            "refused_others": self._forgotten,
        }

    def _find(self, name: str, now: float) -> tuple[_Peer, bool]:
        """What is remembered of a peer, and whether it is of this one alone."""
        peer = self._peers.pop(name, None)
        if peer is None:
            if len(self._peers) >= self._most:
                oldest = next(iter(self._peers))
                if now - self._peers[oldest].said < EVERY:  # to forget it would be to log it again at once
                    self._forgotten += 1
                    return self._others, False
                del self._peers[oldest]
                self._forgotten += 1
            peer = _Peer()
        self._peers[name] = peer
        return peer, True
