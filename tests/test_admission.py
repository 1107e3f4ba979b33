"""What a node refuses when it has too much to do, and that it refuses nothing otherwise."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest

from zmesh._core.admission import DEFAULT_PRIORITY, LOTS, PRIORITIES, SHORTEST, Admission, rank_of

from .queueing import Job, Station

WORKERS, MEAN = 4, 0.01  # 400 calls/s


@dataclass
class Run:
    """An open loop of calls at one station, and how they ended."""

    load: float
    timeout: float = 1.0
    admit: bool = True
    seconds: float = 20.0
    seed: int = 1
    ended: Counter[str] = field(default_factory=Counter)
    per_second: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        admission = Admission(WORKERS) if self.admit else None
        self.station = Station(WORKERS, MEAN, self.seed, admission)
        self.station.poisson(lambda now: self.load * self.station.capacity, self.seconds, self.arrive)
        self.station.run(self.seconds)

    def arrive(self) -> None:
        self.station.call(self.timeout, self.done)

    def done(self, job: Job, how: str, now: float) -> None:
        self.ended[how] += 1
        if how == "good":
            self.per_second[int(now)] += 1

    @property
    def goodput(self) -> float:
        return self.ended["good"] / self.station.capacity / self.seconds


# -- harmless


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("load", [0.1, 0.5, 0.9])
def test_a_node_that_is_not_saturated_refuses_nothing(load: float, seed: int) -> None:
    run = Run(load, seed=seed)
    assert set(run.ended) == {"good"}
    assert run.station.refused == 0


@pytest.mark.parametrize("in_flight", [16, 256, 900])
def test_callers_that_wait_for_their_answers_may_keep_it_as_busy_as_they_like(in_flight: int) -> None:
    admission = Admission(WORKERS)
    station, ended, waits = Station(WORKERS, MEAN, 1, admission), Counter[str](), []

    def again(job: Job, how: str, now: float) -> None:
        ended[how] += 1
        waits.append(now - job.arrived)
        station.call(10.0, again)

    for _ in range(in_flight):
        station.call(10.0, again)
    station.run(60.0)
    assert set(ended) == {"good"}
    assert max(waits) < 2 * in_flight * MEAN / WORKERS + 0.2  # in order: nobody starves


def test_a_day_s_work_at_once_is_taken() -> None:
    admission = Admission(WORKERS)
    station, ended = Station(WORKERS, MEAN, 1, admission), Counter[str]()
    for _ in range(3_000):  # 7.5 s of work
        station.call(10.0, lambda job, how, now: ended.update([how]))
    station.run(20.0)
    assert ended == {"good": 3_000}


def test_a_short_queue_on_a_loop_is_not_even_looked_at() -> None:
    admission = Admission()
    assert admission.free == SHORTEST
    assert admission.level == 0


def test_of_a_node_that_is_fast_long_queues_are_not_looked_at_either() -> None:
    admission, now = Admission(), 0.0
    for _ in range(20_000):  # 20,000 calls/s, 200 in the queue
        now += 0.00005
        admission.begun += 1
        assert admission.admit(200, 10.0, rank_of(5, 0), now) is None
    assert admission.free == pytest.approx(20_000 * 5.0 * 0.1, rel=0.01)


def test_before_the_queue_has_stood_for_a_while_nothing_is_known_and_all_is_admitted() -> None:
    admission = Admission(WORKERS)
    assert all(admission.admit(n, 0.001, 0, n / 10_000) is None for n in range(1_000))


def test_slow_handlers_with_patient_callers_queue_as_ever() -> None:
    """Two workers, half a minute a call, nothing leaves the queue for long: that is no sign of overload."""
    admission = Admission(2)
    for tenth in range(290):
        assert admission.admit(2 + tenth // 100, 600.0, 640, tenth / 10) is None


def test_a_node_of_which_nothing_comes_any_more_refuses() -> None:
    admission = Admission(2)
    refusals = [admission.admit(20, 10.0, 640, second) for second in range(12)]
    assert refusals[0] is None
    assert refusals[-1] is not None
    assert refusals[-1].reason == "1 of 20 waiting calls take 11 s, more than this one has"


# -- overload


@pytest.mark.parametrize("timeout", [0.2, 1.0, 10.0])
@pytest.mark.parametrize(("load", "least"), [(1.3, 0.9), (2.0, 0.9), (5.0, 0.85)])
def test_goodput_under_overload(load: float, least: float, timeout: float) -> None:
    assert Run(load, timeout).goodput >= least


def test_without_admission_goodput_collapses() -> None:
    assert Run(2.0, admit=False).goodput < 0.5


def test_after_the_beginning_hardly_a_call_is_lost_in_the_queue() -> None:
    run = Run(2.0)
    assert run.ended["expired"] + run.ended["late"] < 0.01 * run.ended["good"]
    assert min(run.per_second[second] for second in range(20)) > 0.8 * run.station.capacity


def test_it_recovers_within_two_seconds_after_a_spike() -> None:
    admission = Admission(WORKERS)
    station, refused, good = Station(WORKERS, MEAN, 1, admission), Counter[int](), Counter[int]()

    def done(job: Job, how: str, now: float) -> None:
        (good if how == "good" else refused)[int(job.arrived)] += 1

    spike = 5.0, 15.0
    station.poisson(
        lambda now: (5.0 if spike[0] <= now < spike[1] else 0.5) * station.capacity,
        30.0,
        lambda: station.call(1.0, done),
    )
    station.run(31.0)
    assert sum(refused[second] for second in range(5, 15)) > 0.7 * 5 * 10 * station.capacity
    assert not any(refused[second] for second in range(17, 30))
    assert admission.level == 0


def test_a_limit_in_seconds_may_be_set() -> None:
    admission = Admission(WORKERS, target=0.02)
    station, waits = Station(WORKERS, MEAN, 1, admission), []

    def done(job: Job, how: str, now: float) -> None:
        if how == "good" and job.arrived > 2.0:
            waits.append(now - job.arrived)

    station.poisson(lambda now: 2 * station.capacity, 20.0, lambda: station.call(10.0, done))
    station.run(20.0)
    waits.sort()
    assert waits[len(waits) // 2] < 0.02 + 2 * MEAN
    assert len(waits) > 0.8 * station.capacity * 18


# -- who goes first


def test_the_less_important_are_shed_first() -> None:
    admission = Admission(WORKERS)
    station, ended = Station(WORKERS, MEAN, 1, admission), Counter[tuple[int, str]]()

    def arrive() -> None:
        priority = station.rng.choice([2, 5, 8])
        station.call(1.0, lambda job, how, now: ended.update([(priority, how)]), priority)

    station.poisson(lambda now: 2 * station.capacity, 20.0, arrive)  # a third of that each: 0.67 of the capacity
    station.run(20.0)
    share = {
        priority: ended[priority, "good"] / sum(n for (p, _), n in ended.items() if p == priority)
        for priority in (2, 5, 8)
    }
    assert share[8] > 0.95
    assert 0.3 < share[5] < 0.75  # what is left: half of them
    assert share[2] < 0.1


def test_of_tasks_of_two_calls_as_many_come_through_as_the_node_can_do() -> None:
    """At twice the load: 0.5 of the tasks could; shedding at random would leave 0.25 (balancing: DAGOR's figure)."""
    load = 2.0
    admission = Admission(WORKERS)
    station, tasks, through = Station(WORKERS, MEAN, 1, admission), Counter[str](), 0

    def arrive() -> None:
        tasks["all"] += 1
        rank = rank_of(DEFAULT_PRIORITY, station.rng.randrange(LOTS))
        end = station.now + 1.0

        def first(job: Job, how: str, now: float) -> None:
            if how == "good":
                station.call(end - now, second, rank=rank)

        def second(job: Job, how: str, now: float) -> None:
            if how == "good":
                tasks["through"] += 1

        station.call(1.0, first, rank=rank)

    station.poisson(lambda now: load * station.capacity / 2, 30.0, arrive)
    station.run(31.0)
    through = tasks["through"] / tasks["all"]
    assert through >= 0.8 / load


def test_callers_may_hold_back_what_is_below_the_level() -> None:
    """What the node does not see any more must not make it believe that there is nothing."""
    admission = Admission(WORKERS)
    station, ended, levels = Station(WORKERS, MEAN, 1, admission), Counter[str](), []
    told = [0]

    def tell() -> None:
        told[0] = admission.level
        levels.append(admission.level)
        station.at(station.now + 0.02, tell)

    def arrive() -> None:
        rank = rank_of(DEFAULT_PRIORITY, station.rng.randrange(LOTS))
        if rank < told[0]:
            ended["held back"] += 1
        else:
            station.call(1.0, lambda job, how, now: ended.update([how]), rank=rank)

    tell()
    station.poisson(lambda now: 2 * station.capacity, 20.0, arrive)
    station.run(20.0)
    assert ended["good"] > 0.85 * station.capacity * 20
    assert ended["held back"] > 4 * ended["refused"]


def test_newest_first_only_above_the_target() -> None:
    admission = Admission(2)
    for step in range(40):  # 100 calls/s leave, target 0.5 s: 50 calls
        admission.begun += 1
        admission.admit(40, 1.0, 640, step / 100)
    assert not admission.newest_first
    for step in range(40, 80):
        admission.begun += 1
        admission.admit(80, 1.0, 640, step / 100)
    assert admission.newest_first
    admission.emptied(0.8)
    assert not admission.newest_first


def test_ranks_order_by_priority_then_by_lot() -> None:
    ranks = [rank_of(priority, lot) for priority in range(PRIORITIES) for lot in range(LOTS)]
    assert ranks == sorted(set(ranks))
    assert rank_of(5, 1_000_000) // LOTS == 5


def test_the_level_goes_away_with_time_alone() -> None:
    admission = Run(5.0, seconds=5.0).station.admission
    assert admission is not None
    assert admission.level > 0
    admission.emptied(5.0)
    for tenth in range(50):
        admission.relax(5.0 + tenth / 10)
    assert (admission.level, admission.free) == (0, WORKERS)
