"""What calling a method gives: an awaitable that also tells about the answer."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

__all__ = ["NO_METADATA", "Call"]

R = TypeVar("R")

NO_METADATA: Mapping[str, str | bytes] = MappingProxyType({})


class Call(Coroutine[Any, Any, R]):
    """One call under way: `await` it for the result, or hand it to `asyncio.create_task` like any coroutine.

    metadata: what the handler sent along with its answer; empty until the call is answered, and for a local call.
    node: the name of the node that answered; None until then, and for a local call.
    """

    __slots__ = ("_coroutine", "metadata", "node")

    def __init__(self, coroutine: Coroutine[Any, Any, R]) -> None:
        self._coroutine = coroutine
        self.metadata: Mapping[str, str | bytes] = NO_METADATA
        self.node: str | None = None

    @classmethod
    def of(cls, perform: Callable[[Call[R]], Coroutine[Any, Any, R]]) -> Call[R]:
        """The call whose coroutine is told of its own handle, to put the answer's node and metadata there."""
        call = cls.__new__(cls)
        call.metadata = NO_METADATA
        call.node = None
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
