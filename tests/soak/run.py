"""Seeded runs of a mesh of ten nodes under random faults, and what must be true of each of them.

    python -m tests.soak --seeds 0:2000        many seeds, on all cores
    python -m tests.soak --seed 17 --trace     one seed, and what happened in it

Whatever happens: a call ends exactly once and by its deadline; a call that is not idempotent runs at most once; what is
said not to have run did not; an answer is the answer to this call; once all is well again, everybody reaches everybody.
Each seed belongs to one of three profiles, which promise more the less they break:

- chaos: everything at once, to everybody.
- single: one fault at a time. The idempotent calls of all who are not hit are answered, soon.
- drains: servers restart as they should, one after the other. Every call is answered, and runs exactly once.
"""

from __future__ import annotations

import argparse
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
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

import zmesh
import zmesh.testing
from zmesh.testing import Crashed, Host, Link, Mesh

Profile = Literal["chaos", "single", "drains"]
PROFILES: Final[tuple[Profile, ...]] = get_args(Profile)

SERVERS: Final = 7
CLIENTS: Final = 3
CALLS_PER_SECOND: Final[dict[Profile, float]] = {"chaos": 4.0, "single": 5.0, "drains": 20.0}  # of each caller
LATE: Final = 0.01  # seconds after its deadline at which a call may still end: timers have a grain of 4 ms
SOON: Final = 0.8  # seconds above its own time (twice: it runs again) that an idempotent call takes at most then
RECOVERY: Final = 5.0  # seconds after the last fault until everything works


@dataclass
class Record:
    """A call, and how it ended."""

    token: str
    method: str
    idempotent: bool
    caller: str
    began: float
    timeout: float
    takes: float
    spared: bool = False  # nobody harmed its caller while it was open
    victim: str | None = None  # whom the profile `single` was harming when it began or ended
    ended: float | None = None
    ends: int = 0
    answer: str | None = None
    error: zmesh.RpcError | None = None
    cancelled: bool = False
    lost: bool = False  # its caller's process ended first

    def end(self, now: float) -> None:
        self.ended = now
        self.ends += 1

    def __str__(self) -> str:
        outcome = "cancelled" if self.cancelled else self.answer or (f"{type(self.error).__name__}: {self.error}")
        return (
            f"{self.method}({self.token}) from {self.caller} at {self.began:.3f}, timeout {self.timeout}, "
            f"takes {self.takes:.3f}, ended {self.ended if self.ended is None else round(self.ended, 3)}: {outcome}"
        )


@dataclass
class Ledger:
    """What really happened, seen from outside of the mesh."""

    calls: list[Record] = field(default_factory=list)
    runs: dict[str, list[str]] = field(default_factory=dict)  # token to who ran it
    frozen: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    victim: str | None = None
    violations: list[str] = field(default_factory=list)

    def ran(self, token: str, label: str) -> str:
        self.runs.setdefault(token, []).append(label)
        return f"{token} by {label}"


class Work(zmesh.Service):
    """Methods of every kind, that write down when they run."""

    def __init__(self, ledger: Ledger, label: str) -> None:
        self._ledger = ledger
        self._label = label

    @zmesh.rpc
    async def once(self, token: str, seconds: float) -> str:
        answer = self._ledger.ran(token, self._label)
        await asyncio.sleep(seconds)
        return answer

    @zmesh.rpc(idempotent=True)
    async def many(self, token: str, seconds: float) -> str:
        answer = self._ledger.ran(token, self._label)
        await asyncio.sleep(seconds)
        return answer

    @zmesh.rpc
    @zmesh.testing.takes(0.02)
    def once_plain(self, token: str, seconds: float) -> str:
        return self._ledger.ran(token, self._label)

    @zmesh.rpc(idempotent=True)
    @zmesh.testing.takes(0.02)
    def many_plain(self, token: str, seconds: float) -> str:
        return self._ledger.ran(token, self._label)

    @zmesh.rpc
    async def relay(self, token: str, seconds: float) -> str:
        answer = self._ledger.ran(token, self._label)
        await zmesh.context().client(Work).once(token + "/on", seconds)
        return answer


