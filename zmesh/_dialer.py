"""Whom to connect to, when, and by which address. Links are made only to peers whose services are called; a peer of
which it is not known what it serves is asked once.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Final

from ._core.members import Member, Members, offers
from ._core.messages import Hello
from ._core.peer import Event, State
from ._core.retry import backoff
from ._core.subset import keep, rank_of
from ._link import Link, LinkOwner
from ._platform import Host, clock_of
from ._security import Gate
from ._security.keys import fingerprint
from ._transport import BROKEN_OFF, ONLY_HERE, ONLY_THERE, OTHER_KEY, Transport
from .config import Config
from .discovery import Sighting
from .errors import Code

__all__ = ["Dialer"]

_log = logging.getLogger("zmesh.dialer")

_LOOK_SOON: Final = 0.02  # seconds in which those of very many who come are looked at together
_RETIRED_LOOK: Final = 0.25  # seconds between looks at links that finish their calls before they are let go
_IPC_WITHIN: Final = 0.1  # seconds that a faster way on the same host may take before tcp is used


class _Target:
    """A sighting, and how far we are with it."""

    __slots__ = ("deadline", "dialing", "failures", "first", "gone", "member", "rank", "reasons", "retry", "sighting")

    def __init__(self, sighting: Sighting, rank: bytes) -> None:
        self.sighting = sighting
        self.rank = rank  # how near it is to us: see `_core.subset`
        self.member: Member[Link] | None = None
        self.dialing: list[Link] = []
        self.first: Link | None = None  # open, while a faster way is tried
        self.failures = 0
        self.reasons: dict[str, str] = {}  # the last failure, by address
        self.retry: asyncio.TimerHandle | None = None
        self.deadline: asyncio.TimerHandle | None = None
        self.gone = False  # its source says that it left: not dialed again

    @property
    def busy(self) -> bool:
        return bool(self.dialing) or self.first is not None or self.retry is not None


class Dialer:
    """See the module."""

    def __init__(
        self,
        *,
        owner: LinkOwner,
        id: bytes,
        config: Config,
        host: Host,
        transport: Transport,
        members: Members[Link],
        random: random.Random,
        ready: Callable[[], None],
        gate: Gate | None = None,
    ) -> None:
        """ready: told when a link was added that calls may use. gate: of a secured node."""
        self._loop = asyncio.get_running_loop()
        self._time = clock_of(self._loop)
        self._owner = owner
        self._id = id
        self._config = config
        self._host = host
        self._transport = transport
        self._members = members
        self._random = random
        self._ready = ready
        self._gate = gate
        self._targets: dict[str, _Target] = {}
        self._by_link: dict[Link, _Target] = {}
        self._retiring: dict[Link, None] = {}  # not for new calls any more
        self._wanted: dict[str, bool] = {}  # services; whether of all who offer them
        self._kept: dict[str, set[_Target] | None] = {}  # whom to have links to, by service; None: everybody
        self._everybody = False
        self._looking = False
        self._closed = False

    # -- what is asked for

    def want(self, service: str, all: bool = False) -> None:
        """Calls of `service` are made: find and link who offers it. Where those are very many, as many of them as
        `Config.subset_size` says, unless calls may go to `all` of them, as they do with a key or a node's name."""
        if service not in self._wanted or (all and not self._wanted[service]):
            self._wanted[service] = all
            self._changed()
            self._look()

    def want_everybody(self) -> None:
        """Link every peer that is seen."""
        if not self._everybody:
            self._everybody = True
            self._look()

    def links(self) -> list[Link]:
        """Every link that was dialed and is not over."""
        return [*self._by_link, *self._retiring]

    def settled(self) -> bool:
        """Whether everybody who was seen has been met or has failed once."""
        return all(
            target.member is not None or target.failures or target.gone
            for target in self._targets.values()
            if self._wants(target)
        )

    def problems(self) -> list[str]:
        """What stands in the way of those who were seen and not met."""
        return [
            f"{address}: {reason}"
            for target in self._targets.values()
            if target.member is None or target.member.state is State.DEAD
            for address, reason in target.reasons.items()
        ]

    # -- what discovery tells

    def found(self, sighting: Sighting) -> None:
        if sighting.id == self._id or self._closed:
            return
        target = self._targets.get(sighting.key)
        if target is None:
            rank = rank_of(self._id, sighting.id or sighting.key.encode())
            target = self._targets[sighting.key] = _Target(sighting, rank)
            self._changed()
        target.sighting = sighting
        target.gone = False
        if sighting.id is not None and target.member is None:
            name = sighting.name or "?"
            target.member = self._members.add(sighting.id, name, sighting.addresses, self._time())
        if not self._looking:
            self._consider(target)

    def lost(self, key: str) -> None:
        target = self._targets.get(key)
        if target is None:
            return
        target.gone = True
        self._changed()
        if target.member is None or target.member.link is None:
            self._drop(target)

    # -- what links tell

    def opened(self, link: Link) -> None:
        """A dialed link finished its handshake."""
        target = self._by_link.get(link)
        if target is None:
            link.goodbye()
            return
        hello = link.remote
        assert hello is not None
        for other in target.dialing:
            if other is not link:
                del self._by_link[other]
                other.close()
        target.dialing.clear()
        if target.first is not None:  # the faster way stands
            first, target.first = target.first, None
            del self._by_link[first]
            first.goodbye()
        elif (faster := self._faster(link, hello)) is not None:
            target.first = link
            self._dial(target, (faster,), hello.id, link.key)
            self._loop.call_later(_IPC_WITHIN, self._use_first, target, link)
            return
        self._adopt(target, link, hello)

    def closed(self, link: Link, reason: str, *, goodbye: bool) -> None:
        """A dialed link failed or ended."""
        self._retiring.pop(link, None)
        target = self._by_link.pop(link, None)
        if target is None:
            return
        member = link.member
        if link.channel is not None and not goodbye:
            target.reasons[link.channel.remote] = self._why(target, reason, link.key)
        if member is not None and member.link is link:
            self._members.parted(member)
            self._members.happen(member, Event.GOODBYE if goodbye else Event.LINK_LOST, self._time())
            if goodbye:
                self._left(target)
            else:
                _log.info("lost the link with %s: %s", link.label, reason)
                self._await_handshake(target)
                self._consider(target)
            return
        if link is target.first:
            target.first = None
        if link in target.dialing:
            target.dialing.remove(link)
            if link.rejection is not None and self._hopeless(target, link.rejection):
                return
        if not target.dialing:
            if target.first is not None:
                self._use_first(target, target.first)
            else:
                self._failed(target)

    def release_unwanted(self, member: Member[Link]) -> None:
        """Let go of a link that was made only to learn what its peer serves."""
        link, hello = member.link, member.hello
        if link is None or hello is None or self._everybody or link.pending:
            return
        if not any(offers(hello, service, None) for service in self._wanted):
            self._release(member, link)

    def _release(self, member: Member[Link], link: Link) -> None:
        """Calls go there no more. Those that are open end first."""
        self._by_link.pop(link, None)
        self._members.parted(member)
        self._members.happen(member, Event.RELEASED, self._time())
        self._retiring[link] = None
        self._retire(link)

    def _retire(self, link: Link) -> None:
        if link not in self._retiring or self._closed:
            return
        if link.pending:
            self._loop.call_later(_RETIRED_LOOK, self._retire, link)
        else:
            del self._retiring[link]
            link.goodbye()

    def close(self) -> None:
        """Dial no more; say goodbye on every link."""
        self._closed = True
        for target in self._targets.values():
            self._cancel_timers(target)
        for link in self.links():
            if link.remote is not None:
                link.goodbye()
            else:
                link.close()
        self._by_link.clear()
        self._retiring.clear()

    # -- how

    def _look(self) -> None:
        self._looking = False
        if self._closed:
            return
        for target in self._concerned():
            self._consider(target)
            member = target.member
            if member is not None and member.link is not None and self._surplus(target):
                self._release(member, member.link)

    def _concerned(self) -> list[_Target]:
        """Whose link a look may want or let go: of very many, those that are near and those that have one."""
        everybody = list(self._targets.values())
        if self._everybody or any(self._wanted.values()):
            return everybody
        concerned = set(self._by_link.values())
        for service in self._wanted:
            kept = self._keep(service)
            if kept is None:
                return everybody
            concerned |= kept
        return [target for target in everybody if target in concerned]

    def _changed(self) -> None:
        """Somebody came, left or told what it serves: where there are very many, look whom to have links to."""
        self._kept.clear()
        if not self._looking and not self._closed and len(self._targets) > self._config.subset_above:
            self._looking = True
            self._loop.call_later(_LOOK_SOON, self._look)

    def _offers(self, target: _Target, service: str) -> bool:
        """Whether it offers a service, or may."""
        hello = target.member.hello if target.member is not None else None
        return hello is None or offers(hello, service, None)

    def _wants(self, target: _Target) -> bool:
        return self._everybody or any(
            self._offers(target, service) and self._keeps(target, service) for service in self._wanted
        )

    def _surplus(self, target: _Target) -> bool:
        """Whether it offers what is called, and others are to do it."""
        return not self._wants(target) and any(self._offers(target, service) for service in self._wanted)

    def _keeps(self, target: _Target, service: str) -> bool:
        if self._wanted[service]:
            return True
        kept = self._keep(service)
        return kept is None or target.gone or target in kept

    def _keep(self, service: str) -> set[_Target] | None:
        if service not in self._kept:
            config = self._config
            may = [each for each in self._targets.values() if not each.gone and self._offers(each, service)]
            self._kept[service] = keep(may, config.subset_above, config.subset_size)
        return self._kept[service]

    def _consider(self, target: _Target) -> None:
        """Dial, if this target is wanted and nothing is under way."""
        member = target.member
        linked = member is not None and member.link is not None
        if self._closed or linked or target.busy or not self._wants(target):
            return
        if target.gone:
            self._drop(target)
            return
        sighting = target.sighting
        key: str | None = None
        if self._gate is not None:
            try:
                key = self._gate.key_for(sighting.name, sighting.fingerprint)
            except LookupError as error:
                target.reasons = dict.fromkeys(sighting.addresses, str(error))
                self._failed(target)
                return
        self._dial(target, sighting.addresses, sighting.id, key)

    def _dial(self, target: _Target, addresses: tuple[str, ...], expects: bytes | None, key: str | None) -> None:
        """All addresses at once; the first that shakes hands wins. key: that whoever is there has to prove."""
        for address in addresses:
            link = Link(self._owner, dialed=True, expects=expects)
            try:
                link.channel = self._transport.dial(address, link, key)
            except (ValueError, OSError) as error:
                target.reasons[address] = str(error)
                link.close()
                continue
            target.dialing.append(link)
            self._by_link[link] = target
        if not target.dialing and target.first is None:
            self._failed(target)

    def _faster(self, link: Link, hello: Hello) -> str | None:
        """An address that is better than the one in use: the abstract socket of a node on this host."""
        channel = link.channel
        if not self._config.ipc or not self._host.abstract_sockets or hello.host != self._host.identity:
            return None
        if channel is None or channel.remote.startswith("ipc://"):
            return None
        return next((address for address in hello.addresses if address.startswith("ipc://@")), None)

    def _use_first(self, target: _Target, link: Link) -> None:
        """The faster way did not come up: go on by the one there is."""
        if self._closed or target.first is not link:
            return
        target.first = None
        for other in target.dialing:
            del self._by_link[other]
            other.close()
        target.dialing.clear()
        if link.remote is not None:
            self._adopt(target, link, link.remote)

    def _adopt(self, target: _Target, link: Link, hello: Hello) -> None:
        """This link is the one for our calls to this peer."""
        now = self._time()
        target.failures = 0
        self._changed()
        target.reasons.clear()
        self._cancel_timers(target)
        addresses = tuple(a for a in hello.addresses if a.startswith("tcp://")) or target.sighting.addresses
        member = self._members.add(hello.id, hello.name, addresses, now)
        if target.member is not None and target.member is not member:
            self._members.remove(target.member)  # its successor answers at its address
        target.member = member
        if member.link is not None:  # met by another of its sightings already
            del self._by_link[link]
            link.goodbye()
            return
        link.member = member
        member.round_trip = link.round_trip
        self._members.met(member, hello, link, now)
        self._ready()
        self._loop.call_soon(self.release_unwanted, member)

    def _why(self, target: _Target, reason: str, key: str | None) -> str:
        """What a link ended for. A handshake that is broken off has several causes; what was announced may tell it."""
        announced = target.sighting.fingerprint
        if reason == BROKEN_OFF and announced is not None:
            return ONLY_THERE
        if reason == OTHER_KEY and announced is None and target.sighting.id is not None:
            return ONLY_HERE
        if reason == OTHER_KEY and key is not None and announced not in (None, fingerprint(key)):
            return f"it does not have the key that was expected, {fingerprint(key)}: it announces {announced}"
        return reason

    def _await_handshake(self, target: _Target) -> None:
        """The peer is dead unless it shakes hands again within `redial_within`."""
        if target.deadline is None:
            target.deadline = self._loop.call_later(self._config.redial_within, self._no_handshake, target)

    def _no_handshake(self, target: _Target) -> None:
        target.deadline = None
        member = target.member
        if member is not None and member.link is None and member.state in (State.SUSPECT, State.NEW, State.IDLE):
            self._members.happen(member, Event.NO_HANDSHAKE, self._time())

    def _failed(self, target: _Target) -> None:
        """No address answered."""
        target.failures += 1
        self._changed()
        if target.failures == 1 and target.reasons:
            _log.info("cannot reach %s: %s", target.sighting.name or target.sighting.key, target.reasons)
        if target.deadline is None and target.member is not None and target.member.state is not State.DEAD:
            self._await_handshake(target)
        if target.gone:
            self._drop(target)
        elif target.retry is None and not self._closed:
            pause = backoff(target.failures - 1, self._config.backoff, self._config.max_backoff, self._random)
            target.retry = self._loop.call_later(pause, self._try_again, target)

    def _try_again(self, target: _Target) -> None:
        target.retry = None
        self._consider(target)

    def _hopeless(self, target: _Target, rejection: tuple[int, str]) -> bool:
        """Whether a rejection means that this sighting will never do; it is dropped then."""
        code, text = rejection
        if code == Code.ALREADY_EXISTS:  # ourselves
            self._drop(target)
            return True
        if target.sighting.id is None:  # a static address: another node may answer there later
            return False
        if code == Code.NOT_FOUND:  # another incarnation answers at this address: this one is gone
            if not target.dialing:
                self._drop(target)
                return True
            return False
        if code in (Code.FAILED_PRECONDITION, Code.UNIMPLEMENTED, Code.UNAUTHENTICATED):
            _log.warning("%s will not talk to us: %s", target.sighting.name or target.sighting.key, text)
        return False

    def _left(self, target: _Target) -> None:
        """The node said goodbye. Its incarnation never comes back; at a static address a successor may."""
        member = target.member
        target.member = None
        if member is not None:
            self._members.remove(member)
        if target.sighting.id is not None or target.gone:
            self._drop(target)
        else:
            self._failed(target)

    def _drop(self, target: _Target) -> None:
        self._cancel_timers(target)
        self._targets.pop(target.sighting.key, None)
        self._changed()
        for link in [*target.dialing, *([target.first] if target.first else [])]:
            self._by_link.pop(link, None)
            link.close()
        member = target.member
        if member is not None and member.link is None:
            if member.state in (State.NEW, State.SUSPECT, State.IDLE):
                self._members.happen(member, Event.NO_HANDSHAKE, self._time())
            self._members.remove(member)

    def _cancel_timers(self, target: _Target) -> None:
        for timer in (target.retry, target.deadline):
            if timer is not None:
                timer.cancel()
        target.retry = target.deadline = None
