"""`zmesh bench`: how fast are calls, between two processes here or from here to the nodes of a mesh."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

import zmesh

from . import _bare
from ._bench import Echo, Level, measure, percentile
from ._json import to_json
from ._options import (
    Failed,
    Place,
    complete_method,
    explained,
    json_args_option,
    json_option,
    place_options,
    timeout_option,
)
from ._process import Process
from .call import arguments_of, method_of
from .ls import console
from .serve import loop_factory

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["command", "echo"]

_ALONE: Final = (1, 64, 256, 1000)  # calls in flight between two processes of this machine
_THERE: Final = (1, 16)  # on nodes that others use, too
_PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9)
_MOST_SECONDS: Final = 60.0  # each latency is kept until the end, and this generates no load for hours
_WARM_UP: Final = 0.2  # seconds; the first calls of a process are slower
_SETTLE: Final = 1.2  # seconds without a new node, as `zmesh ls` waits
_TEXT: Final = "a text of thirty-two characters."
_REDRAW: Final = 0.1  # seconds
_STATUS_INTERRUPTED: Final = 130  # as shells have it for Ctrl-C

Call = Callable[[], zmesh.Call[Any]]


@click.command("bench")
@click.argument("method", metavar="[SERVICE.METHOD]", required=False, shell_complete=complete_method)
@click.argument("pairs", metavar="[NAME=VALUE]...", nargs=-1)
@json_args_option
@click.option(
    "-n",
    "--in-flight",
    "levels",
    multiple=True,
    type=click.IntRange(1, 10_000),
    metavar="CALLS",
    help="Calls in flight; may be repeated. [default: 1, 64, 256, 1000; of a named method 1, 16]",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0, _MOST_SECONDS, min_open=True),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="For each number of calls in flight.",
)
@click.option("--calls", type=click.IntRange(min=1), metavar="CALLS", help="No more than so many for each of them.")
@click.option("-y", "--yes", is_flag=True, help="Call a method that is not idempotent, too.")
@timeout_option(10.0, "The deadline of each call.")
@json_option
@place_options
def command(
    method: str | None,
    pairs: tuple[str, ...],
    json_text: str | None,
    levels: tuple[int, ...],
    seconds: float,
    calls: int | None,
    yes: bool,
    timeout: float,
    as_json: bool,
    place: Place,
) -> None:
    """Measure latency and calls/s: of a method of the mesh, or without one between two processes of this machine.

    Those two talk by tcp; BARE is a ROUTER/DEALER loop of one thread on each side, with one message a call and nothing
    else: no deadlines, no types, no second try.

    A method is called with the same arguments all the time, by this one process, as fast as the calls in flight let it.
    That may cost others what they need, so it begins with few. A method that is not idempotent is refused without
    --yes: each call may change something. VALUE is written as for 'zmesh call'.

    Ctrl-C prints what there is. Exits with 1 where a call failed.
    """
    arguments = arguments_of(json_text, pairs)
    done: list[Level] = []
    bench = _Bench(done, seconds, calls, not as_json)
    if method is None:
        work = _alone(bench, levels or _ALONE)
    else:
        work = _there(bench, levels or _THERE, place, *method_of(method), arguments, timeout, yes)
    interrupted = _run(work)
    measured = [level for level in done if level.calls]
    if as_json:
        click.echo(to_json([_plain(level) for level in measured], indent=2))
    elif measured:
        echo(measured)
    for level in measured:
        if level.errors:
            click.echo(f"with {level.in_flight} in flight: {level.example}", err=True)
    if interrupted:
        raise click.exceptions.Exit(_STATUS_INTERRUPTED)
    if any(level.errors for level in measured):
        raise click.exceptions.Exit(1)


class _Bench:
    """Levels, one after the other, with a bar."""

    def __init__(self, done: list[Level], seconds: float, calls: int | None, shown: bool) -> None:
        self._done = done
        self._seconds = seconds
        self._calls = calls
        self._shown = shown and sys.stderr.isatty()

    async def run(self, levels: Sequence[int], call: Call, beside: str | None = None) -> None:
        """beside: the address of a bare loop, which is measured after each level."""
        with self._bar(len(levels)) as advance:
            for number, in_flight in enumerate(levels):
                level = Level(in_flight)
                self._done.append(level)
                drawing = asyncio.create_task(self._draw(advance, number, level))
                try:
                    await measure(level, call, self._seconds, self._calls)
                    if beside is not None:
                        level.bare = await self._beside(beside, in_flight)
                finally:
                    drawing.cancel()

    async def _beside(self, address: str, in_flight: int) -> float:
        stop = threading.Event()
        try:
            return await asyncio.to_thread(_bare.rate, address, _TEXT, in_flight, self._seconds, stop)
        finally:
            stop.set()

    async def _draw(self, advance: Callable[[float, str], None], number: int, level: Level) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            part = min((loop.time() - began) / self._seconds, 1.0)
            advance(number + part, f"{level.in_flight} in flight: {level.calls:,} calls")
            await asyncio.sleep(_REDRAW)

    @contextlib.contextmanager
    def _bar(self, levels: int) -> Iterator[Callable[[float, str], None]]:
        if not self._shown:
            yield lambda part, text: None
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (BarColumn(), TextColumn("{task.description}"))
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("", total=levels)
            yield lambda part, text: progress.update(task, completed=part, description=text)


def _run(work: Any) -> bool:
    """Run it on the loop that `zmesh serve` has; whether Ctrl-C ended it."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        try:
            runner.run(work)
        except KeyboardInterrupt:
            return True
        except zmesh.RpcError as error:
            raise Failed(explained(error)) from error
        except OSError as error:
            raise Failed(str(error)) from error
    return False


