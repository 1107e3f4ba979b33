"""The soak, in the size that belongs into every test run; `make soak` does ten times as many seeds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import soak
from tests.bugs import __main__ as bugs

SEEDS = 200


@pytest.mark.timeout(600)
def test_every_seed_keeps_the_promises() -> None:
    results = list(soak.run_many(range(SEEDS), os.cpu_count() or 1))
    assert {result.profile for result in results} == set(soak.PROFILES)
    assert min(result.calls for result in results) > 50
    assert min(result.streams for result in results) > 20
    failed = {result.seed: result.violations for result in results if result.violations}
    assert not failed, f"replay with: python -m tests.soak --trace --seed {min(failed)}"


@pytest.mark.parametrize("seed", [0, 3, 4])
def test_a_seed_replays_identically_whatever_the_hash_seed(seed: int) -> None:
    assert soak.hash_elsewhere(seed, 1) == soak.hash_elsewhere(seed, 2) == soak.run(seed).trace_hash


@pytest.mark.parametrize("name", bugs.names())
def test_the_soak_finds_the_bugs_that_are_kept(name: str) -> None:
    caught, said = bugs.hunt(name)
    assert caught, said


def test_the_bugs_that_are_kept() -> None:
    assert bugs.names() == [
        "argument_sent_twice",
        "credit_lost",
        "generator_left_open",
        "lost_reply",
        "missed_suspect",
        "retry_not_idempotent",
    ]


def test_a_patch_that_no_longer_fits_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("one\ntwo\n")
    patch = "--- a/x.py\n+++ b/x.py\n@@ -1,2 +1,2 @@\n one\n-two\n+three\n"
    bugs.apply(patch, tmp_path)
    assert (tmp_path / "x.py").read_text() == "one\nthree\n"
    with pytest.raises(ValueError, match="0 times, not once"):
        bugs.apply(patch, tmp_path)
