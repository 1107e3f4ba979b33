"""`zmesh call`: one call, JSON in and out. Answers as soon as one node is met that offers the service."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from typing import Any

import click

import zmesh

from ._json import argument_of, from_json, to_json
from ._options import Failed, Place, complete_method, json_args_option, place_options, run, timeout_option

__all__ = ["arguments_of", "command", "method_of", "with_stream"]


@click.command("call")
@click.argument("method", metavar="SERVICE.METHOD", shell_complete=complete_method)
@click.argument("pairs", metavar="[NAME=VALUE]...", nargs=-1)
@json_args_option
@click.option(
    "-m",
    "--metadata",
    "metadata",
    multiple=True,
    metavar="KEY=VALUE",
    help="Sent beside the arguments; may be repeated.",
)
@click.option("-v", "--verbose", is_flag=True, help="Say on stderr which node answered, and with which metadata.")
@timeout_option(10.0, "The call's deadline.")
@place_options
def command(
    method: str,
    pairs: tuple[str, ...],
    json_text: str | None,
    metadata: tuple[str, ...],
    verbose: bool,
    timeout: float,
    place: Place,
) -> None:
    """Call a method and print its result as JSON.

    A VALUE is JSON where it parses as JSON, else a string: n=3 is a number, name=World and id='"3"' are strings.
    A stream of arguments is given as a list; a stream of answers prints a line an item.
    Bytes are an object, in arguments and in results: data='{"$base64": "aGVsbG8="}'.

    A failed call prints its code and message on stderr and exits with 1.
    """
    service, name = method_of(method)
    arguments = arguments_of(json_text, pairs)
    run(_call(place, service, name, arguments, dict(pair_of(each, "metadata") for each in metadata), timeout, verbose))


async def _call(
    place: Place,
    service: str,
    name: str,
    arguments: dict[str, Any],
    metadata: dict[str, str],
    timeout: float,
    verbose: bool,
) -> None:
    async with place.node() as node:
        client = node.client(service).options(timeout=timeout, metadata=metadata)
        try:
            call = getattr(client, name)(**await with_stream(client, name, arguments))
            result = await call
        except AttributeError as error:
            raise Failed(f"UNIMPLEMENTED: {error}") from error
        # Printed before the node says goodbye: nobody waits for that.
        if isinstance(result, zmesh.Stream):
            call = result
            async for item in result:
                click.echo(to_json(item, indent=None))
        else:
            click.echo(to_json(result, indent=2 if sys.stdout.isatty() else None))
        if verbose:
            said = "".join(f"\n{key}: {value!r}" for key, value in call.metadata.items())
            click.echo(f"answered by {call.node}{said}", err=True)


def method_of(text: str) -> tuple[str, str]:
    """Service and method of SERVICE.METHOD."""
    service, _, name = text.rpartition(".")
    if not service or not name or name.startswith("_"):
        raise click.UsageError(f"{text!r} is no method: write SERVICE.METHOD, like Greeter.say_hello")
    return service, name


async def with_stream(client: zmesh.node.DynamicClient, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments, with the list that was given for a stream turned into one."""
    if not any(isinstance(value, list) for value in arguments.values()):
        return arguments
    method = (await client.describe())["methods"].get(name, {})
    parameter = method.get("stream", {}).get("parameter")
    if not isinstance(arguments.get(parameter), list):
        return arguments
    return {**arguments, parameter: _items(arguments[parameter])}


async def _items(values: list[Any]) -> AsyncIterator[Any]:
    for value in values:
        yield value


def arguments_of(json_text: str | None, pairs: tuple[str, ...]) -> dict[str, Any]:
    """The arguments as they were given."""
    arguments: dict[str, Any] = {}
    if json_text is not None:
        try:
            given = from_json(sys.stdin.read() if json_text == "-" else json_text)
        except ValueError as error:
            raise click.UsageError(f"--json-args: {error}") from error
        if not isinstance(given, dict):
            raise click.UsageError("--json-args takes an object: arguments go by name")
        arguments.update(given)
    for pair in pairs:
        name, text = pair_of(pair, "an argument")
        if name in arguments:
            raise click.UsageError(f"argument {name!r} is given twice")
        try:
            arguments[name] = argument_of(text)
        except ValueError as error:
            raise click.UsageError(f"argument {name!r}: {error}") from error
    return arguments


def pair_of(text: str, what: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise click.UsageError(f"{text!r} is no {what.removeprefix('an ')}: write NAME=VALUE")
    return name, value
