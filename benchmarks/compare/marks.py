"""What was promised of zmesh's speed, and whether it is so."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .scenarios import LARGE, Results
from .systems import BARE, DEFAULT, SYSTEMS

__all__ = ["LARGE_MARKS", "MARKS", "SLOW_PATH", "STREAM", "Mark", "spread"]

Get = Callable[[Results], Sequence[float]]


@dataclass(frozen=True)
class Mark:
    """One promise.

    says: what of. of: a value for each round; raises KeyError where it was not measured.
    why: the reason, where it is missed.
    """

    says: str
    of: Get
    at_least: float | None = None
    at_most: float | None = None
    why: str = ""

    @property
    def bound(self) -> str:
        return f"≥ {self.at_least:g}" if self.at_least is not None else f"≤ {self.at_most:g}"

    def met(self, values: Sequence[float]) -> bool:
        """Whether the median keeps to it."""
        found = statistics.median(values)
        if self.at_least is not None:
            return found >= self.at_least
        return self.at_most is not None and found <= self.at_most


def spread(values: Sequence[float]) -> str:
    """The median, with the lowest and the highest."""
    low, middle, high = (_number(each) for each in (min(values), statistics.median(values), max(values)))
    return middle if len(values) < 2 else f"{middle} ({low}–{high})"


def _number(value: float) -> str:
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def _ratio(cell: str, figure: str, system: str = "zmesh", other: str = BARE) -> Get:
    return lambda results: results.ratios(cell, figure, system, other)


def _wrong(results: Results) -> list[float]:
    rounds = [values for (_, _, figure), values in results.values.items() if figure == "wrong"]
    return [sum(map(sum, rounds))]


def _worst(other: str) -> Get:
    """The ratios of the cell of large values in which we are the least ahead of another system."""

    def of(results: Results) -> list[float]:
        there = [cell for cell in LARGE.cells if other in results.systems(cell)]
        if not there:
            raise KeyError(other)
        return min((results.ratios(cell, "values/s", "zmesh", other) for cell in there), key=statistics.median)

    return of


_CLIENT = "the client's thread takes longer for a call than bare's does, see below"
_ITEMS = "the client makes a dataclass of each item and gives it to an asynchronous iteration, see below"
_WAKES = "a loop wakes for each message where bare blocks in it, see below"

_OTHERS = [name for name in DEFAULT if name != BARE and not name.startswith("zmesh")]

MARKS = [
    *(
        Mark(f"calls/s with {k} in flight : bare", _ratio(f"throughput {k}", "calls/s"), at_least=bound, why=_CLIENT)
        for k, bound in ((64, 0.9), (256, 1.0), (1000, 1.1))
    ),
    *(
        Mark(
            f"calls/s with 256 in flight : {other}",
            _ratio("throughput 256", "calls/s", other=other),
            at_least=20.0 if other == "grpc" else 4.0,
            why="so many times this system is about what bare itself does",
        )
        for other in _OTHERS
    ),
    Mark("sequential, awaited: p50 : bare", _ratio("latency", "p50 µs"), at_most=1.35, why=_WAKES),
    Mark("sequential, awaited: p99 : bare", _ratio("latency", "p99 µs"), at_most=1.5),
    Mark(
        "sequential, blocking: p50 : bare",
        _ratio("latency", "p50 µs", "zmesh-blocking"),
        at_most=1.9,
        why="as the one above, and each call changes threads twice",
    ),
    Mark("sequential, blocking: p50 : awaited", _ratio("latency", "p50 µs", "zmesh-blocking", "zmesh"), at_most=1.7),
    *(
        Mark(f"sequential, awaited: p50 : {other}", _ratio("latency", "p50 µs", other=other), at_most=1.0)
        for other in ("zenoh", "pyro5", "nats", "grpc")
    ),
    *(
        Mark(f"stream, items/s : {other}", _ratio("stream", "items/s", other=other), at_least=1.5, why=_ITEMS)
        for other in (BARE, "zenoh")
    ),
    Mark(
        "fan of eight, rounds/s : bare",
        _ratio("fan", "rounds/s"),
        at_least=0.9,
        why="calls to eight nodes share no message, so each costs what one costs alone",
    ),
    Mark("cold start to the first answer, ms", lambda results: results.of("cold", "zmesh", "ms"), at_most=350.0),
    Mark("wrong answers, of all systems", _wrong, at_most=0.0),
]

# What `benchmarks.large` puts beside those cells: a stream of gigabytes, a run each, and one transfer.
STREAM, SLOW_PATH = "stream of gigabytes", "slow path"
_LARGE_OTHERS = [
    name
    for name, system in SYSTEMS.items()
    if "large" in system.plays and name != BARE and not name.startswith("zmesh")
]

LARGE_MARKS = [
    *(
        Mark(
            f"values/s, {name} : bare",
            _ratio(name, "values/s"),
            at_least=0.9,
            why="one of 1 MiB takes little longer than a call: what a call costs shows" if cell.mib == 1 else "",
        )
        for name, cell in LARGE.cells.items()
    ),
    *(
        Mark(
            f"values/s, the least of the six : {other}",
            _worst(other),
            at_least=2.5,
            why="it sends frames by ZeroMQ as bare does, and is as fast" if other == "zmq-asyncio" else "",
        )
        for other in _LARGE_OTHERS
    ),
    Mark("stream: MB of memory more, the side that takes more", lambda r: r.of(STREAM, "zmesh", "MB"), at_most=300.0),
    Mark("stream: unary p99 beside it : quiet", lambda r: r.of(STREAM, "zmesh", "p99 : quiet"), at_most=3.0),
    Mark("64 MiB at 20 Mbit/s: links lost", lambda r: r.of(SLOW_PATH, "zmesh", "links lost"), at_most=0.0),
]
