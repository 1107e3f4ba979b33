"""Messages to frames and back: the envelope, CBOR (RFC 8949), large binary values out of band, typed arrays (RFC 8746).

An envelope is one CBOR array `[to, clock, messages]` in the first frame; the frames behind it are the large binary
values of its messages, each referred to by tag 64077 with the frame's number (1 is the first behind the envelope).
"""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import cbor2

from .messages import LIMIT, MAX_ROW, Message, ProtocolError, brief

if TYPE_CHECKING:
    import numpy

__all__ = [
    "MARGIN",
    "Frame",
    "decode",
    "decode_row",
    "encode",
    "encode_row",
    "externalize",
    "fits_row",
    "frames_of",
    "is_plain",
    "lasting",
    "length_of_row",
]

Frame = bytes | memoryview

OUT_OF_BAND: Final = 64077  # a frame of its own; from the first-come-first-served range of the CBOR tag registry
MULTI_DIMENSIONAL: Final = 40  # RFC 8746: [[dimensions], typed array], row-major
OTHER_ARRAY: Final = 64078  # [dtype, [dimensions], bytes] for the element types that RFC 8746 lacks

# RFC 8746, section 2.1: little-endian, or single bytes.
_TYPED_ARRAYS: Final = {
    "|u1": 64, "<u2": 69, "<u4": 70, "<u8": 71, "|i1": 72, "<i2": 77, "<i4": 78, "<i8": 79,
    "<f2": 84, "<f4": 85, "<f8": 86,
}  # fmt: skip
_BIG_ENDIAN: Final = {65: ">u2", 66: ">u4", 67: ">u8", 73: ">i2", 74: ">i4", 75: ">i8", 80: ">f2", 81: ">f4", 82: ">f8"}
_DTYPES: Final = {tag: dtype for dtype, tag in _TYPED_ARRAYS.items()} | {68: "|u1"} | _BIG_ENDIAN
_OTHER_DTYPE: Final = re.compile(r"\|b1|<c8|<c16")

MAX_DEPTH: Final = 64  # nesting of containers in a value; far above what people write, far below what hurts
_WHOLE_DEPTH: Final = MAX_DEPTH + 8  # with what an envelope, a message and a tagged array add to it
_ENVELOPE: Final = (int, int, list)  # the classes of what it holds
MAX_MESSAGES: Final = 1024  # in one envelope
MAX_FRAMES: Final = 256  # behind one envelope
MARGIN: Final = 1024 * 1024  # bytes that all frames of an envelope may have together beyond the largest single one

_ONE_MESSAGE: Final = struct.Struct(">BBIBIB").pack  # what an envelope has before its only message
_SHORT: Final = 0xFFFF  # up to here CBOR has shorter forms of a number

_SCALARS: Final[frozenset[type]] = frozenset((str, int, float, bool, type(None)))
_LEAVES: Final[frozenset[type]] = _SCALARS | {bytes}
_CONTAINERS: Final = frozenset((dict, list, tuple))


def encode(to: int, clock: int, messages: list[Message]) -> bytes:
    """The first frame of an envelope. Raises TypeError or ValueError where a value has no CBOR form."""
    try:
        if len(messages) == 1 and clock > _SHORT < to:  # cbor2 takes a third of its time for these few bytes
            message = cbor2.dumps(messages[0], default=_refuse)
            return _ONE_MESSAGE(0x83, 0x1A, to, 0x1A, clock, 0x81) + message
        return cbor2.dumps([to, clock, messages], default=_refuse)
    except cbor2.CBOREncodeError as error:
        raise TypeError(str(error)) from error


def decode(frames: Sequence[Frame]) -> tuple[int, int, list[object]]:
    """An envelope: the tag that it is for, its sender's clock, and its messages, still to be checked one by one.

    Raises ProtocolError for anything that is no envelope, whatever the bytes.
    """
    if len(frames) > MAX_FRAMES + 1:
        raise ProtocolError(f"{len(frames)} frames in one envelope, at most {MAX_FRAMES + 1} are allowed")
    hook: Any = _no_frames if len(frames) == 1 else partial(_resolve, frames)
    try:
        envelope = cbor2.loads(
            frames[0],
            tag_hook=hook,
            max_depth=_WHOLE_DEPTH,
            allow_indefinite=False,
            allow_duplicate_keys=False,
            semantic_decoders=_DECODERS,
        )
    except ProtocolError:
        raise
    except Exception as error:  # the decoder's own, and whatever a hostile value makes its constructors raise
        cause = error.__cause__ if isinstance(error.__cause__, ProtocolError) else error
        raise ProtocolError(f"not CBOR of this protocol: {cause}"[:200]) from None
    if type(envelope) is list:
        if len(envelope) > 3:
            del envelope[3:]  # of a later version
        if tuple(map(type, envelope)) == _ENVELOPE:
            to, clock, messages = envelope
            if 0 <= to <= LIMIT and 0 <= clock <= LIMIT and len(messages) <= MAX_MESSAGES:
                return to, clock, messages
    raise _no_envelope(envelope)


