"""Who of all that offer a service may take a call, where the caller has said so."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Final, Protocol, TypeVar

__all__ = ["Exactly", "Named", "Selectable", "Selection", "Sticky"]


class Selectable(Protocol):
    """What a selection sees of a peer."""

    id: bytes
    name: str
    capacity: float  # its weight
    in_flight: int  # our own calls there
    others: int  # calls that others have there, by its last report


P = TypeVar("P", bound=Selectable)


class Selection(Protocol):
    """The interface: narrows the candidates of a call down; what is left is balanced as ever. Those that refused the
    call are shown to it only where it selects nobody else. Its text ends a message that says that nobody was found."""

    @property
    def hopeless(self) -> bool:
        """Whether nobody will ever come whom it could select: then a call does not wait for one."""

    def among(self, candidates: Sequence[P]) -> Sequence[P]:
        """Those of the candidates that may take the call, in any number."""


class Named:
    """The nodes of one name (several may share it), or the one with this id in hex."""

    __slots__ = ("_name",)

    hopeless = False

    def __init__(self, name: str) -> None:
        self._name = name

    def among(self, candidates: Sequence[P]) -> Sequence[P]:
        return [peer for peer in candidates if peer.name == self._name or peer.id.hex() == self._name]

    def __str__(self) -> str:
        return f"named {self._name!r}"


class Exactly:
    """One incarnation, and no other of the same name."""

    __slots__ = ("_id", "_name")

    hopeless = False

    def __init__(self, id: bytes, name: str) -> None:
        self._id = id
        self._name = name

    def among(self, candidates: Sequence[P]) -> Sequence[P]:
        return [peer for peer in candidates if peer.id == self._id]

    def __str__(self) -> str:
        return f"named {self._name!r} (incarnation {self._id.hex()[:8]})"


class Sticky:
    """One of the candidates for each key, the same for every caller, as long as it is there and not overloaded.

    Weighted rendezvous hashing (Schindelhauer and Schomaker, "Weighted Distributed Hash Tables", 2005): each peer
    scores -w / ln(u), with its capacity as w and u in (0, 1) hashed from key and peer; the best score wins. So keys
    are shared out by weight, and a peer that comes or goes moves only keys to or from itself. With bounded load
    (Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing with Bounded Loads", 2016): a peer whose load would pass
    1.25 times its share of all load is passed over for the next best. Small loads are not bounded so tightly: one call
    more than its share, rounded up, is always allowed.

    within: narrows the candidates before.
    """

    __slots__ = ("_key", "_places", "_within")

    BOUND: Final = 1.25

    def __init__(self, key: str, within: Selection | None = None) -> None:
        self._key = key
        self._within = within
        self._places: dict[tuple[str, bytes], float] = {}  # u by peer

    @property
    def hopeless(self) -> bool:
        return self._within is not None and self._within.hopeless

    def among(self, candidates: Sequence[P]) -> Sequence[P]:
        if self._within is not None:
            candidates = self._within.among(candidates)
        if len(candidates) < 2:
            return candidates
        capacity = sum(peer.capacity for peer in candidates)
        load = sum(peer.in_flight + peer.others for peer in candidates) + 1

        def room(peer: P) -> bool:
            share = load * peer.capacity / capacity
            return peer.in_flight + peer.others < max(math.ceil(self.BOUND * share), math.ceil(share) + 1)

        return [max(filter(room, candidates), key=self._score)]  # shares add up to the load: there is always room

    def _score(self, peer: Selectable) -> float:
        place = self._places.get((peer.name, peer.id))
        if place is None:
            if len(self._places) >= 1_000:  # peers that are long gone
                self._places.clear()
            text = f"{len(self._key.encode())}:{self._key}{peer.name}".encode() + peer.id
            digest = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
            place = self._places[peer.name, peer.id] = ((digest >> 12) + 0.5) / 2.0**52  # exact, neither 0 nor 1
        return -peer.capacity / math.log(place)

    def __str__(self) -> str:
        return "" if self._within is None else str(self._within)
