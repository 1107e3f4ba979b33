"""What happens to a mesh meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import math
from typing import TYPE_CHECKING

from zmesh.testing import Crashed, Host, Link

if TYPE_CHECKING:
    from .run import Run


class Faults:
    """The faults of one run."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.mesh = run.mesh
        self.random = run.mesh.random
        self.ledger = run.ledger
        self.busy: set[str] = set()  # hosts that are being started or stopped; asked, never iterated over

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
        self.run.crash(host)
        await asyncio.sleep(away)
        await self.run.restart(host)
        self.busy.discard(host.name)

    async def drain(self, host: Host) -> None:
        self.busy.add(host.name)
        with contextlib.suppress(Crashed):
            await host.stop()
        await asyncio.sleep(self.random.random())
        await self.run.restart(host)
        self.busy.discard(host.name)

    async def chaos(self, seconds: float) -> None:
        hosts = self.run.hosts
        chooser = self.random
        end = self.mesh.now + seconds
        while self.mesh.now < end:
            await asyncio.sleep(chooser.expovariate(3.0))
            host, other = chooser.sample(hosts, 2)
            kind = chooser.choice(
                ("pause", "stall", "crash", "drain", "cut", "one way", "isolate", "reset", "slow", "lossy", "split")
            )
            for_seconds = chooser.choice((0.1, 0.3, 0.6, 1.0, 2.0)) * chooser.uniform(0.5, 1.5)
            if kind in ("pause", "stall"):
                if host.running and host.name not in self.busy:
                    self.run.spawn(self.frozen(host, for_seconds, stall=kind == "stall"))
            elif kind == "crash":
                if host.running:
                    if host.name in self.busy:
                        self.run.crash(host)  # while it drains or starts
                    else:
                        self.run.spawn(self.crash(host, for_seconds))
            elif kind == "drain":
                if host.running and host.name not in self.busy:
                    self.run.spawn(self.drain(host))
            elif kind == "reset":
                self.mesh.reset(host, other)
            else:
                self.run.spawn(self.broken_path(kind, host, other, for_seconds))

    async def broken_path(self, kind: str, host: Host, other: Host, seconds: float) -> None:
        mesh = self.mesh
        if kind == "isolate":
            mesh.isolate(host)
            await asyncio.sleep(seconds)
            mesh.heal(host)
        elif kind == "split":
            hosts = self.run.hosts
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
            host = chooser.choice(self.run.servers)
            seconds = chooser.uniform(0.3, 3.0)
            since = self.mesh.now
            self.ledger.harmed.append((host.name, since, math.inf))
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
            self.ledger.harmed[-1] = (host.name, since, self.mesh.now)
            await asyncio.sleep(0.5)

    async def drains(self, restarts: int) -> None:
        for _ in range(restarts):
            host = self.random.choice(self.run.servers)
            await host.stop()
            await asyncio.sleep(self.random.random() * 0.3)
            await self.run.restart(host)
            await asyncio.sleep(self.random.random() * 0.3)
