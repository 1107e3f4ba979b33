"""`zmesh serve --workers`: several processes behind one name, each a node of its own, and who replaces them.

The supervisor is no node and opens no socket. A worker is the same command with `--worker NUMBER`. What tells it to
drain is the end of its stdin: so it also leaves when the supervisor is killed, and a signal that reaches the whole
group (Ctrl-C, systemd) is not taken for a second one.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import IO, Final, NoReturn

import click

from .._arguments import WORKERS_OF, addresses_of

__all__ = ["Supervisor", "addresses_of_worker", "worker_command"]

READY: Final = "ready: "  # begins the line by which a worker tells that it serves
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_AT_ONCE: Final = 5.0  # seconds: a worker that lived shorter is replaced only after a pause
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 10.0
_PATIENCE: Final = 30.0  # seconds for a drain: thrice what `Config.drain_grace` gives it; then a worker hangs
_LOOK: Final = 0.5  # seconds: a signal that comes just before this thread waits does not wake it
_LAST_WORDS: Final = 1.0  # seconds for what an ended worker said: its own children may keep the pipe open


def addresses_of_worker(listen: Iterable[str] | None, number: int) -> tuple[str, ...]:
    """Where worker `number` listens, from what the command was told, or else the environment: a port that was named is
    the first worker's, the others have the next ones. Raises click.UsageError where they cannot share."""
    found = []
    for address in addresses_of(listen, "ZMESH_LISTEN"):
        host, _, port = address.rpartition(":")
        if not address.startswith("tcp://"):
            raise click.UsageError(f"workers cannot share {address}: let them listen at tcp://HOST:PORT")
        if port not in ("*", "0"):
            address = f"{host}:{int(port) + number}"
            if int(port) + number > 65_535:
                raise click.UsageError(f"worker {number} would listen at {address}: ports end at 65535")
        found.append(address)
    return tuple(found)


def worker_command(arguments: Sequence[str], workers: int) -> Callable[[int], list[str]]:
    """The command of each worker, by its number.

    arguments: of `zmesh serve`; they win over what is put before them.
    """
    capacity = (os.cpu_count() or 1) / workers  # together they weigh what one node of this machine does
    before = [sys.executable, "-m", "zmesh", "serve", "--capacity", f"{capacity:g}"]
    return lambda number: [*before, "--worker", str(number), *arguments]


@dataclass
class _Place:
    """One worker after the other."""

    number: int
    process: subprocess.Popen[str] | None = None
    began: float = 0.0
    addresses: str | None = None  # once it is ready
    pause: float = 0.0  # before the next one
    due: float | None = None  # when that starts

    @property
    def label(self) -> str:
        return f"worker {self.number}"


