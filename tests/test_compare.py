"""The benchmarks beside other systems: sides run and answer rightly, ratios are of one round, marks are judged."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.compare import cold, page, scenarios
from benchmarks.compare.clients import Blocking
from benchmarks.compare.marks import LARGE_MARKS, MARKS, SLOW_PATH, STREAM, Mark, spread
from benchmarks.compare.scenarios import LARGE, QUICK, SCENARIOS, Results, play
from benchmarks.compare.sides import Failed, opened
from benchmarks.compare.systems import BARE, DEFAULT, SYSTEMS

linux = pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="processor time is read from /proc")


@linux
def test_zmesh_and_the_bare_loop_play_every_scenario(tmp_path: Path) -> None:
    """One setup for each: the servers of the fan can play all else."""
    for system in (BARE, "zmesh-asyncio"):
        with opened(system, QUICK["fan"].servers) as sides:
            for scenario in QUICK.values():
                for name, cell in scenario.cells.items():
                    if cell.do:
                        found = sides.play(cell.do, 0.02, cell.in_flight)
                        assert found["done"] > 0, name
                        assert found["wrong"] == 0, name
                        assert found["seconds"] > 0, name
            for cell in LARGE.cells.values():
                found = sides.play(cell.do, 0.0, cell.in_flight, 1)
                assert (found["done"], found["wrong"]) == (1, 0), cell.do
            found = cold.start(system.removesuffix("-asyncio"), sides.addresses[0], str(tmp_path))
            assert 0 < found["imports ms"] < found["ms"]


@linux
def test_a_side_that_ends_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Failed, match=r"status 2.*invalid choice"), opened("lost"):
        pass


class Played:
    """Sides that take no time."""

    def __init__(self, system: str, log: list[str]) -> None:
        self.system, self.log = system, log

    def play(self, do: str, seconds: float, in_flight: int, mib: int) -> dict[str, float]:
        self.log.append(f"{self.system} {in_flight}")
        if self.system == "rpyc" and self.log.count(self.log[-1]) > 2:
            raise Failed("it fell over")
        return {"done": 8.0, "wrong": 0, "seconds": 2.0, "client CPU": 0.008, "server CPU": 0.016, "others": 0.5}


@pytest.mark.parametrize(("most", "rounds"), [(1000.0, 3), (-1.0, 1)])
def test_systems_take_turns(most: float, rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    @contextlib.contextmanager
    def opened(system: str, servers: int, client: bool) -> Iterator[Played]:
        if system == "zenoh":
            raise Failed("no licence")
        yield Played(system, log)

    monkeypatch.setattr(scenarios, "opened", opened)
    results = Results()
    play(results, {"fan": SCENARIOS["fan"]}, [BARE, "rpyc", "zmesh", "zenoh"], 3, most)
    assert results.rounds == [rounds]
    assert results.left_out["zenoh"] == "does not start: no licence"
    assert results.of("fan", BARE, "rounds/s") == [4.0] * rounds
    assert results.of("fan", BARE, "server CPU") == [0.25] * rounds  # for 1,000 calls: eight a round
    first, second = ["bare 8", "bare 8", "rpyc 8", "rpyc 8", "zmesh 8", "zmesh 8"], ["zmesh 8", "zmesh 8", "rpyc 8"]
    if rounds == 1:
        assert log == first
        return
    assert log == [*first, *second, "bare 8", "bare 8", "bare 8", "bare 8", "zmesh 8", "zmesh 8"]
    assert results.left_out["rpyc"] == "it fell over"
    assert len(results.of("fan", "rpyc", "rounds/s")) == 1


class Liar(Blocking):
    """Answers every third call with another's answer."""

    def open(self, addresses: object) -> None:
        self.calls = itertools.count()

    def echo(self, argument: object) -> object:
        return self.make(-1) if next(self.calls) % 3 == 0 else argument

    def back(self, value: bytes) -> object:
        return memoryview(value[:-1] + b"\0") if value[-1] else value[1:]

    def items(self, count: int) -> object:  # type: ignore[override]
        return (self.item(index) for index in range(count - 2))

    def mapped(self, arguments: object) -> object:  # type: ignore[override]
        return list(reversed(arguments))  # type: ignore[call-overload]


