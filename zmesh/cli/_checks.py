"""The checks of `zmesh doctor`: plain functions from facts to a finding, so that each is tested by giving it facts."""

from __future__ import annotations

import importlib.metadata
import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from .._transport import BROKEN_OFF, NOT_TRUSTED, ONLY_HERE, ONLY_THERE
from ..discovery import Sighting
from ..discovery.probe import Echo, Interface

__all__ = [
    "Finding",
    "Reach",
    "check_descriptors",
    "check_echo",
    "check_environment",
    "check_handshakes",
    "check_interfaces",
    "check_keys",
    "check_meshes",
    "check_multicast",
    "check_package",
    "check_reach",
    "check_shadow",
    "check_uvloop",
    "check_versions",
]

DISTRIBUTION: Final = "zmesh-rpc"
_VARIABLES: Final = (
    "ZMESH_DISCOVERY",
    "ZMESH_INTERFACES",
    "ZMESH_KEY_FILE",
    "ZMESH_LISTEN",
    "ZMESH_MESH",
    "ZMESH_PEERS",
    "ZMESH_PERMISSIONS",
    "ZMESH_SECRET_FILE",
    "ZMESH_TRUST",
)
_DESCRIPTORS_PER_LINK: Final = 5
_FEW_DESCRIPTORS: Final = 1024  # some 200 peers
_SHOWN: Final = 5  # names in one line
_OPEN_5353: Final = (
    "let UDP 5353 in and out (ufw allow 5353/udp; firewall-cmd --add-service=mdns; or the nft/iptables rule that "
    "drops it), or name peers: --peer tcp://HOST:PORT or ZMESH_PEERS"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found. `cure` says what to do; empty where there is nothing to do."""

    check: str
    status: Literal["ok", "warn", "fail"]
    found: str
    cure: str = ""


@dataclass(frozen=True, slots=True)
class Reach:
    """Whether a TCP connection to one address of a node came about: `error` is None where it did."""

    node: str
    address: str
    error: str | None = None
    refused: bool = False


def check_interfaces(interfaces: Sequence[Interface], wanted: Sequence[str] = ()) -> Finding:
    """Is there a network at all, and is it the one that was asked for?

    wanted: names or addresses of the interfaces that the user chose; none: all.
    """
    name = "interfaces"
    missing = [each for each in wanted if not any(each == i.name or each in i.addresses for i in interfaces)]
    if missing:
        there = ", ".join(i.name for i in interfaces) or "none"
        return Finding(
            name,
            "fail",
            f"no interface {', '.join(missing)}; there are: {there}",
            "correct --interface or ZMESH_INTERFACES",
        )
    chosen = _chosen(interfaces, wanted)
    if wanted and chosen and all(i.loopback and i.up for i in chosen):
        return Finding(name, "ok", "loopback only, as asked: nodes of this machine")
    usable = [i for i in chosen if i.up and not i.loopback and any(_routable(a) for a in i.addresses)]
    if usable:
        listed = ", ".join(f"{i.name} ({', '.join(a for a in i.addresses if _routable(a))})" for i in usable)
        without_carrier = [i.name for i in usable if not i.carrier]
        if len(without_carrier) == len(usable):
            return Finding(
                name, "fail", f"{listed}: up, but not connected", "plug in the cable or join the wireless LAN"
            )
        return Finding(name, "ok", listed)
    others = [i for i in chosen if not i.loopback]
    down = [i.name for i in others if not i.up]
    if down:
        return Finding(name, "fail", f"{', '.join(down)}: down", f"ip link set {down[0]} up")
    if others:
        names = ", ".join(i.name for i in others)
        cure = f"get an address: start DHCP, or ip addr add 192.168.1.2/24 dev {others[0].name}"
        return Finding(name, "fail", f"{names}: up, without an address that others can reach", cure)
    if not any(i.up for i in interfaces):
        return Finding(name, "fail", "no interface is up, not even loopback", "ip link set lo up")
    return Finding(
        name,
        "fail",
        "no interface besides loopback: nodes of this machine find each other, others do not",
        "connect this machine (or container: --network host) to a network",
    )


def check_multicast(interfaces: Sequence[Interface], wanted: Sequence[str] = ()) -> Finding:
    """Do the interfaces take part in multicast?"""
    chosen = [i for i in _chosen(interfaces, wanted) if i.up and not i.loopback]
    usable = [i for i in chosen if any(_routable(address) for address in i.addresses)]
    without = [i.name for i in usable if not i.multicast]
    if not without:
        return Finding("multicast", "ok", ", ".join(i.name for i in usable) or "no interface to ask")
    cure = f"ip link set dev {without[0]} multicast on; where it cannot (many VPNs), name peers: --peer or ZMESH_PEERS"
    all_of_them = len(without) == len(usable)
    return Finding("multicast", "fail" if all_of_them else "warn", f"switched off on {', '.join(without)}", cure)


def check_echo(echoes: Sequence[Echo]) -> Finding:
    """Does a record that is sent by mDNS return to its sender? Loopback is no network: it only counts alone.

    This also tells whether a route for multicast is lacking, by the error of sending: Linux needs none where the
    interface is chosen, as it is here and by nodes; others do.
    """
    name = "mdns"
    real = [each for each in echoes if not each.address.startswith("127.")] or list(echoes)
    if not real:
        return Finding(
            name, "fail", "no interface with an IPv4 address to send a record on", "see the check interfaces"
        )
    silent = [each for each in real if not each.returned]
    if not silent:
        heard = ", ".join(each.interface for each in real)
        return Finding(name, "ok", f"a record sent to {heard} by UDP 5353 returns")
    status: Literal["warn", "fail"] = "fail" if len(silent) == len(real) else "warn"
    first = silent[0]
    where = ", ".join(f"{each.interface} ({each.address})" for each in silent)
    if first.error is None:
        return Finding(name, status, f"a record sent to {where} never returns: UDP 5353 is blocked here", _OPEN_5353)
    found = f"a record cannot be sent to {where}: {first.error}"
    reason = first.error.lower()
    if "in use" in reason:
        cure = "another program keeps UDP 5353 for itself: ss -ulpn 'sport = :5353' names it; let it share or stop it"
    elif "unreachable" in reason or "no route" in reason:
        cure = f"ip route add 224.0.0.0/4 dev {first.interface}"
    elif "not permitted" in reason or "denied" in reason:
        cure = _OPEN_5353
    else:
        cure = f"ip link show {first.interface}; or name peers: --peer or ZMESH_PEERS"
    return Finding(name, status, found, cure)


def check_keys(security: str | None, problems: Sequence[str]) -> Finding:
    """Are the links secured, and is all that should be trusted?

    security: what secures them; None: nothing does. problems: of files in the trust folder.
    """
    if security is None:
        return Finding("keys", "ok", "none: links are not secured, and whoever reaches a node may call it")
    if problems:
        cure = "'zmesh keys list' shows what is trusted; take the file out, or write NAME.pub by 'zmesh keys trust'"
        return Finding("keys", "warn", f"{security}; not trusted: {'; '.join(problems[:_SHOWN])}", cure)
    return Finding("keys", "ok", security)


def check_meshes(mesh: str, sightings: Sequence[Sighting]) -> Finding:
    """Who is here, and is it the same mesh?"""
    ours = [s for s in sightings if s.mesh == mesh]
    others: dict[str, list[str]] = {}
    for sighting in sightings:
        if sighting.mesh != mesh:
            others.setdefault(sighting.mesh or "(none)", []).append(sighting.name or "?")
    elsewhere = "; ".join(f"mesh {name!r}: {_some(nodes)}" for name, nodes in sorted(others.items()))
    if ours:
        found = f"mesh {mesh!r}: {_some([s.name or '?' for s in ours])}"
        return Finding("meshes", "ok", f"{found}; {elsewhere}" if elsewhere else found)
    if others:
        first = min(others)
        cure = f"if that is yours: --mesh {first} or ZMESH_MESH={first} here, or this mesh's name there"
        return Finding("meshes", "fail", f"nobody in mesh {mesh!r}, but {elsewhere}", cure)
    cure = "start one ('zmesh serve'), then look here again; if one runs on another host, run 'zmesh doctor' there, too"
    return Finding("meshes", "warn", f"mDNS shows no node of any mesh (this one is {mesh!r})", cure)


def check_reach(reaches: Sequence[Reach]) -> Finding:
    """Can the addresses that were seen be connected to? One working address of a node is enough."""
    name = "reachable"
    by_node: dict[str, list[Reach]] = {}
    for reach in reaches:
        by_node.setdefault(reach.node, []).append(reach)
    if not by_node:
        return Finding(name, "ok", "no address to try")
    lost = {node: tried for node, tried in by_node.items() if all(reach.error for reach in tried)}
    if not lost:
        return Finding(name, "ok", f"{len(by_node)} of {len(by_node)} nodes accept connections")
    found = "; ".join(
        f"{node} at {', '.join(f'{r.address}: {r.error}' for r in tried)}" for node, tried in lost.items()
    )
    blocked = next((tried for tried in lost.values() if not all(reach.refused for reach in tried)), None)
    if blocked is None:
        cure = "nothing listens there: it has ended without a goodbye (its record goes by itself), or --peer is wrong"
        return Finding(name, "fail" if len(lost) == len(by_node) else "warn", found, cure)
    port = blocked[0].address.rpartition(":")[2]
    cure = (
        f"let TCP {port} into that host (a fixed port for the rule: --listen tcp://*:7001); "
        "or it advertises an address of another network: choose with --listen tcp://ADDRESS:0 there"
    )
    return Finding(name, "fail", found, cure)


# What a refusal says, and what to do about it; the first that fits.
_REFUSALS: Final = (
    (("belongs to mesh",), "give both the same --mesh or ZMESH_MESH"),
    (
        ("protocol version",),
        "upgrade the older side: pip install --upgrade zmesh-rpc; 'zmesh version' on both tells which it is",
    ),
    (
        ("no ZeroMQ peer", "no zmesh node"),
        "another program answers at that port: correct --peer, --listen or ZMESH_PEERS",
    ),
    (
        (ONLY_THERE, ONLY_HERE, BROKEN_OFF),
        "give the node that lacks it --secret-file (the mesh's own), or --key-file and --trust",
    ),
    (
        (NOT_TRUSTED,),
        "on that host: zmesh keys trust NAME.pub, with this node's public key; it may have been revoked",
    ),
    (("in the trust folder", "it announces key"), "if you trust it: zmesh keys trust NAME.pub, with its public key"),
    (("NAME@",), "write --peer NAME@tcp://HOST:PORT"),
    (("the key that was expected",), "compare 'zmesh keys show FILE' there and here: both name the fingerprints"),
)


def check_handshakes(problems: Sequence[str]) -> Finding:
    """Did those who accept connections take us as a peer?

    problems: "address: reason" of each who did not.
    """
    if not problems:
        return Finding("handshake", "ok", "nobody refused")
    cure = "run 'zmesh doctor' on that host, too"
    for signs, found in _REFUSALS:
        if any(sign in each for sign in signs for each in problems):
            cure = found
            break
    return Finding("handshake", "fail", "; ".join(problems[:_SHOWN]), cure)


def check_package(installed: Mapping[str, str]) -> Finding:
    """Is this zmesh, and not the marching cubes that the package index has under that name?

    installed: distributions that provide the import name `zmesh`, with their versions.
    """
    other = {name: version for name, version in installed.items() if _normal(name) != DISTRIBUTION}
    if other:
        names = ", ".join(f"{name} {version}" for name, version in other.items())
        cure = f"pip uninstall {' '.join(other)}; pip install --force-reinstall {DISTRIBUTION}"
        found = f"{names} is installed too, writes to the same folder 'zmesh', and is something else (marching cubes)"
        return Finding("package", "fail", found, cure)
    if not installed:
        found = f"{DISTRIBUTION} is not installed: this runs from a folder"
        return Finding("package", "warn", found, "pip install -e . in the clone")
    return Finding("package", "ok", ", ".join(f"{name} {version}" for name, version in installed.items()))


def check_shadow(folder: Path, package: Path) -> Finding:
    """Would a program that is started in `folder` import something else as `zmesh`?

    package: the folder of the package that runs here.
    """
    cure = "rename it, or start programs elsewhere"
    file, inner = folder / "zmesh.py", folder / "zmesh" / "__init__.py"
    if file.exists():
        return Finding("shadow", "fail", f"{file} is imported instead of this package by what starts here", cure)
    if inner.exists() and inner.parent.resolve() != package.resolve():
        return Finding("shadow", "fail", f"{inner.parent} is imported instead of {package} by what starts here", cure)
    return Finding("shadow", "ok", "nothing here is called zmesh but this package")


def check_versions(python: str, installed: Mapping[str, str], required: Iterable[str]) -> Finding:
    """Are the libraries recent enough?

    installed: name to version. required: as in a distribution's metadata, "pyzmq>=26.2".
    """
    old: list[str] = []
    names: list[str] = []
    for requirement in required:
        match = re.match(r"([A-Za-z0-9_.-]+?)\s*>=\s*([0-9.]+)", requirement)
        if match is None or "extra" in requirement:
            continue
        version = installed.get(match[1])
        if version is None or _numbers(version) < _numbers(match[2]):
            names.append(match[1])
            old.append(f"{match[1]} {version or 'is missing'} (needs {match[2]})")
    if old:
        return Finding("versions", "fail", ", ".join(old), f"pip install --upgrade {' '.join(names)}")
    listed = ", ".join(f"{name} {version}" for name, version in installed.items() if name not in ("system", "python"))
    return Finding("versions", "ok", f"Python {python}, {listed}")


def check_descriptors(soft: int, hard: int) -> Finding:
    """How many peers can this process have? A node raises the soft limit to the hard one by itself.

    soft, hard: RLIMIT_NOFILE; negative for unlimited.
    """
    if hard < 0 or hard >= _FEW_DESCRIPTORS:
        found = (
            "no limit"
            if hard < 0
            else f"{hard} ({soft} before a node raises it): {hard // _DESCRIPTORS_PER_LINK} links"
        )
        return Finding("descriptors", "ok", found)
    found = f"at most {hard} open files: some {hard // _DESCRIPTORS_PER_LINK} links"
    return Finding("descriptors", "warn", found, "ulimit -Hn 65536; LimitNOFILE= for a systemd unit")


def check_uvloop(version: str | None) -> Finding:
    """Is the faster loop there?"""
    if version is None:
        return Finding(
            "uvloop", "ok", "not installed; calls are faster with it", f"pip install '{DISTRIBUTION}[uvloop]'"
        )
    return Finding("uvloop", "ok", version)


def check_environment(environment: Mapping[str, str]) -> Finding:
    """What do the ZMESH_ variables say?"""
    given = {name: value for name, value in sorted(environment.items()) if name.startswith("ZMESH_")}
    unknown = [name for name in given if name not in _VARIABLES and not name.startswith("ZMESH_TEST")]
    listed = ", ".join(f"{name}={value}" for name, value in given.items())
    if unknown:
        return Finding(
            "environment",
            "warn",
            f"{', '.join(unknown)}: not a variable of zmesh",
            f"there are: {', '.join(_VARIABLES)}",
        )
    if given.get("ZMESH_DISCOVERY") == "none":
        return Finding("environment", "warn", listed, "mDNS is off: unset ZMESH_DISCOVERY, unless all peers are named")
    return Finding("environment", "ok", listed or "no ZMESH_ variable is set")


def distributions() -> dict[str, str]:
    """The installed distributions that provide `zmesh`. An editable one lists no files, so both names are asked for."""
    found: dict[str, str] = {}
    for name in (DISTRIBUTION, "zmesh"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _chosen(interfaces: Sequence[Interface], wanted: Sequence[str]) -> list[Interface]:
    return [i for i in interfaces if not wanted or any(each == i.name or each in i.addresses for each in wanted)]


def _routable(address: str) -> bool:
    """IPv6 link-local addresses are on every interface and say nothing; IPv4 ones (no DHCP answered) do work."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    return not ip.is_loopback and not (ip.version == 6 and ip.is_link_local)


def _some(names: Sequence[str]) -> str:
    rest = f", ... ({len(names)} nodes)" if len(names) > _SHOWN else ""
    return f"{', '.join(sorted(names)[:_SHOWN])}{rest}"


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])
