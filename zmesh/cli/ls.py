"""`zmesh ls`: who is on the mesh."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final

import click

import zmesh

from ._json import to_json
from ._options import Place, json_option, place_options, run, timeout_option

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["STATE_STYLES", "command", "console"]

STATE_STYLES: Final = {"alive": "green", "suspect": "yellow", "draining": "cyan", "dead": "red"}
_SETTLE: Final = 1.2  # seconds without a new node: mDNS asks again after one, should the first query be lost
_ID_DIGITS: Final = 8
_WIDE: Final = 250  # columns where the output is no terminal: nothing is wrapped that a program may read


@click.command("ls")
@json_option
@timeout_option(5.0, "Look no longer than this, even while new nodes are still found.")
@place_options
def command(as_json: bool, timeout: float, place: Place) -> None:
    """List the nodes of the mesh: what they serve, how they stand, how far they are.

    Waits until no new node was found for a second. LOAD is calls in flight, of all callers. Where nodes share a name,
    as workers do, ID tells them apart: the first digits of each one's incarnation.
    """
    peers, mesh, problems = run(_look(place, timeout))
    if as_json:
        click.echo(to_json([dataclasses.asdict(peer) for peer in peers], indent=2))
        return
    if peers:
        console().print(_table(peers))
    else:
        click.echo(f"no node in mesh {mesh!r} (run 'zmesh doctor')", err=True)
    for problem in problems:
        click.echo(problem, err=True)


async def _look(place: Place, timeout: float) -> tuple[list[zmesh.Peer], str, list[str]]:
    async with place.node() as node:
        peers = await node.discover(settle=_SETTLE, timeout=timeout)
        return peers, node.mesh, node.problems if peers else [*node.problems, *node.discovery]


def _table(peers: list[zmesh.Peer]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    shared = len({peer.name for peer in peers}) < len(peers)
    for title in ("NAME", *(["ID"] if shared else []), "SERVICES", "STATE"):
        table.add_column(title)
    for title in ("LOAD", "ROUND TRIP"):
        table.add_column(title, justify="right")
    table.add_column("ADDRESS")
    for peer in peers:
        services = ", ".join(f"{name} {version}" for name, version in peer.services.items())
        table.add_row(
            Text(peer.name),
            *([peer.id[:_ID_DIGITS]] if shared else []),
            Text(services or "?"),
            Text(peer.state, style=STATE_STYLES.get(peer.state, "")),
            str(peer.load),
            "-" if peer.round_trip is None else f"{1000 * peer.round_trip:.1f} ms",
            Text(peer.address),
        )
    return table


def console() -> Console:
    """Where tables are printed."""
    from rich.console import Console

    made = Console(highlight=False)
    if not made.is_terminal:
        made.width = _WIDE
    return made
