"""What zmesh costs as it grows: with the nodes of a mesh, the services of a node, the calls in flight, the streams.

Processor time, not time: what one thing costs where there are many, beside what it costs where there are few. A curve
that is level is a cost that is linear. Each point is a process of its own, over tcp on 127.0.0.1 with real sockets, and
the least of some runs, because others may use the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import zmesh
from benchmarks.figures import chart, put, table

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
LISTEN: Final = "tcp://127.0.0.1:0"
# Limits that are below what is measured here are raised. Nor is a loop that stands still, with hundreds of nodes on it,
# taken for a lost connection: how often is pinged stays what it is.
CONFIG: Final = zmesh.Config(
    ipc=False,
    timeout=600.0,
    patience=60.0,
    transport_timeout=60.0,
    max_calls=1_000_000,
    max_peer_calls=1_000_000,
    max_peer_streams=1_000_000,
    max_peer_memory=2**34,
    admission=False,
)
GROUP: Final = 2000  # calls that are begun, or end, at a time
Point = dict[str, float]


class Echo(zmesh.Service):
    @zmesh.rpc
    async def echo(self, number: int) -> int:
        return number


class Other(zmesh.Service):
    @zmesh.rpc
    async def nothing(self) -> None: ...


class Holding(zmesh.Service):
    """Keeps calls and streams open until it is told to let go."""

    def __init__(self, things: int) -> None:
        self.gates = [asyncio.Event() for _ in range(0, things, GROUP)]
        self.open = 0

    async def _let_go(self, number: int) -> None:
        self.open += 1
        await self.gates[number // GROUP].wait()

    @zmesh.rpc
    async def hold(self, number: int) -> int:
        await self._let_go(number)
        return number

    @zmesh.rpc
    async def items(self, number: int, count: int) -> AsyncIterator[int]:
        yield -1
        await self._let_go(number)
        for item in range(count):
            yield item


def resident() -> float:
    """KiB, at the most so far."""
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


@contextlib.contextmanager
def nodes_elsewhere(processes: int, nodes: int) -> Iterator[list[str]]:
    """The addresses of nodes that serve `Echo`, spread over some processes."""
    with contextlib.ExitStack() as stack:
        started = []
        for number in range(processes):
            share = nodes // processes + (number < nodes % processes)
            argv = [sys.executable, "-m", "benchmarks.scale", "--serve", str(share)]
            process = stack.enter_context(subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT))
            stack.callback(process.kill)
            started.append(process)
        addresses: list[str] = []
        for process in started:
            assert process.stdout is not None
            addresses += process.stdout.readline().split()
        yield addresses


async def serve(nodes: int) -> None:
    async with contextlib.AsyncExitStack() as stack:
        started = [await stack.enter_async_context(server(Echo(), number)) for number in range(nodes)]
        print(*(node.addresses[0] for node in started), flush=True)
        await asyncio.Event().wait()


def server(service: zmesh.Service, number: int = 0) -> zmesh.Node:
    return zmesh.Node(service, name=f"n{number}", listen=LISTEN, discovery=None, config=CONFIG)


async def call_peers(addresses: list[str]) -> Point:
    """A node that links all of them and calls: `cpu` is its own only where they are elsewhere."""
    config = CONFIG.replace(subset_above=10_000)  # else links are kept to 20 of more than 50
    n = len(addresses)
    began = time.process_time()
    async with zmesh.Node(peers=addresses, discovery=None, config=config) as node:
        await node.discover(expect=n, timeout=60.0)
        met = time.process_time()
        echo = node.client(Echo)
        await asyncio.gather(*(echo.echo(number) for number in range(4 * n)))
        best = float("inf")
        for _ in range(3):
            before = time.process_time()
            for _ in range(8):
                await asyncio.gather(*(echo.echo(number) for number in range(128)))
            best = min(best, (time.process_time() - before) / 1024)
        before, since = time.process_time(), time.monotonic()
        await asyncio.sleep(3.0)
        idle = (time.process_time() - before) / (time.monotonic() - since)
    return {"meet": (met - began) / n * 1e3, "call": best * 1e6, "idle": idle / n * 1e3}


def peers_in_one_process(n: int) -> Point:
    async def run() -> Point:
        async with contextlib.AsyncExitStack() as stack:
            before = resident()
            nodes = [await stack.enter_async_context(server(Echo(), number)) for number in range(n)]
            memory = resident() - before
            return await call_peers([node.addresses[0] for node in nodes]) | {"memory": memory / n}

    return asyncio.run(run())


def peers_in_several(n: int) -> Point:
    with nodes_elsewhere(min(4, n), n) as addresses:
        return asyncio.run(call_peers(addresses))


def services(n: int) -> Point:
    """n services on one node, of which each is called."""
    classes: list[type[Any]] = [
        type(f"S{number}", (Other,), {"__module__": __name__}) for number in range(n)
    ]  # each inherits `nothing`

    async def run() -> Point:
        began = time.process_time()
        async with zmesh.Node(*(each() for each in classes), listen=LISTEN, discovery=None, config=CONFIG) as one:
            started = time.process_time()
            async with zmesh.Node(peers=[one.addresses[0]], discovery=None, config=CONFIG) as node:
                clients = [node.client(each) for each in classes]
                await clients[0].nothing()
                before = time.process_time()
                for client in clients:
                    await client.nothing()
                first = (time.process_time() - before) / n
                best = float("inf")
                for _ in range(3):
                    before = time.process_time()
                    for number in range(1000):
                        await clients[number % n].nothing()
                    best = min(best, (time.process_time() - before) / 1000)
        return {"start": (started - began) / n * 1e3, "first call": first * 1e6, "call": best * 1e6}

    return asyncio.run(run())


async def held(n: int, begin: Callable[[Holding, int], Any], each: int) -> Point:
    """Open n things, hold them, end them; both sides in this process. each: what ends with one of them."""
    holding = Holding(n)
    async with (
        server(holding) as one,
        zmesh.Node(peers=[one.addresses[0]], discovery=None, config=CONFIG) as node,
    ):
        client = node.client(Holding)
        await node.discover(expect=1)
        before, began = resident(), time.process_time()
        tasks = []
        for number in range(n):
            tasks.append(asyncio.ensure_future(begin(client, number)))
            while number - holding.open >= GROUP:  # a loop that stands still for seconds is another matter
                await asyncio.sleep(0.001)
        while holding.open < n:
            await asyncio.sleep(0.001)
        opened, memory = time.process_time(), resident() - before
        await asyncio.sleep(2.0)
        idle = (time.process_time() - opened) / 2.0
        released = time.process_time()
        for number, gate in enumerate(holding.gates):
            gate.set()
            await asyncio.gather(*tasks[number * GROUP : (number + 1) * GROUP])
        ended = time.process_time()
    return {
        "open": (opened - began) / n * 1e6,
        "end": (ended - released) / n / each * 1e6,
        "idle": idle * 1e3,
        "memory": memory / n,
    }


def calls(n: int) -> Point:
    async def one(client: Holding, number: int) -> None:
        assert await client.hold(number) == number

    return asyncio.run(held(n, one, 1))


def streams(n: int) -> Point:
    items = 10

    async def one(client: Holding, number: int) -> None:
        assert [item async for item in client.items(number, items)] == [-1, *range(items)]

    return asyncio.run(held(n, one, items))


def idle(n: int) -> Point:
    """All traffic of a mesh of n nodes, four of which are called by a fifth one; found by mDNS.

    In a network namespace of its own, whose loopback interface counts what passes.
    """

    async def run() -> Point:
        def counted() -> tuple[int, int]:
            # Not /sys, which shows the namespace in which it was mounted.
            line = Path("/proc/net/dev").read_text().partition("lo:")[2].split()
            return int(line[9]), int(line[8])

        where: dict[str, Any] = {"interfaces": ["127.0.0.1"], "mesh": "idle", "config": CONFIG}
        async with contextlib.AsyncExitStack() as stack:
            for number in range(n):
                service = Echo() if number < 4 else Other()
                node = zmesh.Node(service, name=f"n{number}", listen=LISTEN, **where)
                await stack.enter_async_context(node)
            caller = await stack.enter_async_context(zmesh.Node(**where))
            for _ in range(40):
                await caller.client(Echo).echo(1)
            await asyncio.sleep(5.0)  # announcements are repeated for a while, links that are not wanted let go
            (packets, size), since, cpu = counted(), time.monotonic(), time.process_time()
            await asyncio.sleep(10.0)
            after, elapsed = counted(), time.monotonic() - since
            linked = sum(1 for peer in caller.peers if peer.state == "alive")
            return {
                "packets": (after[0] - packets) / elapsed,
                "bytes": (after[1] - size) / elapsed,
                "cpu": (time.process_time() - cpu) / elapsed * 1e3,
                "links": linked,
            }

    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    return asyncio.run(run())


CURVES: Final[dict[str, tuple[Callable[[int], Point], tuple[int, ...]]]] = {
    "peers_in_one_process": (peers_in_one_process, (1, 3, 10, 30, 100, 300)),
    "peers_in_several": (peers_in_several, (1, 3, 10, 30, 100, 300)),
    "services": (services, (1, 10, 100, 1000)),
    "calls": (calls, (1, 10, 100, 1_000, 10_000, 100_000)),
    "streams": (streams, (1, 10, 100, 1_000, 10_000)),
    "idle": (idle, (5, 10, 20, 50, 100)),
}
HEADS: Final[dict[str, tuple[str, dict[str, str]]]] = {
    "peers_in_one_process": (
        "nodes, all in one process",
        {
            "meet": "ms to meet one (both sides)",
            "call": "µs a call (both sides)",
            "idle": "ms/s a link, idle (both sides)",
            "memory": "KiB a node",
        },
    ),
    "peers_in_several": (
        "nodes in four other processes",
        {"meet": "ms to meet one", "call": "µs a call", "idle": "ms/s a link, idle"},
    ),
    "services": (
        "services on a node",
        {"start": "ms to start one", "first call": "µs the first call of one", "call": "µs a call"},
    ),
    "calls": (
        "calls in flight",
        {"open": "µs to begin one", "end": "µs to end one", "idle": "ms/s while all wait", "memory": "KiB a call"},
    ),
    "streams": (
        "streams open",
        {"open": "µs to open one", "end": "µs an item", "idle": "ms/s while all wait", "memory": "KiB a stream"},
    ),
    "idle": (
        "nodes in the mesh, four of them called",
        {"packets": "packets/s of all nodes", "bytes": "bytes/s", "cpu": "ms/s of all nodes", "links": "links kept"},
    ),
}
PLOTTED: Final[dict[str, tuple[str, dict[str, tuple[str, str]]]]] = {
    # file: title, and line: curve and figure
    "scale-calls": (
        "microseconds of processor time, both sides",
        {
            "begin a call": ("calls", "open"),
            "end a call": ("calls", "end"),
            "open a stream": ("streams", "open"),
            "an item": ("streams", "end"),
            "a call, of services": ("services", "call"),
            "a call, of peers": ("peers_in_one_process", "call"),
        },
    ),
    "scale-idle": (
        "an idle mesh, four nodes of which are called",
        {"packets/s": ("idle", "packets"), "ms/s of processor": ("idle", "cpu")},
    ),
}


def point(curve: str, n: int, runs: int) -> Point:
    """The least of some runs, each in a process of its own."""
    argv = [sys.executable, "-m", "benchmarks.scale", "--point", curve, str(n)]
    if curve == "idle":
        argv = ["unshare", "--net", *argv]
    found: list[Point] = []
    for _ in range(runs):
        done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT)
        if done.returncode:
            sys.exit(f"{curve} {n}: {done.stderr[-2000:]}")
        found.append(json.loads(done.stdout))
    return {name: min(each[name] for each in found) for name in found[0]}


def measure(names: list[str], most: int, runs: int) -> dict[str, dict[int, Point]]:
    found: dict[str, dict[int, Point]] = {}
    for name in names:
        if name == "idle" and os.geteuid() != 0:
            print("idle: needs root, for a network namespace; left out", file=sys.stderr)
            continue
        found[name] = {}
        for n in CURVES[name][1]:
            if n <= most:
                found[name][n] = point(name, n, runs)
                print(name, n, {key: round(value, 3) for key, value in found[name][n].items()}, file=sys.stderr)
    return found


def report(found: dict[str, dict[int, Point]]) -> str:
    """The generated part of the page."""
    machine = f"Python {platform.python_version()}, {os.cpu_count()} cores"
    parts = [f"Written by `make scale`, {machine}."]
    for name, points in found.items():
        across, figures = HEADS[name]
        rows = [[f"{n:,}", *(f"{each[key]:.3g}" if each[key] < 1000 else f"{each[key]:,.0f}" for key in figures)]
                for n, each in points.items()]  # fmt: skip
        parts.append(table([across, *figures.values()], rows))
    parts += [f"![{title}]({file}.svg)" for file, (title, _) in PLOTTED.items()]
    return "\n\n".join(parts)


def plot(found: dict[str, dict[int, Point]]) -> None:
    for file, (title, lines) in PLOTTED.items():
        drawn = {
            name: [(float(n), each[key]) for n, each in found[curve].items()]
            for name, (curve, key) in lines.items()
            if curve in found
        }
        if drawn:
            text = chart(title, "how many there are", "", drawn, by_magnitude=True)
            (PAGE.parent / f"{file}.svg").write_text(text, encoding="utf-8")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--curves", nargs="+", choices=list(CURVES), default=list(CURVES))
    options.add_argument("--most", type=int, default=1_000_000, help="leave out the points above")
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--write", action="store_true", help=f"write {PAGE.name} and its plots")
    options.add_argument("--point", nargs=2, metavar=("CURVE", "N"), help=argparse.SUPPRESS)
    options.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.serve:
        asyncio.run(serve(given.serve))
    elif given.point:
        print(json.dumps(CURVES[given.point[0]][0](int(given.point[1]))))
    else:
        found = measure(given.curves, given.most, given.runs)
        text = report(found)
        print(text)
        if given.write:
            put(PAGE, "scale", text)
            plot(found)


if __name__ == "__main__":
    main()
