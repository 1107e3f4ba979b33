"""mDNS and DNS-SD (RFC 6762, RFC 6763), by python-zeroconf: the only importer of it.

The instance name and the SRV host name are unique per incarnation, so there is nothing to probe for: registration skips
the second that probing takes. Two nodes with one host name would resolve to one address.

A record that stays after its node died is normal here (RFC 6762 lets a PTR live 75 minutes): what a sighting is worth,
the handshake tells.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import re
import secrets
import socket
from typing import Final

from zeroconf import (  # type: ignore[attr-defined]  # the DNS classes are there, and not in __all__
    DNSIncoming,
    DNSOutgoing,
    DNSQuestion,
    IPVersion,
    ServiceStateChange,
    Zeroconf,
)
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from . import Found, Lost, Sighting
from .addresses import hindrance, interfaces

__all__ = ["SERVICE_TYPE", "MulticastDNS"]

_log = logging.getLogger("zmesh.discovery")

SERVICE_TYPE: Final = "_zmesh._tcp.local."
_RESOLVE_WITHIN: Final = 3_000  # ms for an instance whose records did not come with its name
_CLOSE_WITHIN: Final = 1.0  # seconds for three goodbye packets, 125 ms apart
_QUERY, _PTR, _IN = 0x0000, 12, 1  # flags, type and class of a question; RFC 1035, sections 3.2 and 4.1.1
_MAX_PACKET: Final = 9000  # bytes; RFC 6762, section 17
_MAX_LABEL: Final = 63  # bytes; RFC 6763, section 4.1.1


class MulticastDNS:
    """See `discovery.Discovery`.

    interfaces: IP addresses or names of the interfaces to use; None: all that are up.
    """

    def __init__(self, interfaces: tuple[str, ...] | None) -> None:
        self._interfaces = interfaces
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._info: AsyncServiceInfo | None = None
        self._found: Found | None = None
        self._lost: Lost | None = None
        self._resolving: dict[str, asyncio.Task[None]] = {}
        self._lacking: str | None = None
        self._addresses: tuple[str, ...] = ()
        self._asking: list[socket.socket] = []

    async def start(self, found: Found, lost: Lost) -> None:
        self._found, self._lost = found, lost
        try:
            self._addresses = self._resolve_interfaces()
            self._zeroconf = AsyncZeroconf(
                interfaces=list(self._addresses),
                ip_version=IPVersion.V4Only if all(":" not in address for address in self._addresses) else None,
            )
        except (OSError, RuntimeError, ValueError) as error:
            self._lacking = f"mdns does not work here: {error or type(error).__name__}"
            _log.warning("%s; static peers (`peers=`, ZMESH_PEERS) still do", self._lacking)
            return
        self._browser = AsyncServiceBrowser(self._zeroconf.zeroconf, SERVICE_TYPE, handlers=[self._changed])
        self._ask_at_once()

    async def advertise(self, sighting: Sighting) -> None:
        if self._zeroconf is None or sighting.id is None:
            return
        identity = sighting.id.hex()
        ips, port = _ips_and_port(sighting.addresses)
        if port is None:
            return
        label = f"-{identity[:12]}"
        name = (sighting.name or "node").encode()[: _MAX_LABEL - len(label)].decode(errors="ignore").replace(".", "-")
        self._info = AsyncServiceInfo(
            SERVICE_TYPE,
            f"{name}{label}.{SERVICE_TYPE}",
            port=port,
            server=f"zmesh-{identity}.local.",
            parsed_addresses=ips,
            properties={
                "txtvers": "1",
                "id": identity,
                "name": (sighting.name or "").encode()[:200].decode(errors="ignore"),
                "mesh": sighting.mesh or "",
                **({} if sighting.fingerprint is None else {"key": sighting.fingerprint}),
            },
        )
        try:
            await self._zeroconf.async_register_service(self._info, cooperating_responders=True)
        except Exception as error:  # whatever the network makes it raise: discovery is a hint, serving goes on
            self._lacking = f"mdns cannot announce: {type(error).__name__} {error}"
            _log.warning("%s", self._lacking)

    async def withdraw(self) -> None:
        info, self._info = self._info, None
        if self._zeroconf is not None and info is not None:
            with contextlib.suppress(Exception):  # a goodbye that cannot be said is no reason to stay
                async with asyncio.timeout(_CLOSE_WITHIN):
                    await (await self._zeroconf.async_unregister_service(info))

    async def close(self) -> None:
        await self.withdraw()
        for task in self._resolving.values():
            task.cancel()
        for asking in self._asking:
            asyncio.get_running_loop().remove_reader(asking.fileno())
            asking.close()
        self._asking.clear()
        if self._zeroconf is not None:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(_CLOSE_WITHIN):
                    if self._browser is not None:
                        await self._browser.async_cancel()
                    await self._zeroconf.async_close()
            self._zeroconf = None

    def describe(self) -> str:
        if self._lacking is not None:
            return self._lacking
        names = list(dict.fromkeys(name for name, address in interfaces() if address in self._addresses))
        if self._interfaces is not None or names != ["lo"]:
            return f"mdns on {', '.join(names or self._addresses)}"
        without_multicast = [why for name, _ in interfaces() if (why := hindrance(name)) and "down" not in why]
        return f"mdns on lo only: {without_multicast[0] if without_multicast else 'no other interface is up'}"

    def _resolve_interfaces(self) -> tuple[str, ...]:
        """The addresses to use. Raises RuntimeError or ValueError where there is none."""
        known = interfaces()
        if self._interfaces is None:
            usable = tuple(address for name, address in known if ":" not in address and hindrance(name) is None)
            if not usable:
                raise RuntimeError("no interface is up")
            return usable
        addresses: list[str] = []
        for wanted in self._interfaces:
            try:
                ipaddress.ip_address(wanted)
                addresses.append(wanted)
            except ValueError:
                named = [address for name, address in known if name == wanted and ":" not in address]
                if not named:
                    names = ", ".join(dict.fromkeys(name for name, _ in known)) or "none"
                    raise ValueError(f"no interface {wanted!r} is up; there are: {names}") from None
                addresses.extend(named)
        return tuple(addresses)

    def _ask_at_once(self) -> None:
        """Ask once from ports of our own (RFC 6762, section 6.7: one-shot queries): the answers come straight to this
        process, and are not held back to one a second.

        The browser's first query asks for answers to port 5353, which all processes of a machine share: the system
        gives each answer to any one of them. Its second query waits for a second.
        """
        loop = asyncio.get_running_loop()
        for address in self._addresses:
            if ":" in address:
                continue
            # The id makes each query another packet: zeroconf drops what it has seen in the last second.
            query = DNSOutgoing(_QUERY, multicast=False, id_=secrets.randbelow(1 << 16))
            query.add_question(DNSQuestion(SERVICE_TYPE, _PTR, _IN))
            asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._asking.append(asking)
            try:
                asking.setblocking(False)
                asking.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
                asking.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
                asking.bind((address, 0))
                for packet in query.packets():
                    asking.sendto(packet, ("224.0.0.251", 5353))
                loop.add_reader(asking.fileno(), self._answered, asking)
            except OSError as error:  # the browser asks, too
                _log.debug("no query from %s: %s", address, error)

    def _answered(self, asking: socket.socket) -> None:
        with contextlib.suppress(OSError):
            data, source = asking.recvfrom(_MAX_PACKET)
            message = DNSIncoming(data, source)
            if message.valid and message.is_response() and self._zeroconf is not None:
                self._zeroconf.zeroconf.record_manager.async_updates_from_response(message)

    def _changed(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if state_change is ServiceStateChange.Removed:
            task = self._resolving.pop(name, None)
            if task is not None:
                task.cancel()
            if self._lost is not None:
                self._lost(f"mdns {name}")
            return
        info = AsyncServiceInfo(service_type, name)
        if info.load_from_cache(zeroconf):  # SRV, TXT and addresses usually come along with the name
            self._tell(name, info)
        elif name not in self._resolving:
            self._resolving[name] = asyncio.get_running_loop().create_task(self._resolve(zeroconf, name, info))

    async def _resolve(self, zeroconf: Zeroconf, name: str, info: AsyncServiceInfo) -> None:
        try:
            if await info.async_request(zeroconf, _RESOLVE_WITHIN):
                self._tell(name, info)
            else:
                _log.info("%s was announced and cannot be resolved: a stale record", name)
        finally:
            self._resolving.pop(name, None)

    def _tell(self, name: str, info: AsyncServiceInfo) -> None:
        properties = {key: (value or "") for key, value in info.decoded_properties.items()}
        addresses = tuple(
            f"tcp://[{ip}]:{info.port}" if ":" in ip else f"tcp://{ip}:{info.port}"
            for ip in info.parsed_scoped_addresses()
        )
        try:
            identity = bytes.fromhex(properties.get("id", ""))
        except ValueError:
            identity = b""
        if len(identity) != 16 or not addresses:
            _log.info("%s is no zmesh node: its TXT record has no id", name)
            return
        if self._found is not None:
            self._found(
                Sighting(
                    key=f"mdns {name}",
                    addresses=addresses,
                    id=identity,
                    name=properties.get("name"),
                    mesh=properties.get("mesh"),
                    fingerprint=_fingerprint(properties.get("key")),
                )
            )


def _fingerprint(text: str | None) -> str | None:
    """What a record says of a key, where it can be one: it is shown to people."""
    return text if text is not None and re.fullmatch(r"[0-9a-f]{32}", text) else None


def _ips_and_port(addresses: tuple[str, ...]) -> tuple[list[str], int | None]:
    ips: list[str] = []
    port: int | None = None
    for address in addresses:
        if address.startswith("tcp://"):
            host, _, number = address[len("tcp://") :].rpartition(":")
            if port is None or port == int(number):
                ips.append(host.strip("[]"))
                port = int(number)
    return ips, port
