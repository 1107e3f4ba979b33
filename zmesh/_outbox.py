"""What one link sends: pages of messages, each encoded in one call and sent as one envelope."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

from ._core.messages import END, ERROR, ITEM, LIMIT, REPLY, Message
from ._core.wire import encode, externalize, frames_of, is_plain
from ._platform import clock_of
from ._transport import Frame, Sent
from .config import Config

if TYPE_CHECKING:
    from ._link import Link

__all__ = ["Outbox"]

_PAGE_MESSAGES: Final = 32  # enough to share an envelope's costs, few enough that both ends work at the same time
_PAGE_FRAMES: Final = 64  # large values behind it
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
        self._frames: list[Frame] = []
        self._pages: deque[tuple[list[Frame], int]] = deque()  # encoded, not yet taken by the transport
        self._blocked = False
        self._handle: asyncio.Handle | None = None
        self._closed = False

    def post(self, message: Message) -> None:
        """Send a message with everything else that is ready in this turn of the loop."""
        if self._closed:
            return
        messages = self._messages
        messages.append(message)
        if self._handle is None:
            self._handle = self._loop.call_soon(self._flush)
        if len(messages) >= _PAGE_MESSAGES or len(self._frames) >= _PAGE_FRAMES:
            self._turn_page()
            if not self._blocked:
                self._send()

    def externalize(self, value: object) -> object:
        """A value for the next message that is posted, its large binary leaves moved to frames of the page.

        Raises TypeError or ValueError where it has no form on the wire, or is larger than the peer takes.
        """
        if is_plain(value):
            return value
        frames = self._frames
        before = len(frames)
        try:
            value = externalize(value, frames, self._config.inline_limit)
            for frame in frames[before:]:
                size = frame.nbytes if isinstance(frame, memoryview) else len(frame)
                if size > self._link.limit:
                    raise ValueError(
                        f"a binary value of {size} bytes; {self._link.label} takes {self._link.limit}: split it"
                    )
        except BaseException:
            del frames[before:]
            raise
        return value

    def flush_soon(self) -> None:
        """Flush at the end of what the loop has ready now."""
        if self._handle is None and not self._closed:
            self._handle = self._loop.call_soon(self._flush)

    def flush(self) -> None:
        """Send everything now, as far as the transport takes it."""
        if self._handle is not None:
            self._handle.cancel()
        self._flush()

    def _flush(self) -> None:
        self._handle = None
        if not self._closed and self._link.channel is not None:
            self._turn_page()
            self._send()

    def close(self) -> None:
        """Send nothing any more."""
        self._closed = True
        self._pages.clear()
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _turn_page(self) -> None:
        link, now = self._link, self._time()
        if link.owes_report:
            report = link.report_due(now)
            if report is not None:
                self._messages.append(report)
        messages, frames = self._messages, self._frames
        if not messages:
            return
        self._messages, self._frames = [], []
        clock = int(now * 1000) & LIMIT
        formless: list[tuple[Message, str]] = []
        too_long: list[tuple[Message, str]] = []
        try:
            envelope = encode(link.to, clock, messages)
        except (TypeError, ValueError):
            messages = self._encodable(messages, formless)
            envelope = encode(link.to, clock, messages)
        if len(envelope) <= link.limit:
            self._pages.append(([envelope, *frames], link.sequence))
        else:
            self._split(clock, messages, frames, too_long)
        refused = [*too_long, *formless]
        for place, (message, why) in enumerate(refused):  # behind the page: what is said of them follows what is in it
            if not _follows(message, refused[:place]):
                link.unsendable(message, why)

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
        if len(envelope) <= self._link.limit:
            used = frames_of(messages)
            last = max(used, default=0)
            needed = [frame if number in used else b"" for number, frame in enumerate(frames[:last], 1)]
            # All get the last sequence: a call must not pass for unsent while a part of its page was sent.
            self._pages.append(([envelope, *needed], self._link.sequence))
        elif len(messages) == 1:
            why = f"is {len(envelope)} bytes; {self._link.label} takes {self._link.limit}: send large values as bytes"
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

    def _send(self) -> None:
        pages, channel = self._pages, self._link.channel
        while pages and channel is not None:
            frames, sequence = pages[0]
            sent = channel.send(frames)
            if sent is Sent.TAKEN:
                pages.popleft()
                self.flushed = sequence
            elif sent is Sent.FULL:
                self._blocked = True
                self._link.blocked()
                if len(pages) * _PAGE_MESSAGES > self._config.max_queued_messages:
                    self._give_up("the peer does not read: its queue and ours are full")
                elif self._handle is None:
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


def _follows(message: Message, refused: list[tuple[Message, str]]) -> bool:
    """Whether a message stands in a stream behind an item that does not leave."""
    stream = _stream_of(message)
    return stream is not None and any(bad[0] == ITEM and _stream_of(bad) == stream for bad, _ in refused)


def _stream_of(message: Message) -> tuple[object, object] | None:
    """The stream that a message is a part of, or ends: its call's number, and whether it is the answer."""
    kind = message[0]
    if kind == ITEM:
        return message[1], message[2]
    return (message[1], kind != END) if kind in (REPLY, ERROR, END) else None
