"""When a peer is ejected, how it comes back, and what it weighs meanwhile."""

from __future__ import annotations

import itertools
import random

import pytest

from zmesh._core import health as h
from zmesh._core.health import Event, Health, Outcome, State, in_panic, outcome_of
from zmesh.errors import Code


def new(jitter: float = 0.0) -> Health:
    return Health(lambda: jitter, 0.0)


def succeed(health: Health, now: float, started: float | None = None) -> bool:
    """As callers do: they count, and tell only where it matters."""
    health.successes += 1
    return health.troubled and health.succeeded(now if started is None else started, now)


def fail(health: Health, now: float, started: float | None = None) -> bool:
    return health.failed("no answer", now if started is None else started, now)


def ejected(jitter: float = 0.0, at: float = 100.0) -> Health:
    health = new(jitter)
    assert [fail(health, at) for _ in range(5)] == [False] * 4 + [True]
    return health


# -- the table


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)), ids=lambda item: item.value)
def test_what_the_table_does_not_list_is_a_bug(state: State, event: Event) -> None:
    health = new()
    health.state = state
    if event in h.TRANSITIONS[state]:
        assert health._follow(event, 1.0) is (h.TRANSITIONS[state][event] is not state)
        assert health.state is h.TRANSITIONS[state][event]
    else:
        with pytest.raises(RuntimeError, match=f"{state.value} cannot have '{event.value}'"):
            health._follow(event, 1.0)


def test_every_event_and_state_is_used_and_success_always_heals() -> None:
    assert {event for row in h.TRANSITIONS.values() for event in row} == set(Event)
    assert {state for row in h.TRANSITIONS.values() for state in row.values()} == set(State)
    assert all(row[Event.SUCCESS] is State.HEALTHY for row in h.TRANSITIONS.values())


# -- ejection


def test_five_failures_in_a_row_eject() -> None:
    health = ejected()
    assert health.state is State.EJECTED
    assert not health.good
    assert health.why == "5 failures in a row, the last: no answer"


def test_a_success_between_them_breaks_the_row() -> None:
    health = new()
    for second in range(100):
        assert not any(succeed(health, second) for _ in range(100))
        assert not any(fail(health, second) for _ in range(4))
    assert health.good


def test_a_fast_failing_node_has_no_more_than_five_calls() -> None:
    health, calls = new(), 0
    while health.good:
        calls += 1
        fail(health, 1.0)
    assert calls == 5


def test_under_eighty_percent_of_successes_ejects() -> None:
    health = new()
    for second in range(20):  # three of four succeed, never five failures in a row
        if any(succeed(health, second) for _ in range(3)) or fail(health, second):
            break
    assert health.state is State.EJECTED
    assert health.why == "2 of 8 calls failed in 30 s, the last: no answer"


def test_at_eighty_percent_it_stays() -> None:
    health = new()
    for second in range(300):
        for _ in range(4):
            succeed(health, second)
        assert not fail(health, second)


def test_few_answers_say_nothing_of_the_rate() -> None:
    health = new()
    assert not any(fail(health, 0.0) for _ in range(4))  # 4 of 4


def test_failures_of_long_ago_do_not_count() -> None:
    health = new()
    for _ in range(4):
        fail(health, 0.0)
    for _ in range(4):
        succeed(health, 0.5)
    assert not fail(health, 40.0)  # 5 of 9 in all, 1 of 1 in the window


def test_a_busy_peer_that_was_well_for_an_hour_is_judged_by_the_last_seconds() -> None:
    health = new()
    health.successes += 3600 * 1000  # nobody looked at the counter meanwhile
    now, calls = 3600.0, 0
    while health.good:  # now every other call fails
        now += 0.001
        calls += 2
        succeed(health, now)
        fail(health, now)
    assert calls < 20_000  # 30 s of a thousand calls/s, a fourth of that failures


