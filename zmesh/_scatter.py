"""One call to many nodes: whom it goes to, and their replies as they arrive."""

from __future__ import annotations

import asyncio
import copy
import random
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar

from ._clients import Options, TypedCaller
from ._core.members import Member
from ._core.peer import State
from ._core.selection import Exactly
from ._hub import Hub
from ._link import Link
from .errors import RpcError, Unavailable
from .schema import MethodSchema, schema_of
from .service import Method

__all__ = ["Crew", "Replies", "Reply", "Scatter", "method_schema"]

R = TypeVar("R")

_SETTLE: Final = 0.5  # seconds without a newcomer after which discovery has settled, as in `Node.discover`
_LOOK: Final = 0.02  # seconds between two looks at who is there


@dataclass(frozen=True, slots=True)
class Reply(Generic[R]):
    """What one node answered.

    node: its name. value: its result, None where it failed. error: with what it failed, None where it did not.
    """

    node: str
    value: R | None
    error: RpcError | None

    def result(self) -> R:
        """The value. Raises the error where there is one."""
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]


class Crew:
    """Tasks that work for one reader, what they have brought so far, and the end of all of them."""

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[None]] = set()
        self.arrived: deque[Any] = deque()
        self.changed = asyncio.Event()
        self.ended = False
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.arrived.append(error)
        self.changed.set()

    def cancel(self) -> None:
        self.ended = True
        for task in self.tasks:
            task.cancel()
        self.changed.set()

    def abandon(self) -> None:
        """From any thread, also a garbage collector's: nobody reads any more."""
        if self.tasks and not self._loop.is_closed():
            here = self._thread == threading.get_ident()
            (self._loop.call_soon if here else self._loop.call_soon_threadsafe)(self.cancel)

    async def close(self) -> None:
        self.cancel()
        if self.tasks:
            await asyncio.wait(self.tasks)


def method_schema(method: object, who: str) -> MethodSchema:
    """The schema of a handle. Raises TypeError for what is no handle, or one of a method that streams."""
    if not isinstance(method, Method):
        raise TypeError(f"{who}() takes a method of a Service class, like Greeter.say_hello, got {method!r:.60}")
    schema = schema_of(method.owner).methods[method.name]
    if schema.kind != "unary":
        raise TypeError(f"{who}() takes a method without streams, and {schema.path} has one")
    return schema


class Scatter:
    """A method, and whom a call of it goes to. Raises ValueError or TypeError for arguments that make no sense."""

    def __init__(
        self,
        hub: Hub,
        method: Method[..., Any],
        to: str | int | Sequence[str],
        expect: int | None,
        timeout: float | None,
        metadata: Mapping[str, str | bytes] | None,
        since: float,
        random: random.Random,
    ) -> None:
        """since: when the node began to look for others, by its loop."""
        self.hub = hub
        self.method = method_schema(method, "scatter")
        self.schema = schema_of(method.owner)
        self.names: tuple[str, ...] = ()
        self.count: int | None = None
        if isinstance(to, bool) or (isinstance(to, int) and to < 1):
            raise ValueError(f"to is at least 1, got {to!r}")
        if isinstance(to, int):
            self.count = to
        elif not isinstance(to, str) and isinstance(to, Sequence) and to and all(isinstance(n, str) for n in to):
            self.names = tuple(dict.fromkeys(to))
        elif to not in ("all", "any"):
            raise ValueError(f'to is "all", "any", a number of nodes or a list of their names, got {to!r:.60}')
        if expect is not None and (isinstance(expect, bool) or not isinstance(expect, int) or expect < 1):
            raise ValueError(f"expect is at least 1, got {expect!r}")
        if expect is not None and self.names:
            raise ValueError("expect is how many nodes are waited for: without it where they are named")
        self.any = to == "any"
        self.expect = expect
        self.options = Options().change({"timeout": timeout, "metadata": metadata})
        self.timeout = hub.client.timeout(timeout)
        self.since = since
        self.random = random

    def __call__(self, *args: Any, **kwargs: Any) -> Replies[Any]:
        self.method.binder(*args, **kwargs)  # what cannot be sent is refused here, once
        return Replies(self, args, kwargs)

    # -- whom

    def offering(self) -> list[Member[Link]]:
        members = self.hub.members.offering(self.method.service, self.schema.major)
        return [member for member in members if member.state not in (State.DEAD, State.DRAINING)]

    async def whom(self, until: float) -> list[Member[Link]]:
        """Those whom it goes to, once they are known or patience has passed."""
        hub, loop = self.hub, asyncio.get_running_loop()
        hub.client.want(self.method.service, all=True)
        fresh = loop.time() - self.since < _SETTLE
        quiet_since, seen = self.since, -1
        least = self.expect or self.count or 1
        while loop.time() < until and hub.client.closed is None:
            found = len(self.offering())
            if found != seen:
                seen = found
                quiet_since = loop.time() if fresh else quiet_since
            if found >= least and (self.expect or (self._settled() and loop.time() - quiet_since >= _SETTLE)):
                break
            await asyncio.sleep(_LOOK)
        found_now = self.offering()
        if self.count is not None:
            self.random.shuffle(found_now)  # equals are taken in no order
            found_now.sort(key=lambda member: (member.in_flight + member.others) / member.capacity)
            del found_now[self.count :]
        if not found_now:
            raise Unavailable(
                f"no node offers {self.method.service!r}; seen: {len(hub.members)} (run 'zmesh doctor')",
                may_have_run=False,
            )
        return found_now

    def _settled(self) -> bool:
        unmet = any(member.hello is None and member.state is State.NEW for member in self.hub.members)
        return not unmet and self.hub.dialer.settled()

    async def named(self, name: str, until: float) -> list[Member[Link]]:
        """Those of one name, or the one of this id, once there is one or patience has passed."""
        loop = asyncio.get_running_loop()
        self.hub.client.want(self.method.service, all=True)
        while True:
            found = [member for member in self.offering() if name in (member.name, member.id.hex())]
            if found or loop.time() >= until or self.hub.client.closed is not None:
                return found
            await asyncio.sleep(_LOOK)


