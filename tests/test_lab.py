"""The laboratory: it repeats itself, its queues are queues, and small forms of its scenarios show what they are for.

The bounds are wide: half of what is measured with many seeds (docs/balancing.md) would have to be lost to break one.
"""

from __future__ import annotations

import dataclasses
import math
import random
from pathlib import Path

import pytest

from benchmarks.figures import Measured, chart, put, table
from benchmarks.lab.marks import MARKS, Mark, links_changed, summary_of
from benchmarks.lab.play import SERVICE_TIME, Outcome, Scenario, play
from benchmarks.lab.scenarios import PLAYED, SCENARIOS
from zmesh._core.subset import nearest

SMALL = Scenario("small", "", [1.0, 1.0, 0.5, 0.5], 0.8, callers=3, calls=3_000)


def played(name: str, policy: str = "least_loaded", seed: int = 1, **changes: object) -> Outcome:
    return play(dataclasses.replace(SCENARIOS[name], **changes), policy, seed)  # type: ignore[arg-type]


# -- the harness


@pytest.mark.parametrize("policy", ["least_loaded", "peak_ewma", "weighted", "omniscient", "utilization"])
def test_a_seed_repeats_itself(policy: str) -> None:
    one, same, other = (play(SMALL, policy, seed) for seed in (1, 1, 2))
    assert one == same
    assert one.latencies != other.latencies


def test_policies_meet_the_same_calls() -> None:
    """As many calls, with as much work: with infinitely many workers, policies make no difference."""
    roomy = dataclasses.replace(SMALL, speeds=[1.0] * 4, workers=10_000, rate=1000.0)
    assert play(roomy, "random", 1).latencies == pytest.approx(play(roomy, "least_loaded", 1).latencies)


def test_one_server_is_the_queue_of_the_textbook() -> None:
    """M/M/1 at load 0.5: a mean of 1 / (mu - lambda), an exponential distribution."""
    outcome = play(Scenario("", "", [1.0], 0.5, workers=1, calls=30_000), "random", 1)
    mean = sum(outcome.latencies) / len(outcome.latencies)
    assert mean == pytest.approx(2 * SERVICE_TIME, rel=0.1)
    assert outcome.percentile(99.0) == pytest.approx(2 * SERVICE_TIME * math.log(100.0), rel=0.15)


def test_the_tunable_form_of_the_default_chooses_as_it_does() -> None:
    for seed in range(3):
        assert play(SMALL, "tunable", seed) == play(SMALL, "least_loaded", seed)
    many = dataclasses.replace(SMALL, speeds=[1.0, 0.5] * 5)
    assert play(many, "tunable", 1) == play(many, "least_loaded", 1)


def test_every_scenario_runs_with_each_of_its_policies() -> None:
    for name, policies in PLAYED.items():
        scenario = SCENARIOS[name]
        if len(scenario.speeds) * scenario.callers > 2_000:
            continue
        for policy in policies:
            outcome = play(dataclasses.replace(scenario, calls=100, warm_up=0.01), policy, 0)
            assert outcome.sent > 0, (name, policy)
            assert summary_of(outcome, scenario.capacity)["attempts"] >= 0.0


def test_every_mark_is_of_figures_that_are_measured() -> None:
    known = {"p50", "p99", "worst", "late", "failed", "good", "goodput", "attempts", "spread"}

    def get(name: str, policy: str, figure: str) -> float:
        if name != "links":
            assert policy in PLAYED[name], (name, policy)
            assert figure in known or SCENARIOS[name].happens is not None
        return 1.0

    for mark in MARKS:
        mark.of(get)


def test_a_mark_holds_only_where_all_of_the_interval_does() -> None:
    most, least = Mark("", lambda get: 0.0, at_most=1.0), Mark("", lambda get: 0.0, at_least=1.0)
    assert [most.verdict(Measured(mean, 0.1)) for mean in (0.8, 0.95, 1.2)] == ["holds", "**open**", "**misses**"]
    assert [least.verdict(Measured(mean, 0.1)) for mean in (0.8, 0.95, 1.2)] == ["**misses**", "**open**", "holds"]


