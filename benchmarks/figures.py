"""Means with their intervals, tables and plots, and their way into the pages of docs/."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["Measured", "chart", "put", "table"]

# Student's t for 95 % of both sides, by degrees of freedom.
_T: Final = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
_COLORS: Final = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#8c564b", "#7f7f7f", "#e377c2", "#17becf",
           "#bcbd22", "#ff7f0e", "#000000")  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """The mean of one value per seed, and half the width of its 95 % interval."""

    mean: float
    half: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Measured:
        mean = statistics.fmean(values)
        if len(values) < 2 or not math.isfinite(mean):
            return cls(mean, float("inf") if len(values) < 2 else 0.0)
        half = _T.get(len(values) - 1, 1.96 + 2.5 / (len(values) - 1)) * statistics.stdev(values)
        return cls(mean, half / math.sqrt(len(values)))

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half

    def __str__(self) -> str:
        if not math.isfinite(self.half) or not math.isfinite(self.mean):
            return _number(self.mean)
        digits = _digits(self.mean, self.half)
        return f"{self.mean:.{digits}f} ± {self.half:.{digits}f}"


def _digits(mean: float, half: float) -> int:
    """As many as the interval makes sense of: two of the interval's, at most four."""
    scale = half or abs(mean) / 100.0
    return 0 if scale <= 0.0 else min(max(1 - math.floor(math.log10(scale)), 0), 4)


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def chart(
    title: str,
    across: str,
    up: str,
    lines: Mapping[str, Sequence[tuple[float, float]]],
    *,
    by_magnitude: bool = False,
) -> str:
    """Lines over a logarithmic height, as SVG. Points with an infinite height are left out.

    by_magnitude: the width is logarithmic, too.
    """
    width, height, left, right, top, bottom = 720, 380, 64, 170, 36, 46
    breadth = math.log10 if by_magnitude else float
    points = [(x, y) for line in lines.values() for x, y in line if math.isfinite(y) and y > 0.0]
    low_x, high_x = breadth(min(x for x, _ in points)), breadth(max(x for x, _ in points))
    low = math.floor(math.log10(min(y for _, y in points)) * 3.0) / 3.0
    high = math.ceil(math.log10(max(y for _, y in points)) * 3.0) / 3.0
    if high <= low:
        high = low + 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        share_x = (breadth(x) - low_x) / ((high_x - low_x) or 1.0)
        share_y = (math.log10(y) - low) / (high - low)
        return left + share_x * (width - left - right), height - bottom - share_y * (height - top - bottom)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="12"><rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="20" font-size="14">{title}</text>',
        f'<text x="{(width - right + left) / 2:.0f}" y="{height - 8}" text-anchor="middle">{across}</text>',
        f'<text transform="translate(14 {height / 2:.0f}) rotate(-90)" text-anchor="middle">{up}</text>',
    ]
    for power in range(math.floor(low), math.ceil(high) + 1):
        for step in (1.0, 2.0, 5.0):
            value = step * 10.0**power
            if low <= math.log10(value) <= high:
                _, y = place(points[0][0], value)
                out.append(f'<path d="M{left} {y:.1f}H{width - right}" stroke="#ddd"/>')
                out.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for x in sorted({x for x, _ in points}):
        at, _ = place(x, 10.0**low)
        out.append(f'<text x="{at:.1f}" y="{height - bottom + 16}" text-anchor="middle">{x:g}</text>')
    for number, (name, line) in enumerate(lines.items()):
        color = _COLORS[number % len(_COLORS)]
        places = [place(x, y) for x, y in line if math.isfinite(y) and y > 0.0]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        out.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in places]
        y = top + 14 + 18 * number
        out.append(f'<path d="M{width - right + 14} {y - 4}h18" stroke="{color}" stroke-width="2"/>')
        out.append(f'<text x="{width - right + 38}" y="{y}">{name}</text>')
    return "\n".join([*out, "</svg>", ""])


def put(page: Path, mark: str, text: str) -> None:
    """Put a generated part into its place on the page, between `<!-- MARK -->` and `<!-- end of MARK -->`. Raises
    ValueError where there is no such place."""
    before, opening, rest = page.read_text(encoding="utf-8").partition(f"<!-- {mark} -->\n")
    _, ending, after = rest.partition(f"<!-- end of {mark} -->")
    if not opening or not ending:
        raise ValueError(f"{page.name} has no place for {mark!r}")
    page.write_text(f"{before}{opening}\n{text}\n\n{ending}{after}", encoding="utf-8")
