"""What can be told of one candidate of one call, and why it could not take it: in words."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Final

from ._core.admission import LOTS
from ._core.balance import POLICIES
from ._core.health import State as Wellness
from ._core.members import Member
from ._core.peer import State
from ._core.policies import Policy
from ._core.selection import Sticky
from ._link import Link

if TYPE_CHECKING:
    from ._client import Outgoing

__all__ = ["facts_of", "name_of", "overloaded", "why_not"]

_BUSY: Final = "its link takes no calls now"
_WITHOUT_LINK: Final = {
    State.NEW: "it was not met yet",
    State.ALIVE: "there is no link to it",
    State.SUSPECT: "its link was lost a moment ago",
    State.DRAINING: "it leaves",
    State.DEAD: "it is dead: no handshake",
    State.IDLE: "no link is kept to it: it was not needed so far, or enough others offer the service",
}


def facts_of(member: Member[Link], path: str, policy: Policy, why_not: str, now: float) -> dict[str, Any]:
    """The fields of `zmesh.explanation.Candidate`, as they are now."""
    cost = getattr(policy, "cost", None)
    return {
        "name": member.name,
        "state": member.state.value,
        "health": member.health.state.value,
        "in_flight": member.in_flight,
        "others": member.others,
        "report_age": now - member.reported_at if math.isfinite(member.reported_at) else None,
        "latency": member.latency(path),
        "weight": member.weight,
        "level": -(-member.level(path, now) // LOTS),
        "cost": None if cost is None or why_not else cost(member, path, now),
        "why_not": why_not,
    }


def why_not(
    call: Outgoing,
    member: Member[Link],
    *,
    candidates: Collection[Member[Link]],
    selectable: Collection[Member[Link]],
    tried: Collection[Member[Link]],
    now: float,
) -> str:
    """Why a member that offers the service cannot take a call now; empty where it can.

    candidates: who may. selectable: who could, before the call's selection. tried: who had an attempt of it.
    """
    target, hello, link = call.target, member.hello, member.link
    if member in candidates:
        if member.id in call.avoid:
            return "it refused this call, or was lost with it"
        return "" if link is not None and link.usable else _BUSY
    if hello is not None and not member.offers(target.service, target.major):
        versions = ", ".join(offer.version for offer in hello.services if offer.name == target.service)
        return f"it offers version {versions}, and this client is for {target.major}"
    if link is None or member.state is State.DRAINING or member.state is State.DEAD:
        return _WITHOUT_LINK[member.state]
    if member in tried:
        return "it has, or had, an attempt of this call"
    if call.selection is not None and member in selectable:
        return "the key belongs to another node" if isinstance(call.selection, Sticky) else "another was asked for"
    if member.state is State.SUSPECT:
        return "it is silent"
    health = member.health
    if health.state is Wellness.EJECTED:
        return f"ejected for {max(0.0, health.until - now):.3g} s more: {health.why}"
    if health.state is Wellness.DUE:
        return f"ejected; its next call is its probe: {health.why}"
    return f"ejected; its probe is out: {health.why}" if health.state is Wellness.PROBING else _BUSY


def overloaded(level: int, rank: int) -> str:
    """Why one that takes calls from this rank on takes none of that rank."""
    priority, least = rank // LOTS, -(-level // LOTS)
    what = "only a part" if level // LOTS == priority else "nothing"
    return f"overloaded: it takes {what} of priority {priority}, all from {least} on"


def name_of(policy: Policy) -> str:
    """As `Node(balance=...)` has it; of a user's own, its class."""
    return next((name for name, made in POLICIES.items() if type(policy) is made), type(policy).__name__)
