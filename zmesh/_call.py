"""What calling a method gives: an awaitable that also tells about the answer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Mapping
from types import MappingProxyType, TracebackType
from typing import Any, Self, TypeVar

__all__ = ["NO_METADATA", "Call", "LocalStream", "Stream", "make_room"]

R = TypeVar("R")


def make_room(cls: type, *names: str) -> None:
    """Let instances of a class hold these attributes as they hold those that `__init__` sets.

    CPython keeps attributes in the instance where its class knows of their names, which it learns from the first
    instances alone: what is set later, on the thirtieth that is made before any has it, costs a dictionary for each
    (`SHARED_KEYS_MAX_SIZE` in its Objects/dictobject.c).
    """
    first: object = object.__new__(cls)
    for name in names:
        setattr(first, name, None)


NO_METADATA: Mapping[str, str | bytes] = MappingProxyType({})


class Call(Coroutine[Any, Any, R]):
    """One call under way: `await` it for the result, or hand it to `asyncio.create_task` like any coroutine.

    metadata: what the handler sent along with its answer; empty until the call is answered, and for a local call.
    node: the name of the node that answered; None until then, and for a local call.
    """

    __slots__ = ("_coroutine", "_record", "metadata", "node")

    _record: Any  # of a call that is to be explained; see `zmesh.explain`

    def __init__(self, coroutine: Coroutine[Any, Any, R]) -> None:
        self._coroutine = coroutine
        self.metadata: Mapping[str, str | bytes] = NO_METADATA
        self.node: str | None = None
        self._record = None

    @classmethod
    def of(cls, perform: Callable[[Call[R]], Coroutine[Any, Any, R]]) -> Call[R]:
        """The call whose coroutine is told of its own handle, to put the answer's node and metadata there."""
        call = cls.__new__(cls)
        call.metadata = NO_METADATA
        call.node = call._record = None
        call._coroutine = perform(call)
        return call

    def __await__(self) -> Generator[Any, Any, R]:
        return self._coroutine.__await__()

    def send(self, value: Any, /) -> Any:
        return self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        return self._coroutine.throw(*error)

    def close(self) -> None:
        self._coroutine.close()


class Stream(AsyncIterator[R]):
    """A stream of answers: iterate over it. The call begins when the first item is asked for, and ends with the last
    one, with an error, or when nobody wants more: leaving the loop of a stream that nothing else refers to, `aclose()`
    and leaving `async with` tell the other side, whose generator is closed.
    """

    __slots__ = ()

    @property
    def _record(self) -> Any:
        """Of a call that is to be explained; see `zmesh.explain`."""
        return None

    @property
    def metadata(self) -> Mapping[str, str | bytes]:
        """What the handler sent along, known behind the last item; empty until then, and for a local call."""
        return NO_METADATA

    @property
    def node(self) -> str | None:
        """The name of the node that answered, known behind the last item; None until then, and for a local call."""
        return None

    @abstractmethod
    async def aclose(self) -> None:
        """Take no more items."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class LocalStream(Stream[R]):
    """The stream of a method that is called on a plain instance."""

    __slots__ = ("_items",)

    def __init__(self, items: AsyncIterator[R]) -> None:
        self._items = items

    def __anext__(self) -> Any:
        return self._items.__anext__()

    async def aclose(self) -> None:
        close = getattr(self._items, "aclose", None)
        if close is not None:
            await close()
