"""The two halves of a stream, the same for arguments and for answers: an outlet where items leave, an inlet where they
come in and wait for their reader."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from ._core import messages as m
from ._core.credit import ReceiveWindow, SendWindow, weigh
from ._core.messages import ProtocolError

if TYPE_CHECKING:
    from ._link import Link

__all__ = ["Inlet", "Outlet"]


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
            raise RuntimeError("two tasks read one stream at the same time; give each its own")
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
        # What was sent and not credited, for an attempt elsewhere; None once the peer has begun with it.
        self._retained: list[object] | None = None if answer else []
        self._backlog: deque[object] = deque()  # of those, what the peer of a later attempt has no room for yet

    def attach(self, link: Link, number: int) -> None:
        """From here on items leave over `link`, for its call `number`; those that left by another one once more."""
        assert link.remote is not None
        self._link, self._number = link, number
        self._window = SendWindow(link.remote.max_items, link.remote.max_item_bytes)
        self._backlog = deque(self._retained or ())
        self.sent = 0
        if self._retained is not None:
            self._retained = []
        self._go_on()

    @property
    def room(self) -> bool:
        """Whether one more item may be sent."""
        return self._window.room and not self._backlog and self._link is not None and not self._link.full

    async def wait_for_room(self) -> None:
        while not self.room:
            await self.wait()

    def send(self, value: object) -> None:
        """Send an item. Raises TypeError or ValueError for one without a form on the wire."""
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
        """The peer's reader took so many items; 0: the peer has begun with the call."""
        self._retained = None
        self._window.credited(items)
        self._go_on()

    def _go_on(self) -> None:
        while self._backlog and self._window.room:
            self.send(self._backlog.popleft())
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

    __slots__ = ("_credit", "_items", "_window", "ended")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, items: int, bytes: int, credit: Callable[[int], object]
    ) -> None:
        """items, bytes: what may wait here at most, as our HELLO says. credit: sends credit for so many items."""
        super().__init__(loop)
        self._items: deque[object] = deque()
        self._window = ReceiveWindow(items, bytes)
        self._credit = credit
        self.ended = False

    def put(self, sequence: int, value: object) -> None:
        """An item has come. Raises ProtocolError for one that may not."""
        if self.ended:
            raise ProtocolError("an item behind the end of its stream")
        self._window.arrived(sequence, len(self._items))
        self._items.append(value)
        self.wake()

    def end(self, items: int) -> None:
        """There are no more. Raises ProtocolError where not all have come."""
        if items != self._window.received & m.LIMIT:
            raise ProtocolError(f"a stream ended after {items} items, and {self._window.received} came")
        self.ended = True
        self.wake()

    def __len__(self) -> int:
        return len(self._items)

    @property
    def received(self) -> int:
        """How many have come in all."""
        return self._window.received

    def take(self) -> object:
        """The next item, which is there."""
        value = self._items.popleft()
        items = self._window.taken(weigh(value))
        if items:
            self._credit(items)
        return value

    def drop(self) -> None:
        """Nobody reads any more."""
        self._items.clear()
