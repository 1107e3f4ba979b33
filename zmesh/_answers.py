"""Streams of answers, as their callers read them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from abc import abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final

from ._call import NO_METADATA, Stream
from ._stream_calls import StreamCall
from ._streams import TWO_READERS

__all__ = ["NOTHING_READY", "AnswerStream", "DeferredStream", "Ready", "ready_items"]

NOTHING_READY: Final[Callable[[], Any]] = deque[Any]().popleft


class Ready:
    """What knows where items are ready.

    _take: gives the next one; IndexError where none is ready.
    """

    __slots__ = ()

    _take: Callable[[], Any]


class ReadyStream(Ready, Stream[Any]):
    """Most items are ready: taking such a one costs a single function in Python."""

    __slots__ = ("_take",)

    async def __anext__(self) -> Any:
        try:
            return self._take()
        except IndexError:
            pass
        return await self._next()

    @abstractmethod
    async def _next(self) -> Any:
        """The next item, where none is ready."""


def ready_items(stream: object, most: int) -> list[Any]:
    """So many items at most that can be taken from a stream without waiting."""
    take = stream._take if isinstance(stream, Ready) else NOTHING_READY
    items: list[Any] = []
    with contextlib.suppress(IndexError):
        while len(items) < most:
            items.append(take())
    return items


class AnswerStream(ReadyStream):
    """The stream that answers a call, as its caller reads it. The call begins with the first item that is asked for."""

    __slots__ = ("_call", "_closed", "_started")

    def __init__(self, call: StreamCall) -> None:
        self._call = call
        self._take = NOTHING_READY
        self._started = False
        self._closed = False

    @property
    def _record(self) -> Any:
        return self._call._record

    @property
    def metadata(self) -> Mapping[str, str | bytes]:
        return self._call.metadata

    @property
    def node(self) -> str | None:
        return self._call.node

    async def _next(self) -> Any:
        if self._closed:
            raise StopAsyncIteration
        if not self._started:
            self._call.start()
            self._started = True
            assert self._call.inlet is not None
            self._take = self._call.inlet.ready.popleft
        return await self._call.next()

    async def aclose(self) -> None:
        self._closed = True
        if self._started:
            self._call.cancel()

    def __del__(self) -> None:
        # Left without being closed: by `break`, or by an error in the loop's body.
        if self._started and not self._call.future.done():
            _on_loop(self._call.client.loop, self._call.client.thread, self._call.cancel)


def _on_loop(loop: asyncio.AbstractEventLoop, thread: int, function: Callable[[], object]) -> None:
    """Call a function on the loop of that thread, soon, from whatever thread collects garbage."""
    if not loop.is_closed():
        (loop.call_soon if thread == threading.get_ident() else loop.call_soon_threadsafe)(function)


class DeferredStream(ReadyStream):
    """A stream that is opened when its first item is asked for, by something that is awaited.

    It is opened once, in a task of its own: giving up the wait for an item leaves the stream as it is.
    """

    __slots__ = ("_closed", "_items", "_open", "_opening", "_thread", "_waited_for")

    def __init__(self, open: Callable[[], Awaitable[AsyncIterator[Any]]]) -> None:
        self._open = open
        self._take = NOTHING_READY
        self._opening: asyncio.Task[AsyncIterator[Any]] | None = None
        self._thread = 0
        self._items: AsyncIterator[Any] | None = None
        self._waited_for = False
        self._closed = False

    @property
    def _record(self) -> Any:
        return self._items._record if isinstance(self._items, Stream) else None

    @property
    def metadata(self) -> Mapping[str, str | bytes]:
        return self._items.metadata if isinstance(self._items, Stream) else NO_METADATA

    @property
    def node(self) -> str | None:
        return self._items.node if isinstance(self._items, Stream) else None

    async def _next(self) -> Any:
        if self._items is None and not self._closed:
            await self._opened()
        if self._closed:
            raise StopAsyncIteration
        items = self._items
        assert items is not None
        item = await anext(items)
        if isinstance(items, ReadyStream):
            self._take = items._take
        return item

    async def _opened(self) -> None:
        if self._waited_for:
            raise RuntimeError(TWO_READERS)
        if self._opening is None:
            self._thread = threading.get_ident()
            self._opening = asyncio.get_running_loop().create_task(_awaited(self._open))
            self._opening.add_done_callback(_no_news)
        opening, self._waited_for = self._opening, True
        try:
            await asyncio.wait([opening])
        finally:
            self._waited_for = False
        if not self._closed:
            self._items = opening.result()

    async def aclose(self) -> None:
        self._closed, self._take = True, NOTHING_READY
        opening, self._opening = self._opening, None
        if self._items is None and opening is not None:
            opening.cancel()
            await asyncio.wait([opening])
        close = getattr(self._items, "aclose", None)
        if close is not None:
            await close()

    def __del__(self) -> None:
        opening = self._opening
        if opening is not None and not opening.done():
            _on_loop(opening.get_loop(), self._thread, opening.cancel)


async def _awaited(open: Callable[[], Awaitable[AsyncIterator[Any]]]) -> AsyncIterator[Any]:
    return aiter(await open())


def _no_news(task: asyncio.Task[Any]) -> None:
    """Whoever waits for it is told of its error; where nobody does any more, it is no news."""
    if not task.cancelled():
        task.exception()
