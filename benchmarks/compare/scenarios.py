"""What is played, and in which order: all systems in each round, one after the other."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from . import cold
from .sides import Failed, Sides, opened
from .systems import SYSTEMS

__all__ = ["LARGE", "QUICK", "SCENARIOS", "Cell", "Results", "Scenario", "play"]


@dataclass(frozen=True)
class Cell:
    """One thing that clients do for some seconds.

    do: the method of the client. unit: what its rate counts. in_flight: of calls, or the servers that a round asks.
    mib: of large values.
    """

    do: str
    unit: str
    in_flight: int = 1
    mib: int = 0


@dataclass(frozen=True)
class Scenario:
    """Cells that are played with the same processes: so many servers and one client for each system.

    share: of the minutes that the whole may take; where it is used up, no further round begins.
    """

    cells: dict[str, Cell]
    share: float
    servers: int = 1
    seconds: float = 0.5
    warm_up: float = 0.1


_FAN = 8
SCENARIOS = {
    "latency": Scenario({"latency": Cell("latency", "calls/s")}, 0.12, seconds=0.6),
    "throughput": Scenario({f"throughput {k}": Cell("throughput", "calls/s", k) for k in (64, 256, 1000)}, 0.42),
    "fan": Scenario({"fan": Cell("fanned", "rounds/s", _FAN)}, 0.16, servers=_FAN),
    "map": Scenario({"map": Cell("mapped_over", "items/s")}, 0.07, servers=_FAN),
    "stream": Scenario({"stream": Cell("streamed", "items/s")}, 0.14),
    "cold": Scenario({"cold": Cell("", "")}, 0.09),
}
# Played by itself (`benchmarks.large`), as some systems take minutes for it.
LARGE = Scenario(
    {
        f"{way}, {mib} MiB": Cell(do, "values/s", mib=mib)
        for way, do in (("one way", "there"), ("both ways", "there_and_back"))
        for mib in (1, 16, 64)
    },
    1.0,
)
# Small enough for the suite: what is tested there is that everything runs, and answers rightly.
QUICK = {
    "latency": replace(SCENARIOS["latency"], seconds=0.05, warm_up=0.02),
    "throughput": Scenario({"throughput 64": Cell("throughput", "calls/s", 64)}, 0.42, seconds=0.05, warm_up=0.02),
    "fan": Scenario({"fan": Cell("fanned", "rounds/s", 2)}, 0.16, servers=2, seconds=0.05, warm_up=0.02),
    "map": replace(SCENARIOS["map"], servers=2, seconds=0.05, warm_up=0.02),
    "stream": replace(SCENARIOS["stream"], seconds=0.05, warm_up=0.02),
    "cold": SCENARIOS["cold"],
}


@dataclass
class Results:
    """What was measured: of each cell, system and figure a value a round; and who was left out, and why."""

    values: dict[tuple[str, str, str], list[float]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    others: list[float] = field(default_factory=list)  # cores that anything else kept busy, of each cell
    rounds: list[int] = field(default_factory=list)  # of each scenario

    def add(self, cell: str, system: str, figures: dict[str, float]) -> None:
        for figure, value in figures.items():
            self.values.setdefault((cell, system, figure), []).append(value)

    def of(self, cell: str, system: str, figure: str) -> list[float]:
        """A value a round; raises KeyError where there is none."""
        return self.values[cell, system, figure]

    def ratios(self, cell: str, figure: str, system: str, other: str) -> list[float]:
        """Of one system to another, round by round; raises KeyError."""
        pairs = zip(self.of(cell, system, figure), self.of(cell, other, figure), strict=False)
        return [one / two for one, two in pairs]

    def systems(self, cell: str) -> list[str]:
        there = {system for where, system, _ in self.values if where == cell}
        return [system for system in SYSTEMS if system in there]


def play(results: Results, scenarios: dict[str, Scenario], systems: Sequence[str], rounds: int, most: float) -> None:
    """Play the scenarios, in at most so many seconds; one round of each is played in any case. A system of which a side
    fails is left out from then on."""
    for name, scenario in scenarios.items():
        there = [system for system in systems if name in SYSTEMS[system].plays]
        began = time.monotonic()
        turns = _Turns(results, scenario.cells, rounds, began + scenario.share * most)
        if name == "cold":
            _cold(results, there, turns)
        else:
            _rounds(results, scenario, there, turns)
        results.rounds.append(turns.played)
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr)


@contextlib.contextmanager
def _all_of(results: Results, systems: Sequence[str], servers: int, client: bool = True) -> Iterator[dict[str, Sides]]:
    with contextlib.ExitStack() as stack:
        sides = {}
        for system in systems:
            try:
                sides[system] = stack.enter_context(opened(system, servers, client))
            except Failed as error:
                results.left_out[system] = f"does not start: {error}"
        yield sides


class _Turns:
    """Who is next with which cell."""

    def __init__(self, results: Results, cells: dict[str, Cell], rounds: int, until: float) -> None:
        self._results, self._cells, self._rounds, self._until = results, cells, rounds, until
        self.played = 0

    def of(self, systems: list[str]) -> Iterator[tuple[str, str, Cell]]:
        """Who comes first changes from round to round: what follows a pause may run faster or slower."""
        while self.played < self._rounds and (self.played == 0 or time.monotonic() < self._until):
            for name, cell in self._cells.items():
                for system in systems if self.played % 2 == 0 else reversed(systems):
                    if system not in self._results.left_out and cell.in_flight <= SYSTEMS[system].most:
                        yield system, name, cell
            self.played += 1


def _rounds(results: Results, scenario: Scenario, systems: Sequence[str], turns: _Turns) -> None:
    with _all_of(results, systems, scenario.servers) as sides:
        for system, name, cell in turns.of(list(sides)):
            with _told(results, system):
                sides[system].play(cell.do, scenario.warm_up, cell.in_flight, cell.mib)
                found = sides[system].play(cell.do, scenario.seconds, cell.in_flight, cell.mib)
                _note(results, name, system, cell, found)


def _note(results: Results, name: str, system: str, cell: Cell, found: dict[str, float]) -> None:
    calls = found["done"] * (cell.in_flight if cell.do == "fanned" else 1)
    figures = {
        cell.unit: found["done"] / found["seconds"],
        "wrong": found["wrong"],
        "client CPU": 1000 * found["client CPU"] / calls,
        "server CPU": 1000 * found["server CPU"] / calls,
    }
    figures |= {f"{each} µs": 1e6 * found[each] for each in ("p50", "p99") if each in found}
    results.add(name, system, figures)
    results.others.append(found["others"])


def _cold(results: Results, systems: Sequence[str], turns: _Turns) -> None:
    there = [system for system in systems if system in cold.PROGRAMS]
    with tempfile.TemporaryDirectory() as cache, _all_of(results, there, 1, client=False) as sides:
        for system, each in sides.items():
            with _told(results, system):
                cold.start(system, each.addresses[0], cache)  # fills the cache
        for system, _, _ in turns.of(list(sides)):
            with _told(results, system):
                results.add("cold", system, cold.start(system, sides[system].addresses[0], cache))


@contextlib.contextmanager
def _told(results: Results, system: str) -> Iterator[None]:
    try:
        yield
    except Failed as error:
        results.left_out[system] = str(error)
