"""What really happened in a run, seen from outside of the mesh."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

import zmesh

Profile = Literal["chaos", "single", "drains"]
PROFILES: Final[tuple[Profile, ...]] = get_args(Profile)

LATE: Final = 0.01  # seconds after its deadline at which a call may still end: timers have a grain of 4 ms


@dataclass
class Record:
    """A call, and how it ended."""

    token: str
    method: str
    idempotent: bool
    caller: str
    began: float
    timeout: float | None
    takes: float = 0.0
    ended: float | None = None
    ends: int = 0
    answer: str | int | None = None
    error: zmesh.RpcError | None = None
    cancelled: bool = False

    def end(self, now: float) -> None:
        self.ended = now
        self.ends += 1

    @property
    def outcome(self) -> str:
        """How it ended, for a count."""
        if self.answer is not None:
            return "ok"
        if self.cancelled:
            return "cancelled"
        return "lost" if self.error is None else type(self.error).__name__

    def __str__(self) -> str:
        end = f"{type(self.error).__name__}: {self.error}" if self.error is not None else self.answer or self.outcome
        return (
            f"{self.method}({self.token}) from {self.caller} at {self.began:.3f}, timeout {self.timeout}, "
            f"takes {self.takes:.3f}, ended {self.ended if self.ended is None else round(self.ended, 3)}: {end}"
        )


@dataclass
class Opened:
    """A generator, or a handler that reads one: what it has made or taken, and whether it was closed."""

    token: str
    run: int
    what: str
    place: str  # the incarnation in which it ran, `server-1#7`
    opened: float = 0.0
    closed: float | None = None
    items: int = 0
    finished: bool = False  # it came to its end
    raised: bool = False  # it raised what it was told to
    whole: bool = True  # its closing was not cut short

    def __str__(self) -> str:
        closed = "open" if self.closed is None else f"closed at {self.closed:.3f}"
        return f"{self.what} of {self.token}, run {self.run} at {self.place} from {self.opened:.3f}, {closed}"


@dataclass
class Ledger:
    """See the module."""

    now: Callable[[], float]
    calls: list[Record] = field(default_factory=list)
    runs: dict[str, list[str]] = field(default_factory=dict)  # token to the incarnations that ran it
    raised: set[str] = field(default_factory=set)  # tokens whose handler said UNAVAILABLE; asked, never iterated over
    opened: dict[str, list[Opened]] = field(default_factory=dict)  # by token
    frozen: dict[str, list[tuple[float, float]]] = field(default_factory=dict)  # by host
    harmed: list[tuple[str, float, float]] = field(default_factory=list)  # whom `single` harmed, from when to when
    places: dict[str, str] = field(default_factory=dict)  # of each host, the incarnation that runs or ran last
    crashed: set[str] = field(default_factory=set)  # incarnations; asked, never iterated over
    violations: list[str] = field(default_factory=list)
    quiet: bool = False  # streams that are held make nothing any more
    released: asyncio.Event = field(default_factory=asyncio.Event)  # and are to end
    _tokens: int = 0
    _starts: int = 0

    def token(self) -> str:
        """A name for one more call."""
        self._tokens += 1
        return f"t{self._tokens}"

    def starts(self, host: str) -> str:
        """One more incarnation of a host."""
        self._starts += 1
        self.places[host] = f"{host}#{self._starts}"
        return self.places[host]

    def ran(self, token: str, place: str) -> int:
        """A handler runs; how many have, for this call."""
        self.runs.setdefault(token, []).append(place)
        return len(self.runs[token])

    def complain(self, what: str, record: object) -> None:
        self.violations.append(f"{what}: {record}")

    def victims(self, began: float, ended: float) -> list[str]:
        """Whom the profile `single` harmed meanwhile."""
        return [name for name, since, until in self.harmed if since <= ended and began <= until]

    def allowed(self, host: str, end: float) -> float:
        """When what is due at `end` may happen at last on a host: then, or when it went on after that."""
        for began, ended in sorted(self.frozen.get(host, [])):
            if began <= end + LATE and end <= ended:
                end = ended
        return end + LATE
