"""`zmesh describe`: what a service offers, asked of a node that serves it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import click

import zmesh

from ._json import to_json
from ._options import Place, complete_service, json_option, place_options, run, timeout_option

__all__ = ["command", "signature_of", "type_name"]

_NAMES: Final = {
    "string": "str",
    "integer": "int",
    "number": "float",
    "boolean": "bool",
    "null": "None",
    "array": "list",
    "object": "dict",
}
_FORMATS: Final = {"date-time": "datetime", "date": "date", "time": "time", "duration": "timedelta", "uuid": "UUID"}


@click.command("describe")
@click.argument("service", shell_complete=complete_service)
@click.option("--stats", is_flag=True, help="Show what the nodes that serve it did so far: calls, errors, latency.")
@json_option
@timeout_option(10.0, "How long to look for a node that serves it.")
@place_options
def command(service: str, stats: bool, as_json: bool, timeout: float, place: Place) -> None:
    """Show a service's methods, arguments and docstrings, as a node that serves it tells them."""
    if stats:
        nodes = run(_stats(place, service, timeout))
        if as_json:
            click.echo(to_json(nodes, indent=2))
        else:
            _echo_stats(nodes)
        return
    described = run(_described(place, service, timeout))
    if as_json:
        click.echo(to_json(described, indent=2))
        return
    click.echo(f"{click.style(described['name'], bold=True)} {described['version']}")
    _echo_indented(described["doc"])
    definitions: dict[str, Any] = {}
    for method in described["methods"].values():
        click.echo()
        click.echo(signature_of(method, click.style(method["name"], bold=True)))
        _echo_indented(method["doc"])
        for schema in (method["parameters"], method["result"]):
            definitions.update(schema.get("$defs", {}))
    for name, definition in sorted(definitions.items()):
        click.echo()
        click.echo(f"{click.style(name, bold=True)}: {_definition(definition)}")


async def _described(place: Place, service: str, timeout: float) -> dict[str, Any]:
    async with place.node() as node:
        return await node.client(service).options(timeout=timeout).describe()


async def _stats(place: Place, service: str, timeout: float) -> list[dict[str, Any]]:
    async with place.node() as node:
        client = node.client(service).options(timeout=timeout)
        await client.describe()  # waits for one that offers it
        await node.discover(timeout=timeout)
        info, stats = await client.info(), await client.stats()
        return [
            {"name": info[id]["name"], "id": id, "uptime": info[id]["uptime"], **stats[id]}
            for id in info
            if not isinstance(info[id], zmesh.RpcError) and not isinstance(stats.get(id), (zmesh.RpcError, type(None)))
        ]


def _echo_stats(nodes: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("NODE", "METHOD"):
        table.add_column(heading)
    for heading in ("CALLS", "ERRORS", "MEAN", "P50", "P99"):
        table.add_column(heading, justify="right")
    for node in sorted(nodes, key=lambda node: (node["name"], node["id"])):
        label = f"{node['name']} (up {node['uptime']:.0f} s, {node['in_flight']} in flight)"
        table.add_row(label)
        for path, method in sorted(node["methods"].items()):
            errors = ", ".join(f"{count} {code}" for code, count in sorted(method["errors"].items())) or "0"
            times = [f"{method[key] / 1000:.3g} ms" for key in ("mean_us", "p50_us", "p99_us")]
            table.add_row("", path, str(method["calls"]), errors, *times)
    Console().print(table)


def _echo_indented(text: str) -> None:
    for line in text.splitlines():
        click.echo(f"    {line}" if line else "")


def signature_of(method: Mapping[str, Any], name: str) -> str:
    """A method's description as a line of Python: `shout(text: str, times: int = 1) -> str   [idempotent]`."""
    parameters = method["parameters"]
    texts = [
        f"{each}: {type_name(schema)}" + ("" if each in parameters["required"] else f" = {_default(schema)}")
        for each, schema in parameters["properties"].items()
    ]
    stream = method.get("stream")
    if stream is not None:
        texts.append(f"{stream['parameter']}: stream of {type_name(stream['items'])}")
    result = type_name(method["result"])
    if method["kind"] in ("server_stream", "bidi"):
        result = f"stream of {result}"
    return f"{name}({', '.join(texts)}) -> {result}" + ("   [idempotent]" if method["idempotent"] else "")


def _default(schema: Mapping[str, Any]) -> str:
    return json.dumps(schema["default"], ensure_ascii=False) if "default" in schema else "..."


def type_name(schema: Mapping[str, Any]) -> str:
    """A JSON Schema as the Python annotation that it came from, as far as it tells."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " | ".join(dict.fromkeys(type_name(each) for each in schema["anyOf"]))
    if "enum" in schema:
        return " | ".join(json.dumps(each, ensure_ascii=False) for each in schema["enum"])
    if "const" in schema:
        return json.dumps(schema["const"], ensure_ascii=False)
    kind = schema.get("type")
    if kind == "string":
        return "bytes" if schema.get("contentEncoding") == "base64" else _FORMATS.get(schema.get("format", ""), "str")
    if kind == "array":
        return _array_name(schema)
    if kind == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        return f"dict[str, {type_name(schema['additionalProperties'])}]"
    if isinstance(kind, list):
        return " | ".join(_NAMES.get(each, str(each)) for each in kind)
    return _NAMES.get(kind, "Any") if isinstance(kind, str) else "Any"


def _array_name(schema: Mapping[str, Any]) -> str:
    if "prefixItems" in schema:
        return f"tuple[{', '.join(type_name(each) for each in schema['prefixItems'])}]"
    if schema.get("description") == "numpy.ndarray":
        return "numpy.ndarray"
    return f"list[{type_name(schema['items'])}]" if isinstance(schema.get("items"), Mapping) else "list"


def _definition(schema: Mapping[str, Any]) -> str:
    properties = schema.get("properties")
    if properties is None:
        return type_name(schema)
    required = schema.get("required", ())
    fields = [
        f"{name}: {type_name(each)}" + ("" if name in required else f" = {_default(each)}")
        for name, each in properties.items()
    ]
    return f"{{{', '.join(fields)}}}"