def _no_envelope(envelope: object) -> ProtocolError:
    if not isinstance(envelope, list) or len(envelope) < 3:
        return ProtocolError(f"an envelope is an array of three, got {brief(envelope)}")
    to, clock, messages = envelope[:3]
    if type(to) is not int or type(clock) is not int or type(messages) is not list:
        return ProtocolError("an envelope is [receiver's tag, sender's clock, messages]")
    if not (0 <= to <= LIMIT and 0 <= clock <= LIMIT):
        return ProtocolError("an envelope's tag and clock are below 2**31")
    return ProtocolError(f"{len(messages)} messages in one envelope, at most {MAX_MESSAGES} are allowed")


def encode_row(values: list[object]) -> bytes:
    """A row of items, as ITEMS carries it. Raises as `encode` does."""
    try:
        return cbor2.dumps(values, default=_refuse)
    except cbor2.CBOREncodeError as error:
        raise TypeError(str(error)) from error


def length_of_row(row: bytes) -> int:
    """How many items a row has, by the head of its array. Raises ProtocolError where it is none."""
    head = row[0] if row else 0
    length = head - 0x80 if head <= 0x97 else -1  # RFC 8949, section 3: below 24 in the head itself, else behind it
    if 0x98 <= head <= 0x9B:
        length = int.from_bytes(row[1 : 1 + (1 << head - 0x98)], "big")
    if not 0 < length <= MAX_ROW:
        raise ProtocolError(f"a row of items is an array of 1 to {MAX_ROW}, got {brief(row)}")
    return length


def decode_row(row: bytes) -> list[object]:
    """The items of a row, of which there is one at least. Raises ProtocolError for anything else."""
    try:
        values = cbor2.loads(
            row,
            tag_hook=_no_frames,
            max_depth=_WHOLE_DEPTH,
            allow_indefinite=False,
            allow_duplicate_keys=False,
            semantic_decoders=_DECODERS,
        )
    except Exception as error:  # as in `decode`
        cause = error.__cause__ if isinstance(error.__cause__, ProtocolError) else error
        raise ProtocolError(f"a row of items is not CBOR of this protocol: {cause}"[:200]) from None
    if type(values) is not list or not 0 < len(values) <= MAX_ROW:
        raise ProtocolError(f"a row of items is an array of 1 to {MAX_ROW}, got {brief(values)}")
    return values


def fits_row(value: object) -> bool:
    """Whether a value may stand in a row, where it is small: it holds no array, and nothing that may change."""
    return type(value) is bytes or is_plain(value, leaves=_LEAVES)


def is_plain(value: object, depth: int = 3, leaves: frozenset[type] = _SCALARS) -> bool:
    """Whether a value is scalars in a few levels of dicts and lists, and nothing else: most leave as they are."""
    kind = type(value)
    items: Collection[object]
    if kind is dict:
        items = value.values()  # type: ignore[attr-defined]
    elif kind is list:
        items = value  # type: ignore[assignment]
    else:
        return kind in leaves
    if leaves.issuperset(map(type, items)):
        return True
    if depth == 0:
        return False
    for item in items:  # noqa: SIM110  (a generator costs more than all the rest)
        if not is_plain(item, depth - 1, leaves):
            return False
    return True


def externalize(value: object, frames: list[Frame], inline_limit: int, depth: int = MAX_DEPTH) -> object:
    """`value` with its large binary leaves moved to `frames` and its arrays in their CBOR form.

    Containers that hold more than scalars are copied; nothing of the caller's is changed. Raises TypeError for an
    array whose elements have no form on the wire, ValueError for containers nested deeper than MAX_DEPTH, which no
    receiver would read.
    """
    kind = type(value)
    if kind in _SCALARS:
        return value
    if kind is bytes:
        return _binary(value, frames, inline_limit)  # type: ignore[arg-type]
    if depth == 0 and kind in _CONTAINERS:
        raise ValueError(f"a value is nested deeper than {MAX_DEPTH} containers")
    if kind is dict:
        if _SCALARS.issuperset(map(type, value.values())):  # type: ignore[attr-defined]
            return value
        items = value.items()  # type: ignore[attr-defined]
        return {key: externalize(item, frames, inline_limit, depth - 1) for key, item in items}
    if kind is list or kind is tuple:
        if _SCALARS.issuperset(map(type, value)):  # type: ignore[call-overload]
            return value
        return [externalize(item, frames, inline_limit, depth - 1) for item in value]  # type: ignore[attr-defined]
    if isinstance(value, (bytearray, memoryview)):
        return _binary(memoryview(value), frames, inline_limit)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        if isinstance(value, numpy.ndarray):
            return _array(value, frames, inline_limit)
        if isinstance(value, numpy.generic):
            return value.item()
    return value


def lasting(value: object) -> object:
    """`value` with copies of its binary leaves and arrays, so that it stays as it is now whatever becomes of the
    buffers. What is bytes, or a view of bytes, is not copied."""
    kind = type(value)
    if kind is bytes or is_plain(value):
        return value
    if kind is dict:
        return {key: lasting(item) for key, item in value.items()}  # type: ignore[attr-defined]
    if kind is list or kind is tuple:
        return kind(map(lasting, value))  # type: ignore[call-overload]
    if isinstance(value, bytearray) or (isinstance(value, memoryview) and type(value.obj) is not bytes):
        return bytes(value)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray):
        return value.copy(order="C")
    return value


