"""The built-in service of every serving node: schemas on demand. Its calls are ordinary calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .errors import Internal, NotFound
from .schema import Kind, ServiceSchema
from .service import Service, rpc

__all__ = ["BUILT_IN", "Description", "Introspection", "parse"]

BUILT_IN = "zmesh"


class Introspection(Service, name=BUILT_IN):
    """What this node serves."""

    def __init__(self, schemas: Sequence[ServiceSchema]) -> None:
        self._schemas = {schema.name: schema for schema in schemas}

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
                [str(name) for name in method.get("order", method["parameters"]["properties"])],
            )
            for name, method in value["methods"].items()
        }
    except (AssertionError, AttributeError, KeyError, TypeError) as error:
        raise Internal(f"a node described its service in a form that this version does not know: {error!r}") from None
    return Description(methods, value)
