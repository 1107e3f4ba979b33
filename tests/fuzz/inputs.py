"""Inputs that nobody should send, made from a seed."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import cbor2

from zmesh._core import messages as m
from zmesh._core.wire import MAX_DEPTH

Frames = list[bytes]

_HEADS = [
    b"\x81",
    b"\x9f",
    b"\xa1\x61a",
    b"\xbf\x61a",
    b"\xc1",
    b"\xd8\x28",
    b"\xd8\x1c",
    b"\xd9\xfa\x4d",
    b"\xd9\xd9\xf7",
]
_LENGTHS = [0x1A, 0x1B, 0x3B, 0x5A, 0x5B, 0x7A, 0x7B, 0x9A, 0x9B, 0xBA, 0xBB, 0xDB]
_TAGS = [*range(44), 52, 54, *range(64, 88), 100, 256, 258, 260, 261, 1004, 43000, 55799, 64077, 64078]
_TEXTS = [
    "2026-11-22T21:30:05.120000Z", "9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00", "2026-13-01", "21:30:05",
    "P1DT7200.5S", "-PT90S", "P", "PT1e400S", "P99999999999D", "1E+999999999999", "sNaN", "-Infinity", "0" * 1000,
    "1de0c4ff-09df-46d7-8eb3-3c37b74ae607", "red", "9" * 5000, "\N{ARABIC-INDIC DIGIT ONE}", " 1",
]  # fmt: skip
_TAGGED = [
    (0, "2026-11-22T21:30:05Z"), (0, "x"), (1, 1e300), (1, float("nan")), (1, -(10**12)), (4, [10**9, 2]),
    (4, [2**62, 1]), (37, b"x" * 16), (40, [[2, 2], cbor2.CBORTag(86, bytes(32))]),
    (40, [[0, 2**31 - 1], cbor2.CBORTag(86, b"")]), (40, [[2**31 - 1] * 9, cbor2.CBORTag(86, b"")]), (64, b"abc"),
    (100, 10**8), (100, -(10**8)), (258, [1, 2]), (258, [[1]]), (1004, "2026-13-01"), (64078, ["|b1", [2], b"\1\2"]),
]  # fmt: skip
_ALMOST: list[Any] = [
    *_TEXTS, *(cbor2.CBORTag(tag, value) for tag, value in _TAGGED), {"x": 1}, {"x": 1, "y": 10**400}, {"a": 1},
    [1, "x"], {"x": 1, "children": [{"x": 2, "children": []}]}, {"1": 1, 1: 2}, {"9" * 5000: 1}, 10**5000, 1, True, [],
]  # fmt: skip
_KINDS = [m.CALL, m.CALL, m.CALL, m.CALLS, m.CALLS, m.REPLIES, m.REPLY, m.REPLY, m.ERROR, m.CANCEL, m.HEARTBEAT,
          m.UNSUPPORTED, m.DRAIN_ACK, m.ITEM, m.ITEMS, m.END, m.CREDIT, m.CREDIT, 15, 99]  # fmt: skip
_NUMBERS = [-1, 0, 1, 2, 3, 4, 5, 6, 7, 255, 2**31 - 1, 2**31, 2**32, 2**53, 2**63, 2**64, 2**100]


def vectors() -> list[Frames]:
    """The frames of all test vectors, good ones and bad ones."""
    found = []
    for name in ("envelopes", "malformed"):
        path = Path(__file__).parent.parent / "vectors" / f"{name}.json"
        for vector in json.loads(path.read_text(encoding="utf-8")):
            frames = [bytes.fromhex(frame) for frame in vector["frames"]]
            if sum(map(len, frames)) < 4096:  # the long ones are bad only by their length
                found.append(frames)
    return found


class Fuzzer:
    """`to`: the incarnation tag of the receiver, which most of the structured inputs carry."""

    def __init__(self, seed: int, to: int) -> None:
        self.rng = random.Random(seed)
        self.to = to
        self._corpus = vectors()
        self._mutations = [self.noise, self.truncated, self.flipped, self.spliced, self.deep, self.long, self.tagged]

    def mutation(self) -> Frames:
        """Bytes, or a vector that was damaged."""
        return self.rng.choice(self._mutations)()

    def noise(self) -> Frames:
        rng = self.rng
        start = rng.choice([b"", b"\x83", b"\x83\x00\x00", b"\x83\x00\x00\x81", b"\x83\x00\x00\x81\x84\x01"])
        return [
            start + rng.randbytes(rng.randrange(60)),
            *(rng.randbytes(8) for _ in range(rng.choice([0, 0, 0, 1, 3]))),
        ]

    def truncated(self) -> Frames:
        first, *others = self._vector()
        return [first[: self.rng.randrange(len(first) + 1)], *others[: self.rng.randrange(len(others) + 1)]]

    def flipped(self) -> Frames:
        first, *others = self._vector()
        damaged = bytearray(first)
        for _ in range(self.rng.randrange(1, 5) if damaged else 0):
            damaged[self.rng.randrange(len(damaged))] ^= 1 << self.rng.randrange(8)
        return [bytes(damaged), *others]

    def spliced(self) -> Frames:
        (first, *others), (second, *_) = self._vector(), self._vector()
        rng = self.rng
        here, there = rng.randrange(len(first) + 1), rng.randrange(len(second) + 1)
        return [first[:here] + second[there:], *others]

    def deep(self) -> Frames:
        rng = self.rng
        depth = rng.choice([rng.randrange(100), 1000, 3000]) if rng.random() < 0.9 else 20_000
        head = rng.choice(_HEADS)
        if rng.random() < 0.5:
            return [b"\x83\x00\x00\x81\x84\x04\x01" + head * depth + b"\x00\xf6"]
        return [head * depth]

    def long(self) -> Frames:
        """A head that declares more than there is, and more than there is memory."""
        first, *others = self._vector()
        rng = self.rng
        at, kind = rng.randrange(len(first) + 1), rng.choice(_LENGTHS)
        width = 8 if kind & 1 else 4
        length = rng.choice([2 ** (8 * width) - 1, 2 ** (8 * width - 1), rng.randrange(2**31)]) % 2 ** (8 * width)
        return [first[:at] + bytes([kind]) + length.to_bytes(width, "big") + first[at:], *others]

    def tagged(self) -> Frames:
        """A tag where none belongs."""
        first, *others = self._vector()
        at = self.rng.randrange(len(first) + 1)
        return [first[:at] + cbor2.dumps(cbor2.CBORTag(self.rng.choice(_TAGS), 0))[:-1] + first[at:], *others]

    def structured(self) -> Frames:
        """An envelope that decodes, with messages of all kinds whose content nobody asked for."""
        rng = self.rng
        messages = [self.message() for _ in range(rng.choice([0, 1, 1, 1, 2, 5]))]
        to = self.to if rng.random() < 0.98 else rng.choice([0, 1, self.to ^ 1, -1, "tag"])
        envelope = [to, rng.choice([0, 5, rng.randrange(2**31)]), messages]
        return [cbor2.dumps(envelope), *(rng.randbytes(16) for _ in range(rng.choice([0, 0, 1])))]

    def damaged(self) -> Frames:
        """An envelope that would decode, with some bytes behind its tag and clock changed."""
        first, *others = self.structured()
        rng, damaged = self.rng, bytearray(first)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(min(11, len(damaged) - 1), len(damaged))
            damaged[at] = rng.choice([damaged[at] ^ 1 << rng.randrange(8), rng.randrange(256)])
        return [bytes(damaged), *others]

    def hostile(self) -> Frames:
        """What a peer may send that knows the protocol and means harm."""
        pick = self.rng.random()
        return self.structured() if pick < 0.8 else self.damaged() if pick < 0.95 else self.mutation()

    def message(self) -> Any:
        rng = self.rng
        number = rng.choice([0, 1, 2, 3, 4, 2**31 - 1])
        kind = rng.choice(_KINDS)
        if rng.random() < 0.03:
            kind = rng.choice([m.HELLO, m.REJECT, m.DRAIN, m.GOODBYE])
        value = self.value(3)
        report = [rng.choice(_NUMBERS[1:11]) for _ in range(6)]
        fields: Any = rng.choice(
            [None, {}, {"details": value}, {"details": {"a": value}, "type": value}, {"traceback": value}]
        )
        path = rng.choice(
            ["Echo.echo", "Echo.fail", "Echo.count", "Echo.total", "Echo.back", "Echo.hold", "Echo", "Echo.", ".", "",
             "zmesh.describe", "Nothing.at_all", "\0\x1b[2J"]
        )  # fmt: skip
        arguments: Any = rng.choice([{"value": value}, [value], {}, []])
        many, answer = rng.choice([0, 0, 1, 2, 256, 2**31 - 1]), rng.random() < 0.5
        metadata = rng.choice([None, {}, {"a": b""}])
        marks = [rng.random() < 0.5, rng.choice([None, 0, 1279, 1280]), many, rng.choice([[], [number], value])]
        good: dict[int, list[Any]] = {
            m.HELLO: [m.HELLO, rng.choice([1, 1, 2]), 0, {"id": rng.randbytes(16), "name": "x", "mesh": "default"}],
            m.REJECT: [m.REJECT, rng.choice(_NUMBERS[1:10]), "\x1b[31mno\n" * rng.randrange(9)],
            m.CALL: [m.CALL, number, path, rng.choice([0, 1, 1000, 2**31 - 1]), arguments, metadata],
            m.ITEM: [m.ITEM, number, answer, many, value],
            m.END: [m.END, number, many],
            m.CREDIT: [m.CREDIT, number, answer, many],
            m.REPLY: [m.REPLY, number, value, rng.choice([None, {}, {"a": b"b"}])],
            m.ERROR: [m.ERROR, number, rng.randrange(20), "text", rng.random() < 0.5, fields],
            m.CANCEL: [m.CANCEL, number],
            m.HEARTBEAT: [m.HEARTBEAT, rng.choice([None, number]), rng.choice([None, 1]), rng.choice([None, report])],
            m.GOODBYE: [m.GOODBYE, rng.choice([None, number])],
            m.CALLS: [m.CALLS, number, path, rng.choice([0, 1000]), [arguments, {}, []][: rng.randrange(4)], metadata],
            m.REPLIES: [m.REPLIES, [number, 1, 2][: rng.randrange(4)], [value, 1, "x"][: rng.randrange(4)]],
            m.UNSUPPORTED: [m.UNSUPPORTED, rng.choice([1, 3, 16])],
        }  # fmt: skip
        message = good.get(kind, [kind])
        if kind == m.ITEMS:
            row = cbor2.dumps([value, 1, "x"][: rng.randrange(4)])
            message += [number, answer, many, rng.choice([row, row, row[:-1], rng.randbytes(9)])]
        if kind == m.CALL:
            message += marks[: rng.choice([0, 0, 0, 1, 2, 3, 4])]
        damage = rng.random()
        if damage < 0.1:
            del message[rng.randrange(len(message)) :]
        elif damage < 0.25:
            message[rng.randrange(len(message))] = self.value(2)
        elif damage < 0.3:
            message.append(self.value(2))
        elif damage < 0.32:
            return self.value(2)
        return message

    def value(self, depth: int) -> Any:
        rng = self.rng
        pick = rng.randrange(12 if depth else 8)
        match pick:
            case 0 | 1:
                return rng.choice(_NUMBERS)
            case 2:
                return rng.choice([None, True, False, 1.5, float("nan"), float("inf"), -0.0])
            case 3:
                return rng.choice(["", "text", "\0", "\x1b[2J", "\N{RIGHT-TO-LEFT OVERRIDE}", "9" * 50])
            case 4:
                return rng.randbytes(rng.randrange(20))
            case 5:
                return cbor2.CBORTag(64077, rng.choice([0, 1, 2, -1]))
            case 6:
                return cbor2.CBORTag(rng.choice([69, 78, 82, 85, 86]), rng.randbytes(rng.choice([0, 8, 16])))
            case 7:
                return cbor2.CBORTag(rng.choice([35, 36, 99, 2**40]), "(a+)+$")
            case 8 | 9:
                return [self.value(depth - 1) for _ in range(rng.randrange(4))]
            case 10:
                return {rng.choice(["a", "b", "value", 1, -5]): self.value(depth - 1) for _ in range(rng.randrange(4))}
        leaf: Any = 0
        for _ in range(rng.randrange(MAX_DEPTH + 3)):
            leaf = [leaf]
        return leaf

    def argument(self) -> Any:
        """Any value, or one that some annotation almost takes."""
        return self.rng.choice(_ALMOST) if self.rng.random() < 0.5 else self.value(3)

    def _vector(self) -> Frames:
        return self.rng.choice(self._corpus)
