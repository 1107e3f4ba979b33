"""The mix of policies: small meshes under every balancing policy, with hedges, priorities and keys, where servers fall
ill, refuse, are overloaded, or break as in the other mix. Each seed has one mood:

- calm: nothing happens. Nothing is tried again, nobody is ejected or suspected; turns and keys are kept.
- ill: some servers fail, raise, hang or are slow for a while.
- refusals: servers take few calls at a time and refuse the rest, so that the budget of retries is all that is between
  them and a storm.
- overload: more calls of plain functions than threads; the important ones get more of it.
- faults: pauses, crashes, drains, cuts and lost frames, as in the profile `chaos`.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, Literal, get_args

import zmesh
import zmesh.testing
from zmesh._core.balance import POLICIES
from zmesh.balance import Candidate
from zmesh.testing import Host, Link, Mesh

from . import calls
from .calls import Work
from .faults import Faults
from .judge import judge_rest
from .ledger import Ledger
from .run import Result, Run, play
from .watch import Watch

__all__ = ["MOODS", "run"]

Mood = Literal["calm", "ill", "refusals", "overload", "faults"]
MOODS: Final[tuple[Mood, ...]] = get_args(Mood)

CLIENTS: Final = 2
SECONDS: Final = 3.0  # of calls in a mood
AFTER: Final = 3.0  # of calls after it: pauses end, probes go out
RATE: Final[dict[Mood, float]] = {"calm": 25.0, "ill": 25.0, "refusals": 60.0, "overload": 0.0, "faults": 15.0}
RATE_AFTER: Final = 15.0
OVERLOAD: Final = 2.0  # times what the threads can do
PLAIN: Final = 0.04  # seconds that a plain function takes
SICKNESSES: Final = ("unavailable", "raises", "hangs", "slow")
IMPORTANT, UNIMPORTANT = 9, 1
OVERLOADED: Final = 0.7  # of the unimportant calls answered: below that, being important must have helped,
ADVANTAGE: Final = 0.1  # by at least so much; it does by 0.3 and more


class Clinic(Work):
    """Work whose server can fall ill."""

    def __init__(self, ledger: Ledger, place: str, sickness: dict[str, str]) -> None:
        super().__init__(ledger, place)
        self._sickness = sickness
        self._name = place.partition("#")[0]

    @zmesh.rpc(idempotent=True)
    async def treat(self, token: str, seconds: float) -> str:
        answer = self._ran(token)
        match self._sickness.get(self._name):
            case "unavailable":
                self._ledger.raised.add(token)
                raise zmesh.Unavailable("no beds")
            case "raises":
                raise RuntimeError("dropped it")
            case "hangs":
                await asyncio.sleep(60.0)
            case "slow":
                seconds += 0.2
        await asyncio.sleep(seconds)
        return answer

    @zmesh.rpc(idempotent=True)
    @zmesh.testing.takes(PLAIN)
    def admit(self, token: str, seconds: float) -> str:
        return self._ran(token)


class Own:
    """A policy of a user's: the next in the alphabet that has the fewest calls."""

    def choose(self, candidates: Sequence[Candidate], method: str, now: float) -> int:
        return min(range(len(candidates)), key=lambda at: (candidates[at].in_flight, candidates[at].name))


def run(seed: int, *, keep_trace: bool = False) -> Result:
    """Run one seed of this mix."""
    mood = mood_of(seed)
    return play(seed, mood, lambda mesh: PolicyRun(mesh, mood), Link(), keep_trace=keep_trace)


def mood_of(seed: int) -> Mood:
    return MOODS[seed % len(MOODS)]


