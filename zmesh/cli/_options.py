"""What the commands share: the options of a node, the errors of a call, the list of services for completion."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import click

import zmesh

from .._arguments import peer_of
from .._security import chosen
from .._transport import check_address

__all__ = [
    "Failed",
    "Place",
    "complete_method",
    "complete_service",
    "explained",
    "json_args_option",
    "json_option",
    "place_options",
    "run",
    "timeout_option",
]

R = TypeVar("R")

_COMPLETE_WITHIN = 1.0  # seconds that somebody waits who has pressed the tab key


class Failed(click.ClickException):
    """Ends the command with status 1 and a message on stderr."""

    exit_code = 1

    def show(self, file: Any = None) -> None:
        click.echo(self.format_message(), err=True)


@dataclass(frozen=True)
class Place:
    """Where a node looks for others; what is not given is left to `zmesh.Node` and the environment."""

    mesh: str | None = None
    peers: tuple[str, ...] = ()
    no_mdns: bool = False
    interfaces: tuple[str, ...] = ()
    secret_file: str | None = None
    key_file: str | None = None
    trust: str | None = None
    permissions: str | None = None

    def node(self, *services: zmesh.Service, **more: Any) -> zmesh.Node:
        """A node there, not entered yet. Arguments that make no sense are wrong usage."""
        try:
            return zmesh.Node(
                *services,
                security=chosen(self.secret_file, self.key_file, self.trust, self.permissions),
                mesh=self.mesh,
                peers=self.peers or None,
                discovery=None if self.no_mdns else "env",
                interfaces=self.interfaces or None,
                **more,
            )
        except (ValueError, TypeError) as error:
            raise click.UsageError(str(error)) from error


class Address(click.ParamType[str]):
    """An address that ZeroMQ takes. named: whether NAME@ may stand before it."""

    name = "address"

    def __init__(self, named: bool = False) -> None:
        self._named = named

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            if self._named:
                peer_of(value)
                return str(value)
            return check_address(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def place_options(command: Callable[..., R]) -> Callable[..., R]:
    """Give a command --mesh, --peer, --no-mdns, --interface and what secures its links; they reach it as one argument:
    `place`."""

    @click.option("--mesh", metavar="NAME", help="Only nodes of this mesh are seen. [env: ZMESH_MESH; else default]")
    @click.option(
        "--peer",
        "peers",
        multiple=True,
        type=Address(named=True),
        metavar="ADDRESS",
        help="A node to try besides those that mDNS finds, tcp://HOST:PORT, with keys NAME@tcp://HOST:PORT; "
        "may be repeated. [env: ZMESH_PEERS]",
    )
    @click.option("--no-mdns", is_flag=True, help="No mDNS: only named peers. [env: ZMESH_DISCOVERY=none]")
    @click.option(
        "--interface",
        "interfaces",
        multiple=True,
        metavar="NAME",
        help="Use mDNS on this interface, by name or address; may be repeated. [env: ZMESH_INTERFACES; else all]",
    )
    @click.option("--secret-file", metavar="FILE", help="The secret that the mesh shares. [env: ZMESH_SECRET_FILE]")
    @click.option("--key-file", metavar="FILE", help="This node's own keys, with --trust. [env: ZMESH_KEY_FILE]")
    @click.option("--trust", metavar="FOLDER", help="The public keys of who may connect. [env: ZMESH_TRUST]")
    @functools.wraps(command)
    def packed(*arguments: Any, **given: Any) -> R:
        place = Place(**{field.name: given.pop(field.name, None) for field in dataclasses.fields(Place)})
        return command(*arguments, place=place, **given)

    return packed


def json_option(command: Callable[..., R]) -> Callable[..., R]:
    """Give a command --json, which reaches it as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")(command)


def json_args_option(command: Callable[..., R]) -> Callable[..., R]:
    """Give a command --json-args, which reaches it as `json_text`."""
    text = "The arguments as one JSON object, or - to read it from standard input; NAME=VALUE adds to it."
    return click.option("--json-args", "json_text", metavar="OBJECT", help=text)(command)


def timeout_option(default: float, help: str) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Give a command --timeout in seconds."""
    seconds = click.FloatRange(min=0, min_open=True)
    return click.option("--timeout", type=seconds, default=default, show_default=True, metavar="SECONDS", help=help)


def explained(error: zmesh.RpcError) -> str:
    """What a failed call says on stderr: code, message, who said it, what is known besides."""
    lines = [str(error)]
    if error.remote_type is not None and error.remote_type not in lines[0]:
        lines.append(f"the handler raised {error.remote_type}")
    lines += [f"{key}: {value}" for key, value in error.details.items()]
    if error.may_have_run and isinstance(error, (zmesh.DeadlineExceeded, zmesh.Cancelled)):
        lines.append("the handler may have run")
    return "\n  ".join(lines)


def run(work: Coroutine[Any, Any, R]) -> R:
    """Run a command's coroutine; what the mesh or the system refuses ends the command with status 1."""
    try:
        return asyncio.run(work)
    except asyncio.CancelledError:  # by a signal
        raise click.Abort from None
    except zmesh.RpcError as error:
        raise Failed(explained(error)) from error
    except OSError as error:
        raise Failed(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}") from error


async def _services(place: Place) -> dict[str, str]:
    async with place.node() as node:
        peers = await node.discover(settle=0.2, timeout=_COMPLETE_WITHIN)
        return {name: peer.name for peer in peers for name in peer.services}


async def _methods(place: Place, service: str) -> list[str]:
    async with place.node() as node:
        described = await node.client(service).options(timeout=_COMPLETE_WITHIN).describe()
        return [f"{service}.{method}" for method in described["methods"]]


def _given(context: click.Context) -> Place:
    names = [field.name for field in dataclasses.fields(Place)]
    return Place(**{name: context.params[name] for name in names if context.params.get(name) is not None})


def complete_service(context: click.Context, parameter: click.Parameter, begun: str) -> list[str]:
    """The services that are on the mesh now."""
    try:
        found = asyncio.run(_services(_given(context)))
    except Exception:  # completion has nowhere to say what is wrong
        return []
    return sorted(name for name in found if name.startswith(begun))


def complete_method(context: click.Context, parameter: click.Parameter, begun: str) -> list[str]:
    """The services that are on the mesh now; of one that is named, the methods."""
    services = complete_service(context, parameter, "")
    named = [service for service in services if begun.startswith(f"{service}.")]
    if not named and [service for service in services if service.startswith(begun)] != [begun.rstrip(".")]:
        return [f"{service}." for service in services if service.startswith(begun)]
    try:
        methods = asyncio.run(_methods(_given(context), max(named, key=len, default=begun)))
    except Exception:  # as above
        return []
    return sorted(method for method in methods if method.startswith(begun))
