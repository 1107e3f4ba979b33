"""What was refused, and to whom: counted, and told in the log once per peer, reason and minute. Time is an argument.

An attacker who comes with many addresses, keys or reasons costs a bounded table, and a bounded log.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from .._core.messages import printable

__all__ = ["Audit", "What"]

What = Literal["handshake", "call"]

EVERY: Final = 60.0  # seconds between two lines that say the same of one peer
MOST: Final = 256  # peers that are remembered: more than an honest mesh refuses in a minute; below 1 MiB in all
REASONS: Final = 4  # of one peer that are told within a minute
_LENGTH: Final = 400  # characters of a reason


class _Line:
    """What was said of one peer. silent: how often it was true since then."""

    __slots__ = ("said", "silent")

    def __init__(self, said: float) -> None:
        self.said = said
        self.silent = 0


class _Peer:
    """What one peer was refused, and when last."""

    __slots__ = ("address", "counts", "last", "lines", "reason")

    def __init__(self) -> None:
        self.counts: dict[What, int] = {"handshake": 0, "call": 0}
        self.address = self.reason = ""
        self.last = 0.0
        self.lines: dict[tuple[What, str], _Line] = {}

    def line(self, what: What, reason: str, now: float) -> int | None:
        """How often this was true since it was last said; None where it is not to be said now."""
        line = self.lines.get((what, reason))
        if line is None:
            if len(self.lines) >= REASONS:
                self.lines = {key: each for key, each in self.lines.items() if now - each.said < EVERY}
            if len(self.lines) < REASONS:
                self.lines[what, reason] = _Line(now)
                return 0
            return None
        if now - line.said < EVERY:
            line.silent += 1
            return None
        silent, line.said, line.silent = line.silent, now, 0
        return silent


class Audit:
    """See the module. handshakes, calls: how many were refused, to whomever."""

    def __init__(self, most: int = MOST) -> None:
        self.handshakes = 0
        self.calls = 0
        self._most = most
        self._peers: dict[str, _Peer] = {}  # who came longest ago first
        self._others = _Line(float("-inf"))  # of all who came while the table was full of peers of this very minute
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
        address, reason = printable(address), printable(reason, _LENGTH)
        who = address if fingerprint is None else f"{address}, key {fingerprint}"
        peer = self._find(fingerprint or address, now)
        if peer is None:
            return self._other(what, who, reason, now)
        peer.counts[what] += 1
        peer.address, peer.reason, peer.last = address, reason, now
        silent = peer.line(what, reason, now)
        if silent is None:
            return None
        more = f" ({silent} times more since this was last said)" if silent else ""
        return f"refused a {what} from {who}: {reason}{more}"

    def stats(self) -> dict[str, Any]:
        """As plain values: how many of each were refused; of the peers that are remembered, by fingerprint or address,
        how many, from which address and why the last time; how many more peers came, which are not remembered."""
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

    def _find(self, name: str, now: float) -> _Peer | None:
        """What is remembered of a peer; None where there is no room for one more."""
        peer = self._peers.pop(name, None)
        if peer is None:
            if len(self._peers) >= self._most:
                oldest = next(iter(self._peers))
                self._forgotten += 1
                if now - self._peers[oldest].last < EVERY:  # forgotten now, it would be told of again at once
                    return None
                del self._peers[oldest]
            peer = _Peer()
        self._peers[name] = peer
        return peer

    def _other(self, what: What, who: str, reason: str, now: float) -> str | None:
        others = self._others
        if now - others.said < EVERY:
            others.silent += 1
            return None
        others.said, silent, others.silent = now, others.silent, 0
        more = f", {silent} more before" if silent else ""
        why = f"over {self._most} peers were refused in a minute"
        return f"refused a {what} from {who}: {reason} (and others{more}: {why})"
