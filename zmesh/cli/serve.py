"""`zmesh serve`: a node from the command line."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Any

import click

import zmesh
from zmesh._core.balance import POLICIES

from .._platform import usable_cores
from ..node import told_to_stop
from ._options import Address, Failed, Place, explained, place_options
from ._workers import READY, Supervisor, addresses_of_worker, worker_command

__all__ = ["command", "load_service", "loop_factory"]


class Workers(click.ParamType[int]):
    """A number of processes, or "auto"."""

    name = "workers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if value == "auto":
            return usable_cores()
        if str(value).isdecimal() and 0 < int(value) <= 1000:
            return int(value)
        raise click.BadParameter(f"{value!r} is no number of workers: 1 to 1000, or auto, one for each core")


class _KeepsArguments(click.Command):
    """Remembers what stood on the command line, for the workers."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["arguments"] = list(args)
        return super().parse_args(ctx, args)


@click.command("serve", cls=_KeepsArguments)
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
@click.option(
    "--workers",
    type=Workers(),
    metavar="N",
    help="N processes of one name, each a node of its own, or auto: one for each core. Those that end are replaced. "
    "A port that --listen names is the first one's, the next ports are the others'; capacity is that of each.",
)
@click.option("--worker", type=click.IntRange(min=0), hidden=True, help="Be this one of them.")
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
    workers: int | None,
    worker: int | None,
    verbose: bool,
    place: Place,
) -> None:
    """Serve services, each named MODULE:CLASS, until SIGTERM or Ctrl-C; then drain and leave.

    Modules of the current folder can be imported. MODULE:NAME may also name an instance, for a service whose class
    takes arguments. One line, "ready: ...", tells that the node is up.
    """
    if worker is not None:
        listen = addresses_of_worker(listen or None, worker)
    elif workers is not None:
        addresses_of_worker(listen or None, workers - 1)  # refused here, where they have not started
        arguments = click.get_current_context().meta["arguments"]
        sys.exit(Supervisor(worker_command(arguments, workers), workers).run())
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(name)s: %(message)s")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    instances = [load_service(each) for each in services]
    node = place.node(*instances, name=name, listen=listen or None, capacity=capacity, threads=threads, balance=balance)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        try:
            runner.run(_serve(node, supervised=worker is not None))
        except zmesh.RpcError as error:
            raise Failed(explained(error)) from error
        except OSError as error:
            raise Failed(f"cannot serve: {error}") from error


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    with contextlib.suppress(ImportError):
        import uvloop

        return uvloop.new_event_loop
    return None


async def _serve(node: zmesh.Node, supervised: bool) -> None:
    with contextlib.ExitStack() as stack:
        # Before the node can be found: who finds it may stop it. From here on that drains.
        stopped = stack.enter_context(told_to_stop())
        async with node:
            names = ", ".join(schema.name for schema in node.services)
            addresses = [each for each in node.addresses if each.startswith("tcp://")] or list(node.addresses)
            click.echo(f"{READY}{node.name} serves {names} at {', '.join(addresses)}")
            sys.stdout.flush()
            if supervised:  # its stdin ends when it is to leave; a signal drains as well, and none cuts that short
                loop = asyncio.get_running_loop()
                loop.add_reader(sys.stdin.fileno(), stopped.set)
                await stopped.wait()
                loop.remove_reader(sys.stdin.fileno())
            else:
                await stopped.wait()
                stack.close()  # a second signal is not caught
    if supervised:  # one that comes while Python ends is not what it ended by
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)


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
