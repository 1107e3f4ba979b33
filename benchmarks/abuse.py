"""What honest callers notice of somebody who abuses a node, and what the node notices.

A server process, an honest client process and an attacker process over tcp on loopback. The client measures its calls
one after the other, with the attacker at work and without, in turns. The attacks:

- silent: 2,000 connections that say nothing, opened again as they are closed
- few-files: the same against a server that may have 1,024 open files
- endless: one message of 512 KiB frames that never ends, again after each end
- flood: calls as fast as they can be sent, by two links, whatever is answered; opened again when they are closed. It
  keeps a core busy by itself, which the server and the honest client are short of
- flood-from-elsewhere: the same by a process that has only what others leave of the processor: one on another machine
  takes none of it
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import resource
import select
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cbor2

from tests.net.figures import percentile, table

ROOT = Path(__file__).resolve().parents[1]
ATTACKS = ("silent", "few-files", "endless", "flood", "flood-from-elsewhere")
ATTACKERS = {name: f"127.0.0.{66 + number}" for number, name in enumerate(ATTACKS)}
MEMORY = 150 * 1024 * 1024  # the server's, at the most
CALLS = 64  # in an envelope of the flood, the most that it may have
RATIO, SECONDS = 2.0, 0.005  # the p99 with the attacker, or so much more, whichever is more

# -- the server


async def serve(**settings: Any) -> None:
    import zmesh

    class Echo(zmesh.Service):
        @zmesh.rpc
        async def echo(self, text: str) -> str:
            return text

        @zmesh.rpc
        async def sleep(self, seconds: float) -> None:
            await asyncio.sleep(seconds)

    config = zmesh.Config(ipc=False, **settings)
    async with zmesh.Node(Echo(), name="echo", listen="tcp://127.0.0.1:0", discovery=None, config=config) as node:
        print(node.addresses[0], flush=True)
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while await reader.readline():
            print(json.dumps(node.stats()["limits"]), flush=True)


# -- the honest client


async def ask(address: str, **settings: Any) -> None:
    import zmesh

    config = zmesh.Config(ipc=False, **settings)
    async with zmesh.Node(peers=[address], discovery=None, config=config) as node:
        echo = node.client("Echo").echo
        for _ in range(200):
            await echo(text="hello")
        print("READY", flush=True)
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            end, taken, failed = time.perf_counter() + float(line), [], 0
            while time.perf_counter() < end:
                began = time.perf_counter()
                try:
                    failed += await echo(text="hello") != "hello"
                except zmesh.RpcError as error:
                    print(error, file=sys.stderr)
                    failed += 1
                taken.append(time.perf_counter() - began)
            print(json.dumps({"taken": taken, "failed": failed}), flush=True)


# -- the attacker, who needs no zmesh, and has an address of its own

_from = "127.0.0.1"


def connect(address: str) -> socket.socket:
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    attacker = socket.socket()
    attacker.bind((_from, 0))
    attacker.settimeout(5)
    attacker.connect((host, int(port)))
    return attacker


def greet(address: str) -> socket.socket:
    """A connection after ZMTP's handshake, as a DEALER."""
    attacker = connect(address)
    shake_hands(attacker, b"DEALER")
    return attacker


def shake_hands(attacker: socket.socket, socket_type: bytes) -> None:
    """ZMTP's handshake."""
    attacker.sendall(b"\xff" + b"\0" * 8 + b"\x7f\x03\x00NULL" + b"\0" * 16 + b"\0" + b"\0" * 31)
    kind = b"\x05READY\x0bSocket-Type" + len(socket_type).to_bytes(4, "big") + socket_type
    attacker.sendall(b"\x04" + bytes([len(kind)]) + kind)
    received = b""
    while len(received) < 66 or len(received) < 66 + received[65]:  # and nothing of what is behind it
        received += (
            attacker.recv(66 - len(received) if len(received) < 66 else 66 + received[65] - len(received)) or _closed()
        )


def _closed() -> bytes:
    raise ConnectionResetError("closed in the handshake")


