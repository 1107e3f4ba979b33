"""A node under attack over real sockets: what the honest get meanwhile, and what is left of it in memory."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import logging
import os
import secrets
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

import numpy  # noqa: F401  (before memory is measured: the first array that is decoded would load it)

import zmesh
from zmesh._core import messages as m

__all__ = ["Echo", "Outcome", "under_attack"]

MEMORY: Final = 20 * 2**20  # bytes that may be left when all attackers are gone
GONE_WITHIN: Final = 20.0  # seconds until a node has noticed that its attackers are gone
SECONDS: Final = 600.0  # for all of it: more is a hang


class Echo(zmesh.Service):
    """What the honest call while others do their worst: a method of each kind."""

    def __init__(self) -> None:
        self.held = asyncio.Event()
        self.release = asyncio.Event()

    @zmesh.rpc(idempotent=True)
    async def echo(self, value: Any) -> Any:
        return value

    @zmesh.rpc
    async def fail(self, text: str) -> None:
        raise zmesh.FailedPrecondition(text)

    @zmesh.rpc
    async def hold(self) -> str:
        self.held.set()
        await self.release.wait()
        return "not touched"

    @zmesh.rpc
    async def count(self, value: int) -> AsyncIterator[int]:
        for number in range(value):
            yield number

    @zmesh.rpc
    async def total(self, value: AsyncIterator[int]) -> int:
        return sum([number async for number in value])

    @zmesh.rpc
    async def back(self, value: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for each in value:
            yield each


@dataclass(frozen=True)
class Outcome:
    """sent: inputs. links: kept and ended by the node, of attackers that said HELLO; strangers did not.
    honest: calls, all answered. grown: bytes that the node's process has more than before. errors: of the log and of
    the loop."""

    sent: int
    links: dict[str, int]
    honest: int
    grown: int
    seconds: float
    errors: list[str]


@contextlib.asynccontextmanager
async def attacked_node(config: zmesh.Config) -> AsyncIterator[tuple[zmesh.Node, Echo, zmesh.Node]]:
    """A node, what it serves, and an honest client that has met it."""
    mesh, echo = "test-" + secrets.token_hex(4), Echo()
    node = zmesh.Node(echo, mesh=mesh, listen="tcp://127.0.0.1:*", discovery=None, config=config.replace(ipc=False))
    async with node, zmesh.Node(mesh=mesh, peers=node.addresses, discovery=None, config=config) as client:
        assert await client.client(Echo).echo(0) == 0
        yield node, echo, client


async def under_attack(inputs: int, seed: int = 1) -> Outcome:
    """Let a program attack a node with so many inputs, and call the node all the while. Raises where an honest call is
    not answered rightly, where the attacker meets a hang, or where the node does not get rid of it."""
    errors: list[str] = []
    handler = _Errors(errors)
    logging.getLogger("zmesh").addHandler(handler)
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(str(context)))
    # So that it notices soon who is gone, and lets the same host come again and again.
    config = zmesh.Config.test().replace(idle_heartbeat=0.25, max_handshakes_per_second=100_000)
    try:
        async with asyncio.timeout(SECONDS), attacked_node(config) as (node, echo, client):
            held = asyncio.create_task(client.client(Echo).options(timeout=SECONDS).hold())
            await echo.held.wait()
            before, began = memory(), time.monotonic()
            said, honest = await attack(node, client, inputs, seed)
            took = time.monotonic() - began
            await gone(node)
            echo.release.set()  # replies, items and cancels for calls of that number have not touched this one
            assert await held == "not touched"
            return Outcome(said.pop("sent"), said, honest, memory() - before, took, errors)
    finally:
        logging.getLogger("zmesh").removeHandler(handler)


class _Errors(logging.Handler):
    def __init__(self, errors: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._errors = errors

    def emit(self, record: logging.LogRecord) -> None:
        self._errors.append(record.getMessage())


async def attack(node: zmesh.Node, client: zmesh.Node, inputs: int, seed: int) -> tuple[dict[str, int], int]:
    """What the attacker said, and how many calls of others were answered meanwhile."""
    tag = m.tag_of(bytes.fromhex(node.id))
    arguments = [node.addresses[0], node.mesh, str(tag), str(seed), str(inputs)]
    attacker = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.fuzz.hostile", *arguments, stdout=asyncio.subprocess.PIPE
    )
    told = asyncio.create_task(attacker.communicate())
    calls = 0
    try:
        while not told.done() or not calls:
            await honest(client, calls)
            calls += 4
            await asyncio.wait([told], timeout=0.01)
        output, _ = await told
    finally:
        if attacker.returncode is None:
            attacker.kill()
            await attacker.wait()
    assert attacker.returncode == 0, "the attacker was not answered, or not as it should be: see its error above"
    return json.loads(output), calls


async def honest(client: zmesh.Node, number: int) -> None:
    """A call of each kind."""
    echo = client.client(Echo)

    async def numbers() -> AsyncIterator[int]:
        for each in range(3):
            yield each

    assert await echo.echo(number) == number
    assert [each async for each in echo.count(3)] == [0, 1, 2]
    assert await echo.total(numbers()) == 3
    assert [each async for each in echo.back(numbers())] == [0, 1, 2]


async def gone(node: zmesh.Node) -> None:
    """Wait until the node has no link but that of the honest client."""
    hub = node._running()
    async with asyncio.timeout(GONE_WITHIN):
        while len(hub._accepted) > 1:
            await asyncio.sleep(0.02)


def memory() -> int:
    """What this process occupies, in bytes."""
    gc.collect()
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.sockets", description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    outcome = asyncio.run(under_attack(options.inputs, options.seed))
    print(outcome)
    return 1 if outcome.errors or outcome.grown > MEMORY else 0


if __name__ == "__main__":
    sys.exit(main())
