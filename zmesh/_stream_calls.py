"""Calls with streams: of answers, of arguments, or both."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterable, Callable, Mapping
from typing import Any

from ._call import NO_METADATA
from ._client import Client, Outgoing, Target
from ._core import messages as m
from ._core.messages import ProtocolError
from ._items import Streams
from ._link import Attempt
from ._streams import Inlet, Outlet
from .context import bounds_streams
from .errors import Cancelled, Internal, InvalidArgument, MaybeExecuted, RpcError, Unavailable

__all__ = ["StreamCall"]


class StreamCall(Outgoing):
    """A call of which the answer, the arguments or both are a stream. Awaited where the answer is one value."""

    future: asyncio.Future[Any]
    special = watched = True
    plain = False
    inlet: Inlet | None = None  # of the answer
    _bucket: dict[Callable[[], None], float] | None = None
    _pump: asyncio.Task[None] | None = None
    _pumping = False  # it reads the arguments; else it has not begun to, or closes them, which is not cut short
    _told = NO_METADATA
    _source: Attempt | None = None  # with which the stream has begun

    def __init__(
        self,
        client: Client,
        target: Target,
        arguments: object,
        timeout: float | None,
        metadata: Mapping[str, str | bytes] | None,
        *,
        items: AsyncIterable[Any] | None,
        streams: Streams,
    ) -> None:
        """timeout: None: the default up to the beginning of the stream, and from the end of a stream of arguments to
        the answer. items: the stream of arguments."""
        if items is not None and not hasattr(items, "__aiter__"):
            raise InvalidArgument(
                f"{target.path}: its stream of arguments is an asynchronous iterator, got {type(items).__name__}: "
                "write an `async def` with `yield`",
                may_have_run=False,
            )
        self.client = client
        self.target = target
        self.arguments = arguments
        self.request_metadata = metadata
        self._timeout = timeout
        self._items = items
        self._streams = streams
        if streams.answers is None:
            self._coroutine = self._one_answer()

    async def _one_answer(self) -> Any:
        self.start()
        try:
            value = await self.future
        finally:
            self.finish()
        self._answered()
        return self.target.load(value)

    def start(self) -> None:
        """Put it on its way. Raises RpcError where the node is closed."""
        self.until_begun = self._timeout is None and not bounds_streams()
        self.marked = self.marked or self.until_begun
        client, loop, config = self.client, self.client.loop, self.client.config
        if self._streams.answers is not None:
            items, size, form = config.stream_items, config.stream_bytes, self._streams.answers
            self.inlet = Inlet(loop, items, size, self._credit, form, Internal)
        if self._items is not None:
            self.outlet = Outlet(loop, answer=False)
        try:
            self._bucket = client.begin(self, client.timeout(self._timeout))
        except BaseException:
            self._close_unread()
            raise
        self.future.add_done_callback(self._done)
        if self._items is not None:
            self._pump = client.run_source(self._send_items(self._items), self.target.path)

    def finish(self) -> None:
        """It is over for the caller: nothing of it is left behind here, and the peer is told."""
        if self.client.loop.is_closed():  # it is disposed of with its loop
            return
        if self._bucket is not None:
            self._bucket.pop(self, None)
        if self._pump is not None and self._pumping:
            self._pump.cancel()
        elif self._pump is not None and self._items is not None:
            self._pump.cancel()
            self._close_unread()
        self.client.forget(self)

    def _close_unread(self) -> None:
        """Close the arguments where nothing has read of them for this call: they may have been begun with before."""
        items, self._items = self._items, None
        close = getattr(items, "aclose", None)
        if close is not None:
            self._pump = self.client.run_source(close(), self.target.path)

    def cancel(self) -> None:
        """Nobody wants what is still to come."""
        if not self.future.done():
            self.future.cancel()
            self.finish()
        if self.inlet is not None:
            self.inlet.close()

    async def next(self) -> Any:
        """The next item. Raises StopAsyncIteration behind the last one, RpcError where the call failed."""
        inlet, future = self.inlet, self.future
        assert inlet is not None
        while not inlet:
            if future.done():
                if future.cancelled():
                    raise StopAsyncIteration
                items = future.result()
                if items != inlet.received & m.LIMIT:
                    text = f"{self.target.path}: {inlet.received} items came of {items!r:.20}"
                    raise Internal(text, node=self.node)
                self._answered()
                raise StopAsyncIteration
            await inlet.wait()
        try:
            return inlet.take()
        except RpcError:  # it does not fit the annotation: what follows will not either
            self.cancel()
            raise

    def _answered(self) -> None:
        assert self.link is not None
        assert self.link.remote is not None
        self.node = self.link.remote.name
        self.metadata = self._told

    def told(self, metadata: Mapping[str, str | bytes]) -> None:
        self._told = metadata  # shown behind the last item

    def _done(self, future: asyncio.Future[Any]) -> None:
        if not future.cancelled():
            future.exception()  # whoever iterates is told; where nobody does any more, it is no news
        if self.inlet is not None:
            self.inlet.wake()
        self.finish()

    def _credit(self, items: int) -> None:
        if self._source is not None and not self.future.done():
            self._source.link.credit(self._source.sequence & m.LIMIT, True, items)

    # -- the arguments

    async def _send_items(self, items: AsyncIterable[Any]) -> None:
        outlet = self.outlet
        assert outlet is not None
        assert self._streams.arguments is not None
        self._items, self._pumping = None, True
        iterator: Any = None
        try:
            iterator = aiter(items)
            if await outlet.pump(iterator, self._streams.arguments.small, self._send, self._wanted):
                outlet.end()
                self._wait_for_answer()
        except BaseException as error:
            if asyncio.current_task(self.client.loop) is not self._pump:  # disposed of: nobody drives this any more
                iterator = None
                raise
            self._source_failed(error)
            if isinstance(error, (SystemExit, KeyboardInterrupt)):
                raise
        finally:
            self._pumping = False
            close = getattr(iterator, "aclose", None)
            if close is not None:
                await close()

    def _wanted(self) -> bool:
        return not self.future.done()

    def _send(self, item: object) -> None:
        assert self.outlet is not None
        assert self._streams.arguments is not None
        try:
            self.outlet.send(self._streams.arguments.dump(item))
        except (TypeError, ValueError) as error:
            raise InvalidArgument(f"{self.target.path}: an item of its arguments: {error}") from error

    def _source_failed(self, error: BaseException) -> None:
        """The arguments ended with an error, theirs or an item's: the caller gets it, the peer a cancel."""
        if self.future.done():  # and this is the end of a task that nobody needs
            return
        what = f"{self.target.path}: its stream of arguments"
        told = error
        if isinstance(error, asyncio.CancelledError):  # the caller itself was not cancelled
            told = Cancelled(f"{what} was cancelled")
        elif isinstance(error, (StopIteration, GeneratorExit)):  # which mean something else where they go (PEP 479)
            told = RuntimeError(f"{what} raised {type(error).__name__}")
        if told is not error:
            told.__cause__ = error
        self.future.set_exception(told)

    def _wait_for_answer(self) -> None:
        """The arguments are sent, and it is the peer's turn, for as long as a call has by default: from now on, or from
        the last sign that it was still reading."""
        if self.until_begun and not self.future.done() and not (self.inlet is not None and self.inlet.received):
            self._without_deadline()
            self._bucket = self.client.put_down(self, self.client.timeout(None))

    def _without_deadline(self) -> None:
        self.deadline = math.inf
        if self._bucket is not None:
            self._bucket.pop(self, None)

    # -- what links tell

    def items_received(self, attempt: Attempt, sequence: int, items: list[object] | bytes, size: int) -> None:
        if self.inlet is None:
            super().items_received(attempt, sequence, items, size)
        elif not self.future.done() and self._begin_with(attempt):
            if self.until_begun and self.deadline != math.inf:
                self._without_deadline()
            self.inlet.put(sequence, items, size)

    def credited(self, attempt: Attempt, items: int) -> None:
        if self.outlet is None:
            super().credited(attempt, items)
        elif not self.future.done() and self._begin_with(attempt):
            try:
                self.outlet.credited(items)
            except ProtocolError:
                raise
            except (TypeError, ValueError) as error:
                self.client.item_refused(self, error)
            if self.outlet.ended:
                self._wait_for_answer()

    def _begin_with(self, attempt: Attempt) -> bool:
        """Whether the stream is, or from now on is, this attempt's."""
        if self._source is None:
            self._source, self.begun = attempt, True
            if self.until_begun and not (self.outlet is not None and self.outlet.ended):  # else it is for the answer
                self._without_deadline()
            self.client.only(attempt)
        return self._source is attempt

    def lost(self, attempt: Attempt) -> RpcError:
        name, path = attempt.member.name, self.target.path
        if self.inlet is None:
            text = f"{path} had begun on {name!r}, which was lost before it answered: it may have run"
            return MaybeExecuted(text, node=name)
        items = self.inlet.received
        text = f"{path} was cut off: {name!r} was lost after {items} items"
        return Unavailable(text, details={"delivered": items}, node=name, may_have_run=True)
