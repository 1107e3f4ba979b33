"""How many retries and hedges there are, and what is measured for hedges."""

from __future__ import annotations

import random

import pytest

from zmesh._core.budget import Budget, Latencies, percentile_of
from zmesh._core.timing import Growth, Recent


def retries(budget: Budget, now: float) -> int:
    """Take all there are."""
    count = 0
    while budget.retry(now):
        count += 1
    return count


# -- retries


def test_a_program_that_has_just_begun_may_retry() -> None:
    assert retries(Budget(0.0), 0.0) == 100


def test_a_fifth_of_many_calls_may_be_retried_and_the_floor_is_no_addition() -> None:
    budget = Budget(0.0)
    budget.calls += 10_000
    assert retries(budget, 1.0) == 2_000
    assert retries(budget, 1.0) == 0


@pytest.mark.parametrize("rate", [50, 300, 5_000])
def test_where_everything_fails_there_are_at_most_1_2_attempts_a_call(rate: int) -> None:
    budget, again = Budget(0.0), 0
    for call in range(rate * 60):
        budget.calls += 1
        if call >= rate * 10:  # each refused, again and again
            again += retries(budget, call / rate)
    again_per_call = again / (rate * 50)
    assert 0.19 < again_per_call <= 0.2 * 60 / 50 + 0.01  # what was saved in the ten seconds before comes on top


@pytest.mark.parametrize("rate", [60, 500])
def test_where_everything_fails_from_the_start_there_are_no_more_than_1_2(rate: int) -> None:
    budget, again, calls = Budget(0.0), 0, 0
    for call in range(rate * 30):
        budget.calls = calls = call + 1
        again += retries(budget, call / rate)
    assert 0.18 < again / calls <= max(0.2, (100 + 10 * 30) / calls)
    hedges = sum(budget.hedge(30.0) for _ in range(calls))
    assert hedges <= 0.05 * calls


def test_a_burst_of_calls_pays_back_what_the_quiet_time_before_it_had() -> None:
    budget = Budget(0.0)
    assert retries(budget, 60.0) == 100
    budget.calls += 1_000
    assert retries(budget, 61.0) == 100
    budget.calls += 1_000
    assert retries(budget, 62.0) == 200


def test_over_any_length_a_slow_caller_has_ten_a_second() -> None:
    budget = Budget(0.0)
    total = sum(retries(budget, second / 10) for second in range(1_000))
    assert 900 <= total <= 1_100


def test_what_was_saved_long_ago_is_gone() -> None:
    budget = Budget(0.0)
    budget.calls += 1_000_000
    budget.left(1.0)
    assert retries(budget, 30.0) == 100


def test_a_steady_caller_that_never_retried_before_has_a_fifth_of_ten_seconds() -> None:
    budget = Budget(0.0)
    budget.calls += 3_600_000  # a thousand calls/s for an hour, and nobody looked
    assert 1_900 <= retries(budget, 3_600.0) <= 2_100


def test_what_is_charged_is_missing_for_others() -> None:
    budget = Budget(0.0)
    for _ in range(150):
        budget.charge(0.0)
    assert budget.left(0.0) == -50
    assert not budget.retry(5.0)
    assert budget.retry(5.5)


def test_debts_are_forgotten_in_time() -> None:
    budget = Budget(0.0)
    for _ in range(5_000):
        budget.charge(0.0)
    assert not budget.retry(10.0)
    assert budget.retry(10.5)


def test_used_up_retries_come_back_a_few_at_a_time() -> None:
    budget = Budget(0.0)
    retries(budget, 0.0)
    assert [retries(budget, tenth / 10) for tenth in range(1, 11)] == [0, 0, 0, 0, 5, 0, 0, 0, 0, 5]


# -- hedges


def test_a_twentieth_of_many_calls_may_be_hedged() -> None:
    budget = Budget(0.0)
    budget.calls += 10_000
    assert sum(budget.hedge(1.0) for _ in range(10_000)) == 500
    assert retries(budget, 1.0) == 2_000  # of its own budget