def frame(body: bytes, *, more: bool = False) -> bytes:
    return bytes([2 | more]) + len(body).to_bytes(8, "big") + body


def hello(attacker: socket.socket) -> int:
    """Introduce ourselves; the tag of the node."""
    fields = {"id": os.urandom(16), "name": "mallory", "mesh": "default"}
    attacker.sendall(frame(cbor2.dumps([0, 1, [[1, 1, 0, fields]]])))
    stream = attacker.makefile("rb", buffering=0)
    while True:
        head = _read(stream, 1)[0]
        body = _read(stream, int.from_bytes(_read(stream, 8 if head & 2 else 1), "big"))
        if not head & 4:  # no heartbeat
            node: bytes = cbor2.loads(body)[2][0][3]["id"]
            return int.from_bytes(node[:4], "big") >> 1 or 1


def _read(stream: Any, size: int) -> bytes:
    found = b""
    while len(found) < size:
        found += stream.read(size - len(found)) or _closed()
    return found


def silent(address: str, done: Callable[[], bool]) -> dict[str, int]:
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    poll, opened, closed = select.poll(), 0, 0
    those: dict[int, socket.socket] = {}
    while not done():
        while len(those) < 2000 and not done():
            try:
                each = connect(address)
            except OSError:
                break
            opened += 1
            those[each.fileno()] = each
            poll.register(each, select.POLLIN | select.POLLRDHUP)
            if opened % 50 == 0:
                for number, event in poll.poll(0):
                    if event & (select.POLLRDHUP | select.POLLHUP | select.POLLERR):
                        poll.unregister(number)
                        those.pop(number).close()
                        closed += 1
        for number, event in poll.poll(10):
            if event & (select.POLLRDHUP | select.POLLHUP | select.POLLERR):
                poll.unregister(number)
                those.pop(number).close()
                closed += 1
    return {"opened": opened, "closed": closed, "open": len(those)}


def again(address: str, done: Callable[[], bool], attack: Callable[[socket.socket], Iterator[int]]) -> dict[str, int]:
    """Attack, whenever a connection can be had, until it is closed (OSError). attack: yields how much it sent."""
    count = {"opened": 0, "closed": 0, "sent": 0}
    while not done():
        try:
            with greet(address) as attacker:
                count["opened"] += 1
                for sent in attack(attacker):
                    count["sent"] += sent
        except OSError:
            count["closed"] += 1
            time.sleep(0.01)
    return count


def endless(address: str, done: Callable[[], bool]) -> dict[str, int]:
    piece = frame(b"\0" * 512 * 1024, more=True)

    def attack(attacker: socket.socket) -> Iterator[int]:
        hello(attacker)
        while not done():
            attacker.sendall(piece)
            yield len(piece)

    return again(address, done, attack)


def flood(address: str, done: Callable[[], bool]) -> dict[str, int]:
    def attack(attacker: socket.socket) -> Iterator[int]:
        tag, number = hello(attacker), 0
        attacker.setblocking(False)
        waiting = b""
        while not done():
            readable, writable, _ = select.select([attacker], [attacker], [], 0.1)
            if readable and not attacker.recv(1 << 20):
                _closed()
            if writable:
                if not waiting:
                    calls = [[3, number + n, "Echo.sleep", 10_000, {"seconds": 5.0}, None] for n in range(CALLS)]
                    number += CALLS
                    waiting = frame(cbor2.dumps([tag, int(time.monotonic() * 1000) & 0x7FFF_FFFF, calls]))
                with contextlib.suppress(BlockingIOError):
                    waiting = waiting[attacker.send(waiting) :]
                    yield 0 if waiting else CALLS

    return again(address, done, attack)


def attack(name: str, address: str) -> None:
    """Attack until a line comes; say what came of it."""
    global _from
    _from = ATTACKERS[name]
    if name == "flood-from-elsewhere":
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))

    def done() -> bool:
        return bool(select.select([sys.stdin], [], [], 0)[0])

    print("READY", flush=True)
    run = {"silent": silent, "few-files": silent, "endless": endless, "flood": flood, "flood-from-elsewhere": flood}[
        name
    ]
    print(json.dumps(run(address, done)), flush=True)


