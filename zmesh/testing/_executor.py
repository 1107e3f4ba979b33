"""Plain `def` handlers in virtual time: no threads; each takes as long as it declares."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable
from typing import Any, Final, TypeVar

from ._loop import Process, VirtualLoop, run_into

__all__ = ["InlineExecutor", "takes"]

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

_MARK: Final = "__zmesh_takes__"


def takes(seconds: float) -> Callable[[FunctionT], FunctionT]:
    """Declare how long a plain `def` handler takes when it is simulated; without, it takes no time.

    Its body runs at the end of that time. Elsewhere the declaration means nothing. An `async def` needs none: what it
    awaits takes time.
    """
    if not seconds >= 0:
        raise ValueError(f"a function takes 0 seconds or more, not {seconds!r}")

    def mark(function: FunctionT) -> FunctionT:
        if not inspect.isfunction(function):
            raise TypeError(f"takes() marks a function, got {function!r}: put it beneath @zmesh.rpc")
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(f"{function.__qualname__} is async: what it awaits takes time, asyncio.sleep() for one")
        setattr(function, _MARK, float(seconds))
        return function

    return mark


def declared(function: Any) -> float:
    """The declared duration of a function, also of one that is wrapped in partials."""
    seconds: float | None = getattr(function, _MARK, None)
    if seconds is None and isinstance(function, functools.partial):
        inner = (declared(part) for part in (function.func, *function.args) if callable(part))
        seconds = max(inner, default=0.0)
    return seconds or 0.0


class InlineExecutor:
    """See `_platform.Executor`."""

    def __init__(self, loop: VirtualLoop, process: Process) -> None:
        self._loop = loop
        self._process = process

    def submit(self, function: Callable[[], object]) -> asyncio.Future[object]:
        future: asyncio.Future[object] = self._loop.create_future()
        # A fresh copy: a thread does not see the context variables of who submits.
        context = self._process.context.copy()
        self._loop.call_later(declared(function), run_into, future, function, context=context)
        return future

    def close(self) -> None:
        """Nothing to do: there are no threads."""
