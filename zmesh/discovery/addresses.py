"""This machine's interfaces and the addresses under which others may reach it."""

from __future__ import annotations

import ipaddress
import socket
import struct
from typing import Final

import ifaddr

__all__ = ["LOOPBACK", "MULTICAST", "RUNNING", "UP", "flags_of", "hindrance", "interfaces", "useful_addresses"]

_SIOCGIFFLAGS: Final = 0x8913
UP, LOOPBACK, RUNNING, MULTICAST = 0x1, 0x8, 0x40, 0x1000  # linux/if.h


def flags_of(interface: str) -> int | None:
    """The flags of an interface as Linux' net_device_flags (IFF_*); None where the system does not tell."""
    try:
        import fcntl

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            request = struct.pack("256s", interface.encode()[:15])
            return int(struct.unpack("H", fcntl.ioctl(asking.fileno(), _SIOCGIFFLAGS, request)[16:18])[0])
    except (ImportError, OSError):
        return None


def hindrance(interface: str) -> str | None:
    """Why multicast cannot work on an interface: it is down, or has no multicast flag; None where nothing is known.

    Loopback has no multicast flag and carries it all the same.
    """
    flags = flags_of(interface)
    if flags is None:
        return None
    if not flags & UP:
        return f"{interface} is down"
    return None if flags & (LOOPBACK | MULTICAST) else f"{interface} has no multicast flag"


def interfaces() -> list[tuple[str, str]]:
    """(interface, address) of every address of this machine; an IPv6 address without its scope."""
    return [
        (str(adapter.nice_name), ip.ip if isinstance(ip.ip, str) else ip.ip[0])
        for adapter in ifaddr.get_adapters()
        for ip in adapter.ips
    ]


def useful_addresses() -> list[str]:
    """Addresses under which another machine may reach this one, IPv4 first; loopback where there is nothing else."""
    found: dict[str, None] = {}
    for _, text in interfaces():
        address = ipaddress.ip_address(text.partition("%")[0])
        if not (address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast):
            found[str(address)] = None
    return sorted(found, key=lambda text: ":" in text) or ["127.0.0.1"]
