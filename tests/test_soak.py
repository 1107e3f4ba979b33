"""The soak, in the size that belongs into every test run; `make soak` does ten times as many seeds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import soak
from tests.bugs import __main__ as bugs
from tests.soak import policies

# The seed that caught each bug when this was written: tried first, as looking for one takes a while.
CAUGHT_BY = {
    "argument_sent_twice": 6,
    "credit_lost": 0,
    "failures_never_forgiven": 3,
    "generator_left_open": 1,
    "hedges_unbounded": 1,
    "key_moves": 55,
    "lost_reply": 9,
    "missed_suspect": 53,
    "no_panic": 3,
    "no_probe": 1,
    "retries_unbounded": 2,
    "retry_not_idempotent": 0,
    "stale_candidates": 1,
    "suspect_too_soon": 1,
    "turn_kept": 5,
    "unimportant_first": 3,
}


@pytest.mark.timeout(300)  # a quarter of a minute on a machine that has nothing else to do
@pytest.mark.parametrize("first", range(0, 200, 25))
def test_every_seed_keeps_the_promises(first: int) -> None:
    results = [soak.run(seed) for seed in range(first, first + 25)]
    for result in results:
        assert not result.violations, f"replay with: python -m tests.soak --trace --seed {result.seed}"
        assert result.calls > 50
        assert result.streams > 20
    assert {result.profile for result in results} == set(soak.PROFILES)


@pytest.mark.parametrize("first", range(0, 40, 20))
def test_every_policy_keeps_the_promises(first: int) -> None:
    results = [policies.run(seed) for seed in range(first, first + 20)]
    for result in results:
        assert not result.violations, f"replay with: python -m tests.soak --mix policies --trace --seed {result.seed}"
        assert result.calls > 50
    assert {result.profile for result in results} == set(policies.MOODS)


def test_a_seed_of_the_mix_of_policies_replays_identically() -> None:
    assert soak.hash_elsewhere(4, 1, "policies") == policies.run(4).trace_hash


@pytest.mark.parametrize("seed", [0, 3, 4])
def test_a_seed_replays_identically_whatever_the_hash_seed(seed: int) -> None:
    assert soak.hash_elsewhere(seed, 1) == soak.hash_elsewhere(seed, 2) == soak.run(seed).trace_hash


@pytest.mark.parametrize("name", bugs.names())
def test_the_soak_finds_the_bugs_that_are_kept(name: str) -> None:
    seed = CAUGHT_BY[name]
    caught, said = bugs.hunt(name, f"{seed}:{seed + 1}")
    if not caught:
        caught, said = bugs.hunt(name)
    assert caught, said


def test_the_bugs_that_are_kept() -> None:
    assert bugs.names() == list(CAUGHT_BY)


def test_a_patch_that_no_longer_fits_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("one\ntwo\n")
    patch = "--- a/x.py\n+++ b/x.py\n@@ -1,2 +1,2 @@\n one\n-two\n+three\n"
    bugs.apply(patch, tmp_path)
    assert (tmp_path / "x.py").read_text() == "one\nthree\n"
    with pytest.raises(ValueError, match="0 times, not once"):
        bugs.apply(patch, tmp_path)
