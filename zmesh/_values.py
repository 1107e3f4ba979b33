"""Python values to trees that CBOR carries and back, converted and checked by one annotation."""

from __future__ import annotations

import collections.abc
import contextlib
import datetime
import decimal
import functools
import inspect
import sys
import types
import typing
import uuid
from collections.abc import Mapping
from typing import Any, Final

import msgspec

__all__ = ["Form", "dump_untyped", "json_schemas", "load_untyped", "text_of"]

_BINARY: Final = (bytes, bytearray, memoryview)
# What to_builtins would turn into strings. Kept as they are until they are checked, or a UUID would pass for a `str`.
_NATIVE: Final = (
    *_BINARY,
    datetime.datetime,
    datetime.date,
    datetime.time,
    datetime.timedelta,
    uuid.UUID,
    decimal.Decimal,
)
# Subclasses of these are encoded as these (np.float64 is a float).
_SUBCLASSED: Final[tuple[type[Any], ...]] = (str, int, float, bytes, bytearray)
_SCALARS: Final[frozenset[type]] = frozenset({str, int, float, bool, bytes, type(None)})
_NAMES: Final[frozenset[type]] = frozenset({str})

_inspect = msgspec.inspect
# Annotations whose values of exactly this class need neither check nor conversion: nearly all arguments of nearly all
# calls, at a tenth of the cost of msgspec.convert.
_UNCHANGED: Final[tuple[tuple[_inspect.Type, frozenset[type]], ...]] = (
    (_inspect.AnyType(), _SCALARS),
    (_inspect.StrType(), frozenset({str})),
    (_inspect.IntType(), frozenset({int})),
    (_inspect.FloatType(), frozenset({float})),
    (_inspect.BoolType(), frozenset({bool})),
    (_inspect.BytesType(), frozenset({bytes})),
    (_inspect.MemoryViewType(), frozenset({memoryview})),
    (_inspect.NoneType(), frozenset({type(None)})),
)
_HOLD_BUFFERS: Final = (_inspect.BytesType, _inspect.ByteArrayType, _inspect.MemoryViewType)
_BECOME_STRINGS: Final = (
    _inspect.DateTimeType,
    _inspect.DateType,
    _inspect.TimeType,
    _inspect.TimeDeltaType,
    _inspect.UUIDType,
    _inspect.DecimalType,
)


