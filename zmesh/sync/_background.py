"""The thread behind a `Mesh`: an event loop that owns a node, and how other threads wait for it."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Final, NoReturn

from .._client import Outgoing
from ..errors import Cancelled, FailedPrecondition
from ..node import Node
from ._streams import Feed, Stream

if TYPE_CHECKING:
    from . import Mesh

__all__ = ["Background"]

_log = logging.getLogger("zmesh.sync")

_EXIT_GRACE: Final = 2.0  # seconds that the end of the process, or of a loop, waits for what does not end
_NOTHING: Final[Mapping[str, Any]] = {}
_CLOSED: Final = "this Mesh is closed: connect() again"


class Background:
    """A daemon thread with an event loop, which enters a node and leaves it when it is told to.

    It holds no `Mesh`, so that one that is forgotten is collected.
    """

    def __init__(self, node: Node) -> None:
        self.closed = False  # the node has left
        self.exiting = False  # the process ends
        self.loop = _new_loop()
        self._bell = None if sys.platform != "linux" else Bell(self.loop)
        self.soon: Callable[..., object] = self.loop.call_soon_threadsafe if self._bell is None else self._bell.soon
        self.waiting: set[_Waiter] = set()
        self._node = node
        self._pid = os.getpid()
        self._error: BaseException | None = None  # with which the node was entered or left, if nobody was told yet
        self._entered = threading.Event()
        self._stopped = asyncio.Event()
        self._life: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._work, name=f"zmesh {node.name}", daemon=True)

    # -- from any thread

    def start(self) -> None:
        """Enter the node, or raise what prevents that."""
        self.check()
        self._thread.start()
        _BACKGROUNDS.add(self)
        try:
            self._entered.wait()
        except BaseException:  # Ctrl-C
            self.stop(at_once=True)
            raise
        self._raise_error()

    def run(
        self,
        mesh: Mesh,
        function: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] = _NOTHING,
        feeds: Sequence[Feed] = (),
    ) -> Any:
        """Call `function` on the loop and wait: its result, awaited if it is a coroutine, as a `Stream` if it is one.

        feeds: what it reads from; they end with it.
        """
        self.check()
        waiter = _Waiter(mesh, function, args, kwargs, feeds)
        try:
            self.waiting.add(waiter)  # before it is scheduled, or the end of the loop could miss it
            self.soon(waiter.start)
            waiter.lock.acquire()
        except BaseException as error:
            self.waiting.discard(waiter)
            if self.closed and isinstance(error, RuntimeError):  # since it was checked above
                self._refuse()
            with contextlib.suppress(RuntimeError):
                self.soon(waiter.cancel)  # Ctrl-C
            raise
        if waiter.error is not None:
            try:
                raise waiter.error
            finally:
                del waiter  # it is in the error's traceback, which is in it
        return waiter.value

    @property
    def gone(self) -> bool:
        """Whether nothing can be ended here any more: it is closed, or this is a forked child."""
        return self.closed or os.getpid() != self._pid

    def check(self) -> None:
        """Raise where this thread must not wait for the loop."""
        if os.getpid() != self._pid:
            text = "this Mesh was made in the parent process and does not work in a forked child: connect in the child"
            raise FailedPrecondition(text, may_have_run=False)
        running = asyncio._get_running_loop()
        if running is not None:
            self._check_loop(running)
            if asyncio.current_task(running) is not None and not _in_ipython():
                raise RuntimeError(
                    "a blocking call in a coroutine would stall its event loop: use `async with zmesh.Node()` there"
                )
        if self.closed:
            self._refuse()

    def stop(self, *, at_once: bool = False) -> None:
        """Have the node leave, and do not wait for that. at_once: without a drain."""
        if not self.gone:
            with contextlib.suppress(RuntimeError):  # it has just been closed
                self.soon(self._leave, at_once)

    def close(self) -> None:
        """Have the node leave, and wait for that. Raises what it was left with."""
        if os.getpid() != self._pid:
            return
        self._check_loop(asyncio._get_running_loop())
        self.stop()
        self._thread.join()
        self._raise_error()

    def end(self, until: float) -> None:
        """At the end of the process: wait for the node to leave, but not past `until`, by the monotonic clock."""
        self._thread.join(max(until - time.monotonic(), 0.0))
        self.stop(at_once=True)
        self._thread.join(0.2)
        if isinstance(self._error, Exception):
            _log.error("a node was left with an error", exc_info=self._error)

    def _refuse(self) -> NoReturn:
        if self.exiting and threading.current_thread() is not threading.main_thread():
            # A daemon thread that the process leaves behind: an error would only be noise on the last screen.
            threading.Event().wait()
        raise RuntimeError(_CLOSED) from None

    def _check_loop(self, running: asyncio.AbstractEventLoop | None) -> None:
        if running is self.loop:
            raise RuntimeError(
                "a blocking call on the mesh's own event loop would wait for itself: "
                "in an `async def` handler, await zmesh.context().client(...)"
            )

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    # -- in the thread

    def _work(self) -> None:
        loop = self.loop
        try:
            loop.run_until_complete(self._live())
        except BaseException as error:
            self._error = error
        finally:
            self.closed = True
            try:
                # Not asyncio.Runner: it would wait for the default executor's threads, and one of them may never end.
                loop.run_until_complete(self._tidy())
            finally:
                if self._bell is not None:
                    self._bell.mute()
                loop.close()
                while self.waiting:  # they came when the loop had already run for the last time
                    self.waiting.pop().finish(None, RuntimeError(_CLOSED))
                self._entered.set()

    async def _live(self) -> None:
        self._life = asyncio.current_task()
        async with self._node:
            self._entered.set()
            await self._stopped.wait()

    async def _tidy(self) -> None:
        """End what still runs on the loop."""
        for waiter in list(self.waiting):
            waiter.cancel()
        await asyncio.sleep(0)  # calls without a task have ended by then
        if tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=_EXIT_GRACE)  # one that refuses does not keep the thread
        await self.loop.shutdown_asyncgens()

    def _leave(self, at_once: bool) -> None:
        self._stopped.set()
        if at_once and self._life is not None:
            self._life.cancel()


class Bell:
    """Calls functions on a loop from other threads.

    What `call_soon_threadsafe` does, without the two turns of the loop that it costs with uvloop, each a system call.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._functions: deque[tuple[Callable[..., object], tuple[object, ...]]] = deque()
        self._muted = False
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._loop = loop
        loop.add_reader(self._descriptor, self._rung)
        # Not with the loop: a thread that rings meanwhile would write into whatever is opened next.
        weakref.finalize(self, os.close, self._descriptor).atexit = False

    def soon(self, function: Callable[..., object], *args: object) -> None:
        """Have the loop call this. Raises RuntimeError once it is closed."""
        if self._muted:
            raise RuntimeError("Event loop is closed")
        self._functions.append((function, args))
        os.eventfd_write(self._descriptor, 1)

    def mute(self) -> None:
        """The loop runs no more."""
        self._muted = True
        self._loop.remove_reader(self._descriptor)

    def _rung(self) -> None:
        os.eventfd_read(self._descriptor)
        functions = self._functions
        try:
            while functions:
                function, args = functions.popleft()
                function(*args)
        finally:
            if functions:  # one of them raised
                os.eventfd_write(self._descriptor, 1)


