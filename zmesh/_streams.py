"""The two halves of a stream, the same for arguments and for answers: an outlet where items leave, an inlet where they
come in and wait for their reader."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from ._core import messages as m
from ._core.credit import ReceiveWindow, SendWindow, weigh
from ._core.messages import ProtocolError
from ._core.wire import lasting

if TYPE_CHECKING:
    from ._link import Link

__all__ = ["TWO_READERS", "Inlet", "Outlet"]

TWO_READERS: Final = "two tasks read one stream at the same time; give each its own"


class _Signal:
    """Lets one task wait until something may have changed."""

    __slots__ = ("_loop", "_waiter")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiter: asyncio.Future[None] | None = None

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        if self._waiter is not None:
            raise RuntimeError(TWO_READERS)
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None


class Outlet(_Signal):
    """Where the items of one stream leave.

    answer: whether they are the answer to a call of the peer's; else they are an argument of a call of ours.
    """

    __slots__ = ("_answer", "_backlog", "_link", "_number", "_retained", "_window", "ended", "sent")

    def __init__(self, loop: asyncio.AbstractEventLoop, *, answer: bool) -> None:
        super().__init__(loop)
        self._answer = answer
        self._link: Link | None = None
        self._number = 0
        self._window = SendWindow(0, 0)
        self.sent = 0
        self.ended = False
        # What left by this attempt, for one elsewhere; None once the peer has begun with it.
        self._retained: list[object] | None = None if answer else []
        self._backlog: deque[object] = deque()  # behind those, what the peer of a later attempt has no room for yet

    def attach(self, link: Link, number: int) -> None:
        """From here on items leave over `link`, for its call `number`; those that left by another one once more.

        Raises TypeError or ValueError for one that this peer does not take.
        """
        assert link.remote is not None
        self._link, self._number = link, number
        self._window = SendWindow(link.remote.max_items, link.remote.max_item_bytes)
        if self._retained is not None:
            self._backlog.extendleft(reversed(self._retained))
            self._retained = []
        self.sent = 0
        self._go_on()

    @property
    def room(self) -> bool:
        """Whether one more item may be sent."""
        return self._window.room and not self._backlog and self._link is not None and not self._link.full

    async def wait_for_room(self) -> None:
        while not self.room:
            await self.wait()

    def send(self, value: object) -> None:
        """Send an item as it is now, behind all that came before it. Raises TypeError or ValueError for one without a
        form on the wire."""
        value = lasting(value)
        if self._backlog or not self._window.room:  # the call went elsewhere while this one was being made
            self._backlog.append(value)
        else:
            self._post(value)

    def _post(self, value: object) -> None:
        assert self._link is not None
        self._link.item(self._number, self._answer, self.sent + 1, value)
        self.sent += 1
        self._window.sent(weigh(value))
        if self._retained is not None:
            self._retained.append(value)

    def end(self) -> None:
        """There are no more items."""
        self.ended = True
        self._go_on()

    def credited(self, items: int) -> None:
        """The peer's reader took so many items; 0: the peer has begun with the call.

        Raises ProtocolError where they were not under way, TypeError or ValueError for what this peer does not take.
        """
        self._retained = None
        self._window.credited(items)
        self._go_on()

    def _go_on(self) -> None:
        while self._backlog and self._window.room:
            self._post(self._backlog.popleft())
        if self.ended and not self._backlog and self._link is not None:
            self._link.post([m.END, self._number, self.sent & m.LIMIT])
            self._link = None
        self.wake()

    @property
    def under_way(self) -> int:
        """Items without credit."""
        return self._window.items


class Inlet(_Signal):
    """Where the items of one stream come in."""

    __slots__ = ("_credit", "_items", "_telling", "_window", "closed", "ended")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, items: int, bytes: int, credit: Callable[[int], object]
    ) -> None:
        """items, bytes: what may wait here at most, as our HELLO says. credit: sends credit for so many items."""
        super().__init__(loop)
        self._items: deque[tuple[object, int]] = deque()  # each with its size
        self._window = ReceiveWindow(items, bytes)
        self._credit = credit
        self._telling = False  # whether credit leaves at the end of this turn
        self.ended = False
        self.closed = False  # its call is over

    def put(self, sequence: int, value: object) -> None:
        """An item has come. Raises ProtocolError for one that may not."""
        if self.ended:
            raise ProtocolError("an item behind the end of its stream")
        size = weigh(value)
        self._window.arrived(sequence, len(self._items), size)
        self._items.append((value, size))
        self.wake()

    def end(self, items: int) -> None:
        """There are no more. Raises ProtocolError where not all have come, or where this was said before."""
        if self.ended:
            raise ProtocolError("a second end of a stream")
        if items != self._window.received & m.LIMIT:
            raise ProtocolError(f"a stream ended after {items} items, and {self._window.received} came")
        self.ended = True
        self.wake()

    def __len__(self) -> int:
        return len(self._items)

    @property
    def size(self) -> int:
        """Bytes that wait here."""
        return self._window.waiting_bytes

    @property
    def received(self) -> int:
        """How many have come in all."""
        return self._window.received

    def take(self) -> object:
        """The next item, which is there."""
        value, size = self._items.popleft()
        items = self._window.taken(size)
        if items:
            self._credit(items)
        elif self.ended and not self._telling:  # from here on the sender counts how long the reader takes
            self._telling = True
            self._loop.call_soon(self._tell)
        return value

    def _tell(self) -> None:
        self._telling = False
        items = self._window.rest()
        if items and not self.closed:
            self._credit(items)

    def close(self) -> None:
        """The call is over: what was not read is dropped, and who waits is told."""
        self.closed = True
        self._items.clear()
        self._window.waiting_bytes = 0
        self.wake()