class Form:
    """One annotation, compiled: Python values to trees that CBOR carries and back, checked both ways.

    exact: classes whose own instances are the same on both sides, and need no call of `dump` or `load`.
    flat_dict, flat_list: such classes within a dict and a list; None where this is no such container.
    record: the dataclass, and such classes by the names of its fields, where all that it holds are fields of these and
        it is made by setting them; else None.
    may_hold_buffers: whether a value may hold bytes-likes or arrays, which travel out of band when they are large.
    """

    __slots__ = (
        "_anything",
        "_arrays",
        "_checking",
        "_detaches",
        "_loading",
        "_record",
        "_stringifies",
        "annotation",
        "exact",
        "flat_dict",
        "flat_list",
        "may_hold_buffers",
        "record",
    )

    def __init__(self, annotation: object) -> None:
        """Raises TypeError where values of this annotation cannot be converted, NameError where it does not resolve."""
        self.annotation: Any = annotation
        info = _inspect.type_info(annotation)
        parts = _parts_of(info)
        for part in parts:
            _refuse_inconvertible(part)

        def holds(*kinds: type) -> bool:
            return any(isinstance(part, kinds) for part in parts)

        holds_anything = any(_is_anything(part) for part in parts)
        self._anything = _is_anything(info)
        self._arrays = holds_anything or holds(_inspect.CustomType)
        self._stringifies = holds_anything or holds(*_BECOME_STRINGS)
        # What is recursive may nest deeper than receivers read; the walk that finds binary values finds that too.
        self.may_hold_buffers = self._arrays or holds(*_HOLD_BUFFERS) or _is_recursive(parts)
        # Small binaries arrive as bytes, large ones as memoryviews: without an annotation to say which, always bytes.
        self._detaches = holds_anything and not holds(_inspect.MemoryViewType)
        self.exact = _unchanged_classes(info)
        self.flat_dict, self.flat_list = _flat_classes(info)
        self.record = _flat_record(info)
        # msgspec keeps what it compiled of a Struct on the class, but compiles `list[int]` again at every convert.
        self._record: type[Any] = msgspec.defstruct("_Record", [("value", annotation)], array_like=True)
        # Options of msgspec.convert; each that is given costs as much as converting a short list.
        self._checking: dict[str, Any] = {}
        self._loading: dict[str, Any] = {}
        if self.may_hold_buffers or self._stringifies:
            self._checking["builtin_types"] = _NATIVE
        if self.may_hold_buffers:
            self._loading["builtin_types"] = _BINARY
        if self._arrays:
            self._checking["dec_hook"] = _checked_array
            self._loading["dec_hook"] = _array
        if holds(_inspect.DictType):
            self._loading["str_keys"] = True  # JavaScript sends the keys of a dict[int, ...] as strings
        # What type_info describes but convert refuses is a TypeError here, not at the first call.
        with contextlib.suppress(msgspec.ValidationError):
            msgspec.convert((None,), self._record, **self._checking)

    def dump(self, value: object) -> object:
        """A checked copy of the value, as a tree for CBOR; binary leaves and arrays are not copied.

        Raises whatever says that the value does not fit, `msgspec.ValidationError` first of all.
        """
        # A list or dict of scalars that need neither check nor conversion: many are, and looking at their classes costs
        # a tenth of converting them. Here and in `load` without a call of its own, in a place that every value passes.
        if type(value) is dict:
            flat = self.flat_dict
            if flat is not None and flat.issuperset(map(type, value.values())) and _NAMES.issuperset(map(type, value)):
                return value.copy()
        elif type(value) is list:
            flat = self.flat_list
            if flat is not None and flat.issuperset(map(type, value)):
                return value.copy()
        try:
            tree = msgspec.to_builtins(value, builtin_types=self._leaves(_NATIVE), enc_hook=_plain)
        except TypeError:
            self._convert(value, self._checking)  # says better what was expected
            raise
        if not self._anything:
            self._convert(tree, self._checking)
        if self._stringifies:
            tree = msgspec.to_builtins(tree, builtin_types=self._leaves(_BINARY), enc_hook=_plain)
        return tree

    def load(self, wire: object) -> object:
        """The value of this annotation from a decoded tree. Raises as `dump` does."""
        if type(wire) is dict:
            flat = self.flat_dict
            if flat is not None and flat.issuperset(map(type, wire.values())) and _NAMES.issuperset(map(type, wire)):
                return wire
        elif type(wire) is list:
            flat = self.flat_list
            if flat is not None and flat.issuperset(map(type, wire)):
                return wire
        if self._detaches:
            wire = _with_bytes(wire)
        return wire if self._anything else self._convert(wire, self._loading)

    def _convert(self, wire: object, options: dict[str, Any]) -> object:
        try:
            return msgspec.convert((wire,), self._record, **options).value
        except msgspec.ValidationError:
            # Once more, so that the path in the message starts at the value and not at the record around it.
            return msgspec.convert(wire, self.annotation, **options)

    def _leaves(self, builtin_types: tuple[type, ...]) -> tuple[type, ...]:
        numpy = _numpy() if self._arrays else None
        return builtin_types if numpy is None else (*builtin_types, numpy.ndarray)


def dump_untyped(value: object) -> object:
    """A value as a tree for CBOR, where no annotation says what it should be. Raises TypeError for what has no form."""
    return value if type(value) in _SCALARS else _ANYTHING.dump(value)


