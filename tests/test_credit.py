"""Flow control of streams: windows, credit, and the two halves of a stream over a link that is none."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

import cbor2
import numpy
import pytest
from cbor2 import CBORTag

import zmesh
from zmesh._core import messages as m
from zmesh._core.credit import ReceiveWindow, SendWindow, weigh
from zmesh._core.messages import CREDIT, END, ITEM, ITEMS, LIMIT, Hello, ProtocolError
from zmesh._core.wire import decode, encode, externalize
from zmesh._items import UNTYPED
from zmesh._streams import Inlet, Outlet

SEEDS = pytest.mark.parametrize("seeds", [range(first, first + 20) for first in range(0, 200, 20)], ids=str)


# -- what an item weighs


@pytest.mark.parametrize(
    ("value", "weight"),
    [
        (None, 8), (True, 8), (0, 8), (2**70, 8), (1.5, 8), ("", 8), ("abc", 11), ("ü☺😈", 11), (b"abc", 11),
        (bytearray(3), 11), (memoryview(bytes(3)), 11), (memoryview(bytes(16)).cast("d"), 24), ([], 8), ((), 8),
        ([1, 2], 24), ((1, "a"), 25), ({}, 8), ({"a": 1}, 25), ({"a": [1, b"xy"]}, 43), ({1: 2}, 24),
        (numpy.zeros(10), 88), (numpy.zeros((3, 4), numpy.int8), 20), (numpy.zeros(10)[::2], 48), (numpy.zeros(0), 8),
        ([numpy.zeros(2), {"b": bytearray(5)}], 62),
    ],
)  # fmt: skip
def test_what_an_item_weighs(value: object, weight: int) -> None:
    assert weigh(value) == weight


def any_value(random: random.Random, depth: int = 3) -> Any:
    kind = random.randrange(11 if depth else 8)
    if kind < 3:
        return random.choice([None, False, 0, -1, 2**31, -(2**70), 1.5, float("inf")])
    if kind < 5:
        return "aü☺😈"[random.randrange(4)] * random.choice([0, 1, 5, 3000])
    size = random.choice([0, 1, 7, 16 * 1024, 16 * 1024 + 1, 40_000])
    if kind == 5:
        return random.choice([bytes, bytearray, lambda n: memoryview(bytes(n))])(size)
    if kind == 6:
        return numpy.zeros(size, random.choice(["u1", "<i2", ">i4", "<f8", "?", "<c16"]))
    if kind == 7:
        return numpy.zeros((20, 30), random.choice(["f4", "f8"])).T[:: random.choice([1, -3])]
    values = [any_value(random, depth - 1) for _ in range(random.randrange(5))]
    if kind == 8:
        return values
    if kind == 9:
        return tuple(values)
    return {f"key {number}": value for number, value in enumerate(values)}


@SEEDS
def test_both_sides_weigh_an_item_alike(seeds: range) -> None:
    """Or else the receiver would give credit later than the sender waits for it, which may be never."""
    for seed in seeds:
        value = any_value(random.Random(seed))
        frames: list[Any] = []
        message = [ITEM, 1, True, 1, externalize(value, frames, 16 * 1024)]
        _, _, (arrived,) = decode([encode(0, 0, [message]), *map(bytes, frames)])
        assert m.check(arrived) == ITEM
        assert weigh(arrived[4]) == weigh(value), seed  # type: ignore[index]


@pytest.mark.parametrize(
    ("value", "weight"),
    [
        (2**70, 8), (-(2**300), 8), (CBORTag(0, "2026-11-22T21:30:05Z"), 8), (CBORTag(1, 1_790_000_000), 8),
        (CBORTag(4, [-2, 2715]), 8), (CBORTag(37, bytes(range(16))), 8), (CBORTag(100, 20_000), 8),
        (CBORTag(1004, "2026-11-22"), 8), (CBORTag(258, []), 8), (CBORTag(258, [1, 2, 3]), 32),
        (CBORTag(258, ["aab", b"x"]), 28), (CBORTag(258, [{"a": 1}, [2]]), 49), ({"a": CBORTag(258, [1])}, 33),
        ([CBORTag(258, [CBORTag(1004, "2026-11-22"), 2**70])], 32),
    ],
    ids=str,
)  # fmt: skip
def test_what_tags_stand_for_weighs_what_the_page_says(value: object, weight: int) -> None:
    """A sender in another language weighs what it sends, and does not know what becomes of it here."""
    _, _, (arrived,) = decode([encode(0, 0, [[ITEM, 1, True, 1, value]])])
    assert m.check(arrived) == ITEM
    assert weigh(arrived[4]) == weight  # type: ignore[index]


# -- the windows


def test_credit_for_more_than_is_under_way() -> None:
    window = SendWindow(10, 1000)
    window.credited(0)
    with pytest.raises(ProtocolError, match="credit for 1 items, and 0 were under way"):
        window.credited(1)
    window.sent(8)
    window.sent(8)
    with pytest.raises(ProtocolError, match="credit for 3 items, and 2 were under way"):
        window.credited(3)
    assert window.under_way == 2
    window.credited(2)
    assert window.under_way == 0
    assert window.room


def test_an_item_larger_than_the_window_passes_alone() -> None:
    window = SendWindow(10, 100)
    window.sent(99)
    assert window.room
    window.sent(10_000)
    assert not window.room
    window.credited(1)
    assert not window.room
    window.credited(1)
    assert window.room


def test_items_out_of_sequence() -> None:
    window = ReceiveWindow(10, 1000)
    window.arrived(1, 8)
    for wrong in (1, 3, 0):
        with pytest.raises(ProtocolError, match=f"item {wrong} of a stream came where 2 was due"):
            window.arrived(wrong, 8)
    window.arrived(2, 8)
    window.arrived(3, 8, 4)
    with pytest.raises(ProtocolError, match="item 6 of a stream came where 7 was due"):
        window.arrived(6, 8, 2)
    assert window.received == 6


def test_one_item_more_than_the_window() -> None:
    window = ReceiveWindow(3, 1000)
    window.arrived(1, 8, 2)
    with pytest.raises(ProtocolError, match="more than the 3 items that a stream may have under way"):
        window.arrived(3, 8, 2)
    window.arrived(3, 8)
    with pytest.raises(ProtocolError, match="more than the 3 items that a stream may have under way"):
        window.arrived(4, 8)


def test_twice_the_bytes_of_the_window() -> None:
    window = ReceiveWindow(10, 1000)
    for number, size in ((1, 900), (2, 900), (3, 5_000)):  # the last one at 1,800: more than a sender has room for
        window.arrived(number, size)
    with pytest.raises(ProtocolError, match="more than the 1000 bytes that a stream may have under way"):
        window.arrived(4, 8)
    assert (window.taken(900), window.taken(900), window.taken(5_000)) == (1, 1, 1)  # with credit there is room again
    window.arrived(4, 8)
    window.arrived(5, 900, 3)  # the last one at 1,808
    with pytest.raises(ProtocolError, match="more than the 1000 bytes that a stream may have under way"):
        window.arrived(8, 8)
    row = ReceiveWindow(10, 1000)
    with pytest.raises(ProtocolError, match="more than the 1000 bytes that a stream may have under way"):
        row.arrived(1, 700, 4)  # the last one at 2,100


def test_what_was_taken_and_not_credited_counts_as_under_way() -> None:
    window = ReceiveWindow(10, 1000)
    window.arrived(1, 8, 10)
    assert window.until_due(8) == 4
    assert [window.taken(8) for _ in range(2)] == [0, 0]
    assert window.until_due(8) == 2
    assert window.taken(8, 2) == 0
    with pytest.raises(ProtocolError, match="more than the 10 items"):
        window.arrived(11, 8)
    assert window.until_due(8) == 0
    assert window.taken(8) == 5


@pytest.mark.parametrize(
    ("items", "bytes", "size", "free"), [(10, 1000, 8, 4), (10, 1000, 100, 4), (10, 1000, 101, 4), (10, 1000, 126, 3),
    (10, 1000, 400, 1), (10, 1000, 500, 0), (10, 1000, 10_000, 0), (1, 1000, 8, 0), (2, 1000, 8, 0), (3, 1000, 0, 1)],
)  # fmt: skip
def test_how_many_can_be_taken_before_credit_is_due(items: int, bytes: int, size: int, free: int) -> None:
    window = ReceiveWindow(items, bytes)
    window.arrived(1, size, free + 1)
    assert window.until_due(size) == free
    assert window.taken(size, free) == 0
    assert window.taken(size) == free + 1


def test_counts_go_round_at_two_to_the_31() -> None:
    window = ReceiveWindow(10, 1000)
    window.received = LIMIT - 1
    for number in (LIMIT, 0, 1, 2):
        window.arrived(number, 8)
    window.received = LIMIT - 1
    window.arrived(LIMIT, 8, 3)
    window.arrived(2, 8)
    assert window.received == LIMIT + 3


@SEEDS
def test_windows_never_overflow_and_never_get_stuck(seeds: range) -> None:
    for seed in seeds:
        interleave_windows(random.Random(seed))


def interleave_windows(chance: random.Random) -> None:
    items, size = chance.choice([1, 2, 3, 16, 256]), chance.choice([1, 8, 100, 10_000])
    sender, receiver = SendWindow(items, size), ReceiveWindow(items, size)
    to_send = deque(chance.choice([8, 9, 50, 5_000, 20_000]) for _ in range(chance.randrange(600)))
    total = len(to_send)
    wire: deque[tuple[int, int, int]] = deque()
    waiting: deque[int] = deque()
    credit: deque[int] = deque()
    sizes: deque[int] = deque()  # of what is under way, by our own count
    numbers = itertools.count(1)

    def send() -> None:
        weight = to_send.popleft()
        row = sender.first_of(min(chance.choice([1, 1, 5, 64]), len(to_send) + 1, sender.left), weight)
        for _ in range(row - 1):  # those of a row weigh the same
            to_send.popleft()
        for _ in range(row):
            assert len(sizes) < items
            assert sum(sizes) < size
            sizes.append(weight)
        wire.append((next(numbers), weight, row))
        for _ in range(row - 1):
            next(numbers)
        sender.sent(weight, row)

    def arrive() -> None:
        number, weight, row = wire.popleft()
        receiver.arrived(number, weight, row)
        waiting.extend([weight] * row)

    def take() -> None:
        weight, count = waiting.popleft(), 1
        while waiting and waiting[0] == weight and count <= receiver.until_due(weight) and chance.random() < 0.8:
            waiting.popleft()
            count += 1
        given = receiver.taken(weight, count)
        if given:
            assert count == 1 or receiver.until_due(weight) >= 0
            credit.append(given)

    def credited() -> None:
        given = credit.popleft()
        for _ in range(given):
            sizes.popleft()
        sender.credited(given)

    while True:
        assert sender.under_way == len(sizes)
        moves: list[Callable[[], None]] = []
        if to_send and sender.room:
            moves.append(send)
        moves += [move for queue, move in ((wire, arrive), (waiting, take), (credit, credited)) if queue]
        if not moves:
            break
        chance.choice(moves)()
    assert not to_send, "stuck"
    assert receiver.received == total
    assert sender.under_way * 2 < max(items, 2)
    assert sum(sizes) * 2 < max(size, 2)


# -- an outlet, a link that is none, an inlet


class Wire:
    """A link to a peer with a window of its own: what is sent on it waits until the test lets it through."""

    def __init__(self, items: int, size: int) -> None:
        self.remote = Hello(id=bytes(16), name="peer", mesh="default", max_items=items, max_item_bytes=size)
        self.full = self.diverts = False
        self.limit = 1_000_000
        self.sent: deque[list[Any]] = deque()
        self.under_way: deque[int] = deque()
        self._open: tuple[Outlet, list[Any]] | None = None

    def item(self, number: int, answer: bool, sequence: int, value: object) -> None:
        self.post([ITEM, number, answer, sequence & LIMIT, value])

    def open_row(self, outlet: Outlet, message: list[Any]) -> None:
        if self._open is not None:  # closed by its outlet
            self._leaves(self._open[1])
        self.sent.append(message)
        self._open = (outlet, message)

    def row_closed(self, items: int) -> None:
        if self._open is not None:  # else it became several
            self._leaves(self._open[1])
            self._open = None

    def replace(self, message: list[Any], messages: list[Any]) -> None:
        place = next(place for place, each in enumerate(self.sent) if each is message)
        del self.sent[place]
        for each in reversed(messages):
            self.sent.insert(place, each)
        self._open = None
        for each in messages:
            self._leaves(each)

    def turn_page(self) -> None:
        """The row that is open leaves."""
        if self._open is not None:
            (outlet, message), self._open = self._open, None
            outlet.close_row()
            if message[4]:
                self._leaves(message)

    def post(self, message: list[Any]) -> None:
        self.turn_page()
        self.sent.append(message)
        self._leaves(message)

    def _leaves(self, message: list[Any]) -> None:
        for _, weight in items_of(message):
            assert len(self.under_way) < self.remote.max_items, "more items than the peer takes"
            assert sum(self.under_way) < self.remote.max_item_bytes, "more bytes than the peer takes"
            self.under_way.append(weight)

    @property
    def values(self) -> list[object]:
        self.turn_page()
        return [value for message in self.sent for value, _ in items_of(message)]


def items_of(message: list[Any]) -> list[tuple[object, int]]:
    """The items of a message, and what each weighs."""
    if message[0] == ITEM:
        return [(message[4], weigh(message[4]))]
    if message[0] == ITEMS:
        values = cbor2.loads(message[4])
        return [(value, -(-len(message[4]) // len(values))) for value in values]
    return []


class Peer:
    """What reads a stream at the other end of a wire, and the credit that it has sent."""

    def __init__(self, loop: asyncio.AbstractEventLoop, wire: Wire) -> None:
        self.wire = wire
        self.credit: deque[int] = deque()
        self.inlet = Inlet(
            loop, wire.remote.max_items, wire.remote.max_item_bytes, self.credit.append, UNTYPED, zmesh.Internal
        )
        self.read: list[object] = []

    def arrive(self) -> None:
        self.wire.turn_page()
        message = self.wire.sent.popleft()
        items = items_of(message)
        if items:
            self.inlet.put(message[3], [value for value, _ in items], items[0][1])
        else:
            assert message[0] == END
            self.inlet.end(message[2])

    def take(self) -> None:
        ready = self.inlet.ready
        self.read.append(ready.popleft() if ready else self.inlet.take())

    def credited(self, outlet: Outlet) -> None:
        given = self.credit.popleft()
        for _ in range(given):
            self.wire.under_way.popleft()
        outlet.credited(given)

    @property
    def at_rest(self) -> bool:
        return self.inlet.ended and not len(self.inlet)


Make = Callable[[random.Random], Coroutine[Any, Any, None]]


def interleaved(main: Make, seeds: range = range(1)) -> None:
    for seed in seeds:
        try:
            asyncio.run(asyncio.wait_for(main(random.Random(seed)), 60))
        except BaseException as error:
            error.add_note(f"with seed {seed}")
            raise


async def pump(outlet: Outlet, values: list[object], chance: random.Random) -> None:
    for value in values:
        await outlet.wait_for_room()
        for _ in range(chance.choice([0, 0, 1, 3])):  # the next item is being made
            await asyncio.sleep(0)
        outlet.send(value)
    outlet.end()


def values_of(chance: random.Random) -> list[object]:
    return [[number, "x" * chance.choice([0, 1, 50, 3000, 20_000])] for number in range(chance.choice([0, 1, 5, 300]))]


def wire_of(chance: random.Random) -> Wire:
    return Wire(chance.choice([1, 2, 5, 16, 256]), chance.choice([1, 100, 5_000, 1_000_000]))


@SEEDS
def test_everything_arrives_in_order(seeds: range) -> None:
    async def main(chance: random.Random) -> None:
        loop = asyncio.get_running_loop()
        values, outlet, wire = values_of(chance), Outlet(loop, answer=False), wire_of(chance)
        outlet.attach(wire, 1)  # type: ignore[arg-type]
        peer = Peer(loop, wire)
        peer.credit.append(0)
        sending = asyncio.create_task(pump(outlet, values, chance))
        while not (sending.done() and peer.at_rest):
            await asyncio.sleep(0)
            moves: list[Callable[[], None]] = []
            if wire.sent:
                moves.append(peer.arrive)
            if len(peer.inlet):
                moves.append(peer.take)
            if peer.credit:
                moves.append(lambda: peer.credited(outlet))
            if chance.random() < 0.2:
                wire.full = not wire.full
            if not wire.full:
                outlet.wake()
            if moves:
                chance.choice(moves)()
        await sending
        assert peer.read == values
        while peer.credit:
            peer.credited(outlet)
        assert outlet.under_way == len(wire.under_way)
        assert outlet.under_way * 2 < max(wire.remote.max_items, 2)
        assert outlet.sent == peer.inlet.received == len(values)

    interleaved(main, seeds)


@pytest.mark.parametrize(
    "attempts",
    [
        2,
        5,
    ],
)
def test_what_was_sent_is_sent_again_until_a_peer_begins(attempts: int) -> None:
    async def main(chance: random.Random) -> None:
        loop = asyncio.get_running_loop()
        values, outlet = values_of(chance), Outlet(loop, answer=False)
        given = 0
        for _ in range(attempts - 1):
            wire = wire_of(chance)
            outlet.attach(wire, 1)  # type: ignore[arg-type]
            while given < len(values) and outlet.room and chance.random() < 0.99:
                outlet.send(values[given])
                given += 1
            there = wire.values
            assert there == values[: len(there)]
            counts = [len(items_of(message)) for message in wire.sent]
            assert [message[3] for message in wire.sent] == [1 + sum(counts[:n]) for n in range(len(counts))]
        wire = wire_of(chance)
        outlet.attach(wire, 2)  # type: ignore[arg-type]
        peer = Peer(loop, wire)
        peer.credit.append(0)
        sending = asyncio.create_task(pump(outlet, values[given:], random.Random(0)))
        while not (sending.done() and peer.at_rest):
            await asyncio.sleep(0)
            if peer.credit:
                peer.credited(outlet)
            if wire.sent:
                peer.arrive()
            if len(peer.inlet):
                peer.take()
        await sending
        assert peer.read == values

    interleaved(main, range(100))


def test_an_item_that_was_begun_before_the_call_went_elsewhere_keeps_its_place() -> None:
    async def main(chance: random.Random) -> None:
        outlet = Outlet(asyncio.get_running_loop(), answer=False)
        outlet.attach(Wire(256, 1000), 1)  # type: ignore[arg-type]
        for number in range(5):
            assert outlet.room
            outlet.send(number)
        assert outlet.room
        narrow = Wire(2, 1000)
        outlet.attach(narrow, 2)  # type: ignore[arg-type]
        outlet.send(5)
        assert narrow.values == [0, 1]
        for _ in range(3):
            narrow.under_way.clear()
            outlet.credited(2)
        assert narrow.values == [0, 1, 2, 3, 4, 5]

    interleaved(main)


def test_an_ended_outlet_ends_again_elsewhere() -> None:
    async def main(chance: random.Random) -> None:
        outlet = Outlet(asyncio.get_running_loop(), answer=False)
        first, second = Wire(256, 1000), Wire(2, 1000)
        outlet.attach(first, 7)  # type: ignore[arg-type]
        for number in range(3):
            outlet.send(number)
        outlet.end()
        assert list(first.sent)[-1] == [END, 7, 3]
        outlet.attach(second, 8)  # type: ignore[arg-type]
        assert list(second.sent) == [[ITEMS, 8, False, 1, cbor2.dumps([0, 1])]]
        second.under_way.clear()
        outlet.credited(2)
        assert list(second.sent)[1:] == [[ITEMS, 8, False, 3, cbor2.dumps([2])], [END, 8, 3]]

    interleaved(main)


def test_an_inlet_refuses_what_may_not_come() -> None:
    async def main(chance: random.Random) -> None:
        credit: list[int] = []
        inlet = Inlet(asyncio.get_running_loop(), 2, 1000, credit.append, UNTYPED, zmesh.Internal)
        inlet.put(1, ["a"], 9)
        with pytest.raises(ProtocolError, match="a stream ended after 2 items, and 1 came"):
            inlet.end(2)
        assert not inlet.ended
        assert (inlet.take(), credit) == ("a", [1])
        inlet.end(1)
        with pytest.raises(ProtocolError, match="an item behind the end of its stream"):
            inlet.put(2, ["b"], 9)
        inlet.close()
        assert len(inlet) == 0

    interleaved(main)


def test_one_task_waits_at_a_time() -> None:
    async def main(chance: random.Random) -> None:
        inlet = Inlet(asyncio.get_running_loop(), 2, 1000, lambda items: None, UNTYPED, zmesh.Internal)
        first = asyncio.create_task(inlet.wait())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="two tasks read one stream at the same time; give each its own"):
            await inlet.wait()
        inlet.put(1, [None], 8)
        await first
        waiting = asyncio.create_task(inlet.wait())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        again = asyncio.create_task(inlet.wait())
        await asyncio.sleep(0)
        inlet.wake()
        await again

    interleaved(main)


def test_kinds_of_messages() -> None:
    for message in ([ITEM, 1, True, 1, None], [END, 1, 0], [CREDIT, 1, False, 0], [CREDIT, 1, True, 5, "later"],
                    [ITEMS, 1, True, 1, b"\x81\x01"]):  # fmt: skip
        assert m.check(message) == message[0]
    for wrong in (
        [ITEM, 1, True, 1], [ITEM, 1, 1, 1, None], [ITEM, -1, True, 1, None], [ITEM, 1, True, LIMIT + 1, None],
        [END, 1], [END, 1, -1], [END, "1", 1], [CREDIT, 1, True], [CREDIT, 1, None, 1], [CREDIT, 1, True, True],
        [ITEMS, 1, True, 1], [ITEMS, 1, True, 1, [1]], [ITEMS, 1, 1, 1, b"\x80"], [ITEMS, 1, True, -1, b"\x80"],
    ):  # fmt: skip
        with pytest.raises(ProtocolError):
            m.check(wrong)
