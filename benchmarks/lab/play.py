"""Plays one scenario with one policy and one seed; what came of it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from .baselines import make
from .world import Call, Caller, Server, World

__all__ = ["Outcome", "Scenario", "play"]

SERVICE_TIME: Final = 0.01  # seconds, mean; exponential, so that its deviation is as large


@dataclass(frozen=True)
class Scenario:
    """Open-loop Poisson arrivals of calls, at some servers, by some callers.

    load: of what all servers together can do. speeds: of each server. happens: given the world, the servers and the
    callers, plans what goes wrong. subset: how many servers each caller knows (0: all).
    """

    name: str
    title: str
    speeds: Sequence[float]
    load: float
    callers: int = 1
    workers: int = 4
    calls: int = 100_000
    warm_up: float = 2.0
    timeout: float = 0.0
    hedge_after: float = 0.0
    rate: float = 0.0  # calls/s, instead of load
    subset: int = 0
    happens: Callable[[World, list[Server], list[Caller]], None] | None = None

    @property
    def capacity(self) -> float:
        """Calls/s that all servers can do together."""
        return sum(self.speeds) * self.workers / SERVICE_TIME


@dataclass
class Outcome:
    """What one run showed. Latencies are of calls that were answered, sorted."""

    latencies: list[float] = field(default_factory=list)
    failed: int = 0
    calls: int = 0
    attempts: int = 0
    served: list[int] = field(default_factory=list)
    most: list[int] = field(default_factory=list)

    def percentile(self, percent: float) -> float:
        """Seconds; infinite where nothing was answered."""
        if not self.latencies:
            return float("inf")
        return self.latencies[min(int(len(self.latencies) * percent / 100.0), len(self.latencies) - 1)]


def play(scenario: Scenario, policy: str, seed: int) -> Outcome:
    """One run. Arrivals and the work of each call are the same for all policies."""
    world = World(seed)
    outcome = Outcome()
    latencies, warm = outcome.latencies, scenario.warm_up

    def ended(call: Call, well: bool) -> None:
        if call.started >= warm:
            outcome.calls += 1
            if well:
                latencies.append(world.now - call.started)
            else:
                outcome.failed += 1

    servers = [Server(world, number, scenario.workers, speed) for number, speed in enumerate(scenario.speeds)]
    callers = [Caller(world, make(policy, world.random(f"policy {n}")), ended) for n in range(scenario.callers)]
    phases = world.random("phases")
    for caller in callers:
        caller.timeout, caller.hedge_after = scenario.timeout, scenario.hedge_after
        for server in servers:
            caller.meet(server)
        caller.start(phases.random() * caller.heartbeat)
    if scenario.happens is not None:
        scenario.happens(world, servers, callers)

    pauses, works, who = world.random("arrivals").expovariate, world.random("work").expovariate, world.random("callers")
    rate, most = scenario.rate or scenario.load * scenario.capacity, len(callers)
    mean = 1.0 / SERVICE_TIME

    def arrive() -> None:
        callers[int(who.random() * most)].call(works(mean))

    gc.disable()  # what is not needed any more is freed by its count; looking for circles takes a fifth of the time
    try:
        world.run(lambda: pauses(rate), arrive, warm + scenario.calls / rate)
    finally:
        gc.enable()
    latencies.sort()
    outcome.attempts = sum(caller.attempts for caller in callers)
    outcome.served = [server.served for server in servers]
    outcome.most = [server.most for server in servers]
    return outcome