class _Waiter:
    """A function on its way to the loop, and the thread that waits for what it gives."""

    __slots__ = ("_args", "_call", "_context", "_feeds", "_function", "_future", "_kwargs", "_mesh", "_task", "error",
                 "lock", "value")  # fmt: skip

    def __init__(
        self,
        mesh: Mesh,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        feeds: Sequence[Feed],
    ) -> None:
        self._mesh = mesh
        self._context = copy_context()
        self._function = function
        self._args = args
        self._kwargs = kwargs
        self._feeds = feeds
        self._task: asyncio.Task[Any] | None = None
        self._call: Outgoing | None = None
        self._future: Any = None  # that it waits for
        self.value: Any = None
        self.error: BaseException | None = None
        self.lock = threading.Lock()  # released at the end; cheaper than an Event, and Ctrl-C interrupts it as well
        self.lock.acquire()

    def start(self) -> None:
        self._context.run(self._start)

    def _start(self) -> None:
        background = self._mesh._background
        if background.closed:
            self.finish(None, RuntimeError(_CLOSED))
            return
        try:
            value = self._function(*self._args, **self._kwargs)
        except BaseException as error:
            self.finish(None, error)
            return
        if type(value) is Outgoing:
            # Nothing in it asks for the task that it runs in, and a task costs two turns of the loop.
            self._call = value
            self._step(value.send, None)
            if len(background.waiting) == 1:  # else it leaves with what other threads send in this turn
                value.hurry()
        elif asyncio.iscoroutine(value):
            self._task = background.loop.create_task(value, context=self._context)
            self._task.add_done_callback(self._done)
        else:
            self.finish(value, None)

    def _step(self, go_on: Callable[[Any], Any], with_what: object) -> None:
        """A call without a task goes on, as a task would have it."""
        try:
            future = go_on(with_what)
        except StopIteration as end:
            self.finish(end.value, None)
        except asyncio.CancelledError:
            self.finish(None, _cancelled())
        except BaseException as error:
            self.finish(None, error)
        else:
            future._asyncio_future_blocking = False
            self._future = future
            future.add_done_callback(self._woken, context=self._context)

    def _woken(self, future: Any) -> None:
        call = self._call
        assert call is not None
        try:
            future.result()
        except BaseException as error:
            self._step(call.throw, error)
        else:
            self._step(call.send, None)

    def _done(self, task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            self.finish(None, _cancelled())
        elif (error := task.exception()) is not None:
            self.finish(None, error)
        else:
            self.finish(task.result(), None)

    def finish(self, value: Any, error: BaseException | None) -> None:
        background = self._mesh._background
        background.waiting.discard(self)
        if hasattr(value, "__aiter__"):
            value = Stream(self._mesh, value, self._feeds)
        else:
            for feed in self._feeds:
                feed.stop()
        self.value = value
        self.error = error
        if error is None or not background.exiting:  # see `check`
            self.lock.release()

    def cancel(self) -> None:
        """Nobody waits any more."""
        if self._task is not None:
            self._task.cancel()
        elif self._future is not None:
            self._future.cancel()


def _cancelled() -> Cancelled:
    return Cancelled("the Mesh was closed while this was under way", may_have_run=True)


def _new_loop() -> asyncio.AbstractEventLoop:
    with contextlib.suppress(ImportError):
        import uvloop

        return uvloop.new_event_loop()
    return asyncio.SelectorEventLoop()  # on Windows, too: the only one that watches ZeroMQ's descriptors


def _in_ipython() -> bool:
    """Whether this is a notebook or an IPython shell: its cells run in a loop, which may stand still meanwhile."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None


_BACKGROUNDS: weakref.WeakSet[Background] = weakref.WeakSet()


@atexit.register
def _end_of_process() -> None:
    """Let the nodes that nobody closed leave the mesh, and hold up the exit for a moment at most."""
    backgrounds = [each for each in _BACKGROUNDS if not each.gone]
    until = time.monotonic() + _EXIT_GRACE
    for each in backgrounds:
        each.exiting = True
        each.stop()
    for each in backgrounds:
        each.end(until)
