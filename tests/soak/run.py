"""One seed: the mesh, who calls what, and the whole of a run."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import hashlib
import logging
import os
import random
import subprocess
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import zmesh
import zmesh.testing
from zmesh.testing import Crashed, Host, Link, Mesh

from . import calls, judge, streams
from .calls import Work
from .faults import Faults
from .ledger import PROFILES, Ledger, Profile
from .streams import StreamRecord, Streams

__all__ = ["PROFILES", "Result", "hash_elsewhere", "play", "run", "run_many"]

SERVERS: Final = 7
CLIENTS: Final = 3
CALLS_PER_SECOND: Final[dict[Profile, float]] = {"chaos": 2.1, "single": 1.7, "drains": 6.5}  # of each caller
STREAMS: Final = 0.25  # the share of calls that stream
RECOVERY: Final = 5.0  # seconds after the last fault until everything works
TIME_LIMIT: Final = 60.0  # virtual seconds: more than twice what a run takes
DEFAULT_TIMEOUT: Final = 2.0  # of calls without one: less than many streams last


async def passes(call: zmesh.InterceptedCall, proceed: Callable[[zmesh.InterceptedCall], Awaitable[Any]]) -> Any:
    """An interceptor that changes nothing, but how a call is made and served."""
    return await proceed(call)


class Run:
    """One seed."""

    def __init__(self, mesh: Mesh, profile: Profile) -> None:
        self.mesh = mesh
        self.profile = profile
        self.random = mesh.random
        self.ledger = Ledger(lambda: mesh.now)
        self.servers: list[Host] = []
        self.clients: list[Host] = []
        self.tasks: set[asyncio.Task[None]] = set()  # only held
        self.holding: set[asyncio.Task[None]] = set()
        self.calling = True

    @property
    def hosts(self) -> list[Host]:
        return self.servers + self.clients

    # -- hosts

    def services(self, name: str) -> list[zmesh.Service]:
        """What the next incarnation of a host serves."""
        place = self.ledger.starts(name)
        return [Work(self.ledger, place), Streams(self.ledger, place)] if name.startswith("server") else []

    def config(self) -> zmesh.Config:
        """Settings unlike those of the next node."""
        chooser = self.random
        chaos = self.profile == "chaos"
        config = zmesh.Config(
            timeout=DEFAULT_TIMEOUT,
            drain_grace=2.0 if chaos else 10.0,
            stream_grace=chooser.choice((0.3, 5.0)) if chaos else 10.0,
            stream_items=chooser.choice((1, 2, 5, 16, 64, 256)),
            stream_bytes=chooser.choice((100, 1000, 10_000, 1 << 20)),
            inline_limit=chooser.choice((64, 16 * 1024)),
            max_calls=chooser.choice((3, 10_000)) if chaos else 10_000,
        )
        if isinstance(self.mesh.seed, int) and self.mesh.seed % 3 == 2:  # items and results count as large values
            config = config.replace(inline_limit=16, bulk_above=64, bulk_window=1000)
        return config

    async def start_all(self) -> None:
        async def start(name: str, hosts: list[Host]) -> None:
            await asyncio.sleep(self.random.random() * 0.5)
            around = [passes] if self.random.random() < 0.3 else []
            host = await self.mesh.start(
                *self.services(name),
                name=name,
                config=self.config(),
                client_interceptors=around,
                server_interceptors=around,
            )
            hosts.append(host)
            self.let_call(host)

        async with asyncio.TaskGroup() as group:
            for n in range(SERVERS):
                group.create_task(start(f"server-{n}", self.servers))
            for n in range(CLIENTS):
                group.create_task(start(f"client-{n}", self.clients))
        self.servers.sort(key=lambda host: host.name)
        self.clients.sort(key=lambda host: host.name)

    async def restart(self, host: Host) -> None:
        await host.restart(*self.services(host.name), config=self.config())
        self.let_call(host)

    def crash(self, host: Host) -> None:
        """The end of a process, whose generators nobody closes."""
        self.ledger.crashed.add(self.ledger.places[host.name])
        host.crash()

    def spawn(self, work: Awaitable[None], tasks: set[asyncio.Task[None]] | None = None) -> None:
        async def quietly() -> None:
            with contextlib.suppress(Crashed):  # it was meant to
                await work

        tasks = self.tasks if tasks is None else tasks
        task = asyncio.create_task(quietly())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    # -- calls

    def let_call(self, host: Host) -> None:
        if self.profile != "drains" or host in self.clients or host.name.startswith("client"):
            self.spawn(host.run(self._call_steadily(host)))
        if self.profile != "drains" and host.name.startswith("client"):
            self.hold(host)

    def hold(self, host: Host) -> None:
        """Keep a stream open from a host, one after the other, until the run is quiet."""
        self.spawn(host.run(self._hold(host, random.Random(self.random.random()))), self.holding)

    async def _hold(self, host: Host, chooser: random.Random) -> None:
        while not self.ledger.quiet:
            await streams.call(self.ledger, host, streams.draw_held(chooser))
            await asyncio.sleep(0.1)

    async def _call_steadily(self, host: Host) -> None:
        chooser = random.Random(self.random.random())
        serves = host.name.startswith("server")
        open_calls: set[asyncio.Task[Any]] = set()
        while self.calling:
            await asyncio.sleep(chooser.expovariate(CALLS_PER_SECOND[self.profile]))
            if not self.calling:
                break
            if chooser.random() < STREAMS:
                plan = streams.draw(chooser, self.profile, serves=serves)
                task: asyncio.Task[Any] = asyncio.create_task(streams.call(self.ledger, host, plan))
            else:
                task = asyncio.create_task(calls.call_something(self.ledger, host, self.profile, chooser))
            open_calls.add(task)
            task.add_done_callback(open_calls.discard)
        while open_calls:
            await asyncio.wait(list(open_calls))

    # -- the whole

    async def main(self) -> None:
        await self.start_all()
        await asyncio.sleep(1)
        faults = Faults(self)
        if self.profile == "chaos":
            await faults.chaos(4.0)
        elif self.profile == "single":
            await faults.single(3)
        else:
            await faults.drains(6)
        self.calling = False
        while self.tasks:
            await asyncio.wait(list(self.tasks))
        self.mesh.heal()
        if self.profile == "drains":
            for host in self.clients:
                self.hold(host)
        await asyncio.sleep(RECOVERY)
        await self.call_once_more()
        self.ledger.quiet = True
        await asyncio.sleep(1)  # what runs twice may do so late
        judge.judge_held(self.ledger, self.hosts)
        self.ledger.released.set()
        while self.holding:
            await asyncio.wait(list(self.holding))
        await asyncio.sleep(0.1)
        judge.judge_rest(self.ledger, self.hosts)
        self.judge()

    async def call_once_more(self) -> None:
        """All is well again: everybody reaches everybody."""
        last: list[asyncio.Task[Any]] = []
        async with asyncio.TaskGroup() as group:
            for host in self.hosts:
                last.append(group.create_task(host.run(calls.call(self.ledger, host, "many", 0.01, 5.0))))
                plan = streams.Plan("mirror", streams.Making(5))
                last.append(group.create_task(host.run(streams.call(self.ledger, host, plan))))
        for task in last:
            record = task.result()
            if record.outcome != "ok":
                self.ledger.complain("all is well again, but", record)

    def judge(self) -> None:
        """What must be true of all calls, when all are over."""
        ledger = self.ledger
        for record in ledger.calls:
            if record.ends > 1:
                ledger.complain(f"ended {record.ends} times", record)
            if isinstance(record, StreamRecord):
                if record.ends:
                    judge.judge(ledger, record, self.profile, DEFAULT_TIMEOUT)
                judge.judge_runs(ledger, record, self.profile)
            else:
                if record.ends:  # else its process ended first
                    calls.judge(ledger, record, self.profile)
                calls.judge_runs(ledger, record)
        judge.judge_closed(ledger)
        for token, who in ledger.runs.items():
            if token.endswith(("/on", "/back")) and len(who) > 1:
                ledger.violations.append(f"{token} ran {len(who)} times, at {who}")


@dataclass(frozen=True)
class Result:
    """What a seed came to."""

    seed: int
    profile: str  # or mood
    calls: int
    streams: int  # of those
    outcomes: dict[str, int]
    violations: list[str]
    trace_hash: str
    seconds: float
    trace: list[str]


def profile_of(seed: int) -> Profile:
    return PROFILES[0] if seed % 5 < 3 else PROFILES[seed % 5 - 2]


def run(seed: int, *, keep_trace: bool = False) -> Result:
    """Run one seed."""
    profile = profile_of(seed)
    chooser = random.Random(f"soak {seed}")
    link = Link() if profile != "chaos" else chooser.choice((Link(), Link(delay=0.01, jitter=0.02), Link(loss=0.02)))
    return play(seed, profile, lambda mesh: Run(mesh, profile), link, keep_trace=keep_trace)


def play(seed: int, profile: str, make: Callable[[Mesh], Run], link: Link, *, keep_trace: bool) -> Result:
    """Run what `make` makes of a mesh."""
    runs: list[Run] = []
    trace: list[str] = []
    digest = hashlib.blake2b(digest_size=16)

    async def main(mesh: Mesh) -> None:
        current = make(mesh)
        runs.append(current)
        try:
            await current.main()
        finally:
            trace.extend(mesh.trace if keep_trace else ())
            digest.update(mesh.trace_hash.encode())

    began = time.perf_counter()
    failure: BaseException | None = None
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # thousands of faults are no news
    try:
        zmesh.testing.run(main, seed=seed, link=link, clock_skew=1e5, time_limit=TIME_LIMIT)
    except Exception as error:
        failure = error
    finally:
        logging.disable(disabled)
    ledger = runs[0].ledger
    if failure is not None:
        ledger.violations += [f"has not ended: {record}" for record in ledger.calls if not record.ends]
        ledger.violations.insert(0, _explain(failure))
    outcomes: dict[str, int] = {}
    for record in ledger.calls:
        digest.update(f"{record}\n".encode())
        outcomes[record.outcome] = outcomes.get(record.outcome, 0) + 1
    seconds = time.perf_counter() - began
    streamed = sum(isinstance(record, StreamRecord) for record in ledger.calls)
    return Result(
        seed, profile, len(ledger.calls), streamed, outcomes, ledger.violations, digest.hexdigest(), seconds, trace
    )


def _explain(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def run_many(seeds: range, processes: int, run: Callable[[int], Result] = run) -> Iterator[Result]:
    """Run many seeds, on several cores. Closing the iterator gives up the rest."""
    pool = concurrent.futures.ProcessPoolExecutor(processes)
    try:
        yield from pool.map(run, seeds, chunksize=2)
    finally:
        pool.shutdown(cancel_futures=True)


def hash_elsewhere(seed: int, hash_seed: int, mix: str = "streams") -> str:
    """The trace hash of a seed, run in another process with another PYTHONHASHSEED."""
    program = f"from tests.soak import MIXES; print(MIXES[{mix!r}]({seed}).trace_hash)"
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout.strip()
