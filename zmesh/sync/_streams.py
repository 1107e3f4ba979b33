"""Streams between threads and a loop: asynchronous iterators read by a thread, plain iterables read by the loop."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence, Sized
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeAlias, TypeVar

from .._answers import ready_items
from ..errors import Cancelled
from ..schema import MethodSchema

if TYPE_CHECKING:
    from . import Mesh
    from ._background import Background

__all__ = ["Feed", "Feeder", "Stream", "feed_items", "feed_iterators", "feed_parameter"]

R = TypeVar("R")

# Items that are fetched before they are asked for, so that not each costs a change of threads. Few, because to the
# other side they look taken: its flow control lets that many more be on their way.
_AHEAD: Final = 16


class Stream(Iterator[R], Generic[R]):
    """What a method that answers a stream returns: a blocking iterator over its items, for one thread at a time.

    The call begins at once, and up to 16 items are fetched before they are asked for. It ends with the last item, with
    `close()`, on leaving it as a context manager, and when nobody holds the iterator any more.
    """

    def __init__(self, mesh: Mesh, source: AsyncIterator[R], feeds: Sequence[Feed]) -> None:
        self._mesh = mesh
        self._pump = _Pump(mesh._background, source, feeds)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> R:
        self._mesh._background.check()
        if self._pump.left:
            raise StopIteration
        try:
            item = self._pump.take()
        except BaseException:  # Ctrl-C
            self._pump.stop()
            raise
        if isinstance(item, _End):
            raise item.told() or StopIteration
        return item  # type: ignore[no-any-return]

    def close(self) -> None:
        """End the call, if it has not ended, and wait until it has."""
        if self._pump.ended:
            self._pump.left = True
        else:
            self._mesh._run(self._pump.end)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self._pump.stop()


class _End:
    """Stands behind the last item."""

    def __init__(self, error: BaseException | None) -> None:
        self._error = error

    def told(self) -> BaseException | None:
        """What went wrong, for whoever asks first."""
        error, self._error = self._error, None
        return error


class _Pump:
    """Moves the items of an asynchronous iterator to where a thread takes them."""

    def __init__(self, background: Background, source: AsyncIterator[Any], feeds: Sequence[Feed]) -> None:
        self.left = False  # nobody wants more of it
        self._background = background
        self._source = aiter(source)
        self._feeds = feeds
        self._queue: SimpleQueue[deque[Any] | _End] = SimpleQueue()  # items that came together change threads together
        self._items: deque[Any] = deque()  # the thread's, of those
        self._put = self._taken = 0  # items, by the loop and by the thread
        self._room: asyncio.Future[None] | None = None  # what the loop waits for while enough items lie here
        self._task = background.loop.create_task(self._fetch())

    # -- from any thread

    @property
    def ended(self) -> bool:
        return self._task.done() or self._background.gone

    def take(self) -> Any:
        """The next item; or the end, which stays for whoever comes next."""
        if not self._items:
            items = self._queue.get()
            if isinstance(items, _End):
                self._queue.put(items)
                return items
            self._items = items
        item = self._items.popleft()
        self._taken += 1
        if self._room is not None and self._put - self._taken <= _AHEAD // 2:
            with contextlib.suppress(RuntimeError):  # closed, and the end is here
                self._background.soon(self._go_on)
        return item

    def stop(self) -> None:
        """End the call, and do not wait for that."""
        self.left = True
        if not self.ended:
            with contextlib.suppress(RuntimeError):
                self._background.soon(self._task.cancel)

    # -- on the loop

    async def end(self) -> None:
        self.left = True
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _fetch(self) -> None:
        error: BaseException | None = None
        try:
            async for item in self._source:
                more = ready_items(self._source, _AHEAD - 1 - (self._put - self._taken))
                self._put += 1 + len(more)
                self._queue.put(deque((item, *more)))
                if self._put - self._taken >= _AHEAD:
                    await self._until_taken()
        except asyncio.CancelledError:
            if not self.left:
                error = Cancelled("the Mesh was closed while this was under way", may_have_run=True)
        except BaseException as failure:
            error = failure
        for feed in self._feeds:
            feed.stop()
        if hasattr(self._source, "aclose"):
            with contextlib.suppress(Exception):  # what matters is in `error`
                await self._source.aclose()
        if error is None or not self._background.exiting:  # see `Background.check`
            self._queue.put(_End(error))

    async def _until_taken(self) -> None:
        self._room = self._background.loop.create_future()
        if self._put - self._taken >= _AHEAD:  # looked at once more, now that the thread sees that somebody waits
            await self._room
        self._room = None

    def _go_on(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)


class Feed:
    """A plain iterable as an asynchronous one. Since it may block, a thread of its own reads it, a few items ahead."""

    def __init__(self, iterable: Iterable[Any]) -> None:
        self._iterable = iterable
        self._context = contextvars.copy_context()
        self._items: deque[Any] = deque()
        self._room = threading.Semaphore(_AHEAD)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._arrival: asyncio.Future[None] | None = None  # what the loop waits for while there is no item
        self._stopped = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            threading.Thread(target=self._context.run, args=(self._read,), name="zmesh feed", daemon=True).start()
        while not self._items:
            if self._stopped:
                raise StopAsyncIteration
            self._arrival = self._loop.create_future()
            if not self._items:  # looked at once more, now that the thread sees that somebody waits
                await self._arrival
        item = self._items.popleft()
        if isinstance(item, _End):
            self._stopped = True
            raise item.told() or StopAsyncIteration
        self._room.release()
        return item

    async def aclose(self) -> None:
        """Read no further."""
        self.stop()

    def stop(self) -> None:
        """Read no further; an item that is being read is dropped."""
        self._stopped = True
        self._room.release()

    # -- in the thread

    def _read(self) -> None:
        error: BaseException | None = None
        iterable, self._iterable = self._iterable, ()  # a generator that only we hold is closed here, in its thread
        self._room.acquire()
        try:
            for item in iterable:
                self._put(item)
                self._room.acquire()
                if self._stopped:
                    return
        except BaseException as failure:  # the iterable's, whatever it is: it belongs to the caller
            error = failure
        self._put(_End(error))

    def _put(self, item: Any) -> None:
        self._items.append(item)
        if self._arrival is not None and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody reads this any more
                self._loop.call_soon_threadsafe(self._arrived)

    def _arrived(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)


Fed: TypeAlias = tuple[tuple[Any, ...], dict[str, Any], list[Feed]]  # arguments, and what among them is fed
Feeder: TypeAlias = Callable[[tuple[Any, ...], dict[str, Any]], Fed]


def feed_parameter(method: MethodSchema) -> Feeder | None:
    """For a method whose schema is known: makes the argument for its stream asynchronous, if it is a plain iterable."""
    name = method.stream_parameter
    if name is None:
        return None
    position = method.parameters.index(name)

    def feeder(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Fed:
        given = args[position] if len(args) > position else kwargs.get(name)
        if not isinstance(given, Iterable):
            return args, kwargs, []
        feed = Feed(given)
        if len(args) > position:
            return (*args[:position], feed, *args[position + 1 :]), kwargs, [feed]
        return args, {**kwargs, name: feed}, [feed]

    return feeder


class _SizedFeed(Feed):
    """One of which it is known how many items it has."""

    def __init__(self, iterable: Iterable[Any], length: int) -> None:
        super().__init__(iterable)
        self._length = length

    def __len__(self) -> int:
        return self._length


def feed_items(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Fed:
    """For a map: its one argument, whatever iterable it is."""
    if len(args) != 1 or not isinstance(args[0], Iterable):
        return args, kwargs, []
    items = args[0]
    feed = _SizedFeed(items, len(items)) if isinstance(items, Sized) else Feed(items)
    return (feed,), kwargs, [feed]


def feed_iterators(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Fed:
    """For a method that is known by name alone: every iterator, which cannot be a value, as a list can."""
    feeds: list[Feed] = []

    def fed(value: Any) -> Any:
        if not isinstance(value, Iterator):
            return value
        feeds.append(Feed(value))
        return feeds[-1]

    return tuple(map(fed, args)), {name: fed(value) for name, value in kwargs.items()}, feeds
