"""What is played: every scenario with the policies that are compared in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

from zmesh._core.admission import PRIORITIES, Admission
from zmesh.errors import Code

from .play import SERVICE_TIME, Scenario, Stage
from .server import Server
from .world import Call

__all__ = ["PLAYED", "SCENARIOS"]

Plan = Callable[[Stage], None]

ALL: Final = ("least_loaded", "omniscient", "round_robin", "random", "local_two", "reported_two", "peak_ewma")
UNEVEN: Final = ("least_loaded", "omniscient", "local_two", "reported_two", "peak_ewma", "utilization")
ABLATED: Final = (
    "least_loaded", "2_drawn", "4_drawn", "3_and_1", "all", "believing", "unbelieving", "fresh_0.3", "fresh_3",
    "no_recency", "recency_1", "load_only", "hot_cold_0.6", "hot_cold_0.84", "latency_only", "load_squared",
)  # fmt: skip

SCENARIOS: Final[dict[str, Scenario]] = {}
PLAYED: Final[dict[str, tuple[str, ...]]] = {}  # scenario to policies


def _add(scenario: Scenario, policies: tuple[str, ...]) -> None:
    SCENARIOS[scenario.name] = scenario
    PLAYED[scenario.name] = policies


# -- equal, and lastingly unequal servers

for load in (0.7, 0.9):
    for callers in (1, 4, 64):
        title = f"10 equal servers, load {load}, callers: {callers}"
        _add(Scenario(f"equal_{load}_{callers}", title, [1.0] * 10, load, callers=callers), ALL)

for callers in (1, 16):
    title = f"10 servers, 5 of them 2 times slower, load 0.9, callers: {callers}"
    _add(Scenario(f"half_2x_{callers}", title, [1.0, 0.5] * 5, 0.9, callers=callers), UNEVEN)
_add(
    Scenario("half_2x_of_40", "40 servers, 20 of them 2 times slower, load 0.9, one caller", [1.0, 0.5] * 20, 0.9),
    UNEVEN,
)
title = "10 servers, 5 of them 10 times slower, load 0.15, one caller"
_add(
    Scenario("half_10x_light", title, [1.0, 0.1] * 5, 0.15, calls=10_000),
    ("least_loaded", "omniscient", "round_robin", "local_two", "peak_ewma"),
)
for callers in (1, 8):
    title = f"10 servers, 5 of them 10 times slower, load 0.5, callers: {callers}"
    _add(
        Scenario(f"half_10x_{callers}", title, [1.0, 0.1] * 5, 0.5, callers=callers, calls=30_000),
        ("least_loaded", "omniscient", "local_two", "peak_ewma"),
    )


# -- antagonists

ALLOCATED: Final = 0.5  # of a machine
BESIDE: Final = 0.4  # what an antagonist leaves of it


def _antagonists(stage: Stage) -> None:
    """Each machine is shared for half of each four seconds, one after the other."""
    period = 4.0

    def come(server: Server) -> None:
        server.speed = BESIDE
        stage.world.at(stage.world.now + period / 2.0, go, server)

    def go(server: Server) -> None:
        server.speed = 1.0
        stage.world.at(stage.world.now + period / 2.0, come, server)

    for number, server in enumerate(stage.servers):
        stage.world.at(number * period / len(stage.servers), come, server)


for load in (0.7, 0.9, 1.27):
    title = (
        f"4 servers, antagonists that take 60 % of one after the other, load {load} of what is allocated, callers: 4"
    )
    scenario = Scenario(
        f"antagonists_{load}", title, [1.0] * 4, load * ALLOCATED, callers=4, timeout=5.0, happens=_antagonists
    )
    _add(scenario, ("least_loaded", "omniscient", "round_robin", "reported_two", "utilization", "peak_ewma"))


# -- one that is ill


def _stall(stage: Stage) -> None:
    ill = stage.servers[0]
    third = (stage.until - stage.scenario.warm_up) / 4.0

    def stall(seconds: float) -> None:
        ill.extra = seconds

    stage.world.at(stage.scenario.warm_up + third, stall, 2.0)
    stage.world.at(stage.scenario.warm_up + 3.0 * third, stall, 0.0)


for name, hedge_after in (("stall", 0.0), ("stall_hedged", 0.05)):
    title = "11 servers, 1,000 calls/s, one takes 2 s longer for half of the time; timeout 1 s" + (
        ", hedged after 50 ms" if hedge_after else ""
    )
    scenario = Scenario(
        name, title, [1.0] * 11, rate=1000.0, workers=16, calls=60_000, timeout=1.0, hedge_after=hedge_after,
        happens=_stall,
    )  # fmt: skip
    _add(scenario, ("least_loaded",) if hedge_after else ("least_loaded", "round_robin", "local_two", "peak_ewma"))


def _fails(code: Code) -> Plan:
    """From 5 s on, one answers everything with an error, at once. Counts what it gets in the next half second, before
    the first probe, and its share of ten seconds."""

    def plan(stage: Stage) -> None:
        ill = stage.servers[0]
        before = 0

        def fail(_: None) -> None:
            nonlocal before
            ill.error, before = code, ill.served

        def early(_: None) -> None:
            gained = ill.served - before
            stage.outcome.notes["early"] = gained / len(stage.callers)
            stage.outcome.notes["early_share"] = gained / (0.5 * stage.rate / len(stage.servers))

        def late(_: None) -> None:
            stage.outcome.notes["share"] = (ill.served - before) / (10.0 * stage.rate / len(stage.servers))

        stage.world.at(5.0, fail)
        stage.world.at(5.5, early)
        stage.world.at(15.0, late)

    return plan


for name, code in (("unavailable", Code.UNAVAILABLE), ("raising", Code.INTERNAL)):
    title = f"10 servers, load 0.7, callers: 4; one answers {code.name} at once"
    scenario = Scenario(
        f"fails_{name}", title, [1.0] * 10, 0.7, callers=4, calls=40_000, timeout=1.0, happens=_fails(code)
    )
    _add(scenario, ("least_loaded", "local_two"))


# -- many at once


def _newcomer(stage: Stage) -> None:
    """All callers come at once in the beginning; after 12 s one more server, which each meets within 0.1 s. Its share
    of each half second after that, of what would be fair."""
    world, random = stage.world, stage.world.random("meetings")
    new = Server(world, 1000)

    def meet(number: int) -> None:
        stage.callers[number].meet(new)

    before = Counter[str]()
    fair = 1.0 / (len(stage.servers) + 1)

    def look(_: None) -> None:
        total = new.served + sum(server.served for server in stage.servers)
        gained, of = new.served - before["new"], total - before["all"]
        before["new"], before["all"] = new.served, total
        stage.outcome.notes["share"] = max(stage.outcome.notes.get("share", 0.0), gained / of / fair)
        stage.outcome.notes["last"] = gained / of / fair
        world.at(world.now + 0.5, look)

    def arrive(_: None) -> None:
        before["all"] = sum(server.served for server in stage.servers)
        world.at(world.now + 0.5, look)

    world.at(12.0, arrive)
    for number in range(len(stage.callers)):
        world.at(12.0 + 0.1 * random.random(), meet, number)
    stage.finish.append(
        lambda: stage.outcome.notes.update(most=new.most / max(server.most for server in stage.servers))
    )


title = "10 servers, load 0.7, 200 callers that come at once; then a new server"
_add(
    Scenario("herd", title, [1.0] * 10, 0.7, callers=200, calls=80_000, happens=_newcomer),
    ("least_loaded", "reported_two"),
)


def _most_ill(stage: Stage) -> None:
    for server in stage.servers[:6]:
        server.error = Code.UNAVAILABLE


title = "10 servers, 6 of them answer UNAVAILABLE at once; offered: 0.95 of what the other 4 can do, callers: 4"
_add(
    Scenario(
        "unhealthy", title, [1.0] * 10, 0.38, callers=4, calls=20_000, warm_up=5.0, timeout=1.0, happens=_most_ill
    ),
    ("least_loaded", "local_two"),
)

title = "1,000 servers with one worker each, 1,000 callers with links to 20, load 0.7"
_add(
    Scenario("thousand", title, [1.0] * 1000, 0.7, callers=1000, workers=1, calls=200_000, warm_up=1.0, subset=20),
    ("least_loaded",),
)


# -- too much


def _admission(stage: Stage) -> None:
    for server in stage.servers:
        server.admission = Admission(server.workers)


def _spike(stage: Stage) -> None:
    """Five times the capacity for 5 s, then 0.8: when the last call failed, counted from the end of the spike."""
    _admission(stage)
    normal, over = stage.rate, 10.0

    def rate(factor: float) -> None:
        stage.rate = normal * factor

    def ended(call: Call, well: bool) -> None:
        if not well and call.started > over:
            stage.outcome.notes["recovery"] = call.started - over

    stage.outcome.notes["recovery"] = 0.0
    stage.ended.append(ended)
    stage.world.at(5.0, rate, 5.0 / 0.8)
    stage.world.at(over, rate, 1.0)


for factor in (1.3, 2.0, 5.0):
    title = f"4 servers, {factor:g} times what they can do, timeout 1 s, callers: 8"
    scenario = Scenario(
        f"overload_{factor:g}", title, [1.0] * 4, factor, callers=8, calls=int(16_000 * factor), warm_up=5.0,
        timeout=1.0, happens=_admission,
    )  # fmt: skip
    _add(scenario, ("least_loaded",))
title = "the same at 2 times, without admission"
_add(
    Scenario("no_admission", title, [1.0] * 4, 2.0, callers=8, calls=32_000, warm_up=5.0, timeout=1.0),
    ("least_loaded",),
)
title = "4 servers, load 0.8, 5 times their capacity for 5 s, timeout 1 s"
_add(Scenario("spike", title, [1.0] * 4, 0.8, callers=8, calls=20_000, timeout=1.0, happens=_spike), ("least_loaded",))


def _tasks(inherited: bool) -> Plan:
    """A task is two calls, one after the other; what arrives is the first. It is done when both are answered. A rank is
    drawn for each task, with any priority, and its second call inherits it; or, for comparison, for each call."""

    def plan(stage: Stage) -> None:
        _admission(stage)
        world, warm_up = stage.world, stage.scenario.warm_up
        work, priority = world.random("second calls").expovariate, world.random("priorities").randrange
        seconds: dict[Call, float] = {}  # to when their tasks began
        done = 0

        def ended(call: Call, well: bool) -> None:
            nonlocal done
            began = seconds.pop(call, None)
            if began is not None:
                done += well and began >= warm_up
            elif well:
                world.at(world.now, follow, call)

        def follow(call: Call) -> None:
            caller = call.caller
            rank = call.rank if inherited else caller.rank(priority(PRIORITIES))
            seconds[caller.call(work(1.0 / SERVICE_TIME), rank)] = call.started

        def share() -> None:
            stage.outcome.notes["tasks"] = done / stage.outcome.seconds / (stage.scenario.capacity / 2.0)

        for caller in stage.callers:
            caller.first_rank = lambda caller=caller: caller.rank(priority(PRIORITIES))
        stage.ended.append(ended)
        stage.finish.append(share)

    return plan


for factor in (2.0, 5.0):
    for name, how in (("tasks", "inherited"), ("tasks_by_lot", "drawn for each call")):
        title = f"4 servers, {factor:g} times the tasks of two calls that they can do, timeout 1 s, priorities {how}"
        scenario = Scenario(
            f"{name}_{factor:g}", title, [1.0] * 4, factor / 2.0, callers=8, calls=int(8_000 * factor), warm_up=5.0,
            timeout=1.0, happens=_tasks(how == "inherited"),
        )  # fmt: skip
        _add(scenario, ("least_loaded",))


def _storm(stage: Stage) -> None:
    for server in stage.servers:
        server.error, server.runs = Code.RESOURCE_EXHAUSTED, False


_add(
    Scenario("storm", "10 servers that refuse every call, load 1, callers: 4", [1.0] * 10, 1.0, callers=4,
             calls=20_000, timeout=1.0, happens=_storm),
    ("least_loaded",),
)  # fmt: skip


def _rolling(stage: Stage) -> None:
    """One after the other leaves, and its successor comes a second later."""
    world = stage.world

    def leave(server: Server) -> None:
        for caller in stage.callers:
            caller.leave(server)
        successor = Server(world, server.number + 100, server.workers, server.speed)
        world.at(world.now + 1.0, come, successor)

    def come(server: Server) -> None:
        for caller in stage.callers:
            caller.meet(server)

    for number, server in enumerate(stage.servers):
        world.at(3.0 + 2.0 * number, leave, server)


title = "8 servers at load 0.7, restarted one after the other, callers: 4"
_add(
    Scenario("rolling", title, [1.0] * 8, 0.7, callers=4, calls=44_000, timeout=1.0, happens=_rolling),
    ("least_loaded",),
)


# -- alternatives to the default, and to its constants

for count in (4, 8):
    title = f"{count} servers, half of them 2 times slower, load 0.9, callers: 4"
    _add(
        Scenario(f"few_{count}", title, [1.0, 0.5] * (count // 2), 0.9, callers=4),
        ("least_loaded", "hot_cold_0.6", "hot_cold_0.84", "load_only", "latency_only"),
    )
for name in ("equal_0.9_64", "half_2x_16", "half_10x_8", "antagonists_0.9"):
    like = SCENARIOS[name]
    ablation = Scenario(
        f"ablation_{name}", like.title, like.speeds, like.load, callers=like.callers, calls=8_000, happens=like.happens
    )
    _add(ablation, ABLATED)
for age in (0.01, 0.05, 0.25, 1.0, 2.0):
    title = f"10 equal servers, load 0.9, callers: 64, a report each {age:g} s"
    _add(
        Scenario(f"reports_{age:g}", title, [1.0] * 10, 0.9, callers=64, calls=10_000, heartbeat=age, report_every=age),
        ("least_loaded", "believing"),
    )

FAST: Final = 20.0 * SERVICE_TIME  # twenty fast service times
