"""A load client for `Work`: waits for the servers, says READY, starts on a line of input. On further lines it stops
early (`stop`), or sends a large value to a server and back (`bulk SERVER BYTES`), over the links that the calls take.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import zmesh
from tests.net.programs.openloop import WARM_UP_CALLS, Outcome, Report, Seen, drive, lines_of_stdin
from tests.net.programs.work import Blocker, Work, of_version

LOOK_EVERY = 0.005


async def called(method: Callable[[str, float], Awaitable[str]], token: str, ms: float, planned: float) -> Outcome:
    """Make one call, and tell what became of it."""
    loop = asyncio.get_running_loop()
    started = loop.time()

    def outcome(error: str | None, code: str, may_have_run: bool, server: str | None, message: str) -> Outcome:
        latency = loop.time() - planned
        return Outcome(token, planned, latency, started - planned, error, code, may_have_run, server, message)

    try:
        server = await method(token, ms)
    except zmesh.RpcError as error:
        return outcome(type(error).__name__, str(error.code), error.may_have_run, error.node, error.message)
    except Exception as error:  # no call may raise anything else; the report is to show it
        return outcome(type(error).__name__, "NO_RPC_ERROR", True, None, repr(error))
    return outcome(None, "OK", True, server, "")


class Watch:
    """Notes when a peer's state changes, by looking often, as a user's program would."""

    def __init__(self, node: zmesh.Node) -> None:
        self.seen: list[Seen] = []
        self._node = node
        self._last: dict[str, Seen] = {}

    async def run(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(LOOK_EVERY)

    def look(self) -> None:
        now = asyncio.get_running_loop().time()
        listed = set()
        for peer in self._node.peers:
            listed.add(str(peer.id))
            last = self._last.get(str(peer.id))
            if last is None or last.state != peer.state:
                self._note(Seen(now, peer.name, str(peer.id), peer.state, str(peer.address)))
        for id_ in self._last.keys() - listed:
            last = self._last[id_]
            if last.state != "gone":
                self._note(Seen(now, last.peer, id_, "gone", last.address))

    def _note(self, seen: Seen) -> None:
        self._last[seen.id] = seen
        self.seen.append(seen)
        print(f"{seen.at:.3f} {seen.peer} {seen.id} is {seen.state} at {seen.address}", flush=True)


@asynccontextmanager
async def watching(node: zmesh.Node) -> AsyncIterator[Watch]:
    watch = Watch(node)
    task = asyncio.create_task(watch.run())
    try:
        yield watch
    finally:
        task.cancel()


async def warm_up(method: Callable[[str, float], Awaitable[str]], ms: float, servers: int) -> None:
    """Calls make the links: a few at a time, until every server has answered."""
    answered: set[str | None] = set()
    made = 0
    while made < WARM_UP_CALLS or len(answered) < servers:
        now = asyncio.get_running_loop().time()
        batch = await asyncio.gather(*(called(method, f"warm-up-{made + at}", ms, now) for at in range(2 * servers)))
        answered.update(one.server for one in batch if one.error is None)
        made += len(batch)


def extra_attempts(node: zmesh.Node) -> dict[str, int]:
    """How many attempts were made beyond the first of each call, by what made them."""
    counts = Counter[str]()
    for of_method in node.stats()["methods"].values():
        counts.update({kind: of_method.get(kind, 0) for kind in ("retries", "hedges", "second_attempts")})
    return counts


async def send_bulk(node: zmesh.Node, server: str, size: int) -> None:
    """Say what becomes of a large value."""
    loop = asyncio.get_running_loop()
    began, data = loop.time(), bytes(size)
    try:
        answer = await node.client(Work).options(node=server, timeout=30.0).echo(data)
        text = "OK" if answer == data else f"{len(answer)} other bytes came back"
    except zmesh.RpcError as error:
        text = f"{error.code.name}: {error}"
    print(f"{server} took {loop.time() - began:.3f} s for {size} bytes there and back\nBULK {text}", flush=True)


async def obey(node: zmesh.Node, stdin: asyncio.StreamReader, stop: asyncio.Event, bulk: asyncio.TaskGroup) -> None:
    """Do what lines of input say, until they end or say `stop`."""
    while line := (await stdin.readline()).decode():
        match line.split():
            case ["bulk", server, size]:
                bulk.create_task(send_bulk(node, server, int(size)))
            case _:
                break
    stop.set()


async def block(node: zmesh.Node, moment: float, seconds: float) -> None:
    """Have the one server that offers it block its loop."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(moment - loop.time())
    print(f"BLOCKING {loop.time()}", flush=True)
    await node.client(Blocker).block(seconds)
    print(f"BLOCKED {loop.time()}", flush=True)


def seconds_or_percentile(text: str) -> float | str:
    return text if text.startswith("p") else float(text)


async def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--servers", type=int, required=True, help="how many to wait for")
    options.add_argument("--method", choices=["work", "once"], required=True)
    options.add_argument("--version", default="1.0", help="of the service that it was written for")
    options.add_argument("--rate", type=float, required=True, help="calls a second")
    options.add_argument("--seconds", type=float, required=True)
    options.add_argument("--ms", type=float, default=5.0, help="how long a handler takes, times its server's factor")
    options.add_argument("--timeout", type=float, default=2.0)
    options.add_argument("--report", type=Path, required=True)
    options.add_argument("--hedge-after", type=seconds_or_percentile, help="seconds, or a percentile such as p99")
    options.add_argument("--block-at", type=float, help="when to have a loop blocked")
    options.add_argument("--block-for", type=float, default=3.0, help="for how long")
    given = options.parse_args()

    async with zmesh.Node(name="load") as node, watching(node) as watch:
        client = node.client(of_version(given.version)).options(timeout=given.timeout)
        if given.hedge_after is not None:
            client = client.options(hedge_after=given.hedge_after)
        method = client.work if given.method == "work" else client.once
        stdin = await lines_of_stdin()
        await warm_up(method, given.ms, given.servers)
        before = extra_attempts(node)
        print("READY", flush=True)

        await stdin.readline()
        start = asyncio.get_running_loop().time() + 0.05
        print(f"START {start}", flush=True)
        stop = asyncio.Event()
        blocking = given.block_at and asyncio.create_task(block(node, start + given.block_at, given.block_for))
        async with asyncio.TaskGroup() as bulk:  # which ends by its own timeout
            obeying = asyncio.create_task(obey(node, stdin, stop, bulk))
            outcomes = await drive(
                given.rate,
                given.seconds,
                start,
                lambda number, planned: called(method, f"{given.version}-{given.method}-{number}", given.ms, planned),
                stop,
            )
            obeying.cancel()
        if blocking:
            await blocking
        after = extra_attempts(node)
        extra = {kind: after[kind] - before.get(kind, 0) for kind in after}
        Report(start, outcomes, watch.seen, extra).write(given.report)
        print("DONE", flush=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    asyncio.run(main())