class _Work(Crew):
    """The calls of one scatter."""

    def __init__(self, scatter: Scatter, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.scatter = scatter
        self.args = args
        self.kwargs = kwargs
        self.finding = len(scatter.names) or 1  # searches that are not over
        self.calls = 0  # replies that are still to be taken
        now = self._loop.time()
        self.deadline = now + scatter.timeout
        self.patience = min(self.deadline, now + scatter.hub.client.config.patience)
        for name in scatter.names:
            self.start(self._find_named(name))
        if not scatter.names:
            self.start(self._find())

    async def _find(self) -> None:
        try:
            for member in await self.scatter.whom(self.patience):
                self._call(member)
        finally:
            self.finding -= 1

    async def _find_named(self, name: str) -> None:
        service = self.scatter.method.service
        found = await self.scatter.named(name, self.patience)
        for member in found:
            self._call(member)
        if not found:
            error = Unavailable(f"no node named {name!r} offers {service!r}", may_have_run=False)
            self.calls += 1
            self.arrived.append(Reply(name, None, error))
        self.finding -= 1

    def _call(self, member: Member[Link]) -> None:
        self.calls += 1
        self.start(self._perform(member))

    async def _perform(self, member: Member[Link]) -> None:
        scatter = self.scatter
        left = max(self.deadline - self._loop.time(), 0.001)
        options = scatter.options.change({"timeout": left, "selection": Exactly(member.id, member.name)})
        call = TypedCaller(scatter.hub.client, scatter.schema, options).bind(scatter.method)
        try:
            reply = Reply(member.name, await call(*self.args, **self.kwargs), None)  # type: ignore[misc]
        except RpcError as error:
            reply = Reply(member.name, None, error)
        self.arrived.append(reply)
        self.changed.set()


class Replies(AsyncIterator[Reply[R]]):
    """The replies of many nodes, in the order in which they arrive. The calls begin when the first is asked for.

    Each node's reply comes once: its value or its error. Where nobody at all was found, asking raises Unavailable.
    Leaving early cancels what is in flight: `aclose()`, the end of an `async with`, `first()` and `quorum()`, and
    letting go of the last reference, as a `break` does.
    """

    def __init__(self, scatter: Scatter, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._begin: Callable[[], _Work] = lambda: _Work(scatter, args, kwargs)
        self._any = scatter.any
        self._path = scatter.method.path
        self._work: _Work | None = None
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Reply[R]:
        reply = await self._take()
        if reply is None:
            raise StopAsyncIteration
        if self._any and reply.error is None:
            await self.aclose()
        return reply

    async def first(self) -> Reply[R]:
        """The first success; the other calls are cancelled. Without one, raises the last error, which lists all."""
        return (await self.quorum(1))[0]

    async def quorum(self, k: int) -> list[Reply[R]]:
        """The first `k` successes of those to come, as soon as there are `k`; the other calls are cancelled.

        Raises as soon as `k` are out of reach: the last error, with a text that lists all; Unavailable where none
        failed, but too few nodes were asked. ValueError for `k` below 1.
        """
        if k < 1:
            raise ValueError(f"k is at least 1, got {k!r}")
        good: list[Reply[R]] = []
        bad: list[Reply[R]] = []
        try:
            while len(good) < k:
                work = self._work
                if work is not None and not work.finding and len(good) + work.calls < k:
                    break
                reply = await self._take(k - len(good))
                if reply is None:
                    break
                (good if reply.error is None else bad).append(reply)
        finally:
            await self.aclose()
        if len(good) < k:
            raise self._missed(k, good, bad)
        return good

    def _missed(self, k: int, good: list[Reply[R]], bad: list[Reply[R]]) -> RpcError:
        text = f"{self._path}: {k} successes are out of reach, there are {len(good)}"
        if not bad or bad[-1].error is None:
            return Unavailable(f"{text}, and too few nodes were asked", may_have_run=bool(good))
        error = copy.copy(bad[-1].error)
        error.message = "; ".join([text, *(f"{each.node}: {each.error}" for each in bad)])
        error.args = (error.message,)
        error.may_have_run = bool(good) or any(each.error is not None and each.error.may_have_run for each in bad)
        error.__cause__ = bad[-1].error
        return error

    async def _take(self, least: int = 0) -> Reply[R] | None:
        """The next reply; None behind the last one, and where fewer than `least` can still come."""
        if self._closed:
            return None
        if self._work is None:
            self._work = self._begin()
        work = self._work
        while not work.arrived:
            if work.ended or not work.tasks or (not work.finding and work.calls < least):
                return None
            work.changed.clear()
            await work.changed.wait()
        item = work.arrived.popleft()
        if isinstance(item, BaseException):
            await self.aclose()
            raise item
        work.calls -= 1
        return item  # type: ignore[no-any-return]

    async def aclose(self) -> None:
        """Cancel what is in flight, and take no more replies."""
        self._closed = True
        if self._work is not None:
            await self._work.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        work: _Work | None = getattr(self, "_work", None)
        if work is not None:
            work.abandon()
