"""Discovery: where other nodes might be. A hint only: what a node is and serves is learnt from the node itself.

One file a source: `mdns` (the only importer of zeroconf), `static` (addresses that the user named).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Discovery", "Found", "Lost", "Sighting"]


@dataclass(frozen=True, slots=True)
class Sighting:
    """A node that a source has seen.

    key: the source's own name for it, unique among its sightings; `Lost` names it again.
    addresses: where it may be reached, best first; all are tried.
    id: its incarnation (16 bytes), None where the source cannot know (a static address).
    name, mesh: as advertised, None where unknown.
    fingerprint: of the key that it says it has; None where it says none.
    """

    key: str
    addresses: tuple[str, ...]
    id: bytes | None = None
    name: str | None = None
    mesh: str | None = None
    fingerprint: str | None = None


Found = Callable[[Sighting], None]
Lost = Callable[[str], None]


class Discovery(Protocol):
    """One source of sightings."""

    async def start(self, found: Found, lost: Lost) -> None:
        """Begin to look. `found` is called again with the same key when a sighting changes. Never raises because
        the network lacks something: it says so in `describe`."""

    async def advertise(self, sighting: Sighting) -> None:
        """Tell others about this node. Returns once the first announcement is out."""

    async def withdraw(self) -> None:
        """Say goodbye, so that others stop looking here. Bounded in time."""

    async def close(self) -> None:
        """Stop looking. Bounded in time."""

    def describe(self) -> str:
        """One line for error messages: what is looked at and what is lacking, `mdns on 10.0.0.3`."""
