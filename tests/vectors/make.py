"""Writes the test vectors of docs/protocol.md: `python tests/vectors/make.py`, then read the diff.

The bytes come from the small CBOR encoder below and not from zmesh, so that the tests compare two implementations. The
JSON files are committed; nothing in the tests runs this file.

A vector in envelopes.json has a `name`, the `frames` in hex, their `meaning` as `{"to", "clock", "messages"}`, and
`canonical`: whether a sender that writes shortest heads, 64-bit floats, map keys in the order given, and binary
values longer than `inline_limit` out of band gets exactly these bytes.

A vector in malformed.json has a `name`, the `frames`, the `stage` of the link that they come on ("handshake": before
HELLO was received; "open"), `why` in words, and `answers`: the messages that a receiver sends back, with null for
texts, which are for people. A REJECT means that the link is over.

JSON lacks some of what CBOR has. In meanings an object with a single key that begins with `$` stands for it:
{"$bytes": hex}, {"$float": text}, {"$int": decimal text} beyond 2**53, {"$tag": [number, value]}, {"$map": [[key,
value], ...]} for maps with keys that are not text, {"$set": [...]}, {"$datetime"|"$date"|"$uuid"|"$decimal": text}, and
{"$array": {"type", "dimensions", "hex"}} with NumPy's element types. Out-of-band frames are resolved: they are $bytes.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent

SERVER_ID = bytes.fromhex("5353535353535353a1a2a3a4a5a6a7a8")
CLIENT_ID = bytes.fromhex("434343434343434301020304050607ff")
SERVER = 0x29A9A9A9  # the incarnation tags of these ids
CLIENT = 0x21A1A1A1
HOST = "0a1b2c3d-0000-4000-8000-00000000cafe/4026531840"
TOKEN = bytes.fromhex("b0b1b2b3b4b5b6b7b8b9babbbcbdbebf")
METADATA = {"tenant": "a", "token": b"\x01\x02"}


class Tag(NamedTuple):
    number: int
    value: Any


class As(NamedTuple):
    """An item with its meaning in the notation of the JSON files, where that is not obvious."""

    item: Any
    meaning: Any


class Raw(NamedTuple):
    """Bytes that are put where an item belongs."""

    hex: str


def head(major: int, argument: int) -> bytes:
    if argument < 24:
        return bytes([major << 5 | argument])
    for info, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if argument < 1 << 8 * size:
            return bytes([major << 5 | info]) + argument.to_bytes(size, "big")
    raise ValueError(argument)


def cbor(item: Any) -> bytes:
    match item:
        case None:
            return b"\xf6"
        case bool():
            return b"\xf5" if item else b"\xf4"
        case As():
            return cbor(item.item)
        case Raw():
            return bytes.fromhex(item.hex)
        case Tag():
            return head(6, item.number) + cbor(item.value)
        case int():
            return head(0, item) if item >= 0 else head(1, -1 - item)
        case float():
            return b"\xfb" + struct.pack(">d", item)
        case bytes():
            return head(2, len(item)) + item
        case str():
            return head(3, len(item.encode())) + item.encode()
        case list():
            return head(4, len(item)) + b"".join(map(cbor, item))
        case dict():
            return head(5, len(item)) + b"".join(cbor(key) + cbor(value) for key, value in item.items())
    raise TypeError(item)


def meaning(item: Any, frames: list[bytes]) -> Any:
    match item:
        case As():
            return item.meaning
        case Tag(64077, number):
            return {"$bytes": frames[number - 1].hex()}
        case Tag():
            return {"$tag": [item.number, meaning(item.value, frames)]}
        case bytes():
            return {"$bytes": item.hex()}
        case float():
            return {"$float": repr(item)}
        case bool() | None | str():
            return item
        case int():
            return item if -(2**53) < item < 2**53 else {"$int": str(item)}
        case list():
            return [meaning(each, frames) for each in item]
        case dict():
            if all(isinstance(key, str) for key in item):
                return {key: meaning(value, frames) for key, value in item.items()}
            return {"$map": [[meaning(key, frames), meaning(value, frames)] for key, value in item.items()]}
    raise TypeError(item)


def array(tag: int, kind: str, dimensions: list[int], data: bytes, *, frame: int | None = None) -> As:
    elements = Tag(tag, data if frame is None else Tag(64077, frame))
    return As(Tag(40, [dimensions, elements]), {"$array": {"type": kind, "dimensions": dimensions, "hex": data.hex()}})


def hello(**changes: Any) -> list[Any]:
    fields = {
        "id": CLIENT_ID,
        "name": "me",
        "mesh": "default",
        "host": "",
        "addresses": [],
        "capacity": 1.0,
        "services": [],
        "limits": {"message": 67108864, "calls": 10000, "items": 256, "bytes": 1048576},
        "software": "vectors/1",
        **changes,
    }
    return [1, 1, 0, fields]


envelopes: list[dict[str, Any]] = []
malformed: list[dict[str, Any]] = []


def envelope(
    name: str,
    *messages: Any,
    to: Any = SERVER,
    clock: Any = 123456,
    frames: tuple[bytes, ...] = (),
    canonical: bool = True,
    inline_limit: int = 16384,
    extra: tuple[Any, ...] = (),
) -> None:
    items = list(messages)
    vector = {
        "name": name,
        "frames": [(cbor([to, clock, items, *extra])).hex(), *(frame.hex() for frame in frames)],
        "meaning": {
            "to": meaning(to, []),
            "clock": meaning(clock, []),
            "messages": meaning(items, list(frames)),
        },
        "canonical": canonical,
    }
    if canonical and inline_limit != 16384:
        vector["inline_limit"] = inline_limit
    envelopes.append(vector)


def bad(name: str, why: str, frames: bytes | list[bytes], answers: list[Any], *, stage: str = "open") -> None:
    frames = [frames] if isinstance(frames, bytes) else frames
    malformed.append(
        {"name": name, "why": why, "stage": stage, "frames": [frame.hex() for frame in frames], "answers": answers}
    )


VIOLATION = [[2, 3, None]]


def violation(name: str, why: str, *frames: bytes, stage: str = "open") -> None:
    bad(name, why, list(frames), VIOLATION, stage=stage)


def bad_message(name: str, why: str, message: Any, answers: list[Any]) -> None:
    bad(name, why, cbor([SERVER, 5, [message]]), answers)


def reply(value: Any) -> list[Any]:
    return [4, 1, value, None]


# -- well-formed: the handshake

envelope("hello of a pure client", hello(), to=0, clock=0)
envelope(
    "hello of a server that answers",
    hello(
        id=SERVER_ID,
        name="greeter-1",
        mesh="shop",
        host=HOST,
        addresses=["tcp://10.0.0.3:40001", "tcp://[fd00::3]:40001", "ipc://@zmesh-" + SERVER_ID.hex()],
        capacity=2.5,
        services=[["Greeter", "1.2", "0123456789abcdef"], ["shop.Stock", "3", "fedcba9876543210"]],
    ),
    to=CLIENT,
)
envelope("hello that expects an incarnation", hello(expects=SERVER_ID), to=0)
envelope("hello with an integer for capacity", hello(capacity=4), to=0)
envelope("hello of a dialer that takes large values by a second connection", hello(bulk={"bytes": 67108864}), to=0)
envelope(
    "hello of a listener that does, too",
    hello(id=SERVER_ID, name="greeter-1", bulk={"bytes": 67108864, "token": TOKEN, "port": 40002}),
    to=CLIENT,
)
envelope("hello with an offer that says more", hello(bulk={"bytes": 1, "token": TOKEN, "port": 0, "later": [1]}), to=0)
envelope(
    "hello of a second connection",
    [1, 1, 0, {"id": CLIENT_ID, "name": "me", "mesh": "default", "channel": TOKEN}],
)
envelope("hello with only the required fields", [1, 1, 0, {"id": CLIENT_ID, "name": "", "mesh": "default"}], to=0)
envelope(
    "hello of a later minor version: unknown fields and items are ignored",
    [
        1,
        1,
        7,
        {"id": CLIENT_ID, "name": "me", "mesh": "default", "later": {"a": [1]}, "services": [["A", "1", "d", 9]]},
        1,
    ],
    to=0,
)
envelope("hello of another major version, whose other items are its own affair", [1, 2, 0, "anything"], to=0)
envelope("reject: another major version", [2, 12, "protocol 2.0 is not spoken here, 1.0 is"], to=0)
envelope("reject: another mesh", [2, 9, "another mesh"], to=CLIENT)
envelope("reject: this is the node that dialed", [2, 6, "this is the node that dialed"], to=SERVER)
envelope("reject: another incarnation", [2, 5, "another incarnation answers here"], to=CLIENT)
envelope("reject: leaving", [2, 14, "leaving"], to=CLIENT)

# -- large values by a connection of their own

envelope("place of a call", [32, 1, 3, 7])
envelope("places of a reply and of an item, and what was taken", [34, 1], [32, 2, 4, 8], [32, 3, 16, 9], to=CLIENT)
envelope("place with an unknown trailing item", [32, 2**31 - 1, 17, 0, "later"])
envelope(
    "a call that came by bulk",
    [33, 1, [3, 7, "Store.put", 10000, {"value": Tag(64077, 1)}, None]],
    frames=(bytes(range(256)) * 80,),
)
envelope("a reply that came by bulk", [33, 2, [4, 8, Tag(64077, 1), None]], to=CLIENT, frames=(b"\x01" * 20000,))
envelope("a short item behind a long one goes the same way", [33, 4, [16, 9, True, 2, "x"]], to=CLIENT)
envelope("what nobody wants any more", [33, 5, None], to=CLIENT)
envelope("bulk numbers wrap", [34, 0], to=CLIENT)
envelope("no bulk connection", [35])

# -- calls

envelope("call without arguments", [3, 1, "Greeter.ping", 10000, {}, None])
envelope("call with arguments by name", [3, 2, "Greeter.say_hello", 10000, {"name": "Wörld \U0001f30d"}, None])
envelope("call with positional arguments", [3, 3, "Adder.add", 250, [2, -3], None])
envelope("call with metadata", [3, 4, "shop.Stock.count", 1, {"item": "spoon"}, METADATA])
envelope("call with empty metadata", [3, 5, "Greeter.ping", 10000, {}, {}])
envelope("call with the largest number, time and clock", [3, 2**31 - 1, "A.b", 2**31 - 1, {}, None], clock=2**31 - 1)
envelope("call number 0 follows the largest; the clock wraps likewise", [3, 0, "A.b", 10000, {}, None], clock=0)
envelope("call that has no time left", [3, 6, "A.b", 0, {}, None])
envelope("call whose time holds until its stream has begun", [3, 8, "Clock.ticks", 10000, {}, None, True])
envelope("call of priority 9, lot 127", [3, 9, "A.b", 10000, {}, None, False, 1279])
envelope("a second attempt, and who had the first", [3, 10, "A.b", 9000, {}, None, False, None, 2, [CLIENT]])
envelope("call with unknown items behind all known ones", [3, 11, "A.b", 1, {}, None, False, 0, 3, [1, 2], "later"])
envelope("calls", [12, 2**31 - 2, "Greeter.say_hello", 10000, [{"name": "a"}, ["b"], {}], None])
envelope("calls without an item for metadata", [12, 5, "Greeter.ping", 10000, [{}, {}]])
envelope("calls with metadata", [12, 7, "shop.Stock.count", 250, [{"item": "spoon"}, ["fork"]], METADATA])
envelope("calls with an unknown trailing item", [12, 1, "A.b", 1, [{}], None, "later"])
envelope("cancel", [6, 2])
envelope("cancel with an unknown trailing item", [6, 2, {"reason": "later"}])
envelope("reply: null", [4, 1, None, None], to=CLIENT)
envelope("reply: text", [4, 2, "Hello, World", None], to=CLIENT)
envelope("reply with metadata", [4, 3, -1, METADATA], to=CLIENT)
envelope("reply with an unknown trailing item", [4, 3, True, None, 8], to=CLIENT)
envelope("replies", [13, [2**31 - 1, 3, 2], ["text", None, {"a": [1]}]], to=CLIENT)
envelope("replies with an unknown trailing item", [13, [1], [1.5], "later"], to=CLIENT)
envelope("error: refused before it ran", [5, 1, 12, "no such method", False, None], to=CLIENT)
envelope(
    "error of a handler, with details",
    [5, 2, 5, "no spoon", True, {"details": {"key": "spoon", "seen": [1, 2.5, b"\x00"]}}],
    to=CLIENT,
)
envelope(
    "error: an exception that is no status",
    [5, 3, 13, "ValueError: x", True, {"type": "ValueError", "traceback": "Traceback ...\n"}],
    to=CLIENT,
)
envelope("error: refused for load", [5, 6, 8, "busy", False, {"retry-after": 100, "level": 704}], to=CLIENT)
envelope("error: refused, and not to be tried again", [5, 7, 8, "busy", False, {"retry-after": False}], to=CLIENT)
envelope("error with a code of a later version", [5, 4, 99, "?", True, None], to=CLIENT)
envelope("error with unknown fields and a trailing item", [5, 5, 14, "", False, {"later": 1}, 1], to=CLIENT)

# -- everything else

envelope("no messages")
envelope(
    "many messages: replies, and the report at the end",
    [4, 1, 10, None],
    [4, 2, 20, None],
    [5, 3, 4, "too late", False, None],
    [7, None, None, [3, 1, 1500, 20, 0, 0]],
    to=CLIENT,
)
envelope("heartbeat: ping", [7, 1, None, None])
envelope("heartbeat: pong with a report", [7, None, 1, [0, 0, None, 0, 0, 0]], to=CLIENT)
envelope("heartbeat: calls below rank 704 are refused", [7, None, None, [90, 8, 9000, 400, 704, 0]], to=CLIENT)
envelope("heartbeat: all of it at its largest", [7, 2**31 - 1, 2**31 - 1, [2**31 - 1] * 6])
envelope("heartbeat: nothing", [7, None, None, None])
envelope("heartbeat with unknown trailing items", [7, None, None, [1, 1, 900, 0, 0, 1, "later"], "later"])
envelope("drain", [8], to=CLIENT)
envelope("drain with an unknown trailing item", [8, 30000], to=CLIENT)
envelope("drain_ack", [9])
envelope("goodbye with the last call taken", [10, 41], to=CLIENT)
envelope("goodbye, no call was ever taken", [10, None])
envelope("unsupported", [11, 20], to=CLIENT)
envelope("the first item of a stream of arguments", [16, 8, False, 1, {"x": 1}])
envelope("the last number of an item, of a stream that answers", [16, 8, True, 2**31 - 1, None], to=CLIENT)
envelope("an item with an unknown trailing item", [16, 8, True, 0, "text", "later"], to=CLIENT)
envelope("a row of items of a stream that answers", [19, 8, True, 2**31 - 2, cbor([{"x": 1}, "text", None])], to=CLIENT)
envelope("a row of one item of a stream of arguments", [19, 8, False, 3, cbor([[b"bytes", 1.5]])])
envelope("a row of items with an unknown trailing item", [19, 8, True, 0, cbor([1, 2]), "later"], to=CLIENT)
envelope("the end of a stream of arguments", [17, 8, 3])
envelope("the end of an empty stream", [17, 9, 0])
envelope("the reply that ends a stream of 128 items", [4, 8, 128, METADATA], to=CLIENT)
envelope("credit for items that answer", [18, 8, True, 128])
envelope("credit of none: the server has begun", [18, 9, False, 0], to=CLIENT)
envelope("an envelope with unknown trailing items", [6, 1], extra=({"later": 1}, 2), canonical=False)
envelope("1,024 messages, the most in one envelope", *[[6, number] for number in range(1024)])

# -- values

envelope("integers at the borders of their heads", reply([0, 23, 24, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**63]))
envelope("negative integers", reply([-1, -24, -25, -256, -257, -(2**31), -(2**63), -(2**64)]))
envelope(
    "integers beyond 64 bits",
    reply([As(Tag(2, (2**64).to_bytes(9, "big")), {"$int": str(2**64)}),
           As(Tag(3, (2**64).to_bytes(9, "big")), {"$int": str(-1 - 2**64)})]),
)  # fmt: skip
envelope("64-bit floats", reply([0.0, -0.0, 1.0, 1.5, 1e300, -5e-324]))
envelope("infinities and NaN", reply([float("inf"), float("-inf"), float("nan")]), canonical=False)
envelope(
    "shorter floats",
    reply([As(Raw("f93e00"), {"$float": "1.5"}), As(Raw("fa3fc00000"), {"$float": "1.5"})]),
    canonical=False,
)
envelope("simple values and empty things", reply([None, True, False, "", b"", [], {}]))
envelope("a map with integer keys", reply({1: "one", -1: "minus one"}))
envelope("nested containers", reply({"a": [{"b": [[]]}, "c"]}))
deepest: Any = 7
for _ in range(64):
    deepest = [deepest]
envelope("a value as deep as a sender may nest it", reply(deepest))
for _ in range(5):
    deepest = [deepest]
envelope("an envelope as deep as every receiver reads", reply(deepest), canonical=False)
envelope(
    "date and time, date, UUID and decimal as strings, as a schema has them sent",
    reply(["2026-11-22T21:30:05.120000Z", "2026-11-22", "1de0c4ff-09df-46d7-8eb3-3c37b74ae607", "1.50"]),
)
UUID = "1de0c4ff09df46d78eb33c37b74ae607"
envelope(
    "the same in CBOR's own types, from a sender without a schema",
    reply([
        As(Tag(0, "2026-11-22T21:30:05Z"), {"$datetime": "2026-11-22T21:30:05+00:00"}),
        As(Tag(1, 1795383005), {"$datetime": "2026-11-22T21:30:05+00:00"}),
        As(Tag(1004, "2026-11-22"), {"$date": "2026-11-22"}),
        As(Tag(100, 20779), {"$date": "2026-11-22"}),
        As(Tag(37, bytes.fromhex(UUID)), {"$uuid": "1de0c4ff-09df-46d7-8eb3-3c37b74ae607"}),
        As(Tag(4, [-2, 150]), {"$decimal": "1.50"}),
        As(Tag(258, [1, 2]), {"$set": [1, 2]}),
    ]),
    canonical=False,
)  # fmt: skip
envelope("a tag that no version knows is a value that no schema takes", reply([Tag(4711, ["x"])]), canonical=False)
envelope("a regular expression is not compiled", reply([Tag(35, "(a+)+$")]), canonical=False)

# -- binary values and arrays

envelope("binary in the envelope", reply(b"\x00\xff"))
envelope("binary out of band", reply(Tag(64077, 1)), frames=(b"\x00\x01\x02\x03\x04\x05\x06\x07\x08",), inline_limit=8)
envelope(
    "several binary values: the short ones stay in the envelope",
    [
        3,
        1,
        "Blob.store",
        5000,
        {"key": b"k", "head": Tag(64077, 1), "rest": [Tag(64077, 2), b"tail"]},
        {"m": b"123456789"},
    ],
    [3, 2, "Blob.store", 5000, {"key": Tag(64077, 3)}, None],
    frames=(b"A" * 9, b"B" * 10, b"C" * 11),
    inline_limit=8,
)
envelope("a frame that is used twice, and one that is not", reply([Tag(64077, 1), Tag(64077, 1)]),
         frames=(b"abc", b"unused"), canonical=False)  # fmt: skip
envelope("an empty frame", reply(Tag(64077, 1)), frames=(b"",), canonical=False)
DOUBLES = struct.pack("<6d", 0, 1, 2, 3, 4, 5)
envelope("an array of 2 x 3 float64", reply(array(86, "<f8", [2, 3], DOUBLES)))
envelope("an array out of band", reply(array(86, "<f8", [2, 3], DOUBLES, frame=1)), frames=(DOUBLES,), inline_limit=8)
envelope("an array without elements", reply(array(85, "<f4", [0, 3], b"")))
envelope("an array without dimensions", reply(array(78, "<i4", [], b"\x07\0\0\0")))
for tag, kind, size in (
    (64, "|u1", 1), (69, "<u2", 2), (70, "<u4", 4), (71, "<u8", 8), (72, "|i1", 1), (77, "<i2", 2), (78, "<i4", 4),
    (79, "<i8", 8), (84, "<f2", 2), (85, "<f4", 4), (86, "<f8", 8),
):  # fmt: skip
    envelope(f"an array of {kind}", reply(array(tag, kind, [2], bytes(range(1, 2 * size + 1)))))
for tag, kind, size in (
    (65, ">u2", 2), (66, ">u4", 4), (67, ">u8", 8), (68, "|u1", 1), (73, ">i2", 2), (74, ">i4", 4), (75, ">i8", 8),
    (80, ">f2", 2), (81, ">f4", 4), (82, ">f8", 8),
):  # fmt: skip
    name = "clamped bytes" if tag == 68 else f"{kind}, big-endian"
    envelope(f"an array of {name}", reply(array(tag, kind, [2], bytes(range(1, 2 * size + 1)))), canonical=False)
envelope(
    "a typed array without tag 40 has one dimension",
    reply(As(Tag(69, b"\x01\0\x02\0"), {"$array": {"type": "<u2", "dimensions": [2], "hex": "01000200"}})),
    canonical=False,
)
for kind, size in (("|b1", 1), ("<c8", 8), ("<c16", 16)):
    data = b"\x01\x00" if size == 1 else struct.pack("<4f" if size == 8 else "<4d", 1, -1, 0.5, 0)
    item = Tag(64078, [kind, [2], data])
    envelope(f"an array of {kind}", reply(As(item, {"$array": {"type": kind, "dimensions": [2], "hex": data.hex()}})))

# -- malformed: no envelope at all

violation("nothing", "an empty frame is no CBOR (REQ sockets send one)", b"", cbor([0, 0, []]))
violation("text", "not an array", b"GET / HTTP/1.1\r\n")
violation("truncated", "the array ends early", cbor([SERVER, 5, [[6, 1]]])[:-1])
violation("no messages", "two items", cbor([SERVER, 5]))
violation("messages of another type", "the third item is a map", cbor([SERVER, 5, {}]))
violation("a clock that is a float", "integers are integers", cbor([SERVER, 5.0, []]))
violation("a clock of 32 bits", "2**31 is too large", cbor([SERVER, 2**31, []]))
violation("a negative clock", "below 0", cbor([SERVER, -1, []]))
violation("a tag of 64 bits", "too large", cbor([2**40, 5, []]))
violation("another incarnation", "the tag is of another process", cbor([SERVER + 1, 5, [[6, 1]]]))
violation("tag 0 on an open link", "0 is for the handshake", cbor([0, 5, [[6, 1]]]))
violation("another incarnation in the handshake", "the tag is neither 0 nor ours", cbor([SERVER + 1, 5, [hello()]]),
          stage="handshake")  # fmt: skip
violation("an indefinite array", "definite lengths only", bytes.fromhex("9f1a29a9a9a90580ff"))
violation("an indefinite text", "definite lengths only", cbor([SERVER, 5, [reply(Raw("7f6161ff"))]]))
violation(
    "a huge declared array",
    "4 thousand million items, none there",
    cbor([SERVER, 5])[:-1] + bytes.fromhex("059affffffff"),
)
violation(
    "a huge declared byte string", "2**60 bytes, none there", cbor([SERVER, 5, [reply(Raw("5b1000000000000000"))]])
)
violation("a huge declared map", "2**60 pairs, none there", cbor([SERVER, 5, [reply(Raw("bb1000000000000000"))]]))
violation("a break outside", "no such item", b"\xff")
violation("reserved additional information", "28 has no meaning", cbor([SERVER, 5, [reply(Raw("1c"))]]))
violation("bad UTF-8", "a lone surrogate", cbor([SERVER, 5, [reply(Raw("63eda080"))]]))
violation("a key twice", "keys are unique", cbor([SERVER, 5, [reply(Raw("a2616101616102"))]]))
for number in (25, 28, 29, 256):
    content = 0 if number in (25, 29) else []
    violation(
        f"tag {number}", "references between items could form cycles", cbor([SERVER, 5, [reply(Tag(number, content))]])
    )
too_deep: Any = 7
for _ in range(70):
    too_deep = [too_deep]
violation("73 deep", "nesting beyond 72", cbor([SERVER, 5, [reply(too_deep)]]))
violation("5,000 deep", "nesting beyond 72", cbor([SERVER, 5])[:-1] + b"\x05" + b"\x81" * 5_000)
tags: Any = 7
for _ in range(70):
    tags = Tag(4711, tags)
violation("70 tags deep", "tags count", cbor([SERVER, 5, [reply(tags)]]))
violation("1,025 messages", "at most 1,024", cbor([SERVER, 5, [[6, 1]] * 1025]))
violation("257 frames", "at most 256", cbor([SERVER, 5, []]), *[b""] * 257)
violation("a frame that did not come", "frame 1 of 0", cbor([SERVER, 5, [reply(Tag(64077, 1))]]))
violation("frame 0", "the envelope itself", cbor([SERVER, 5, [reply(Tag(64077, 0))]]), b"x")
violation("frame 2 of 1", "did not come", cbor([SERVER, 5, [reply(Tag(64077, 2))]]), b"x")
violation("a frame's number that is text", "an integer", cbor([SERVER, 5, [reply(Tag(64077, "1"))]]), b"x")
violation("half an element", "7 bytes are no float64", cbor([SERVER, 5, [reply(Tag(86, b"1234567"))]]))
violation("elements that do not fill the dimensions", "2 x 3 is not 5",
          cbor([SERVER, 5, [reply(Tag(40, [[2, 3], Tag(64, b"12345")]))]]))  # fmt: skip
violation("dimensions that are too large", "2**40", cbor([SERVER, 5, [reply(Tag(40, [[2**40], Tag(64, b"1")]))]]))
violation("negative dimensions", "-1 is no length", cbor([SERVER, 5, [reply(Tag(40, [[-1], Tag(64, b"1")]))]]))
violation("elements that are no typed array", "a byte string", cbor([SERVER, 5, [reply(Tag(40, [[1], b"1"]))]]))
violation(
    "elements that are a list", "tag 40 is around typed arrays here", cbor([SERVER, 5, [reply(Tag(40, [[1], [1]]))]])
)
violation("a typed array of text", "bytes", cbor([SERVER, 5, [reply(Tag(86, "12345678"))]]))
violation(
    "objects in an array",
    "not among the types of tag 64078",
    cbor([SERVER, 5, [reply(Tag(64078, ["|O", [1], b"12345678"]))]]),
)
violation("a UUID of 3 bytes", "16 bytes", cbor([SERVER, 5, [reply(Tag(37, b"123"))]]))

# -- malformed: the handshake

violation("a call before HELLO", "HELLO comes first", cbor([0, 5, [[3, 1, "A.b", 1000, {}, None]]]), stage="handshake")
violation("an unknown kind before HELLO", "HELLO comes first", cbor([0, 5, [[20]]]), stage="handshake")
violation("a bad message before HELLO", "HELLO comes first", cbor([0, 5, ["x"]]), stage="handshake")
violation("HELLO with frames", "one frame before HELLO", cbor([0, 5, [hello()]]), b"x", stage="handshake")
violation(
    "a long HELLO", "at most 65,536 bytes before HELLO", cbor([0, 5, [hello(software="x" * 65_400)]]), stage="handshake"
)
violation("HELLO without fields", "a map is missing", cbor([0, 5, [[1, 1, 0]]]), stage="handshake")
violation(
    "HELLO without an id", "required", cbor([0, 5, [[1, 1, 0, {"name": "x", "mesh": "default"}]]]), stage="handshake"
)
violation("HELLO with a short id", "16 bytes", cbor([0, 5, [hello(id=b"123")]]), stage="handshake")
violation("HELLO with an id that is text", "bytes", cbor([0, 5, [hello(id="x" * 16)]]), stage="handshake")
violation(
    "HELLO with an id in a typed array",
    "a plain byte string",
    cbor([0, 5, [hello(id=Tag(64, CLIENT_ID))]]),
    stage="handshake",
)
violation(
    "HELLO without a mesh", "required", cbor([0, 5, [[1, 1, 0, {"id": CLIENT_ID, "name": "x"}]]]), stage="handshake"
)
violation("HELLO with capacity 0", "above 0", cbor([0, 5, [hello(capacity=0)]]), stage="handshake")
violation("HELLO with capacity NaN", "a number", cbor([0, 5, [hello(capacity=float("nan"))]]), stage="handshake")
violation("HELLO with a huge capacity", "below 10^6; of 4,500 digits, besides",
          cbor([0, 5, [hello(capacity=Tag(2, b"\x01" * 2000))]]), stage="handshake")  # fmt: skip
violation(
    "HELLO with a service that is text",
    "[name, version, digest]",
    cbor([0, 5, [hello(services=["A"])]]),
    stage="handshake",
)
violation(
    "HELLO with a version that is none",
    "numbers with dots",
    cbor([0, 5, [hello(services=[["A", "v1", "d"]])]]),
    stage="handshake",
)
violation("a second HELLO", "once on each link", cbor([SERVER, 5, [hello()]]))
bad(
    "HELLO of major version 2",
    "another major version",
    cbor([0, 5, [[1, 2, 0, {}]]]),
    [[2, 12, None]],
    stage="handshake",
)
bad("HELLO of major version 2 in a form of its own", "only its first three items are fixed", cbor([0, 5, [[1, 2, 0]]]),
    [[2, 12, None]], stage="handshake")  # fmt: skip
bad(
    "HELLO of major version 0",
    "another major version",
    cbor([0, 5, [[1, 0, 9, {}]]]),
    [[2, 12, None]],
    stage="handshake",
)

# -- bad messages, which spoil only themselves


def refused(number: int) -> list[Any]:
    return [[5, number, 3, None, False, None]]


bad_message("a message that is text", "an array", "x", [])
bad_message("a message that is a map", "an array", {}, [])
bad_message("an empty message", "begins with its kind", [], [])
bad_message("a kind that is text", "an integer", ["3", 1], [])
bad_message("a negative kind", "0 and above", [-1], [])
bad_message("a kind that is a boolean", "an integer", [True], [])
bad_message("a number of many digits for a message", "some languages refuse to print it", Tag(2, b"\x01" * 2000), [])
bad_message("a number of many digits for a call", "no number to answer to", [3, Tag(2, b"\x01" * 2000)], [])
bad_message("a call that ends early", "six items", [3, 9, "A.b", 1000, {}], refused(9))
bad_message("a call with a path that is bytes", "text", [3, 9, b"A.b", 1000, {}, None], refused(9))
bad_message("a call with a float for its time", "an integer", [3, 9, "A.b", 1000.0, {}, None], refused(9))
bad_message("a call with too much time", "below 2**31", [3, 9, "A.b", 2**31, {}, None], refused(9))
bad_message("a call with text for arguments", "a map or an array", [3, 9, "A.b", 1000, "x", None], refused(9))
bad_message("a call with numbers in its metadata", "text or bytes", [3, 9, "A.b", 1000, {}, {"a": 1}], refused(9))
bad_message("a call whose number is too large", "cannot be answered", [3, 2**31, "A.b", 1000, {}, None], [])
bad_message("a call whose number is a float", "cannot be answered", [3, 9.0, "A.b", 1000, {}, None], [])
bad_message("calls that end early", "five items", [12, 9, "A.b", 1000], refused(9))
bad_message("calls with a map of arguments", "an array of them", [12, 9, "A.b", 1000, {"a": 1}], refused(9))
bad_message("calls of which the second is none", "the first is good, and runs", [12, 9, "A.b", 1000, [{}, "x"]],
            refused(10))  # fmt: skip
bad_message("calls with a float for their time", "an integer", [12, 2**31 - 1, "A.b", 1.5, [{}, []]],
            [*refused(2**31 - 1), *refused(0)])  # fmt: skip
bad_message("calls with numbers in their metadata", "text or bytes", [12, 9, "A.b", 1000, [{}, []], {"a": 1}],
            [*refused(9), *refused(10)])  # fmt: skip
bad_message("1,025 calls in a row", "as many as messages in an envelope", [12, 9, "A.b", 1000, [{}] * 1025], refused(9))
bad_message("calls whose first number is a float", "cannot be answered", [12, 9.0, "A.b", 1000, [{}]], [])
bad_message("replies with fewer values than numbers", "the others are bad replies", [13, [9, 10], [1]], [])
bad_message("replies without an array of numbers", "nobody's", [13, 9, [1]], [])
bad_message("replies with a number that is none", "bad by itself", [13, [9, "x"], [1, 2]], [])
bad_message("a reply that ends early", "four items", [4, 9, 1], [])
bad_message("an error whose `ran` is an integer", "a boolean", [5, 9, 3, "", 0, None], [])
bad_message("an error without fields", "six items", [5, 9, 3, "", False], [])
bad_message("a cancel without a number", "two items", [6], [])
bad_message("a heartbeat with a short report", "six items", [7, None, None, [1, 1]], [])
bad_message("a heartbeat with a float", "an integer or null", [7, 1.0, None, None], [])
bad_message("a goodbye that ends early", "two items", [10], [])
bad_message("an unsupported without a kind", "two items", [11], [])
bad_message("an item without a value", "five items", [16, 1, True, 1], [])
bad_message("an item that says 1 for true", "a direction is a boolean", [16, 1, 1, 1, "x"], [])
bad_message("a row of items that is no byte string", "it is the encoding of an array", [19, 1, True, 1, [1]], [])
bad_message("a row of items whose number is a float", "an integer", [19, 1.0, True, 1, b"\x81\x01"], [])
bad_message("a call that says 1 for true", "a boolean", [3, 9, "A.b", 1000, {}, None, 1], refused(9))
bad_message("an end without a count", "three items", [17, 1], [])
bad_message("credit below zero", "numbers are not negative", [18, 1, True, -1], [])
bad("a bad message among good ones", "the ping is answered", cbor([SERVER, 5, ["x", [3, 9], [7, 5, None, None]]]),
    [*refused(9), [7, None, 5, None]])  # fmt: skip

# -- unknown kinds

for kind in (0, 14, 20, 24, 36, 2**31 - 1):
    bad_message(f"kind {kind}", "a kind that this version does not know", [kind, 1, 2, 3], [[11, kind]])
for kind, message in ((32, [32, 1, 3, 7]), (33, [33, 1, None]), (34, [34, 1]), (35, [35])):
    bad_message(f"kind {kind}", "a kind of who takes large values by a second connection", message, [[11, kind]])
bad("an unknown kind among known ones", "the ping is answered", cbor([SERVER, 5, [[20, "x"], [7, 6, None, None]]]),
    [[11, 20], [7, None, 6, None]])  # fmt: skip

# -- arithmetic

arithmetic = {
    "tags": [
        {"id": id, "tag": max(int(id[:8], 16) >> 1, 1)}
        for id in (SERVER_ID.hex(), CLIENT_ID.hex(), "0" * 32, "00000001" + "f" * 24, "f" * 32, "00000002" + "0" * 24)
    ],
    "expand": [
        {"number": number, "below": below, "counter": counter}
        for number, below, counter in (
            (1, 2, 1), (0, 1, 0), (5, 100, 5), (99, 100, 99),
            (2**31 - 1, 2**31 + 5, 2**31 - 1), (0, 2**31 + 1, 2**31), (3, 2**31 + 5, 2**31 + 3),
            (4, 2**31 + 4, 4), (7, 5 * 2**31 + 8, 5 * 2**31 + 7), (8, 5 * 2**31 + 8, 4 * 2**31 + 8),
        )
    ],
    "waited": [
        {"name": name, "envelopes": envelopes}
        for name, envelopes in (
            ("a delay is what is above the least", [[0, 1000, 0], [100, 1100, 0], [200, 1250, 50], [300, 1300, 0]]),
            ("a faster envelope lowers the least", [[0, 1000, 0], [100, 1090, 0], [200, 1200, 10]]),
            ("the sender's clock wraps", [[2**31 - 100, 50, 0], [0, 150, 0], [100, 250, 0], [200, 1350, 1000]]),
            ("the receiver's clock is far ahead", [[5, 2**40, 0], [1005, 2**40 + 1000, 0], [2005, 2**40 + 2003, 3]]),
            ("a jump forward by the sender's clock is no delay", [[0, 1000, 0], [5000, 1100, 0], [5100, 1200, 0]]),
            ("the least is forgotten after one to two windows",
             [[0, 0, 0], [60000, 60010, 10], [60100, 60110, 10], [120000, 120011, 1], [120100, 120111, 1]]),
            ("after two silent windows all is stale", [[0, 0, 0], [120000, 120050, 0], [120100, 120160, 10]]),
        )
    ],
}  # fmt: skip


def write(name: str, content: Any) -> None:
    (HERE / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write("envelopes.json", envelopes)
    write("malformed.json", malformed)
    write("arithmetic.json", arithmetic)
