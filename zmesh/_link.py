"""One link: the connection to one peer, from its handshake to its end. Batches what is sent, keeps the sender's clock,
pings when it is quiet, and hands calls and answers to the two halves of the node.

A link is dialed by the side that wants to call, but knows no client and server: either side may number calls on it.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, cast

from ._bulk import Bulk
from ._bulk_door import BulkDoor
from ._core import messages as m
from ._core.credit import share_of, weigh
from ._core.messages import LIMIT, Hello, Message, ProtocolError
from ._core.timing import QueueClock, expand
from ._core.wire import decode, is_plain, length_of_row
from ._outbox import Outbox
from ._platform import clock_of
from ._transport import Channel, Frame
from ._waiter import Stepper
from .config import Config
from .errors import Code

if TYPE_CHECKING:
    from ._client import Outgoing
    from ._core.members import Member
    from ._server import Running
    from ._shares import Share

__all__ = ["Attempt", "Link", "LinkOwner", "Stage"]

_log = logging.getLogger("zmesh.link")

_ORDINARY: Final = (Code.UNAVAILABLE, Code.NOT_FOUND, Code.ALREADY_EXISTS)  # rejections that mean no harm
_LOGGED: Final = (Code.INVALID_ARGUMENT, Code.RESOURCE_EXHAUSTED)  # by `limit_broken`, and not each time
_REPORT_EVERY: Final = 0.005  # seconds: as fresh as balancing can use, and no cost to each of many small answers
_REPLY: Final = m.REPLY  # by a name of this module: on the path of every call
_CALL: Final = m.CALL
_CALLS: Final = {  # the classes of what a CALL holds
    (int, int, str, int, arguments, metadata) for arguments in m.ARGUMENT_TYPES for metadata in (dict, type(None))
}
_LIGHT: Final = 256  # bytes of an envelope of which nobody asks how many calls it has, and how much memory they take
_LIGHT_MESSAGE: Final = 256  # the same of one message
_SWELL: Final = 8  # times their size that CBOR items take in memory, as small integers and texts do
_GREETING: Final = 64 * 1024  # bytes of an envelope before HELLO: a stranger does not make us decode more


class Stage(enum.Enum):
    """How far a link has come."""

    CONNECTING = "connecting"  # no HELLO from the other side yet
    OPEN = "open"
    LEAVING = "leaving"  # one side drains: no new calls from the other
    CLOSED = "closed"


_CLOSED: Final = Stage.CLOSED  # a member of an enumeration, looked up once and not at every message


class Attempt(NamedTuple):
    """One try at a call, over one link."""

    call: Outgoing
    member: Member[Link]
    link: Link
    sequence: int
    started: float


# A NamedTuple's own __new__ is a Python function; this is C throughout.
_new_attempt: Final = cast("Callable[[tuple[object, ...]], Attempt]", partial(tuple.__new__, Attempt))


class LinkOwner(Protocol):
    """The node, as a link sees it."""

    config: Config
    tag: int
    stepper: Stepper
    bulk: BulkDoor | None
    """Where bulk connections come from; None where large values go as all else does."""
    reply_received: Callable[[Link, Attempt, Message, float], None]
    """The REPLY or ERROR to an attempt, which is no longer in `link.pending`, and the time."""
    call_received: Callable[[Link, Message, int, float], None]
    """A CALL, for how many milliseconds it stood in queues, and the time."""
    replies_received: Callable[[Link, Message, float], None]
    """A REPLIES, and the time. What is answered is taken out of `link.pending` there."""
    calls_received: Callable[[Link, Message, int, float], None]
    """A CALLS, as a CALL."""

    def hello(self, expects: bytes | None) -> Hello:
        """What to say of ourselves."""

    def admits(self, link: Link, hello: Hello) -> tuple[int, str] | None:
        """None, or the status code and text with which a link is rejected."""

    def link_opened(self, link: Link) -> None:
        """The other side's HELLO was accepted: `link.remote` is set."""

    def link_heard(self, link: Link) -> None:
        """Something came after the link had been reported silent."""

    def link_writable(self, link: Link) -> None:
        """It takes calls again after its queue had been full."""

    def link_silent(self, link: Link) -> None:
        """Nothing came for `suspect_after` while calls of ours were open."""

    def link_draining(self, link: Link) -> None:
        """The peer leaves: it takes no new calls."""

    def link_drained(self, link: Link) -> None:
        """The peer has acknowledged our drain, and nothing of its runs here any more."""

    def link_closed(self, link: Link, reason: str, *, goodbye: bool) -> None:
        """The link is over. `goodbye`: the peer said so. `link.pending` and `link.running` hold what was open."""

    def limit_broken(self, link: Link, limit: str, what: str) -> None:
        """A peer went beyond a limit."""

    def cancel_received(self, link: Link, call: int) -> None:
        """A CANCEL."""

    def report_received(self, link: Link, report: Message) -> None:
        """A load report."""

    def report(self, link: Link) -> Message | None:
        """Our load report for this peer; None where we serve nothing."""


