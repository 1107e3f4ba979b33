"""The processes of a system, as their parent sees them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .clients import Result

__all__ = ["ROOT", "Failed", "Sides", "busy_seconds", "opened"]

ROOT = Path(__file__).resolve().parents[2]
WITHIN = 60.0  # seconds until a side is ready, or has answered an order
_TICK = os.sysconf("SC_CLK_TCK")


class Failed(Exception):
    """A side ended, or did not answer in time."""


class _Side:
    """One process, and those that it started: they are a process group."""

    def __init__(self, worker: str, system: str, side: str, addresses: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", worker, system, side, *(["--address", *addresses] if addresses else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            start_new_session=True,
        )
        self._members: list[int] = []
        self._said: list[str] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._said = [*self._said[-4:], line.rstrip()]

    def ready(self) -> str:
        """Its address, once it is."""
        address = self.line().removeprefix("READY").strip()
        self._members = [pid for pid, group, _ in _processes() if group == self._process.pid]
        return address

    def tell(self, order: dict[str, Any]) -> Result:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Failed(self._last_words()) from None
        found: Result = json.loads(self.line())
        return found

    def line(self) -> str:
        assert self._process.stdout is not None
        patience = threading.Timer(WITHIN, self.kill)
        patience.start()
        line = self._process.stdout.readline()
        patience.cancel()
        if not line:
            raise Failed(self._last_words())
        return line

    def _last_words(self) -> str:
        self._process.wait()
        return f"ended with status {self._process.returncode}: {self._said[-1] if self._said else 'silent'}"

    def cpu(self) -> float:
        """Seconds of processor time that it has used, user's and system's."""
        return sum(seconds for pid, _, seconds in map(_process, self._members))

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        self.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()


class Sides:
    """The servers and the client of a system."""

    def __init__(self, servers: list[_Side], client: _Side, addresses: list[str]) -> None:
        self._servers, self._client = servers, client
        self.addresses = addresses

    def tell(self, **order: Any) -> dict[str, Any]:
        """Let the client do something; its answer."""
        return self._client.tell(order)

    def play(self, do: str, seconds: float, in_flight: int, mib: int = 0) -> Result:
        """Let the client do something. With the CPU seconds of both, and the cores that anything else kept busy."""
        before = self._clocks()
        order = {"do": do, "seconds": seconds, "in_flight": in_flight}
        found = self._client.tell(order | {"mib": mib} if mib else order)
        client, server, all_of_it = (b - a for a, b in zip(before, self._clocks(), strict=True))
        others = all_of_it - client - server
        return {**found, "client CPU": client, "server CPU": server, "others": others / found["seconds"]}

    def _clocks(self) -> tuple[float, float, float]:
        return self._client.cpu(), sum(server.cpu() for server in self._servers), busy_seconds()


@contextlib.contextmanager
def opened(
    system: str, servers: int = 1, client: bool = True, worker: str = f"{__package__}.worker"
) -> Iterator[Sides]:
    """A system, running. worker: the module that is each of its processes. Raises Failed."""
    with contextlib.ExitStack() as stack:

        def start(side: str, addresses: Sequence[str]) -> _Side:
            process = _Side(worker, system, side, addresses)
            stack.callback(process.close)
            return process

        first = start("serve", [])
        addresses = [first.ready()]
        others = [start("serve", addresses[:1]) for _ in range(servers - 1)]
        addresses += [other.ready() for other in others]
        asking = start("ask", addresses) if client else first
        if client:
            asking.ready()
        yield Sides([first, *others], asking, addresses)


def busy_seconds() -> float:
    """Seconds that all cores of this machine have been busy."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _, _, irq, softirq = map(int, fields[:7])
    return (user + nice + system + irq + softirq) / _TICK


def _process(pid: int) -> tuple[int, int, float]:
    """Process, group, seconds of processor time."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return pid, 0, 0.0
    return pid, int(fields[2]), (int(fields[11]) + int(fields[12])) / _TICK


def _processes() -> list[tuple[int, int, float]]:
    return [_process(int(each.name)) for each in Path("/proc").iterdir() if each.name.isdigit()]
