"""What a test writes: a mesh of simulated hosts, and what may happen to them."""

from __future__ import annotations

import asyncio
import functools
import inspect
import random
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final, TypeVar

from .._platform import Host as Identity
from .._platform import Platform
from .._transport import Gate
from ..config import Config
from ..node import Node
from ..service import Service
from . import _loop
from ._discovery import MemoryDiscovery
from ._executor import InlineExecutor
from ._loop import Process, VirtualLoop
from ._network import Link, Machine, Network
from ._transport import MemoryTransport

__all__ = ["Host", "Mesh", "run", "simulated"]

T = TypeVar("T")

_SETTINGS: Final[dict[str, Any]] = {
    "mesh": "simulated",
    "listen": "tcp://*:0",
    "peers": (),
    "discovery": "mdns",
    "capacity": 4,
    "security": None,
}
"""What a node would otherwise take from the environment or the machine, which a run must not depend on."""

TIME_LIMIT: Final = 600.0  # virtual seconds: longer than a test should want, and soon over where one hangs


class Host:
    """A simulated machine with one process, which holds one node. `Mesh.start` makes them."""

    def __init__(self, mesh: Mesh, machine: Machine, services: tuple[Service, ...], options: dict[str, Any]) -> None:
        self._mesh = mesh
        self._network = mesh._network
        self._machine = machine
        self._services = services
        self._options = options
        self._starts = 0
        self._paused = False
        self._transports: list[MemoryTransport] = []
        self._process: Process
        self._node: Node | None = None
        self._life: asyncio.Task[None]
        self._leave: asyncio.Event

    @property
    def name(self) -> str:
        """The name of the machine and of its node."""
        return self._machine.name

    @property
    def address(self) -> str:
        """The machine's address on the simulated network."""
        return self._machine.address

    @property
    def node(self) -> Node:
        """The node; after a crash or a stop, the last one.

        What is called on it directly runs in the caller's context, which a pause or a crash of this host does not
        touch: `run` is for that.
        """
        if self._node is None:
            raise RuntimeError(f"host {self.name!r} has not started a node yet")
        return self._node

    @property
    def running(self) -> bool:
        """Whether the process exists, paused or not."""
        return self._process.alive and not self._life.done()

    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in this host's process and return its result. Raises Crashed where the host crashes first."""
        return await self._process.run(coroutine)

    def pause(self) -> None:
        """Stop the process as SIGSTOP does, until `resume`: it sends no heartbeats, and what comes waits."""
        self._check_running("pause")
        if not self._paused:
            self._paused = True
            self._network.record(self.name, "paused")
            self._process.freeze()
            for transport in self._transports:
                self._network.stop(transport)

    def resume(self) -> None:
        """Let a paused process go on. What came meanwhile is read, and timers that have run out fire."""
        self._check_running("resume")
        if self._paused:
            self._paused = False
            self._network.record(self.name, "resumed")
            for transport in self._transports:
                self._network.cont(transport)
            self._process.thaw()

    def stall(self, seconds: float) -> None:
        """Block the event loop for a while, as a handler does that computes: its connections stay up meanwhile."""
        self._check_running("stall")
        self._network.record(self.name, f"stalled for {seconds} s")
        self._process.freeze()
        loop = self._mesh._loop
        loop.call_at_true(loop.now + seconds, self._process.thaw)

    def crash(self) -> None:
        """Kill the process as SIGKILL does. Its kernel closes its connections; nothing else is said to anyone."""
        if self.running:
            self._network.record(self.name, "crashed")
            self._end()

    async def stop(self) -> None:
        """Leave as a program does that is told to: drain, say goodbye, then the process ends.

        Raises Crashed where it crashes meanwhile.
        """
        self._check_running("stop")
        self._network.record(self.name, "stops")
        await self._process.run(self._stop())
        self._network.record(self.name, "stopped")
        self._end()

    def _end(self) -> None:
        self._process.kill()
        for transport in self._transports:
            self._network.sever(transport)

    async def restart(self, *services: Service, **options: Any) -> None:
        """Start a new process with a new node on this machine, after a crash or a stop (it stops where it runs).

        Services and options that are not given are as they were: the same objects, as if they had been on disk.
        """
        if self.running:
            await self.stop()
        if services:
            self._services = services
        self._options = {**self._options, **options}
        await self._start()

    def _check_running(self, what: str) -> None:
        if not self.running:
            raise RuntimeError(f"cannot {what} host {self.name!r}: nothing runs there")

    async def _start(self) -> None:
        self._starts += 1
        mesh = self._mesh
        skew = mesh._clock_skew * mesh.random.random()
        self._process = process = Process(mesh._loop, self.name, skew)
        self._paused = False
        self._transports = []
        self._leave = asyncio.Event()
        self._network.record(self.name, "starts")
        entered = mesh._loop.create_future()
        self._life = mesh._loop.create_task(
            self._live(self._platform(process), entered), context=process.context.copy()
        )
        self._life.add_done_callback(lambda _: entered.cancel())
        await process.run(_wait_for(entered, self._life))

    async def _live(self, platform: Platform, entered: asyncio.Future[None]) -> None:
        # One task enters and leaves the node, as a program does: cancel scopes and task groups want that.
        async with Node(*self._services, _platform=platform, **self._options) as self._node:
            if not entered.done():
                entered.set_result(None)
            await self._leave.wait()

    async def _stop(self) -> None:
        self._leave.set()
        await asyncio.shield(self._life)

    def _platform(self, process: Process) -> Platform:
        loop, network, machine = self._mesh._loop, self._network, self._machine
        label = f"{self._mesh.seed} {self.name} {self._starts}"
        ids = random.Random(f"ids {label}")

        def transport(config: Config, gate: Gate | None) -> MemoryTransport:
            made = MemoryTransport(network, machine, process, config, gate)
            self._transports.append(made)
            return made

        return Platform(
            transport=transport,
            mdns=lambda interfaces: MemoryDiscovery(network, machine, process),
            executor=lambda threads: InlineExecutor(loop, process),
            processes=False,
            random=random.Random(label),
            new_id=lambda: ids.randbytes(16),
            host=Identity(identity=f"simulated {machine.address}", abstract_sockets=False),
        )

    def __repr__(self) -> str:
        return f"<Host {self.name!r} {self.address}>"


