"""The two halves of a stream, the same for arguments and for answers: an outlet where items leave, an inlet where they
come in and wait for their reader."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from ._core import messages as m
from ._core.credit import ReceiveWindow, SendWindow, share_of, weigh
from ._core.messages import Message, ProtocolError
from ._core.wire import decode_row, encode_row, fits_row, lasting, length_of_row
from ._items import Items
from ._platform import clock_of
from ._signature import ABSENT
from .errors import RpcError

if TYPE_CHECKING:
    from ._link import Link

__all__ = ["TWO_READERS", "Inlet", "Outlet"]

TWO_READERS: Final = "two tasks read one stream at the same time; give each its own"
_ROW: Final = 64  # items: enough to share an envelope's costs, few enough that both ends work at the same time
_ROW_BYTES: Final = 32 * 1024
_SLICE: Final = 0.001  # seconds that a producer which does not wait may take for a row, before others have their turn
_OVERHEAD: Final = 64  # bytes of an envelope around a row


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

    Small items leave in rows: one is open from its first item until its link turns the page, at the end of the loop's
    turn or earlier; or until it is full, or something else of the stream follows.

    answer: whether they are the answer to a call of the peer's; else they are an argument of a call of ours.
    sent: how many left in rows that are closed, or by themselves.
    """

    __slots__ = (
        "_answer", "_backlog", "_due", "_link", "_number", "_odd", "_retained", "_row", "_row_bytes", "_row_message",
        "_slice_ends", "_time", "_window", "ended", "sent",
    )  # fmt: skip

    def __init__(self, loop: asyncio.AbstractEventLoop, *, answer: bool) -> None:
        super().__init__(loop)
        self._time = clock_of(loop)
        self._answer = answer
        self._link: Link | None = None
        self._number = 0
        self._window = SendWindow(0, 0)
        self.sent = 0
        self.ended = False
        self._row: list[object] = []  # the items of the open row, always the same list
        self._row_message: Message | None = None  # where it will stand
        self._row_bytes = 0  # of those in it that were measured
        self._due = 1  # the length of the row at which to look at it again
        self._slice_ends = 0.0
        # What left by this attempt, for one elsewhere; None once the peer has begun with it.
        self._retained: list[object] | None = None if answer else []
        self._backlog: deque[object] = deque()  # behind those, what the peer has no room for yet
        self._odd = True  # an item cannot simply join the row

    def attach(self, link: Link, number: int) -> None:
        """From here on items leave over `link`, for its call `number`; those that left by another one once more.

        Raises TypeError or ValueError for one that this peer does not take.
        """
        assert link.remote is not None
        if self._row_message is not None and self._link is not None:
            self._link.replace(self._row_message, [])
        self._link, self._number = link, number
        self._window = SendWindow(link.remote.max_items, link.remote.max_item_bytes)
        self._backlog.extendleft(reversed(self._row))
        self._begin_row()
        if self._retained is not None:
            self._backlog.extendleft(reversed(self._retained))
            self._retained = []
        self.sent = 0
        self._go_on()

    @property
    def room(self) -> bool:
        """Whether one more item may be sent."""
        return self._has_window and not self._backlog and self._link is not None and not self._link.full

    @property
    def _has_window(self) -> bool:
        return self._window.room and self._window.left > len(self._row)

    async def wait_for_room(self) -> None:
        while not self.room:
            await self.wait()

    async def drained(self) -> None:
        """Wait until all items have left."""
        self.close_row()
        while self._backlog:
            await self.wait()
            self.close_row()

    async def pump(
        self,
        iterator: Any,
        small: Callable[[object], object],
        send: Callable[[Any], None],
        wanted: Callable[[], bool],
    ) -> bool:
        """Send what an asynchronous iterator yields, as far as the peer gives credit. False where it is not exhausted,
        and nobody wants more of it.

        small: as `Items` has it. send: calls our `send` with the tree of any other item.
        wanted: asked when an item leaves and others may have had their turn since.
        """
        row = self._row
        append = row.append
        await self.wait_for_room()
        async for item in _Begun(iterator):
            value = small(item)
            if value is ABSENT or self._odd:
                if not wanted():
                    return False
                send(item)
            else:
                append(value)
                due = self._due
                if len(row) < due:
                    continue
                if due == 1 and not wanted():
                    row.clear()
                    return False
                self._look()
            if self._row_message is not None and self._time() > self._slice_ends:
                self.close_row()
                await asyncio.sleep(0)
            if not self.room:
                await self.wait_for_room()
        return True

    def send(self, value: object) -> None:
        """Send an item as it is now, behind all that came before it. Raises TypeError or ValueError for one without a
        form on the wire."""
        value = lasting(value)
        if self._backlog or not self._has_window:  # the call went elsewhere while this one was being made
            self._backlog.append(value)
            self._odd = True
        else:
            self._post(value)

    def _post(self, value: object) -> None:
        """Send an item that there is room for: in a row where it is small."""
        size = _measured(value)
        if size > _ROW_BYTES // 2:
            waiting = len(self._backlog)
            self.close_row()
            waiting = len(self._backlog) - waiting  # what the row had no room for comes first
            if waiting or not self._window.room:
                self._backlog.insert(waiting, value)
                self._odd = True
            else:
                self._post_alone(value)
        else:
            self._row.append(value)
            self._row_bytes += size
            self._look()

    def _post_alone(self, value: object) -> None:
        assert self._link is not None
        self._link.item(self._number, self._answer, self.sent + 1, value)
        self._left(weigh(value), [value])

    def _left(self, size: int, values: list[object]) -> None:
        self.sent += len(values)
        self._window.sent(size, len(values))
        if self._retained is not None:
            self._retained += values

    def _look(self) -> None:
        """The row has one item more: open it, close it, or say when to look again."""
        row, link = self._row, self._link
        assert link is not None
        length = len(row)
        if self._row_message is None:
            self._slice_ends = self._time() + _SLICE
            if not self._window.room:  # there was some before the row in front of it left
                self._wait_with(row[:])
                self._begin_row()
                return
            if link.diverts:  # what goes by the bulk connection goes one by one
                value = row.pop()
                self._begin_row()
                self._post_alone(value)
                return
            self._row_message = [m.ITEMS, self._number, self._answer, (self.sent + 1) & m.LIMIT, b""]
            link.open_row(self, self._row_message)
        most = min(_ROW, self._window.left)
        if length >= most or self._row_bytes >= _ROW_BYTES:
            self.close_row()
            link.row_closed(length)
        else:
            self._due = min(2 * length, most)  # so that one whose items take long is not long

    def _begin_row(self) -> None:
        self._row.clear()
        self._row_message, self._row_bytes, self._due = None, 0, 1

    def close_row(self) -> None:
        """What follows is no part of the row. Where the peer has no room for all of it, the rest waits."""
        row, values, link, window = self._row_message, self._row[:], self._link, self._window
        if row is None or link is None:
            return
        self._begin_row()
        parts: list[Message] = []
        apart = False
        while values and window.room:
            items, encoded = ([], None) if apart else self._encoded(values, link.limit - _OVERHEAD)
            first = (self.sent + 1) & m.LIMIT
            if encoded is not None:
                parts.append([m.ITEMS, self._number, self._answer, first, encoded])
                self._left(share_of(len(encoded), len(items)), items)
            else:
                apart, items = True, values[:1]
                parts.append([m.ITEM, self._number, self._answer, first, values[0]])
                self._left(weigh(values[0]), items)
            del values[: len(items)]
        self._wait_with(values)
        if len(parts) == 1 and parts[0][0] == m.ITEMS:
            row[4] = parts[0][4]
        else:
            link.replace(row, parts)

    def _encoded(self, values: list[object], limit: int) -> tuple[list[object], bytes | None]:
        """The first items of a row that the peer has room for, and those encoded; None where they go one by one."""
        while True:
            try:
                encoded = encode_row(values)
            except (TypeError, ValueError):  # one of them has no form on the wire
                return values, None
            if len(encoded) > limit:
                return values, None
            fitting = self._window.first_of(len(values), share_of(len(encoded), len(values)))
            if fitting == len(values):
                return values, encoded
            values = values[:fitting]

    def _wait_with(self, values: list[object]) -> None:
        if values:
            self._backlog.extendleft(reversed(values))
            self._odd = True

    def end(self) -> None:
        """There are no more items."""
        self.ended = True
        self.close_row()
        self._go_on()

    def credited(self, items: int) -> None:
        """The peer's reader took so many items; 0: the peer has begun with the call.

        Raises ProtocolError where they were not under way, TypeError or ValueError for what this peer does not take.
        """
        self._retained = None
        self._window.credited(items)
        self._go_on()

    def _go_on(self) -> None:
        while self._backlog and self._has_window:
            self._post(self._backlog.popleft())
        if self.ended and not self._backlog and self._link is not None:
            self.close_row()
        if self.ended and not self._backlog and self._link is not None:
            self._link.post([m.END, self._number, self.sent & m.LIMIT])
            self._link = None
        self._odd = bool(self._backlog) or self._link is None
        self.wake()

    @property
    def under_way(self) -> int:
        """Items without credit."""
        return self._window.under_way


