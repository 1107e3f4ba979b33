"""`zmesh serve`: a node from the command line."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Callable
from types import ModuleType

import click

import zmesh
from zmesh._core.balance import POLICIES

from ._options import Address, Failed, Place, explained, place_options

__all__ = ["command", "load_service", "loop_factory"]


@click.command("serve")
@click.argument("services", metavar="MODULE:CLASS...", nargs=-1, required=True)
@click.option("--name", help="The node's name, which several nodes may share. [default: host name and process id]")
@click.option(
    "--listen",
    multiple=True,
    type=Address(),
    metavar="ADDRESS",
    help="Listen here, tcp://HOST:PORT; may be repeated. [env: ZMESH_LISTEN; else any port of every interface]",
)
@click.option("--capacity", type=float, help="Its weight for balancing. [default: the machine's cores]")
@click.option("--threads", type=click.IntRange(min=1), help="Plain def handlers at once. [default: the capacity]")
@click.option(
    "--balance",
    type=click.Choice(sorted(POLICIES)),
    default="least_loaded",
    show_default=True,
    help="How the calls of its own handlers are spread.",
)
@click.option("--permissions", metavar="FILE", help="Who may call what; all else is denied. [env: ZMESH_PERMISSIONS]")
@click.option("-v", "--verbose", is_flag=True, help="Log on stderr what happens to links and peers.")
@place_options
def command(
    services: tuple[str, ...],
    name: str | None,
    listen: tuple[str, ...],
    capacity: float | None,
    threads: int | None,
    balance: str,
    verbose: bool,
    place: Place,
) -> None:
    """Serve services, each named MODULE:CLASS, until SIGTERM or Ctrl-C; then drain and leave.

    Modules of the current folder can be imported. MODULE:NAME may also name an instance, for a service whose class
    takes arguments. One line, "ready: ...", tells that the node is up.
    """
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(name)s: %(message)s")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    instances = [load_service(each) for each in services]
    node = place.node(*instances, name=name, listen=listen or None, capacity=capacity, threads=threads, balance=balance)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        try:
            runner.run(_serve(node))
        except zmesh.RpcError as error:
            raise Failed(explained(error)) from error
        except OSError as error:
            raise Failed(f"cannot serve: {error}") from error


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    with contextlib.suppress(ImportError):
        import uvloop

        return uvloop.new_event_loop
    return None


async def _serve(node: zmesh.Node) -> None:
    async with node:
        serving = asyncio.create_task(node.serve_forever())
        await asyncio.sleep(0)  # from here on a SIGTERM drains: who reads the line below may send one
        names = ", ".join(schema.name for schema in node.services)
        addresses = [each for each in node.addresses if each.startswith("tcp://")] or list(node.addresses)
        click.echo(f"ready: {node.name} serves {names} at {', '.join(addresses)}")
        sys.stdout.flush()
        await serving


def load_service(text: str) -> zmesh.Service:
    """The service that MODULE:CLASS or MODULE:INSTANCE names. Raises click.UsageError, or Failed where the module or
    the class fails by itself."""
    module_name, colon, path = text.partition(":")
    if not colon or not module_name or not path:
        raise click.UsageError(f"{text!r} names no service: write MODULE:CLASS, like greeter:Greeter")
    module = _module(module_name)
    found: object = module
    for attribute in path.split("."):
        try:
            found = getattr(found, attribute)
        except AttributeError:
            raise click.UsageError(f"module {module_name!r} has no {path!r}; {_services_in(module)}") from None
    if isinstance(found, zmesh.Service):
        return found
    if not (isinstance(found, type) and issubclass(found, zmesh.Service)):
        raise click.UsageError(f"{text} is no zmesh.Service; {_services_in(module)}")
    try:
        return found()
    except TypeError as error:
        hint = f"make an instance in {module_name} and name that, MODULE:INSTANCE"
        raise click.UsageError(f"{text} cannot be made: {error}; {hint}") from error


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise click.UsageError(f"there is no module {error.name!r} in {os.getcwd()} or on Python's path") from None
        raise Failed(f"module {name!r} cannot be imported: {error}") from error
    except Exception as error:  # the user's own code: only it can tell where it went wrong
        own = traceback.extract_tb(error.__traceback__)[-1]
        raise Failed(
            f"module {name!r} cannot be imported: {own.filename}:{own.lineno}: {type(error).__name__}: {error}"
        ) from error


def _services_in(module: ModuleType) -> str:
    names = [
        name
        for name, value in vars(module).items()
        if isinstance(value, zmesh.Service)
        or (isinstance(value, type) and issubclass(value, zmesh.Service) and value.__module__ == module.__name__)
    ]
    return f"services there: {', '.join(sorted(names)) or 'none'}"