async def _wait_for(entered: asyncio.Future[None], life: asyncio.Task[None]) -> None:
    await asyncio.wait([entered])
    if entered.cancelled():
        await life  # raises what kept the node from starting


Hosts = Host | Iterable[Host]


class Mesh:
    """A simulated network and the hosts on it. `run` and `simulated` make one and give it to a test."""

    def __init__(self, loop: VirtualLoop, *, seed: int | str, link: Link | None, clock_skew: float) -> None:
        self.seed = seed
        self.random = random.Random(f"mesh {seed}")
        """For the test itself: seeded, and drawn from by nothing else."""
        self.hosts: list[Host] = []
        """All hosts that were started, in their order, whether they still run or not."""
        self._loop = loop
        self._clock_skew = clock_skew
        self._network = Network(loop, random.Random(f"network {seed}"), link)

    async def start(self, *services: Service, name: str | None = None, **options: Any) -> Host:
        """Start a host with a node that serves `services`, and return it when the node is up.

        options: as for `zmesh.Node`; the environment (ZMESH_...) and the real machine have no say.
        """
        if name is None:
            name = f"host-{len(self.hosts) + 1}"
        if any(host.name == name for host in self.hosts):
            raise ValueError(f"there is a host {name!r} already; names of simulated hosts are unique")
        host = Host(self, self._network.machine(name), services, {"name": name, **_SETTINGS, **options})
        self.hosts.append(host)
        await host._start()
        return host

    def link(self, one: Hosts, other: Hosts, link: Link) -> None:
        """Give the paths between two hosts, or two groups, both ways, other delays and losses."""
        for source, target in _pairs(one, other):
            self._network.set_link(source, target, link)
            self._network.set_link(target, source, link)

    def partition(self, one: Hosts, other: Hosts, *, one_way: bool = False) -> None:
        """Let nothing through between two hosts, or two groups, until `heal`.

        It is silence, as with a broken cable: connections notice by their heartbeats. one_way: only what goes from
        `one` to `other` is lost.
        """
        for source, target in _pairs(one, other):
            self._network.cut(source, target)
            if not one_way:
                self._network.cut(target, source)

    def isolate(self, host: Host) -> None:
        """Cut a host off from all others, those included that are yet to come, until `heal`."""
        self._network.isolate(host._machine, True)

    def heal(self, one: Hosts | None = None, other: Hosts | None = None) -> None:
        """Undo `partition` between two hosts or groups and `isolate` of each; without arguments, everywhere."""
        hosts = self.hosts
        ones = hosts if one is None else _group(one)
        others = hosts if other is None else _group(other)
        for host in hosts:
            if host._machine.isolated and (host in ones or (other is not None and host in others)):
                self._network.isolate(host._machine, False)
        for source, target in _pairs(ones, others):
            for pair in ((source, target), (target, source)):
                if self._network.is_cut(*pair):
                    self._network.heal(*pair)

    def reset(self, one: Host, other: Host) -> None:
        """Break the connections between two hosts at once, losing what is on its way: TCP's RST."""
        self._network.reset(one._machine, other._machine)

    @property
    def now(self) -> float:
        """Virtual seconds since the start of the run, whatever the clocks of the hosts say."""
        return self._loop.now

    @property
    def trace(self) -> deque[str]:
        """What happened, one line an event: time, host, event. The last 10,000."""
        return self._network.trace

    @property
    def trace_hash(self) -> str:
        """A hash of all that happened, the bytes of every message included: equal when a seed is run again."""
        return self._network.trace_hash

    async def _leave(self) -> None:
        """Let every host leave in peace."""
        self.heal()
        running = [host for host in self.hosts if host.running]
        for host in running:
            host.resume()
        await asyncio.gather(*(host.stop() for host in running))