class _Begun:
    """What is iterated over already, to go on with."""

    __slots__ = ("_iterator",)

    def __init__(self, iterator: Any) -> None:
        self._iterator = iterator

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._iterator  # type: ignore[no-any-return]


def _measured(value: object) -> int:
    """Bytes of an item in a row; very many for one that does not fit into any."""
    if fits_row(value):
        try:
            return len(encode_row([value]))
        except (TypeError, ValueError):  # has no form on the wire: whoever sends it will say so
            pass
    return m.LIMIT


class Inlet(_Signal):
    """Where the items of one stream come in.

    ready: items that the reader may take at will, the next one first. `take` gives the one behind them.
    """

    __slots__ = (
        "_credit", "_each", "_lent", "_load", "_load_row", "_loaded", "_malformed", "_raw", "_rows", "_telling",
        "_window", "closed", "ended", "ready",
    )  # fmt: skip

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        items: int,
        bytes: int,
        credit: Callable[[int], object],
        form: Items,
        malformed: type[RpcError],
    ) -> None:
        """items, bytes: what may wait here at most, as our HELLO says. credit: sends credit for so many items.
        malformed: what the reader gets where a row that it comes to is none."""
        super().__init__(loop)
        self.ready: deque[Any] = deque()
        self._lent = 0  # how many were put there, of those that the window does not know to be taken
        self._loaded: deque[Any] = deque()  # what is behind those in the row that they are of
        self._raw = False  # and is not loaded yet, since something in it does not fit
        self._each = 0  # the size of all these
        # Each with how many items it has, and the size of these. What is encoded is decoded for its reader, and not
        # before: that takes many times the memory.
        self._rows: deque[tuple[list[object] | Any, int, int]] = deque()
        self._window = ReceiveWindow(items, bytes)
        self._credit = credit
        self._load, self._load_row = form.load, form.load_row
        self._malformed = malformed
        self._telling = False  # whether credit leaves at the end of this turn
        self.ended = False
        self.closed = False  # its call is over

    def put(self, sequence: int, items: list[object] | bytes, size: int) -> None:
        """Items have come, perhaps as a row, each of this size. Raises ProtocolError for what may not."""
        if self.ended:
            raise ProtocolError("an item behind the end of its stream")
        count = len(items) if isinstance(items, list) else length_of_row(items)
        self._window.arrived(sequence, size, count)
        self._rows.append((items, count, size))
        self.wake()

    def end(self, items: int) -> None:
        """There are no more. Raises ProtocolError where not all have come, or where this was said before."""
        if self.ended:
            raise ProtocolError("a second end of a stream")
        if items != self._window.received & m.LIMIT:
            raise ProtocolError(f"a stream ended after {items} items, and {self._window.received} came")
        self.ended = True
        # From here on the sender counts how long the reader takes: each item is told of.
        self._loaded.extendleft(reversed(self.ready))
        left = self._lent - len(self.ready)
        self.ready.clear()
        self._lent = 0
        if left:
            self._take_note(left)
        self.wake()

    def __len__(self) -> int:
        return len(self.ready) + len(self._loaded) + sum(count for _, count, _ in self._rows)

    def __bool__(self) -> bool:
        """Whether an item is here."""
        return bool(self.ready or self._loaded or self._rows)

    @property
    def size(self) -> int:
        """Bytes that wait here."""
        return self._window.waiting_bytes

    @property
    def received(self) -> int:
        """How many have come in all."""
        return self._window.received

    def take(self) -> Any:
        """The next item, which is there, and `ready` is empty. Raises what `Items.load` raises, or for a row that is
        none."""
        if self._lent:
            lent, self._lent = self._lent, 0
            self._take_note(lent)
        loaded = self._loaded
        if not loaded:
            self._next_row()
        value = loaded.popleft()
        self._take_note(1)
        if self._raw:
            self._raw = bool(loaded)
            return self._load(value)
        if loaded and not self.ended:
            self._lent = free = min(len(loaded), self._window.until_due(self._each))
            if free == len(loaded):
                self.ready.extend(loaded)
                loaded.clear()
            else:
                self.ready.extend(islice(loaded, free))
                for _ in range(free):
                    loaded.popleft()
        return value

    def _next_row(self) -> None:
        items, _, self._each = self._rows.popleft()
        try:
            values = items if isinstance(items, list) else decode_row(items)
        except ProtocolError as error:
            raise self._malformed(f"malformed stream: {error}", may_have_run=True) from None
        if len(values) > 1:
            try:
                self._loaded.extend(self._load_row(values))
                return
            except Exception:  # the reader has those before it first
                self._loaded.clear()
        self._loaded.extend(values)
        self._raw = True

    def _take_note(self, items: int) -> None:
        """The reader took so many items of the row at hand."""
        credit = self._window.taken(self._each, items)
        if credit:
            self._credit(credit)
        elif self.ended and not self._telling:
            self._telling = True
            self._loop.call_soon(self._tell)

    def _tell(self) -> None:
        self._telling = False
        items = self._window.rest()
        if items and not self.closed:
            self._credit(items)

    def close(self) -> None:
        """The call is over: what was not read is dropped, and who waits is told."""
        self.closed = True
        self.ready.clear()
        self._loaded.clear()
        self._rows.clear()
        self._window.waiting_bytes = 0
        self.wake()
