"""The demo without its screen: node processes, a steady load, the faults, and what was seen of all that."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import statistics
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import zmesh

from ._demo_services import Ledger, Prices, Shop, Stock
from ._process import Process

__all__ = ["PARTS", "Fault", "Faults", "Load", "Part", "Processes", "Started", "Tally", "booked"]

_WINDOW: Final = 5.0  # seconds that rates and percentiles look back
_NOTICE_WITHIN: Final = 10.0


@dataclass(frozen=True)
class Part:
    """One node of the demo."""

    name: str
    services: tuple[str, ...]
    capacity: float
    about: str


PARTS: Final = (
    Part("fast", ("FAST",), 8, "Prices in 2 ms"),
    Part("slow", ("SLOW",), 2, "Prices in 20 ms"),
    Part("big", ("BIG_PRICES", "BIG_STOCK"), 4, "Prices and Stock in 5 ms"),
    Part("store", ("STORE",), 4, "Stock in 3 ms"),
    Part("shop-1", ("SHOP",), 2, "Shop: calls Prices, Stock, Ledger"),
    Part("shop-2", ("SHOP",), 2, "Shop: calls Prices, Stock, Ledger"),
    Part("ledger", ("LEDGER",), 1, "Ledger"),
)


class Started(Process):
    """One node of the demo."""

    def __init__(self, part: Part, mesh: str) -> None:
        services = (f"zmesh.cli._demo_services:{service}" for service in part.services)
        capacity = ("--capacity", str(part.capacity))
        super().__init__(part.name, *services, *capacity, "--mesh", mesh, "--listen", "tcp://127.0.0.1:0")
        self.part = part


class Processes:
    """All nodes. An async context manager: on leaving it, however that happens, all have ended."""

    def __init__(self, mesh: str) -> None:
        self.mesh = mesh
        self._all: list[Started] = []

    async def __aenter__(self) -> Processes:
        return self

    async def __aexit__(self, *error: object) -> None:
        try:
            await asyncio.gather(*(process.stop() for process in self._all))
        except asyncio.CancelledError:  # a second Ctrl-C: no more patience
            for process in self._all:
                process.kill()
            await asyncio.gather(*(process.ended() for process in self._all if process.running))
            raise

    async def start(self, part: Part) -> Started:
        process = Started(part, self.mesh)
        self._all.append(process)
        await process.start()
        return process


@dataclass
class Tally:
    """What became of the calls that one node, or all, answered."""

    answered: int = 0
    recent: deque[tuple[float, float]] = field(default_factory=deque)  # (when, seconds)

    def add(self, now: float, seconds: float) -> None:
        self.answered += 1
        self.recent.append((now, seconds))

    def rate(self, now: float) -> float:
        """Calls answered per second, lately."""
        self._forget(now)
        return len(self.recent) / _WINDOW

    def percentiles(self, now: float) -> tuple[float, float] | None:
        """p50 and p99 in seconds, lately; None without calls."""
        self._forget(now)
        if not self.recent:
            return None
        values = sorted(seconds for _, seconds in self.recent)
        return statistics.median(values), values[min(len(values) - 1, int(0.99 * len(values)))]

    def _forget(self, now: float) -> None:
        while self.recent and self.recent[0][0] < now - _WINDOW:
            self.recent.popleft()


class Load:
    """Calls at a steady rate, whether or not earlier ones were answered (open loop)."""

    def __init__(self, node: zmesh.Node, rate: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._rate = rate
        self._prices = node.client(Prices)
        self._stock = node.client(Stock)
        self._shop = node.client(Shop)
        self._running: set[asyncio.Task[None]] = set()
        self.started = 0
        self.orders = 0
        self.failures: list[str] = []
        self.total = Tally()
        self.nodes: dict[str, Tally] = {}
        self.slowest = 0.0

    async def run(self, until: Callable[[], bool]) -> None:
        """Call until told to stop; returns when every call has ended."""
        began = self._loop.time()
        while not until():
            planned = began + self.started / self._rate
            await asyncio.sleep(max(0.0, planned - self._loop.time()))
            task = self._loop.create_task(self._one(self.started, planned))
            self.started += 1
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        await asyncio.gather(*self._running)

    def _next(self, number: int) -> zmesh.Call[Any]:
        """Of ten calls four ask a price, three a stock, three order."""
        kind = number % 10
        if kind in (0, 2, 5, 7):
            return self._prices.quote(number)
        if kind in (1, 4, 8):
            return self._stock.count(number)
        self.orders += 1
        return self._shop.order(f"order-{number}", number)

    async def _one(self, number: int, planned: float) -> None:
        call = self._next(number)
        try:
            await call
        except Exception as error:  # whatever it is, it is a call that failed
            self.failures.append(str(error) or repr(error))
            return
        now = self._loop.time()
        self.slowest = max(self.slowest, now - planned)
        self.total.add(now, now - planned)
        self.nodes.setdefault(call.node or "?", Tally()).add(now, now - planned)


@dataclass
class Fault:
    """Something that was done to a node, and how long it took until the caller saw it."""

    what: str
    node: str
    when: float
    states: dict[str, float] = field(default_factory=dict)  # state to seconds after `when`

    def __str__(self) -> str:
        seen = ", ".join(f"{state} after {1000 * seconds:.0f} ms" for state, seconds in self.states.items())
        return f"{self.what} {self.node}: {seen or 'not noticed'}"


class Faults:
    """Does things to nodes while the load runs, and writes down when the caller's node notices."""

    def __init__(self, node: zmesh.Node, processes: dict[str, Started], restart: Callable[[Part], Awaitable[Started]]):
        self._loop = asyncio.get_running_loop()
        self._node = node
        self._processes = processes
        self._restart = restart
        self._changed = asyncio.Event()
        self.all: list[Fault] = []
        self.on_event: Callable[[str], None] = lambda text: None
        node.on_change(self._on_change)

    def _on_change(self, peer: zmesh.Peer, before: str) -> None:
        now = self._loop.time()
        latest = next((fault for fault in reversed(self.all) if fault.node == peer.name), None)
        if latest is not None:
            latest.states.setdefault(peer.state, now - latest.when)
        self._changed.set()
        self.on_event(f"{peer.name}: {before} -> {peer.state}")

    async def run(self, seconds: float) -> None:
        """All faults, spread over `seconds`."""
        step = seconds / 5
        await asyncio.sleep(step)
        await self._kill("fast")
        await asyncio.sleep(step)
        await self._pause("store", min(1.5, step))
        await asyncio.sleep(step)
        await self._restart_gracefully("shop-1")

    async def _kill(self, name: str) -> None:
        fault = self._begin("SIGKILL to", name)
        self._processes[name].signal(signal.SIGKILL)
        await self._noticed(fault, "dead")

    async def _pause(self, name: str, seconds: float) -> None:
        fault = self._begin("SIGSTOP to", name)
        self._processes[name].signal(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        await self._noticed(fault, "suspect")
        fault = self._begin("SIGCONT to", name)
        self._processes[name].signal(signal.SIGCONT)
        await self._noticed(fault, "alive")

    async def _restart_gracefully(self, name: str) -> None:
        process = self._processes[name]
        fault = self._begin("SIGTERM (restart) to", name)
        process.signal(signal.SIGTERM)
        await process.ended()
        fault.states["ended"] = self._loop.time() - fault.when
        self.on_event(f"{name} has drained and left; it starts again")
        self._processes[name] = await self._restart(process.part)
        await self._noticed(fault, "alive")

    def _begin(self, what: str, name: str) -> Fault:
        fault = Fault(what, name, self._loop.time())
        self.all.append(fault)
        self.on_event(f"{what} {name}")
        return fault

    async def _noticed(self, fault: Fault, state: str) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_NOTICE_WITHIN):
                while state not in fault.states:
                    self._changed.clear()
                    await self._changed.wait()


async def booked(node: zmesh.Node) -> tuple[int, int]:
    """What the ledger says: orders, and those that were booked more than once."""
    return await node.client(Ledger).summary()