# -- who starts them


class Process:
    """One of the three, by lines."""

    def __init__(self, *arguments: str, files: int | None = None) -> None:
        limit = [] if files is None else ["prlimit", f"--nofile={files}:{files}"]
        command = [*limit, sys.executable, "-m", "benchmarks.abuse", *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        self.first = self.line()

    def line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def say(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(text + "\n")
        self._process.stdin.flush()

    def told(self, text: str = "") -> Any:
        self.say(text)
        return json.loads(self.line())

    @property
    def memory(self) -> int:
        """The most that it ever occupied, in bytes."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


@contextlib.contextmanager
def started(*arguments: str, files: int | None = None) -> Iterator[Process]:
    process = Process(*arguments, files=files)
    try:
        yield process
    finally:
        process.close()


def measure(name: str, rounds: int, seconds: float) -> dict[str, Any]:
    """One attack: honest latencies in pairs without and with it, and what the server says."""
    pairs: list[tuple[list[float], list[float]]] = []
    failed = 0
    attacker_did: dict[str, int] = {}
    with started("--serve", files=1024 if name == "few-files" else None) as server:
        before = server.memory
        with started("--ask", server.first) as client:
            for turn in range(rounds):
                found: dict[bool, list[float]] = {}
                for attacked in (False, True) if turn % 2 == 0 else (True, False):
                    with contextlib.ExitStack() as stack:
                        attacker = stack.enter_context(started("--attack", name, server.first)) if attacked else None
                        if attacker is not None:
                            time.sleep(0.2)
                        result = client.told(str(seconds))
                        if attacker is not None:
                            for key, value in attacker.told().items():
                                attacker_did[key] = attacker_did.get(key, 0) + value
                    found[attacked] = result["taken"]
                    failed += result["failed"]
                    time.sleep(0.3)
                pairs.append((found[False], found[True]))
            limits = server.told()
        return {"pairs": pairs, "failed": failed, "attacker": attacker_did, "limits": limits,
                "memory": (before, server.memory)}  # fmt: skip


def report(name: str, found: dict[str, Any]) -> list[str]:
    alone = [percentile(calm, 99) for calm, _ in found["pairs"]]
    beside = [percentile(busy, 99) for _, busy in found["pairs"]]
    ratio = statistics.median(b / a for a, b in zip(alone, beside, strict=True))
    more = statistics.median(b - a for a, b in zip(alone, beside, strict=True))
    before, most = (value / 2**20 for value in found["memory"])
    good = most * 2**20 < MEMORY and not found["failed"] and (ratio <= RATIO or more <= SECONDS)
    return [
        name,
        f"{1e3 * statistics.median(alone):.2f}",
        f"{1e3 * statistics.median(beside):.2f}",
        f"{ratio:.2f}",
        f"{1e3 * more:.2f}",
        str(sum(len(calls) for pair in found["pairs"] for calls in pair)),
        str(found["failed"]),
        f"{before:.0f} → {most:.0f}",
        "yes" if good else "NO",
    ]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--seconds", type=float, default=2.0, help="of one half of a round")
    options.add_argument("--only", choices=ATTACKS)
    options.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options.add_argument("--ask", help=argparse.SUPPRESS)
    options.add_argument("--settings", type=json.loads, default={}, help=argparse.SUPPRESS)
    options.add_argument("--attack", nargs=2, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.serve:
        asyncio.run(serve(**given.settings))
    elif given.ask:
        asyncio.run(ask(given.ask, **given.settings))
    elif given.attack:
        attack(*given.attack)
    else:
        rows = []
        for name in [given.only] if given.only else ATTACKS:
            found = measure(name, given.rounds, given.seconds)
            rows.append(report(name, found))
            print(f"{name}: the attacker {found['attacker']}; the node refused {found['limits']}", file=sys.stderr)
        header = ["attack", "p99 ms", "attacked", "ratio", "more ms", "calls", "failed", "MiB", "held"]
        print(table(header, rows))


if __name__ == "__main__":
    main()