def load_untyped(wire: object) -> object:
    """The value in a decoded tree, where no annotation says what it should be: binary values are bytes."""
    return wire if type(wire) in _SCALARS else _ANYTHING.load(wire)


def _with_bytes(wire: object) -> object:
    """The same tree with bytes for memoryviews."""
    kind = type(wire)
    if kind is memoryview:
        return bytes(typing.cast(memoryview, wire))
    if kind is list or kind is tuple:
        items = typing.cast("list[object]", wire)
        return wire if _SCALARS.issuperset(map(type, items)) else [_with_bytes(item) for item in items]
    if kind is dict:
        named = typing.cast("dict[object, object]", wire)
        return wire if _SCALARS.issuperset(map(type, named.values())) else {k: _with_bytes(v) for k, v in named.items()}
    return wire


def _parts_of(info: _inspect.Type) -> list[_inspect.Type]:
    """A type and all types within it; recursive types end, each part is there once."""
    seen: dict[int, Any] = {}
    waiting: list[Any] = [info]
    while waiting:
        part = waiting.pop()
        if isinstance(part, tuple):
            waiting.extend(part)
        elif isinstance(part, (_inspect.Type, _inspect.Field)) and id(part) not in seen:
            seen[id(part)] = part
            waiting.extend(getattr(part, field) for field in part.__struct_fields__)
    return [part for part in seen.values() if isinstance(part, _inspect.Type)]


def _refuse_inconvertible(part: _inspect.Type) -> None:
    if isinstance(part, _inspect.CustomType):
        numpy = _numpy()
        if part.cls is object or (numpy is not None and part.cls is numpy.ndarray):
            return
        refused: type = part.cls
    elif isinstance(part, (_inspect.RawType, _inspect.ExtType)):
        refused = type(part)
    else:
        return
    raise TypeError(
        f"there is no conversion for `{text_of(refused)}` "
        "(use builtins, dataclasses, TypedDict, NamedTuple, enums, datetime, UUID, Decimal, numpy.ndarray)"
    )


def _unchanged_classes(info: _inspect.Type) -> frozenset[type]:
    while isinstance(info, _inspect.Metadata):
        info = info.type
    if _is_anything(info):
        return _SCALARS
    choices = info.types if isinstance(info, _inspect.UnionType) else (info,)
    return frozenset().union(*(classes for plain, classes in _UNCHANGED for choice in choices if choice == plain))


def _flat_classes(info: _inspect.Type) -> tuple[frozenset[type] | None, frozenset[type] | None]:
    """The classes of scalars that need nothing done within a dict of this annotation, and within a list of it; None
    where it is no such container."""
    while isinstance(info, _inspect.Metadata):
        info = info.type
    named: frozenset[type] | None = None
    listed: frozenset[type] | None = None
    if _is_anything(info):
        named = listed = _SCALARS
    elif isinstance(info, _inspect.DictType) and isinstance(info.key_type, _inspect.StrType):
        if info == _inspect.DictType(_inspect.StrType(), info.value_type):  # no limits on length or keys
            named = _unchanged_classes(info.value_type)
    elif isinstance(info, _inspect.ListType) and info == _inspect.ListType(info.item_type):
        listed = _unchanged_classes(info.item_type)
    return named, listed


def _flat_record(info: _inspect.Type) -> tuple[type, dict[str, frozenset[type]]] | None:
    """A dataclass of scalars that need nothing done, and the classes of these by field; None for all else."""
    while isinstance(info, _inspect.Metadata):
        info = info.type
    if not isinstance(info, _inspect.DataclassType) or not isinstance(info.cls, type):
        return None
    cls: Any = info.cls
    frozen = getattr(cls, "__dataclass_params__", None) is not None and cls.__dataclass_params__.frozen
    if cls.__new__ is not object.__new__ or hasattr(cls, "__post_init__"):
        return None
    if frozen or cls.__setattr__ is not object.__setattr__:  # what guards its fields is left to msgspec
        return None
    fields = {field.name: _unchanged_classes(field.type) for field in info.fields}
    named = all(field.encode_name == field.name for field in info.fields)
    return (cls, fields) if named and fields and all(fields.values()) else None


