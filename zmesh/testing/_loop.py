"""An event loop whose clock jumps, and simulated processes on it that can be stopped, continued and killed.

Nothing here waits, opens a descriptor or starts a thread: when no callback is ready, time jumps to the next timer. What
runs is decided by the order of calls alone, so the same program with the same randomness does the same thing again.

A `Process` is told apart by a context variable. Tasks, timers and callbacks inherit the context that they are made in,
so whatever a process starts belongs to it, as with a real one.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import heapq
import itertools
import math
import random
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, ContextVar, copy_context
from typing import Any, TypeVar

__all__ = [
    "Crashed",
    "OutOfTime",
    "Process",
    "SimulationError",
    "Stuck",
    "VirtualLoop",
    "WorldTimer",
    "run",
    "run_into",
]

T = TypeVar("T")

CALLBACKS_PER_INSTANT = 1_000_000
"""More callbacks than this without time moving on is a loop that never waits."""

CALLBACKS_PER_COLLECTION = 50_000
"""Garbage is collected after this many callbacks: the interpreter's own moment would not depend on the seed alone."""

TIME_LIMIT = 3600.0
"""Virtual seconds that a run may take unless told otherwise: a mesh is never idle, so nothing else ends a test that
waits for what will not come."""


class SimulationError(Exception):
    """The simulated program cannot go on."""


class Stuck(SimulationError):
    """Every task waits for something that will never happen."""


class OutOfTime(SimulationError):
    """The run passed its limit of virtual time, or ran on without any time passing."""


class Crashed(SimulationError):
    """What was awaited ran in a simulated process that ended before it did."""


class Process:
    """A simulated process: everything that was started in its context, and a clock of its own.

    `freeze` is what SIGSTOP, or a callback that blocks, does to an event loop: nothing runs, and after the last `thaw`
    everything that became ready meanwhile runs, expired timers last. `kill` is SIGKILL: nothing of it ever runs again,
    no `finally` either (its coroutines are disposed of when the run is over).
    """

    def __init__(self, loop: VirtualLoop, name: str, clock_offset: float = 0.0) -> None:
        self.name = name
        self.clock_offset = clock_offset
        self.alive = True
        self.context = copy_context()
        self.context.run(_process.set, self)
        self._loop = loop
        self._freezes = 0
        self._held: list[asyncio.Handle] = []  # was ready when the process was frozen, or became so
        self._expired: list[asyncio.Handle] = []  # timers, which a real loop looks at after its descriptors
        self._mourners: list[asyncio.Future[None]] = []

    @property
    def running(self) -> bool:
        """Whether its callbacks run now."""
        return self.alive and not self._freezes

    def freeze(self) -> None:
        """Run nothing of this process until `thaw` was called as often."""
        self._freezes += 1

    def thaw(self) -> None:
        """Undo one `freeze`."""
        if not self._freezes:
            raise ValueError(f"process {self.name!r} is not frozen")
        self._freezes -= 1
        if not self._freezes:
            self._loop._continue(self._held, self._expired)
            self._held, self._expired = [], []

    def kill(self) -> None:
        """Never run anything of this process again."""
        if self.alive:
            self.alive = False
            self._held.clear()
            self._expired.clear()
            self._loop._bury(self)
            for mourner in self._mourners:
                _settle(mourner)

    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine as a task of this process and return its result.

        Raises Crashed where the process ends first, or has ended before. Cancelling the caller cancels it.
        """
        if not self.alive:
            coroutine.close()
            raise Crashed(f"process {self.name!r} ended before this could start")
        task = self._loop.create_task(coroutine, context=self.context.copy())
        ended = self._loop.create_future()
        task.add_done_callback(lambda _: _settle(ended))
        self._mourners.append(ended)
        try:
            await ended
        except asyncio.CancelledError:
            task.cancel()
            raise
        finally:
            self._mourners.remove(ended)
        if not task.done():
            raise Crashed(f"process {self.name!r} ended while this ran")
        return task.result()

    def _true_time(self, local: float) -> float:
        """The earliest time of the loop at which this process's clock does not read less than `local`."""
        true = local - self.clock_offset
        # Rounded down, a timer would fire a hair early, be set again for the same moment, and so for ever.
        while true + self.clock_offset < local:
            true = math.nextafter(true, math.inf)
        return true

    def __repr__(self) -> str:
        state = "killed" if not self.alive else "frozen" if self._freezes else "running"
        return f"<Process {self.name!r} {state}>"


