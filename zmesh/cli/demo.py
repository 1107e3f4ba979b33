"""`zmesh demo`: seven different nodes on this machine, a steady load, three faults, no failed call."""

from __future__ import annotations

import asyncio
import secrets
import signal
import sys
import time
from typing import TYPE_CHECKING, Final, Protocol

import click

import zmesh

from ._demo import PARTS, Faults, Load, Processes, booked
from ._options import Failed, run

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["command"]

_FRAMES: Final = 4  # a second, on a terminal
_LINE_EVERY: Final = 2.0  # seconds, without one
_FIND_WITHIN: Final = 15.0
_EVENTS_SHOWN: Final = 12


class _Screen(Protocol):
    def event(self, text: str) -> None: ...
    def refresh(self) -> None: ...
    def close(self) -> None: ...


@click.command("demo")
@click.option(
    "--seconds", type=click.FloatRange(min=2), default=15.0, show_default=True, help="How long the load runs."
)
@click.option(
    "--rate", type=click.FloatRange(min=1, max=2000), default=200.0, show_default=True, help="Calls a second."
)
def command(seconds: float, rate: float) -> None:
    """Start seven different nodes on this machine, call them, break some, and count the failed calls.

    A small shop: three nodes of different speed and capacity for prices, two for stock, two for orders (which call the
    others), one ledger; found by mDNS on the loopback interface in a mesh of their own. Under a steady load one node
    that serves prices is killed (SIGKILL), one that serves stock is stopped and continued (SIGSTOP, SIGCONT), and one
    that takes orders is restarted gracefully (SIGTERM).

    Prices and stock are idempotent, so calls that a killed or stopped node had accepted are run again elsewhere. Orders
    are not idempotent, and are never run twice: that is counted in the ledger. A graceful restart loses none of them;
    a kill of their node would, which is why the demo kills another one.

    Exits with 1 if a call failed or an order was booked twice.
    """
    good = run(_demo(seconds, rate))
    if not good:
        raise click.exceptions.Exit(1)


async def _demo(seconds: float, rate: float) -> bool:
    me = asyncio.current_task()
    assert me is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, me.cancel)
    mesh = f"demo-{secrets.token_hex(4)}"
    began = time.monotonic()
    click.echo(f"starting {len(PARTS)} nodes in mesh {mesh!r}")
    try:
        async with Processes(mesh) as processes:
            started = await asyncio.gather(*(processes.start(part) for part in PARTS))
            click.echo(f"all are ready after {time.monotonic() - began:.1f} s")
            async with zmesh.Node(
                name="caller", mesh=mesh, interfaces=["127.0.0.1"], peers=[], discovery="mdns"
            ) as node:
                await _find_all(node)
                faults = Faults(node, {each.part.name: each for each in started}, processes.start)
                load = Load(node, rate)
                return await _show(node, load, faults, seconds)
    except RuntimeError as error:
        raise Failed(str(error)) from error


async def _find_all(node: zmesh.Node) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    missing = {part.name for part in PARTS}
    while missing and loop.time() - began < _FIND_WITHIN:
        missing -= {peer.name for peer in await node.discover(settle=0.05) if peer.services}
    if missing:
        raise Failed(f"mDNS did not show {', '.join(sorted(missing))}: run 'zmesh doctor --interface 127.0.0.1'")
    click.echo(f"found all by mDNS and met them in {1000 * (loop.time() - began):.0f} ms")


async def _show(node: zmesh.Node, load: Load, faults: Faults, seconds: float) -> bool:
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    screen: _Screen = _LiveScreen(node, load) if sys.stdout.isatty() else _PlainScreen(node, load)
    faults.on_event = screen.event
    breaking = asyncio.create_task(faults.run(seconds))
    calling = asyncio.create_task(load.run(lambda: breaking.done() and loop.time() >= end))
    try:
        while not calling.done():
            screen.refresh()
            await asyncio.wait([calling], timeout=1 / _FRAMES)
    finally:
        screen.close()
        for task in (breaking, calling):
            task.cancel()
    await breaking
    orders, twice = await booked(node)
    _report(load, faults, orders, twice)
    return not load.failures and not twice and orders == load.orders


