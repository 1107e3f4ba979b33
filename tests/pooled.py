"""A service with handlers for processes, in a module that a process imports without the test suite."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import zmesh


class Unpicklable(Exception):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


class Result:
    """What nothing can convert, nor pickle."""

    def __reduce__(self) -> str:
        raise ValueError("not this one")


class Cruncher(zmesh.Service):
    def __init__(self, base: int = 0) -> None:
        self.base = base
        self.calls = 0

    @zmesh.rpc(pool="process")
    def where(self) -> list[int]:
        """The process, what the service was made with, the calls that this copy of it has seen."""
        self.calls += 1
        return [os.getpid(), self.base, self.calls]

    @zmesh.rpc(pool="process")
    def seen(self, blob: memoryview) -> dict[str, str]:
        context = zmesh.context()
        context.reply_metadata["size"] = str(len(blob))
        return {
            "peer": context.peer.name,
            "method": context.method,
            "tenant": str(context.metadata["tenant"]),
            "in time": str(0 < context.remaining < 9.1 and 0 < context.deadline - time.monotonic() < 9.1),
        }

    @zmesh.rpc(pool="process")
    def call_on(self) -> None:
        zmesh.context().client(Cruncher)

    @zmesh.rpc(pool="process")
    def fail(self, how: str) -> object:
        if how == "rpc":
            raise zmesh.NotFound("no spoon", details={"key": "spoon"})
        if how == "plain":
            raise LookupError("lost")
        if how == "unpicklable":
            raise Unpicklable("one", "two")
        return Result()

    @zmesh.rpc(pool="process", idempotent=True)
    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    @zmesh.rpc(pool="process")
    def hang(self, pid: str) -> None:
        Path(pid).write_text(str(os.getpid()))
        time.sleep(600)

    @zmesh.rpc(idempotent=True)
    def here(self, log: str = "") -> int:
        if log:
            print(log)
        return os.getpid()

    @zmesh.rpc
    async def wait_for(self, begun: str, go: str) -> int:
        """Make one file, wait until there is another."""
        Path(begun).touch()  # noqa: ASYNC240
        while not Path(go).exists():  # noqa: ASYNC240
            await asyncio.sleep(0.01)
        return os.getpid()
