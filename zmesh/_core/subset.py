"""To which of very many peers a node keeps links."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Collection, Iterable
from operator import attrgetter
from typing import Protocol, TypeVar

__all__ = ["Ranked", "keep", "nearest", "rank_of"]


class Ranked(Protocol):
    """What is seen of a peer here."""

    rank: bytes
    failures: int  # attempts in a row to reach it that failed


P = TypeVar("P", bound=Ranked)


def rank_of(own: bytes, other: bytes) -> bytes:
    """How near a peer is to this node, by a hash of both ids (rendezvous; gRFC A68 does so for gRPC's deterministic
    subsetting). Each node ranks the others in an order of its own, so links are spread evenly, and one peer that comes
    or goes changes at most one link of each node."""
    return hashlib.blake2b(other, key=own[:64], digest_size=8).digest()


def keep(peers: Collection[P], above: int, size: int) -> set[P] | None:
    """Of the peers that offer a service, or may: those to keep links to. None: all of them, as they are `above` or
    fewer. Else the `size` nearest that can be reached, and those nearer that cannot, to be tried again."""
    if len(peers) <= above:
        return None
    kept: set[P] = set()
    reached = 0
    for peer in sorted(peers, key=attrgetter("rank")):
        if reached == size:
            break
        kept.add(peer)
        reached += not peer.failures
    return kept


def nearest(own: bytes, ids: Iterable[bytes], size: int) -> list[bytes]:
    """The ids of those that a node keeps where all can be reached."""
    return heapq.nsmallest(size, ids, key=lambda each: rank_of(own, each))