def _group(hosts: Hosts) -> list[Host]:
    return [hosts] if isinstance(hosts, Host) else list(hosts)


def _pairs(one: Hosts, other: Hosts) -> list[tuple[Machine, Machine]]:
    return [(a._machine, b._machine) for a in _group(one) for b in _group(other) if a is not b]


def run(
    main: Callable[[Mesh], Coroutine[Any, Any, T]],
    *,
    seed: int | str = 0,
    link: Link | None = None,
    clock_skew: float = 0.0,
    time_limit: float = TIME_LIMIT,
) -> T:
    """Run `main(mesh)` in virtual time, let the hosts leave, and return its result.

    seed: what happens is decided by it alone; the same seed does the same again.
    link: delay, jitter and loss of all paths that `Mesh.link` says nothing of.
    clock_skew: each process's clock is ahead of `main`'s by up to so many seconds. Then everything on a node has to
    go through `Host.run`, or it would read two clocks.
    time_limit: virtual seconds after which OutOfTime is raised.

    Raises Stuck where everything waits for what will never happen, and what `main` raises, or else an ExceptionGroup of
    the errors that no task handled.
    """

    async def simulate() -> T:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        mesh = Mesh(loop, seed=seed, link=link, clock_skew=clock_skew)
        result = await main(mesh)
        await mesh._leave()
        return result

    try:
        return _loop.run(simulate, seed=seed, time_limit=time_limit)
    except Exception as error:
        error.add_note(f"zmesh.testing: simulated with seed={seed!r}, which does the same again")
        raise


def simulated(
    *,
    seeds: Iterable[int | str] = (0,),
    link: Link | None = None,
    clock_skew: float = 0.0,
    time_limit: float = TIME_LIMIT,
) -> Callable[[Callable[..., Coroutine[Any, Any, None]]], Callable[..., None]]:
    """Make a plain test function of an `async def` that takes a mesh first: it runs once for each seed.

    Further parameters stay, so pytest's fixtures and parametrization work as ever.
    """
    all_seeds = tuple(seeds)

    def wrap(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
        @functools.wraps(test)
        def wrapper(*args: Any, **kwargs: Any) -> None:
            for seed in all_seeds:
                run(
                    lambda mesh: test(mesh, *args, **kwargs),
                    seed=seed,
                    link=link,
                    clock_skew=clock_skew,
                    time_limit=time_limit,
                )

        signature = inspect.signature(test)
        rest = list(signature.parameters.values())[1:]
        wrapper.__signature__ = signature.replace(parameters=rest, return_annotation=None)  # type: ignore[attr-defined]
        return wrapper

    return wrap
