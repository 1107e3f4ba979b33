"""Nodes that a command starts: processes of their own, and the services in them, which end with it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import zmesh

__all__ = ["Child", "Process"]

_START_WITHIN: Final = 30.0  # seconds; several interpreters may start at once on a machine that may be slow
_STOP_WITHIN: Final = 15.0  # seconds; a drain takes at most 10
_LAST_LINES: Final = 20  # of what it printed, shown where it ends by itself
_LOOK_FOR_PARENT: Final = 1.0  # seconds


class Child(zmesh.Service, name="zmesh.cli.Child"):
    """A service whose process does not outlive the command that started it, however that ends."""

    async def __aenter__(self) -> Self:
        self._watching = asyncio.create_task(self._leave_with(os.getppid()))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._watching

    async def _leave_with(self, parent: int) -> None:
        while os.getppid() == parent:
            await asyncio.sleep(_LOOK_FOR_PARENT)
        os.kill(os.getpid(), signal.SIGTERM)


class Process:
    """One node, as a process of its own: `zmesh serve`, with these arguments and nothing of this environment's.

    address: where it listens, once it is ready.
    """

    def __init__(self, name: str, *arguments: str) -> None:
        self.name = name
        self.address = ""
        self._arguments = arguments
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._said: deque[str] = deque(maxlen=_LAST_LINES)
        self._decided = asyncio.Event()  # it is ready, or has ended without

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start it; returns when it is ready. Raises RuntimeError with what it said where it ends instead."""
        package = Path(zmesh.__file__).parent.parent
        path = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")]))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ZMESH_")}
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "zmesh", "serve", "--name", self.name, *self._arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**environment, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C at the terminal is for the command, which ends its nodes itself
        )
        self._reading = asyncio.create_task(self._read())
        try:
            async with asyncio.timeout(_START_WITHIN):
                await self._decided.wait()
        except TimeoutError:
            self._said.append(f"not ready within {_START_WITHIN:g} s")
        if not self.address:
            raise RuntimeError(f"node {self.name} does not start:\n" + "\n".join(self._said))

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            text = line.decode(errors="replace").rstrip()
            self._said.append(text)
            if match := re.match(r"ready: .* at ([^ ,]+)", text):
                self.address = match[1]
                self._decided.set()
        await self._process.wait()
        self._decided.set()

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def ended(self) -> int:
        """Its exit status, once it has ended."""
        assert self._process is not None
        return await self._process.wait()

    async def stop(self) -> None:
        """End it: the ordinary way, and where that takes too long, at once."""
        if self._process is None:
            return
        if self.running:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(_STOP_WITHIN):
                    await self._process.wait()
            except TimeoutError:
                self.kill()
                await self._process.wait()
        if self._reading is not None:
            await self._reading

    def kill(self) -> None:
        if self.running:
            self.signal(signal.SIGKILL)
