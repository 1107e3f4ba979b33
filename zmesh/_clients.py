"""The clients that `Node.client` gives: by a service's class, typed, and by its name."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import warnings
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from . import _introspection
from ._answers import NOTHING_READY, AnswerStream, DeferredStream, Ready
from ._call import NO_METADATA, Call, Stream
from ._client import Client, Outgoing, Target
from ._core.admission import PRIORITIES
from ._core.budget import percentile_of
from ._core.selection import Named, Selection, Sticky
from ._items import UNTYPED, Streams
from ._link import Link, Stage
from ._record import Record
from ._stream_calls import StreamCall
from ._values import dump_untyped, load_untyped
from .errors import InvalidArgument
from .interceptors import InterceptedCall, around
from .schema import Kind, MethodSchema, ServiceSchema

if TYPE_CHECKING:
    from .node import Node

__all__ = ["DynamicCall", "DynamicClient", "Options", "TypedCaller"]


_BY_NAME: Final[dict[Kind, Streams]] = {
    "unary": Streams(None, None),
    "server_stream": Streams(None, UNTYPED),
    "client_stream": Streams(UNTYPED, None),
    "bidi": Streams(UNTYPED, UNTYPED),
}
_RELEASES: Final = 8  # of one service at one time that are asked for a method, before it is taken for a typo


@dataclass(frozen=True, slots=True)
class Options:
    """What `.options()` sets."""

    timeout: float | None = None
    metadata: Mapping[str, str | bytes] | None = None
    node: str | None = None
    hedge_after: float | str | None = None
    priority: int | None = None
    key: str | None = None  # a call back, which has one place to go, does without
    explain: bool | None = None
    selection: Selection | None = None  # made of `node` and `key`, or given by `Node.scatter`

    def change(self, changes: Mapping[str, Any]) -> Options:
        given = {key: value for key, value in changes.items() if value is not None}
        names = [field.name for field in dataclasses.fields(self)]
        unknown = given.keys() - names
        if unknown:
            raise TypeError(f"options() takes {', '.join(names[:-1])}, not {', '.join(sorted(unknown))}")
        for name in ("timeout", "hedge_after"):
            seconds = given.get(name)
            if name == "hedge_after" and isinstance(seconds, str):
                percentile_of(seconds)  # raises for what is none
            elif seconds is not None and not (isinstance(seconds, (int, float)) and 0 < seconds < math.inf):
                raise ValueError(f"{name} is a positive number of seconds, got {seconds!r}")
        node = given.get("node", self.node)
        if node is not None and not isinstance(node, str):
            raise TypeError(f"node is the name of one, or its id in hex, got {node!r:.60}")
        selection = given.get("selection", self.selection)
        if "node" in given and node is not None:
            selection = Named(node)
            if self.key is not None:
                selection = Sticky(self.key, selection)
        key = given.get("key", self.key)
        if key is not None and not isinstance(key, str):
            raise TypeError(f"key is a str, got {key!r:.60}")
        if "key" in given and key is not None and not isinstance(selection, OverLink):
            selection = Sticky(key, Named(node) if node is not None else None)
        metadata = given.get("metadata", self.metadata)
        if metadata is not None:
            metadata = dict(metadata)
            for entry, value in metadata.items():
                if not isinstance(entry, str) or not isinstance(value, (str, bytes)):
                    raise TypeError(f"metadata maps str to str or bytes, got {entry!r}: {value!r:.60}")
        hedge_after = given.get("hedge_after", self.hedge_after)
        priority = given.get("priority", self.priority)
        if priority is not None and not (type(priority) is int and 0 <= priority < PRIORITIES):
            raise ValueError(f"priority is a whole number from 0 to {PRIORITIES - 1}, got {priority!r:.60}")
        explain = given.get("explain", self.explain)
        if explain not in (None, True, False):
            raise TypeError(f"explain is True or False, got {explain!r:.60}")
        timeout = given.get("timeout", self.timeout)
        return Options(timeout, metadata, node, hedge_after, priority, key, explain, selection)

    def outgoing(self, client: Client, target: Target, arguments: object, timeout: float) -> Outgoing:
        """A call with all that is set here."""
        if self.hedge_after is not None and not target.idempotent:
            raise ValueError(f"{target.path} is not idempotent: hedging could run it twice")
        call = Outgoing(client, target, timeout, self.metadata, arguments)
        self._set(call)
        return call

    def _set(self, call: Outgoing) -> None:
        call.selection, call.hedge_after, call.special = self.selection, self.hedge_after, True
        if self.priority is not None:
            call.rank, call.marked = call.client.judge.rank(self.priority), True
        if self.explain:
            call._record, call.watched = Record(call, call.client._policy), True

    def intercepted(
        self,
        client: Client,
        target: Target,
        arguments: dict[str, Any],
        kind: Kind,
        stream_parameter: str | None,
        streams: Streams,
    ) -> Call[Any] | Stream[Any]:
        """A call with the client's interceptors around it."""
        service, _, name = target.path.rpartition(".")
        call = InterceptedCall("client", service, name, kind, arguments, dict(self.metadata or {}), self.timeout)
        inner: list[Call[Any] | Stream[Any]] = []  # the last one tells who answered

        async def last(call: InterceptedCall) -> Any:
            options = dataclasses.replace(self, timeout=call.timeout, metadata=call.metadata or None)
            if kind == "unary":
                sent: Call[Any] | Stream[Any] = options.outgoing(
                    client, target, call.arguments, client.timeout(call.timeout)
                )
            else:
                rest = dict(call.arguments)
                items = _items_of(rest, stream_parameter, target.path)
                sent = options.streaming(client, target, rest, items, streams)
            inner.append(sent)
            return sent if isinstance(sent, Stream) else await sent

        proceed = around(client.interceptors, last)
        if kind in ("server_stream", "bidi"):
            return InterceptedStream(lambda: proceed(call), inner)

        async def perform(handle: Call[Any]) -> Any:
            try:
                return await proceed(call)
            finally:
                if inner:
                    handle.node, handle.metadata = inner[-1].node, inner[-1].metadata
                    handle._record = inner[-1]._record

        return Call.of(perform)

    def streaming(
        self,
        client: Client,
        target: Target,
        arguments: object,
        items: AsyncIterable[Any] | None,
        streams: Streams,
    ) -> Call[Any] | Stream[Any]:
        """A call of a method that streams."""
        if self.hedge_after is not None and (items is not None or not target.idempotent):
            raise ValueError(f"{target.path} is not idempotent or takes a stream: hedging could run it twice")
        call = StreamCall(
            client,
            target,
            arguments,
            self.timeout,
            self.metadata,
            items=items,
            streams=streams,
        )
        self._set(call)
        return call if streams.answers is None else AnswerStream(call)


