"""The second connection of a link, for messages with large values: opened by who dialed the link when the first such
message is there, and told to be of that link by a token. `_core.bulk` has the rules.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING, Any, Final

from ._core import messages as m
from ._core.bulk import Arrivals, CallKey, Departure, Departures, Event, Pace, Place, Stage, call_of, follow
from ._core.messages import LIMIT, BulkOffer, Message, ProtocolError
from ._core.wire import MARGIN, decode, encode
from ._platform import clock_of
from ._transport import Channel, Frame, Sent

if TYPE_CHECKING:
    from ._bulk_door import BulkDoor
    from ._link import Link
    from ._outbox import Outbox

__all__ = ["PORT", "Bulk", "beside", "open_envelope"]

_log = logging.getLogger("zmesh.bulk")

_RETRY_FULL: Final = 0.005  # seconds until a full queue is tried again
_GREETING: Final = 64 * 1024  # bytes of an envelope before HELLO, as on any connection
PORT: Final = re.compile(r":(\d+|\*)$")


class Bulk:
    """The bulk connection of one link, or that there is none. `Handler` of its channel, where we dial it."""

    def __init__(self, link: Link, outbox: Outbox, door: BulkDoor, remote: BulkOffer, token: bytes) -> None:
        self.token = token
        self.aside: list[Frame] | None = None  # large values of the message that is posted next
        self._link = link
        self._outbox = outbox
        self._door = door
        self._loop = asyncio.get_running_loop()
        self._time = clock_of(self._loop)
        self._port = remote.port
        self._stage = Stage.NONE
        self._channel: Channel | None = None
        self._of_use = False  # whether anything was taken, here or there, since it was joined
        self._timer: asyncio.TimerHandle | None = None
        self._departures = Departures(remote.window)
        self._pace = Pace()
        self._arrivals = Arrivals(door.window)

    # -- what the link asks for

    def takes(self, size: int, call: CallKey | None) -> bool:
        """Whether a message with so many bytes in frames is to go this way. call: unless it begins with this."""
        if not self.usable:
            return False
        return self._departures.waits(call) or (size > self._door.above and not self._nobody_waits(size, call))

    def _nobody_waits(self, size: int, call: CallKey | None) -> bool:
        """Whether a large message may go as all else does: it would be there at once, and no other call is open."""
        link = self._link
        others = len(link.pending) + len(link.running) - (call is not None)
        return not others and self._pace.at_once(size, self._time())

    @property
    def usable(self) -> bool:
        """Whether large messages are to go this way."""
        return self._stage is not Stage.OFF

    @property
    def busy(self) -> bool:
        """Whether anything is under way, either way."""
        return bool(self._departures) or bool(self._arrivals.awaited)

    def divert(self, message: Message) -> Message | None:
        """What is posted in place of a message: PLACE, where it goes by bulk; None where it cannot leave."""
        aside, self.aside = self.aside, None
        call = call_of(message)
        if call is None or (aside is None and not self._departures.waits(call)):
            return message
        number = (self._departures.placed + 1) & LIMIT
        try:
            envelope = encode(self._link.to, self._clock(), [[m.BULK, number, message]])
        except (TypeError, ValueError) as error:
            self._link.unsendable(message, f"has a value without a form on the wire: {error}")
            return None
        if len(envelope) > self._link.limit:
            self._link.unsendable(message, f"is {len(envelope)} bytes beside its binary values: send those as bytes")
            return None
        departure = _departure(call, [envelope, *(aside or ())], message[0] == m.CALL)
        if departure.size > self._link.limit + MARGIN:
            why = f"is {departure.size} bytes; {self._link.label} takes {self._link.limit}: split them, or stream them"
            self._link.unsendable(message, why)
            return None
        self._departures.add(departure)
        self._go_on()  # its place leaves with this turn of the loop: it is there long before
        return [m.PLACE, number, message[0], call[0]]

    def drop(self, number: int, *, ours: bool) -> None:
        """Nobody wants what was to be sent of a call; `ours`: it was made here. What did not leave need not."""

        def nothing(placed: int) -> Departure:
            return _departure(call, [encode(self._link.to, self._clock(), [[m.BULK, placed & LIMIT, None]])])

        call = (number, ours)
        self._departures.drop(call, nothing)

    def give_up(self, number: int) -> None:
        """The peer gave up a call of its own: what comes of it is not handled."""
        for place in self._arrivals.awaited:
            if place.number == number and place.kind == m.CALL:  # what follows is for no open call then
                place.given_up = True
        self.drop(number, ours=False)

    def unheard_calls(self) -> list[int]:
        """The numbers of calls that were placed and have not come; they do not run any more."""
        calls = [place for place in self._arrivals.awaited if place.kind == m.CALL and not place.given_up]
        for place in calls:
            place.given_up = True
        return [place.number for place in calls]

    def left(self, number: int) -> bool:
        """Whether a call of ours may have left this process."""
        return self._departures.left((number, True))

    def close(self) -> None:
        """The link is over, and with it this."""
        self._stop_timer()
        self._stage = Stage.OFF
        self._outbox.divert = None
        self._door.forget(self.token)
        if self._channel is not None:
            self._channel.hang_up()
            self._channel = None

    # -- what comes by the control connection

    def control(self, kind: int, message: Any, waited: int, now: float) -> None:
        """PLACE, BULK, TAKEN or NO_BULK. Raises ProtocolError where it may not come."""
        m.check_bulk(message)
        if kind == m.PLACE:
            place = Place(message[2], message[3], waited, now)
            if place.kind == m.CALL:
                self._link.call_came(place.number)
            early = self._arrivals.place(message[1], place)
            if early is not None:
                self._handle(place, *early, now)
            elif self._stage is Stage.NONE and self._link.dialed:
                self._dial()
        elif kind == m.BULK:
            self._come(message, now, 0)
        elif kind == m.TAKEN:
            self._of_use = True
            self._departures.taken(message[1])
            if not self._departures.under_way:
                self._pace.rested(now)
            self._go_on()
            self._settle()
        else:
            self._switch_off(Event.REFUSED)

    # -- what the bulk connection tells

    def opened(self) -> None:
        door, channel = self._door, self._channel
        assert channel is not None
        channel.send([encode(self._link.to, self._clock(), [door.greeting(self.token)])])

    def received(self, frames: list[Frame]) -> None:
        """A message by the bulk connection, which is shaken hands over or was dialed here."""
        link = self._link
        try:
            messages = open_envelope(frames, link.tag, greeted=self._stage is not Stage.DIALING, dialed=link.dialed)
            if self._stage is Stage.DIALING:
                self._greeted(messages)
                return
            now = self._time()
            size = sum(map(len, frames))
            for message in messages:
                kind = m.check(message)
                if kind == m.REJECT:
                    self._fail("the other side knows it no more")
                elif kind != m.BULK:
                    raise ProtocolError("a bulk connection carries BULK and nothing else")
                elif self._stage is not Stage.OFF:
                    m.check_bulk(message)  # type: ignore[arg-type]
                    link.gather(self._come, message, now, size)
        except ProtocolError as error:
            link.violation(f"by its bulk connection: {error}")

    def closed(self, reason: str) -> None:
        self._channel = None
        self._stop_timer()
        if self._stage is Stage.OPEN and self._of_use:
            self._step(Event.LOST)
            _log.info("lost the bulk connection with %s: %s", self._link.label, reason)
            self._once_more()
            if self.busy:
                self._dial()
        elif self._stage is not Stage.OFF:
            self._fail(reason)

    def join(self, channel: Channel) -> None:
        """A bulk connection of this link stands: what was not taken by a former one is sent once more."""
        if self._channel is not None and self._channel is not channel:
            self._channel.close()
        self._channel = channel
        self._stop_timer()
        self._of_use = False
        self._step(Event.JOINED)
        self._once_more()
        self._go_on()

    # -- inside

    def _step(self, event: Event) -> None:
        self._stage = follow(self._stage, event)

    def _clock(self) -> int:
        return int(self._time() * 1000) & LIMIT

    def _dial(self) -> None:
        link = self._link
        assert link.channel is not None
        self._step(Event.WANTED)
        address = beside(link.channel.remote, self._port)
        try:
            self._channel = self._door.transport.dial(address, self, link.key, bulk=True)
        except (ValueError, OSError) as error:
            within, reason = 0.0, str(error)
        else:
            within, reason = self._door.handshake_timeout, "no answer in time"
        self._timer = self._loop.call_later(within, self._fail, reason)

    def _greeted(self, messages: list[object]) -> None:
        """The answer to our HELLO."""
        message: Any = messages[0] if len(messages) == 1 else None
        kind = m.check(message)
        if kind == m.REJECT:
            self._fail(f"refused: {message[2]}")
        elif kind == m.HELLO and self._channel is not None:
            self.join(self._channel)
        else:
            raise ProtocolError(f"message kind {kind} before HELLO")

    def _fail(self, reason: str) -> None:
        """There is no bulk connection, and will be none: all goes by the control connection."""
        link = self._link
        _log.warning(
            "large values go to and from %s by the connection that all else goes by: no other one can be made (%s)",
            link.label,
            reason,
        )
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        link.post([m.NO_BULK])
        self._switch_off(Event.FAILED)

    def _switch_off(self, event: Event) -> None:
        self._step(event)
        self._stop_timer()
        self._outbox.divert = None
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        self._outbox.add_pages([list(departure.frames) for departure in self._departures.rest()])

    def _go_on(self) -> None:
        """Hand over what the window and the transport take."""
        departures = self._departures
        if self._stage is Stage.NONE and departures and self._link.dialed:
            self._dial()
        while self._stage is Stage.OPEN and self._channel is not None and (next := departures.next()) is not None:
            sent = self._channel.send(next.frames)
            if sent is Sent.TAKEN:
                departures.handed()
                self._pace.left(next.size, self._time())
                continue
            if sent is Sent.GONE and not self._link.dialed:  # the dialer sees it, too, and makes another one
                self._channel = None
                self._step(Event.LOST)
                self._once_more()
            elif self._timer is None:
                self._timer = self._loop.call_later(_RETRY_FULL, self._try_again)
            break
        if not departures:
            self._outbox.divert = None

    def _once_more(self) -> None:
        """What was not taken by a bulk connection that is lost leaves by the next one."""
        self._departures.again()
        self._pace.lost()

    def _try_again(self) -> None:
        self._timer = None
        self._go_on()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _come(self, message: Any, now: float, size: int) -> None:
        self._of_use = True
        place = self._arrivals.come(message[1], message[2], size)
        if place is not None:
            self._handle(place, message[2], size, now)

    def _handle(self, place: Place, message: Any, size: int, now: float) -> None:
        """A message of so many bytes, and its place, are both here."""
        link = self._link
        link.post([m.TAKEN, self._arrivals.handled])
        if message is not None and not place.given_up:
            if place.kind == m.CALL and len(message) > 3 and type(message[3]) is int:
                # It was on its way since its place was: that is no queue, but it takes time that the call has.
                message[3] = max(message[3] - int((now - place.when) * 1000), 0)
            beside, link.weight = link.weight, size  # of the envelope that brought its place
            try:
                link.handle(message, place.waited, now)
            finally:
                link.weight = beside
        self._settle()

    def _settle(self) -> None:
        if not self.busy:
            self._link.settled()


def _departure(call: CallKey, frames: list[Frame], begins: bool = False) -> Departure:
    return Departure(call, frames, sum(map(len, frames)), begins=begins)


def open_envelope(frames: list[Frame], tag: int, *, greeted: bool, dialed: bool) -> list[object]:
    """The messages of an envelope for us. Raises ProtocolError."""
    if not greeted and (len(frames) > 1 or len(frames[0]) > _GREETING):
        raise ProtocolError(f"more than one frame of {_GREETING} bytes before HELLO")
    to, _, messages = decode(frames)
    if to != tag and (to or (greeted and not dialed)):  # who refuses a connection may not know whose it is
        raise ProtocolError(f"an envelope for another incarnation ({to:08x}, this is {tag:08x})")
    return messages


def beside(address: str, port: int) -> str:
    """The address of bulk connections beside another one: the same host at `port`, or the same path and `-bulk`."""
    return PORT.sub(f":{port}", address) if address.startswith("tcp://") else f"{address}-bulk"
