"""The blocking face: the same mesh for code without `async`, from any thread.

`connect()` starts a `Node` on an event loop of its own, in a background thread. Everything here carries a function to
that loop and waits for what it gives: a coroutine is awaited there, an asynchronous iterator is handed out as a plain
one. What a call means, and what it raises, is the node's business.
"""

from __future__ import annotations

import importlib.util
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, ParamSpec, Self, TypeVar, overload

from .._call import Call
from .._map import OneArgument
from .._security import Security
from ..balance import Policy
from ..config import Config
from ..explanation import Explanation
from ..interceptors import Interceptor
from ..node import Node, Peer
from ..schema import schema_of
from ..service import Method, Service, Streaming, Unary
from ._background import Background
from ._streams import Feeder, Stream, feed_items, feed_iterators, feed_parameter

__all__ = ["Mesh", "Stream", "connect"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def connect(
    *services: Service,
    name: str | None = None,
    mesh: str | None = None,
    listen: str | Iterable[str] | None = None,
    peers: Iterable[str] | None = None,
    discovery: Literal["mdns", "env"] | None = "env",
    interfaces: Iterable[str] | None = None,
    capacity: float | None = None,
    threads: int | None = None,
    balance: str | Policy = "least_loaded",
    security: Security | Literal["env"] | None = "env",
    client_interceptors: Sequence[Interceptor] = (),
    server_interceptors: Sequence[Interceptor] = (),
    config: Config | None = None,
) -> Mesh:
    """Start a node and return its blocking face. The arguments, and what they raise, are those of `zmesh.Node`."""
    node = Node(
        *services,
        name=name,
        mesh=mesh,
        listen=listen,
        peers=peers,
        discovery=discovery,
        interfaces=interfaces,
        capacity=capacity,
        threads=threads,
        balance=balance,
        security=security,
        client_interceptors=client_interceptors,
        server_interceptors=server_interceptors,
        config=config,
    )
    return Mesh(node)


class Mesh:
    """A node that runs in the background, used from code without `async`, by any number of threads.

    It runs from the moment that it is made. Leaving it as a context manager closes it; so do losing its last reference
    and the end of the process.

    Whatever waits here raises RuntimeError where the mesh is closed, where it would wait for the mesh's own event loop
    (in an `async def` handler), and where it would stall another one (in a coroutine, except under IPython and in
    notebooks); and `zmesh.FailedPrecondition` in a forked child. Ctrl-C cancels what is waited for.
    """

    def __init__(self, node: Node) -> None:
        """node: one that was not entered yet."""
        self._node = node
        self._clients: dict[type[Service], _Client] = {}
        self._background = Background(node)
        self._background.start()
        weakref.finalize(self, self._background.stop).atexit = False

    def __enter__(self) -> Self:
        self._background.check()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drain, leave the mesh and end the thread. Calls in flight end with an error. A second time does nothing."""
        self._background.close()

    def drain(self) -> None:
        """Leave the mesh as a server, as `Node.drain` does."""
        self._run(self._node.drain)

    # -- calling

    def client(self, service: type[Service] | str) -> Any:
        """A blocking client for a service: by its class, or by its name.

        It has the service's methods, and `options(...)` as the clients of `Node` have. A method waits for its result;
        one that answers a stream returns a `Stream` at once. Where a method takes a stream, give any iterable (to a
        client by name: an iterator). `client.method.with_call(...)` returns the result and the `zmesh.Call` that
        brought it, which has the name of the node that answered and the metadata of the answer.
        """
        return _Client(self, self._run(self._node.client, service), service)

    @overload
    def call(
        self,
        method: Unary[P, R],
        /,
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str | bytes] | None = None,
        **options: Any,
    ) -> Callable[P, R]: ...
    @overload
    def call(
        self,
        method: Streaming[P, R],
        /,
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str | bytes] | None = None,
        **options: Any,
    ) -> Callable[P, Iterator[R]]: ...
    def call(self, method: Any, /, **options: Any) -> Any:
        """One method of a service, blocking and typed: `mesh.call(Greeter.say_hello)("World")`.

        options: as for a client's `options()`.
        """
        if not isinstance(method, Method):
            raise TypeError(f"call() takes a method of a Service class, like Greeter.say_hello, got {method!r:.60}")
        client = self._clients.get(method.owner)
        if client is None:
            client = self._clients[method.owner] = self.client(method.owner)
        return getattr(client.options(**options) if options else client, method.name)

    def scatter(self, method: Method[P, R], /, **options: Any) -> Callable[P, Iterator[Any]]:
        """Call a method on many nodes, as `Node.scatter` does: a `Stream` of their replies, as they come."""
        node: Any = self._node
        return _Method(self, lambda *args, **kwargs: node.scatter(method, **options)(*args, **kwargs))

    def map(
        self,
        method: OneArgument[T, R],
        /,
        *,
        ordered: bool = True,
        in_flight: int | None = None,
        timeout: float | None = None,
        metadata: Mapping[str, str | bytes] | None = None,
        progress: bool | None = None,
    ) -> Callable[[Iterable[T]], Iterator[R]]:
        """Call a method for each of many items, as `Node.map` does: a `Stream` of the results.

        The items are read by a thread of its own, up to 16 more ahead. progress: None draws a bar where stderr is a
        terminal and `rich` is installed.
        """
        if progress is None:
            progress = sys.stderr.isatty() and importlib.util.find_spec("rich") is not None
        options: dict[str, Any] = {
            "ordered": ordered,
            "in_flight": in_flight,
            "timeout": timeout,
            "metadata": metadata,
            "progress": progress,
        }
        return _Method(self, lambda items: self._node.map(method, **options)(items), feed_items)

    def explain(
        self,
        method: Method[..., Any] | str,
        /,
        *,
        node: str | None = None,
        key: str | None = None,
        priority: int | None = None,
    ) -> Explanation:
        """Where a call would go now, and why, as `Node.explain` tells; nothing is sent.

        Of a call that is made: `result, call = client.options(explain=True).say_hello.with_call("World")`, then
        `zmesh.explain(call)`.
        """
        explanation: Explanation = self._run(lambda: self._node.explain(method, node=node, key=key, priority=priority))
        return explanation

    def stats(self) -> dict[str, Any]:
        """What the calls of this node met since it started, as `Node.stats` tells."""
        stats: dict[str, Any] = self._run(self._node.stats)
        return stats

    @property
    def peers(self) -> list[Peer]:
        """Every other node that was seen, by name."""
        peers: list[Peer] = self._run(lambda: self._node.peers)
        return peers

    def discover(self, settle: float = 0.5, timeout: float = 5.0, expect: int = 0) -> list[Peer]:
        """Meet every node of the mesh and return the peers, as `Node.discover` does."""
        peers: list[Peer] = self._run(self._node.discover, settle, timeout, expect)
        return peers

    # -- who this is

    @property
    def name(self) -> str:
        """Its name."""
        return self._node.name

    @property
    def id(self) -> str:
        """Its incarnation, in hex."""
        return self._node.id

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where others reach it; empty for a pure client."""
        return self._node.addresses

    def __repr__(self) -> str:
        return f"<zmesh.Mesh of {self._node!r}{', closed' if self._background.closed else ''}>"

    def _run(self, function: Callable[..., Any], *args: Any) -> Any:
        return self._background.run(self, function, args)


class _Client:
    """What `Mesh.client` gives: the attributes of the asynchronous client, called on the loop."""

    def __init__(self, mesh: Mesh, client: Any, service: type[Service] | str) -> None:
        self._mesh = mesh
        self._client = client
        self._service = service

    def options(self, **options: Any) -> _Client:
        """The same client with other settings; what is not given stays as it is here."""
        return _Client(self._mesh, self._mesh._run(lambda: self._client.options(**options)), self._service)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        value = self._mesh._run(getattr, self._client, name)
        if callable(value):
            value = _Method(self._mesh, value, self._feeder(name))
        setattr(self, name, value)  # where Python looks first: found once
        return value

    def __dir__(self) -> list[str]:
        return ["options", *([] if isinstance(self._service, str) else schema_of(self._service).methods)]

    def __repr__(self) -> str:
        return f"<blocking {repr(self._client).removeprefix('<')}"

    def _feeder(self, name: str) -> Feeder | None:
        if isinstance(self._service, str):
            return feed_iterators
        method = schema_of(self._service).methods.get(name)
        return None if method is None else feed_parameter(method)


class _Method:
    """A function for the loop, called from a thread.

    feeder: makes the plain iterables among its arguments asynchronous; None where there can be none.
    """

    def __init__(self, mesh: Mesh, function: Callable[..., Any], feeder: Feeder | None = None) -> None:
        self._mesh = mesh
        self._run = mesh._background.run
        self._function = function
        self._feeder = feeder

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._feeder is None:
            return self._run(self._mesh, self._function, args, kwargs)
        return self._run(self._mesh, self._function, *self._feeder(args, kwargs))

    def with_call(self, *args: Any, **kwargs: Any) -> tuple[Any, Call[Any]]:
        """The result, and the `zmesh.Call` that brought it."""
        calls: list[Call[Any]] = []

        def function(*args: Any, **kwargs: Any) -> Call[Any]:
            calls.append(self._function(*args, **kwargs))
            return calls[0]

        return _Method(self._mesh, function, self._feeder)(*args, **kwargs), calls[0]
