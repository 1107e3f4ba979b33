"""How a service is written: `Service`, `@rpc`, and the handles that the methods become.

On an instance a method is called: `await Greeter().say_hello("x")` runs here, on a client it runs on another node.
On the class it is a handle, `Greeter.say_hello`, which tells what to call; `Greeter.say_hello.handler` is the function.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import inspect
import re
import sys
import types
import typing
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, ClassVar, Concatenate, Generic, Literal, ParamSpec, Protocol, TypeVar, overload

from ._call import Call, LocalStream, Stream
from .schema import MethodSchema, ServiceSchema, Signature, UnresolvedAnnotation, schema_of

if typing.TYPE_CHECKING:
    from typing import Self

__all__ = ["Caller", "Method", "Service", "Streaming", "Unary", "make_client", "rpc"]

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound="Service")

_SERVICE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,127}")  # 128: so that a method's path stays a small message
_VERSION = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9}){0,3}")


class Caller(Protocol):
    """What a client calls with; the node gives it one."""

    def bind(self, method: MethodSchema, /) -> Callable[..., Any]:
        """The callable that calls this method: it returns a `Call`, or an asynchronous iterator for a stream."""

    def options(self, **changes: Any) -> Caller:
        """The same with other options; None keeps what it has."""


class Method(Generic[P, R]):
    """A method of a service, as its class has it. Not callable: a call needs an instance or a client.

    handler: the function as it was written.
    owner: the class that it was taken from, which names the service.
    pool: "process" where it runs in a process of its own pool.
    """

    owner: type[Service]

    def __init__(
        self, handler: Callable[..., Any], *, idempotent: bool, pool: Literal["process"] | None = None
    ) -> None:
        self.handler = handler
        self.idempotent = idempotent
        self.pool = pool
        self.name = handler.__name__
        self.__doc__ = handler.__doc__
        # Lets abc see the abstract method behind the handle.
        self.__isabstractmethod__ = getattr(handler, "__isabstractmethod__", False)
        self._is_async = inspect.iscoroutinefunction(handler)
        self._signature: Signature | None = None

    def __set_name__(self, owner: type[Service], name: str) -> None:
        self.owner = owner

    def __repr__(self) -> str:
        return f"<rpc method {self.owner.__qualname__}.{self.name}>"

    def _of(self, owner: type[Any]) -> Method[P, R]:
        """The handle as `owner` has it: inherited methods belong to the service that inherits them."""
        if owner is self.owner:
            return self
        handle = copy.copy(self)
        handle.owner = owner
        return handle

    def _bound_to_client(self, instance: Service) -> Callable[..., Any] | None:
        caller: Caller | None = instance.__dict__.get("_zmesh_caller")
        if caller is None:
            return None
        # Kept on the instance, which Python looks at before this descriptor: bound once, not at every call.
        bound = caller.bind(schema_of(type(instance)).methods[self.name])
        instance.__dict__[self.name] = bound
        return bound


class Unary(Method[P, R]):
    """A method that answers one value."""

    if typing.TYPE_CHECKING:

        def _takes(self, *args: P.args, **kwargs: P.kwargs) -> R: ...  # for `Node.map`

    @overload
    def __get__(self, instance: None, owner: type[Any]) -> Unary[P, R]: ...
    @overload
    def __get__(self, instance: Service, owner: type[Any]) -> Callable[P, Call[R]]: ...
    def __get__(self, instance: Service | None, owner: type[Any]) -> Any:
        if instance is None:
            return self._of(owner)
        return self._bound_to_client(instance) or self._bound_here(instance)

    def _bound_here(self, instance: Service) -> Callable[P, Call[R]]:
        handler = self.handler
        run: Callable[..., Coroutine[Any, Any, R]]
        if self._is_async:
            run = handler
        else:

            def run(*args: Any, **kwargs: Any) -> Coroutine[Any, Any, R]:
                return asyncio.to_thread(handler, *args, **kwargs)

        def call(*args: P.args, **kwargs: P.kwargs) -> Call[R]:
            return Call(run(instance, *args, **kwargs))

        return call


class Streaming(Method[P, R]):
    """A method that answers a stream of values."""

    @overload
    def __get__(self, instance: None, owner: type[Any]) -> Streaming[P, R]: ...
    @overload
    def __get__(self, instance: Service, owner: type[Any]) -> Callable[P, Stream[R]]: ...
    def __get__(self, instance: Service | None, owner: type[Any]) -> Any:
        if instance is None:
            return self._of(owner)
        return self._bound_to_client(instance) or self._bound_here(instance)

    def _bound_here(self, instance: Service) -> Callable[P, Stream[R]]:
        def stream(*args: P.args, **kwargs: P.kwargs) -> Stream[R]:
            return LocalStream(self.handler(instance, *args, **kwargs))

        return stream


class _Decorator(Protocol):
    @overload
    def __call__(self, handler: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /) -> Unary[P, R]: ...
    @overload
    def __call__(self, handler: Callable[Concatenate[Any, P], AsyncIterator[R]], /) -> Streaming[P, R]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, handler: Callable[Concatenate[Any, P], R], /) -> Unary[P, R]: ...


# The handler's `self` is Any: a TypeVar bound to Service there breaks overriding in pyright.
@overload
def rpc(handler: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /) -> Unary[P, R]: ...
@overload
def rpc(handler: Callable[Concatenate[Any, P], AsyncIterator[R]], /) -> Streaming[P, R]: ...  # type: ignore[overload-overlap]
@overload
def rpc(handler: Callable[Concatenate[Any, P], R], /) -> Unary[P, R]: ...
@overload
def rpc(*, idempotent: bool = False, pool: Literal["process"] | None = None) -> _Decorator: ...
def rpc(
    handler: Callable[..., Any] | None = None,
    /,
    *,
    idempotent: bool = False,
    pool: Literal["process"] | None = None,
) -> Any:
    """Make a method of a `Service` callable by other nodes; its annotations say what travels.

    A plain `def` runs in a worker thread, an `async def` on the loop, an async generator answers a stream.

    idempotent: running it twice does no more than running it once, so that a call may be retried after its node was
    lost, and hedged on another node.
    pool: "process" runs a plain `def` in a process instead, for work that keeps a core busy. Its `self` is a copy of
    the service there, pickled when the node was made; arguments and result are pickled, too.

    Raises TypeError for what is no function, and for a pool where the handler is async or answers a stream.
    """
    if pool not in (None, "process"):
        raise ValueError(f"pool is 'process' or None, got {pool!r:.60}")

    def decorate(handler: Callable[..., Any]) -> Method[..., Any]:
        if not inspect.isfunction(handler):
            raise TypeError(f"zmesh.rpc decorates a method written with def, got {handler!r}")
        kind: type[Method[..., Any]] = Streaming if _answers_stream(handler) else Unary
        if pool is not None and (kind is Streaming or inspect.iscoroutinefunction(handler)):
            raise TypeError(
                f"{handler.__qualname__}: pool={pool!r} is for a plain `def` that answers one value; what is async, or "
                "answers a stream, runs on the event loop"
            )
        return kind(handler, idempotent=idempotent, pool=pool)

    return decorate if handler is None else decorate(handler)


def _answers_stream(handler: types.FunctionType) -> bool:
    if inspect.iscoroutinefunction(handler):
        return False
    if inspect.isasyncgenfunction(handler):
        return True
    returned = inspect.signature(handler).return_annotation  # a plain `def` that hands on somebody else's stream
    name = returned if isinstance(returned, str) else inspect.formatannotation(typing.get_origin(returned) or returned)
    return name.partition("[")[0].rpartition(".")[2] in ("AsyncIterator", "AsyncGenerator", "AsyncIterable")


class Service:
    """Base of every service: a class whose `@zmesh.rpc` methods other nodes call.

    `class Greeter(zmesh.Service, name="shop.Greeter", version="1.2")` names and versions it. The name is the class's
    unless given, also in a subclass; the version is inherited and "1.0" at first. A client takes nodes of its major
    version. A service that is an async context manager is entered before it is advertised and left after the drain.
    """

    _zmesh_name: ClassVar[str]
    _zmesh_version: ClassVar[str] = "1.0"

    def __init_subclass__(cls, *, name: str | None = None, version: str | None = None) -> None:
        super().__init_subclass__()
        # A class that is made again from its namespace, as dataclass(slots=True) does, keeps the name it was given.
        cls._zmesh_name = name if name is not None else cls.__dict__.get("_zmesh_name", cls.__name__)
        if version is not None:
            cls._zmesh_version = version
        if not _SERVICE_NAME.fullmatch(cls._zmesh_name):
            raise TypeError(
                f"{cls.__qualname__}: {cls._zmesh_name!r} cannot name a service: "
                "letters, digits, '_' and '.', 128 at most, not starting with a digit or '.'"
            )
        if not isinstance(cls._zmesh_version, str) or not _VERSION.fullmatch(cls._zmesh_version):
            raise TypeError(f"{cls.__qualname__}: version is numbers with dots, like '1.2', got {cls._zmesh_version!r}")
        for attribute, method in vars(cls).items():
            _check_attribute(cls, attribute, method)
        # A forward reference is tried again by schema_of, when the class is served or called.
        with contextlib.suppress(UnresolvedAnnotation):
            cls._zmesh_compile(_names_around_class())

    def options(
        self,
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str | bytes] | None = None,
        node: str | None = None,
        hedge_after: float | str | None = None,
        key: str | None = None,
        priority: int | None = None,
        explain: bool | None = None,
    ) -> Self:
        """A client like this one, whose calls have these options; what is not given stays as it is here.

        timeout: seconds until a call fails with DEADLINE_EXCEEDED.
        metadata: travels with each call; the handler reads it as `zmesh.context().metadata`.
        node: only nodes of this name, or the one with this id, are called.
        hedge_after: seconds without an answer until a second node is called as well; the first answer counts. Or the
            percentile of how long calls of the method take, like "p95", once enough of them were measured. At most 5 %
            of the calls are hedged. Calling a method that is not idempotent is then a ValueError.
        key: calls with the same key go to the same node, whoever makes them, while it is there and not overloaded.
        priority: how important they are to a node with too much to do, from 0 (refused first) to 9; 5 by default. Calls
            that their handlers make inherit it.
        explain: note why each call goes where it goes, for `zmesh.explain(call)`.
        """
        caller: Caller | None = self.__dict__.get("_zmesh_caller")
        if caller is None:
            raise TypeError(
                f"options() is for calls to other nodes, and this is a local {type(self).__name__}: "
                f"use node.client({type(self).__name__}).options(...)"
            )
        changes = {
            "timeout": timeout,
            "metadata": metadata,
            "node": node,
            "hedge_after": hedge_after,
            "key": key,
            "priority": priority,
            "explain": explain,
        }
        return _new_client(type(self), caller.options(**changes))

    def __repr__(self) -> str:
        if "_zmesh_caller" in self.__dict__:
            return f"<client of {self._zmesh_name}>"
        return super().__repr__()

    @classmethod
    def _zmesh_compile(cls, scope: Mapping[str, Any] = types.MappingProxyType({})) -> ServiceSchema:
        methods: dict[str, MethodSchema] = {}
        for name, method in _methods_of(cls).items():
            if method._signature is None:
                label = f"{cls._zmesh_name}.{name}"
                method._signature = Signature(method.handler, label, {**scope, **_types_in_class(method.owner)})
            methods[name] = MethodSchema(
                cls._zmesh_name, name, method.handler, method._signature, idempotent=method.idempotent
            )
        cls._zmesh_schema = ServiceSchema(cls._zmesh_name, cls._zmesh_version, cls.__doc__ or "", methods)
        return cls._zmesh_schema

    _zmesh_schema: ClassVar[ServiceSchema]


def make_client(service: type[S], caller: Caller) -> S:
    """An instance of the service class whose methods `caller` calls; the class's own `__init__` does not run."""
    schema_of(service)  # refuses here what cannot be called, not at the first call
    return _new_client(service, caller)