def test_few_calls_have_few_hedges() -> None:
    budget = Budget(0.0)
    assert sum(budget.hedge(1.0) for _ in range(100)) == 10


def test_no_hedges_while_retries_are_used_up() -> None:
    budget = Budget(0.0)
    retries(budget, 0.0)
    assert not budget.hedge(0.0)
    assert budget.hedge(0.5)


# -- percentiles


def test_percentiles_within_nine_percent() -> None:
    rng = random.Random(1)
    latencies, samples = Latencies(), []
    for _ in range(1_900):
        samples.append(rng.expovariate(100))
        latencies.add(samples[-1])
    samples.sort()
    for share in (0.5, 0.9, 0.95, 0.99):
        true = samples[int(len(samples) * share)]
        known = latencies.percentile(share)
        assert known is not None
        assert true * 0.99 <= known <= true * 1.1


def test_no_percentile_before_there_is_a_sample_above_it() -> None:
    latencies = Latencies()
    for _ in range(19):
        latencies.add(0.01)
    assert latencies.percentile(0.95) is None
    latencies.add(0.01)
    assert latencies.percentile(0.95) == pytest.approx(0.01, rel=0.1)
    assert latencies.percentile(0.99) is None


def test_it_follows_a_method_that_became_slower() -> None:
    latencies = Latencies()
    for _ in range(10_000):
        latencies.add(0.01)
    for _ in range(4_000):
        latencies.add(0.1)
    assert latencies.percentile(0.5) == pytest.approx(0.1, rel=0.1)


def test_a_p999_is_known_however_long_it_runs() -> None:
    latencies = Latencies()
    for number in range(10_000):
        latencies.add(0.01)
        assert number < 1_000 or latencies.percentile(0.999) is not None


def test_extremes_have_a_place() -> None:
    latencies = Latencies()
    for seconds in (0.0, 1e-9, 1e6, float(2**40)):
        latencies.add(seconds)
    assert latencies.percentile(0.75) is not None


@pytest.mark.parametrize(("text", "share"), [("p95", 0.95), ("p50", 0.5), ("p99.9", 0.999)])
def test_names_of_percentiles(text: str, share: float) -> None:
    assert percentile_of(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["95", "p", "p100", "p49", "q95", "p-1", "pnan", "", "p99.99"])
def test_what_is_no_name_of_a_percentile(text: str) -> None:
    with pytest.raises(ValueError, match="written like 'p95'"):
        percentile_of(text)


# -- what they count with


def test_recent_counts_a_window() -> None:
    rng = random.Random(2)
    recent, events, now = Recent(10.0), [], 0.0
    for _ in range(5_000):
        now += rng.expovariate(3)
        if rng.random() < 0.01:
            now += rng.uniform(0, 40)
        recent.add(now)
        events.append(now)
        total = recent.total(now)
        assert sum(1 for e in events if e > now - 9.0) <= total <= sum(1 for e in events if e > now - 10.0001)


def test_recent_survives_a_clock_that_stands() -> None:
    recent = Recent(10.0)
    recent.add(50.0)
    recent.add(49.9)
    assert recent.total(50.0) == 2


def test_growth_is_exact_where_it_looks_often_and_even_where_it_did_not() -> None:
    growth, count = Growth(10.0, 0, 0.0), 0
    for tenth in range(1_000):
        count += tenth % 7
        known = growth.of(count, tenth / 10)
        true = sum(past % 7 for past in range(max(0, tenth - 99), tenth + 1))
        assert abs(known - true) <= 40  # what a tenth of the window holds at most
    assert growth.of(count + 36_000, 3_699.9) == pytest.approx(100, rel=0.01)
    assert growth.of(count + 36_000, 3_710.0) == pytest.approx(0.0, abs=1.0)