async def _alone(bench: _Bench, levels: Sequence[int]) -> None:
    mesh = f"bench-{secrets.token_hex(4)}"
    place = ("--mesh", mesh, "--no-mdns", "--listen", "tcp://127.0.0.1:0")
    process = Process("bench", "zmesh.cli._bench:Echo", *place)
    try:
        try:
            await process.start()
        except RuntimeError as error:
            raise Failed(str(error)) from error
        async with (
            _bare.opened() as beside,
            zmesh.Node(mesh=mesh, peers=[process.address], discovery=None, config=zmesh.Config(ipc=False)) as node,
        ):
            client = node.client(Echo)
            await measure(Level(1), lambda: client.echo(_TEXT), _WARM_UP, None)
            await bench.run(levels, lambda: client.echo(_TEXT), beside)
    finally:
        await process.stop()


async def _there(
    bench: _Bench,
    levels: Sequence[int],
    place: Place,
    service: str,
    name: str,
    arguments: dict[str, Any],
    timeout: float,
    yes: bool,
) -> None:
    async with place.node() as node:
        client = node.client(service).options(timeout=timeout)
        known = (await client.describe())["methods"].get(name)
        try:
            method = getattr(client, name)
        except AttributeError as error:
            raise Failed(f"UNIMPLEMENTED: {error}") from error
        if known is None or known["kind"] != "unary":
            raise click.UsageError(f"{service}.{name} is a stream; only methods with one answer can be measured")
        if not known["idempotent"] and not yes:
            told = f"{service}.{name} is not idempotent: each call may change something"
            raise click.UsageError(f"{told}. Where that does not matter, say --yes")
        await node.discover(settle=_SETTLE)  # so that all who offer it have their share
        await bench.run(levels, lambda: method(**arguments))


def _plain(level: Level) -> dict[str, Any]:
    ordered = sorted(level.latencies)
    return {
        "in_flight": level.in_flight,
        "seconds": level.seconds,
        "calls": level.calls,
        "calls_per_second": level.rate,
        "latency": {f"p{p:g}": percentile(ordered, p) for p in _PERCENTILES} if ordered else None,
        "worst": ordered[-1] if ordered else None,
        "nodes": dict(level.nodes),
        "errors": dict(level.errors),
        **({} if level.bare is None else {"bare_calls_per_second": level.bare}),
    }


def echo(levels: list[Level]) -> None:
    """Print what was measured, and where several nodes answered, their shares."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    beside = any(level.bare for level in levels)
    headings = ["IN FLIGHT", "CALLS", "CALLS/S", *(f"P{p:g}" for p in _PERCENTILES), "WORST", "ERRORS"]
    for heading in [*headings, *(["BARE CALLS/S", "OF BARE"] if beside else [])]:
        table.add_column(heading, justify="right")
    for level in levels:
        ordered = sorted(level.latencies)
        latencies = [percentile(ordered, p) for p in (*_PERCENTILES, 100.0)]
        errors = ", ".join(f"{count} {code}" for code, count in level.errors.most_common())
        row = [f"{level.in_flight:,}", f"{level.calls:,}", f"{level.rate:,.0f}", *map(_time, latencies), errors or "0"]
        if level.bare:
            row += [f"{level.bare:,.0f}", f"{level.rate / level.bare:.2f}"]
        table.add_row(*row, style="red" if level.errors else "")
    out = console()
    out.print(table)
    if len(names := sorted({name for level in levels for name in level.nodes})) > 1:
        out.print()
        out.print(_shares(levels, names))


def _shares(levels: list[Level], names: list[str]) -> Table:
    """Who answered: the nodes' parts of the calls, a column for each number of calls in flight."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("NODE")
    for level in levels:
        table.add_column(f"{level.in_flight:,} IN FLIGHT", justify="right")
    for name in names:
        parts = (100 * level.nodes[name] / max(level.nodes.total(), 1) for level in levels)
        table.add_row(Text(name), *(f"{part:.1f} %" for part in parts))
    return table


def _time(seconds: float) -> str:
    if seconds != seconds:  # there was no answer
        return "-"
    return f"{1e6 * seconds:,.0f} µs" if seconds < 0.01 else f"{1e3 * seconds:,.1f} ms"
