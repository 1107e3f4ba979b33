"""Handlers in processes: what they get, what they see, what their callers are told when a process ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import zmesh
import zmesh.testing
from tests.pooled import Cruncher
from zmesh.testing import Mesh

ROOT = Path(__file__).resolve().parent.parent
CONFIG = zmesh.Config.test().replace(processes=1, drain_grace=0.2, send_tracebacks=True)


@contextlib.asynccontextmanager
async def served(service: zmesh.Service) -> AsyncIterator[zmesh.Node]:
    """A node that calls one that serves."""
    where = {"listen": "tcp://127.0.0.1:0", "discovery": None, "config": CONFIG}
    async with (
        zmesh.Node(service, name="cruncher", **where) as server,  # type: ignore[arg-type]
        zmesh.Node(name="caller", peers=[server.addresses[0]], discovery=None, config=CONFIG) as client,
    ):
        yield client


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def running(pid: int) -> bool:
    """Whether any thread of it does."""
    with contextlib.suppress(OSError):
        return any(" Z " not in (task / "stat").read_text() for task in Path(f"/proc/{pid}/task").iterdir())
    return False


def test_handlers_in_processes(tmp_path: Path) -> None:
    """One run, as each process takes a while to start."""

    async def run() -> None:
        async with served(Cruncher(5)) as node:
            cruncher = node.client(Cruncher).options(timeout=30.0)
            assert await cruncher.here() == os.getpid()
            first = await cruncher.where()
            assert first[0] != os.getpid()
            assert first[1:] == [5, 1], "a copy of the service as it was given to the node"
            assert await cruncher.where() == [first[0], 5, 2], "one process, one copy, all calls"

            call = cruncher.options(timeout=9, metadata={"tenant": "a"}).seen(memoryview(bytes(100_000)))
            assert await call == {"peer": "caller", "method": "Cruncher.seen", "tenant": "a", "in time": "True"}
            assert call.metadata == {"size": "100000"}

            with pytest.raises(zmesh.Internal, match="a handler in a process has no node to call with"):
                await cruncher.call_on()
            with pytest.raises(zmesh.NotFound, match="no spoon") as not_found:
                await cruncher.fail("rpc")
            assert not_found.value.details == {"key": "spoon"}
            with pytest.raises(zmesh.Internal, match="LookupError: lost") as lost:
                await cruncher.fail("plain")
            assert 'raise LookupError("lost")' in str(lost.value), "the traceback is that of the process"
            with pytest.raises(zmesh.Internal, match="Unpicklable: one and two"):
                await cruncher.fail("unpicklable")
            with pytest.raises(zmesh.Internal, match="ValueError: not this one"):
                await cruncher.fail("result")
            assert (await cruncher.where())[0] == first[0], "no error ends the process"

            with pytest.raises(
                zmesh.Internal, match=r"Cruncher.die may have run: its process ended with signal 9"
            ) as died:
                await cruncher.die()
            assert died.value.may_have_run
            second = await cruncher.where()
            assert second[0] != first[0]
            assert second[2] == 1
            os.kill(second[0], 9)
            while running(second[0]):
                await asyncio.sleep(0.001)
            third = await cruncher.where()
            assert third[0] != second[0], "one that died while it was idle costs no call"

            pid = tmp_path / "pid"
            with pytest.raises(zmesh.DeadlineExceeded) as expired:
                await cruncher.options(timeout=0.3).hang(str(pid))
            assert expired.value.may_have_run
            with pytest.raises(zmesh.DeadlineExceeded):  # the slot is taken until the handler returns
                await cruncher.options(timeout=0.1).where()
        while alive(third[0]):  # the node has left, and took its process along
            await asyncio.sleep(0.001)
        assert int(pid.read_text()) == third[0]

    asyncio.run(run())
    for thread in threading.enumerate():
        if thread.name.startswith("zmesh-"):
            thread.join(30)
            assert not thread.is_alive()


PROGRAM = """
import asyncio, sys
import zmesh

class Local(zmesh.Service):
    @zmesh.rpc(pool="process")
    def twice(self, number: int) -> int:
        return 2 * number

async def main():
    async with zmesh.Node(Local(), listen="tcp://127.0.0.1:0", discovery=None) as server:
        async with zmesh.Node(peers=[server.addresses[0]], discovery=None) as node:
            try:
                print(await node.client(Local).twice(4), flush=True)
            except zmesh.RpcError as error:
                print(error, error.may_have_run, flush=True)

GUARD
    asyncio.run(main())
"""


@pytest.mark.parametrize("guard", ['if __name__ == "__main__":', "if True:"])
def test_service_of_the_main_module(tmp_path: Path, guard: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.replace("GUARD", guard))
    argv = [sys.executable, str(program)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)})
    if "__main__" in guard:
        assert done.stdout == "8\n", done.stderr
        assert done.stderr == ""
    else:
        assert "Local.twice did not run: no process for it: it ended with status 1" in done.stdout
        assert "False" in done.stdout
        assert 'put what starts it under `if __name__ == "__main__":`' in done.stderr


def test_what_cannot_run_in_a_process_is_refused_where_it_is_written() -> None:
    with pytest.raises(TypeError, match=r"pool='process' is for a plain `def` that answers one value"):

        @zmesh.rpc(pool="process")
        async def handler(self: object) -> None: ...

    with pytest.raises(TypeError, match=r"pool='process' is for a plain `def` that answers one value"):

        @zmesh.rpc(pool="process")
        async def stream(self: object) -> AsyncIterator[int]:
            yield 1

    with pytest.raises(ValueError, match="pool is 'process' or None, got 'thread'"):
        zmesh.rpc(pool="thread")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match=r"Config\.processes must be a positive integer or None"):
        zmesh.Config(processes=0)


def test_service_that_cannot_be_copied_is_refused_by_the_node() -> None:
    service = Cruncher()
    service.lock = threading.Lock()  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match=r"Cruncher\.where runs in a process, which gets a copy .* cannot pickle"):
        zmesh.Node(service)

    class Nested(zmesh.Service):
        @zmesh.rpc(pool="process")
        def work(self) -> None: ...

    with pytest.raises(TypeError, match=r"Nested\.work runs in a process.*\(write the class at the top of a module"):
        zmesh.Node(Nested())


@zmesh.testing.simulated()
async def test_simulated_they_run_in_this_process_so_many_at_once(mesh: Mesh) -> None:
    class Nested(zmesh.Service):
        @zmesh.rpc(pool="process")
        @zmesh.testing.takes(1.0)
        def where(self) -> int:
            return os.getpid()

    await mesh.start(Nested(), config=zmesh.Config(processes=2), threads=1)
    client = await mesh.start()
    nested = client.node.client(Nested)
    began = mesh.now
    answers = await asyncio.gather(*(client.run(nested.where()) for _ in range(4)))
    assert answers == [os.getpid()] * 4
    assert 2.0 <= mesh.now - began < 2.1
