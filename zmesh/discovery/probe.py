"""Multicast DNS from below, for `zmesh doctor`: does a packet to the group come back, and whose records are there?"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from . import Sighting
from .addresses import LOOPBACK, MULTICAST, RUNNING, UP, flags_of, interfaces
from .mdns import MulticastDNS

__all__ = ["GROUP", "PORT", "Echo", "Interface", "browse", "echo", "system_interfaces"]

GROUP: Final = "224.0.0.251"
PORT: Final = 5353
_TTL: Final = 255  # RFC 6762, section 11
_LARGEST: Final = 9000  # bytes of an mDNS packet; RFC 6762, section 17


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface of this machine. What the system does not tell is taken as fine."""

    name: str
    addresses: tuple[str, ...]  # IPv4 and IPv6
    up: bool = True
    carrier: bool = True
    multicast: bool = True
    loopback: bool = False


@dataclass(frozen=True, slots=True)
class Echo:
    """What became of a record that was sent to the group on one interface.

    error: why it could not be sent, or why nothing can be heard; None where it could.
    returned: whether this machine heard it.
    """

    interface: str
    address: str
    returned: bool
    error: str | None = None


def system_interfaces() -> list[Interface]:
    """All interfaces, also those that are down or have no address."""
    addresses: dict[str, list[str]] = {}
    with contextlib.suppress(OSError, AttributeError):  # not every system lists those without an address
        addresses = {name: [] for _, name in socket.if_nameindex()}
    for name, address in interfaces():
        addresses.setdefault(name, []).append(address)
    return [_interface(name, tuple(found)) for name, found in addresses.items()]


def _interface(name: str, addresses: tuple[str, ...]) -> Interface:
    loopback = any(address.startswith("127.") or address == "::1" for address in addresses)
    flags = flags_of(name)
    if flags is None:  # no Linux
        return Interface(name, addresses, loopback=loopback)
    return Interface(
        name,
        addresses,
        up=bool(flags & UP),
        carrier=bool(flags & RUNNING),
        multicast=bool(flags & MULTICAST),
        loopback=bool(flags & LOOPBACK),
    )


async def echo(targets: Iterable[tuple[str, str]], within: float = 1.0) -> list[Echo]:
    """Send a record to the mDNS group on each (interface, IPv4 address), and tell which were heard in `within` seconds.

    What returns has passed this machine's own firewall both ways; what does not was dropped here, since a system
    hands a multicast packet back to its own listeners before any switch sees it.
    """
    loop = asyncio.get_running_loop()
    waiting: dict[bytes, asyncio.Future[None]] = {}
    found: list[Echo] = []
    futures: list[tuple[str, str, asyncio.Future[None]]] = []
    sockets: list[socket.socket] = []
    try:
        for interface, address in targets:
            token = b"zmesh-probe-" + secrets.token_hex(8).encode()
            try:
                probe = _join(address)
                sockets.append(probe)
                loop.add_reader(probe.fileno(), _hear, probe, waiting)
                future = waiting[token] = loop.create_future()
                probe.sendto(_record(token), (GROUP, PORT))
            except OSError as error:
                found.append(Echo(interface, address, returned=False, error=error.strerror or str(error)))
            else:
                futures.append((interface, address, future))
        if futures:
            await asyncio.wait([future for _, _, future in futures], timeout=within)
    finally:
        for probe in sockets:
            loop.remove_reader(probe.fileno())
            probe.close()
    return found + [Echo(interface, address, returned=future.done()) for interface, address, future in futures]


async def browse(seconds: float, interfaces: tuple[str, ...] | None = None) -> list[Sighting]:
    """Every zmesh node that mDNS shows within `seconds`, of whatever mesh."""
    seen: dict[str, Sighting] = {}

    def found(sighting: Sighting) -> None:
        seen[sighting.key] = sighting

    def lost(key: str) -> None:
        seen.pop(key, None)

    source = MulticastDNS(interfaces)
    await source.start(found, lost)
    try:
        await asyncio.sleep(seconds)
        return list(seen.values())
    finally:
        await source.close()


def _join(address: str) -> socket.socket:
    """A socket like an mDNS responder's: on port 5353, a member of the group on the interface with this address."""
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "SO_REUSEPORT"):
            with contextlib.suppress(OSError):
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, _TTL)
        made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
        made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
        made.bind(("", PORT))
        membership = socket.inet_aton(GROUP) + socket.inet_aton(address)
        made.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
    except OSError:
        made.close()
        raise
    return made


def _record(token: bytes) -> bytes:
    """A DNS response with one TXT record, `<token>.local.`, that lives for a second."""
    header = struct.pack("!6H", 0, 0x8400, 0, 1, 0, 0)  # response, authoritative; one answer
    name = bytes([len(token)]) + token + b"\x05local\x00"
    return header + name + struct.pack("!HHIH", 16, 1, 1, 1) + b"\x00"  # TXT, IN, TTL 1, one empty string


def _hear(probe: socket.socket, waiting: dict[bytes, asyncio.Future[None]]) -> None:
    try:
        packet = probe.recv(_LARGEST)
    except OSError:  # nothing there after all
        return
    for token, future in waiting.items():
        if token in packet and not future.done():
            future.set_result(None)
