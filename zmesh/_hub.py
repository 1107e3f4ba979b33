"""The links of a node: routes what they tell to the calling half, the serving half and the dialer, and keeps time."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from typing import Final

from ._bulk_door import BulkDoor
from ._client import Client
from ._core import messages as m
from ._core.members import LEVEL_LASTS, Member, Members
from ._core.messages import Hello, Message
from ._core.peer import Event, State
from ._core.timing import Deadlines
from ._dialer import Dialer
from ._link import Attempt, Link, Stage
from ._platform import clock_of
from ._security import Gate, PermissionFile
from ._server import Server
from ._transport import Channel, Transport
from ._waiter import Stepper
from ._watch import Watch
from .config import Config
from .errors import Code

__all__ = ["Hub"]

_log = logging.getLogger("zmesh.node")

_BUSY_TICKS: Final = 5  # looks at silence per heartbeat while calls are open: suspicion is at most 50 ms late
_CATCH_UP_EVERY: Final = 5.0  # seconds between looks for what calls that came late may have behind them
_CATCH_UP_AGAIN: Final = 0.125  # seconds after one before the next, where the loop stood still
_SHORTEST_LOOK: Final = 0.02  # seconds for which what has arrived is read at once
_LONGEST_LOOK: Final = 0.25
_CLOSING: Final = 1.0  # seconds that generators have to close when their node leaves: some never would


class Hub:
    """See the module. `LinkOwner` of every link."""

    client: Client
    dialer: Dialer
    reply_received: Callable[[Link, Attempt, Message, float], None]
    call_received: Callable[[Link, Message, int, float], None]
    replies_received: Callable[[Link, Message, float], None]
    calls_received: Callable[[Link, Message, int, float], None]
    server: Server | None = None
    bulk: BulkDoor | None = None

    def __init__(
        self,
        *,
        config: Config,
        identity: Hello,
        transport: Transport,
        jitter: Callable[[], float],
        gate: Gate | None = None,
        permissions: PermissionFile | None = None,
    ) -> None:
        """jitter: a random number in [0, 1). gate: of a secured node; permissions: of one that has such a file."""
        self.config = config
        self.identity = identity
        self.tag = m.tag_of(identity.id)
        self.transport = transport
        self.deadlines: Deadlines[Callable[[], None]] = Deadlines(self._arm)
        self.members: Members[Link] = Members(self._member_changed, jitter)
        self._jitter = jitter
        self._loop = asyncio.get_running_loop()
        self._time = clock_of(self._loop)
        self.stepper = Stepper(self._loop)
        self._accepted: dict[Link, None] = {}
        self._deadline_timer: asyncio.TimerHandle | None = None
        self._deadline_armed = float("inf")
        self._tick_timer: asyncio.TimerHandle | None = None
        self._tick_due = 0.0
        self._part = 0  # of a heartbeat; all links are looked at in the first, those that wait in each
        self._caught_up = -math.inf
        self._all_left: asyncio.Event = asyncio.Event()
        self.call_received = self._refuse_call
        self.calls_received = self._refuse_calls
        self.observer: Callable[[Member[Link], State], None] | None = None
        self.watch = None if gate is None else Watch(gate, self._links, permissions)

    def start(self, client: Client, dialer: Dialer, server: Server | None) -> None:
        self.client, self.dialer, self.server = client, dialer, server
        self.reply_received = client.replied
        self.replies_received = client.row_replied
        if server is not None:
            self.call_received = server.received
            self.calls_received = server.row_received
        self._schedule_tick()

    def accept(self, channel: Channel) -> Link:
        """Somebody dialed us."""
        link = Link(self, dialed=False)
        link.channel = channel
        self._accepted[link] = None
        return link

    # -- LinkOwner

    def hello(self, expects: bytes | None) -> Hello:
        if expects is None:
            return self.identity
        return Hello(
            **{name: getattr(self.identity, name) for name in Hello.__slots__ if name != "expects"}, expects=expects
        )

    def admits(self, link: Link, hello: Hello) -> tuple[int, str] | None:
        ours = self.identity
        if self.watch is not None and (refusal := self.watch.admits(link, hello)) is not None:
            return refusal
        if hello.id == ours.id:
            return Code.ALREADY_EXISTS, "this is the node that dialed"
        if hello.mesh != ours.mesh:
            return (
                Code.FAILED_PRECONDITION,
                f"{ours.name!r} belongs to mesh {ours.mesh!r}, {hello.name!r} to {hello.mesh!r}: "
                "give both the same --mesh or ZMESH_MESH",
            )
        if link.expects is not None and hello.id != link.expects:
            return Code.NOT_FOUND, f"{hello.name!r} answers where another incarnation was expected"
        if hello.expects is not None and hello.expects != ours.id:
            return Code.NOT_FOUND, f"another incarnation than the one expected answers here: {ours.name!r}"
        if not link.dialed and self.server is not None and self.server.draining:
            return Code.UNAVAILABLE, f"{ours.name!r} is leaving"
        return None

    def link_opened(self, link: Link) -> None:
        if link.dialed:
            self.dialer.opened(link)
        elif link.remote is not None:  # so that handlers can call back; it is no peer that calls are balanced over
            hello = link.remote
            link.member = Member(hello.id, hello.name, hello.addresses, self._time(), self._jitter)
            link.member.hello, link.member.link, link.member.state = hello, link, State.ALIVE

    def link_heard(self, link: Link) -> None:
        self._happen(link, Event.HEARD)

    def link_writable(self, link: Link) -> None:
        self.client.resume()

    def link_silent(self, link: Link) -> None:
        self._happen(link, Event.SILENCE)
        self.client.second_attempts(link)

    def link_draining(self, link: Link) -> None:
        self._happen(link, Event.DRAIN)

    def link_drained(self, link: Link) -> None:
        link.goodbye()

    def link_closed(self, link: Link, reason: str, *, goodbye: bool) -> None:
        if link.dialed:
            self.dialer.closed(link, reason, goodbye=goodbye)
        else:
            self._accepted.pop(link, None)
        if not self._accepted:
            self._all_left.set()
        self.client.link_closed(link)
        if self.server is not None:
            self.server.link_closed(link)

    def _refuse_call(self, link: Link, message: Message, waited: int, now: float) -> None:
        number: int = message[1]  # type: ignore[assignment]
        link.fail(number, Code.UNIMPLEMENTED, f"{self.identity.name!r} offers no services", ran=False)

    def limit_broken(self, link: Link, limit: str, what: str) -> None:
        where = "?" if link.channel is None else link.channel.remote
        address = where.rpartition(":")[0] or where  # without the port, which is another each time
        name = "" if link.remote is None else f"{link.remote.name!r}: "
        self.transport.refusals.note(limit, address, f"{name}{what}", self._time())

    def _refuse_calls(self, link: Link, row: Message, waited: int, now: float) -> None:
        for message in m.single([row]):
            self._refuse_call(link, message, waited, now)

    def cancel_received(self, link: Link, call: int) -> None:
        if self.server is not None:
            self.server.cancelled(link, call)

    def report_received(self, link: Link, report: Message) -> None:
        member = link.member
        if member is not None:
            now = self._time()
            member.report(report, now)
            if report[4] or member.shedding:
                self.members.sheds(member, "", report[4], now + LEVEL_LASTS)  # type: ignore[arg-type]

    def stats(self) -> dict[str, object]:
        """What the serving half did since it started."""
        return {} if self.server is None else self.server.stats()

    def report(self, link: Link) -> Message | None:
        return None if self.server is None else self.server.report(link)

    # -- time

    def _arm(self) -> None:
        """A deadline was put down: make sure that the timer is not later."""
        due = self.deadlines.next()
        if due is None or due >= self._deadline_armed:
            return
        if self._deadline_timer is not None:
            self._deadline_timer.cancel()
        self._deadline_armed = due
        self._deadline_timer = self._loop.call_at(due, self._deadlines_due, due)

    def _deadlines_due(self, due: float) -> None:
        self._deadline_timer = None
        self._deadline_armed = float("inf")
        now = self._time()
        if now - due > self.config.heartbeat / 2:  # we stood still: an answer that has arrived is no timeout
            self._poll(now - due)
            self.client.judge.stood_still = now
        for item in self.deadlines.due(now):
            item()
        self._arm()

    def _schedule_tick(self) -> None:
        busy = any(member.link is not None and member.link.waits for member in self.members.linked)
        pause = self.config.heartbeat / _BUSY_TICKS if busy else self.config.heartbeat
        self._part = (self._part + 1) % _BUSY_TICKS if busy else 0
        self._tick_due = self._time() + pause
        self._tick_timer = self._loop.call_at(self._tick_due, self._tick)

    def _tick(self) -> None:
        now = self._time()
        links = self._links()
        if now - self._tick_due > self.config.heartbeat / 2:
            # The process was stopped, or its loop stood still: silence is no evidence, and what has arrived
            # meanwhile (answers, cancels, goodbyes) is handled before anything is judged.
            _log.debug("the loop stood still for %.3f s", now - self._tick_due)
            self._poll(now - self._tick_due)
            for link in links:
                link.pardon(now)
            self.client.judge.stood_still = now
        whole = not self._part
        for link in links:
            if whole or link.waits:
                link.tick(now)
        self.members.tick(now, whole)
        if whole:
            for member in self.members.linked:
                if member.link is not None:
                    member.round_trip = member.link.round_trip
        self._schedule_tick()

    def catch_up(self, stood_still: float) -> None:
        """Handle everything that has arrived, where the loop stood still for so long, or longer by its own tick; else
        only if that was not done for a while, as others may have kept the calls that came late."""
        now = self._time()
        stood_still = max(stood_still, now - self._tick_due)
        if now - self._caught_up > (_CATCH_UP_AGAIN if stood_still > self.config.heartbeat / 4 else _CATCH_UP_EVERY):
            self._poll(stood_still)

    def _poll(self, stood_still: float) -> None:
        """Read what has come in a pause: within a fraction of it, so that a flood does not make the next."""
        self.transport.poll(min(max(stood_still / 4, _SHORTEST_LOOK), _LONGEST_LOOK))
        self._caught_up = self._time()

    # -- ending

    async def drain(self, grace: float) -> None:
        """Let every caller go by the protocol's handshake, bounded by `grace` seconds."""
        if self.server is None:
            return
        self.server.draining = True
        until = self._time() + grace
        for link in list(self._accepted):
            if link.stage is Stage.OPEN:
                link.drain()
            elif link.stage is Stage.CONNECTING:
                self._accepted.pop(link, None)
                link.close()
        await self.server.drained(grace)
        await self._left(max(until - self._time(), 0.0))
        for link in list(self._accepted):  # they did not acknowledge in time
            link.goodbye()
        await self._left(self.config.redial_within)

    async def _left(self, seconds: float) -> None:
        """Wait until every caller has closed its link."""
        try:
            async with asyncio.timeout(seconds):
                while self._accepted:
                    self._all_left.clear()
                    await self._all_left.wait()
        except TimeoutError:
            pass

    def close(self) -> None:
        """Close everything; open calls end with an error."""
        for timer in (self._deadline_timer, self._tick_timer):
            if timer is not None:
                timer.cancel()
        if self.watch is not None:
            self.watch.close()
        self.client.close(f"node {self.identity.name!r} is closed")
        links = self._links()
        self.dialer.close()
        for link in links:
            link.close(linger=self.config.redial_within)
            self.client.link_closed(link)
        if self.server is not None:
            self.server.stop()
        self.transport.close()

    async def closed(self) -> None:
        """After `close`: wait, for a while, until the handlers and streams of arguments that it ended are closed."""
        tasks = [*self.client.sources, *(self.server.workers if self.server is not None else ())]
        others = [task for task in tasks if task is not asyncio.current_task()]
        if others:
            await asyncio.wait(others, timeout=_CLOSING)

    # -- inside

    def _links(self) -> list[Link]:
        return [*self._accepted, *self.dialer.links()]

    def _happen(self, link: Link, event: Event) -> None:
        member = link.member
        if member is not None and member.link is link and link.dialed:
            self.members.happen(member, event, self._time())

    def _member_changed(self, member: Member[Link], before: State) -> None:
        _log.info("%s: %s -> %s", member.name, before.value, member.state.value)
        if self.observer is not None:
            self.observer(member, before)
        if member.state is State.ALIVE:
            self.client.resume()
            self.client.look_for_others()