class PolicyRun(Run):
    """One seed of this mix."""

    def __init__(self, mesh: Mesh, mood: Mood) -> None:
        super().__init__(mesh, "chaos")  # which promises least: what this mix promises, it judges itself
        self.mood = mood
        self.sickness: dict[str, str] = {}
        self.watches: list[Watch] = []
        self.policies: dict[str, str] = {}  # of each host
        self.count = {"overload": 2, "faults": 4}.get(mood) or self.random.randint(2, 6)
        self.answered: dict[int, Counter[bool]] = {IMPORTANT: Counter(), UNIMPORTANT: Counter()}  # by priority
        self.by_key: dict[str, set[str]] = {}
        self.pressing = True

    # -- hosts

    def services(self, name: str) -> list[zmesh.Service]:
        place = self.ledger.starts(name)
        return [Clinic(self.ledger, place, self.sickness)] if name.startswith("server") else []

    def config(self) -> zmesh.Config:
        return zmesh.Config(timeout=2.0, drain_grace=2.0, max_calls=2 if self.mood == "refusals" else 10_000)

    def _policy(self, name: str) -> Any:
        chosen = self.random.choice([*POLICIES, "own"])
        self.policies[name] = chosen
        return Own() if chosen == "own" else chosen

    async def start_all(self) -> None:
        for number in range(self.count + CLIENTS):
            server = number < self.count
            name = f"server-{number}" if server else f"client-{number - self.count}"
            host = await self.mesh.start(
                *self.services(name),
                name=name,
                config=self.config(),
                balance=self._policy(name),
                capacity=self.random.choice((1, 2, 4)),
                threads=1,
            )
            (self.servers if server else self.clients).append(host)
            self.watches.append(Watch(self.ledger, host))
        for client in self.clients:
            await client.run(client.node.discover(expect=self.count))
            self.let_call(client)

    async def restart(self, host: Host) -> None:
        await host.restart(*self.services(host.name), config=self.config())
        self.watches.append(Watch(self.ledger, host))
        if host in self.clients:
            self.let_call(host)

    # -- calls

    def let_call(self, host: Host) -> None:
        self.spawn(host.run(self._call_steadily(host)))

    async def _call_steadily(self, host: Host) -> None:
        chooser = random.Random(self.random.random())
        rate = RATE[self.mood] or OVERLOAD * self.count / PLAIN / CLIENTS
        open_calls: set[asyncio.Task[Any]] = set()
        while self.calling:
            await asyncio.sleep(chooser.expovariate(rate if self.pressing else RATE_AFTER))
            task = asyncio.create_task(self._call(host, chooser))
            open_calls.add(task)
            task.add_done_callback(open_calls.discard)
        while open_calls:
            await asyncio.wait(list(open_calls))

    async def _call(self, host: Host, chooser: random.Random) -> None:
        options: dict[str, Any] = {}
        method, seconds, timeout = chooser.choice(("treat", "treat", "once", "many")), chooser.uniform(0.0, 0.03), 1.0
        priority = key = None
        if self.mood == "overload":
            method, timeout = "admit", 0.5
            priority = options["priority"] = chooser.choice((IMPORTANT, UNIMPORTANT))
        elif self.mood == "refusals":
            method, seconds, timeout = chooser.choice(("once", "many")), chooser.uniform(0.05, 0.15), 0.5
        elif method != "once" and chooser.random() < 0.3:
            key = options["key"] = f"key-{chooser.randrange(5)}"
        if method in ("treat", "many") and self.mood != "refusals" and chooser.random() < 0.7:
            options["hedge_after"] = chooser.choice((0.005, 0.05, "p95"))
        pressed = self.pressing
        record = await calls.call(self.ledger, host, method, seconds, timeout, service=Clinic, **options)
        if priority is not None and pressed:
            self.answered[priority][record.answer is not None] += 1
        if key is not None and "hedge_after" not in options and record.answer is not None:
            self.by_key.setdefault(key, set()).add(str(record.answer).partition(" by ")[2])

    # -- the whole

    async def main(self) -> None:
        await self.start_all()
        await asyncio.sleep(0.5)
        if self.mood == "faults":
            await Faults(self).chaos(SECONDS / 2)
        elif self.mood == "ill":
            await self._fall_ill()
        else:
            await asyncio.sleep(SECONDS)
        self.pressing = False
        if self.mood != "calm":
            await asyncio.sleep(AFTER)
        await self._judge_recovery()
        self.calling = False
        while self.tasks:
            await asyncio.wait(list(self.tasks))
        self.mesh.heal()
        await asyncio.sleep(0.5)
        judge_rest(self.ledger, self.hosts)
        self.judge()
        self._judge_mood()

    async def _fall_ill(self) -> None:
        for server in self.random.sample(self.servers, self.random.randint(1, self.count)):
            self.sickness[server.name] = self.random.choice(SICKNESSES)
        await asyncio.sleep(SECONDS)
        self.sickness.clear()

    # -- what must be true

    async def _judge_recovery(self) -> None:
        if self.mood != "faults":  # there some may have started a moment ago
            for watch, host in zip(self.watches[self.count :], self.clients, strict=True):
                await host.run(watch.judge_recovery())

    def _judge_mood(self) -> None:
        for watch in self.watches:
            watch.judge_budgets(retries=self.mood in ("refusals", "overload"))
        if self.mood == "calm":
            self._judge_calm()
        if self.mood == "overload":
            self._judge_priorities()

    def _judge_calm(self) -> None:
        for record in self.ledger.calls:
            if record.answer is None:
                self.ledger.complain("failed though all was calm", record)
        for key, places in self.by_key.items():
            if len(places) > 2:  # one, and where that had too much to do at the moment the next
                self.ledger.complain(f"calls with one key went to {sorted(places)}", key)
        for watch, host in zip(self.watches[self.count :], self.clients, strict=True):
            watch.judge_calm()
            if self.policies[host.name] == "round_robin":
                self._judge_turns(watch)

    def _judge_turns(self, watch: Watch) -> None:
        """Of a method that is never hedged: a hedge takes a turn, too."""
        turns = Counter(member.name for call, member in watch.chosen if call.target.path == "Clinic.once")
        counts = [turns[server.name] for server in self.servers]
        if max(counts) - min(counts) > 1:
            watch.complain("does not go round", dict(turns))

    def _judge_priorities(self) -> None:
        shares = {}
        for priority, counts in self.answered.items():
            if counts.total() < 50:
                return
            shares[priority] = counts[True] / counts.total()
        if shares[UNIMPORTANT] < OVERLOADED and shares[IMPORTANT] < shares[UNIMPORTANT] + ADVANTAGE:
            self.ledger.complain("the important calls did not fare better", shares)
