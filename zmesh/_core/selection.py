"""Who of all that offer a service may take a call, where the caller has said so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

__all__ = ["Exactly", "Named", "Selectable", "Selection"]


class Selectable(Protocol):
    """What a selection sees of a peer."""

    id: bytes
    name: str
    capacity: float  # its weight
    in_flight: int  # our own calls there
    others: int  # calls that others have there, by its last report


P = TypeVar("P", bound=Selectable)


class Selection(Protocol):
    """The interface: narrows the candidates of a call down; what is left is balanced as ever. Its text ends a message
    that says that nobody was found."""

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
