"""Envelopes to frames and back: what may travel, in which form, and what is refused."""

from __future__ import annotations

import array
import random
from collections.abc import Callable
from typing import Any

import cbor2
import numpy
import pytest

from zmesh._core import wire
from zmesh._core.messages import LIMIT, ProtocolError, check, tag_of
from zmesh._core.wire import MAX_DEPTH, MAX_FRAMES, MAX_MESSAGES, decode, encode, externalize, frames_of

DTYPES = ["|u1", "<u2", "<u4", "<u8", "|i1", "<i2", "<i4", "<i8", "<f2", "<f4", "<f8", "|b1", "<c8", "<c16"]
DTYPES += [dtype.replace("<", ">") for dtype in DTYPES if dtype[0] == "<"]


def travelled(value: object, inline_limit: int = 64) -> Any:
    """`value` after externalize, encode and decode, as the other side has it."""
    frames: list[wire.Frame] = []
    message = [4, 1, externalize(value, frames, inline_limit), None]
    _, _, messages = decode([encode(1, 2, [message]), *frames])
    return messages[0][2]  # type: ignore[index]


def nested(depth: int, leaf: object = 0) -> object:
    for level in range(depth):
        leaf = [leaf] if level % 2 else {"in": leaf}
    return leaf


def refused(content: object, *frames: bytes) -> str:
    """Why an envelope with `content` as a message's value is not decoded."""
    with pytest.raises(ProtocolError) as caught:
        decode([cbor2.dumps([1, 2, [[4, 1, content, None]]]), *frames])
    return str(caught.value)


# -- plain values


def random_value(rng: random.Random, depth: int = 4) -> object:
    leaves: list[Callable[[], object]] = [
        lambda: None,
        lambda: rng.random() < 0.5,
        lambda: rng.randint(-(2**70), 2**70),
        lambda: rng.randint(-300, 300),
        lambda: rng.uniform(-1e300, 1e300),
        lambda: "".join(chr(rng.choice([rng.randrange(32, 0xD800), rng.randrange(0x1F300, 0x1F600)])) for _ in "12345"),
        lambda: rng.randbytes(rng.choice([0, 1, 63, 64, 65, 1000])),
    ]
    if depth and rng.random() < 0.6:
        items = [random_value(rng, depth - 1) for _ in range(rng.randrange(5))]
        return items if rng.random() < 0.5 else {f"key{number}": item for number, item in enumerate(items)}
    return rng.choice(leaves)()


def test_values_arrive_as_they_were_sent() -> None:
    rng = random.Random(1)
    for _ in range(2000):
        value = random_value(rng)
        assert travelled(value) == value


def test_nothing_of_the_senders_is_changed() -> None:
    inner = [b"x" * 100]
    value = {"a": inner, "b": (1, b"y" * 100)}
    frames: list[wire.Frame] = []
    externalize(value, frames, 64)
    assert value == {"a": inner, "b": (1, b"y" * 100)}
    assert value["a"] is inner
    assert inner == [b"x" * 100]


def test_values_that_hold_only_scalars_are_not_copied() -> None:
    for value in ({"a": 1, "b": None}, [1, "2", 3.0, True], "text"):
        assert externalize(value, [], 0) is value


@pytest.mark.parametrize(
    "value", [object(), {1, 2}.__iter__(), lambda: 0, ...], ids=["object", "iterator", "function", "..."]
)
def test_a_value_without_a_form_is_a_type_error(value: object) -> None:
    if value is ...:
        value = numpy
    with pytest.raises(TypeError, match="has no form on the wire"):
        encode(0, 0, [[4, 1, value, None]])


def test_a_cycle_is_an_error_and_not_the_end_of_the_process() -> None:
    cycle: list[object] = []
    cycle.append(cycle)
    with pytest.raises(ValueError, match="nested deeper"):
        externalize(cycle, [], 0)
    with pytest.raises((TypeError, ValueError)):
        encode(0, 0, [cycle])


def test_text_that_is_no_utf8_cannot_be_sent() -> None:
    with pytest.raises((TypeError, ValueError)):
        encode(0, 0, [[4, 1, "\ud800", None]])


# -- out of band


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_only_binary_above_the_limit_leaves_the_envelope(kind: Callable[[bytes], object]) -> None:
    for size, moved in ((0, 0), (99, 0), (100, 0), (101, 1), (100_000, 1)):
        frames: list[wire.Frame] = []
        form = externalize({"data": kind(b"z" * size)}, frames, 100)
        assert len(frames) == moved
        assert frames_of(form) == set(range(1, moved + 1))
        assert travelled(kind(b"z" * size), 100) == b"z" * size


