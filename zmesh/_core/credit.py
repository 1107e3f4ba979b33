"""Flow control of streams: how many items, and how many bytes, may be under way.

The receiver says in its HELLO how much it holds for one stream; the sender keeps what is under way within that, and
the receiver gives credit for the items that were taken. Bytes are counted by one rule on both sides, so credit names
items only: an item that travels by itself is weighed (`weigh`), one in a row has its share of the row's length
(`share_of`). An item is sent while less than the window is under way: one that is larger than the whole window still
passes, alone.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Mapping, Set
from typing import Any, Final

from .messages import ProtocolError

__all__ = ["ReceiveWindow", "SendWindow", "share_of", "weigh"]

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


def share_of(row: int, items: int) -> int:
    """What each item of a row weighs: its part of the row's bytes, rounded up."""
    return -(-row // items)


class SendWindow:
    """The sender's side of one stream.

    under_way: items that were sent and not credited. left: how many more may be, as far as their number goes.
    """

    __slots__ = ("_bytes", "_bytes_under_way", "_items", "_sizes", "left", "under_way")

    def __init__(self, items: int, bytes: int) -> None:
        self._items = self.left = items
        self._bytes = bytes
        self._sizes: deque[tuple[int, int]] = deque()  # of the items under way: how many of which size
        self.under_way = self._bytes_under_way = 0

    @property
    def room(self) -> bool:
        """Whether one more item may be sent."""
        return self.left > 0 and self._bytes_under_way < self._bytes

    def first_of(self, items: int, size: int) -> int:
        """How many of so many items of this size may be sent now, where there is room for one."""
        return min(items, (self._bytes - self._bytes_under_way - 1) // size + 1)

    def sent(self, size: int, items: int = 1) -> None:
        """So many items have left, each of this size."""
        self._sizes.append((items, size))
        self.under_way += items
        self.left -= items
        self._bytes_under_way += size * items

    def credited(self, items: int) -> None:
        """The receiver's reader took `items`. Raises ProtocolError where that is more than were under way."""
        if items > self.under_way:
            raise ProtocolError(f"credit for {items} items, and {self.under_way} were under way")
        self.under_way -= items
        self.left += items
        sizes = self._sizes
        while items:
            count, size = sizes[0]
            if count > items:
                sizes[0] = (count - items, size)
                count = items
            else:
                sizes.popleft()
            self._bytes_under_way -= size * count
            items -= count


class ReceiveWindow:
    """The receiver's side: checks what comes, and says when credit is due: at half a window, so that the sender
    neither waits for it nor is told of every item."""

    __slots__ = ("_bytes", "_items", "_taken", "_taken_bytes", "_waiting", "received", "waiting_bytes")

    def __init__(self, items: int, bytes: int) -> None:
        self._items = items
        self._bytes = bytes
        self._taken = 0  # items that no credit was given for yet
        self._taken_bytes = 0
        self._waiting = 0  # items that are not taken yet
        self.received = 0
        self.waiting_bytes = 0  # of items that are not taken yet

    def arrived(self, sequence: int, size: int, items: int = 1) -> None:
        """So many items of this size have come, of which this is the first one's number. Raises ProtocolError where
        they are too many, or one is missing."""
        if sequence != (self.received + 1) & 0x7FFF_FFFF:
            raise ProtocolError(f"item {sequence} of a stream came where {self.received + 1} was due")
        if self._waiting + self._taken + items > self._items:
            raise ProtocolError(f"more than the {self._items} items that a stream may have under way")
        before_last = self.waiting_bytes + self._taken_bytes + size * (items - 1)
        if before_last >= 2 * self._bytes:  # twice: some values weigh more here than there
            raise ProtocolError(f"more than the {self._bytes} bytes that a stream may have under way")
        self.received += items
        self._waiting += items
        self.waiting_bytes += size * items

    def until_due(self, size: int) -> int:
        """How many items of this size can be taken before credit is due with one more."""
        items = (self._items + 1) // 2 - self._taken
        if size:
            items = min(items, -(-(self._bytes - 2 * self._taken_bytes) // (2 * size)))
        return max(items - 1, 0)

    def taken(self, size: int, items: int = 1) -> int:
        """The reader took so many items of this size: for how many to give credit now; mostly 0."""
        self._taken += items
        self._taken_bytes += size * items
        self._waiting -= items
        self.waiting_bytes -= size * items
        if self._taken * 2 < self._items and self._taken_bytes * 2 < self._bytes:
            return 0
        return self.rest()

    def rest(self) -> int:
        """For how many items credit can be given now."""
        items, self._taken, self._taken_bytes = self._taken, 0, 0
        return items
