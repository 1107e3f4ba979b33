"""`zmesh why`: where a call goes, and why."""

from __future__ import annotations

import contextlib
from typing import Any, Final

import click

import zmesh
from zmesh import explanation as told

from ._json import to_json
from ._options import (
    Failed,
    Place,
    complete_method,
    explained,
    json_args_option,
    json_option,
    place_options,
    run,
    timeout_option,
)
from .call import arguments_of, method_of, with_stream
from .ls import console

__all__ = ["command"]

_SETTLE: Final = 1.2  # seconds without a new node, as `zmesh ls` waits


@click.command("why")
@click.argument("method", metavar="SERVICE.METHOD", shell_complete=complete_method)
@click.argument("pairs", metavar="[NAME=VALUE]...", nargs=-1)
@json_args_option
@click.option("--call", "make", is_flag=True, help="Make the call where it takes no arguments, too.")
@click.option("--node", metavar="NAME", help="As options(node=...): only nodes of this name, or of this id.")
@click.option("--key", metavar="TEXT", help="As options(key=...): where calls with this key go.")
@json_option
@timeout_option(10.0, "The call's deadline; and look for nodes no longer than this.")
@place_options
def command(
    method: str,
    pairs: tuple[str, ...],
    json_text: str | None,
    make: bool,
    node: str | None,
    key: str | None,
    as_json: bool,
    timeout: float,
    place: Place,
) -> None:
    """Say where a call of a method would go now, and why; with arguments, make it and say where it went.

    Waits until no new node was found for a second, and asks those who offer the service for a report. This command is a
    node of its own, so it does not know which calls other callers have made, nor whom they have ejected: in a program,
    node.explain(...) and zmesh.explain(call) tell that. Of a stream of answers it takes the first item.

    Exits with 1 where the call fails, or would find nobody.
    """
    service, name = method_of(method)
    arguments = arguments_of(json_text, pairs)
    make = make or bool(pairs) or json_text is not None
    options = {"node": node, "key": key, "timeout": timeout}
    explanation, error = run(_why(place, service, name, arguments if make else None, options))
    if as_json:
        click.echo(to_json(explanation.as_dict(), indent=2))
    else:
        _echo(explanation)
    if error is not None:
        raise Failed(explained(error))
    if explanation.choice is None or explanation.choice.node is None:
        raise click.exceptions.Exit(1)


async def _why(
    place: Place, service: str, name: str, arguments: dict[str, Any] | None, options: dict[str, Any]
) -> tuple[zmesh.Explanation, zmesh.RpcError | None]:
    async with place.node() as node:
        peers = await node.discover(settle=_SETTLE, timeout=options["timeout"])
        client = node.client(service).options(**options, explain=True)
        if any(service in peer.services for peer in peers):  # else that is what there is to explain
            with contextlib.suppress(zmesh.RpcError):
                await client.describe()
                await client.info()  # with each answer comes a report
        try:
            method = getattr(client, name)
            if arguments is None:
                return node.explain(f"{service}.{name}", node=options["node"], key=options["key"]), None
            call = method(**await with_stream(client, name, arguments))
        except AttributeError as error:
            raise Failed(f"UNIMPLEMENTED: {error}") from error
        failure = None
        try:
            result = await call
            if isinstance(result, zmesh.Stream):
                call = result
                async with result:
                    await anext(result, None)
        except zmesh.RpcError as error:
            failure = error
        return zmesh.explain(call), failure


def _echo(explanation: zmesh.Explanation) -> None:
    from rich.table import Table
    from rich.text import Text

    click.echo(click.style(told.headline(explanation), bold=True))
    for choice in explanation.choices:
        click.echo()
        if explanation.made:
            click.echo(told.sentence(choice))
        if choice.candidates:
            table = Table(box=None, pad_edge=False, header_style="bold")
            for heading in told.HEADINGS:
                table.add_column(heading, justify="right" if heading in told.NUMBERS else "left")
            for candidate in choice.candidates:
                style = "green" if candidate.chosen else "dim" if candidate.why_not else ""
                table.add_row(*(Text(text) for text in told.row(candidate)), style=style)
            console().print(table)
    click.echo()
    for attempt in explanation.attempts:
        click.echo(told.told(attempt))
    click.echo(told.budget(explanation))
