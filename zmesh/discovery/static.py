"""Addresses that the user named: nothing is looked for, nothing is announced."""

from __future__ import annotations

from . import Found, Lost, Sighting

__all__ = ["StaticPeers"]


class StaticPeers:
    """See `discovery.Discovery`. addresses: each with the name of who is expected there, None where that is open."""

    def __init__(self, addresses: tuple[tuple[str | None, str], ...]) -> None:
        self._addresses = addresses

    async def start(self, found: Found, lost: Lost) -> None:
        for name, address in self._addresses:
            found(Sighting(key=f"static {address}", addresses=(address,), name=name))

    async def advertise(self, sighting: Sighting) -> None:
        pass

    async def withdraw(self) -> None:
        pass

    async def close(self) -> None:
        pass

    def describe(self) -> str:
        return f"static {', '.join(address for _, address in self._addresses)}"