def test_large_binary_is_not_copied() -> None:
    data = bytearray(b"a" * 1000)
    frames: list[wire.Frame] = []
    externalize([data], frames, 100)
    data[0] = ord("b")
    assert bytes(frames[0][:2]) == b"ba"


@pytest.mark.parametrize("format", ["B", "i", "d"])
def test_memoryviews_of_any_format_and_layout(format: str) -> None:
    whole = memoryview(array.array(format, range(200)))
    for view in (whole, whole[::2], whole[::-1]):
        assert travelled(view) == view.tobytes()
        assert travelled(view, 1 << 20) == view.tobytes()


def test_numbers_of_frames_go_on_over_several_values() -> None:
    frames: list[wire.Frame] = []
    first = externalize([b"1" * 100, b"2" * 100], frames, 10)
    second = externalize({"a": [b"3" * 100]}, frames, 10)
    assert (frames_of(first), frames_of(second)) == ({1, 2}, {3})
    _, _, messages = decode([encode(0, 0, [[4, 1, first, None], [4, 2, second, None]]), *frames])
    assert [message[2] for message in messages] == [[b"1" * 100, b"2" * 100], {"a": [b"3" * 100]}]  # type: ignore[index]


def test_beyond_the_most_frames_values_stay_in_the_envelope() -> None:
    value = [bytes([number % 256]) * 70 for number in range(MAX_FRAMES + 50)]
    frames: list[wire.Frame] = []
    externalize(value, frames, 64)
    assert len(frames) == MAX_FRAMES
    assert travelled(value) == value


def test_a_frame_may_be_used_twice_or_not_at_all() -> None:
    content = [cbor2.CBORTag(wire.OUT_OF_BAND, 2), cbor2.CBORTag(wire.OUT_OF_BAND, 2)]
    _, _, messages = decode([cbor2.dumps([1, 2, [[4, 1, content, None]]]), b"unused", b"used"])
    assert messages[0][2] == [b"used", b"used"]  # type: ignore[index]


@pytest.mark.parametrize("number", [0, 2, -1, 2**40, 2**70, 1.0, "1", None, True, [1]], ids=repr)
def test_a_frame_that_did_not_come_is_refused(number: object) -> None:
    assert "referred to" in refused(cbor2.CBORTag(wire.OUT_OF_BAND, number), b"the only one")
    assert "referred to" in refused(cbor2.CBORTag(wire.OUT_OF_BAND, number))


def test_more_frames_than_allowed() -> None:
    envelope = encode(1, 2, [])
    assert decode([envelope, *[b""] * MAX_FRAMES]) == (1, 2, [])
    with pytest.raises(ProtocolError, match=f"{MAX_FRAMES + 2} frames"):
        decode([envelope, *[b""] * (MAX_FRAMES + 1)])


# -- arrays of numbers


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (2, 3), (0, 3), (2, 1, 3, 2), (40,)], ids=str)
def test_arrays_arrive_with_values_shape_and_type(dtype: str, shape: tuple[int, ...]) -> None:
    size = int(numpy.prod(shape))
    values = (numpy.random.default_rng(3).random(size) * 100).astype(dtype).reshape(shape)
    for inline_limit in (0, 1 << 20):  # every frame out of band; none
        arrived = travelled(values, inline_limit)
        assert arrived.shape == shape
        assert arrived.dtype == values.dtype.newbyteorder("<")
        assert numpy.array_equal(arrived, values)


def test_arrays_of_any_layout() -> None:
    values = numpy.arange(24.0).reshape(4, 6)
    for layout in (values.T, values[::2], values[:, ::-1], numpy.asfortranarray(values), values[1:1], values[2, 3]):
        assert numpy.array_equal(travelled(layout), layout)


def test_scalars_of_numpy_become_plain_ones() -> None:
    for scalar, plain in ((numpy.int64(5), 5), (numpy.float32(0.5), 0.5), (numpy.bool_(True), True)):
        arrived = travelled([scalar, {"a": scalar}])
        assert arrived == [plain, {"a": plain}]
        assert type(arrived[0]) is type(plain)


@pytest.mark.parametrize(
    "dtype", ["O", "U5", "S5", "M8[s]", "m8[s]", "V3", "i4,f8", "f16" if hasattr(numpy, "float128") else "O"]
)
def test_arrays_of_other_elements_are_a_type_error(dtype: str) -> None:
    with pytest.raises(TypeError, match="has no form on the wire"):
        externalize(numpy.zeros(3, dtype), [], 64)


