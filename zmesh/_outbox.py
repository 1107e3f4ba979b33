"""What one link sends: pages of messages, each encoded in one call and sent as one envelope."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from ._core.bulk import CallKey
from ._core.messages import CALL, CALLS, END, ERROR, ITEM, ITEMS, LIMIT, REPLIES, REPLY, Message, single
from ._core.wire import MARGIN, encode, externalize, frames_of, is_plain
from ._platform import clock_of
from ._transport import Frame, Sent
from .config import Config

if TYPE_CHECKING:
    from ._link import Link
    from ._streams import Outlet

__all__ = ["Outbox"]

_PAGE_MESSAGES: Final = 32  # enough to share an envelope's costs, few enough that both ends work at the same time
_NOTHING: Final = -1
_ANSWER: Final = -2
_MORE_ANSWERS: Final = -3  # those that have one message already
_PAGE_FRAMES: Final = 64  # large values behind it
_TAKEN: Final = Sent.TAKEN
_RETRY_FULL: Final = 0.005  # seconds until a full queue is tried again


class Outbox:
    """See the module. Messages leave together at the end of the loop's turn, or earlier when a page is full."""

    def __init__(self, link: Link, loop: asyncio.AbstractEventLoop, config: Config) -> None:
        self._link = link
        self._loop = loop
        self._time = clock_of(loop)
        self._config = config
        self.flushed = 0  # the sequence of the last call that was handed to the transport
        self._messages: list[Message] = []
        self._size = 0  # of the page, in messages; those of a row count singly
        self.next = _NOTHING  # what may join the last message of the page: the call of this number, or any answer
        self._row: Any = None  # that message
        self._shared: tuple[object, ...] = ()  # path, remaining time and metadata of its calls
        self.like: tuple[object, ...] = ()  # as the client knows them: see `Link.call_again`
        self._arguments: list[object] | None = None  # of its calls, once there are two
        self._numbers: list[int] = []  # of its answers
        self._values: list[object] = []
        self._open: list[Outlet] = []  # with a row of items on the page that may grow
        self._frames: list[Frame] = []
        self._pages: deque[tuple[list[Frame], int, int]] = deque()  # encoded, not yet taken by the transport
        self._waiting = 0  # messages on them
        self._most = config.max_queued_messages or 2 * config.max_calls
        self._blocked = False
        self.armed = False  # whether a flush is sure to come
        self._handle: asyncio.Handle | None = None
        self._closed = False
        self.divert: Callable[[Message], Message | None] | None = None  # where some go by the bulk connection

    def post(self, message: Message) -> None:
        """Send a message with everything else that is ready in this turn of the loop."""
        if self.divert is not None:
            instead = self.divert(message)
            if instead is None:
                return
            message = instead
        self._messages.append(message)
        self.next = _NOTHING
        self._size += 1
        if not self.armed:
            self._arm()
        if self._size >= _PAGE_MESSAGES or len(self._frames) >= _PAGE_FRAMES:
            self._full()

    def call(self, number: int, path: str, remaining: int, arguments: object, metadata: object) -> None:
        """Post a CALL. Those of one method, one behind the other, leave as one message: both sides have less to look
        at."""
        if number == self.next and self._shared == (path, remaining, metadata):
            self.join(arguments)
        elif self.divert is not None:
            self.post([CALL, number, path, remaining, arguments, metadata])
        else:
            self.post(row := [CALL, number, path, remaining, arguments, metadata])
            if self._messages:  # else that page was full, and has left
                self._row, self._shared, self._arguments, self.like = row, (path, remaining, metadata), None, ()
                self.next = number + 1

    def join(self, arguments: object) -> None:
        """Post a CALL that has the number after the one before it, and all else but its arguments in common with it."""
        together = self._arguments
        if together is not None:
            together.append(arguments)
        else:
            row = self._row
            self._arguments = [row[4], arguments]
            row[0], row[4] = CALLS, self._arguments
        self.next += 1
        self._size = size = self._size + 1
        if size >= _PAGE_MESSAGES:
            self._full()

    def reply(self, number: int, value: object) -> None:
        """Post a REPLY without metadata; as `call`. A load report is owed with it."""
        if self.next == _MORE_ANSWERS:
            self._numbers.append(number)
            self._values.append(value)
        else:
            self._link.owes_report = True
            if self.divert is not None:
                self.post([REPLY, number, value, None])
                return
            if self.next == _ANSWER:
                row = self._row
                self._numbers, self._values = [row[1], number], [row[2], value]
                row[:] = [REPLIES, self._numbers, self._values]
                self.next = _MORE_ANSWERS
            else:
                self._row = row = [REPLY, number, value, None]
                self._messages.append(row)
                self.next = _ANSWER
                if not self.armed:
                    self._arm()
        self._size = size = self._size + 1
        if size >= _PAGE_MESSAGES:
            self._full()

    def open_row(self, outlet: Outlet, row: Message) -> None:
        """Post a row of items that is filled when its outlet closes it, which it is told to when the page is turned."""
        self._open.append(outlet)
        self._messages.append(row)
        self.next = _NOTHING
        if not self.armed:
            self._arm()

    def row_closed(self, items: int) -> None:
        """A row is full: it leaves with what makes a page."""
        self._size += items
        if self._size >= _PAGE_MESSAGES:
            self._full()

    def replace(self, row: Message, messages: list[Message]) -> None:
        """Send others in the place of a message, if it has not left."""
        for place, message in enumerate(self._messages):
            if message is row:
                self._messages[place : place + 1] = messages
                return

    def _arm(self) -> None:
        """Something was posted: it leaves at the end of this turn of the loop, or is dropped where nothing does."""
        if self._closed:
            self._messages, self.next = [], _NOTHING
        else:
            self.armed = True
            self._handle = self._loop.call_soon(self._flush)

    def _full(self) -> None:
        self._turn_page()
        if self._pages and not self._blocked:
            self._send()

    def externalize(self, value: object, call: CallKey | None = None) -> object:
        """A value for the next message that is posted, its large binary leaves moved to frames: of the page, or of the
        message's own, where they go by the bulk connection. call: that it belongs to, unless it begins with this.

        Raises TypeError or ValueError where it has no form on the wire, or is larger than the peer takes.
        """
        if is_plain(value):
            return value
        frames, inline_limit = self._frames, self._config.inline_limit
        before, total = len(frames), 0
        try:
            tree = externalize(value, frames, inline_limit)
            for frame in frames[before:]:
                size = len(frame)
                total += size
                if size > self._link.limit:
                    raise ValueError(
                        f"a binary value of {size} bytes; {self._link.label} takes {self._link.limit}: split it"
                    )
        except BaseException:
            del frames[before:]
            raise
        bulk = self._link.bulk
        if total and bulk is not None and bulk.takes(total, call):
            aside = frames[before:]
            del frames[before:]
            if before:  # they are numbered behind others of the page
                aside.clear()
                tree = externalize(value, aside, inline_limit)
            bulk.aside, self.divert, self.next = aside, bulk.divert, _NOTHING
        return tree

    def add_pages(self, pages: list[list[Frame]]) -> None:
        """Send whole envelopes behind everything that was posted."""
        self.flush()
        if not self._closed:
            for page in pages:
                self._queue(page, 1)
            if not self._blocked:
                self._send()

    def release(self, *, others: bool) -> None:
        """Send everything that was posted since `armed` was set, so that it waits for this: now, or, where `others` are
        under way, with what these lead to in this turn of the loop. Without that, envelopes that were split once would
        stay small."""
        if self._handle is not None:
            return
        if not others:
            self._flush()
        elif self._messages or self._link.owes_report:
            self._handle = self._loop.call_soon(self._flush)
        else:
            self.armed = False

    def flush(self) -> None:
        """Send everything now, as far as the transport takes it."""
        if self._handle is not None:
            self._handle.cancel()
        self._flush()

    def _flush(self) -> None:
        self._handle = None
        self.armed = False
        if self._closed or self._link.channel is None:
            return
        if self._messages or self._link.owes_report:
            self._turn_page()
        if self._pages:
            self._send()

    def close(self) -> None:
        """Send nothing any more."""
        self._closed, self.armed = True, False
        self._pages.clear()
        self._open.clear()
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _turn_page(self) -> None:
        """Encode what was posted, and send it, unless others wait before it."""
        link, now = self._link, self._time()
        if self._open:
            self._close_rows()
        messages = self._messages
        if link.owes_report and now >= link.next_report and (report := link.report_now(now)) is not None:
            messages.append(report)
        if not messages:
            return
        self._messages, self.next, self._size = [], _NOTHING, 0
        clock = int(now * 1000) & LIMIT
        if not self._frames:
            try:
                envelope = encode(link.to, clock, messages)
            except (TypeError, ValueError):
                pass
            else:
                if len(envelope) <= link.limit:
                    channel = link.channel
                    if not self._pages and channel is not None and channel.send([envelope]) is _TAKEN:
                        self.flushed = link.sequence
                    else:
                        self._queue([envelope], len(single(messages)))
                    return
        frames, self._frames = self._frames, []
        self._turn_unusual(clock, messages, frames)

    def _turn_unusual(self, clock: int, messages: list[Message], frames: list[Frame]) -> None:
        """As `_turn_page`, with large values behind it, or what does not leave, or not in one envelope."""
        link = self._link
        formless: list[tuple[Message, str]] = []  # with a value that CBOR does not carry
        too_long: list[tuple[Message, str]] = []
        try:
            envelope = encode(link.to, clock, messages)
        except (TypeError, ValueError):
            messages = self._encodable(single(messages), formless)
            envelope = encode(link.to, clock, messages)
        page: list[Frame] = [envelope, *frames]
        if len(envelope) > link.limit or _bytes(page) > link.limit + MARGIN:
            self._split(clock, single(messages), frames, too_long)
        else:
            self._queue(page, len(single(messages)))
        if too_long or formless:
            self._refuse([*too_long, *formless])

    def _close_rows(self) -> None:
        outlets, self._open = self._open, []
        for outlet in outlets:
            outlet.close_row()

    def _refuse(self, refused: list[tuple[Message, str]]) -> None:
        """Say what does not leave, behind the page: what is said of it follows what is in it."""
        for place, (message, why) in enumerate(refused):
            if not _follows(message, refused[:place]):
                self._link.unsendable(message, why)

    def _split(
        self, clock: int, messages: list[Message], frames: list[Frame], refused: list[tuple[Message, str]]
    ) -> None:
        """Several envelopes where one is too long for the peer. Their frames keep their numbers: others are empty.

        refused: what stood before them on the page and does not leave; to it is added what is too long by itself.
        """
        messages = [message for message in messages if not _follows(message, refused)]
        if not messages:
            return
        envelope = encode(self._link.to, clock, messages)
        used = frames_of(messages)
        last = max(used, default=0)
        needed = [frame if number in used else b"" for number, frame in enumerate(frames[:last], 1)]
        size = len(envelope) + _bytes(needed)
        if len(envelope) <= self._link.limit and size <= self._link.limit + MARGIN:
            # All get the last sequence: a call must not pass for unsent while a part of its page was sent.
            self._queue([envelope, *needed], len(messages))
        elif len(messages) == 1:
            advice = "send large values as bytes" if len(envelope) > self._link.limit else "split them, or stream them"
            why = f"is {size} bytes; {self._link.label} takes {self._link.limit}: {advice}"
            refused.append((messages[0], why))
        else:
            middle = len(messages) // 2
            self._split(clock, messages[:middle], frames, refused)
            self._split(clock, messages[middle:], frames, refused)

    @staticmethod
    def _encodable(messages: list[Message], refused: list[tuple[Message, str]]) -> list[Message]:
        """Those that have a form on the wire; the others are added to `refused`."""
        good: list[Message] = []
        for message in messages:
            if _follows(message, refused):
                continue
            try:
                encode(0, 0, [message])
            except (TypeError, ValueError) as error:
                refused.append((message, f"has a value without a form on the wire: {error}"))
            else:
                good.append(message)
        return good

    def _queue(self, page: list[Frame], messages: int) -> None:
        self._pages.append((page, self._link.sequence, messages))
        self._waiting += messages

    def _send(self) -> None:
        pages, channel = self._pages, self._link.channel
        while pages and channel is not None:
            frames, sequence, messages = pages[0]
            sent = channel.send(frames)
            if sent is Sent.TAKEN:
                pages.popleft()
                self._waiting -= messages
                self.flushed = sequence
            elif sent is Sent.FULL:
                self._blocked = True
                self._link.blocked()
                if self._waiting > self._most:
                    self._give_up("the peer does not read: its queue and ours are full")
                elif self._handle is None:
                    self.armed = True
                    self._handle = self._loop.call_later(_RETRY_FULL, self._flush)
                return
            else:
                self._give_up("connection lost")
                return
        if self._blocked:
            self._blocked = False
            self._link.unblocked()

    def _give_up(self, reason: str) -> None:
        self._pages.clear()
        self._link.give_up(reason)


def _bytes(frames: list[Frame]) -> int:
    return sum(frame.nbytes if isinstance(frame, memoryview) else len(frame) for frame in frames)


def _follows(message: Message, refused: list[tuple[Message, str]]) -> bool:
    """Whether a message stands in a stream behind an item that does not leave."""
    stream = _stream_of(message)
    return stream is not None and any(bad[0] == ITEM and _stream_of(bad) == stream for bad, _ in refused)


def _stream_of(message: Message) -> tuple[object, object] | None:
    """The stream that a message is a part of, or ends: its call's number, and whether it is the answer."""
    kind = message[0]
    if kind in (ITEM, ITEMS):
        return message[1], message[2]
    return (message[1], kind != END) if kind in (REPLY, ERROR, END) else None