class InterceptedStream(DeferredStream):
    """A stream of answers with interceptors around its call."""

    __slots__ = ("_inner",)

    def __init__(self, open: Callable[[], Awaitable[AsyncIterator[Any]]], inner: list[Any]) -> None:
        super().__init__(open)
        self._inner = inner

    @property
    def _record(self) -> Any:
        return self._inner[-1]._record if self._inner else None

    @property
    def metadata(self) -> Mapping[str, str | bytes]:
        return self._inner[-1].metadata if self._inner else NO_METADATA

    @property
    def node(self) -> str | None:
        return self._inner[-1].node if self._inner else None


class OverLink:
    """Only the node at the other end of a link, whoever dialed it: for calls back to a caller."""

    __slots__ = ("_member",)

    def __init__(self, link: Link) -> None:
        assert link.member is not None
        self._member = link.member

    @property
    def hopeless(self) -> bool:
        link = self._member.link
        return link is None or link.stage is Stage.CLOSED

    def among(self, candidates: Sequence[Any]) -> Sequence[Any]:
        return [] if self.hopeless else [self._member]

    def __str__(self) -> str:
        return f"{self._member.name!r}, which called and is gone, no longer" if self.hopeless else self._member.name


class TypedCaller:
    """What a typed client calls with."""

    __slots__ = ("_client", "_major", "_options", "_schema")

    def __init__(self, client: Client, schema: ServiceSchema, options: Options) -> None:
        self._client = client
        self._schema = schema
        self._major = schema.major
        self._options = options

    def bind(self, method: MethodSchema) -> Callable[..., Call[Any] | Stream[Any]]:
        client, bind = self._client, method.binder
        target = Target.of(method, self._major, client.judge.budget(method.service))
        timeout, metadata = client.timeout(self._options.timeout), self._options.metadata
        if not isinstance(self._options.selection, OverLink):
            client.want(method.service)
        options = self._options
        if client.interceptors:
            kind, parameter, streams = method.kind, method.stream_parameter, method.streams

            def intercepted(*args: object, **kwargs: object) -> Call[Any] | Stream[Any]:
                return options.intercepted(client, target, bind(*args, **kwargs), kind, parameter, streams)

            return intercepted
        if method.kind != "unary":

            def stream(*args: object, **kwargs: object) -> Call[Any] | Stream[Any]:
                arguments = bind(*args, **kwargs)
                items = _items_of(arguments, method.stream_parameter, method.path)
                return options.streaming(client, target, arguments, items, method.streams)

            return stream
        if options == Options(options.timeout, options.metadata):
            return method.caller(partial(Outgoing, client, target, timeout, metadata))

        def send(arguments: dict[str, object], plain: bool) -> Call[Any]:
            return options.outgoing(client, target, arguments, timeout)

        return method.caller(send)

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
        self,
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str | bytes] | None = None,
        node: str | None = None,
        hedge_after: float | str | None = None,
        key: str | None = None,
        priority: int | None = None,
        explain: bool | None = None,
    ) -> DynamicClient:
        """The same client with other settings, as `Service.options`; None leaves one as it is."""
        changes = {
            "timeout": timeout,
            "metadata": metadata,
            "node": node,
            "hedge_after": hedge_after,
            "key": key,
            "priority": priority,
            "explain": explain,
        }
        return DynamicClient(self._node, self._service, self._options.change(changes))

    async def describe(self) -> dict[str, Any]:
        """The service's methods, arguments and docstrings, from a node that offers it."""
        return (await self._node._describe_service(self._service, self._options.timeout)).raw

    async def info(self) -> dict[str, Any]:
        """Name, state, version, uptime and more of each node that offers the service, by the node's id; an RpcError
        where one did not answer."""
        return await self._node._ask_each(self._service, "info", self._options.timeout)

    async def stats(self) -> dict[str, Any]:
        """Calls in flight, and calls, errors and latencies of each method, of each node that offers the service, by
        the node's id; an RpcError where one did not answer."""
        return await self._node._ask_each(self._service, "stats", self._options.timeout)

    def __getattr__(self, name: str) -> Callable[..., DynamicCall]:
        if name.startswith("_"):
            raise AttributeError(name)
        known, unknown = self._node._described(self._service)
        if known and not unknown:
            self._check(known, name)

        def call(*args: object, **kwargs: object) -> DynamicCall:
            if args and kwargs:
                raise TypeError(f"{self._service}.{name}: by name, give all arguments by keyword or all by position")
            return DynamicCall(self, name, list(args) if args else kwargs)

        return call

    def _check(self, known: list[_introspection.Description], name: str) -> _introspection.Known:
        for description in known:
            if name in description.methods:
                return description.methods[name]
        names = ", ".join(dict.fromkeys(name for description in known for name in description.methods))
        raise AttributeError(f"service {self._service!r} has no method {name!r}; it has {names}")

    async def _method(self, name: str, deadline: float) -> _introspection.Known:
        """What must be known of a method, asking those who offer the service until one has it."""
        loop = asyncio.get_running_loop()
        for _ in range(_RELEASES):
            known, unknown = self._node._described(self._service)
            if known and (not unknown or any(name in each.methods for each in known)):
                break
            await self._node._describe_service(self._service, deadline - loop.time())
        return self._check(self._node._described(self._service)[0], name)

    async def _open(self, name: str, arguments: list[Any] | dict[str, Any]) -> Call[Any] | Stream[Any]:
        """The call, once it is known what kind of method it is."""
        node, options, loop = self._node, self._options, asyncio.get_running_loop()
        client = node._running().client
        client.want(self._service)
        deadline = loop.time() + client.timeout(options.timeout)
        known = await self._method(name, deadline)
        if options.timeout is not None:
            options = dataclasses.replace(options, timeout=deadline - loop.time())
        path, streams = f"{self._service}.{name}", _BY_NAME[known.kind]
        budget = client.judge.budget(self._service)
        target = Target(self._service, None, path, known.idempotent, True, load_untyped, budget)
        if client.interceptors:
            named = arguments if isinstance(arguments, dict) else dict(zip(known.parameters, arguments, strict=False))
            return options.intercepted(client, target, named, known.kind, known.stream_parameter, streams)
        if known.kind == "unary":
            return options.outgoing(client, target, dump_untyped(arguments), deadline - loop.time())
        items = _items_of(arguments, known.stream_parameter, path)
        return options.streaming(client, target, dump_untyped(arguments), items, streams)

    async def _open_stream(self, name: str, arguments: list[Any] | dict[str, Any]) -> Stream[Any]:
        call = await self._open(name, arguments)
        if not isinstance(call, Stream):
            call.close()
            raise TypeError(f"{self._service}.{name} answers one value: await the call")
        return call

    def __repr__(self) -> str:
        return f"<client of {self._service!r}, by name>"