def typed(number: int, content: object) -> cbor2.CBORTag:
    return cbor2.CBORTag(number, content)


@pytest.mark.parametrize(
    "content",
    [
        typed(86, b"seven b"),  # no whole number of elements
        typed(86, [1.0, 2.0]),
        typed(86, "12345678"),
        typed(40, typed(86, bytes(8))),
        typed(40, [[1], typed(86, bytes(8)), 3]),
        typed(40, [[2], typed(86, bytes(8))]),
        typed(40, [[-1], typed(86, bytes(8))]),
        typed(40, [[1.0], typed(86, bytes(8))]),
        typed(40, [[True], typed(86, bytes(8))]),
        typed(40, [1, typed(86, bytes(8))]),
        typed(40, [[2**31 - 1] * 9, typed(86, bytes(8))]),
        typed(40, [[2**40], typed(86, bytes(8))]),
        typed(40, [[0] * 100, typed(86, b"")]),
        typed(40, [[1], [1.0]]),
        typed(40, [[8], bytes(8)]),
        typed(40, [[1], typed(40, [[1], [5]])]),
        typed(64078, ["|O", [1], bytes(8)]),
        typed(64078, ["<c8x", [1], bytes(8)]),
        typed(64078, ["<f8", [1], bytes(8)]),
        typed(64078, ["<c8", [2], bytes(8)]),
        typed(64078, ["<c8", [1], "8 bytes."]),
        typed(64078, [5, [1], bytes(8)]),
        typed(64078, {}),
    ],
    ids=repr,
)
def test_arrays_that_do_not_fit_are_refused(content: object) -> None:
    assert refused(content)


# -- the envelope


@pytest.mark.parametrize(
    "envelope",
    [
        None, 5, "text", b"bytes", {}, [], [1], [1, 2], [1, 2, None], [1, 2, {}], [1, 2, "text"], [-1, 2, []],
        [1, -2, []], [2**31, 2, []], [1, 2**31, []], [2**64, 2, []], [1.0, 2, []], [1, 2.0, []], [True, 2, []],
        ["1", 2, []], [None, 2, []], [1, 2, [[]] * (MAX_MESSAGES + 1)],
    ],
    ids=lambda envelope: repr(envelope)[:40],
)  # fmt: skip
def test_what_is_no_envelope(envelope: object) -> None:
    with pytest.raises(ProtocolError):
        decode([cbor2.dumps(envelope)])


def test_the_extremes_of_an_envelope() -> None:
    assert decode([encode(LIMIT, LIMIT, [])]) == (LIMIT, LIMIT, [])
    assert decode([encode(0, 0, [[8]] * MAX_MESSAGES)]) == (0, 0, [[8]] * MAX_MESSAGES)
    assert decode([cbor2.dumps([1, 2, [[8]], "of", "a later version"])]) == (1, 2, [[8]])
    assert decode([memoryview(encode(1, 2, [[8]]))]) == (1, 2, [[8]])


def test_every_truncation_is_refused() -> None:
    whole = encode(5, 6, [[3, 1, "Greeter.say_hello", 1000, {"name": "World", "n": [1.5, None]}, {"a": b"b"}]])
    assert decode([whole])[2]
    for length in range(len(whole)):
        with pytest.raises(ProtocolError):
            decode([whole[:length]])


def test_a_sender_nests_as_deep_as_a_receiver_reads() -> None:
    assert travelled(nested(MAX_DEPTH)) == nested(MAX_DEPTH)
    assert travelled(nested(MAX_DEPTH - 1, b"x" * 100)) == nested(MAX_DEPTH - 1, b"x" * 100)


@pytest.mark.parametrize(
    "leaf",
    [bytearray(100), memoryview(b"1" * 100), numpy.arange(6.0).reshape(2, 3)],
    ids=lambda leaf: type(leaf).__name__,
)
def test_the_deepest_container_may_hold_any_leaf(leaf: Any) -> None:
    arrived: Any = travelled(nested(MAX_DEPTH, leaf))
    while isinstance(arrived, (dict, list)):
        (arrived,) = arrived.values() if isinstance(arrived, dict) else arrived
    assert numpy.array_equal(numpy.asarray(arrived), numpy.asarray(leaf))