class Supervisor:
    """Starts workers, replaces those that end, and ends with them. Not to be used twice."""

    def __init__(self, command: Callable[[int], list[str]], workers: int) -> None:
        self._command = command
        self._places = [_Place(number) for number in range(workers)]
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()  # a signal handler may put
        self._up = False  # whether all were ready once
        self._leaving = False
        self._status = 0
        self._kill_at: float | None = None  # once they were told to leave

    def run(self) -> int:
        """Until a signal, or until it turns out that the service cannot start: the exit status."""
        before = {number: signal.signal(number, self._signalled) for number in _SIGNALS}
        try:
            self._start(self._places[0])  # alone: where the service cannot start, one tells
            while any(place.process is not None or place.due is not None for place in self._places):
                self._wait()
            return self._status
        finally:
            self._kill()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _wait(self) -> None:
        """Handle the next thing that happens."""
        due = [when for when in (self._kill_at, *(place.due for place in self._places)) if when is not None]
        try:
            happen = self._events.get(timeout=max(0.0, min([time.monotonic() + _LOOK, *due]) - time.monotonic()))
        except queue.Empty:
            now = time.monotonic()
            for place in self._places:
                if place.due is not None and place.due <= now:
                    self._start(place)
            if self._kill_at is not None and self._kill_at <= now:
                self._kill_at = None
                self._kill()
        else:
            happen()

    # -- what happens

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        self._events.put(partial(self._told_to_leave, signal.Signals(number)))

    def _told_to_leave(self, number: signal.Signals) -> None:
        if self._leaving:
            self._end_now(number)
        self._leave(0)

    def _ready(self, place: _Place, line: str) -> None:
        served, _, place.addresses = line.rpartition(" at ")
        if self._up:
            assert place.process is not None
            _say(f"{place.label} is process {place.process.pid} now, at {place.addresses}", err=True)
        elif not self._leaving:
            if place is self._places[0]:
                for other in self._places[1:]:
                    self._start(other)
            if all(each.addresses for each in self._places):
                self._up = True
                addresses = ", ".join(str(each.addresses) for each in self._places)
                count = len(self._places)
                _say(f"{served} with {count} worker{'s' if count > 1 else ''} at {addresses}")

    def _ended(self, place: _Place, status: int) -> None:
        assert place.process is not None
        pid, place.process = place.process.pid, None
        how = f"signal {-status}" if status < 0 else f"status {status}"
        if self._leaving:
            self._status = self._status or (1 if status else 0)
        elif not self._up:
            if status <= 0:  # it did not say itself why
                _say(f"{place.label} ended with {how} before it was ready", err=True)
            self._leave(status if status > 0 else 1)
        else:
            at_once = time.monotonic() - place.began < _AT_ONCE
            place.pause = min(max(2 * place.pause, _FIRST_PAUSE), _LONGEST_PAUSE) if at_once else 0.0
            place.due = time.monotonic() + place.pause
            when = f"in {place.pause:g} s" if place.pause else "now"
            _say(f"{place.label} (process {pid}) ended with {how}; another one starts {when}", err=True)

    def _leave(self, status: int) -> None:
        """Let all drain."""
        self._leaving, self._status = True, status
        self._kill_at = time.monotonic() + _PATIENCE
        for place in self._places:
            place.due = None
            if place.process is not None and place.process.stdin is not None:
                with contextlib.suppress(OSError):
                    place.process.stdin.close()

    def _end_now(self, number: signal.Signals) -> NoReturn:
        """A second signal: the ordinary way to end by it."""
        self._kill()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        raise AssertionError("a signal of the default kind ends the process")

    # -- processes

    def _kill(self) -> None:
        for place in self._places:
            if place.process is not None:
                place.process.kill()

    def _start(self, place: _Place) -> None:
        place.due, place.began = None, time.monotonic()
        process = place.process = subprocess.Popen(
            self._command(place.number),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            # What handlers print comes when it is printed.
            env={**os.environ, "PYTHONUNBUFFERED": "1", WORKERS_OF: str(os.getpid())},
            process_group=0,  # a terminal's Ctrl-C is for the supervisor
        )
        readers = [
            threading.Thread(target=self._relay, args=(place, pipe, pipe is process.stderr), daemon=True)
            for pipe in (process.stdout, process.stderr)
        ]
        for reader in readers:
            reader.start()
        threading.Thread(target=self._await_end, args=(place, process, readers), daemon=True).start()

    def _await_end(self, place: _Place, process: subprocess.Popen[str], readers: list[threading.Thread]) -> None:
        status = process.wait()
        for reader in readers:
            reader.join(_LAST_WORDS)
        self._events.put(partial(self._ended, place, status))

    def _relay(self, place: _Place, pipe: IO[str], err: bool) -> None:
        """Pass on what a worker says, with its number before it once the first is ready: what comes before that is
        said as by the command itself."""
        for line in pipe:
            if not err and line.startswith(READY):
                self._events.put(partial(self._ready, place, line.rstrip("\n")))
            else:
                alone = self._places[0].addresses is None
                _say(line.rstrip("\n") if alone else f"[{place.number}] {line.rstrip()}", err=err)


def _say(line: str, err: bool = False) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        click.echo(line, err=err)
