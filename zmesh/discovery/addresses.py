"""This machine's interfaces and the addresses under which others may reach it."""

from __future__ import annotations

import ipaddress

import ifaddr

__all__ = ["hindrance", "interfaces", "useful_addresses"]


def hindrance(interface: str) -> str | None:
    """Why multicast cannot work on an interface: it is down, or has no multicast flag; None where nothing is known.

    Flags as in Linux' net_device_flags: IFF_UP 0x1, IFF_LOOPBACK 0x8, IFF_MULTICAST 0x1000. Loopback has no multicast
    flag and carries it all the same.
    """
    try:
        with open(f"/sys/class/net/{interface}/flags", encoding="ascii") as file:
            flags = int(file.read(), 16)
    except (OSError, ValueError):
        return None
    if not flags & 0x1:
        return f"{interface} is down"
    return None if flags & 0x1008 else f"{interface} has no multicast flag"


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