def frames_of(value: object) -> set[int]:
    """The numbers of the frames that a value which went through `externalize` refers to."""
    if isinstance(value, cbor2.CBORTag):
        return {value.value} if value.tag == OUT_OF_BAND else frames_of(value.value)
    if isinstance(value, dict):
        value = list(value.values())
    return set().union(*map(frames_of, value)) if isinstance(value, list) else set()


def _binary(value: bytes | memoryview, frames: list[Frame], inline_limit: int) -> object:
    size = value.nbytes if isinstance(value, memoryview) else len(value)
    if size <= inline_limit or len(frames) >= MAX_FRAMES:
        return bytes(value)
    if isinstance(value, memoryview):
        value = value.cast("B") if value.c_contiguous else memoryview(value.tobytes())
    frames.append(value)
    return cbor2.CBORTag(OUT_OF_BAND, len(frames))


def _array(array: numpy.ndarray[Any, Any], frames: list[Frame], inline_limit: int) -> object:
    import numpy

    array = numpy.ascontiguousarray(array) if array.ndim else array
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    dtype = array.dtype.str
    tag = _TYPED_ARRAYS.get(dtype)
    if tag is None and not _OTHER_DTYPE.fullmatch(dtype):
        raise TypeError(f"an array of {array.dtype} has no form on the wire; send a list, or bytes of your own format")
    leaf = _binary(array.reshape(-1).view(numpy.uint8).data, frames, inline_limit) if array.size else b""
    if tag is not None:
        return cbor2.CBORTag(MULTI_DIMENSIONAL, [list(array.shape), cbor2.CBORTag(tag, leaf)])
    return cbor2.CBORTag(OTHER_ARRAY, [dtype, list(array.shape), leaf])


def _refuse(encoder: object, value: object) -> None:
    raise TypeError(f"{type(value).__name__} has no form on the wire: {value!r:.60}")


def _shared(value: object, immutable: bool) -> object:
    raise ProtocolError("shared references (tags 28 and 29) are not part of this protocol: they could form a cycle")


def _foreign(number: int, value: object, immutable: bool) -> object:
    return cbor2.CBORTag(number, value)


# What cbor2 would do by itself and this protocol does not: regular expressions, mail messages, ... stay tagged values,
# which no annotation takes.
_DECODERS: Final[Any] = dict.fromkeys((25, 28, 29, 256), _shared) | {
    number: partial(_foreign, number) for number in (5, 30, 35, 36, 52, 54, 260, 261, 43000, 55799)
}


_ARRAYS: Final = (list, tuple)  # within a tag cbor2 makes arrays tuples


def _no_frames(tag: cbor2.CBORTag, immutable: bool) -> object:
    return _resolve((b"",), tag, immutable)


def _resolve(frames: Sequence[Frame], tag: Any, immutable: bool) -> object:
    number, value = tag.tag, tag.value
    if number == OUT_OF_BAND:
        if type(value) is not int or not 0 < value < len(frames):
            raise ProtocolError(f"frame {brief(value, 20)} is referred to, and {len(frames) - 1} came")
        return memoryview(frames[value])
    if number in _DTYPES and isinstance(value, (bytes, memoryview)):
        return _typed(_DTYPES[number], None, value)
    if number == MULTI_DIMENSIONAL and isinstance(value, _ARRAYS) and len(value) == 2:
        return _reshape(value[0], value[1])
    if number == OTHER_ARRAY and isinstance(value, _ARRAYS) and len(value) == 3:
        dtype, shape, leaf = value
        if isinstance(dtype, str) and _OTHER_DTYPE.fullmatch(dtype) and isinstance(leaf, (bytes, memoryview)):
            return _typed(dtype, shape, leaf)
    if number in _DTYPES or number in (MULTI_DIMENSIONAL, OTHER_ARRAY):
        raise ProtocolError(f"the content of CBOR tag {number} is of the wrong type")
    return tag  # of a later version, or of no version: its value is refused where it is converted, not the link


def _typed(dtype: str, shape: object, leaf: bytes | memoryview) -> object:
    try:
        import numpy
    except ImportError:  # the values are all there; who needs the shape installs numpy
        return memoryview(leaf)
    array = numpy.frombuffer(leaf, dtype) if len(leaf) else numpy.empty(0, dtype)
    return array if shape is None else _reshape(shape, array)


def _reshape(shape: object, array: Any) -> object:
    if not (isinstance(shape, _ARRAYS) and all(type(side) is int and 0 <= side <= LIMIT for side in shape)):
        raise ProtocolError(f"an array's dimensions are small numbers, got {brief(shape)}")
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(array, numpy.ndarray):
        return array.reshape(shape)
    if isinstance(array, memoryview):  # numpy is not installed here
        return array
    raise ProtocolError("an array's elements are a typed array (RFC 8746, section 2)")
