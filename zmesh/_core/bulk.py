"""Messages with large values on a second connection: their numbers, their place among the others, and how many bytes
may be under way.

The first connection of a link, its control connection, alone has the order. Where a large message belongs in it stands
PLACE with the message's number; the message itself comes by the bulk connection as BULK, and is handled when both are
there. TAKEN tells the sender that it was. So a large message may be late, and nothing else is; and what was not taken
when a bulk connection is lost is sent once more by the next one.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from .messages import CALL, END, ERROR, ITEM, LIMIT, REPLY, Message, ProtocolError, brief
from .timing import expand

__all__ = [
    "TRANSITIONS",
    "Arrivals",
    "CallKey",
    "Departure",
    "Departures",
    "Event",
    "Pace",
    "Place",
    "Stage",
    "call_of",
    "follow",
]

Frame = bytes | memoryview
CallKey = tuple[int, bool]  # a call's number, and whether the sender of the message made the call

AT_ONCE: Final = 0.02  # seconds that hold nobody up: a MiB takes half over 1 Gbit/s; ZMTP's heartbeat waits for 0.75
KNOWN_FOR: Final = 1.0  # seconds for which a path is taken to be as fast as it was
LITTLE: Final = 1024 * 1024  # bytes that are no silence (0.42 s) even where it falls to 20 Mbit/s meanwhile
MAX_PLACES: Final = 65_536  # places whose messages have not come: some 10 MiB here, which cost a peer little to send


class Stage(enum.Enum):
    """How a link stands with its bulk connection."""

    NONE = "none"  # it can be opened
    DIALING = "dialing"
    OPEN = "open"
    OFF = "off"  # large values go by the control connection


class Event(enum.Enum):
    """What can happen to it."""

    WANTED = "wanted"  # a large message is to be sent, or was placed by the other side (for who dialed the link)
    JOINED = "joined"  # a bulk connection was shaken hands over
    LOST = "lost"  # it ended, and had been of use
    FAILED = "failed"  # it could not be made, or ended before anything was taken
    REFUSED = "refused"  # the other side cannot make one


TRANSITIONS: Final[dict[Stage, dict[Event, Stage]]] = {
    Stage.NONE: {Event.WANTED: Stage.DIALING, Event.JOINED: Stage.OPEN, Event.REFUSED: Stage.OFF},
    Stage.DIALING: {Event.JOINED: Stage.OPEN, Event.FAILED: Stage.OFF},
    Stage.OPEN: {
        Event.JOINED: Stage.OPEN,  # the dialer lost the former one before we did
        Event.LOST: Stage.NONE,
        Event.FAILED: Stage.OFF,
        Event.REFUSED: Stage.OFF,
    },
    Stage.OFF: {Event.REFUSED: Stage.OFF},
}


def follow(stage: Stage, event: Event) -> Stage:
    """The next stage. Raises RuntimeError for what cannot happen."""
    try:
        return TRANSITIONS[stage][event]
    except KeyError:
        raise RuntimeError(f"a bulk connection that is {stage.value} cannot be '{event.value}'") from None


def call_of(message: Message) -> CallKey | None:
    """Of which call a message is that has its place in the call's order; None for all others."""
    kind, number = message[0], message[1] if len(message) > 1 else None
    if kind in (CALL, END):
        return number, True  # type: ignore[return-value]
    if kind in (REPLY, ERROR):
        return number, False  # type: ignore[return-value]
    return (number, not message[2]) if kind == ITEM else None  # type: ignore[return-value]


class Departure:
    """A message that leaves by bulk, as frames."""

    __slots__ = ("begins", "call", "frames", "size")

    def __init__(self, call: CallKey, frames: Sequence[Frame], size: int, *, begins: bool = False) -> None:
        """begins: whether it is the CALL itself."""
        self.begins = begins
        self.call = call
        self.frames = frames
        self.size = size


class Departures:
    """What one side sends by bulk, in order, each kept until the other side has taken it."""

    def __init__(self, window: int) -> None:
        """window: bytes that may be under way, as the other side says; a message that is larger goes alone."""
        self._window = window
        self._kept: deque[Departure] = deque()
        self._handed = 0  # of those, from the first on, to the transport
        self._under_way = 0  # their bytes
        self._left = 0  # the highest number that was ever handed over
        self._calls: dict[CallKey, int] = {}  # how many are kept of each
        self.placed = 0  # how many there were in all

    def __len__(self) -> int:
        """How many were not taken yet."""
        return len(self._kept)

    @property
    def under_way(self) -> int:
        """Bytes of those that were handed over and not taken."""
        return self._under_way

    def waits(self, call: CallKey | None) -> bool:
        """Whether a message of this call would overtake one that was not taken yet."""
        return call in self._calls

    def add(self, departure: Departure) -> None:
        """Put a message behind all others; its number is `placed` from here on."""
        self.placed += 1
        self._kept.append(departure)
        self._calls[departure.call] = self._calls.get(departure.call, 0) + 1

    def next(self) -> Departure | None:
        """What is to be handed to the transport now."""
        if self._handed == len(self._kept):
            return None
        departure = self._kept[self._handed]
        fits = not self._under_way or self._under_way + departure.size <= self._window
        return departure if fits else None

    def handed(self) -> None:
        """The transport took what `next` gave."""
        self._under_way += self._kept[self._handed].size
        self._handed += 1
        self._left = max(self._left, self._first + self._handed - 1)

    def taken(self, number: int) -> None:
        """The other side took all up to this number. Raises ProtocolError for one that was not sent."""
        last, first = expand(number, self.placed + 1), self._first
        if not first <= last <= self._left:
            raise ProtocolError(f"bulk message {number} was not under way")
        for _ in range(last - first + 1):
            departure = self._kept.popleft()
            if self._handed:  # else it left by a connection that is lost
                self._handed -= 1
                self._under_way -= departure.size
            left = self._calls.pop(departure.call) - 1
            if left:
                self._calls[departure.call] = left

    def drop(self, call: CallKey, instead: Callable[[int], Departure]) -> None:
        """Nobody wants what there is of a call: `instead` makes what goes in place of each that did not leave."""
        if call in self._calls:
            for at in range(self._handed, len(self._kept)):
                if self._kept[at].call == call:
                    self._kept[at] = instead(self._first + at)

    def left(self, call: CallKey) -> bool:
        """Whether CALL of a call may have left: unless it is kept here and was never handed over."""
        if call not in self._calls:
            return True
        unsent = range(max(self._left + 1 - self._first, 0), len(self._kept))
        return not any(self._kept[at].begins and self._kept[at].call == call for at in unsent)

    @property
    def _first(self) -> int:
        return self.placed - len(self._kept) + 1

    def again(self) -> None:
        """The connection is lost: what was not taken is handed over once more."""
        self._handed = self._under_way = 0

    def rest(self) -> list[Departure]:
        """All that was not taken: it is handed over otherwise, at once."""
        self._handed, self._left = len(self._kept), self.placed
        self._under_way = sum(departure.size for departure in self._kept)
        return list(self._kept)


