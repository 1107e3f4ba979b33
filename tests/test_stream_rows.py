"""Small items that leave together travel as one message, and each of them has its own fate all the same."""

from __future__ import annotations

import asyncio
import collections
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import cbor2
import numpy
import pytest

import zmesh
import zmesh.testing
from zmesh import _streams
from zmesh._core import messages as m
from zmesh._core.wire import decode_row, length_of_row
from zmesh._items import UNTYPED
from zmesh._streams import Outlet
from zmesh.testing import Host, Mesh

from .streaming import BOTH, ROUND_TRIP, at_rest
from .test_credit import Wire


@dataclass
class Reading:
    number: int
    text: str


class Rows(zmesh.Service):
    @zmesh.rpc
    async def readings(self, items: int, bad: int = -1) -> AsyncIterator[Reading]:
        reading = Reading(0, "")
        for reading.number in range(items):  # always the same object: it leaves as it is at each yield
            reading.text = "\ud800" if reading.number == bad else str(reading.number)
            yield reading

    @zmesh.rpc
    async def relay(self, values: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for value in values:
            yield value

    @zmesh.rpc
    async def told(self, at: list[float]) -> AsyncIterator[float]:
        loop = asyncio.get_running_loop()
        began = loop.time()
        for when in at:
            if loop.time() < began + when:
                await asyncio.sleep(began + when - loop.time())
            yield when

    @zmesh.rpc
    async def total(self, readings: AsyncIterator[Reading]) -> int:
        return sum([reading.number async for reading in readings])

    @zmesh.rpc
    async def torn(self, of: list[int]) -> AsyncIterator[Any]:
        items, size = of
        for number in range(items):
            if number % 7 == 6:
                await asyncio.sleep(0)  # a page is turned, and others may be yielded before room is asked for
            yield [number, "x" * size]
        await asyncio.sleep(0)
        raise zmesh.DataLoss("torn")

    @zmesh.rpc
    async def stubborn(self, fails: bool) -> AsyncIterator[str]:
        try:
            yield "x"
            for _ in range(5):
                yield "x" * 3_000
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            if fails:
                raise ValueError from None

    @zmesh.rpc
    async def then_wrong(self, items: int) -> AsyncIterator[Any]:
        for number in range(items):
            yield {"number": number, "text": "x"}
        yield {"number": "x", "text": "x"}
        yield {"number": 0, "text": "never read"}


class Strict(zmesh.Service, name="Rows"):
    @zmesh.rpc
    async def then_wrong(self, items: int) -> AsyncIterator[Reading]:
        yield Reading(items, "")


Pair = tuple[Host, Host, Any]


async def pair(mesh: Mesh, by_name: bool = False, **settings: Any) -> Pair:
    server = await mesh.start(Rows(), name="server", **settings)
    caller = await mesh.start(name="caller", **settings)
    return server, caller, caller.node.client("Rows" if by_name else Rows)


def listen_in(host: Host) -> list[Any]:
    """What comes to a node from now on."""
    came: list[Any] = []
    for link in host.node._hub._links():

        def heard(message: Any, waited: int, now: float, handle: Any = link.handle) -> None:
            came.append(message)
            handle(message, waited, now)

        link.handle = heard
    return came


async def read_into(read: list[Any], stream: AsyncIterator[Any]) -> None:
    async for each in stream:
        read.append(each)


def items_in(messages: list[Any]) -> list[int]:
    """How many items each message of a stream has."""
    return [
        1 if message[0] == m.ITEM else len(decode_row(message[4]))
        for message in messages
        if message[0] in (m.ITEM, m.ITEMS)
    ]


@BOTH
@zmesh.testing.simulated()
async def test_items_that_are_yielded_at_once_travel_in_rows_both_ways(mesh: Mesh, by_name: bool) -> None:
    server, caller, client = await pair(mesh, by_name)

    async def main() -> None:
        read = client.readings(items=0) if by_name else client.readings(0)
        assert [each async for each in read] == []
        here, there = listen_in(caller), listen_in(server)
        found = [each async for each in (client.readings(items=600) if by_name else client.readings(600))]
        if by_name:
            assert found == [{"number": number, "text": str(number)} for number in range(600)]
        else:
            assert found == [Reading(number, str(number)) for number in range(600)]
        assert sum(items_in(here)) == 600
        assert len(items_in(here)) <= 12
        assert sum(message[0] == m.CREDIT for message in there) <= 4

        async def readings() -> AsyncIterator[Any]:
            reading = Reading(0, "x")
            for reading.number in range(600):
                yield reading

        assert await (client.total(readings=readings()) if by_name else client.total(readings())) == sum(range(600))
        assert sum(items_in(there)) == 600
        assert len(items_in(there)) <= 12

    await caller.run(main())
    await asyncio.sleep(ROUND_TRIP)
    at_rest(server, caller)


@zmesh.testing.simulated()
async def test_whatever_does_not_fit_a_row_keeps_its_place(mesh: Mesh) -> None:
    _, caller, client = await pair(mesh)
    values = [1, "x" * 5_000, b"y" * 5_000, "z" * 20_000, b"z" * 20_000, None, [1, [2, {"a": "b" * 300}]], {"a": 1.5},
              {"a": b"b"}, list(range(500)), {"k" * 5_000: 1}, True, "", [], {}, 2**70, b"z" * 300_000, 7]  # fmt: skip
    values *= 5

    async def source() -> AsyncIterator[Any]:
        for number, value in enumerate(values):
            if number == 11:
                await asyncio.sleep(0.1)
            yield value

    async def main() -> list[Any]:
        return [value async for value in client.relay(source())]

    assert await caller.run(main()) == values


@zmesh.testing.simulated()
async def test_an_array_among_small_items(mesh: Mesh) -> None:
    _, caller, client = await pair(mesh)

    async def source() -> AsyncIterator[Any]:
        array = numpy.zeros(3)
        for number in range(3):
            array[:] = number
            yield number
            yield array

    async def main() -> list[Any]:
        return [value if type(value) is int else value.tolist() async for value in client.relay(source())]

    assert await caller.run(main()) == [0, [0.0] * 3, 1, [1.0] * 3, 2, [2.0] * 3]


@zmesh.testing.simulated()
async def test_what_is_there_when_the_producer_waits_leaves_at_once(mesh: Mesh) -> None:
    _, caller, client = await pair(mesh)
    at = [0.0, 0.0, 1.0, 1.0, 1.0, 1.5, 3.0]

    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        began = loop.time()
        late = []
        async for when in client.told(at):
            late.append(loop.time() - began - when)
        return late

    late = await caller.run(main())
    assert len(late) == len(at)
    assert all(0 <= each - late[0] < ROUND_TRIP for each in late)


@pytest.mark.parametrize("bad", [0, 1, 63, 64, 200])
@zmesh.testing.simulated()
async def test_one_of_a_row_has_no_form_on_the_wire(mesh: Mesh, bad: int) -> None:
    server, caller, client = await pair(mesh)

    async def main() -> None:
        read: list[Reading] = []
        with pytest.raises(zmesh.Internal, match=f"item {bad + 1} of the answer has a value without a form"):
            await read_into(read, client.readings(300, bad))
        assert read == [Reading(number, str(number)) for number in range(bad)]

    await caller.run(main())
    await asyncio.sleep(ROUND_TRIP)
    at_rest(server, caller)


@pytest.mark.parametrize("before", [0, 1, 5, 63, 64, 100])
@zmesh.testing.simulated()
async def test_one_of_a_row_does_not_fit_the_readers_annotation(mesh: Mesh, before: int) -> None:
    server, caller, _ = await pair(mesh)
    client = caller.node.client(Strict)

    async def main() -> None:
        read: list[Reading] = []
        why = r"the answer does not fit this caller's annotation .*expected `int`, got `str` - at `\$\.number`"
        with pytest.raises(zmesh.Internal, match=why):
            await read_into(read, client.then_wrong(before))
        assert read == [Reading(number, "x") for number in range(before)]

    await caller.run(main())
    await asyncio.sleep(ROUND_TRIP)
    at_rest(server, caller)


@zmesh.testing.simulated()
async def test_a_row_longer_than_the_peer_reads_is_several(mesh: Mesh) -> None:
    _, caller, client = await pair(mesh, config=zmesh.Config(max_message=10_000, inline_limit=1_000))
    values = [str(number) * 800 for number in range(40)]

    async def source() -> AsyncIterator[Any]:
        for value in values:
            yield value

    async def main() -> list[Any]:
        return [value async for value in client.relay(source())]

    assert await caller.run(main()) == values


def test_a_producer_that_takes_long_lets_others_have_their_turn() -> None:
    """One of which each item takes a quarter of a slice, by a clock of our own."""

    async def main() -> None:
        outlet, wire, now = Outlet(asyncio.get_running_loop(), answer=True), Wire(256, 1_000_000), itertools.count(1)
        outlet._time = lambda: clock[0]
        clock = [0.0]
        outlet.attach(wire, 1)  # type: ignore[arg-type]
        turns: collections.Counter[int] = collections.Counter()

        async def others() -> None:
            while True:
                turns[outlet.sent] += 1
                await asyncio.sleep(0)

        async def source() -> AsyncIterator[int]:
            for number in range(40):
                clock[0] = next(now) * _streams._SLICE / 4
                yield number

        beside = asyncio.create_task(others())
        await asyncio.sleep(0)
        assert await outlet.pump(source(), UNTYPED.small, outlet.send, lambda: True)
        outlet.close_row()
        beside.cancel()
        assert wire.values == list(range(40))
        assert len(turns) >= 5
        assert max(b - a for a, b in itertools.pairwise(sorted(turns))) <= 8

    asyncio.run(main())


def test_rows_that_are_none() -> None:
    for row, why in [
        (b"", "not CBOR"), (b"\x80", "an array of 1 to 1024"), (b"\x01", "an array of 1 to 1024"),
        (b"\x81", "not CBOR"), (b"\x9f\x01\xff", "not CBOR"), (b"\x81\xa2\x01\x01\x01\x01", "not CBOR"),
        (b"\x99\x04\x01" + b"\x01" * 1025, "an array of 1 to 1024"), (b"\x81\xd9\xfa\x4d\x01", "frame 1 is referred"),
        (b"\x81" * 73 + b"\x01", "not CBOR"),
    ]:  # fmt: skip
        with pytest.raises(m.ProtocolError, match=why):
            decode_row(row)
        if "array" in why:
            with pytest.raises(m.ProtocolError, match=why):
                length_of_row(row)
    for length in (1, 23, 24, 255, 256, 1024):
        assert length_of_row(cbor2.dumps([0] * length)) == length
    for longer in (b"\x98\x02", b"\x99\x00\x02", b"\x9a\x00\x00\x00\x02", b"\x9b" + bytes(7) + b"\x02"):
        assert length_of_row(longer + b"\x01\x01") == len(decode_row(longer + b"\x01\x01")) == 2
    for none in (b"", b"\x9f\x01\xff", b"\xa1\x01\x01", b"\x01", b"\x9b" + b"\xff" * 8, b"\x98"):
        with pytest.raises(m.ProtocolError, match="an array of 1 to 1024"):
            length_of_row(none)
    assert decode_row(b"\x82\x01\x81\x61a") == [1, ["a"]]


@pytest.mark.parametrize("size", [1, 100, 5_000])
@zmesh.testing.simulated()
async def test_an_error_comes_behind_items_that_wait_for_room(mesh: Mesh, size: int) -> None:
    """They were yielded at once, and are more than the reader has room for."""
    server, caller, client = await pair(mesh, config=zmesh.Config(stream_bytes=1_000))

    async def source() -> AsyncIterator[Any]:
        for number in range(30):
            yield [number, "x" * size]

    async def main() -> None:
        read: list[Any] = []
        with pytest.raises(zmesh.DataLoss, match="torn"):
            await read_into(read, client.torn([30, size]))
        assert read == [[number, "x" * size] for number in range(30)]
        assert [each async for each in client.relay(source())] == read

    await caller.run(main())
    await asyncio.sleep(ROUND_TRIP)
    at_rest(server, caller)


@pytest.mark.parametrize("fails", [False, True])
@zmesh.testing.simulated()
async def test_a_handler_that_outlives_its_call_does_not_wait_for_room(mesh: Mesh, fails: bool) -> None:
    server, caller, client = await pair(mesh, config=zmesh.Config(stream_bytes=1_000))

    async def main() -> None:
        async with client.stubborn(fails) as stream:
            assert await anext(stream) == "x"
            await asyncio.sleep(1)

    await caller.run(main())
    await asyncio.sleep(ROUND_TRIP)
    at_rest(server, caller)
