"""Flow control of streams: how many items, and how many bytes, may be under way.

The receiver says in its HELLO how much it holds for one stream; the sender keeps what is under way within that, and
the receiver gives credit for the items that were taken. Bytes are counted by one rule on both sides, so credit names
items only. An item is sent while less than the window is under way: one that is larger than the whole window still
passes, alone.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Mapping, Set
from typing import Any, Final

from .messages import ProtocolError

__all__ = ["ReceiveWindow", "SendWindow", "weigh"]

_WORD: Final = 8  # bytes that every data item counts
_ALIKE: Final = frozenset((int, float, bool, type(None)))  # what weighs that and no more


def weigh(value: Any) -> int:
    """The size of an item: 8 for each data item in it, plus the length of texts (in code points) and of binaries.

    What CBOR tags stand for, such as dates and large integers, is one data item of 8; a set counts as its array does.
    """
    kind = type(value)
    if kind in _ALIKE:
        return _WORD
    if kind is str or kind is bytes:
        return _WORD + len(value)
    if kind is dict:
        return _WORD + sum(weigh(key) + weigh(item) for key, item in value.items())
    if kind is list or kind is tuple:
        return _WORD + sum(map(weigh, value))
    if isinstance(value, memoryview):
        return _WORD + value.nbytes
    if isinstance(value, bytearray):
        return _WORD + len(value)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray):
        return _WORD + int(value.nbytes)
    if isinstance(value, Set):
        return _WORD + sum(map(weigh, value))
    if isinstance(value, Mapping):  # what the decoder makes of a map in a set
        return _WORD + sum(weigh(key) + weigh(item) for key, item in value.items())
    return _WORD


class SendWindow:
    """The sender's side of one stream."""

    __slots__ = ("_bytes", "_items", "_sizes", "_under_way")

    def __init__(self, items: int, bytes: int) -> None:
        self._items = items
        self._bytes = bytes
        self._sizes: deque[int] = deque()  # of the items under way
        self._under_way = 0  # bytes

    @property
    def room(self) -> bool:
        """Whether one more item may be sent."""
        return len(self._sizes) < self._items and self._under_way < self._bytes

    @property
    def items(self) -> int:
        """How many are under way."""
        return len(self._sizes)

    def sent(self, size: int) -> None:
        self._sizes.append(size)
        self._under_way += size

    def credited(self, items: int) -> None:
        """The receiver's reader took `items`. Raises ProtocolError where that is more than were under way."""
        if items > len(self._sizes):
            raise ProtocolError(f"credit for {items} items, and {len(self._sizes)} were under way")
        for _ in range(items):
            self._under_way -= self._sizes.popleft()


class ReceiveWindow:
    """The receiver's side: checks what comes, and says when credit is due: at half a window, so that the sender
    neither waits for it nor is told of every item."""

    __slots__ = ("_bytes", "_items", "_taken", "_taken_bytes", "received", "waiting_bytes")

    def __init__(self, items: int, bytes: int) -> None:
        self._items = items
        self._bytes = bytes
        self._taken = 0  # items that no credit was given for yet
        self._taken_bytes = 0
        self.received = 0
        self.waiting_bytes = 0  # of items that are not taken yet

    def arrived(self, sequence: int, waiting: int, size: int) -> None:
        """An item has come, and `waiting` others are not taken yet. Raises ProtocolError for one too many, or where
        one is missing."""
        self.received += 1
        if sequence != self.received & 0x7FFF_FFFF:
            raise ProtocolError(f"item {sequence} of a stream came where {self.received} was due")
        if waiting + self._taken >= self._items:
            raise ProtocolError(f"more than the {self._items} items that a stream may have under way")
        if self.waiting_bytes + self._taken_bytes >= 2 * self._bytes:  # twice: some values weigh more here than there
            raise ProtocolError(f"more than the {self._bytes} bytes that a stream may have under way")
        self.waiting_bytes += size

    def taken(self, size: int) -> int:
        """The reader took an item: for how many to give credit now; mostly 0."""
        self._taken += 1
        self._taken_bytes += size
        self.waiting_bytes -= size
        if self._taken * 2 < self._items and self._taken_bytes * 2 < self._bytes:
            return 0
        return self.rest()

    def rest(self) -> int:
        """For how many items credit can be given now."""
        items, self._taken, self._taken_bytes = self._taken, 0, 0
        return items