def _report(load: Load, faults: Faults, orders: int, twice: int) -> None:
    percentiles = load.total.percentiles(asyncio.get_running_loop().time())
    p50, p99 = percentiles if percentiles is not None else (0.0, 0.0)
    click.echo()
    for fault in faults.all:
        click.echo(f"noticed: {fault}")
    click.echo(f"orders (not idempotent): {load.orders} made, {orders} in the ledger, {twice} booked twice")
    click.echo(
        f"slowest call {1000 * load.slowest:.0f} ms; last seconds p50 {1000 * p50:.1f} ms, p99 {1000 * p99:.1f} ms"
    )
    for text in load.failures[:5]:
        click.echo(f"failed: {text}", err=True)
    click.echo(f"{load.started} calls ({load.started - load.orders} idempotent), {len(load.failures)} failed")


def _figures(load: Load, name: str, now: float) -> tuple[str, str, str]:
    tally = load.nodes.get(name)
    percentiles = tally.percentiles(now) if tally is not None else None
    if tally is None or percentiles is None:
        return "-", "-", "-"
    return f"{tally.rate(now):.0f}", f"{1000 * percentiles[0]:.1f}", f"{1000 * percentiles[1]:.1f}"


class _PlainScreen:
    """Lines, for a log."""

    def __init__(self, node: zmesh.Node, load: Load) -> None:
        self._node = node
        self._load = load
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._next = self._began

    def event(self, text: str) -> None:
        self._line(f"* {text}")

    def refresh(self) -> None:
        now = self._loop.time()
        if now < self._next:
            return
        self._next = now + _LINE_EVERY
        load = self._load
        said = [f"{load.started} calls, {len(load.failures)} failed"]
        for peer in self._node.peers:
            rate, _, p99 = _figures(load, peer.name, now)
            if peer.state != "alive":
                said.append(f"{peer.name} is {peer.state}")
            elif rate != "-":
                said.append(f"{peer.name} {rate}/s p99 {p99} ms")
        self._line("; ".join(said))

    def close(self) -> None:
        pass

    def _line(self, text: str) -> None:
        click.echo(f"{self._loop.time() - self._began:5.1f} s  {text}")


class _LiveScreen:
    """A table that is drawn again and again, for a terminal."""

    def __init__(self, node: zmesh.Node, load: Load) -> None:
        from rich.live import Live

        self._node = node
        self._load = load
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._events: list[str] = []
        self._live = Live(self._table(), auto_refresh=False)
        self._live.start()

    def event(self, text: str) -> None:
        self._events.append(f"{self._loop.time() - self._began:5.1f} s  {text}")

    def refresh(self) -> None:
        self._live.update(self._table(), refresh=True)

    def close(self) -> None:
        self.refresh()
        self._live.stop()

    def _table(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        from .ls import STATE_STYLES

        now = self._loop.time()
        table = Table(title=f"{self._load.started} calls, {len(self._load.failures)} failed", header_style="bold")
        for title in ("node", "serves", "state"):
            table.add_column(title)
        for title in ("capacity", "load", "calls/s", "p50 ms", "p99 ms"):
            table.add_column(title, justify="right")
        peers = {peer.name: peer for peer in self._node.peers}
        for part in PARTS:
            peer = peers.get(part.name)
            state = "gone" if peer is None else peer.state
            table.add_row(
                part.name,
                part.about,
                Text(state, style=STATE_STYLES.get(state, "dim")),
                f"{part.capacity:g}",
                "-" if peer is None else str(peer.load),
                *_figures(self._load, part.name, now),
            )
        return Group(table, *(Text(event) for event in self._events[-_EVENTS_SHOWN:]))
