"""Plays one scenario with one policy and one seed; what came of it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from zmesh._core.subset import nearest

from .baselines import make
from .world import Call, Caller, Server, World

__all__ = ["SERVICE_TIME", "Outcome", "Scenario", "Stage", "play"]

SERVICE_TIME: Final = 0.01  # seconds, mean; exponential, so that its deviation is as large


@dataclass(frozen=True)
class Scenario:
    """Open-loop Poisson arrivals of calls: some callers, some servers.

    load: of what all servers together can do; or else rate, in calls/s. happens: plans what goes wrong. subset: how
    many servers each caller has links to (0: all). notice: told of each call that ends, beside the usual counts.
    """

    name: str
    title: str
    speeds: Sequence[float]
    load: float = 0.0
    rate: float = 0.0
    callers: int = 1
    workers: int = 4
    calls: int = 16_000
    warm_up: float = 2.0
    timeout: float = 0.0
    hedge_after: float = 0.0
    subset: int = 0
    heartbeat: float = 0.25
    report_every: float = 0.005
    happens: Callable[[Stage], None] | None = None

    @property
    def capacity(self) -> float:
        """Calls/s that all servers can do together."""
        return sum(self.speeds) * self.workers / SERVICE_TIME


@dataclass
class Outcome:
    """What one run showed, after its warm-up. latencies: of calls that were answered, sorted; seconds."""

    latencies: list[float] = field(default_factory=list)
    failed: int = 0
    calls: int = 0
    attempts: int = 0
    sent: int = 0  # calls, also of the warm-up, as attempts are
    seconds: float = 0.0
    served: list[int] = field(default_factory=list)
    most: list[int] = field(default_factory=list)
    notes: dict[str, float] = field(default_factory=dict)  # what a scenario measures of its own

    def percentile(self, percent: float) -> float:
        """Seconds; infinite where nothing was answered."""
        if not self.latencies:
            return float("inf")
        return self.latencies[min(int(len(self.latencies) * percent / 100.0), len(self.latencies) - 1)]

    def beyond(self, seconds: float) -> float:
        """The share of the answered calls that took longer."""
        return sum(1 for latency in self.latencies if latency > seconds) / max(len(self.latencies), 1)


@dataclass
class Stage:
    """What a scenario may change and look at while it is played."""

    scenario: Scenario
    world: World
    servers: list[Server]
    callers: list[Caller]
    outcome: Outcome
    rate: float
    until: float
    finish: list[Callable[[], None]] = field(default_factory=list)  # looked at in the end
    ended: list[Callable[[Call, bool], None]] = field(default_factory=list)  # told of each call


def play(scenario: Scenario, policy: str, seed: int) -> Outcome:
    """One run. Arrivals and the work of each call are the same for all policies."""
    world = World(seed)
    outcome = Outcome()
    latencies, warm = outcome.latencies, scenario.warm_up
    also: list[Callable[[Call, bool], None]] = []

    def ended(call: Call, well: bool) -> None:
        if call.started >= warm:
            outcome.calls += 1
            if well:
                latencies.append(world.now - call.started)
            else:
                outcome.failed += 1
        for each in also:
            each(call, well)

    servers = [Server(world, number, scenario.workers, speed) for number, speed in enumerate(scenario.speeds)]
    callers = [Caller(world, make(policy, world.random(f"policy {n}")), ended) for n in range(scenario.callers)]
    phases = world.random("phases")
    for number, caller in enumerate(callers):
        caller.timeout, caller.hedge_after = scenario.timeout, scenario.hedge_after
        caller.heartbeat, caller.report_every = scenario.heartbeat, scenario.report_every
        for server in _known(servers, scenario.subset, number, world):
            caller.meet(server)
        caller.start(phases.random() * caller.heartbeat)
    rate = scenario.rate or scenario.load * scenario.capacity
    until = warm + scenario.calls / rate
    stage = Stage(scenario, world, servers, callers, outcome, rate, until, ended=also)
    if scenario.happens is not None:
        scenario.happens(stage)

    pauses, works, who = world.random("arrivals").expovariate, world.random("work").expovariate, world.random("callers")
    most, mean = len(callers), 1.0 / SERVICE_TIME

    def arrive() -> None:
        callers[int(who.random() * most)].call(works(mean))

    gc.disable()  # what is not needed any more is freed by its count; looking for circles takes a fifth of the time
    try:
        world.run(lambda: pauses(stage.rate), arrive, until)
    finally:
        gc.enable()
    latencies.sort()
    outcome.seconds = until - warm
    outcome.attempts = sum(caller.attempts for caller in callers)
    outcome.sent = sum(caller.budget.calls for caller in callers)
    outcome.served = [server.served for server in servers]
    outcome.most = [server.most for server in servers]
    for look in stage.finish:
        look()
    return outcome


def _known(servers: list[Server], subset: int, number: int, world: World) -> list[Server]:
    """The servers that a caller has links to."""
    if not subset:
        return servers
    own = world.random(f"caller {number}").randbytes(16)
    by_id = {server.hello.id: server for server in servers}
    return [by_id[id] for id in nearest(own, by_id, subset)]
