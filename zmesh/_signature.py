"""What the annotations of one handler say, compiled."""

from __future__ import annotations

import collections.abc
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from ._values import Form, text_of

__all__ = ["ABSENT", "Kind", "Parameter", "Signature", "UnresolvedAnnotation"]

Kind: TypeAlias = Literal["unary", "server_stream", "client_stream", "bidi"]

_STREAMS: Final = (collections.abc.AsyncIterator, collections.abc.AsyncGenerator, collections.abc.AsyncIterable)
ABSENT: Final[Any] = object()


class UnresolvedAnnotation(TypeError):
    """An annotation names what is not defined (yet): an error by the time that the class is served or called."""


class Parameter(NamedTuple):
    """One parameter of a method, after `self`."""

    name: str
    form: Form
    default: Any  # ABSENT where the caller must give it
    keyword_only: bool
    is_stream: bool  # an AsyncIterator: its items travel, and `form` is theirs


class Signature:
    """What the annotations of one handler say; the same for each class that inherits the handler."""

    __slots__ = ("doc", "is_async", "kind", "parameters", "result")

    def __init__(self, handler: Callable[..., Any], label: str, scope: Mapping[str, Any]) -> None:
        """Raises UnresolvedAnnotation, or another TypeError for what can never be called remotely.

        label: the method's name in messages, "Greeter.say_hello".
        scope: names that annotations may use besides the handler's globals.
        """
        self.doc = inspect.cleandoc(handler.__doc__ or "")
        self.is_async = inspect.iscoroutinefunction(handler) or inspect.isasyncgenfunction(handler)
        signature = inspect.signature(handler)
        names = getattr(inspect.unwrap(handler), "__globals__", {})
        parameters = list(signature.parameters.values())
        if not parameters or parameters[0].kind not in (
            inspect.Parameter.POSITIONAL_ONLY,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
        ):
            raise TypeError(f"{label}: an rpc method takes `self` first")
        self.parameters = tuple(_compile_parameter(each, label, names, scope) for each in parameters[1:])
        streams = [each.name for each in self.parameters if each.is_stream]
        if len(streams) > 1:
            raise TypeError(f"{label}: one stream of arguments at most, got {', '.join(streams)}")
        if streams and not self.is_async:
            raise TypeError(f"{label}: a method that takes a stream is written with `async def`, to iterate over it")
        returned = _resolve(signature.return_annotation, f"{label}: return", names, scope)
        item = _stream_item(returned)
        answers_stream = item is not ABSENT
        if inspect.isgeneratorfunction(handler):
            raise TypeError(f"{label}: a stream is written as an async generator (`async def` with `yield`)")
        if inspect.iscoroutinefunction(handler) and answers_stream:
            raise TypeError(f"{label}: an `async def` that returns {text_of(returned)} has no `yield` in its body")
        if inspect.isasyncgenfunction(handler) and not answers_stream:
            if returned is not Any:
                raise TypeError(f"{label}: an async generator returns AsyncIterator[...], not `{text_of(returned)}`")
            answers_stream, item = True, Any
        self.result = _compile(item if answers_stream else returned, f"{label}: return")
        self.kind: Kind = _KINDS[bool(streams), answers_stream]


_KINDS: Final[dict[tuple[bool, bool], Kind]] = {
    (False, False): "unary",
    (False, True): "server_stream",
    (True, False): "client_stream",
    (True, True): "bidi",
}


def _compile_parameter(
    parameter: inspect.Parameter, label: str, names: dict[str, Any], scope: Mapping[str, Any]
) -> Parameter:
    where = f"{label}: argument {parameter.name!r}"
    if parameter.kind not in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY):
        raise TypeError(
            f"{label}: {parameter}: an rpc method takes neither *args, **kwargs nor positional-only parameters, "
            "because arguments travel by name"
        )
    annotation = _resolve(parameter.annotation, where, names, scope)
    item = _stream_item(annotation)
    return Parameter(
        parameter.name,
        _compile(annotation if item is ABSENT else item, where),
        ABSENT if parameter.default is inspect.Parameter.empty else parameter.default,
        parameter.kind is inspect.Parameter.KEYWORD_ONLY,
        item is not ABSENT,
    )


def _resolve(annotation: Any, where: str, names: dict[str, Any], scope: Mapping[str, Any]) -> Any:
    if annotation is inspect.Parameter.empty:
        return Any
    carrier = types.SimpleNamespace(__annotations__={"it": annotation})
    try:
        return typing.get_type_hints(carrier, names, dict(scope), include_extras=True)["it"]
    except (NameError, AttributeError) as error:
        raise UnresolvedAnnotation(
            f"{where}: annotation `{text_of(annotation)}` does not resolve: {error} "
            "(is it imported only under TYPE_CHECKING?)"
        ) from error
    except Exception as error:
        raise TypeError(f"{where}: annotation `{text_of(annotation)}` is not a type: {error}") from error


def _compile(annotation: object, where: str) -> Form:
    try:
        return Form(annotation)
    except NameError as error:
        raise UnresolvedAnnotation(f"{where}: `{text_of(annotation)}` does not resolve: {error}") from error
    except Exception as error:
        raise TypeError(f"{where}: cannot be annotated `{text_of(annotation)}`: {error}") from error


def _stream_item(annotation: Any) -> Any:
    """What an annotation of an asynchronous iterator yields; ABSENT where it is not one."""
    if (typing.get_origin(annotation) or annotation) not in _STREAMS:
        return ABSENT
    return next(iter(typing.get_args(annotation)), Any)
