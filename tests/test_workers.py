"""`zmesh serve --workers`: processes behind one name, their replacement, their end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import zmesh
from tests.pooled import Cruncher
from zmesh.cli import _workers, ls
from zmesh.cli._commands import zmesh as command_line
from zmesh.cli._workers import Supervisor, addresses_of_worker, worker_command

ROOT = Path(__file__).resolve().parent.parent
WITHIN = 30.0  # bounds a failure
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("ZMESH_")}


class Served:
    """A `zmesh serve` process that has said that its workers are ready, and what it says from then on."""

    def __init__(self, *arguments: str) -> None:
        self.mesh = f"test-{secrets.token_hex(6)}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "zmesh", "serve", *arguments, "--mesh", self.mesh, "--no-mdns"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env=CLEAN,
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)

    def said(self, pattern: str) -> re.Match[str]:
        """The next line that matches."""
        before = ""
        while not (match := re.search(pattern, before.rpartition("\n")[2])):
            try:
                before += "\n" + self._lines.get(timeout=WITHIN).rstrip()
            except queue.Empty:
                raise AssertionError(f"never said {pattern!r}; before: {before}") from None
        return match

    def close(self) -> None:
        self.process.kill()
        self.process.wait(WITHIN)


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    with ExitStack() as stack:

        def start(*arguments: str) -> Served:
            served = Served(*arguments)
            stack.callback(served.close)
            return served

        yield start


def two_ports() -> int:
    """A port that is free, and so is the next."""
    while True:
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port: int = one.getsockname()[1]
            other.bind(("127.0.0.1", port + 1))
            return port


def gone(pid: int) -> bool:
    try:
        return " Z " in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True


def wait_until(true: Callable[[], bool]) -> None:
    give_up = time.monotonic() + WITHIN
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.005)


async def both(cruncher: Cruncher) -> list[int]:
    """The processes behind a service, once there are two."""
    seen: set[int] = set()
    while len(seen) < 2:
        seen |= set(await asyncio.gather(*(cruncher.here() for _ in range(8))))
    return sorted(seen)


async def until_nobody_answers(cruncher: Cruncher) -> None:
    with contextlib.suppress(zmesh.Unavailable, zmesh.DeadlineExceeded):
        while True:
            await cruncher.here()


def test_workers_share_the_load_are_replaced_and_drain(serve: Callable[..., Served], tmp_path: Path) -> None:
    port = two_ports()
    served = serve("tests.pooled:Cruncher", "--name", "twins", "--workers", "2", "--listen", f"tcp://127.0.0.1:{port}")
    peers = [f"tcp://127.0.0.1:{port + number}" for number in range(2)]
    said = served.said(r"^ready: (.*)")[1]
    assert said == f"twins serves Cruncher with 2 workers at {', '.join(peers)}"
    begun, go = tmp_path / "begun", tmp_path / "go"

    async def use() -> None:
        async with zmesh.Node(peers=peers, mesh=served.mesh, discovery=None) as node:
            cruncher = node.client(Cruncher)
            found = await node.discover(expect=2)
            assert [peer.name for peer in found] == ["twins"] * 2
            assert len({peer.id for peer in found}) == 2
            assert sum(peer.capacity for peer in found) == pytest.approx(os.cpu_count() or 1, rel=0.01)
            first, second = await both(cruncher)

            # One dies under load: no call fails, and another takes its place, at its port.
            calls = [asyncio.create_task(cruncher.options(timeout=WITHIN).here()) for _ in range(200)]
            os.kill(second, signal.SIGKILL)
            assert set(await asyncio.gather(*calls)) <= {first, second}
            number = served.said(rf"^worker (\d) \(process {second}\) ended with signal 9; another one starts")[1]
            third = int(served.said(rf"^worker {number} is process (\d+) now, at {peers[int(number)]}$")[1])
            assert await both(cruncher) == sorted([first, third])

            # What they print has their number before it.
            pid = await cruncher.here("hello from here")
            assert served.said(r"^\[(\d)\] hello from here$")[1] == (number if pid == third else str(1 - int(number)))

            table = ls._table(found)
            assert [column.header for column in table.columns][:3] == ["NAME", "ID", "SERVICES"]
            assert list(table.columns[1].cells) == [peer.id[:8] for peer in found]
            assert "ID" not in [column.header for column in ls._table(found[:1]).columns]

            # A signal drains all, and one more to the workers, as systemd sends it, cuts nothing short.
            call = asyncio.create_task(cruncher.options(timeout=WITHIN).wait_for(str(begun), str(go)))
            while not begun.exists():
                await asyncio.sleep(0.005)
            served.process.terminate()
            await until_nobody_answers(cruncher.options(timeout=0.3))
            for process in (first, third):
                with contextlib.suppress(ProcessLookupError):  # the idle one may have left
                    os.kill(process, signal.SIGTERM)
            go.touch()
            assert await call in (first, third)

    asyncio.run(use())
    assert served.process.wait(WITHIN) == 0


@pytest.mark.parametrize("end", ["second signal", "kill"])
def test_no_worker_is_left(serve: Callable[..., Served], tmp_path: Path, end: str) -> None:
    served = serve("tests.pooled:Cruncher", "--workers", "1", "--listen", "tcp://127.0.0.1:0")
    ready = served.said(r"^ready: (\S+) serves Cruncher with 1 worker at (\S+)$")
    assert ready[1].endswith(f"-{served.process.pid}"), "the name of all workers, where none is given"
    address = ready[2]
    with zmesh.connect(peers=[address], mesh=served.mesh, discovery=None) as mesh:
        worker = mesh.client("Cruncher").here()
        if end == "kill":  # not of the worker
            served.process.kill()
        else:
            begun = tmp_path / "pid"
            waiting = threading.Thread(target=call_in_vain, args=(mesh, begun))
            waiting.start()
            wait_until(lambda: begun.exists() and begun.read_text().isdecimal())
            served.process.send_signal(signal.SIGINT)
            with pytest.raises(subprocess.TimeoutExpired):
                served.process.wait(0.2)
            served.process.send_signal(signal.SIGINT)
            assert served.process.wait(WITHIN) == -signal.SIGINT
            waiting.join(WITHIN)
            wait_until(lambda: gone(int(begun.read_text())))  # the process of a pool that was in the handler
        wait_until(lambda: gone(worker))


def call_in_vain(mesh: zmesh.Mesh, pid: Path) -> None:
    with contextlib.suppress(zmesh.RpcError):
        mesh.client("Cruncher").options(timeout=WITHIN).hang(pid=str(pid))


def test_service_that_cannot_start_ends_the_command_with_its_error() -> None:
    argv = [sys.executable, "-m", "zmesh", "serve", "tests.served:Named", "--workers", "2"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=WITHIN, cwd=ROOT, env=CLEAN)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("make an instance in tests.served and name that, MODULE:INSTANCE") == 1
    assert "[0]" not in done.stderr


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> queue.SimpleQueue[str]:
    """What a supervisor in this process says."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    monkeypatch.setattr(_workers, "_say", lambda line, err=False: lines.put(line))
    return lines


