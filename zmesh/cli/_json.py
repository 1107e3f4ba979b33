"""JSON in and out: what a command reads and prints where values are not text.

JSON has no bytes: they are `{"$base64": "..."}`, both ways.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any, Final

__all__ = ["argument_of", "from_json", "to_json"]

_BYTES: Final = "$base64"


def to_json(value: object, *, indent: int | None = None) -> str:
    """JSON for a value that came over the wire."""
    return json.dumps(_plain(value), ensure_ascii=False, indent=indent)


def from_json(text: str) -> Any:
    """The value of a JSON text. Raises ValueError."""
    return json.loads(text, object_hook=_with_bytes, parse_constant=_refuse_constant)


def argument_of(text: str) -> Any:
    """An argument as people write it: JSON where it parses as JSON, else a string."""
    try:
        return from_json(text)
    except (json.JSONDecodeError, _NoJson):
        return text


class _NoJson(ValueError):
    """NaN and Infinity, which Python's parser would take."""


def _refuse_constant(text: str) -> Any:
    raise _NoJson(f"{text} is no JSON")


def _with_bytes(value: dict[str, Any]) -> Any:
    if value.keys() != {_BYTES}:
        return value
    try:
        return base64.b64decode(value[_BYTES], validate=True)
    except (TypeError, binascii.Error) as error:
        raise ValueError(f"{_BYTES!r} stands before base64 text: {error}") from None


def _plain(value: object) -> object:
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {_BYTES: base64.b64encode(value).decode()}
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else to_json(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    tolist = getattr(value, "tolist", None)
    return str(value) if tolist is None else _plain(tolist())  # an array has it