def test_wrong_answers_are_counted() -> None:
    liar = Liar("")
    liar.open([])
    found = liar.latency(0.01, 1)
    assert found["wrong"] == -(-found["done"] // 3)
    found = liar.throughput(0.0, 9)
    assert (found["done"], found["wrong"]) == (9, 3)
    assert liar.streamed(0.0, 1)["wrong"] == 2
    assert liar.there_and_back(0.0, 1, 1)["wrong"] == 1
    found = liar.mapped_over(0.0, 1)
    assert found["wrong"] == found["done"]


def results_of(**rates: list[float]) -> Results:
    results = Results()
    for system, values in rates.items():
        for value in values:
            results.add("throughput 64", system, {"calls/s": value})
    return results


def test_ratios_are_taken_within_a_round() -> None:
    results = results_of(bare=[100.0, 1000.0, 10.0], zmesh=[50.0, 2000.0, 10.0])
    assert results.ratios("throughput 64", "calls/s", "zmesh", BARE) == [0.5, 2.0, 1.0]
    assert spread([0.5, 2.0, 1.0]) == "1 (0.50–2)"


def test_a_mark_is_met_where_the_median_keeps_to_it() -> None:
    most, least = (Mark("", lambda results: [], **bound) for bound in ({"at_most": 1.0}, {"at_least": 1.0}))
    assert [most.met(values) for values in ([0.5, 1.0, 9.0], [1.1])] == [True, False]
    assert [least.met(values) for values in ([0.5, 1.0, 9.0], [0.9])] == [True, False]


def test_every_mark_is_of_what_is_played() -> None:
    results = Results()
    for name, scenario in SCENARIOS.items():
        for cell, system in itertools.product(scenario.cells, DEFAULT):
            if name in SYSTEMS[system].plays:
                figures = ("calls/s", "items/s", "rounds/s", "p50 µs", "p99 µs", "ms", "imports ms", "wrong")
                results.add(cell, system, dict.fromkeys(figures, 0.9) | {"client CPU": 0.1, "server CPU": 0.1})
    for mark in MARKS:
        assert len(mark.of(results)) == 1, mark.says
        assert (mark.at_least is None) != (mark.at_most is None), mark.says
    for cell, system in itertools.product(LARGE.cells, SYSTEMS):
        if "large" in SYSTEMS[system].plays:
            results.add(cell, system, {"values/s": 1.0, "client CPU": 0.1, "server CPU": 0.1})
    results.add(STREAM, "zmesh", {"MB": 30.0, "p99 : quiet": 2.0})
    results.add(SLOW_PATH, "zmesh", {"links lost": 0.0})
    assert "not measured" not in page.marks(page.judged(results))
    assert "not measured" not in page.marks(page.judged(results, LARGE_MARKS))
    assert page.large(results)[1].count("| 0.062 |") == 2 * len(results.systems("one way, 64 MiB"))
    assert page.marks(page.judged(results_of(bare=[1.0], zmesh=[0.8]))).count("**missed**") == 1


def test_the_least_of_the_cells_is_what_a_mark_of_large_values_looks_at() -> None:
    results = Results()
    for cell, ours in zip(LARGE.cells, ([9.0], [2.0, 4.0], [9.0]), strict=False):  # and the others were not measured
        for value in ours:
            results.add(cell, "zmesh", {"values/s": value})
            results.add(cell, "zenoh", {"values/s": 1.0})
    (mark,) = [mark for mark in LARGE_MARKS if mark.says.endswith(": zenoh")]
    assert mark.of(results) == [2.0, 4.0]
    (mark,) = [mark for mark in LARGE_MARKS if mark.says.endswith(": grpc")]
    with pytest.raises(KeyError):
        mark.of(results)


def test_the_page_has_what_was_measured_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "PAGE", tmp_path / "performance.md")
    page.PAGE.write_text("before\n<!-- bench -->\nold\n<!-- end of bench -->\nafter\n")
    results = results_of(bare=[100.0, 200.0], zmesh=[90.0, 200.0])
    results.left_out["zenoh"] = "does not start"
    results.rounds.append(2)
    results.add("throughput 256", "zmesh", {"calls/s": 300.0})
    page.publish(results, [BARE, "zmesh"], 60.0, "| idle |")
    text = page.PAGE.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| calls/s with 64 in flight : bare | ≥ 0.9 | 0.95 (0.90–1) | met |" in text
    assert "| zmesh | 145 (90–200) | 300 | – |" in text
    assert "2 rounds" in text
    assert "- zenoh: does not start." in text
    assert (tmp_path / page.PLOT).read_text().count("<polyline") == 1