class Pace:
    """How fast the other side took bulk messages a moment ago: what is little beside that needs no connection of its
    own, and spares both sides its place and its envelopes."""

    def __init__(self) -> None:
        self._bytes = 0  # that left since nothing was under way
        self._since = 0.0
        self._rate = 0.0  # bytes per second, acknowledgement and all
        self._known_until = 0.0

    def left(self, size: int, now: float) -> None:
        """A bulk message was handed to the transport."""
        if not self._bytes:
            self._since = now
        self._bytes += size

    def rested(self, now: float) -> None:
        """Nothing is under way any more, as all of it was taken."""
        if self._bytes:
            seconds = now - self._since
            self._rate = self._bytes / seconds if seconds > 0 else math.inf
            self._known_until = now + KNOWN_FOR
            self._bytes = 0

    def lost(self) -> None:
        """The bulk connection ended."""
        self._bytes, self._known_until = 0, 0.0

    def at_once(self, size: int, now: float) -> bool:
        """Whether so many bytes would have come before anybody noticed that they were under way."""
        return size <= LITTLE and now < self._known_until and size <= self._rate * AT_ONCE


class Place:
    """Where a message that comes by bulk belongs. waited: ms that PLACE stood in queues; when: it was received."""

    __slots__ = ("given_up", "kind", "number", "waited", "when")

    def __init__(self, kind: int, number: int, waited: int, when: float) -> None:
        self.kind = kind
        self.number = number
        self.waited = waited
        self.when = when
        self.given_up = False  # nobody wants what comes

    def check(self, message: object) -> None:
        """Raises ProtocolError for a message that does not belong here. None belongs anywhere: it was given up."""
        if message is None:
            return
        head = message[:2] if type(message) is list else []
        if [type(item) for item in head] != [int, int] or head != [self.kind, self.number]:
            raise ProtocolError(f"a bulk message is not what its place said: {brief(message)}")


class Arrivals:
    """What comes by bulk: places and messages, each in order, matched."""

    def __init__(self, window: int) -> None:
        """window: bytes that may come before their places, as we said; one that is larger may come alone."""
        self._window = window
        self._places: deque[Place] = deque()  # whose message has not come; at most one of the two is not empty
        self._early: deque[tuple[object, int]] = deque()  # messages whose place has not come, and their sizes
        self._early_bytes = 0
        self._placed = 0
        self._came = 0

    @property
    def handled(self) -> int:
        """The number up to which both have come, as TAKEN has it."""
        return min(self._placed, self._came) & LIMIT

    @property
    def awaited(self) -> deque[Place]:
        """The places whose messages have not come."""
        return self._places

    def place(self, number: int, place: Place) -> tuple[object, int] | None:
        """A place has come: the message that belongs there and its size, if that is here. Raises ProtocolError where it
        may not."""
        if number != (self._placed + 1) & LIMIT:
            raise ProtocolError(f"place {number} of a bulk message came where {self._placed + 1} was due")
        if len(self._places) >= MAX_PLACES:
            raise ProtocolError(f"more than {MAX_PLACES} bulk messages were placed and have not come")
        self._placed += 1
        if not self._early:
            self._places.append(place)
            return None
        message, size = self._early.popleft()
        self._early_bytes -= size
        place.check(message)
        return message, size

    def come(self, number: int, message: object, size: int) -> Place | None:
        """A message has come: its place, if that is here; None also for one that had come before. Raises ProtocolError
        where it may not."""
        if number != (self._came + 1) & LIMIT:
            if (self._came - number) & LIMIT < min(self._came, MAX_PLACES):
                return None  # sent once more, since a connection was lost before TAKEN arrived
            raise ProtocolError(f"bulk message {number} came where {self._came + 1} was due")
        self._came += 1
        if self._places:
            place = self._places.popleft()
            place.check(message)
            return place
        if self._early and self._early_bytes + size > self._window:
            raise ProtocolError(f"more than {self._window} bytes of bulk messages are under way")
        self._early.append((message, size))
        self._early_bytes += size
        return None
