"""NATS: request and reply by way of a nats-server. The first server process starts it and others use it; an address is
its URL and a subject."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import cbor2
import nats

from ..clients import TEXT, Awaiting
from ..worker import free_port, ready, run

WITHIN = 10.0  # seconds until the nats-server must accept connections
UNLIMITED = {"pending_msgs_limit": -1, "pending_bytes_limit": -1}  # else the subscriber drops what comes too fast
TIMEOUT = 30.0
# max_payload is 1 MiB as it comes, and cannot be more than this.
SETTINGS = "max_payload: 67108864\nmax_pending: 1073741824\nwrite_deadline: '60s'\n"
PENDING = 256 * 1024 * 1024  # bytes that a client keeps for sending, 2 MiB as it comes


def _broker() -> str:
    program = shutil.which("nats-server") or str(Path(sys.executable).with_name("nats-server"))
    port = free_port()
    give_up = time.monotonic() + WITHIN
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as settings:
        settings.write(SETTINGS)
        settings.flush()
        command = [program, "-a", "127.0.0.1", "-p", str(port), "-c", settings.name]
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                return f"nats://127.0.0.1:{port}"
            except OSError:
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.02)


async def _serve(broker: str) -> None:
    connection = await nats.connect(broker, pending_size=PENDING)
    subject = f"echo{os.getpid()}"

    async def echo(message: Any) -> None:
        await message.respond(cbor2.dumps(cbor2.loads(message.data)))

    async def items(message: Any) -> None:
        for index in range(cbor2.loads(message.data)):
            await connection.publish(message.reply, cbor2.dumps({"i": index, "s": TEXT}))
        await connection.publish(message.reply, b"")

    async def size(message: Any) -> None:
        await message.respond(cbor2.dumps(len(message.data)))

    async def back(message: Any) -> None:
        await message.respond(message.data)

    await connection.subscribe(subject, cb=echo, **UNLIMITED)
    await connection.subscribe(f"{subject}.size", cb=size, **UNLIMITED)
    await connection.subscribe(f"{subject}.back", cb=back, **UNLIMITED)
    await connection.subscribe(f"{subject}.items", cb=items, **UNLIMITED)
    await connection.flush()
    ready(f"{broker}/{subject}")
    await asyncio.Event().wait()


def serve(variant: str, beside: Sequence[str]) -> None:
    run(_serve(beside[0].rpartition("/")[0] if beside else _broker()))


class Client(Awaiting):
    async def open(self, addresses: Sequence[str]) -> None:
        self._connection = await nats.connect(addresses[0].rpartition("/")[0], pending_size=PENDING)
        self._subjects = [address.rpartition("/")[2] for address in addresses]
        await self.echo(self.make(0))

    async def _echo_of(self, server: int, argument: Any) -> Any:
        answer = await self._connection.request(self._subjects[server], cbor2.dumps(argument), timeout=TIMEOUT)
        return cbor2.loads(answer.data)

    async def echo(self, argument: Any) -> Any:
        return await self._echo_of(0, argument)

    async def size(self, value: bytes) -> int:
        size: int = cbor2.loads((await self._ask_large("size", value)).data)
        return size

    async def back(self, value: bytes) -> Any:
        return (await self._ask_large("back", value)).data

    async def _ask_large(self, method: str, value: bytes) -> Any:
        return await self._connection.request(f"{self._subjects[0]}.{method}", value, timeout=TIMEOUT)

    async def items(self, count: int) -> AsyncIterator[Any]:  # type: ignore[override]
        inbox = self._connection.new_inbox()
        subscription = await self._connection.subscribe(inbox, **UNLIMITED)
        await self._connection.publish(f"{self._subjects[0]}.items", cbor2.dumps(count), reply=inbox)
        async for message in subscription.messages:
            if not message.data:
                break
            yield cbor2.loads(message.data)
        await subscription.unsubscribe()