def _is_recursive(parts: list[_inspect.Type]) -> bool:
    return any(part in _parts_of(part.fields) for part in parts if hasattr(part, "fields"))


def _is_anything(info: _inspect.Type) -> bool:
    return isinstance(info, _inspect.AnyType) or (isinstance(info, _inspect.CustomType) and info.cls is object)


def _numpy() -> Any:
    """numpy where something else imported it: before that there are no arrays, and importing it takes its time."""
    return sys.modules.get("numpy")


def _plain(value: Any) -> object:
    """The builtin behind what msgspec does not take: subclasses of builtins, NumPy's scalars, other collections."""
    for base in _SUBCLASSED:
        if isinstance(value, base):
            return base(value)
    numpy = _numpy()
    if numpy is not None and isinstance(value, numpy.generic):
        return value.item()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (collections.abc.Sequence, collections.abc.Set)):
        return list(value)
    raise TypeError(f"there is no conversion for `{text_of(type(value))}`")


def _checked_array(annotation: Any, value: Any) -> Any:
    """msgspec's dec_hook on the way out: an array of the annotated element type."""
    if annotation is object:
        return value
    numpy = _numpy()
    if not isinstance(value, numpy.ndarray):
        raise TypeError(f"Expected `numpy.ndarray`, got `{text_of(type(value))}`")
    misfit = _misfit(annotation, value.dtype)
    if misfit is not None:
        raise TypeError(misfit)
    return value


@functools.lru_cache(maxsize=1024)  # annotations times element types: few in any program, and slow to compare
def _misfit(annotation: Any, dtype: Any) -> str | None:
    if dtype.hasobject:
        return "Expected `numpy.ndarray` of numbers, got one of Python objects"
    kinds = _element_kinds(annotation)
    if not kinds or any(_numpy().issubdtype(dtype, kind) for kind in kinds):
        return None
    return f"Expected `numpy.ndarray` of {' or '.join(kind.__name__ for kind in kinds)}, got one of {dtype}"


def _array(annotation: Any, value: Any) -> Any:
    """msgspec's dec_hook on the way in: also takes nested lists of numbers, from peers that have no arrays."""
    if annotation is not object and isinstance(value, list):
        numpy = _numpy()
        value = numpy.asarray(value)
        kinds = _element_kinds(annotation)
        if len(kinds) == 1 and (value.size == 0 or numpy.can_cast(value.dtype, kinds[0], "same_kind")):
            value = value.astype(kinds[0], copy=False)
    return _checked_array(annotation, value)


def _element_kinds(annotation: Any) -> tuple[Any, ...]:
    """NumPy's scalar classes that the elements of `NDArray[...]` may have; none where it does not say."""
    dtype = typing.get_args(annotation)[1:2]
    elements = typing.get_args(dtype[0])[0] if dtype and typing.get_args(dtype[0]) else Any
    choices = typing.get_args(elements) if isinstance(elements, types.UnionType) else (elements,)
    kinds = tuple(typing.get_origin(choice) or choice for choice in choices)
    return kinds if all(isinstance(kind, type) for kind in kinds) and Any not in kinds else ()


def json_schemas(forms: list[Form]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A JSON Schema for each form, and the definitions that these refer to, as `#/$defs/...`."""
    schemas, definitions = msgspec.json.schema_components(
        [form.annotation for form in forms], schema_hook=_schema_hook, ref_template="#/$defs/{name}"
    )
    return list(schemas), {"$defs": definitions} if definitions else {}


def _schema_hook(cls: type) -> dict[str, Any]:
    return {"description": "anything"} if cls is object else {"type": "array", "description": "numpy.ndarray"}


def text_of(annotation: object) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


_ANYTHING: Final = Form(Any)
