"""`zmesh doctor`: gathers the facts; `_checks` judges them."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import importlib.metadata
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import click

import zmesh

from .._arguments import peer_of
from .._security.trust import SUFFIX
from ..discovery import Sighting
from ..discovery.probe import Interface, browse, echo, system_interfaces
from . import _checks as checks
from ._checks import Finding, Reach
from ._json import to_json
from ._options import Place, json_option, place_options, run
from .version import versions

__all__ = ["command"]

_BROWSE: Final = 1.5  # seconds: queries leave at 0 and 1 s, and answers come at once
_CONNECT: Final = 1.5  # seconds for a TCP connection on a LAN, with one lost packet
_STYLES: Final = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command("doctor")
@json_option
@place_options
def command(as_json: bool, place: Place) -> None:
    """Find out why a node is not seen, and what to do about it.

    Checks interfaces, multicast, UDP 5353, the meshes that are there, whether their nodes can be reached and talked to,
    the installation. Exits with 1 if something fails; a warning is no failure.
    """
    logging.getLogger("zmesh").addHandler(logging.NullHandler())  # what it would warn of is found here, with a cure
    findings = run(_findings(place))
    if as_json:
        click.echo(to_json([dataclasses.asdict(finding) for finding in findings], indent=2))
    else:
        width = max(len(finding.check) for finding in findings)
        for finding in findings:
            status = click.style(f"{finding.status:4}", fg=_STYLES[finding.status])
            click.echo(f"{status}  {finding.check:{width}}  {finding.found}")
            if finding.cure:
                click.echo(f"      {'':{width}}  -> {finding.cure}")
    if any(finding.status == "fail" for finding in findings):
        raise click.exceptions.Exit(1)


async def _findings(place: Place) -> list[Finding]:
    found = versions()
    return [
        *await _network(place),
        checks.check_environment(os.environ),
        checks.check_package(checks.distributions()),
        checks.check_shadow(Path.cwd(), Path(zmesh.__file__).parent),
        checks.check_versions(found["python"], found, _requirements()),
        checks.check_descriptors(*_descriptor_limits()),
        checks.check_uvloop(found.get("uvloop")),
    ]


async def _network(place: Place) -> list[Finding]:
    """What the network does. Nodes that are named are looked at in any case, mDNS only where it is used."""
    async with place.node() as node:
        mesh, mdns = node.mesh, not place.no_mdns and os.environ.get("ZMESH_DISCOVERY") != "none"
        wanted = place.interfaces or _listed("ZMESH_INTERFACES")
        interfaces = system_interfaces()
        keys = checks.check_keys(node.security, [each for each in node.problems if f"{SUFFIX}: " in each])
        findings = [checks.check_interfaces(interfaces, wanted), keys]
        sightings: list[Sighting] = []
        if mdns:
            echoes, sightings, _ = await asyncio.gather(
                echo(_targets(interfaces, wanted)), browse(_BROWSE, wanted or None), node.discover(timeout=_BROWSE)
            )
            findings.append(checks.check_multicast(interfaces, wanted))
            findings.append(checks.check_echo(echoes))
            findings.append(checks.check_meshes(mesh, sightings))
        named = [peer_of(each)[1] for each in place.peers or _listed("ZMESH_PEERS")]
        reaches = await _reach([(s.name or "?", s.addresses) for s in sightings if s.mesh == mesh], named)
        findings.append(checks.check_reach(reaches))
        await node.discover(timeout=_BROWSE)  # those whose first attempt failed, and those that are named
        reached = {reach.address for reach in reaches if reach.error is None}
        refused = [text for text in node.problems if any(text.startswith(f"{address}: ") for address in reached)]
        findings.append(checks.check_handshakes(refused))
    return findings


def _targets(interfaces: Sequence[Interface], wanted: Sequence[str]) -> list[tuple[str, str]]:
    """(interface, IPv4 address) to send a record on."""
    return [
        (i.name, address)
        for i in interfaces
        for address in i.addresses
        if i.up and ":" not in address and (not wanted or i.name in wanted or address in wanted)
    ]


async def _reach(seen: Iterable[tuple[str, Sequence[str]]], named: Sequence[str]) -> list[Reach]:
    tries = [(node, address) for node, addresses in seen for address in addresses]
    tries += [(address, address) for address in named]
    return list(await asyncio.gather(*(_connect(node, address) for node, address in tries)))


async def _connect(node: str, address: str) -> Reach:
    if not address.startswith("tcp://"):
        return Reach(node, address)
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    try:
        async with asyncio.timeout(_CONNECT):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except TimeoutError:
        return Reach(node, address, f"no answer within {_CONNECT} s")
    except OSError as error:
        return Reach(
            node, address, os.strerror(error.errno) if error.errno else str(error), error.errno == errno.ECONNREFUSED
        )
    writer.close()
    return Reach(node, address)


def _listed(variable: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in os.environ.get(variable, "").split(",") if item.strip())


def _requirements() -> list[str]:
    try:
        return importlib.metadata.requires(checks.DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def _descriptor_limits() -> tuple[int, int]:
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return -1, -1
    return resource.getrlimit(resource.RLIMIT_NOFILE)
