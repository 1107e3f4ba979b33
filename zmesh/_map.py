"""One method over many items: spread over the nodes, with a bounded number in flight."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sized
from types import TracebackType
from typing import Any, Final, Generic, Protocol, Self, TypeVar

from ._clients import Options, TypedCaller
from ._hub import Hub
from ._scatter import Crew, method_schema
from .schema import schema_of
from .service import Method

__all__ = ["MapOver", "Mapped", "OneArgument"]

R = TypeVar("R")
A = TypeVar("A", contravariant=True)
B = TypeVar("B", covariant=True)

_LOOK: Final = 0.25  # seconds between two looks at who is there, while there is no room
_AHEAD: Final = 2  # items that are taken and not given out yet, per call that may be in flight
_REFRESH: Final = 0.1  # seconds between two drawings of the bar


class OneArgument(Protocol[A, B]):
    """A method that can be called with one argument, whatever its name. For type checkers alone."""

    def _takes(self, item: A, /) -> B: ...


class MapOver:
    """A method, and how it goes over items. Raises ValueError or TypeError for arguments that make no sense."""

    def __init__(
        self,
        hub: Hub,
        method: Any,
        ordered: bool,
        in_flight: int | None,
        timeout: float | None,
        metadata: Mapping[str, str | bytes] | None,
        progress: bool,
    ) -> None:
        self.method = method_schema(method, "map")
        owner: Method[..., Any] = method
        if in_flight is not None and (isinstance(in_flight, bool) or not isinstance(in_flight, int) or in_flight < 1):
            raise ValueError(f"in_flight is at least 1, got {in_flight!r}")
        self.hub = hub
        self.ordered = ordered
        self.in_flight = in_flight
        self.progress = progress
        self.major = schema_of(owner.owner).major
        options = Options().change({"timeout": timeout, "metadata": metadata})
        self.call = TypedCaller(hub.client, schema_of(owner.owner), options).bind(self.method)

    def __call__(self, items: Iterable[Any] | AsyncIterable[Any]) -> Mapped[Any]:
        if not isinstance(items, (Iterable, AsyncIterable)):
            raise TypeError(f"map() goes over an iterable, also an asynchronous one, got {items!r:.60}")
        bar = _Bar(self.method.path, len(items) if isinstance(items, Sized) else None) if self.progress else None
        return Mapped(self, items, bar)

    def limit(self) -> int:
        """How many calls may be in flight now."""
        if self.in_flight is not None:
            return self.in_flight
        members = self.hub.members.candidates(self.method.service, self.major)
        return max(2, math.ceil(2 * sum(member.capacity for member in members)))


class _Work(Crew):
    """The calls of one map. `arrived` is not used for results: they wait in `results`, by index, for their turn."""

    def __init__(self, mapping: MapOver, items: Iterable[Any] | AsyncIterable[Any]) -> None:
        super().__init__()
        self.mapping = mapping
        self.results: dict[int, tuple[Any, BaseException | None]] = {}
        self.taken = 0  # items
        self.given = 0  # results
        self.running = 0
        self.exhausted = False
        self.room = asyncio.Event()
        self.start(self._feed(items))

    async def _feed(self, items: Iterable[Any] | AsyncIterable[Any]) -> None:
        source = aiter(items) if isinstance(items, AsyncIterable) else _as_async(items)
        try:
            while True:
                await self._until_room()
                try:
                    item = await anext(source)
                except StopAsyncIteration:
                    break
                index, self.taken, self.running = self.taken, self.taken + 1, self.running + 1
                self.start(self._perform(index, item))
        except Exception as error:
            error.add_note(f"zmesh: raised by what map({self.mapping.method.path}) goes over, at item {self.taken}")
            self.results[self.taken] = (None, error)
            self.taken += 1
        finally:
            self.exhausted = True
            self.changed.set()

    async def _until_room(self) -> None:
        while True:
            limit = self.mapping.limit()
            if self.running < limit and self.taken - self.given < _AHEAD * limit:
                return
            self.room.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK):  # nodes come and go
                    await self.room.wait()

    async def _perform(self, index: int, item: Any) -> None:
        try:
            self.results[index] = (await self.mapping.call(item), None)  # type: ignore[misc]
        except Exception as error:
            error.add_note(f"zmesh: in map({self.mapping.method.path}), at item {index}")
            self.results[index] = (None, error)
        finally:
            self.running -= 1
            self.room.set()
            self.changed.set()


async def _as_async(items: Iterable[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item


class Mapped(AsyncIterator[R], Generic[R]):
    """The results of a map. The calls begin when the first is asked for.

    Leaving early cancels what is in flight: `aclose()`, the end of an `async with`, an error, and letting go of the
    last reference, as a `break` does.
    """

    def __init__(self, mapping: MapOver, items: Iterable[Any] | AsyncIterable[Any], bar: _Bar | None) -> None:
        self._begin: Callable[[], _Work] | None = lambda: _Work(mapping, items)
        self._ordered = mapping.ordered
        self._bar = bar
        self._work: _Work | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> R:
        if self._work is None:
            if self._begin is None:
                raise StopAsyncIteration
            self._work, self._begin = self._begin(), None
        work = self._work
        while (index := self._next(work)) is None:
            if work.ended or (work.exhausted and work.given == work.taken):
                self._end_bar()
                raise StopAsyncIteration
            work.changed.clear()
            await work.changed.wait()
        value, error = work.results.pop(index)
        work.given += 1
        work.room.set()
        if error is not None:
            await self.aclose()
            raise error
        if self._bar is not None:
            self._bar.advance(asyncio.get_running_loop().time())
        return value  # type: ignore[no-any-return]

    def _next(self, work: _Work) -> int | None:
        if self._ordered:
            return work.given if work.given in work.results else None
        return next(iter(work.results), None)

    async def aclose(self) -> None:
        """Cancel what is in flight, and give no more results."""
        self._end_bar()
        self._begin = None
        if self._work is not None:
            self._work.results.clear()
            await self._work.close()
            self._work.results.clear()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _end_bar(self) -> None:
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.end()

    def __del__(self) -> None:
        if getattr(self, "_work", None) is not None:
            self._work.abandon()  # type: ignore[union-attr]
            self._end_bar()


class _Bar:
    """A progress bar on stderr. It draws when a result is given out: no thread of its own."""

    def __init__(self, title: str, total: int | None) -> None:
        try:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        except ImportError as error:
            raise ImportError("progress=True draws with rich: pip install rich") from error
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=Console(stderr=True), auto_refresh=False)
        self._task = self._progress.add_task(title, total=total)
        self._drawn: float | None = None

    def advance(self, now: float) -> None:
        if self._drawn is None:
            self._progress.start()
        self._progress.advance(self._task)
        if self._drawn is None or now - self._drawn >= _REFRESH:
            self._progress.refresh()
            self._drawn = now

    def end(self) -> None:
        if self._drawn is not None:
            self._progress.refresh()
            self._progress.stop()
