"""Processes for handlers that keep a core busy: `@zmesh.rpc(pool="process")`.

Not concurrent.futures: there one process that dies fails the calls of all, processes are started on the event loop, and
they outlive a node that was killed. Here each thread of an executor drives one process, over a pipe.
"""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import copyreg
import functools
import io
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections import ChainMap
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

from ._platform import Executor
from .context import current
from .errors import Internal

if TYPE_CHECKING:
    from ._server import Running

__all__ = ["ProcessPool"]

# Large values reach a handler as memoryviews, which by themselves cannot be pickled.
_REDUCERS: Final[Any] = ChainMap({memoryview: lambda view: (memoryview, (view.tobytes(),))}, copyreg.dispatch_table)


class ProcessPool:
    """See the module."""

    def __init__(self, services: bytes, threads: Executor) -> None:
        """services: of `pickled_for_processes`. threads: as many as there may be processes."""
        self._services = services
        self._threads = threads
        self._lock = threading.Lock()
        self._idle: list[_Process] = []
        self._processes: set[_Process] = set()
        self._closed = False
        atexit.register(self.close)  # before multiprocessing's own, which waits for them

    def submit(self, running: Running, args: Sequence[Any], kwargs: Mapping[str, Any]) -> asyncio.Future[object]:
        """Run the handler of a call; `running.started` is set when a process has it.

        The future raises Internal where no process starts, or where the one that had it ended.
        """
        schema = running.method.schema
        try:
            work = _dumps((schema.service, schema.name, args, kwargs, _Seen(running)))
        except Exception as error:
            raise Internal(
                f"{schema.path}: its arguments cannot be pickled for a process: {_text_of(error)}"
            ) from error
        return self._threads.submit(functools.partial(self._run, running, work))

    def close(self) -> None:
        """End the processes, whatever they do."""
        atexit.unregister(self.close)
        with self._lock:
            self._closed = True
            processes, self._processes = self._processes, set()
        for process in processes:
            process.kill()
        self._threads.close()

    # -- in a thread

    def _run(self, running: Running, work: bytes) -> object:
        path = running.method.schema.path
        try:
            process = self._free()
        except Exception as error:
            raise Internal(f"{path} did not run: {error}") from error
        running.started = True
        try:
            answer = process.run(work)
        except (EOFError, OSError):
            with self._lock:
                self._processes.discard(process)
            how = process.ended()
            raise Internal(f"{path} may have run: its process ended with {how}; the next call starts another") from None
        self._idle.append(process)
        try:
            value, failure, trace, metadata = pickle.loads(answer)
        except Exception as error:
            raise Internal(f"{path}: its result cannot be unpickled here: {_text_of(error)}") from error
        if metadata:
            running.reply_metadata = metadata
        if failure is not None:
            raise failure from _InProcess(trace)
        return value

    def _free(self) -> _Process:
        """An idle process, or a new one."""
        while True:
            with self._lock:
                if self._closed:
                    raise RuntimeError("the node leaves")
                process = self._idle.pop() if self._idle else None
            if process is None:
                process = _Process()
                with self._lock:
                    self._processes.add(process)
                    closed = self._closed
                if closed:
                    process.kill()
                process.start(self._services)
                return process
            if process.alive:
                return process
            with self._lock:
                self._processes.discard(process)
            process.ended()


class _InProcess(Exception):
    """The cause of an exception that was raised in a process: its traceback there."""

    def __init__(self, trace: str) -> None:
        self._trace = trace

    def __str__(self) -> str:
        return f"\n{self._trace}"


class _Process:
    """One process, as its thread sees it."""

    def __init__(self) -> None:
        spawn = multiprocessing.get_context("spawn")  # a fork would take half of the node along
        self._ours, self._theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(self._theirs,), name="zmesh-pool", daemon=True)
        self._process.start()
        self._theirs.close()

    def start(self, services: bytes) -> None:
        """Give it the services, once. Raises RuntimeError where it cannot have them."""
        try:
            self._ours.send_bytes(services)
            said = self._ours.recv_bytes().decode()
        except (EOFError, OSError):
            said = f"it ended with {self.ended()} before it was ready; stderr has more"
        if said:
            self.kill()
            raise RuntimeError(f"no process for it: {said}")

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def run(self, work: bytes) -> bytes:
        """Raises EOFError or OSError where it ends meanwhile."""
        self._ours.send_bytes(work)
        return self._ours.recv_bytes()

    def ended(self) -> str:
        """How it ended, in words. The pipe has told that it does."""
        self._process.join()
        self._ours.close()
        status = self._process.exitcode or 0
        return f"signal {-status}" if status < 0 else f"status {status}"

    def kill(self) -> None:
        self._process.kill()


# -- in the process


class _Seen:
    """A call as `zmesh.context()` shows it in the process: in place of `Running`."""

    reply_metadata: dict[str, str | bytes] | None = None
    over = False
    until_begun = False

    def __init__(self, running: Running) -> None:
        link = running.link
        channel = SimpleNamespace(remote=link.channel.remote if link.channel is not None else "")
        self.link = SimpleNamespace(key=link.key, remote=link.remote, channel=channel)
        self.method = SimpleNamespace(schema=SimpleNamespace(path=running.method.schema.path))
        self.deadline = running.deadline
        self.rank = running.rank
        self.attempt = running.attempt
        self.metadata = dict(running.metadata)

    @property
    def server(self) -> _NoServer:
        return _NoServer()


class _NoServer:
    """In place of `Server`. The clock is the node's: CLOCK_MONOTONIC is one for the machine."""

    loop = None
    time = staticmethod(time.monotonic)

    @property
    def node(self) -> NoReturn:
        raise RuntimeError("a handler in a process has no node to call with: use `zmesh.connect()` there")


def _serve(connection: Connection) -> None:
    """Answer calls until the node is gone."""
    # Ctrl-C and `systemctl stop` reach every process of a group; the node drains then, and ends this one at last.
    # No SIG_IGN: programs that a handler starts would inherit that.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    threading.Thread(target=_end_with_node, daemon=True).start()
    try:
        services = {name: pickle.loads(service) for name, service in pickle.loads(connection.recv_bytes()).items()}
    except Exception as error:
        connection.send_bytes(f"the service cannot be unpickled there: {_text_of(error)}".encode())
        return
    connection.send_bytes(b"")
    while True:
        try:
            work = connection.recv_bytes()
        except (EOFError, OSError):
            return
        connection.send_bytes(contextvars.copy_context().run(_answer, services, work))


def _end_with_node() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _answer(services: Mapping[str, Any], work: bytes) -> bytes:
    """Run one call: its result or error, pickled."""
    metadata = None
    try:
        service, method, args, kwargs, seen = pickle.loads(work)
        instance = services[service]
        current.set(cast("Running", seen))
        value = getattr(type(instance), method).handler(instance, *args, **kwargs)
        metadata = seen.reply_metadata
        return _dumps((value, None, None, metadata))
    except Exception as error:
        return _dumps((None, _travels(error), traceback.format_exc(), metadata))


def _travels(error: Exception) -> Exception:
    """An exception, or one that says the same where it does not survive pickling."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(_text_of(error))
    return error


def _text_of(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _dumps(value: object) -> bytes:
    file = io.BytesIO()
    pickler = pickle.Pickler(file, pickle.HIGHEST_PROTOCOL)
    pickler.dispatch_table = _REDUCERS
    pickler.dump(value)
    return file.getvalue()
