"""The clients that `Node.client` gives: by a service's class, typed, and by its name."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from . import _introspection
from ._call import Call
from ._client import Client, Outgoing, Target
from ._values import dump_untyped, load_untyped
from .schema import MethodSchema, ServiceSchema

if TYPE_CHECKING:
    from .node import Node

__all__ = ["DynamicClient", "Options", "TypedCaller"]


_RELEASES: Final = 8  # of one service at one time that are asked for a method, before it is taken for a typo


@dataclass(frozen=True, slots=True)
class Options:
    """What `.options()` sets."""

    timeout: float | None = None
    metadata: Mapping[str, str | bytes] | None = None

    def change(self, changes: Mapping[str, Any]) -> Options:
        given = {key: value for key, value in changes.items() if value is not None}
        unknown = given.keys() - {"timeout", "metadata"}
        if unknown:
            raise TypeError(f"options() takes timeout and metadata, not {', '.join(sorted(unknown))}")
        timeout = given.get("timeout", self.timeout)
        if timeout is not None and not (isinstance(timeout, (int, float)) and 0 < timeout < math.inf):
            raise ValueError(f"timeout is a positive number of seconds, got {timeout!r}")
        metadata = given.get("metadata", self.metadata)
        if metadata is not None:
            metadata = dict(metadata)
            for key, value in metadata.items():
                if not isinstance(key, str) or not isinstance(value, (str, bytes)):
                    raise TypeError(f"metadata maps str to str or bytes, got {key!r}: {value!r:.60}")
        return Options(timeout, metadata)


class TypedCaller:
    """What a typed client calls with."""

    __slots__ = ("_client", "_major", "_options", "_schema")

    def __init__(self, client: Client, schema: ServiceSchema, options: Options) -> None:
        self._client = client
        self._schema = schema
        self._major = schema.major
        self._options = options

    def bind(self, method: MethodSchema) -> Callable[..., Call[Any]]:
        if method.kind != "unary":
            raise NotImplementedError(f"{method.path} streams, which this version does not carry over the network")
        client, bind, target = self._client, method.binder, Target.of(method, self._major)
        timeout, metadata = client.timeout(self._options.timeout), self._options.metadata
        client.want(method.service)

        def call(*args: object, **kwargs: object) -> Call[Any]:
            return Outgoing(client, target, bind(*args, **kwargs), timeout, metadata)

        return call

    def options(self, **changes: Any) -> TypedCaller:
        return TypedCaller(self._client, self._schema, self._options.change(changes))


class DynamicClient:
    """A client by name: any attribute is a method, until a node has told which there are; then a typo is an
    AttributeError. Arguments and results are plain values."""

    def __init__(self, node: Node, service: str, options: Options) -> None:
        self._node = node
        self._service = service
        self._options = options

    def options(
        self, *, timeout: float | None = None, metadata: Mapping[str, str | bytes] | None = None
    ) -> DynamicClient:
        """The same client with other settings; None leaves one as it is."""
        changed = self._options.change({"timeout": timeout, "metadata": metadata})
        return DynamicClient(self._node, self._service, changed)

    async def describe(self) -> dict[str, Any]:
        """The service's methods, arguments and docstrings, from a node that offers it."""
        return (await self._node._describe_service(self._service, self._options.timeout)).raw

    def __getattr__(self, name: str) -> Callable[..., Call[Any]]:
        if name.startswith("_"):
            raise AttributeError(name)
        known, unknown = self._node._described(self._service)
        if known and not unknown:
            self._check(known, name)

        def call(*args: object, **kwargs: object) -> Call[Any]:
            if args and kwargs:
                raise TypeError(f"{self._service}.{name}: by name, give all arguments by keyword or all by position")
            return Call.of(lambda handle: self._perform(handle, name, list(args) if args else kwargs))

        return call

    def _check(self, known: list[_introspection.Description], name: str) -> tuple[str, bool]:
        for description in known:
            if name in description.methods:
                return description.methods[name]
        names = ", ".join(dict.fromkeys(name for description in known for name in description.methods))
        raise AttributeError(f"service {self._service!r} has no method {name!r}; it has {names}")

    async def _method(self, name: str, deadline: float) -> tuple[str, bool]:
        """Kind and idempotence of a method, asking those who offer the service until one has it."""
        loop = asyncio.get_running_loop()
        for _ in range(_RELEASES):
            known, unknown = self._node._described(self._service)
            if known and (not unknown or any(name in each.methods for each in known)):
                break
            await self._node._describe_service(self._service, deadline - loop.time())
        return self._check(self._node._described(self._service)[0], name)

    async def _perform(self, handle: Call[Any], name: str, arguments: object) -> object:
        node, options, loop = self._node, self._options, asyncio.get_running_loop()
        node._running().client.want(self._service)
        timeout = node._config.timeout if options.timeout is None else options.timeout
        deadline = loop.time() + timeout
        kind, idempotent = await self._method(name, deadline)
        path = f"{self._service}.{name}"
        if kind != "unary":
            raise NotImplementedError(f"{path} streams, which this version does not carry over the network")
        client = node._running().client
        target = Target(self._service, None, path, idempotent, True, load_untyped)
        call = Outgoing(client, target, dump_untyped(arguments), deadline - loop.time(), options.metadata)
        try:
            return await call
        finally:
            handle.node, handle.metadata = call.node, call.metadata

    def __repr__(self) -> str:
        return f"<client of {self._service!r}, by name>"
