"""The generated part of docs/performance.md: marks, tables and plots, from what was measured."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence

from ..figures import chart, put, table
from .marks import MARKS, Mark, spread
from .scenarios import LARGE, SCENARIOS, Results
from .sides import ROOT
from .systems import BARE, SYSTEMS

__all__ = ["PAGE", "about", "judged", "large", "marks", "publish", "tables"]

PAGE = ROOT / "docs" / "performance.md"
PLOT = "performance-throughput.svg"
_THROUGHPUT = {name: cell.in_flight for name, cell in SCENARIOS["throughput"].cells.items()}
Column = Callable[[str], str]  # what a table says of a system


def judged(results: Results, of: Sequence[Mark] = MARKS) -> Iterator[tuple[Mark, Sequence[float]]]:
    """Every mark, with a value a round; none where it was not measured."""
    for mark in of:
        try:
            yield mark, mark.of(results)
        except KeyError:
            yield mark, ()


def marks(found: Iterable[tuple[Mark, Sequence[float]]]) -> str:
    """Every mark, what was measured, and whether it is met. Marks of what was not measured say so."""
    rows: list[list[object]] = []
    reasons = []
    for mark, values in found:
        met = bool(values) and mark.met(values)
        verdict = "met" if met else "**missed**" if values else "not measured"
        rows.append([mark.says, mark.bound, spread(values) if values else "", verdict])
        if values and not met and mark.why:
            reasons.append(f"- {mark.says}: {mark.why}.")
    text = table(["what", "must be", "measured", ""], rows)
    return text + ("\n\nWhy some are missed:\n\n" + "\n".join(reasons) if reasons else "")


def tables(results: Results) -> list[str]:
    """The tables of what was measured, each with its heading."""
    parts = []
    for title, cell, figures in (
        ("One call after the other", "latency", ("p50 µs", "p99 µs", "calls/s")),
        ("Fan: one client asks eight nodes at once", "fan", ("rounds/s", "p50 µs", "p99 µs")),
        ("Map: items over eight nodes, 64 in flight", "map", ("items/s",)),
        ("Stream of answers", "stream", ("items/s",)),
    ):
        columns = {figure: _of(results, cell, figure) for figure in figures}
        columns[f"{figures[0]} : bare"] = _to_bare(results, cell, figures[0])
        columns["CPU s per 1,000 calls" if "calls/s" in figures or cell == "fan" else "CPU s per 1,000 items"] = _cpu(
            results, cell
        )
        parts += _part(results, title, [cell], columns)
    counts = {f"{k:,} in flight": cell for cell, k in _THROUGHPUT.items()}
    title = "Calls in flight"
    parts += _part(results, title, counts.values(), {k: _of(results, cell, "calls/s") for k, cell in counts.items()})
    for heading, made in (("calls/s : bare", lambda cell: _to_bare(results, cell, "calls/s")), ("", None)):
        columns = {k: made(cell) if made else _cpu(results, cell) for k, cell in counts.items()}
        parts += _part(results, heading or "CPU s per 1,000 calls", counts.values(), columns, small=True)
    times = {"ms to the answer": "ms", "of it until all is imported": "imports ms"}
    columns = {title: _of(results, "cold", figure) for title, figure in times.items()}
    return [*parts, *_part(results, "Cold start", ["cold"], columns)]


def large(results: Results) -> list[str]:
    """The tables of large values."""

    def speed(cell: str, mib: int) -> Column:
        def column(system: str) -> str:
            values = results.values.get((cell, system, "values/s"))
            return spread([mib / 1024 * value for value in values]) if values else "–"

        return column

    cells = LARGE.cells
    tables: dict[str, Callable[[str], Column]] = {
        "GiB/s": lambda cell: speed(cell, cells[cell].mib),
        "values/s : bare": lambda cell: _to_bare(results, cell, "values/s"),
        "CPU s per 1,000 values": lambda cell: _cpu(results, cell),
    }
    parts = []
    for title, column in tables.items():
        parts += _part(results, title, list(cells), {cell: column(cell) for cell in cells}, small=True)
    return parts


def _part(
    results: Results, title: str, cells: Sequence[str], columns: dict[str, Column], small: bool = False
) -> list[str]:
    systems = [system for system in SYSTEMS if any(system in results.systems(cell) for cell in cells)]
    if not systems:
        return []
    rows = [[system, *(column(system) for column in columns.values())] for system in systems]
    return [f"**{title}**" if small else f"### {title}", table(["", *columns], rows)]


def _of(results: Results, cell: str, figure: str) -> Column:
    def column(system: str) -> str:
        values = results.values.get((cell, system, figure))
        return spread(values) if values else "–"

    return column


def _to_bare(results: Results, cell: str, figure: str) -> Column:
    def column(system: str) -> str:
        if system == BARE or not {(cell, each, figure) for each in (system, BARE)} <= results.values.keys():
            return "–"
        return spread(results.ratios(cell, figure, system, BARE))

    return column


def _cpu(results: Results, cell: str) -> Column:
    def column(system: str) -> str:
        sides = [results.values.get((cell, system, f"{side} CPU")) for side in ("client", "server")]
        return " / ".join(f"{statistics.median(values):.3f}" for values in sides if values) or "–"

    return column


def about(results: Results, systems: Sequence[str]) -> str:
    """Who was measured, how it was used, and who was not."""
    rows = [[name, SYSTEMS[name].versions, SYSTEMS[name].about] for name in systems if not SYSTEMS[name].missing]
    text = table(["", "versions", "how it is used"], rows)
    missing = {name: f"{', '.join(SYSTEMS[name].missing)} not installed" for name in systems if SYSTEMS[name].missing}
    left_out = "\n".join(f"- {name}: {why}." for name, why in {**missing, **results.left_out}.items())
    return text + (f"\n\nLeft out:\n\n{left_out}" if left_out else "")


def plot(results: Results) -> str:
    """Calls/s by calls in flight."""
    cells = {"latency": 1, **_THROUGHPUT}
    lines = {}
    for system in SYSTEMS:
        points = [(cell, k, results.values.get((cell, system, "calls/s"))) for cell, k in cells.items()]
        line = [(float(k), statistics.median(values)) for _, k, values in points if values]
        if len(line) > 1:
            lines[system] = line
    return chart("Calls a second, medians", "calls in flight", "calls/s", lines, by_magnitude=True)


def publish(results: Results, systems: Sequence[str], seconds: float, idle: str) -> None:
    """Write the page and its plot."""
    others = results.others
    rounds = " to ".join(str(each) for each in sorted({min(results.rounds), max(results.rounds)}))
    noise = f"{statistics.median(others):.2f} of {os.cpu_count()} cores (at most {max(others):.2f})" if others else "–"
    intro = (
        f"Written by `make bench`: {rounds} rounds, {seconds / 60:.0f} minutes, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, {platform.system()} {platform.release()}. While a cell was measured, "
        f"anything else kept {noise} busy: the less, the more the figures are worth."
    )
    parts = tables(results)
    where = next((at for at, part in enumerate(parts) if part == "### Calls in flight"), None)
    if where is not None:
        parts.insert(where + 1, f"![calls/s by calls in flight]({PLOT})")
        (PAGE.parent / PLOT).write_text(plot(results), encoding="utf-8")
    text = [
        intro,
        "### Marks",
        marks(judged(results)),
        *parts,
        "### Idle",
        idle,
        "### The systems",
        about(results, systems),
    ]
    put(PAGE, "bench", "\n\n".join(each for each in text if each))
