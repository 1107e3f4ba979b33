"""The test vectors of docs/protocol.md, both ways. `tests/vectors/make.py` says what is in the files."""

from __future__ import annotations

import asyncio
import datetime
import decimal
import json
import uuid
from pathlib import Path
from typing import Any

import cbor2
import numpy
import pytest

from zmesh._core import messages as m
from zmesh._core.timing import QueueClock, expand
from zmesh._core.wire import decode, encode, externalize

from .fake_link import answers_to

VECTORS = Path(__file__).parent / "vectors"


def load(name: str) -> Any:
    return json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))


def named(vectors: list[dict[str, Any]]) -> Any:
    return pytest.mark.parametrize("vector", vectors, ids=[vector["name"] for vector in vectors])


def frames_of(vector: dict[str, Any]) -> list[bytes]:
    return [bytes.fromhex(frame) for frame in vector["frames"]]


ENVELOPES = load("envelopes")
MALFORMED = load("malformed")
ARITHMETIC = load("arithmetic")


def notation(value: Any) -> Any:
    """A decoded value as the JSON files write it."""
    match value:
        case None | bool() | str():
            return value
        case int():
            return value if abs(value) < 2**53 else {"$int": str(value)}
        case float():
            return {"$float": repr(value)}
        case bytes() | memoryview():
            return {"$bytes": value.hex()}
        case numpy.ndarray():
            return {"$array": {"type": value.dtype.str, "dimensions": list(value.shape), "hex": value.tobytes().hex()}}
        case cbor2.CBORTag():
            return {"$tag": [value.tag, notation(value.value)]}
        case datetime.datetime():
            return {"$datetime": value.isoformat()}
        case datetime.date():
            return {"$date": value.isoformat()}
        case uuid.UUID():
            return {"$uuid": str(value)}
        case decimal.Decimal():
            return {"$decimal": str(value)}
        case set():
            return {"$set": sorted(map(notation, value))}
        case list() | tuple():
            return [notation(item) for item in value]
        case dict():
            if all(isinstance(key, str) for key in value):
                return {key: notation(item) for key, item in value.items()}
            return {"$map": [[notation(key), notation(item)] for key, item in value.items()]}
    raise TypeError(value)


def value_of(meaning: Any) -> Any:
    """The reverse, for what canonical vectors hold."""
    match meaning:
        case {"$int": text}:
            return int(text)
        case {"$float": text}:
            return float(text)
        case {"$bytes": digits}:
            return bytes.fromhex(digits)
        case {"$array": {"type": kind, "dimensions": dimensions, "hex": digits}}:
            return numpy.frombuffer(bytes.fromhex(digits), kind).reshape(dimensions)
        case {"$map": pairs}:
            return {value_of(key): value_of(item) for key, item in pairs}
        case list():
            return [value_of(item) for item in meaning]
        case dict():
            return {key: value_of(item) for key, item in meaning.items()}
    return meaning


VALUE_AT = {m.CALL: 4, m.REPLY: 2, m.ERROR: 5}  # the item whose large binary values travel out of band


@named(ENVELOPES)
def test_frames_decode_to_their_meaning(vector: dict[str, Any]) -> None:
    to, clock, messages = decode(frames_of(vector))
    assert {"to": to, "clock": clock, "messages": notation(messages)} == vector["meaning"]
    for message in messages:
        assert m.check(message) == message[0]  # type: ignore[index]


@named([vector for vector in ENVELOPES if vector["canonical"]])
def test_meaning_encodes_to_exactly_these_frames(vector: dict[str, Any]) -> None:
    messages, frames = value_of(vector["meaning"]["messages"]), []
    for message in messages:
        if message[0] == m.BULK and message[2] is not None:
            message = message[2]
        at = VALUE_AT.get(message[0])
        if at is not None:
            message[at] = externalize(message[at], frames, vector.get("inline_limit", 16384))
    envelope = encode(vector["meaning"]["to"], vector["meaning"]["clock"], messages)
    assert [envelope.hex(), *(bytes(frame).hex() for frame in frames)] == vector["frames"]


@named([vector for vector in ENVELOPES for message in vector["meaning"]["messages"] if message[:2] == [1, m.MAJOR]])
def test_every_hello_parses_to_its_fields(vector: dict[str, Any]) -> None:
    message = decode(frames_of(vector))[2][0]
    hello = m.Hello.parse(message)  # type: ignore[arg-type]
    fields = message[3]  # type: ignore[index]
    assert (hello.id, hello.name, hello.mesh) == (fields["id"], fields["name"], fields["mesh"])
    assert hello.capacity == fields.get("capacity", 1)
    assert list(hello.addresses) == fields.get("addresses", [])
    assert [[o.name, o.version, o.digest] for o in hello.services] == [s[:3] for s in fields.get("services", [])]
    limits = (hello.max_message, hello.max_calls, hello.max_items, hello.max_item_bytes)
    assert dict(zip(("message", "calls", "items", "bytes"), limits, strict=True)) == fields.get(
        "limits", {"message": m.LIMIT, "calls": m.LIMIT, "items": 16, "bytes": 65_536}
    )
    assert hello.expects == fields.get("expects")
    offer = fields.get("bulk")
    if offer is None:
        assert hello.bulk is None
    else:
        expected = m.BulkOffer(offer["bytes"], offer.get("token", b""), offer.get("port", 0))
        assert hello.bulk == expected
        assert expected.field().items() <= offer.items()


@named(MALFORMED)
def test_a_listener_answers_what_is_malformed(vector: dict[str, Any]) -> None:
    answers = asyncio.run(answers_to(frames_of(vector), greeted=vector["stage"] == "open"))
    expected = vector["answers"]
    assert len(answers) == len(expected), answers
    for answer, pattern in zip(answers, expected, strict=True):
        assert m.check(answer) == pattern[0]
        texts = [item for item, wanted in zip(answer, pattern, strict=True) if wanted is None and item is not None]
        assert all(isinstance(text, str) and text for text in texts)
        assert [None if wanted is None else item for item, wanted in zip(answer, pattern, strict=True)] == pattern


def test_every_kind_of_message_has_a_vector() -> None:
    kinds = {message[0] for vector in ENVELOPES for message in vector["meaning"]["messages"]}
    assert kinds == set(m.NAMES)


@pytest.mark.parametrize("vector", ARITHMETIC["tags"], ids=lambda vector: vector["id"])
def test_incarnation_tags(vector: dict[str, Any]) -> None:
    assert m.tag_of(bytes.fromhex(vector["id"])) == vector["tag"]


@pytest.mark.parametrize("vector", ARITHMETIC["expand"], ids=str)
def test_numbers_expand_to_counters(vector: dict[str, Any]) -> None:
    assert expand(vector["number"], vector["below"]) == vector["counter"]


@named(ARITHMETIC["waited"])
def test_time_in_queues(vector: dict[str, Any]) -> None:
    clock = QueueClock()
    assert [clock.waited(sent, now) for sent, now, _ in vector["envelopes"]] == [w for _, _, w in vector["envelopes"]]