def test_figures() -> None:
    assert str(Measured.of([1.0, 1.1, 1.2])) == "1.10 ± 0.25"
    assert str(Measured.of([2.0] * 10)) == "2.000 ± 0.000"
    assert table(["a", "b"], [[1, 2]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    picture = chart("title", "x", "y", {"one": [(1, 1.0), (2, 100.0)], "two": [(1, math.inf)]})
    assert picture.startswith("<svg")
    assert picture.count("<circle") == 2


def test_what_it_writes_goes_to_its_place(tmp_path: Path) -> None:
    place = tmp_path / "page.md"
    place.write_text("before\n<!-- lab -->\nold\n<!-- end of lab -->\nafter\n")
    put(place, "lab", "new")
    assert place.read_text() == "before\n<!-- lab -->\n\nnew\n\n<!-- end of lab -->\nafter\n"
    with pytest.raises(ValueError, match="no place"):
        put(place, "other", "new")


# -- what the scenarios show


def test_half_slow_is_no_trouble_and_two_choices_collapse() -> None:
    ours, two = (played("half_10x_1", policy, calls=20_000) for policy in ("least_loaded", "local_two"))
    assert ours.percentile(99.0) < 15 * SERVICE_TIME
    assert two.percentile(99.0) > 50 * SERVICE_TIME


def test_many_callers_do_not_run_to_whoever_looked_idle() -> None:
    ours, believing = (played("equal_0.9_64", policy, calls=10_000) for policy in ("least_loaded", "believing"))
    ideal = played("equal_0.9_64", "omniscient", calls=10_000)
    assert ours.percentile(99.0) < 1.6 * ideal.percentile(99.0)
    assert ours.percentile(99.0) < believing.percentile(99.0)


def test_one_that_stalls_takes_few_with_it() -> None:
    ours, round_robin = (played("stall", policy, calls=20_000) for policy in ("least_loaded", "round_robin"))
    assert ours.failed < 40
    assert round_robin.failed > 2 * ours.failed


@pytest.mark.parametrize("name", ["fails_unavailable", "fails_raising"])
def test_one_that_fails_fast_attracts_nothing(name: str) -> None:
    outcome = played(name)
    assert outcome.notes["share"] < 0.5
    assert outcome.notes["early"] < 40


def test_six_of_ten_that_fail_leave_what_the_others_can() -> None:
    outcome = played("unhealthy", calls=10_000)
    assert outcome.failed < 0.1 * outcome.calls


def test_overload_leaves_the_goodput() -> None:
    outcome = played("overload_2")
    answered = (outcome.calls - outcome.failed) / outcome.seconds
    assert answered > 0.8 * SCENARIOS["overload_2"].capacity


def test_a_spike_is_over_soon() -> None:
    assert played("spike").notes["recovery"] < 4.0


def test_a_storm_of_retries_is_bounded() -> None:
    outcome = played("storm", calls=10_000)
    assert outcome.failed == outcome.calls
    assert outcome.attempts <= 1.25 * outcome.sent


def test_a_rolling_restart_fails_nothing() -> None:
    assert played("rolling").failed == 0


# -- which peers a node keeps links to


def test_each_node_keeps_its_own_and_changes_one_at_most() -> None:
    assert links_changed(1, clients=100, servers=300) == 1.0


def test_links_are_spread_over_the_servers() -> None:
    rng = random.Random(1)
    servers = [rng.randbytes(16) for _ in range(200)]
    links = dict.fromkeys(servers, 0)
    for _ in range(1_000):
        kept = nearest(rng.randbytes(16), servers, 20)
        assert len(set(kept)) == 20
        for server in kept:
            links[server] += 1
    assert 60 < min(links.values()) <= max(links.values()) < 145  # 100 ± 10
    own = rng.randbytes(16)
    assert nearest(own, servers, 20) == nearest(own, reversed(servers), 20)
    assert nearest(own, servers[:5], 20) == sorted(servers[:5], key=nearest(own, servers, 200).index)
