"""A second implementation of docs/protocol.md, written from that page alone: blocking, small, nothing from zmesh.

`Dialer` connects, `Listener` binds; links are the same on both sides, so each of them calls and serves.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator
from typing import Any

import cbor2
import zmq
from zmq.utils.monitor import recv_monitor_message

HELLO, REJECT, CALL, REPLY, ERROR, CANCEL, HEARTBEAT, DRAIN, DRAIN_ACK, GOODBYE, UNSUPPORTED, CALLS, REPLIES = range(
    1, 14
)
ITEM, END, CREDIT, ITEMS = 16, 17, 18, 19
INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND, ALREADY_EXISTS = 3, 4, 5, 6
FAILED_PRECONDITION, UNIMPLEMENTED, UNAVAILABLE = 9, 12, 14
WRAP, WINDOW, OUT_OF_BAND, LARGE = 2**31, 60_000, 64077, 16 * 1024
TAKE, OVER = object(), object()  # what the generator of a stream yields to be given an item; given behind the last
LATER = object()  # what a handler returns whose call somebody answers later, or nobody


def milliseconds() -> int:
    return time.monotonic_ns() // 1_000_000


def tag_of(id: bytes) -> int:
    return (int.from_bytes(id[:4], "big") >> 1) or 1


def expand(number: int, below: int) -> int:
    return below - 1 - ((below - 1 - number) % WRAP)


def outward(value: Any, frames: list[bytes]) -> Any:
    if isinstance(value, bytes) and len(value) > LARGE:
        frames.append(value)
        return cbor2.CBORTag(OUT_OF_BAND, len(frames))
    if isinstance(value, dict):
        return {key: outward(item, frames) for key, item in value.items()}
    return [outward(item, frames) for item in value] if isinstance(value, list) else value


def inward(value: Any, frames: list[bytes]) -> Any:
    if isinstance(value, cbor2.CBORTag) and value.tag == OUT_OF_BAND:
        if not 1 <= value.value < len(frames):
            raise ValueError(f"no frame {value.value}")
        return frames[value.value]
    if isinstance(value, dict):
        return {key: inward(item, frames) for key, item in value.items()}
    return [inward(item, frames) for item in value] if isinstance(value, list) else value


class Status(Exception):
    """A failed call (or a refused link), here or there."""

    def __init__(self, code: int, text: str, ran: bool = True, fields: dict[str, Any] | None = None) -> None:
        super().__init__(code, text)
        self.code, self.text, self.ran, self.fields = code, text, ran, fields or {}


class QueueClock:
    """Section 9."""

    base: int | None = None
    previous: int | None = None

    def waited(self, sent: int, now: int) -> int:
        if self.base is None:
            self.base, self.since, self.current = now - sent, now, 0
            return 0
        offset = (now - sent - self.base + 2**30) % WRAP - 2**30
        if now - self.since >= WINDOW:
            self.previous = None if now - self.since >= 2 * WINDOW else self.current
            self.current, self.since = offset, now
        else:
            self.current = min(self.current, offset)
        least = self.current if self.previous is None else min(self.current, self.previous)
        return max(0, offset - least)


def weigh(value: Any) -> int:
    if isinstance(value, dict):
        return 8 + sum(weigh(key) + weigh(item) for key, item in value.items())
    if isinstance(value, list):
        return 8 + sum(map(weigh, value))
    return 8 + len(value) if isinstance(value, (str, bytes)) else 8


class Stream:
    """A call with streams that we serve. Its generator yields TAKE, or an item of the answer."""

    def __init__(self, link: Link, number: int, takes: bool, answers: bool, steps: Generator[Any, Any, Any]) -> None:
        self.link, self.number, self.answers, self.steps = link, number, answers, steps
        limits = link.remote.get("limits", {})
        self.items, self.bytes = limits.get("items", 16), limits.get("bytes", 65_536)
        self.under_way, self.sent, self.most = deque[int](), 0, 0  # weights; the most items that were under way
        self.inbox, self.received, self.taken, self.weight, self.ended = deque[Any](), 0, 0, 0, not takes
        self.wanted: Any = None
        self.takes = takes

    def begin(self) -> None:
        if self.takes:
            self.link.begun(self.number)
            self.link.outbox.append([CREDIT, self.number, False, 0])
        self.advance(None)

    def advance(self, given: Any, *, resume: bool = False) -> None:
        """Go on as far as items and credit allow."""
        while True:
            if not resume:
                try:
                    self.wanted = self.steps.send(given)
                except StopIteration as finished:
                    self.link.streams.pop(self.number, None)
                    value = self.sent % WRAP if self.answers else finished.value
                    return self.link.answer(self.number, value, {"served": "elsewhere"})
            resume, given = False, None
            if self.wanted is TAKE:
                if not self.inbox and not self.ended:
                    return None
                given = self.take() if self.inbox else OVER
            elif len(self.under_way) < self.items and sum(self.under_way) < self.bytes:
                self.sent += 1
                before = len(self.link.frames)
                item = outward(self.wanted, self.link.frames)
                if self.sent % 2 and len(self.link.frames) == before:
                    row = cbor2.dumps([item])
                    self.under_way.append(len(row))
                    self.link.outbox.append([ITEMS, self.number, True, self.sent % WRAP, row])
                else:
                    self.under_way.append(weigh(self.wanted))
                    self.link.outbox.append([ITEM, self.number, True, self.sent % WRAP, item])
                self.most = max(self.most, len(self.under_way))
                self.link.begun(self.number)
            else:
                return None

    def take(self) -> Any:
        value, weight = self.inbox.popleft()
        self.taken, self.weight = self.taken + 1, self.weight + weight
        if self.taken * 2 >= 16 or self.weight * 2 >= 65_536:  # the defaults: our HELLO has no limits
            self.link.outbox.append([CREDIT, self.number, False, self.taken])
            self.taken = self.weight = 0
        return value

    def item(self, sequence: int, value: Any, weight: int) -> None:
        self.received += 1
        if sequence != self.received % WRAP or self.ended or len(self.inbox) + self.taken >= 16:
            return self.fail("an item out of place")
        self.inbox.append((value, weight))
        return self.advance(None, resume=True)

    def end(self, items: int) -> None:
        if items != self.received % WRAP or self.ended:
            return self.fail("an end out of place")
        self.ended = True
        return self.advance(None, resume=True)

    def credit(self, items: int) -> None:
        if items > len(self.under_way):
            return self.fail("credit for more than is under way")
        for _ in range(items):
            self.under_way.popleft()
        return self.advance(None, resume=True)

    def fail(self, text: str) -> None:
        self.link.streams.pop(self.number, None)
        if self.link.running.pop(self.number, None) is not None:
            self.link.outbox.append([ERROR, self.number, INVALID_ARGUMENT, text, True, None])


class Link:
    def __init__(self, peer: Peer, transmit: Callable[[list[bytes]], None], expects: bytes | None = None) -> None:
        self.peer, self.transmit, self.expects = peer, transmit, expects
        self.remote: dict[str, Any] = {}  # the fields of the other side's HELLO
        self.clock, self.heard = QueueClock(), milliseconds()
        self.outbox: list[list[Any]] = []
        self.frames: list[bytes] = []
        self.over: str | None = None  # why
        self.calls, self.opened = 0, dict[int, int]()  # our counter; number -> counter of our open calls
        self.answers: dict[int, Any] = {}  # number -> (value, metadata), or Status
        self.running, self.last = dict[int, float](), None  # number -> deadline of their calls; the last one taken
        self.streams, self.until_begun = dict[int, Stream](), set[int]()
        self.pings, self.pongs = 0, list[list[Any]]()
        self.drained = self.acknowledged = self.goodbye = False

    def flush(self) -> None:
        if self.outbox:
            tag = tag_of(self.remote["id"]) if self.remote else 0
            envelope = [tag, milliseconds() % WRAP, self.outbox]
            self.transmit([cbor2.dumps(envelope), *self.frames])
            self.outbox, self.frames = [], []

    def greet(self) -> None:
        more = {} if self.expects is None else {"expects": self.expects}
        self.outbox.append([HELLO, 1, 0, {**self.peer.hello, **more}])

    def refuse(self, code: int, text: str) -> None:
        self.outbox.append([REJECT, code, text])
        self.flush()
        self.over = text

    def received(self, frames: list[bytes]) -> None:
        if self.over is not None:
            return None
        try:
            to, sent, messages = cbor2.loads(frames[0], max_depth=72, allow_indefinite=False)[:3]
            if to != self.peer.tag and (self.remote or to != 0):
                raise ValueError(f"this is not {to:x}")
            messages = [inward(message, frames) for message in messages]
        except Exception as error:
            return self.refuse(INVALID_ARGUMENT, str(error))
        self.heard = milliseconds()
        waited = self.clock.waited(sent, self.heard)
        for message in messages:
            if self.over is None:
                self.handle(message, waited)
        if any(message[0] in (REPLY, ERROR) for message in self.outbox):
            self.outbox.append([HEARTBEAT, None, None, self.report()])
        self.flush()
        return None

    def handle(self, message: list[Any], waited: int) -> None:
        match message:
            case [2, code, text, *_]:
                self.over, self.rejected = text, Status(code, text, ran=False)
            case [1, major, _, fields, *_] if not self.remote:
                self.check_hello(major, fields)
            case _ if not self.remote:
                self.refuse(INVALID_ARGUMENT, "HELLO comes first")
            case [3, number, path, remaining, arguments, metadata, *more]:
                self.until_begun.discard(number)
                if more[:1] == [True]:
                    self.until_begun.add(number)
                self.take_call(number, path, remaining - waited, arguments, metadata)
            case [4, number, value, metadata, *_] if self.opened.pop(number, None):
                self.answers[number] = (value, metadata)
            case [5, number, code, text, ran, fields, *_] if self.opened.pop(number, None):
                self.answers[number] = Status(code, text, ran, fields)
            case [12, first, path, remaining, every, *shared]:
                for place, arguments in enumerate(every):
                    metadata = shared[0] if shared else None
                    self.take_call((first + place) % WRAP, path, remaining - waited, arguments, metadata)
            case [13, numbers, values, *_]:
                for number, value in zip(numbers, values, strict=True):
                    if self.opened.pop(number, None):
                        self.answers[number] = (value, None)
            case [6, number, *_]:
                self.streams.pop(number, None)
                if self.running.pop(number, None) is not None:
                    self.peer.cancelled.append(number)
            case [7, ping, pong, report, *_]:
                if ping is not None:
                    self.outbox.append([HEARTBEAT, None, ping, self.report()])
                if pong is not None:
                    self.pongs.append([pong, report])
            case [8, *_]:
                self.drained = True
                self.outbox.append([DRAIN_ACK])
            case [9, *_]:
                self.acknowledged = True
            case [10, last, *_]:
                self.settle(last)
                self.peer.left(self)
                self.goodbye, self.over = True, "GOODBYE"
            case [16, number, False, sequence, value, *_] if number in self.streams:
                self.streams[number].item(sequence, value, weigh(value))
            case [19, number, False, first, row, *_] if number in self.streams:
                values = cbor2.loads(row)
                for place, value in enumerate(values):
                    self.streams[number].item((first + place) % WRAP, value, -(-len(row) // len(values)))
            case [17, number, items, *_] if number in self.streams:
                self.streams[number].end(items)
            case [18, number, True, items, *_] if number in self.streams:
                self.streams[number].credit(items)
            case [kind, *_] if kind == 0 or (kind > REPLIES and kind not in (ITEM, END, CREDIT, ITEMS)):
                self.outbox.append([UNSUPPORTED, kind])

    def check_hello(self, major: int, fields: dict[str, Any]) -> None:
        if major != 1:
            return self.refuse(UNIMPLEMENTED, "I speak version 1")
        if not (isinstance(fields.get("id"), bytes) and len(fields["id"]) == 16):
            return self.refuse(INVALID_ARGUMENT, "no id")
        if fields["id"] == self.peer.hello["id"]:
            return self.refuse(ALREADY_EXISTS, "that is me")
        if fields.get("mesh") != self.peer.hello["mesh"]:
            return self.refuse(FAILED_PRECONDITION, f"my mesh is {self.peer.hello['mesh']}")
        if fields.get("expects") not in (None, self.peer.hello["id"]) or self.expects not in (None, fields["id"]):
            return self.refuse(NOT_FOUND, "another incarnation")
        if self.peer.leaving:
            return self.refuse(UNAVAILABLE, "leaving")
        self.remote = fields
        return self.peer.greeted(self)

    def take_call(self, number: int, path: str, left: int, arguments: Any, metadata: Any) -> None:
        self.last = number
        try:
            if left <= 0:
                raise Status(DEADLINE_EXCEEDED, "expired on its way", ran=False)
            if path in self.peer.streams:
                takes, answers, function = self.peer.streams[path]
                self.running[number] = milliseconds() + left
                self.streams[number] = stream = Stream(self, number, takes, answers, function(arguments))
                stream.begin()
                return
            if path not in self.peer.handlers:
                raise Status(UNIMPLEMENTED, f"no {path} here", ran=False)
            self.running[number] = milliseconds() + left
            answer = self.peer.handlers[path](self, number, arguments, metadata)
            if answer is not LATER:
                self.answer(number, *answer)
        except Status as status:
            self.running.pop(number, None)
            self.outbox.append([ERROR, number, status.code, status.text, status.ran, status.fields or None])

    def begun(self, number: int) -> None:
        if number in self.until_begun:
            self.until_begun.discard(number)
            self.running[number] = float("inf")

    def answer(self, number: int, value: Any, metadata: Any = None) -> None:
        if self.running.pop(number, None) is not None:
            self.outbox.append([REPLY, number, outward(value, self.frames), metadata])

    def report(self) -> list[Any]:
        return [sum(len(link.running) for link in self.peer.links()), len(self.running), None, 0, 0, 0]

    def call(self, path: str, arguments: Any, remaining: int = 5_000, metadata: Any = None) -> int:
        self.calls += 1
        number = self.calls % WRAP
        self.opened[number] = self.calls
        self.outbox.append([CALL, number, path, remaining, outward(arguments, self.frames), metadata])
        self.flush()
        return number

    def settle(self, last: int | None) -> None:
        taken = 0 if last is None else expand(last, self.calls + 1)
        for number, counter in self.opened.items():
            ran = counter <= taken
            self.answers[number] = Status(2, "unknown", ran) if ran else Status(UNAVAILABLE, "never ran", ran)
        self.opened.clear()

    def tick(self) -> None:
        for number in [number for number, deadline in self.running.items() if deadline <= milliseconds()]:
            del self.running[number]
            self.streams.pop(number, None)
            self.outbox.append([ERROR, number, DEADLINE_EXCEEDED, "too long", True, None])
        if self.opened and milliseconds() - self.heard >= 250:
            self.ping()
        self.flush()

    def ping(self) -> None:
        self.pings += 1
        self.outbox.append([HEARTBEAT, self.pings, None, self.report()])


class Peer:
    """What is common to both ends. `handlers`: path -> function(link, number, arguments, metadata)."""

    def __init__(self, mesh: str, handlers: dict[str, Callable[..., Any]], services: list[list[str]]) -> None:
        self.hello: dict[str, Any] = {"id": os.urandom(16), "name": "other", "mesh": mesh, "services": services}
        self.tag = tag_of(self.hello["id"])
        self.handlers, self.leaving = handlers, False
        self.cancelled: list[int] = []
        # path -> (takes a stream, answers one, generator function(arguments))
        self.streams: dict[str, tuple[bool, bool, Callable[[Any], Generator[Any, Any, Any]]]] = {}

    def links(self) -> list[Link]:
        raise NotImplementedError

    def turn(self) -> None:
        raise NotImplementedError

    def greeted(self, link: Link) -> None: ...

    def left(self, link: Link) -> None: ...

    def run_until(self, done: Callable[[], Any], timeout: float = 5.0) -> None:
        end = time.monotonic() + timeout
        while not done():
            if time.monotonic() > end:
                raise TimeoutError
            self.turn()
            for link in self.links():
                if link.over is None and link.remote:
                    link.tick()


class Dialer(Peer):
    def __init__(
        self,
        address: str,
        mesh: str,
        *,
        expects: bytes | None = None,
        handlers: dict[str, Callable[..., Any]] | None = None,
        services: list[list[str]] | None = None,
        says: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(mesh, handlers or {}, services or [])
        self.hello.update(says or {})
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.linger = 200
        self.socket.setsockopt(zmq.RECONNECT_IVL, 10**9)
        self.socket.setsockopt(zmq.HEARTBEAT_IVL, 250)
        self.socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 750)
        monitor = self.socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self.socket.connect(address)
        self.link = Link(self, self.socket.send_multipart, expects)
        try:
            if not monitor.poll(1000):
                raise TimeoutError("no ZMTP handshake")
            recv_monitor_message(monitor)
            self.socket.disable_monitor()
            self.link.greet()
            self.link.flush()
            self.run_until(lambda: self.link.remote or self.link.over)
            if self.link.over:
                raise self.link.rejected
        except BaseException:
            self.context.destroy(linger=0)
            raise

    def links(self) -> list[Link]:
        return [self.link]

    def turn(self) -> None:
        if self.socket.poll(10):
            self.link.received(self.socket.recv_multipart())

    def left(self, link: Link) -> None:
        link.outbox.append([GOODBYE, link.last])
        link.flush()

    def wait(self, number: int) -> Any:
        self.run_until(lambda: number in self.link.answers)
        answer = self.link.answers.pop(number)
        if isinstance(answer, Status):
            raise answer
        return answer

    def cancel(self, number: int) -> None:
        del self.link.opened[number]
        self.link.outbox.append([CANCEL, number])
        self.link.flush()

    def close(self) -> None:
        if self.link.over is None:
            self.left(self.link)
        self.context.destroy(linger=200)


class Listener(Peer):
    def __init__(self, mesh: str, handlers: dict[str, Callable[..., Any]], services: list[list[str]]) -> None:
        super().__init__(mesh, handlers, services)
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.linger = 200
        self.address = f"tcp://127.0.0.1:{self.socket.bind_to_random_port('tcp://127.0.0.1')}"
        self.hello["addresses"] = [self.address]
        self.by_routing_id: dict[bytes, Link] = {}

    def links(self) -> list[Link]:
        return list(self.by_routing_id.values())

    def turn(self) -> None:
        if self.socket.poll(10):
            routing_id, *frames = self.socket.recv_multipart()
            if routing_id not in self.by_routing_id:
                transmit = lambda frames: self.socket.send_multipart([routing_id, *frames])  # noqa: E731
                self.by_routing_id[routing_id] = Link(self, transmit)
            self.by_routing_id[routing_id].received(frames)

    def greeted(self, link: Link) -> None:
        link.greet()

    def drain(self) -> None:
        """Leave as section 11 says."""
        self.leaving = True
        links = [link for link in self.links() if link.over is None and link.remote]
        for link in links:
            link.outbox.append([DRAIN])
        self.run_until(lambda: all(link.over or (link.acknowledged and not link.running) for link in links))
        for link in links:
            if link.over is None:
                link.outbox.append([GOODBYE, link.last])
                link.flush()
        self.run_until(lambda: all(link.over for link in links))

    def close(self) -> None:
        self.context.destroy(linger=200)