METHODS: Final = ("once", "many", "once_plain", "many_plain", "relay")


class Run:
    """One seed."""

    def __init__(self, mesh: Mesh, profile: Profile) -> None:
        self.mesh = mesh
        self.profile = profile
        self.random = mesh.random
        self.ledger = Ledger()
        self.servers: list[Host] = []
        self.clients: list[Host] = []
        self.busy: set[str] = set()  # hosts that are being started or stopped; asked, never iterated over
        self.tasks: set[asyncio.Task[None]] = set()  # only held
        self.calling = True
        self._tokens = 0
        self._starts = 0

    # -- hosts

    def work(self, name: str) -> Work:
        self._starts += 1
        return Work(self.ledger, f"{name}#{self._starts}")

    async def start_all(self) -> None:
        async def start(name: str, *, serves: bool) -> None:
            await asyncio.sleep(self.random.random() * 0.5)
            services = [self.work(name)] if serves else []
            host = await self.mesh.start(*services, name=name)
            (self.servers if serves else self.clients).append(host)
            self.let_call(host)

        async with asyncio.TaskGroup() as group:
            for n in range(SERVERS):
                group.create_task(start(f"server-{n}", serves=True))
            for n in range(CLIENTS):
                group.create_task(start(f"client-{n}", serves=False))

    async def restart(self, host: Host) -> None:
        services = [self.work(host.name)] if host in self.servers else []
        await host.restart(*services)
        self.let_call(host)

    def spawn(self, work: Awaitable[None]) -> None:
        async def quietly() -> None:
            with contextlib.suppress(Crashed):  # it was meant to
                await work

        task = asyncio.create_task(quietly())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    # -- calls

    def let_call(self, host: Host) -> None:
        if self.profile != "drains" or host in self.clients:
            self.spawn(host.run(self._call_steadily(host)))

    async def _call_steadily(self, host: Host) -> None:
        chooser = random.Random(self.random.random())
        client = host.node.client(Work)
        open_calls: set[asyncio.Task[Record]] = set()
        while self.calling:
            await asyncio.sleep(chooser.expovariate(CALLS_PER_SECOND[self.profile]))
            if not self.calling:
                break
            method = chooser.choice(METHODS)
            long = chooser.random() < 0.05
            seconds = chooser.uniform(0.1, 0.6) if long else chooser.uniform(0.0, 0.02)
            timeout = 5.0 if self.profile != "chaos" else chooser.choice((0.3, 1.0, 3.0, 5.0))
            gives_up = chooser.uniform(0.0, 0.1) if self.profile == "chaos" and chooser.random() < 0.05 else None
            task = asyncio.create_task(self.call(host, client, method, seconds, timeout, gives_up))
            open_calls.add(task)
            task.add_done_callback(open_calls.discard)
        while open_calls:
            await asyncio.wait(list(open_calls))

    async def call(
        self, host: Host, client: Work, method: str, seconds: float, timeout: float, gives_up: float | None = None
    ) -> Record:
        self._tokens += 1
        token = f"t{self._tokens}"
        takes = seconds if not method.endswith("plain") else 0.02
        idempotent = method.startswith("many")
        record = Record(token, method, idempotent, host.name, self.mesh.now, timeout, takes, victim=self.ledger.victim)
        self.ledger.calls.append(record)
        try:
            async with asyncio.timeout(gives_up):
                record.answer = await getattr(client.options(timeout=timeout), method)(token, seconds)
        except TimeoutError:
            record.cancelled = True
        except zmesh.RpcError as error:
            record.error = error
        record.end(self.mesh.now)
        record.victim = record.victim or self.ledger.victim
        return record

    # -- faults

    async def frozen(self, host: Host, seconds: float, *, stall: bool) -> None:
        began = self.mesh.now
        if stall:
            host.stall(seconds)
            await asyncio.sleep(seconds)
        else:
            host.pause()
            await asyncio.sleep(seconds)
            if host.running:
                host.resume()
        self.ledger.frozen.setdefault(host.name, []).append((began, self.mesh.now))

    async def crash(self, host: Host, away: float) -> None:
        self.busy.add(host.name)
        host.crash()
        await asyncio.sleep(away)
        await self.restart(host)
        self.busy.discard(host.name)

    async def drain(self, host: Host) -> None:
        self.busy.add(host.name)
        with contextlib.suppress(Crashed):
            await host.stop()
        await asyncio.sleep(self.random.random())
        await self.restart(host)
        self.busy.discard(host.name)

    async def chaos(self, seconds: float) -> None:
        hosts = self.servers + self.clients
        chooser = self.random
        end = self.mesh.now + seconds
        while self.mesh.now < end:
            await asyncio.sleep(chooser.expovariate(2.5))
            host, other = chooser.sample(hosts, 2)
            kind = chooser.choice(
                ("pause", "stall", "crash", "drain", "cut", "one way", "isolate", "reset", "slow", "lossy", "split")
            )
            for_seconds = chooser.choice((0.1, 0.3, 0.6, 1.0, 2.0)) * chooser.uniform(0.5, 1.5)
            if kind in ("pause", "stall"):
                if host.running and host.name not in self.busy:
                    self.spawn(self.frozen(host, for_seconds, stall=kind == "stall"))
            elif kind == "crash":
                if host.running:
                    if host.name in self.busy:
                        host.crash()  # while it drains or starts
                    else:
                        self.spawn(self.crash(host, for_seconds))
            elif kind == "drain":
                if host.running and host.name not in self.busy:
                    self.spawn(self.drain(host))
            elif kind == "reset":
                self.mesh.reset(host, other)
            else:
                self.spawn(self.broken_path(kind, host, other, for_seconds))

    async def broken_path(self, kind: str, host: Host, other: Host, seconds: float) -> None:
        mesh = self.mesh
        if kind == "isolate":
            mesh.isolate(host)
            await asyncio.sleep(seconds)
            mesh.heal(host)
        elif kind == "split":
            hosts = self.servers + self.clients
            group = self.random.sample(hosts, len(hosts) // 2)
            rest = [each for each in hosts if each not in group]
            mesh.partition(group, rest)
            await asyncio.sleep(seconds)
            mesh.heal(group, rest)
        elif kind in ("slow", "lossy"):
            slow = Link(delay=0.05, jitter=0.05) if kind == "slow" else Link(loss=0.1)
            mesh.link(host, [each for each in mesh.hosts if each is not host], slow)
            await asyncio.sleep(seconds)
            mesh.link(host, [each for each in mesh.hosts if each is not host], Link())
        else:
            mesh.partition(host, other, one_way=kind == "one way")
            await asyncio.sleep(seconds)
            mesh.heal(host, other)

    async def single(self, faults: int) -> None:
        chooser = self.random
        for _ in range(faults):
            host = chooser.choice(self.servers)
            seconds = chooser.uniform(0.3, 3.0)
            self.ledger.victim = host.name
            kind = chooser.choice(("pause", "stall", "stall", "isolate", "crash", "reset"))
            if kind in ("pause", "stall"):
                await self.frozen(host, seconds, stall=kind == "stall")
            elif kind == "crash":
                await self.crash(host, seconds)
            elif kind == "reset":
                self.mesh.reset(host, chooser.choice([each for each in self.mesh.hosts if each is not host]))
            else:
                self.mesh.isolate(host)
                await asyncio.sleep(seconds)
                self.mesh.heal(host)
            await asyncio.sleep(2.0)
            self.ledger.victim = None
            await asyncio.sleep(0.5)

    async def drains(self, restarts: int) -> None:
        for _ in range(restarts):
            host = self.random.choice(self.servers)
            await host.stop()
            await asyncio.sleep(self.random.random() * 0.3)
            await self.restart(host)
            await asyncio.sleep(self.random.random() * 0.3)

    # -- the whole

    async def main(self) -> None:
        await self.start_all()
        self.servers.sort(key=lambda host: host.name)
        self.clients.sort(key=lambda host: host.name)
        await asyncio.sleep(1)
        if self.profile == "chaos":
            await self.chaos(6.0)
        elif self.profile == "single":
            await self.single(3)
        else:
            await self.drains(8)
        self.calling = False
        while self.tasks:
            await asyncio.wait(list(self.tasks))
        self.mesh.heal()
        await asyncio.sleep(RECOVERY)
        async with asyncio.TaskGroup() as group:
            last = [
                group.create_task(host.run(self.call(host, host.node.client(Work), "many", 0.01, 5.0)))
                for host in self.servers + self.clients
            ]
        self.judge()
        for task in last:
            record = task.result()
            if record.answer is None:
                self.ledger.violations.append(f"all is well again, but: {record}")
        await asyncio.sleep(1)  # what runs twice may do so late
        self.judge_runs()

    # -- what must be true

    def complain(self, what: str, record: Record) -> None:
        self.ledger.violations.append(f"{what}: {record}; ran at {self.ledger.runs.get(record.token, [])}")

    def judge(self) -> None:
        for record in self.ledger.calls:
            if record.ends == 0:
                continue  # its process ended first
            assert record.ended is not None
            if record.ends != 1:
                self.complain(f"ended {record.ends} times", record)
            if record.ended > self.allowed(record) + LATE:
                self.complain("ended after its deadline", record)
            if record.answer is not None and not record.answer.startswith(f"{record.token} by "):
                self.complain("has another call's answer", record)
            if self.profile == "drains" and record.answer is None:
                self.complain("failed in a rolling restart", record)
            if self.profile == "single" and record.caller != record.victim:
                self.judge_spared(record)

    def judge_spared(self, record: Record) -> None:
        """A call of somebody who was not hit, while somebody else was."""
        assert record.ended is not None
        if record.idempotent:
            if record.answer is None:
                self.complain("is idempotent and failed though one node only was lost", record)
            elif record.ended - record.began > 2 * record.takes + SOON:
                self.complain(f"is idempotent and took {record.ended - record.began:.3f} s", record)
        elif record.method != "relay" and record.error is not None:
            lost = isinstance(record.error, zmesh.MaybeExecuted) and record.error.node == record.victim
            if not lost:
                self.complain("failed, and not because its node was lost", record)

    def allowed(self, record: Record) -> float:
        """Until when a call has to end: its deadline, or when its node went on after it."""
        end = record.began + record.timeout
        for began, ended in sorted(self.ledger.frozen.get(record.caller, [])):
            if began <= end + LATE and end <= ended:
                end = ended
        return end

    def judge_runs(self) -> None:
        runs = self.ledger.runs
        for record in self.ledger.calls:
            ran = len(runs.get(record.token, []))
            if not record.idempotent and ran > 1:
                self.complain(f"is not idempotent and ran {ran} times", record)
            if record.answer is not None and record.answer.partition(" by ")[2] not in runs.get(record.token, []):
                self.complain("was answered and did not run", record)
            if ran and record.error is not None:
                if not record.error.may_have_run:
                    self.complain("ran, though its error says that it did not", record)
                elif isinstance(record.error, zmesh.Unavailable):
                    self.complain("ran, though it is said to be UNAVAILABLE", record)
        for token, who in runs.items():
            if token.endswith("/on") and len(who) > 1:
                self.ledger.violations.append(f"relayed {token} ran {len(who)} times, at {who}")


@dataclass(frozen=True)
class Result:
    """What a seed came to."""

    seed: int
    profile: Profile
    calls: int
    outcomes: dict[str, int]
    violations: list[str]
    trace_hash: str
    seconds: float
    trace: list[str]


def profile_of(seed: int) -> Profile:
    return PROFILES[0] if seed % 5 < 3 else PROFILES[seed % 5 - 2]


def run(seed: int, *, keep_trace: bool = False) -> Result:
    """Run one seed."""
    logging.disable(logging.CRITICAL)
    profile = profile_of(seed)
    chooser = random.Random(f"soak {seed}")
    link = Link() if profile != "chaos" else chooser.choice((Link(), Link(delay=0.01, jitter=0.02), Link(loss=0.02)))
    runs: list[Run] = []
    trace: list[str] = []
    digest = hashlib.blake2b(digest_size=16)

    async def main(mesh: Mesh) -> None:
        current = Run(mesh, profile)
        runs.append(current)
        try:
            await current.main()
        finally:
            trace.extend(mesh.trace if keep_trace else ())
            digest.update(mesh.trace_hash.encode())

    began = time.perf_counter()
    failure: BaseException | None = None
    try:
        zmesh.testing.run(main, seed=seed, link=link, clock_skew=1e5)
    except Exception as error:
        failure = error
    ledger = runs[0].ledger
    if failure is not None:
        ledger.violations.append(_explain(failure))
    outcomes: dict[str, int] = {}
    for record in ledger.calls:
        digest.update(f"{record}\n".encode())
        outcome = (
            "ok" if record.answer is not None else "cancelled" if record.cancelled else
            "lost" if record.error is None else type(record.error).__name__
        )  # fmt: skip
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    seconds = time.perf_counter() - began
    calls = len(ledger.calls)
    return Result(seed, profile, calls, outcomes, ledger.violations, digest.hexdigest(), seconds, trace)


def _explain(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def run_many(seeds: range, processes: int) -> Iterator[Result]:
    """Run many seeds, on several cores. Closing the iterator gives up the rest."""
    pool = concurrent.futures.ProcessPoolExecutor(processes)
    try:
        yield from pool.map(run, seeds, chunksize=2)
    finally:
        pool.shutdown(cancel_futures=True)


def hash_elsewhere(seed: int, hash_seed: int) -> str:
    """The trace hash of a seed, run in another process with another PYTHONHASHSEED."""
    program = f"from tests.soak import run; print(run({seed}).trace_hash)"
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout.strip()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", default="0:200", help="FIRST:LAST, the last not included (default 0:200)")
    parser.add_argument("--seed", type=int, help="run this one alone, here")
    parser.add_argument("--trace", action="store_true", help="with --seed: print what happened")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--stop", action="store_true", help="stop at the first seed that fails")
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    if options.seed is not None:
        results: Iterator[Result] = iter([run(options.seed, keep_trace=options.trace)])
    else:
        first, _, last = options.seeds.partition(":")
        results = run_many(range(int(first), int(last)), options.processes)
    failed: list[int] = []
    calls = count = 0
    outcomes: dict[str, int] = {}
    for result in results:
        count += 1
        calls += result.calls
        for outcome, number in result.outcomes.items():
            outcomes[outcome] = outcomes.get(outcome, 0) + number
        for line in result.trace:
            print(line)
        if result.violations:
            failed.append(result.seed)
            print(f"seed {result.seed} ({result.profile}) fails, trace hash {result.trace_hash}:")
            for violation in result.violations[:5]:
                print(f"  {violation}")
            if len(result.violations) > 5:
                print(f"  ... and {len(result.violations) - 5} more")
            if options.stop:
                close = getattr(results, "close", None)
                if close is not None:
                    close()
                break
    if failed and not options.stop:
        again = {hash_elsewhere(failed[0], hash_seed) for hash_seed in (1, 2)}
        print(f"seed {failed[0]} run again in two other processes: {'the same' if len(again) == 1 else 'DIFFERENT'}")
    told = ", ".join(f"{name} {number}" for name, number in sorted(outcomes.items()))
    print(f"{count} seeds, {calls} calls ({told}), {len(failed)} failed, {time.perf_counter() - began:.1f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