def _new_client(service: type[S], caller: Caller) -> S:
    if inspect.isabstract(service):
        service = _without_abstract_methods(service)
    client = object.__new__(service)
    client.__dict__["_zmesh_caller"] = caller
    return client


def _without_abstract_methods(service: type[S]) -> type[S]:
    """A subclass that can be instantiated: the methods that are abstract here are implemented by some node."""
    concrete: type[S] = types.new_class(service.__name__, (service,), {"name": service._zmesh_name})
    concrete.__abstractmethods__ = frozenset()  # type: ignore[attr-defined]
    concrete.__doc__ = service.__doc__
    concrete._zmesh_schema = schema_of(service)
    return concrete


def _methods_of(cls: type[Service]) -> dict[str, Method[..., Any]]:
    names = {
        name: None for base in reversed(cls.__mro__) for name, value in vars(base).items() if isinstance(value, Method)
    }
    found = {name: inspect.getattr_static(cls, name) for name in names}
    return {name: method for name, method in found.items() if isinstance(method, Method)}


def _check_attribute(cls: type[Service], name: str, value: object) -> None:
    where = f"{cls.__qualname__}.{name}"
    if not isinstance(value, Method):
        inherited = next((vars(base)[name] for base in cls.__mro__[1:] if name in vars(base)), None)
        if isinstance(inherited, Method):
            raise TypeError(f"{where} overrides an rpc method: decorate it with @zmesh.rpc")
        return
    if name == "options" or name.startswith("_"):
        raise TypeError(f"{where}: an rpc method is named neither 'options', which clients have, nor with a '_' first")
    if name != value.name:
        raise TypeError(f"{where} is the rpc method {value.name!r} under a second name")


def _types_in_class(cls: type[Service]) -> dict[str, Any]:
    """What annotations in a class may name of its own body: nested types and aliases, but no functions."""
    return {
        name: value
        for name, value in vars(cls).items()
        if not name.startswith("__") and not isinstance(value, (Method, types.FunctionType))
    }


def _names_around_class() -> dict[str, Any]:
    """The local names where the class statement stands, for classes that are defined in a function."""
    frame = sys._getframe(1)
    while frame.f_code.co_name == "__init_subclass__" and frame.f_back is not None:
        frame = frame.f_back
    return dict(frame.f_locals)