def _items_of(arguments: list[Any] | dict[str, Any], parameter: str | None, path: str) -> AsyncIterable[Any] | None:
    """Take the stream out of the arguments of a call; None where there is none to be."""
    if parameter is None:
        return None
    if isinstance(arguments, dict):
        items: AsyncIterable[Any] | None = arguments.pop(parameter, None)
    else:
        places = [place for place, value in enumerate(arguments) if hasattr(value, "__aiter__")]
        items = arguments[places[0]] if places else None
        if places:
            arguments[places[0]] = None
    if items is None:
        raise InvalidArgument(f"{path} takes a stream, an asynchronous iterator as {parameter!r}", may_have_run=False)
    return items


class DynamicCall(Ready, Call[Any]):
    """A call by name: awaited where the method answers one value, iterated over where it answers a stream (which is
    known once a node has told; awaiting such a call gives its stream)."""

    __slots__ = ("_arguments", "_begun", "_client", "_name", "_stream", "_take", "_used")

    def __init__(self, client: DynamicClient, name: str, arguments: list[Any] | dict[str, Any]) -> None:
        self.metadata = NO_METADATA
        self.node = None
        self._client = client
        self._name = name
        self._arguments = arguments
        self._begun: Coroutine[Any, Any, Any] | None = None
        self._used = False
        self._record = None
        self._stream: Stream[Any] | None = None
        self._take = NOTHING_READY

    @property
    def _coroutine(self) -> Coroutine[Any, Any, Any]:  # type: ignore[override]
        if self._begun is None:
            self._begun, self._used = self._perform(), True
        return self._begun

    async def _perform(self) -> Any:
        call = await self._client._open(self._name, self._arguments)
        if isinstance(call, Stream):
            self._stream = call
            return call
        self._record = call._record
        try:
            return await call
        finally:
            self.node, self.metadata, self._record = call.node, call.metadata, call._record

    def __aiter__(self) -> Self:
        return self

    def _as_stream(self) -> Stream[Any]:
        self._used = True
        if self._stream is None:
            client, name, arguments = self._client, self._name, self._arguments  # without this, which closes it
            self._stream = DeferredStream(lambda: client._open_stream(name, arguments))
        return self._stream

    async def __anext__(self) -> Any:
        try:
            return self._take()
        except IndexError:
            stream = self._as_stream()
        try:
            return await anext(stream)
        except StopAsyncIteration:
            self.node, self.metadata = stream.node, stream.metadata
            raise
        finally:
            self._record = stream._record
            self._take = getattr(stream, "_take", NOTHING_READY)

    async def aclose(self) -> None:
        """Take no more items."""
        await self._as_stream().aclose()

    async def __aenter__(self) -> Self:
        self._used = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if not self._used:
            text = f"call of {self._client._service}.{self._name} was neither awaited nor iterated over"
            warnings.warn(text, RuntimeWarning, stacklevel=2, source=self)