def test_deeper_is_refused_by_both() -> None:
    with pytest.raises(ValueError, match=f"deeper than {MAX_DEPTH}"):
        externalize(nested(MAX_DEPTH + 1, b""), [], 64)
    for depth in (72, 1_000, 5_000):
        with pytest.raises(ProtocolError):
            decode([b"\x83\x01\x02" + b"\x81" * depth + b"\x00"])
        with pytest.raises(ProtocolError):
            decode([b"\x83\x01\x02\x81" + b"\xc1" * depth + b"\x00"])
        with pytest.raises(ProtocolError):
            decode([b"\x83\x01\x02\x81" + b"\xa1\x61a" * depth + b"\x00"])


@pytest.mark.parametrize("head", [b"\x9b", b"\xbb", b"\x5b", b"\x7b"], ids=["array", "map", "bytes", "text"])
@pytest.mark.parametrize("length", [2**31, 2**40, 2**63, 2**64 - 1])
def test_huge_declared_lengths_cost_nothing(head: bytes, length: int) -> None:
    with pytest.raises(ProtocolError):
        decode([b"\x83\x01\x02\x81\x84\x04\x01" + head + length.to_bytes(8, "big") + b"abc"])


def test_a_key_twice_is_refused() -> None:
    for twice in (b"\xa2\x61a\x01\x61a\x02", b"\xa2\x01\x01\x01\x02", b"\xa2\x01\x01\x18\x01\x02"):
        with pytest.raises(ProtocolError):
            decode([b"\x83\x01\x02\x81\x84\x04\x01" + twice + b"\xf6"])


@pytest.mark.parametrize("key", [b"\x81\x01", b"\xa1\x01\x02", b"\xd8\x40\x41a", b"\xf9\x7e\x00"])
def test_odd_keys_are_refused_or_kept_and_nothing_else(key: bytes) -> None:
    try:
        _, _, messages = decode([b"\x83\x01\x02\x81\x84\x04\x01\xa1" + key + b"\x02\xf6"])
    except ProtocolError:
        return
    assert len(messages[0][2]) == 1  # type: ignore[index]


@pytest.mark.parametrize("head", [b"\x9f\xff", b"\xbf\xff", b"\x5f\x41a\xff", b"\x7f\x61a\xff"])
def test_indefinite_lengths_are_refused(head: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode([b"\x83\x01\x02\x81\x84\x04\x01" + head + b"\xf6"])


# -- tags


@pytest.mark.parametrize("number", [25, 28, 29, 256])
def test_references_are_refused(number: int) -> None:
    assert "shared references" in refused(cbor2.CBORTag(number, [1]))


@pytest.mark.parametrize("number", [5, 6, 30, 35, 36, 52, 54, 76, 83, 87, 260, 261, 1000, 43000, 55799, 64079, 2**40])
def test_unknown_tags_stay_tagged_values(number: int) -> None:
    content = "(a+)+$" if number in (35, 36) else [1, 2]
    (message,) = decode([cbor2.dumps([1, 2, [[4, 1, cbor2.CBORTag(number, content), None]]])])[2]
    value = message[2]  # type: ignore[index]
    assert isinstance(value, cbor2.CBORTag)
    assert value.tag == number


@pytest.mark.parametrize("number", [0, 1, 2, 3, 4, 37, 100, 258, 1004])
def test_known_tags_with_foreign_content_are_refused_or_decoded(number: int) -> None:
    rng = random.Random(number)
    decoded = 0
    for _ in range(300):
        content = random_value(rng, 2)
        try:
            decode([cbor2.dumps([1, 2, [[4, 1, cbor2.CBORTag(number, content), None]]])])
        except ProtocolError:
            continue
        decoded += 1
    assert decoded < 300  # none of them takes everything


# -- messages


def test_checks_take_no_message_of_another_kind_for_theirs() -> None:
    rng = random.Random(2)
    for _ in range(5000):
        message = [rng.randrange(14), *(random_value(rng, 2) for _ in range(rng.randrange(7)))]
        try:
            assert check(message) == message[0]
        except ProtocolError as refusal:
            why = str(refusal)
            assert len(why) < 300


@pytest.mark.parametrize(
    "message", [None, 5, "text", {}, (), (8,), [], ["8"], [8.0], [True], [-1], [2**31], [None], [[8]]]
)
def test_what_is_no_message(message: object) -> None:
    with pytest.raises(ProtocolError):
        check(message)


def test_tags_of_incarnations() -> None:
    rng = random.Random(4)
    for _ in range(1000):
        id = rng.randbytes(16)
        assert 0 < tag_of(id) <= LIMIT
        assert tag_of(id) == tag_of(id[:4] + rng.randbytes(12))  # of its first bytes only
    assert tag_of(bytes(16)) == tag_of(bytes(3) + b"\1" + bytes(12)) == 1
    assert tag_of(b"\xff" * 16) == LIMIT
