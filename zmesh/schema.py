"""A service's methods, types and docstrings, read from its annotations; conversion and checking of values.

Annotations are compiled once, when the class is defined. A value goes out as a tree of what CBOR carries by itself
(str, int, float, bool, None, list, dict, and as leaves bytes, bytearray, memoryview and numpy.ndarray) and is checked
against its annotation on both sides. Dates, times, UUIDs and decimals travel as strings, as in JSON, and are also taken
in their native CBOR form, which an untyped client may send. Checking is strict: an int is a float, but `5.0` is no int
(a JavaScript peer must send integers as integers), and True is no int.

Of a `numpy.ndarray` the element type is checked, the shape is not. Large binary values reach a parameter annotated
`memoryview` or `numpy.ndarray` without a copy, `bytes` with one. What is annotated `Any`, or not annotated, is passed
on unchecked, with binary values as bytes.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn, TypeAlias

import msgspec

from ._generated import make_caller, make_dump_flat, make_invoke, make_load
from ._items import Items, Streams
from ._signature import ABSENT, Kind, Parameter, Signature, UnresolvedAnnotation
from ._values import Form, json_schemas, text_of
from .errors import Internal, InvalidArgument

__all__ = ["Kind", "MethodSchema", "ServiceSchema", "Signature", "UnresolvedAnnotation", "schema_of"]

_LONGEST_REASON: Final = 300  # characters of why a value does not fit: it may quote the value, which may be long


class MethodSchema:
    """One method of one service. All of a call's values pass through here, on both sides.

    service, name, path: "Greeter", "say_hello", "Greeter.say_hello".
    handler: the function behind the method; called with the service instance before its arguments.
    is_async: `async def`; a plain `def` that answers one value runs in a worker thread.
    parameters: the names, in order.
    stream_parameter: the parameter whose items the client streams; its value is passed through as it is.
    buffers_in_arguments, buffers_in_result: whether large binary values have to be looked for.
    caller: makes a function with the handler's signature of one that takes the arguments (see `_generated`).
    invoke: calls a handler (without a stream of arguments) with arguments as they came, as `load_arguments` has them.
    dump_flat: as `dump_result` where that is simple and needs no look for binary values; else ABSENT.
    load_result: the answer, as this caller's annotation says. Raises Internal where it does not fit that.

    streams: how the items of its streams are converted.

    Where the method answers a stream, `dump_result` and `load_result` take one item of it.
    """

    __slots__ = (
        "_item_form",
        "_keyword_only",
        "_positional",
        "_signature",
        "answers_stream",
        "binder",
        "buffers_in_arguments",
        "buffers_in_result",
        "caller",
        "doc",
        "dump_flat",
        "handler",
        "idempotent",
        "invoke",
        "is_async",
        "kind",
        "load_result",
        "name",
        "parameters",
        "path",
        "service",
        "stream_parameter",
        "streams",
    )

    def __init__(
        self, service: str, name: str, handler: Callable[..., Any], signature: Signature, *, idempotent: bool
    ) -> None:
        self.service = service
        self.name = name
        self.path = f"{service}.{name}"
        self.handler = handler
        self.idempotent = idempotent
        self.is_async = signature.is_async
        self.kind: Kind = signature.kind
        self.answers_stream = signature.kind in ("server_stream", "bidi")
        self.doc = signature.doc
        self.parameters: tuple[str, ...] = tuple(each.name for each in signature.parameters)
        stream = next((each for each in signature.parameters if each.is_stream), None)
        self.stream_parameter = None if stream is None else stream.name
        self._item_form = signature.result if stream is None else stream.form
        self.buffers_in_arguments = any(each.form.may_hold_buffers for each in signature.parameters)
        self.buffers_in_result = signature.result.may_hold_buffers
        self._signature = signature
        self._positional = tuple(_load_plan(each) for each in signature.parameters if not each.keyword_only)
        self._keyword_only = tuple(_load_plan(each) for each in signature.parameters if each.keyword_only)
        self.caller = make_caller(self, signature.parameters)
        self.binder: Callable[..., dict[str, object]] = self.caller(lambda arguments, plain: arguments)
        self.invoke = make_invoke(self, signature.parameters)
        self.load_result = make_load(signature.result, self._load_result)
        self.dump_flat = make_dump_flat(signature.result)
        self.streams = Streams(
            None if stream is None else Items.of(stream.form, self._dump_item, self._load_item),
            Items.of(signature.result, self.dump_result, self.load_result) if self.answers_stream else None,
        )

    def __repr__(self) -> str:
        return f"<{self.path}: {self.kind} method{', idempotent' if self.idempotent else ''}>"

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, object]:
        """The arguments of a call by name, as a tree for CBOR. What was not passed is left to the server's default.

        Raises TypeError where the call does not fit the signature, as Python does, and InvalidArgument where a value
        does not fit its annotation.
        """
        return self.binder(*args, **kwargs)

    def load_arguments(self, wire: object, stream: object = None) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments for the handler, from a map by name or an array of positionals.

        stream: what the stream parameter gets, where there is one; null stands in its place in an array.
        Raises InvalidArgument for what is unknown, missing (and without a default), or not of its annotated type.
        """
        if type(wire) is not dict:
            wire = self._by_name(wire)
        if stream is not None:
            wire[self.stream_parameter] = stream
        args: list[Any] = []
        named: dict[str, Any] = {}
        defaults = 0
        try:
            for name, exact, load, default in self._positional:
                value = wire.get(name, ABSENT)
                if type(value) in exact:
                    args.append(value)
                elif value is not ABSENT:
                    args.append(load(value))
                elif default is ABSENT:
                    raise self._missing(name)
                else:
                    args.append(default)
                    defaults += 1
            for name, exact, load, default in self._keyword_only:
                value = wire.get(name, ABSENT)
                if type(value) in exact:
                    named[name] = value
                elif value is not ABSENT:
                    named[name] = load(value)
                elif default is ABSENT:
                    raise self._missing(name)
                else:
                    defaults += 1
        except InvalidArgument:
            raise
        except Exception as error:  # a conversion may run the user's own __post_init__, which may raise anything
            self.refuse_argument(name, error)
        if len(wire) + defaults != len(self.parameters):
            unknown = ", ".join(repr(name) for name in wire if name not in self.parameters)
            raise _invalid(f"{self.path}: unknown argument {unknown}; {self._takes()}")
        return args, named

    def dump_result(self, value: object) -> object:
        """What the handler returned, as a tree for CBOR. Raises Internal where its annotation does not fit."""
        form = self._signature.result
        if type(value) in form.exact:
            return value
        try:
            return form.dump(value)
        except Exception as error:
            raise Internal(
                f"{self.path} returned a `{text_of(type(value))}` "
                f"which is not its annotated `{text_of(form.annotation)}`: {_reason(error)}"
            ) from error

    def _dump_item(self, value: object) -> object:
        """An item of the stream parameter, as a tree for CBOR. Raises InvalidArgument where it does not fit."""
        form = self._item_form
        if type(value) in form.exact:
            return value
        try:
            return form.dump(value)
        except Exception as error:
            self.refuse_argument(f"an item of {self.stream_parameter}", error)

    def _load_item(self, wire: object) -> Any:
        """An item of the stream parameter, for the handler. Raises InvalidArgument where it does not fit."""
        form = self._item_form
        if type(wire) in form.exact:
            return wire
        try:
            return form.load(wire)
        except Exception as error:
            self.refuse_argument(f"an item of {self.stream_parameter}", error)

    def _load_result(self, wire: object) -> Any:
        form = self._signature.result
        try:
            return form.load(wire)
        except Exception as error:
            raise Internal(
                f"{self.path}: the answer does not fit this caller's annotation "
                f"`{text_of(form.annotation)}`: {_reason(error)}; are both sides of one version?"
            ) from error

    def describe(self) -> dict[str, Any]:
        """The method as JSON: its parameters as the JSON Schema of an object, its result (or one item) likewise."""
        plain = [each for each in self._signature.parameters if not each.is_stream]
        schemas, definitions = self._json_schemas([each.form for each in plain])
        for each, schema in zip(plain, schemas, strict=True):
            if each.default is not ABSENT:
                schema.update(_json_default(each))
        parameters: dict[str, Any] = {
            "type": "object",
            "properties": {each.name: schema for each, schema in zip(plain, schemas, strict=True)},
            "required": [each.name for each in plain if each.default is ABSENT],
            "additionalProperties": False,
        }
        described: dict[str, Any] = {
            "name": self.name,
            "kind": self.kind,
            "idempotent": self.idempotent,
            "order": list(self.parameters),
            "doc": self.doc,
            "parameters": parameters | definitions,
            "result": self._json_schema(self._signature.result),
        }
        for each in self._signature.parameters:
            if each.is_stream:
                described["stream"] = {"parameter": each.name, "items": self._json_schema(each.form)}
        return described

    def _json_schemas(self, forms: list[Form]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        try:
            return json_schemas(forms)
        except Exception as error:  # a field whose default has no form
            raise TypeError(f"{self.path}: cannot be described: {error}") from error

    def _json_schema(self, form: Form) -> dict[str, Any]:
        (schema,), definitions = self._json_schemas([form])
        return schema | definitions

    def _by_name(self, wire: object) -> dict[object, Any]:
        if not isinstance(wire, (list, tuple)):
            raise _invalid(f"{self.path}: arguments are a map or an array, got `{text_of(type(wire))}`")
        if len(wire) > len(self._positional):
            raise _invalid(f"{self.path}: {len(wire)} positional arguments; {self._takes()}")
        return {plan[0]: value for plan, value in zip(self._positional, wire, strict=False)}

    def refuse_argument(self, name: str, error: Exception) -> NoReturn:
        """Raise InvalidArgument for an argument that does not fit, and why."""
        raise _invalid(f"{self.path}: argument {name!r}: {_reason(error)}") from error

    def _missing(self, name: str) -> InvalidArgument:
        return _invalid(f"{self.path}: missing argument {name!r}; {self._takes()}")

    def _takes(self) -> str:
        return f"it takes {', '.join(self.parameters) or 'none'}"


class ServiceSchema:
    """A service: its name, version, docstring and methods, and a digest by which two nodes see whether they agree."""

    __slots__ = ("digest", "doc", "major", "methods", "name", "version")

    def __init__(self, name: str, version: str, doc: str, methods: Mapping[str, MethodSchema]) -> None:
        self.name = name
        self.version = version
        self.major = int(version.partition(".")[0])
        self.doc = inspect.cleandoc(doc)
        self.methods = dict(methods)
        canonical = json.dumps(self.describe(), sort_keys=True, separators=(",", ":"))
        self.digest = hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def __repr__(self) -> str:
        return f"<service {self.name} {self.version}: {', '.join(self.methods) or 'no methods'}>"

    def describe(self) -> dict[str, Any]:
        """The service as JSON, docstrings included."""
        return {
            "name": self.name,
            "version": self.version,
            "doc": self.doc,
            "methods": {name: method.describe() for name, method in self.methods.items()},
        }


def schema_of(service: type[Any]) -> ServiceSchema:
    """The schema of a `zmesh.Service` class. Raises TypeError for an annotation that still does not resolve."""
    if not isinstance(service, type) or not hasattr(service, "_zmesh_compile"):
        raise TypeError(f"expected a class derived from zmesh.Service, got {service!r}")
    compiled: ServiceSchema | None = service.__dict__.get("_zmesh_schema")
    return service._zmesh_compile() if compiled is None else compiled


_Plan: TypeAlias = tuple[str, frozenset[type], Callable[[object], Any], Any]


def _load_plan(parameter: Parameter) -> _Plan:
    if parameter.is_stream:
        return parameter.name, frozenset(), lambda value: value, parameter.default
    return parameter.name, parameter.form.exact, parameter.form.load, parameter.default


def _json_default(parameter: Parameter) -> dict[str, Any]:
    try:
        return {"default": json.loads(msgspec.json.encode(parameter.default))}
    except Exception:  # a default that JSON cannot show; that there is one is told by `required`
        return {}


def _invalid(message: str) -> InvalidArgument:
    return InvalidArgument(message, may_have_run=False)


def _reason(error: Exception) -> str:
    text = str(error)
    if len(text) > _LONGEST_REASON:  # it has the value in it
        text = f"{text[:_LONGEST_REASON]}..."
    if isinstance(error, (msgspec.ValidationError, TypeError)):
        return text[:1].lower() + text[1:]
    return f"{type(error).__name__}: {text}"
