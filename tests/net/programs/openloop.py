"""Open-loop load: calls start when they are planned to, however late the answers are, and are timed from the plan."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

WARM_UP_CALLS = 100  # made before the start, and not counted


@dataclass(frozen=True)
class Outcome:
    """What became of one call."""

    token: str
    planned: float  # monotonic
    latency: float  # seconds from the planned start to the answer or error
    late: float  # seconds from the planned start to the real one
    error: str | None = None  # the class of the error, None for an answer
    code: str = "OK"
    may_have_run: bool = True
    server: str | None = None  # who answered
    message: str = ""


@dataclass(frozen=True)
class Seen:
    """A peer as the client saw it from this moment on; state "gone": no longer listed."""

    at: float  # monotonic
    peer: str  # its name
    id: str  # its incarnation
    state: str
    address: str


@dataclass(frozen=True)
class Report:
    """All that a load client has to tell."""

    start: float  # monotonic
    outcomes: list[Outcome]
    seen: list[Seen]
    extra: dict[str, int] = field(default_factory=dict)  # attempts beyond the first of each call, by what made them

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Report:
        data = json.loads(path.read_text())
        outcomes = [Outcome(**one) for one in data["outcomes"]]
        return cls(data["start"], outcomes, [Seen(**one) for one in data["seen"]], data["extra"])


async def drive(
    rate: float, seconds: float, start: float, call: Callable[[int, float], Awaitable[Outcome]], stop: asyncio.Event
) -> list[Outcome]:
    """Start `call(number, planned)` `rate` times a second until `seconds` have passed or `stop` is set."""
    loop = asyncio.get_running_loop()
    running: set[asyncio.Future[Outcome]] = set()
    done: list[Outcome] = []

    def ended(task: asyncio.Future[Outcome]) -> None:
        running.discard(task)
        done.append(task.result())

    for number in range(int(rate * seconds)):
        planned = start + number / rate
        if (ahead := planned - loop.time()) > 0:
            await asyncio.sleep(ahead)
        if stop.is_set():
            break
        task = asyncio.ensure_future(call(number, planned))
        running.add(task)
        task.add_done_callback(ended)
    if running:
        await asyncio.wait(running)
        await asyncio.sleep(0)  # the callbacks of the last ones
    return done


async def lines_of_stdin() -> asyncio.StreamReader:
    """Standard input, to be read without stopping the loop."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader
