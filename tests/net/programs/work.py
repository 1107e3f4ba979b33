"""The service that the tests put under load: it notes every run of a handler where a SIGKILL cannot lose the note."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from pathlib import Path

import zmesh


class Notes:
    """A file to append lines to, from a process that may be killed at any moment."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, line: str) -> None:
        # One unbuffered write: once it has returned the line is the kernel's, and outlives this process.
        os.write(self._descriptor, f"{line}\n".encode())


class Work(zmesh.Service):
    """Takes a while, then says which server did it."""

    def __init__(self, server: str, ran: Path, at_once: int | None = None, factor: float = 1.0) -> None:
        self._server = server
        self._factor = factor
        self._ran = Notes(ran)
        self._turn: contextlib.AbstractAsyncContextManager[object] = (
            contextlib.nullcontext() if at_once is None else asyncio.Semaphore(at_once)
        )
        self._released = asyncio.Event()

    @zmesh.rpc(idempotent=True)
    async def work(self, token: str, ms: float) -> str:
        """May be run again elsewhere."""
        return await self._run(token, ms)

    @zmesh.rpc
    async def once(self, token: str, ms: float) -> str:
        """Must not run twice."""
        return await self._run(token, ms)

    @zmesh.rpc
    async def held(self, token: str, filler: str) -> str:
        """Answers `filler` once `release` was called."""
        self._ran.write(token)
        await self._released.wait()
        return filler

    @zmesh.rpc(idempotent=True)
    async def echo(self, data: bytes) -> bytes:
        """For large values."""
        return data

    def release(self) -> None:
        self._released.set()

    async def _run(self, token: str, ms: float) -> str:
        async with self._turn:
            self._ran.write(token)
            await asyncio.sleep(self._factor * ms / 1000)
        return self._server


class Blocker(zmesh.Service):
    """What a careless author writes."""

    @zmesh.rpc
    async def block(self, seconds: float) -> None:
        """Stops the loop of its node."""
        time.sleep(seconds)  # noqa: ASYNC251 (the fault under test)


def of_version(version: str) -> type[Work]:
    """The same service in another version."""

    class Work(_Work, version=version):
        """Takes a while, then says which server did it."""

    return Work


_Work = Work
