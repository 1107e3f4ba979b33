"""`zmesh bench` without its screen: calls kept in flight, and what they took."""

from __future__ import annotations

import asyncio
import math
import time
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import zmesh

from ._process import Child

__all__ = ["Echo", "Level", "measure", "percentile"]

_PAUSE: Final = 0.05  # seconds that a caller waits after a call that failed at once: errors are no race


class Echo(Child, name="zmesh.Bench"):
    """What is called where nobody named a method."""

    @zmesh.rpc(idempotent=True)
    async def echo(self, text: str) -> str:
        return text


@dataclass
class Level:
    """What became of the calls with so many in flight. Latencies are in seconds, of the calls that were answered."""

    in_flight: int
    seconds: float = 0.0
    latencies: array[float] = field(default_factory=lambda: array("d"))
    nodes: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    example: str = ""  # the first error
    bare: float | None = None  # calls per second of the loop that it is shown beside

    @property
    def calls(self) -> int:
        return len(self.latencies) + self.errors.total()

    @property
    def rate(self) -> float:
        """Calls answered per second."""
        return len(self.latencies) / self.seconds if self.seconds else 0.0


async def measure(level: Level, call: Callable[[], zmesh.Call[Any]], seconds: float, calls: int | None) -> None:
    """Keep as many calls in flight as the level says, for so long or until so many were made. What was seen is in the
    level at any time, also where this is cancelled."""
    clock = time.perf_counter
    began = clock()
    left = math.inf if calls is None else calls

    async def one_after_the_other() -> None:
        nonlocal left
        while left > 0 and clock() < began + seconds:
            left -= 1
            await _one(level, call())

    workers = [asyncio.create_task(one_after_the_other()) for _ in range(level.in_flight)]
    try:
        await asyncio.gather(*workers)
    finally:
        level.seconds = clock() - began
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


async def _one(level: Level, call: zmesh.Call[Any]) -> None:
    sent = time.perf_counter()
    try:
        await call
    except zmesh.RpcError as error:
        level.errors[error.code.name] += 1
        level.example = level.example or str(error)
        await asyncio.sleep(_PAUSE)
        return
    level.latencies.append(time.perf_counter() - sent)
    level.nodes[call.node or "?"] += 1


def percentile(ordered: array[float] | list[float], percent: float) -> float:
    """The smallest value that at least `percent` per cent of the values do not exceed; NaN of none."""
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)] if ordered else math.nan
