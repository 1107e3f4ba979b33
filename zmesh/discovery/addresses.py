"""This machine's interfaces and the addresses under which others may reach it."""

from __future__ import annotations

import ipaddress

import ifaddr

__all__ = ["interfaces", "useful_addresses"]


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