def test_worker_that_dies_at_once_is_replaced_ever_later(
    said: queue.SimpleQueue[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_workers, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(_workers, "_LONGEST_PAUSE", 0.03)
    pauses: list[str] = []

    class Watched(Supervisor):
        def _wait(self) -> None:
            super()._wait()
            while not said.empty():
                pauses.extend(re.findall(r"ended with status 3; another one starts (.*)", said.get()))
            if len(pauses) == 4 and not self._leaving:
                os.kill(os.getpid(), signal.SIGTERM)

    # It serves until the other does, then ends; the other reads on until it is told to leave.
    short = ["sh", "-c", "echo 'ready: n serves S at tcp://a:1'; sleep 0.1; exit 3"]
    long = ["sh", "-c", "echo 'ready: n serves S at tcp://a:2'; read line"]
    before = signal.getsignal(signal.SIGTERM)
    Watched(lambda number: long if number else short, 2).run()
    assert pauses == ["in 0.01 s", "in 0.02 s", "in 0.03 s", "in 0.03 s"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_worker_that_hangs_is_killed_in_the_end(said: queue.SimpleQueue[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_workers, "_PATIENCE", 0.05)
    supervisor = Supervisor(lambda number: ["sh", "-c", "echo 'ready: n serves S at tcp://a:1'; exec sleep 600"], 1)
    threading.Thread(target=lambda: said.get() and os.kill(os.getpid(), signal.SIGTERM)).start()
    assert supervisor.run() == 1


def test_where_workers_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZMESH_LISTEN", raising=False)
    assert addresses_of_worker(None, 3) == ()
    assert addresses_of_worker(["tcp://*:0", "tcp://[::1]:*"], 3) == ("tcp://*:0", "tcp://[::1]:*")
    assert addresses_of_worker(["tcp://10.0.0.1:7001", "tcp://[::1]:8001"], 3) == (
        "tcp://10.0.0.1:7004",
        "tcp://[::1]:8004",
    )
    monkeypatch.setenv("ZMESH_LISTEN", "tcp://*:7001")
    assert addresses_of_worker(None, 0) == ("tcp://*:7001",)
    with pytest.raises(click.UsageError, match=r"worker 3 would listen at tcp://a:65537: ports end at 65535"):
        addresses_of_worker(["tcp://a:65534"], 3)
    with pytest.raises(
        click.UsageError, match=r"workers cannot share ipc:///tmp/x: let them listen at tcp://HOST:PORT"
    ):
        addresses_of_worker(["ipc:///tmp/x"], 0)


def test_worker_command_leaves_the_last_word_to_the_user() -> None:
    command = worker_command(["a:B", "--capacity", "9", "--workers", "2"], 2)(1)
    assert command[3:6] == ["serve", "--capacity", f"{(os.cpu_count() or 1) / 2:g}"]
    assert command[6:] == ["--worker", "1", "a:B", "--capacity", "9", "--workers", "2"]


@pytest.mark.parametrize("workers", ["0", "1001", "many", "-1"])
def test_number_of_workers_that_makes_no_sense(workers: str) -> None:
    done = CliRunner().invoke(command_line, ["serve", "tests.served:Greeter", "--workers", workers])
    assert done.exit_code == 2
    assert "no number of workers: 1 to 1000, or auto" in done.stderr