def test_what_began_before_the_ejection_tells_nothing_new() -> None:
    health = ejected(at=100.0)
    until = health.until
    assert not any(fail(health, 100.5, started=99.0) for _ in range(10))
    assert not succeed(health, 100.6, started=99.9)
    assert (health.state, health.until) == (State.EJECTED, until)


def test_what_began_before_it_came_back_does_not_eject_it_again() -> None:
    health = ejected(at=100.0)
    assert succeed(health, 101.0)
    assert not any(fail(health, 102.0, started=99.0) for _ in range(10))
    assert health.good


# -- coming back


def test_one_probe_brings_it_back() -> None:
    health = ejected(at=100.0)
    assert not health.tick(100.49)
    assert health.tick(100.5)  # half of a second, and no jitter
    assert health.state is State.DUE
    assert health.probe(100.6)
    assert health.state is State.PROBING
    assert succeed(health, 100.7, started=100.6)
    assert health.good


def test_pauses_double_to_half_a_minute_with_equal_jitter() -> None:
    for jitter, share in ((0.0, 0.5), (0.999, 1.0)):
        health, now, pauses = ejected(jitter), 100.0, []
        for _ in range(8):
            pauses.append(health.until - now)
            now = health.until
            assert health.tick(now)
            health.probe(now)
            now += 0.1
            assert fail(health, now)
            assert health.why == "its probe failed: no answer"
        assert pauses == pytest.approx([seconds * share for seconds in (1, 2, 4, 8, 16, 30, 30, 30)], rel=1e-3)


def test_the_pause_is_short_again_after_a_long_time_of_health() -> None:
    for pause, well in ((0.5, 31.0), (1.0, 29.0)):
        health = ejected(at=100.0)
        succeed(health, 101.0)
        now = 101.0 + well
        while health.good:
            fail(health, now)
        assert health.until - now == pytest.approx(pause)


def test_a_probe_without_an_answer_does_not_keep_others_away_for_ever() -> None:
    health = ejected(at=100.0)
    health.tick(101.0)
    health.probe(101.0)
    assert not health.tick(101.9)
    assert health.tick(102.0)
    assert health.state is State.DUE


def test_in_a_panic_a_success_brings_it_back_and_failures_change_nothing() -> None:
    health = ejected(at=100.0)
    until = health.until
    assert not any(fail(health, 100.1) for _ in range(20))
    assert health.until == until
    assert succeed(health, 100.2)
    assert health.good


def test_after_coming_back_the_old_failures_are_forgotten() -> None:
    health = ejected(at=100.0)
    succeed(health, 101.0)
    for _ in range(4):
        succeed(health, 102.0)
    assert not fail(health, 102.0)  # 1 of 5; with the old ones 6 of 10
    assert health.good


# -- weight


def test_it_starts_slowly() -> None:
    health = ejected(at=100.0)
    succeed(health, 101.0)
    weights = []
    for second in range(13):
        health.tick(101.0 + second)
        weights.append(round(health.weight, 3))
    assert weights == [0.1, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0, 1.0]
    assert not health.unsettled


def test_exceptions_of_handlers_cost_weight_and_never_eject() -> None:
    health = new()
    for _ in range(95):
        health.raised(1.0)
    assert health.good
    assert health.weight == h.LEAST_WEIGHT
    weights = []
    for _ in range(6):
        for _ in range(16):
            succeed(health, 1.0)
        weights.append(health.weight)
    assert weights == sorted(weights)
    assert weights[0] > 0.6
    assert (weights[-1], health.troubled, health.unsettled) == (1.0, False, False)


def test_exceptions_are_forgotten_where_nothing_is_called_any_more() -> None:
    health = new()
    for _ in range(95):
        health.raised(1.0)
    weights = []
    for second in range(1, 60):
        health.tick(float(second))
        weights.append(health.weight)
    assert weights == sorted(weights)
    assert weights[10] > 0.6
    assert (weights[-1], health.unsettled) == (1.0, False)


