"""What a task waits on where every microsecond counts: it goes on at once, not in a later turn of the loop.

An `asyncio.Future` wakes its task by the loop's queue: a handle, a turn of the loop and a look at all descriptors for
each answer. Here the messages of one envelope are all handled first, and then each task that they woke goes on from
the same callback. That pays for a call that waits alone and for an idle worker. Where many calls wait, a turn of the
loop serves them all, and asyncio's future, which is not written in Python, costs less.

`Waiter` is a future as `asyncio.Task` knows them, by the mark that `asyncio.isfuture` goes by; one task waits on it,
once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextvars import Context
from typing import Any, Final

__all__ = ["Stepper", "Waiter"]

_PENDING: Final[Any] = object()


class Stepper:
    """The tasks of one node that can go on.

    gathering: set while an envelope is handled: tasks that are woken are put into `ready`, and wait for `step`.
    """

    __slots__ = ("gathering", "loop", "ready")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.gathering = False
        self.ready: list[Waiter] = []

    def step(self) -> None:
        """Let every task that was woken while we gathered go on, in order."""
        self.gathering = False
        ready = self.ready
        if not ready:
            return
        self.ready = []
        if asyncio.current_task(self.loop) is not None:  # who reads is a task; no other can go on inside it
            for waiter in ready:
                self.loop.call_soon(waiter.step)
            return
        if len(ready) == 1:
            ready[0].step()
            return
        steps = iter(ready)
        try:
            for waiter in steps:
                waiter.step()
        finally:
            for waiter in steps:  # one of them ended the loop (KeyboardInterrupt, SystemExit)
                self.loop.call_soon(waiter.step)


class Waiter:
    """See the module. What most of them never change is only on the class."""

    _asyncio_future_blocking = False
    _callback: Callable[[Waiter], object] | None = None
    _context: Context
    _result: Any = _PENDING
    _error: BaseException | None = None

    def __init__(self, stepper: Stepper) -> None:
        self._stepper = stepper
        self._loop = stepper.loop  # asked for by asyncio.Task, as the three methods at the end are

    def done(self) -> bool:
        return self._result is not _PENDING

    def set_result(self, result: object) -> None:
        self._result = result
        if self._callback is not None:
            if self._stepper.gathering:
                self._stepper.ready.append(self)
            else:
                self._loop.call_soon(self.step)

    def set_exception(self, error: BaseException) -> None:
        self._error = error
        self.set_result(None)

    def __await__(self) -> Generator[Any, None, Any]:
        if self._result is _PENDING:
            self._asyncio_future_blocking = True
            yield self  # where there is an error, the task raises it here
        elif self._error is not None:
            raise self._error
        return self._result

    def step(self) -> None:
        """The task that waits goes on."""
        callback, self._callback = self._callback, None
        if callback is not None:
            self._context.run(callback, self)

    def add_done_callback(self, callback: Callable[[Waiter], object], *, context: Context) -> None:
        self._callback, self._context = callback, context

    def result(self) -> Any:
        if self._error is not None:
            error, self._error = self._error, None  # its traceback holds the frames that hold this
            raise error
        return self._result

    def cancel(self, msg: object = None) -> bool:
        """The task is cancelled: it goes on in the next turn of the loop, as asyncio has it."""
        if self._result is not _PENDING:
            return False
        self._error = asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg)
        self._result = None
        if self._callback is not None:
            self._loop.call_soon(self.step)
        return True