_process: ContextVar[Process | None] = ContextVar("zmesh.testing.process", default=None)


class WorldTimer:
    """A timer of the world around the processes: it fires whatever they do. `VirtualLoop.call_at_true` makes it."""

    __slots__ = ("_cancelled", "args", "callback")

    def __init__(self, callback: Callable[..., None], args: tuple[Any, ...]) -> None:
        self.callback = callback
        self.args = args
        self._cancelled = False

    def cancel(self) -> None:
        """Do not fire."""
        self._cancelled = True


class VirtualLoop(asyncio.BaseEventLoop):
    """An asyncio event loop on virtual time, which starts at 0.

    It has no descriptors, sockets, signals or subprocesses. `run_in_executor` (and with it `asyncio.to_thread`) runs
    the function on the loop, in no virtual time.
    """

    # Of asyncio.BaseEventLoop, unchanged from Python 3.11 to 3.14, but not in its type stubs.
    _ready: deque[asyncio.Handle]
    _asyncgens: weakref.WeakSet[Any]
    _stopping: bool
    _timer_cancelled_count: int
    _check_closed: Callable[[], None]

    def __init__(self, *, time_limit: float = TIME_LIMIT) -> None:
        super().__init__()
        self.errors: list[Exception] = []
        """What no task or callback handled; `run` raises it."""
        self._now = 0.0
        self._time_limit = time_limit
        self._timers: list[tuple[float, int, asyncio.TimerHandle | WorldTimer]] = []
        self._sequence = itertools.count()
        self._callbacks_now = 0
        self._callbacks_until_collection = CALLBACKS_PER_COLLECTION
        self._tasks: weakref.WeakKeyDictionary[asyncio.Task[Any], Process | None] = weakref.WeakKeyDictionary()
        self._buried: list[asyncio.Task[Any]] = []
        self.set_exception_handler(_keep_error)

    # -- the clock

    @property
    def now(self) -> float:
        """Virtual seconds since the start of the run, the same in every process."""
        return self._now

    def time(self) -> float:
        """The clock of the process that asks (`now`, outside of any)."""
        process = _process.get()
        return self._now if process is None else self._now + process.clock_offset

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """As asyncio's; timers of one moment fire in the order in which they were set."""
        self._check_closed()
        process = _process.get()
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        timer._scheduled = True  # type: ignore[attr-defined]
        self._push(when if process is None else process._true_time(when), timer)
        return timer

    def call_at_true(self, when: float, callback: Callable[..., None], *args: Any) -> WorldTimer:
        """As `call_at` by the clock that all share (`now`), and belonging to no process: for the world around them."""
        timer = WorldTimer(callback, args)
        heapq.heappush(self._timers, (when, next(self._sequence), timer))
        return timer

    def _push(self, when: float, timer: asyncio.TimerHandle) -> None:
        heapq.heappush(self._timers, (when, next(self._sequence), timer))
        # Most timers are deadlines, cancelled long before they are due.
        if self._timer_cancelled_count > 100 and self._timer_cancelled_count * 2 > len(self._timers):
            self._timers[:] = [entry for entry in self._timers if not entry[2]._cancelled]
            heapq.heapify(self._timers)
            self._timer_cancelled_count = 0

    # -- turns

    def _run_once(self) -> None:
        """Called by `run_forever` for ever. Takes turns until the loop is stopped, which saves the calls between."""
        ready = self._ready
        timers = self._timers
        while not self._stopping:
            while timers and timers[0][0] <= self._now:
                self._fire(heapq.heappop(timers)[2])
            count = len(ready)
            if not count:
                self._advance()
                continue
            self._count(count)
            for _ in range(count):
                handle = ready.popleft()
                if handle._cancelled:
                    continue
                process: Process | None = handle._context.get(_process)  # type: ignore[attr-defined]
                if process is None or process.running:
                    handle._run()
                elif process.alive:
                    process._held.append(handle)

    def _fire(self, timer: asyncio.TimerHandle | WorldTimer) -> None:
        if type(timer) is WorldTimer:
            if not timer._cancelled:
                timer.callback(*timer.args)
            return
        timer._scheduled = False  # type: ignore[union-attr]
        if timer._cancelled:
            self._timer_cancelled_count -= 1
            return
        process: Process | None = timer._context.get(_process)  # type: ignore[union-attr]
        if process is None or process.running:
            self._ready.append(timer)  # type: ignore[arg-type]
        elif process.alive:
            process._expired.append(timer)  # type: ignore[arg-type]

    def _advance(self) -> None:
        """Jump to the next timer; raise where there is none, or none before the limit."""
        timers = self._timers
        while timers and timers[0][2]._cancelled:
            self._fire(heapq.heappop(timers)[2])
        if not timers or timers[0][0] == math.inf:
            raise Stuck(f"virtual time: every task waits for something that will never happen\n{self._describe()}")
        if timers[0][0] > self._time_limit:
            raise OutOfTime(f"virtual time: not done after {self._time_limit} virtual seconds\n{self._describe()}")
        self._now = timers[0][0]
        self._callbacks_now = 0

    def _count(self, callbacks: int) -> None:
        self._callbacks_now += callbacks
        if self._callbacks_now > CALLBACKS_PER_INSTANT:
            self._callbacks_now = 0
            raise OutOfTime(
                f"virtual time: {CALLBACKS_PER_INSTANT} callbacks ran and no time passed; something loops without "
                f"waiting\n{self._describe()}"
            )
        self._callbacks_until_collection -= callbacks
        if self._callbacks_until_collection <= 0:
            self._callbacks_until_collection = CALLBACKS_PER_COLLECTION
            gc.collect(1)

    def _describe(self) -> str:
        lines = []
        for task, process in list(self._tasks.items()):
            if not task.done() and (process is None or process.alive):
                where = "" if process is None else f" in {process!r}"
                lines.append(f"  {task.get_name()}{where}: {_where(task.get_coro())}")
        return "\n".join([f"at {self._now:.6f} s these tasks wait:", *lines])

    # -- processes

    def _continue(self, held: list[asyncio.Handle], expired: list[asyncio.Handle]) -> None:
        self._ready.extend(held)
        self._ready.extend(expired)

    def _bury(self, process: Process) -> None:
        # Held until the run is over: collected now, their coroutines would be closed, and `finally` blocks would run.
        self._buried.extend(task for task, owner in list(self._tasks.items()) if owner is process)

    def create_task(
        self,
        coro: Coroutine[Any, Any, T] | Generator[Any, None, T],
        *,
        name: object = None,
        context: Context | None = None,
        **kwargs: Any,
    ) -> asyncio.Task[T]:
        """As asyncio's; the task belongs to the process of its context."""
        task: asyncio.Task[T] = super().create_task(
            coro, name=None if name is None else str(name), context=context, **kwargs
        )
        process = _process.get() if context is None else context.get(_process)
        self._tasks[task] = process
        if process is not None and not process.alive:
            self._buried.append(task)
        return task

    def _asyncgen_firstiter_hook(self, agen: Any) -> None:
        # Those of a process end with it; at the end of the run only what belongs to none is closed properly.
        if _process.get() is None:
            self._asyncgens.add(agen)

    # -- what other loops do with threads

    def run_in_executor(  # type: ignore[override]
        self, executor: object, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """Run the function on the loop, soon: there are no threads in virtual time."""
        future: asyncio.Future[T] = self.create_future()
        self.call_soon(run_into, future, func, *args)
        return future

    def _write_to_self(self) -> None:
        """Called by `call_soon_threadsafe`; there is no one to wake."""

    # -- the end

    def _shut_down(self) -> None:
        """End every task, and forget those of killed processes without running any of it."""
        self._time_limit = self._now + TIME_LIMIT
        tasks = []
        frozen = []
        for task, process in list(self._tasks.items()):
            if not task.done() and (process is None or process.alive):
                tasks.append(task)
                if process is not None and not process.running and process not in frozen:
                    frozen.append(process)
        for process in frozen:
            while not process.running:
                process.thaw()
        for task in tasks:
            task.cancel()
        try:
            if tasks:
                self.run_until_complete(asyncio.wait(tasks))
            self.run_until_complete(self.shutdown_asyncgens())
        except SimulationError as error:
            self.errors.append(error)
        self._buried.extend(task for task in list(self._tasks) if not task.done() and task not in self._buried)
        for task in self._buried:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        self.close()
        for task in self._buried:
            _dispose(task.get_coro())
        self._buried.clear()


def _keep_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # Once closed, only what killed processes left behind is collected, and they had no time to handle anything.
    if isinstance(loop, VirtualLoop) and not loop.is_closed():
        error = context.get("exception")
        if not isinstance(error, Exception):
            error = SimulationError(context.get("message", "an error without a message"))
        elif context.get("message"):
            error.add_note(f"asyncio says: {context['message']}")
        loop.errors.append(error)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def run_into(future: asyncio.Future[T], function: Callable[..., T], *args: Any) -> None:
    """Let a future have what a function returns or raises."""
    if future.cancelled():
        return
    try:
        result = function(*args)
    except (SystemExit, KeyboardInterrupt):
        raise
    except StopIteration:  # a future refuses it
        future.set_exception(RuntimeError("the function raised StopIteration"))
    except BaseException as error:  # whatever it is, it belongs to who asked
        future.set_exception(error)
    else:
        future.set_result(result)


def _dispose(coroutine: Any) -> None:
    with contextlib.suppress(BaseException):  # a killed process says nothing
        coroutine.close()


def _where(coroutine: Any) -> str:
    """Where the innermost awaited coroutine stands."""
    place = repr(coroutine)
    while coroutine is not None:
        for prefix, inner in (("cr", "await"), ("gi", "yieldfrom"), ("ag", "await")):
            frame = getattr(coroutine, f"{prefix}_frame", None)
            if frame is not None:
                code = frame.f_code
                place = f'{code.co_qualname}, file "{code.co_filename}", line {frame.f_lineno}'
                coroutine = getattr(coroutine, f"{prefix}_{inner}", None)
                break
        else:
            break
    return place


def run(
    main: Callable[[], Coroutine[Any, Any, T]],
    *,
    seed: int | str = 0,
    time_limit: float = TIME_LIMIT,
) -> T:
    """Run `main()` in virtual time on a fresh loop, end what it left behind, and return its result.

    The module `random` is seeded for the run, and afterwards as it was before. Raises Stuck, OutOfTime, what `main`
    raises, or else an ExceptionGroup of the errors that no task handled.
    """
    loop = VirtualLoop(time_limit=time_limit)
    random_state = random.getstate()
    collecting = gc.isenabled()
    gc.disable()
    random.seed(f"zmesh.testing {seed}")
    asyncio.set_event_loop(loop)
    try:
        try:
            result = loop.run_until_complete(main())
        finally:
            loop._shut_down()
    finally:
        asyncio.set_event_loop(None)
        random.setstate(random_state)
        if collecting:
            gc.enable()
    if loop.errors:
        raise ExceptionGroup("errors that no task handled", loop.errors)
    return result