def test_a_service_that_always_raises_some_is_not_worth_less_and_less() -> None:
    rng, health = random.Random(1), new()
    weights = []
    for step in range(5_000):
        if rng.random() < 0.3:
            health.raised(step / 1_000)
        else:
            succeed(health, step / 1_000)
        weights.append(health.weight)
    assert 0.65 < sum(weights) / len(weights) < 0.75
    assert min(weights) > 0.2


def test_one_exception_of_one_call_says_little() -> None:
    health = new()
    health.raised(1.0)
    assert health.weight > 0.8


# -- refusals


def test_refusals_among_successes_never_eject() -> None:
    health = new()
    for step in range(1000):  # five times overload: four of five are refused
        succeed(health, step * 0.1)
        assert not any(health.refused(step * 0.1, step * 0.1 + 0.09) for _ in range(4))


def test_a_burst_of_refusals_is_load() -> None:
    health = new()
    assert not any(health.refused(1.0, 1.0 + 0.0001 * n) for n in range(1000))


def test_who_refuses_everything_is_left_alone_for_a_moment_and_starts_at_once() -> None:
    health = new()
    changes = [health.refused(now, now) for now in (1.0, 1.1, 1.2, 1.25, 1.26)]
    assert changes == [False] * 4 + [True]
    assert health.why == "it refused 5 calls in a row"
    assert health.until - 1.26 == pytest.approx(0.05)
    for pause in (0.1, 0.2, 0.4, 0.8, 1.0, 1.0):
        health.tick(health.until)
        health.probe(health.until)
        now = health.until
        assert health.refused(now, now)
        assert health.until - now == pytest.approx(pause)
    health.tick(health.until)
    health.probe(health.until)
    assert succeed(health, health.until)
    assert health.weight == 1.0


# -- what answers say


@pytest.mark.parametrize("code", list(Code))
def test_what_an_error_says_of_the_node(code: Code) -> None:
    assert outcome_of(code, False) is (Outcome.REFUSED if code is Code.RESOURCE_EXHAUSTED else Outcome.NOTHING)
    ran = {
        Code.UNAVAILABLE: Outcome.FAILURE,
        Code.DEADLINE_EXCEEDED: Outcome.FAILURE,
        Code.INTERNAL: Outcome.RAISED,
        Code.UNKNOWN: Outcome.RAISED,
        Code.DATA_LOSS: Outcome.RAISED,
    }
    assert outcome_of(code, True) is ran.get(code, Outcome.SUCCESS)


@pytest.mark.parametrize(
    ("left", "standing", "panic"),
    [(0, 0, False), (0, 1, True), (1, 1, False), (1, 5, False), (1, 6, True), (2, 10, False), (2, 11, True)],
)
def test_panic_is_when_under_a_fifth_is_left(left: int, standing: int, panic: bool) -> None:
    assert in_panic(left, standing) is panic


def test_whatever_happens_it_comes_back_within_the_longest_pause() -> None:
    for seed in range(20):
        rng = random.Random(seed)
        health, now = Health(rng.random, 0.0), 0.0
        for _ in range(2_000):
            now += rng.expovariate(10)
            health.tick(now)
            if health.state is State.DUE and rng.random() < 0.9:
                health.probe(now)
            happens = rng.random()
            started = now - rng.expovariate(5)
            if happens < 0.3:
                succeed(health, now, started)
            elif happens < 0.7:
                fail(health, now, started)
            elif happens < 0.9:
                health.refused(started, now)
            else:
                health.raised(now)
            assert h.LEAST_WEIGHT <= health.weight <= 1.0
            assert health.state is not State.EJECTED or health.until - now <= h.LONGEST_PAUSE
            assert health.good or health.troubled  # or its successes would not be told
        now += 100.0
        health.tick(now)
        if health.state is State.DUE:
            health.probe(now)
        succeed(health, now)
        health.tick(now + 100.0)
        assert (health.good, health.weight) == (True, 1.0)
