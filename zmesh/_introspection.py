"""The built-in service of every serving node: who it is, how it does, and schemas on demand. Its calls are ordinary
calls of methods `zmesh.ping`, `zmesh.describe`, ..., which are sent to whoever offers the service that is asked about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ._core.messages import BUILT_IN
from .errors import Internal, NotFound
from .schema import Kind, ServiceSchema
from .service import Service, rpc

__all__ = ["BUILT_IN", "Description", "Introspection", "parse"]


class Introspection(Service, name=BUILT_IN):
    """What this node serves."""

    def __init__(
        self,
        schemas: Sequence[ServiceSchema],
        info: Callable[[], dict[str, Any]],
        stats: Callable[[], dict[str, Any]],
    ) -> None:
        self._schemas = {schema.name: schema for schema in schemas}
        self._info = info
        self._stats = stats

    @rpc(idempotent=True)
    async def ping(self) -> str:
        """The node's name: it answers."""
        return str(self._info()["name"])

    @rpc(idempotent=True)
    async def health(self, service: str = "") -> str:
        """ "SERVING", or "DRAINING" where the node is leaving. NOT_FOUND for a service that it does not offer."""
        if service and service not in self._schemas:
            raise NotFound(f"this node serves {', '.join(self._schemas) or 'nothing'}, not {service!r}")
        return str(self._info()["state"])

    @rpc(idempotent=True)
    async def info(self) -> dict[str, Any]:
        """Name, id, mesh, software, state, addresses, capacity, services with their versions, uptime in seconds."""
        return self._info()

    @rpc(idempotent=True)
    async def stats(self) -> dict[str, Any]:
        """Since the node started: calls in flight, and for each method that was called the number of its calls, of
        its errors by code, and what calls took in microseconds: mean, and p50 and p99 to within a factor of two."""
        return self._stats()

    @rpc(idempotent=True)
    async def describe(self, service: str) -> dict[str, Any]:
        """A service's version, methods, arguments, results and docstrings; types as JSON Schema."""
        schema = self._schemas.get(service)
        if schema is None:
            raise NotFound(f"this node serves {', '.join(self._schemas) or 'nothing'}, not {service!r}")
        return schema.describe()


class Known(NamedTuple):
    """What a by-name client must know of a method."""

    kind: Kind
    idempotent: bool
    stream_parameter: str | None
    parameters: Sequence[str]  # in order, the stream among them


@dataclass(frozen=True, slots=True)
class Description:
    """What a by-name client must know of a service.

    methods: by name. raw: all that the node said.
    """

    methods: Mapping[str, Known]
    raw: dict[str, Any]


def _kind(text: object) -> Kind:
    if text in ("unary", "server_stream", "client_stream", "bidi"):
        return text
    raise KeyError(f"kind {text!r}")


def parse(value: object) -> Description:
    """A description as it came over the wire. Raises Internal where it is none."""
    try:
        assert isinstance(value, dict)
        methods = {
            str(name): Known(
                _kind(method["kind"]),
                method["idempotent"] is True,
                str(method["stream"]["parameter"]) if "stream" in method else None,
                [str(name) for name in method.get("order") or method["parameters"].get("properties", ())],
            )
            for name, method in value["methods"].items()
        }
    except (AssertionError, AttributeError, KeyError, TypeError) as error:
        raise Internal(f"a node described its service in a form that this version does not know: {error!r}") from None
    return Description(methods, value)
