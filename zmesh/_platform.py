"""What a node stands on: everything that `zmesh.testing` swaps so that production code runs in virtual time.

The clock is not here: it is the running loop's.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import queue
import random
import secrets
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from ._transport import Gate, Transport
from .config import Config
from .discovery import Discovery

__all__ = ["Executor", "Host", "Platform", "clock_of", "real_platform", "usable_cores"]


class Executor(Protocol):
    """Where plain `def` handlers run. The node itself bounds how many at once."""

    def submit(self, function: Callable[[], object]) -> asyncio.Future[object]:
        """Run `function`; the future belongs to the running loop."""

    def close(self) -> None:
        """Take no more. Does not wait: a function that never returns must not hold up an exit."""


@dataclass(frozen=True, slots=True)
class Host:
    """The machine, as far as two nodes need to know whether they share it.

    identity: equal for two processes that can meet over an abstract socket: boot id and network namespace.
    abstract_sockets: whether this system has them (Linux only).
    """

    identity: str
    abstract_sockets: bool


class ThreadExecutor:
    """Daemon threads, started as they are needed.

    Not a ThreadPoolExecutor: the interpreter joins that one's threads at exit, so a handler that never returns would
    keep a drained process alive.
    """

    def __init__(self, threads: int) -> None:
        self._most = threads
        self._threads = 0
        self._under_way = 0  # counted on the loop's side, so that no call ever waits for a thread that is not idle
        self._work: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()

    def submit(self, function: Callable[[], object]) -> asyncio.Future[object]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[object] = loop.create_future()
        self._under_way += 1
        self._work.put((function, future, loop))
        if self._under_way > self._threads and self._threads < self._most:
            self._threads += 1
            threading.Thread(target=self._serve, name=f"zmesh-{self._threads}", daemon=True).start()
        return future

    def close(self) -> None:
        for _ in range(self._threads):
            self._work.put(None)

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            function, future, loop = work
            result: object = None
            failure: BaseException | None = None
            try:
                result = function()
            except BaseException as error:  # the handler's, whatever it is: it belongs to the caller
                failure = error
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits for this any more
                loop.call_soon_threadsafe(self._returned, future, result, failure)
            del work, function, future, result, failure

    def _returned(self, future: asyncio.Future[object], result: object, failure: BaseException | None) -> None:
        self._under_way -= 1
        if future.done():
            return
        if failure is None:
            future.set_result(result)
        elif isinstance(failure, StopIteration):  # a future refuses it
            future.set_exception(RuntimeError("the handler raised StopIteration"))
        else:
            future.set_exception(failure)


_Work = tuple[Callable[[], object], "asyncio.Future[object]", asyncio.AbstractEventLoop]


def clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """The loop's clock, read afresh.

    uvloop's `time()` is that of the last turn, in whole milliseconds: after a handler that blocked it would show that
    no time had passed. It counts from where `time.monotonic` does, as asyncio's own loops do.
    """
    return time.monotonic if type(loop).__module__.startswith("uvloop") else loop.time


def usable_cores() -> int:
    """How many cores this process may use: fewer than the machine has, where it is bound to some of them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.cache
def this_host() -> Host:
    """The host of this process. Where the system does not tell, an identity that nobody shares."""
    if sys.platform == "linux":
        try:
            with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
                boot = file.read().strip()
            return Host(f"{boot}/{os.stat('/proc/self/ns/net').st_ino}", abstract_sockets=True)
        except OSError:
            pass
    return Host(secrets.token_hex(16), abstract_sockets=False)


def _zeromq(config: Config, gate: Gate | None) -> Transport:
    from ._transport.zeromq import ZeroMQTransport

    return ZeroMQTransport(config, gate)


def _mdns(interfaces: tuple[str, ...] | None) -> Discovery:
    from .discovery.mdns import MulticastDNS

    return MulticastDNS(interfaces)


@dataclass(frozen=True)
class Platform:
    """The parts. `zmesh.testing` makes one a simulated host."""

    transport: Callable[[Config, Gate | None], Transport] = _zeromq
    mdns: Callable[[tuple[str, ...] | None], Discovery] = _mdns
    executor: Callable[[int], Executor] = ThreadExecutor
    processes: bool = True  # whether there are any; else their handlers run where the other plain ones do
    random: random.Random = field(default_factory=random.Random)
    new_id: Callable[[], bytes] = field(default=lambda: secrets.token_bytes(16))
    host: Host = field(default_factory=this_host)


def real_platform() -> Platform:
    """The real one."""
    return Platform()
