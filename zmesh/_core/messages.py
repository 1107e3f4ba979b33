"""The messages of the protocol, as they are on the wire. docs/protocol.md is the normative text.

A message is a CBOR array whose first item is its kind. Numbers are append-only: a kind or a field is never renumbered
or reused; new fields are appended, and a receiver ignores fields that it does not know. Every integer stays below
2**31, so that JavaScript keeps it exact.

In memory a message is the list itself, checked on arrival by `check`: no object is built per message on the hot path.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeGuard

MAJOR: Final = 1
MINOR: Final = 0

# Kinds. 20 to 23 are reserved for streams, 24 to 31 for security, 36 on for later use.
HELLO: Final = 1  # [1, major, minor, {fields}]
REJECT: Final = 2  # [2, code, text]: this link cannot be; the sender forgets it
CALL: Final = 3  # [3, call, method, remaining ms, arguments, metadata / null, until begun, rank, attempt, [nodes]]
REPLY: Final = 4  # [4, call, value, metadata / null]
ERROR: Final = 5  # [5, call, code, text, ran, {fields} / null]
CANCEL: Final = 6  # [6, call]
HEARTBEAT: Final = 7  # [7, ping / null, pong / null, report / null]
DRAIN: Final = 8  # [8]
DRAIN_ACK: Final = 9  # [9]
GOODBYE: Final = 10  # [10, last call / null]
UNSUPPORTED: Final = 11  # [11, kind]: the answer to a kind that the sender does not know
# The usual calls and answers of an envelope, each row of them as one message: see `single`.
CALLS: Final = 12  # [12, first call, method, remaining ms, [arguments, ...], metadata / null]; the last may be absent
REPLIES: Final = 13  # [13, [call, ...], [value, ...]]
ITEM: Final = 16  # [16, call, answer, sequence, value]; answer: of the stream that answers, else of the one that asks
END: Final = 17  # [17, call, items]: of the stream that asks; the one that answers is ended by REPLY or ERROR
CREDIT: Final = 18  # [18, call, answer, items]
ITEMS: Final = 19  # [19, call, answer, sequence of the first, CBOR of an array of values]: a row of small items
# Large values: see `_core.bulk`. Known where both sides do this.
PLACE: Final = 32  # [32, bulk, kind, call]: here belongs a message that comes by the bulk connection
BULK: Final = 33  # [33, bulk, message / null]
TAKEN: Final = 34  # [34, bulk]: all up to this one have come
NO_BULK: Final = 35  # [35]: the dialer has no bulk connection; what was placed comes by the control connection
BY_BULK: Final = (CALL, REPLY, ERROR, ITEM, END)  # what may travel as BULK

# A report, inside a heartbeat: [calls in flight, yours among them, latency us / null, queue wait us, admission, state]
SERVING: Final = 0
DRAINING: Final = 1

LIMIT: Final = 0x7FFF_FFFF  # the largest integer on the wire, and the modulus (plus one) of call numbers and clocks
MAX_ROW: Final = 1024  # calls, answers or items of one CALLS, REPLIES or ITEMS
MAX_CALLS: Final = 64  # of one envelope: what is begun before others have their turn; zmesh itself puts 32 into one
DEFAULT_ITEMS: Final = 16  # of one stream under way, to a node that does not say how many it holds
DEFAULT_ITEM_BYTES: Final = 65_536
ARGUMENT_TYPES: Final = (dict, list)
_NAME_TYPES: Final = frozenset((str,))
_METADATA_TYPES: Final = frozenset((str, bytes))
_ARGUMENT_TYPES: Final = frozenset(ARGUMENT_TYPES)
_INTEGERS: Final = frozenset((int,))


class ProtocolError(ValueError):
    """What arrived is not this protocol. The message says what was wrong; whoever catches it adds who sent it."""


Message = list[object]


class _Brief(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if -(1 << 64) < x < 1 << 64 else "an integer of many digits"  # Python refuses to print some

    def repr_bytes(self, x: bytes, level: int) -> str:
        return repr(x[:30])


def brief(value: object, length: int = 60) -> str:
    """A received value for a message: never long, never an error, whatever was sent."""
    try:
        return _BRIEF.repr(value)[:length]
    except Exception:
        return type(value).__name__


_BRIEF: Final = _Brief()
_BRIEF.maxlist = _BRIEF.maxtuple = _BRIEF.maxdict = 8
_BRIEF.maxlevel = 3


def tag_of(node_id: bytes) -> int:
    """The 31 bits of an incarnation that every envelope for it carries; never 0, which means `not known yet`."""
    return (int.from_bytes(node_id[:4], "big") >> 1) or 1


@dataclass(frozen=True, slots=True)
class Offer:
    """A service as a node offers it: the digest tells whether two nodes mean the same schema."""

    name: str
    version: str
    digest: str

    @property
    def major(self) -> int:
        return int(self.version.partition(".")[0])


@dataclass(frozen=True, slots=True)
class BulkOffer:
    """What a node says of bulk connections in its HELLO.

    window: bytes of bulk messages that may be under way to it.
    token, port: by which the dialer of this link opens a connection, and where; absent in what the dialer says.
    """

    window: int
    token: bytes = b""
    port: int = 0

    def field(self) -> dict[str, object]:
        fields: dict[str, object] = {"bytes": min(self.window, LIMIT)}
        return fields | {"token": self.token, "port": self.port} if self.token else fields

    @classmethod
    def parse(cls, value: object) -> BulkOffer | None:
        """None where nothing is offered, or in a form that this version does not know."""
        if not isinstance(value, dict):
            return None
        token, port = value.get("token", b""), value.get("port", 0)
        if not (isinstance(token, bytes) and len(token) in (0, 16) and type(port) is int and 0 <= port < 65_536):
            return None
        return cls(_limit(value, "bytes"), token, port)


@dataclass(frozen=True, slots=True)
class Hello:
    """Who a node is, said once on each link by each side."""

    id: bytes
    name: str
    mesh: str
    host: str = ""
    addresses: tuple[str, ...] = ()
    capacity: float = 1.0
    services: tuple[Offer, ...] = ()
    max_message: int = LIMIT
    max_calls: int = LIMIT
    max_items: int = DEFAULT_ITEMS
    max_item_bytes: int = DEFAULT_ITEM_BYTES
    software: str = ""
    expects: bytes | None = None
    bulk: BulkOffer | None = None
    major: int = MAJOR
    minor: int = MINOR

    def message(self) -> Message:
        fields: dict[str, object] = {
            "id": self.id,
            "name": self.name,
            "mesh": self.mesh,
            "host": self.host,
            "addresses": list(self.addresses),
            "capacity": self.capacity,
            "services": [[offer.name, offer.version, offer.digest] for offer in self.services],
            "limits": {
                "message": min(self.max_message, LIMIT),
                "calls": min(self.max_calls, LIMIT),
                "items": min(self.max_items, LIMIT),
                "bytes": min(self.max_item_bytes, LIMIT),
            },
            "software": self.software,
        }
        if self.expects is not None:
            fields["expects"] = self.expects
        if self.bulk is not None:
            fields["bulk"] = self.bulk.field()
        return [HELLO, self.major, self.minor, fields]

    @classmethod
    def parse(cls, message: Message) -> Hello:
        """A HELLO of our own major version; the version itself is checked before, by the caller."""
        _, major, minor, fields = message[:4]
        assert isinstance(major, int)
        assert isinstance(minor, int)
        assert isinstance(fields, dict)

        def get(key: str, kinds: type | tuple[type, ...], default: object = None) -> object:
            value = fields.get(key, default)
            if not isinstance(value, kinds):
                raise ProtocolError(f"HELLO: {key!r} is {type(value).__name__}, {brief(value)}")
            return value

        node_id = get("id", bytes)
        expects = fields.get("expects")
        if len(node_id) != 16 or not (expects is None or isinstance(expects, bytes)):  # type: ignore[arg-type]
            raise ProtocolError("HELLO: 'id' and 'expects' are 16 bytes")
        capacity = get("capacity", (int, float), 1.0)
        if not 0 < capacity < 1e6:  # type: ignore[operator]
            raise ProtocolError(f"HELLO: 'capacity' is {brief(capacity)}, not within 0 to 1e6")
        limits = get("limits", dict, {})
        return cls(
            id=node_id,  # type: ignore[arg-type]
            name=printable(get("name", str)),
            mesh=get("mesh", str),  # type: ignore[arg-type]
            host=get("host", str, ""),  # type: ignore[arg-type]
            addresses=tuple(a for a in get("addresses", list, []) if isinstance(a, str)),  # type: ignore[attr-defined]
            capacity=float(capacity),  # type: ignore[arg-type]
            services=tuple(_offer(item) for item in get("services", list, [])),  # type: ignore[attr-defined]
            max_message=_limit(limits, "message"),
            max_calls=_limit(limits, "calls"),
            max_items=_limit(limits, "items", DEFAULT_ITEMS),
            max_item_bytes=_limit(limits, "bytes", DEFAULT_ITEM_BYTES),
            software=printable(get("software", str, "")),
            expects=expects,
            bulk=BulkOffer.parse(fields.get("bulk")),
            major=major,
            minor=minor,
        )


BUILT_IN: Final = "zmesh"  # the service that every serving node has
MAX_NAME: Final = 128


def printable(text: object, length: int = MAX_NAME) -> str:
    """What people will see on a terminal: nothing that steers it, and not too much."""
    assert isinstance(text, str)
    text = text[:length]
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def _limit(limits: object, key: str, default: int = LIMIT) -> int:
    value = limits.get(key, default) if isinstance(limits, dict) else default
    return value if isinstance(value, int) and 0 < value <= LIMIT else default


def _offer(item: object) -> Offer:
    if not (isinstance(item, list) and len(item) >= 3 and all(isinstance(part, str) for part in item[:3])):
        raise ProtocolError(f"HELLO: a service is [name, version, digest], got {brief(item)}")
    offer = Offer(item[0], item[1], item[2])
    try:
        offer.major  # noqa: B018  (a property that parses)
    except ValueError:
        raise ProtocolError(f"HELLO: {item[1]!r:.20} is no version of service {item[0]!r:.60}") from None
    return offer


def _row(value: object) -> TypeGuard[list[object]]:
    return type(value) is list and len(value) <= MAX_ROW


def _number(value: object) -> bool:
    return type(value) is int and 0 <= value <= LIMIT


def is_metadata(value: object) -> bool:
    """Whether this is metadata, or None."""
    return value is None or (
        type(value) is dict
        and _NAME_TYPES.issuperset(map(type, value))
        and _METADATA_TYPES.issuperset(map(type, value.values()))
    )


def _check_hello(m: Message) -> bool:
    if len(m) < 3 or not (_number(m[1]) and _number(m[2])):
        return False
    return m[1] != MAJOR or (len(m) >= 4 and isinstance(m[3], dict))  # what another major adds is its own affair


def _check_reject(m: Message) -> bool:
    return len(m) >= 3 and _number(m[1]) and isinstance(m[2], str)


def _check_error(m: Message) -> bool:
    return (
        len(m) >= 6
        and _number(m[1])
        and _number(m[2])
        and isinstance(m[3], str)
        and isinstance(m[4], bool)
        and (m[5] is None or isinstance(m[5], dict))
    )


def _check_one_number(m: Message) -> bool:
    return len(m) >= 2 and _number(m[1])


def _check_heartbeat(m: Message) -> bool:
    if len(m) < 4 or not ((m[1] is None or _number(m[1])) and (m[2] is None or _number(m[2]))):
        return False
    report = m[3]
    if report is None:
        return True
    if type(report) is not list or len(report) < 6:
        return False
    latency = 0 if report[2] is None else report[2]
    numbers = [*report[:2], latency, *report[3:6]]
    return _INTEGERS.issuperset(map(type, numbers)) and min(numbers) >= 0 and max(numbers) <= LIMIT


def _check_nothing(m: Message) -> bool:
    return True


def _check_calls(m: Message) -> bool:
    return (
        len(m) >= 5
        and _number(m[1])
        and type(m[2]) is str
        and _number(m[3])
        and _row(m[4])
        and _ARGUMENT_TYPES.issuperset(map(type, m[4]))
        and (len(m) == 5 or m[5] is None or is_metadata(m[5]))
    )


def _check_replies(m: Message) -> bool:
    return (
        len(m) >= 3 and _row(m[1]) and _row(m[2]) and len(m[1]) == len(m[2]) and _INTEGERS.issuperset(map(type, m[1]))
    )


def _check_item(m: Message) -> bool:
    return len(m) >= 5 and _number(m[1]) and type(m[2]) is bool and _number(m[3])


def _check_items(m: Message) -> bool:
    return _check_item(m) and type(m[4]) is bytes


def _check_two_numbers(m: Message) -> bool:
    return len(m) >= 3 and _number(m[1]) and _number(m[2])


def _check_credit(m: Message) -> bool:
    return len(m) >= 4 and _number(m[1]) and type(m[2]) is bool and _number(m[3])


def _check_place(m: Message) -> bool:
    return len(m) >= 4 and _number(m[1]) and type(m[2]) is int and m[2] in BY_BULK and _number(m[3])


def _check_bulk(m: Message) -> bool:
    return len(m) >= 3 and _number(m[1])


def _check_goodbye(m: Message) -> bool:
    return len(m) >= 2 and (m[1] is None or _number(m[1]))


NAMES: Final = {
    HELLO: "HELLO",
    REJECT: "REJECT",
    CALL: "CALL",
    REPLY: "REPLY",
    ERROR: "ERROR",
    CANCEL: "CANCEL",
    HEARTBEAT: "HEARTBEAT",
    DRAIN: "DRAIN",
    DRAIN_ACK: "DRAIN_ACK",
    GOODBYE: "GOODBYE",
    UNSUPPORTED: "UNSUPPORTED",
    CALLS: "CALLS",
    REPLIES: "REPLIES",
    ITEM: "ITEM",
    END: "END",
    CREDIT: "CREDIT",
    ITEMS: "ITEMS",
    PLACE: "PLACE",
    BULK: "BULK",
    TAKEN: "TAKEN",
    NO_BULK: "NO_BULK",
}

_CHECKS: Final[dict[int, Callable[[Message], bool]]] = {
    HELLO: _check_hello,
    REJECT: _check_reject,
    ERROR: _check_error,
    CANCEL: _check_one_number,
    HEARTBEAT: _check_heartbeat,
    DRAIN: _check_nothing,
    DRAIN_ACK: _check_nothing,
    GOODBYE: _check_goodbye,
    UNSUPPORTED: _check_one_number,
    CALLS: _check_calls,
    REPLIES: _check_replies,
    ITEM: _check_item,
    END: _check_two_numbers,
    CREDIT: _check_credit,
    ITEMS: _check_items,
}


# Known where both sides do this, and checked there: a bad one of these spoils the order of all that follows.
_BULK_CHECKS: Final[dict[int, Callable[[Message], bool]]] = {
    PLACE: _check_place,
    BULK: _check_bulk,
    TAKEN: _check_one_number,
    NO_BULK: _check_nothing,
}


def check_bulk(message: Message) -> None:
    """Raises ProtocolError for a PLACE, BULK, TAKEN or NO_BULK that has not the fields of its kind."""
    kind: int = message[0]  # type: ignore[assignment]
    if not _BULK_CHECKS[kind](message):
        raise _misfit(kind, message)


def _misfit(kind: int, message: Message) -> ProtocolError:
    return ProtocolError(f"{NAMES[kind]} has fields of the wrong number or type: {brief(message, 120)}")


def check(message: object) -> int:
    """The kind of a message that has the fields of its kind; ProtocolError for anything else.

    A kind that this version does not know is returned as it is: the receiver answers UNSUPPORTED.
    """
    if type(message) is not list or not message:
        raise ProtocolError(f"a message is a non-empty array, got {brief(message)}")
    kind = message[0]
    if type(kind) is not int or not 0 <= kind <= LIMIT:
        raise ProtocolError(f"a message begins with its kind, got {brief(kind)}")
    if kind == REPLY:  # the two that there are many of cost no call of a function
        fits = (
            len(message) >= 4
            and type(number := message[1]) is int
            and 0 <= number <= LIMIT
            and (message[3] is None or is_metadata(message[3]))
        )
    elif kind == CALL:
        fits = (
            len(message) >= 6
            and type(number := message[1]) is int
            and 0 <= number <= LIMIT
            and type(message[2]) is str
            and type(remaining := message[3]) is int
            and 0 <= remaining <= LIMIT
            and type(message[4]) in ARGUMENT_TYPES
            and (message[5] is None or is_metadata(message[5]))
            and (len(message) == 6 or type(message[6]) is bool)
        )
    elif kind in _CHECKS:
        fits = _CHECKS[kind](message)
    else:
        return kind
    if not fits:
        raise _misfit(kind, message)
    return kind


def count_calls(messages: list[object]) -> int:
    """How many calls an envelope has. A row that is too long is refused as one."""
    calls = 0
    for each in messages:
        if type(each) is list and each and type(each[0]) is int:
            if each[0] == CALL:
                calls += 1
            elif each[0] == CALLS and len(each) > 4 and _row(each[4]):
                calls += len(each[4])
    return calls


def single(messages: list[Message]) -> list[Message]:
    """The same with each CALLS and REPLIES taken apart into the CALL and REPLY messages that it stands for, as far as
    they can be told: what is wrong with one of them is its own affair."""
    apart: list[Message] = []
    for message in messages:
        kind = message[0]
        if kind == CALLS and len(message) >= 5 and _number(message[1]) and _row(message[4]):
            first: int = message[1]  # type: ignore[assignment]
            shared, arguments, metadata = message[2:4], message[4], message[5] if len(message) > 5 else None
            apart += [[CALL, (first + n) & LIMIT, *shared, each, metadata] for n, each in enumerate(arguments)]
        elif kind == REPLIES and len(message) >= 3 and _row(message[1]) and _row(message[2]):
            numbers, values = message[1], message[2]
            apart += [[REPLY, number, value, None] for number, value in zip(numbers, values, strict=False)]
            apart += [[REPLY, number] for number in numbers[len(values) :]]
        else:
            apart.append(message)
    return apart