class Link:
    """See the module. `Handler` of its channel."""

    def __init__(self, owner: LinkOwner, *, dialed: bool, expects: bytes | None = None) -> None:
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._time = clock_of(self._loop)
        self._config = owner.config
        self.dialed = dialed
        self.expects = expects
        self.channel: Channel | None = None
        self.stage = Stage.CONNECTING
        self.usable = False  # whether a new call may go over it: open, and not blocked by a peer that does not read
        self.remote: Hello | None = None
        self.member: Member[Link] | None = None  # whose link this is, once it was chosen for our calls
        self.rejection: tuple[int, str] | None = None  # what the other side said when it refused the link
        self.round_trip: float | None = None
        self.pending: dict[int, Attempt] = {}  # our calls over this link, by number
        self.running: dict[int, Running] = {}  # the peer's calls that we run, by number
        self.share: Share | None = None  # what those hold, once one of them needs a closer look
        self.weight = 0  # bytes of memory that each message of the envelope at hand takes, where that is much
        self.sequence = 0  # of our calls; its low 31 bits are the number on the wire
        self.to = 0  # the tag of the peer's incarnation; 0 until it is known
        self.suspected = False
        self.acknowledged = False  # the peer answered our DRAIN
        self._draining = False  # we said DRAIN
        self._said_goodbye = False
        self._last_received: int | None = None
        self._queue_clock = QueueClock()
        self._born = self._heard = self._busy_since = self._time()
        self._given_up = float("-inf")  # when the first call began that was given up since `_heard`, if one was
        self._pinged: tuple[int, float] = (0, 0.0)
        self.full = False  # whether the peer does not read: what can wait does
        self.owes_report = False  # answers leave, and with them a report, unless one left a moment ago
        self.next_report = 0.0
        self.limit = owner.config.max_message  # the largest frame that the peer takes, in bytes
        self._outbox = Outbox(self, self._loop, owner.config)
        self.bulk: Bulk | None = None  # the second connection, for large values, where both sides do that
        self.post = self._outbox.post  # send a message with everything else that is ready in this turn of the loop
        self._post_call = self._outbox.call
        self.open_row, self.row_closed = self._outbox.open_row, self._outbox.row_closed  # of items of a stream
        self.replace = self._outbox.replace
        self.reply_flat = self._outbox.reply  # as `reply`, for scalars, alone or in a dict or list, and no metadata
        self._complained = False  # about a bad message of the peer's: once per link is enough for the log

    # -- what the rest of the node asks for

    def call(self, call: Outgoing, member: Member[Link], now: float, remaining: int) -> Attempt:
        """Number and send a call. Raises TypeError or ValueError for a value without a form on the wire."""
        target, arguments = call.target, call.arguments
        plain = call.plain or not target.buffers or is_plain(arguments)
        if not plain:
            arguments = self._outbox.externalize(arguments)
        pending = self.pending
        sequence = self.sequence + 1
        number = sequence & LIMIT
        while number in pending:  # a call that has been open for 2**31 others
            sequence += 1
            number = sequence & LIMIT
        self.sequence = sequence
        if not pending:
            self._busy_since = now
        attempt = pending[number] = _new_attempt((call, member, self, sequence, now))
        if plain and not call.marked:
            post = self._post_call
            post(number, target.path, remaining, arguments, call.request_metadata)
        else:
            message: Message = [m.CALL, number, target.path, remaining, arguments, call.request_metadata]
            if call.marked:
                message += call.marks()
            self.post(message)
        return attempt

    def like(self, call: Outgoing, timeout: float) -> None:
        """What the call that was just sent has in common with others that may follow it at once."""
        self._outbox.like = call.target, call.request_metadata, timeout

    def call_again(self, call: Outgoing, member: Member[Link], now: float, timeout: float) -> bool:
        """As `call`, for one on which nothing was tried yet, where it differs from the one before it by its arguments
        alone; whether it does. timeout: seconds that its caller gave it."""
        outbox, number = self._outbox, self.sequence + 1
        if (
            outbox.next != number
            or outbox.like != (call.target, call.request_metadata, timeout)
            or call.marked
            or not call.plain
        ):
            return False
        self.sequence = number
        attempt = self.pending[number] = _new_attempt((call, member, self, number, now))
        call.attempts, call.tries = (attempt,), 1
        member.in_flight += 1
        member.called_at = now
        outbox.join(call.arguments)
        return True

    def credit(self, number: int, answer: bool, items: int) -> None:
        """Let the peer send so many more items of a stream."""
        self.post([m.CREDIT, number, answer, items])

    @property
    def diverts(self) -> bool:
        """Whether some messages go by the bulk connection now."""
        return self._outbox.divert is not None

    def item(self, number: int, answer: bool, sequence: int, value: object) -> None:
        """Send an item of a stream. Raises TypeError or ValueError for a value without a form on the wire."""
        value = self._outbox.externalize(value, (number, not answer))
        self.post([m.ITEM, number, answer, sequence & LIMIT, value])

    def cancel(self, number: int) -> None:
        """Give up a call of ours; an answer that still comes is ignored."""
        attempt = self.pending.pop(number, None)
        if attempt is not None:
            if self._given_up <= self._heard:
                self._given_up = attempt.started
            if self.bulk is not None:
                self.bulk.drop(number, ours=True)
            self.post([m.CANCEL, number])

    def reply(self, number: int, value: object, metadata: Mapping[str, str | bytes] | None, buffers: bool) -> None:
        """Answer a call of the peer's. Raises TypeError or ValueError for a value without a form on the wire.

        buffers: whether the value may hold large binary values.
        """
        if buffers and not is_plain(value):
            value = self._outbox.externalize(value, (number, False))
        self.owes_report = True
        self.post([m.REPLY, number, value, metadata])

    def fail(self, number: int, code: int, text: str, *, ran: bool, fields: dict[str, object] | None = None) -> None:
        """Answer a call of the peer's with an error. `ran`: whether the handler was started."""
        self.owes_report = True
        if fields is not None:
            try:
                fields = self._outbox.externalize(fields, (number, False))  # type: ignore[assignment]
            except (TypeError, ValueError) as error:
                text, fields = f"{text} (its details were left out: {error})", None
        self.post([m.ERROR, number, code, text, ran, fields])

    def drain(self) -> None:
        """Tell the peer that we leave; `link_drained` follows when its calls are done."""
        if self.stage is Stage.OPEN:
            self.stage = Stage.LEAVING
            self.usable = False
            self._draining = True
            self.post([m.DRAIN])

    def flush(self) -> None:
        """Send what was posted now."""
        self._outbox.flush()

    def settled(self) -> None:
        """A call of the peer's has ended here (the server half says so after taking it out of `running`)."""
        idle = not self.running and (self.bulk is None or not self.bulk.busy)  # which says so once more
        if self._draining and self.acknowledged and idle and not self._said_goodbye:
            self._owner.link_drained(self)

    def goodbye(self) -> None:
        """Say the last word. A dialed link closes at once; an accepted one when the peer has answered or is gone."""
        if self.stage in (Stage.OPEN, Stage.LEAVING) and not self._said_goodbye:
            if self.bulk is not None:
                for number in self.bulk.unheard_calls():
                    self.fail(number, Code.UNAVAILABLE, "the node left before the call had come", ran=False)
            self._said_goodbye = True
            self.post([m.GOODBYE, self._last_received])
            self._outbox.flush()
            if self.dialed:
                self.close(linger=self._config.redial_within)

    def close(self, linger: float = 0.0) -> None:
        """End the link without telling the owner."""
        if self.stage is Stage.CLOSED:
            return
        self.stage = Stage.CLOSED
        self.usable = False
        self._outbox.close()
        if self.bulk is not None:
            self.bulk.close()
        if self.channel is not None:
            self.channel.close(linger)

    def pardon(self, now: float) -> None:
        """After a local pause silence is no evidence."""
        self._heard = max(self._heard, now)
        self._busy_since = max(self._busy_since, now)
        self._born = max(self._born, now)

    @property
    def waits(self) -> bool:
        """Whether the peer owes us a word. That a call was given up since we last heard of it, for a hedge's answer or
        at its deadline, is none: else a node that hangs would never be suspect where no call stays with it."""
        return bool(self.pending) or self._given_up > self._heard

    def tick(self, now: float) -> None:
        """Judge silence; ping where it is quiet. Called some times per heartbeat."""
        config = self._config
        if self.stage is Stage.CONNECTING:
            if now - self._born >= config.handshake_timeout:
                self._end("no HELLO within the handshake's time: no zmesh node, or one that does not answer")
            return
        quiet = now - self._heard
        waits = self.waits
        interval = config.heartbeat if waits or self.running else config.idle_heartbeat * (1 if self.dialed else 2)
        number, when = self._pinged
        if quiet >= interval and now - when >= interval:
            self._pinged = ((number + 1) & LIMIT, now)
            self.post([m.HEARTBEAT, self._pinged[0], None, self._owner.report(self)])
        since = self._busy_since if self._given_up <= self._heard else min(self._busy_since, self._given_up)
        if waits and not self.suspected and now - max(self._heard, since) >= config.suspect_after:
            self.suspected = True
            self._owner.link_silent(self)

    # -- what the channel tells

    def opened(self) -> None:
        self._send_hello()

    def received(self, frames: list[Frame]) -> None:
        if self.stage is _CLOSED:  # a stranger that was refused and goes on: said once, not read again
            return
        now, owner = self._time(), self._owner
        light = len(frames) == 1 and len(frames[0]) <= _LIGHT
        if not light and self.remote is None and (len(frames) > 1 or len(frames[0]) > _GREETING):
            self.violation(f"more than one frame of {_GREETING} bytes before HELLO")
            return
        try:
            to, clock, messages = decode(frames)
        except ProtocolError as error:
            self.violation(str(error))
            return
        if to != owner.tag and (to or self.stage is not Stage.CONNECTING):
            self.violation(f"an envelope for another incarnation ({to:08x}, this is {owner.tag:08x})")
            return
        if not light or self.weight:
            calls = m.count_calls(messages)
            if calls > m.MAX_CALLS:
                self.violation(f"{calls} calls in one envelope, at most {m.MAX_CALLS} are allowed")
                return
            self.weight = _weigh(frames, max(calls, len(messages)))
        waited = self._queue_clock.waited(clock, int(now * 1000))
        self._heard = now
        if self.suspected:
            self.suspected = False
            owner.link_heard(self)
        stepper, outbox = owner.stepper, self._outbox  # as `gather`, without the call
        stepper.gathering = outbox.armed = True
        try:
            self._handle(messages, waited, now)
        finally:
            try:
                stepper.step()
            finally:
                outbox.release(others=len(self.pending) + len(self.running) > 1)

    def gather(self, handle: Callable[..., None], *what: object) -> None:
        """Handle what came: all of it before the tasks that it wakes go on; then, at once, what they send leaves."""
        stepper, outbox = self._owner.stepper, self._outbox
        stepper.gathering = outbox.armed = True
        try:
            handle(*what)
        finally:
            try:
                stepper.step()
            finally:
                outbox.release(others=len(self.pending) + len(self.running) > 1)

    def _handle(self, messages: list[Any], waited: int, now: float) -> None:
        """Messages of one envelope, which stood `waited` ms in queues."""
        owner = self._owner
        met = self.remote is not None
        for message in messages:
            # The two that there are many of, in their usual form: as `check` has it, without the call.
            fields = len(message) if met and type(message) is list else 0
            if fields == 4:
                kind, number, _, metadata = message
                if type(kind) is int and kind == _REPLY and type(number) is int and metadata is None:
                    attempt = self.pending.pop(number, None)
                    if attempt is not None:
                        owner.reply_received(self, attempt, message, now)
                    continue
            elif fields == 6 and tuple(map(type, message)) in _CALLS:
                kind, number, _, remaining, _, metadata = message
                if (
                    kind == _CALL
                    and 0 <= remaining <= LIMIT
                    and 0 <= number <= LIMIT
                    and (metadata is None or m.is_metadata(metadata))
                ):
                    if not self._said_goodbye:  # which promised that this one does not run
                        self._last_received = number
                        owner.call_received(self, message, waited, now)
                    continue
            self.handle(message, waited, now)
            if self.stage is _CLOSED:
                return
            met = self.remote is not None

    def handle(self, message: Any, waited: int, now: float) -> None:
        """One message of whatever kind and form, which stood `waited` ms in queues."""
        try:
            kind = m.check(message)
        except ProtocolError as error:
            if self.remote is None:
                self.violation(str(error))
            else:
                self._bad_message(message, str(error))
            return
        if self.remote is None and kind not in (m.HELLO, m.REJECT):
            self.violation(f"message kind {kind} before HELLO")
        elif kind == m.REPLY or kind == m.ERROR:
            self._answer_received(message, now)
        elif kind == m.REPLIES:
            self._owner.replies_received(self, message, now)
        elif kind == m.CALLS:
            if not self._said_goodbye and message[4]:
                self._last_received = (message[1] + len(message[4]) - 1) & LIMIT
                self._owner.calls_received(self, message, waited, now)
        elif kind == m.CALL:
            if not self._said_goodbye:
                self.call_came(message[1])
                self._owner.call_received(self, message, waited, now)
        elif kind == m.ITEMS or kind == m.CREDIT or kind == m.ITEM or kind == m.END:
            self._stream_received(kind, message)
        elif m.PLACE <= kind <= m.NO_BULK and self.bulk is not None:
            try:
                self.bulk.control(kind, message, waited, now)
            except ProtocolError as error:
                self.violation(str(error))
        else:
            self._control(kind, message)

    def call_came(self, number: int) -> None:
        """A CALL, or its place. One that comes by the bulk connection may come behind later ones."""
        last = self._last_received
        if last is None or (number - last) & LIMIT <= LIMIT // 2:
            self._last_received = number

    def _answer_received(self, message: Any, now: float) -> None:
        attempt = self.pending.pop(message[1], None)
        if attempt is not None:  # else we gave it up
            self._owner.reply_received(self, attempt, message, now)

    def closed(self, reason: str) -> None:
        self._end(reason)

    def _stream_received(self, kind: int, message: Any) -> None:
        """Something of a stream, for a call that is open; what comes for one that is over was on its way."""
        number = message[1]
        try:
            if kind == m.ITEM or kind == m.ITEMS:
                _, _, answer, sequence, value = message[:5]
                if number not in (self.pending if answer else self.running):
                    return
                items, size = ([value], weigh(value)) if kind == m.ITEM else _row(value)
                if answer:
                    attempt = self.pending[number]
                    attempt.call.items_received(attempt, sequence, items, size)
                else:
                    self.running[number].items_received(sequence, items, size)
            elif kind == m.END:
                if number in self.running:
                    self.running[number].items_ended(message[2])
            elif message[2]:
                if number in self.running:
                    self.running[number].credited(message[3])
            elif number in self.pending:
                attempt = self.pending[number]
                attempt.call.credited(attempt, message[3])
        except ProtocolError as error:
            self._bad_message(message, str(error))

    def _control(self, kind: int, message: Message) -> None:
        """Everything that is not on the hot path."""
        if kind == m.HEARTBEAT:
            self._heartbeat(message)
        elif kind == m.CANCEL:
            if self.bulk is not None:
                self.bulk.give_up(message[1])  # type: ignore[arg-type]
            self._owner.cancel_received(self, message[1])  # type: ignore[arg-type]
        elif kind == m.HELLO:
            self._hello(message)
        elif kind == m.REJECT:
            self.rejection = (message[1], message[2])  # type: ignore[assignment]
            left = self.remote is not None and message[1] != Code.UNAUTHENTICATED
            self._end(f"rejected by the other side: {message[2]}", goodbye=left)
        elif kind == m.DRAIN:
            self.stage = Stage.LEAVING
            self.usable = False
            self._owner.link_draining(self)
            self.post([m.DRAIN_ACK])  # behind every call that we have sent
        elif kind == m.DRAIN_ACK:
            self.acknowledged = True
            self.settled()
        elif kind == m.GOODBYE:
            self._goodbye(message)
        elif kind == m.UNSUPPORTED:
            self._complain(f"does not know message kind {message[1]} of ours")
        else:
            self._complain(f"sent message kind {kind}, which this version does not know")
            self.post([m.UNSUPPORTED, kind])

    def _hello(self, message: Message) -> None:
        if self.remote is not None:
            self.violation("a second HELLO")
            return
        if message[1] != m.MAJOR:
            self._reject(
                Code.UNIMPLEMENTED,
                f"protocol version {message[1]}.{message[2]} is not spoken here, {m.MAJOR}.{m.MINOR} is: "
                "use one zmesh release on both sides",
            )
            return
        try:
            hello = Hello.parse(message)
        except ProtocolError as error:
            self.violation(str(error))
            return
        rejection = self._owner.admits(self, hello)
        self.to = m.tag_of(hello.id)
        if rejection is not None:
            self._reject(*rejection)
            return
        self.remote = hello
        self.limit = hello.max_message
        if self._owner.bulk is not None:
            self.bulk = self._owner.bulk.meet(self, self._outbox, hello)
        if not self.dialed:
            self._send_hello()
        else:
            self.round_trip = self._time() - self._born
        self.stage = Stage.OPEN
        self.usable = True
        self._owner.link_opened(self)

    def _send_hello(self) -> None:
        hello, door = self._owner.hello(self.expects), self._owner.bulk
        if door is not None:
            hello = replace(hello, bulk=door.offer(self))
        self.post(hello.message())
        self._outbox.flush()

    def _heartbeat(self, message: Message) -> None:
        _, ping, pong, report = message[:4]
        if report is not None:
            self._owner.report_received(self, report)  # type: ignore[arg-type]
        if pong is not None and pong == self._pinged[0]:
            self.round_trip = self._time() - self._pinged[1]
        if ping is not None:
            self.post([m.HEARTBEAT, None, ping, self._owner.report(self)])

    def _goodbye(self, message: Message) -> None:
        last = message[1]
        if self.dialed:
            # Its answer lets the other side leave at once instead of after its grace.
            self.post([m.GOODBYE, self._last_received])
            self._outbox.flush()
        if last is None:
            self.last_run = 0
        else:
            self.last_run = expand(last, self.sequence + 1)  # type: ignore[arg-type]
        self._end("the node has left", goodbye=True, linger=self._config.redial_within)

    ended = "lost"  # why it is over, once it is
    last_run: int | None = None  # after GOODBYE: the last of our calls that the peer took; later ones never ran

    # -- what the outbox asks for

    def report_now(self, now: float) -> Message | None:
        """The load report that leaves with answers, where the last one is not of a moment ago: see `next_report`."""
        self.owes_report = False
        self.next_report = now + _REPORT_EVERY
        report = self._owner.report(self)
        return None if report is None else [m.HEARTBEAT, None, None, report]

    def unsendable(self, message: Message, why: str) -> None:
        """A message cannot leave: its own call fails, and nothing else."""
        number: int = message[1]  # type: ignore[assignment]
        if message[0] == m.CALL:
            attempt = self.pending.pop(number, None)
            if attempt is not None:
                error: Message = [m.ERROR, number, Code.INVALID_ARGUMENT, f"the call {why}", False, None]
                self._loop.call_soon(self._owner.reply_received, self, attempt, error, self._time())
        elif message[0] == m.REPLY:
            self.fail(number, Code.INTERNAL, f"the result {why}", ran=True)
        elif message[0] == m.ITEM and message[2]:
            running, text = self.running.get(number), f"item {message[3]} of the answer {why}"
            if running is not None:
                running.unsendable(text)
            else:  # its REPLY was on the same page, and is not sent
                self.fail(number, Code.INTERNAL, text, ran=True)
        elif message[0] == m.ITEM:
            if number in self.pending:
                self.pending[number].call.unsendable(f"number {message[3]} {why}")
        elif message[0] == m.ERROR and message[5] is not None:
            self.post([*message[:3], f"{message[3]} (its details were left out: the error {why})", message[4], None])
        else:
            _log.error("dropped a message of kind %s to %s: it %s", message[0], self.label, why)

    def blocked(self) -> None:
        """The transport takes no more for now."""
        self.usable = False
        self.full = True

    def unblocked(self) -> None:
        """It takes everything again."""
        self.usable = self.stage is Stage.OPEN
        self.full = False
        for attempt in self.pending.values():
            if attempt.call.outlet is not None:
                attempt.call.outlet.wake()
        for running in self.running.values():
            if running.outlet is not None:
                running.outlet.wake()
        self._owner.link_writable(self)

    def give_up(self, reason: str) -> None:
        """End the link from the next turn on: whoever is sending is not told in the middle of it."""
        self.usable = False
        self._loop.call_soon(self._end, reason)

    # -- ending

    @property
    def flushed(self) -> int:
        """The sequence of our last call that was handed to the transport."""
        return self._outbox.flushed

    def left(self, attempt: Attempt) -> bool:
        """Whether a call of ours may have left this process."""
        left = attempt.sequence <= self.flushed
        return left if self.bulk is None else left and self.bulk.left(attempt.sequence & LIMIT)

    @property
    def tag(self) -> int:
        """Of our own incarnation."""
        return self._owner.tag

    @property
    def key(self) -> str | None:
        """The public key that the other side has proven to own; None where the link is not secured."""
        return None if self.channel is None else self.channel.key

    @property
    def label(self) -> str:
        """Who is at the other end, for people."""
        where = self.channel.remote if self.channel is not None else "?"
        return f"{self.remote.name!r} at {where}" if self.remote is not None else where

    def _bad_message(self, message: object, why: str) -> None:
        """One message is wrong: its call is answered where it has a number, the rest of the envelope goes on."""
        self._complain(f"sent a bad message: {why}")
        if not (isinstance(message, list) and len(message) > 1):
            return
        if type(message[0]) is int and message[0] in (m.CALLS, m.REPLIES):
            self._bad_row(message, why)
            return
        kind, number = message[0], message[1]
        if type(kind) is not int or type(number) is not int or not 0 <= number <= LIMIT:
            return  # not even comparable: a numpy array stands where the kind should
        if kind == m.CALL and not self._said_goodbye:
            self.fail(number, Code.INVALID_ARGUMENT, f"malformed CALL: {why}"[:500], ran=False)
        direction = message[2] if len(message) > 2 else None  # what says neither may have been for either
        ours, item = kind in (m.REPLY, m.ERROR), kind in (m.ITEM, m.ITEMS)
        if number in self.pending and (
            ours or (item and direction is not False) or (kind == m.CREDIT and direction is not True)
        ):
            if not ours:
                self.post([m.CANCEL, number])
            answer: Message = [m.ERROR, number, Code.INTERNAL, f"the answer was malformed: {why}"[:500], True, None]
            self._owner.reply_received(self, self.pending.pop(number), answer, self._time())
        if number in self.running and (
            kind == m.END or (item and direction is not True) or (kind == m.CREDIT and direction is not False)
        ):
            self.running[number].broken(f"malformed stream: {why}"[:500])

    def _bad_row(self, row: Message, why: str) -> None:
        """Something is wrong in a row of calls or answers: each is handled by itself, as far as they can be told."""
        for message in m.single([row]):
            if message is not row:
                self.handle(message, 0, self._heard)
            elif row[0] == m.CALLS:
                self._bad_message([m.CALL, row[1]], why)

    def _complain(self, text: str) -> None:
        _log.log(logging.DEBUG if self._complained else logging.WARNING, "%s %s", self.label, text)
        self._complained = True

    def violation(self, why: str) -> None:
        """What came is not this protocol: the link is over."""
        if self.stage is Stage.CLOSED:
            return
        text = f"not the zmesh protocol: {why}"
        self.limit_broken("protocol", f"{text}; its link was closed")
        self._reject(Code.INVALID_ARGUMENT, text)

    def limit_broken(self, limit: str, what: str) -> None:
        """Count, and once in a while log, that the peer went beyond a limit."""
        self._owner.limit_broken(self, limit, what)

    def cut_off(self, limit: str, why: str) -> None:
        """Close the link of a peer that floods, and keep its address away for a while."""
        if self.stage is not _CLOSED:
            self.limit_broken(limit, f"{why}; its link was closed")
            if self.channel is not None:
                self.channel.penalize()
            self._reject(Code.RESOURCE_EXHAUSTED, why)

    def _reject(self, code: int, text: str) -> None:
        level = logging.DEBUG if code in _LOGGED else logging.INFO if code in _ORDINARY else logging.WARNING
        _log.log(level, "refused the link with %s: %s", self.label, text)
        self.post([m.REJECT, code, text[:500]])
        self._outbox.flush()
        self._end(f"refused here: {text}", linger=self._config.redial_within)

    def revoke(self, code: int, text: str) -> None:
        """End the link for a reason that is told to both sides."""
        if self.stage is not _CLOSED:
            self._reject(code, text)

    def _end(self, reason: str, *, goodbye: bool = False, linger: float = 0.0) -> None:
        if self.stage is not Stage.CLOSED:
            self.ended = reason
            self.close(linger)
            self._owner.link_closed(self, reason, goodbye=goodbye)


def _row(encoded: bytes) -> tuple[bytes, int]:
    """A row, and what each of its items weighs. Raises ProtocolError where it is none."""
    return encoded, share_of(len(encoded), length_of_row(encoded))


def _weigh(frames: list[Frame], messages: int) -> int:
    """Bytes of memory that each message of an envelope takes, about; 0 where that is little."""
    size = len(frames[0])
    if not messages or (len(frames) == 1 and size <= _LIGHT_MESSAGE * messages):
        return 0
    others = sum(frame.nbytes if isinstance(frame, memoryview) else len(frame) for frame in frames[1:])
    return (size * _SWELL + others) // messages
