"""Streams of answers, of arguments, and both ways."""

from __future__ import annotations

import asyncio
import datetime
import gc
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import numpy
import pytest
from numpy.typing import NDArray

import zmesh
import zmesh.testing
from zmesh.testing import Host, Mesh

from .streaming import (
    BOTH,
    ROUND_TRIP,
    Odd,
    Source,
    Streams,
    at_rest,
    collect,
    lines,
    odd,
    of,
    pair,
    take,
)


@BOTH
@zmesh.testing.simulated()
async def test_every_kind_in_order(mesh: Mesh, by_name: bool) -> None:
    server, caller, client = await pair(mesh, Streams(), by_name)
    assert await caller.run(collect(client.count(items=1000))) == list(range(1000))
    assert await caller.run(collect(client.count(0))) == []
    assert await caller.run(client.total(numbers=Source(1000)())) == 499500
    assert await caller.run(client.total(Source(0)())) == 0
    assert await caller.run(collect(client.echo(lines("a", "", "ü")))) == ["a", "", "ü"]
    await asyncio.sleep(1)
    at_rest(server, caller)


@zmesh.testing.simulated()
async def test_metadata_and_node_are_known_behind_the_last_item(mesh: Mesh) -> None:
    _, caller, client = await pair(mesh, Streams())
    stream = client.count(3)
    assert (stream.node, dict(stream.metadata)) == (None, {})
    await caller.run(collect(stream))
    assert (stream.node, dict(stream.metadata)) == ("server", {"last": "3"})


async def leave_by_break(stream: Any) -> None:
    async for number in stream:
        if number == 9:
            break


async def leave_by_error(stream: Any) -> None:
    async def read() -> None:
        async for number in stream:
            if number == 9:
                raise KeyError

    with pytest.raises(KeyError):
        await read()


async def leave_by_aclose(stream: Any) -> None:
    for _ in range(10):
        await anext(stream)
    await stream.aclose()
    assert await collect(stream) == []


async def leave_by_with(stream: Any) -> None:
    async with stream:
        for _ in range(10):
            await anext(stream)


async def leave_by_cancel(stream: Any) -> None:
    async def read() -> None:
        async for _ in stream:
            await asyncio.sleep(0.01)

    task = asyncio.create_task(read())
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


LEAVING = [leave_by_break, leave_by_error, leave_by_aclose, leave_by_with, leave_by_cancel]


@pytest.mark.parametrize(
    ("leave", "by_name"),
    [(leave, by_name) for leave in LEAVING for by_name in (False, True) if not (by_name and leave is leave_by_with)],
)
@zmesh.testing.simulated()
async def test_leaving_closes_the_generator_and_bounds_what_it_made(
    mesh: Mesh, leave: Callable[[Any], Any], by_name: bool
) -> None:
    service = Streams()
    server, caller, client = await pair(mesh, service, by_name)

    async def main() -> None:
        await leave(client.count(1_000_000))
        gc.collect()  # a traceback may still refer to the stream

    await caller.run(main())
    await asyncio.sleep(ROUND_TRIP)
    assert service.closed == 1
    assert 10 <= service.made <= zmesh.Config().stream_items
    at_rest(server, caller)


@zmesh.testing.simulated()
async def test_a_reader_that_stops_stops_the_producer(mesh: Mesh) -> None:
    service = Streams()
    _, caller, client = await pair(mesh, service)
    stream = client.count(1_000_000)

    async def some() -> None:
        for _ in range(10):
            await anext(stream)

    await caller.run(some())
    await asyncio.sleep(60)
    assert service.made == zmesh.Config().stream_items
    assert service.closed == 0
    began = mesh.now
    await caller.run(client.ping())
    assert mesh.now - began < 0.1


@zmesh.testing.simulated()
async def test_the_window_counts_bytes(mesh: Mesh) -> None:
    service = Streams()
    _, caller, client = await pair(mesh, service, config=zmesh.Config(stream_bytes=1_000_000))
    stream = client.blobs([300_000] * 10 + [3_000_000, 5])

    async def rest() -> list[int]:
        return [len(blob) async for blob in stream]

    first = await caller.run(anext(stream))
    await asyncio.sleep(10)
    assert len(first) == 300_000
    assert service.made == 4
    assert await caller.run(rest()) == [300_000] * 9 + [3_000_000, 5]


@zmesh.testing.simulated()
async def test_an_error_arrives_behind_the_items_before_it(mesh: Mesh) -> None:
    _, caller, client = await pair(mesh, Streams())
    got = []

    async def read(stream: Any) -> None:
        async for item in stream:
            got.append(item)

    with pytest.raises(zmesh.DataLoss, match="torn"):
        await caller.run(read(client.count(5, fail=True)))
    assert got == [0, 1, 2, 3, 4]
    got.clear()
    with pytest.raises(zmesh.Internal, match="is not its annotated `int`"):
        await caller.run(read(client.wrong()))
    assert got == [1]


@zmesh.testing.simulated()
async def test_the_default_deadline_holds_up_to_the_first_item(mesh: Mesh) -> None:
    service = Streams()
    server, caller, client = await pair(mesh, service)
    assert await caller.run(collect(client.count(4, pause=8.0))) == [0, 1, 2, 3]
    with pytest.raises(zmesh.DeadlineExceeded):
        await caller.run(collect(client.count(4, pause=12.0)))
    with pytest.raises(zmesh.DeadlineExceeded):
        await caller.run(collect(client.options(timeout=20.0).count(4, pause=8.0)))
    await asyncio.sleep(1)
    assert service.opened == service.closed == 3
    at_rest(server, caller)


@zmesh.testing.simulated()
async def test_arguments_may_take_their_time_and_the_answer_may_not(mesh: Mesh) -> None:
    server, caller, client = await pair(mesh, Streams())
    assert await caller.run(client.total(Source(3, pause=30.0)())) == 3
    began = mesh.now
    with pytest.raises(zmesh.DeadlineExceeded):
        await caller.run(client.hang(Source(3)()))
    assert 9.9 < mesh.now - began < 10.5
    await asyncio.sleep(1)
    at_rest(server, caller)


@zmesh.testing.simulated()
async def test_the_generator_of_arguments_is_closed(mesh: Mesh) -> None:
    server, caller, client = await pair(mesh, Streams())
    early = Source(1_000_000)
    assert await caller.run(client.total(early(), upto=5)) == 10
    failing = Source(3, error=KeyError("mine"))
    with pytest.raises(KeyError, match="mine"):
        await caller.run(client.total(failing()))
    stuck = Source(1_000_000)
    task = asyncio.create_task(caller.run(client.hang(stuck())))
    await asyncio.sleep(0.5)
    server.crash()
    with pytest.raises(zmesh.MaybeExecuted):
        await task
    await asyncio.sleep(1)
    assert (early.closed, failing.closed, stuck.closed) == (1, 1, 1)
    at_rest(caller)


@zmesh.testing.simulated(seeds=range(3))
async def test_a_node_that_dies_cuts_its_streams_off(mesh: Mesh) -> None:
    server, caller, client = await pair(mesh, Streams())
    got: list[int] = []

    async def read() -> None:
        async for item in client.count(1000, pause=0.1):
            got.append(item)

    task = asyncio.create_task(caller.run(read()))
    await asyncio.sleep(1)
    server.crash()
    with pytest.raises(zmesh.Unavailable, match="was cut off: 'server' was lost after") as caught:
        await task
    assert caught.value.details == {"delivered": len(got)}
    assert caught.value.may_have_run
    assert got == list(range(len(got)))
    assert got


@zmesh.testing.simulated(seeds=range(3))
async def test_what_has_not_begun_is_tried_elsewhere(mesh: Mesh) -> None:
    first, second = Streams("first"), Streams("second")
    server = await mesh.start(first, name="first")
    caller = await mesh.start(name="caller")
    client = caller.node.client(Streams)
    task = asyncio.create_task(caller.run(collect(client.count(3, pause=2.0))))
    await asyncio.sleep(1)
    await mesh.start(second, name="second")
    await asyncio.sleep(0.5)
    server.crash()
    assert await task == [0, 1, 2]
    assert (first.opened, second.opened) == (1, 1)


@zmesh.testing.simulated(seeds=range(3))
async def test_arguments_are_sent_again_to_the_next_node(mesh: Mesh) -> None:
    first, second = Streams("first"), Streams("second")
    server = await mesh.start(first, name="first")
    caller = await mesh.start(name="caller")
    client = caller.node.client(Streams)
    await caller.run(client.ping())
    server.stall(5.0)  # takes nothing, and is lost before it wakes
    source = Source(400)
    task = asyncio.create_task(caller.run(client.options(timeout=8).total(source())))
    await asyncio.sleep(0.2)
    await mesh.start(second, name="second")
    await asyncio.sleep(0.2)
    server.crash()
    try:
        assert await task == sum(range(400))
        assert second.seen == list(range(400))
    except zmesh.MaybeExecuted:  # it is not idempotent, and some of it was sent: the node may have begun
        assert second.seen == []
    assert source.closed == 1


@zmesh.testing.simulated()
async def test_misuse_is_told(mesh: Mesh) -> None:
    _, caller, client = await pair(mesh, Streams())
    with pytest.raises(zmesh.InvalidArgument, match="an asynchronous iterator, got list: write an `async def`"):
        await caller.run(client.total([1, 2]))
    with pytest.raises(zmesh.InvalidArgument, match=r"Streams\.total: argument 'an item of numbers'"):
        await caller.run(client.total(lines("one")))
    stream = client.count(3, pause=1.0)

    async def both() -> list[Any]:
        return await asyncio.gather(anext(stream), anext(stream), return_exceptions=True)

    one, other = await caller.run(both())
    assert one == 0
    assert "two tasks read one stream" in str(other)


@zmesh.testing.simulated()
async def test_by_name_the_kind_is_found_out(mesh: Mesh) -> None:
    _, caller, client = await pair(mesh, Streams(), by_name=True)

    async def stream_of_call() -> list[int]:
        return await collect(await client.count(3))

    assert await caller.run(stream_of_call()) == [0, 1, 2]
    with pytest.raises(TypeError, match="answers one value: await the call"):
        await caller.run(collect(client.ping()))
    with pytest.warns(RuntimeWarning, match="neither awaited nor iterated over"):
        client.count(3)  # dropped at once


@zmesh.testing.simulated()
async def test_many_streams_share_a_link(mesh: Mesh) -> None:
    server, caller, client = await pair(mesh, Streams())

    async def all_of_them() -> list[list[int]]:
        return await asyncio.gather(*(collect(client.count(items, pause=0.001)) for items in range(200)))

    assert await caller.run(all_of_them()) == [list(range(items)) for items in range(200)]
    await asyncio.sleep(1)
    at_rest(server, caller)


@zmesh.testing.simulated()
async def test_a_drain_lets_a_stream_finish(mesh: Mesh) -> None:
    server, caller, client = await pair(mesh, Streams())
    task = asyncio.create_task(caller.run(collect(client.count(20, pause=0.1))))
    await asyncio.sleep(0.5)
    await server.run(server.node.drain())
    assert await task == list(range(20))


def test_streams_of_a_plain_instance() -> None:
    async def main() -> None:
        service = Streams()
        stream = service.echo(lines("a", "b"))
        async with stream:
            assert await anext(stream) == "a"
        assert await collect(stream) == []
        assert isinstance(stream, zmesh.Stream)
        assert await service.total(Source(4)()) == 6

    asyncio.run(main())


# -- what is under way is bounded


@BOTH
@zmesh.testing.simulated()
async def test_a_handler_that_stops_reading_stops_the_source(mesh: Mesh, by_name: bool) -> None:
    server, caller, client = await odd(mesh, Odd(), by_name)
    source = Source(1_000_000)

    async def blobs() -> AsyncIterator[bytes]:
        async for _ in source():
            yield b"x"

    task = asyncio.create_task(caller.run(client.read_then_wait(blobs=blobs(), first=10)))
    await asyncio.sleep(4)
    assert source.made == zmesh.Config().stream_items
    task.cancel()
    await asyncio.wait([task])
    await asyncio.sleep(ROUND_TRIP)
    at_rest(server, caller)


@zmesh.testing.simulated()
async def test_the_window_of_arguments_counts_bytes(mesh: Mesh) -> None:
    size, window = 300 * 1024, 1024 * 1024
    server, caller, client = await odd(mesh, Odd(), config=zmesh.Config(stream_bytes=window))
    made: list[int] = []

    async def blobs() -> AsyncIterator[bytes]:
        for blob_size in [size] * 10 + [3 * window, 5]:
            made.append(blob_size)
            yield bytes(blob_size)

    call = asyncio.create_task(caller.run(client.read_then_wait(blobs(), 1)))
    await asyncio.sleep(4)
    assert sum(made[:-1]) <= window  # and one more
    assert len(made) == 4
    assert await call == [size] * 10 + [3 * window, 5]
    at_rest(server, caller)


@pytest.mark.parametrize(("items", "bytes"), [(1, 1), (1, 1_000_000), (1000, 1), (2, 50), (3, 9)])
@zmesh.testing.simulated()
async def test_the_smallest_windows_pass_everything(mesh: Mesh, items: int, bytes: int) -> None:
    server, caller, client = await pair(mesh, Streams(), config=zmesh.Config(stream_items=items, stream_bytes=bytes))
    assert await caller.run(collect(client.count(50))) == list(range(50))
    assert await caller.run(client.total(Source(50)())) == sum(range(50))
    texts = ["x" * length for length in range(0, 100, 7)]
    assert await caller.run(collect(client.echo(lines(*texts)))) == texts
    assert [len(blob) for blob in await caller.run(collect(client.blobs([0, 100, 20_000, 1])))] == [0, 100, 20_000, 1]
    at_rest(server, caller)


@zmesh.testing.simulated()
async def test_each_side_keeps_to_the_others_window(mesh: Mesh) -> None:
    service = Odd()
    server = await mesh.start(service, name="odd", config=zmesh.Config(stream_items=8))
    caller = await mesh.start(name="caller", config=zmesh.Config(stream_items=32))
    client = caller.node.client(Odd)
    source = Source(1000)

    async def main() -> None:
        stream = client.relay(str(number) async for number in source())
        assert await take(stream, 1) == ["0"]
        await asyncio.sleep(1)
        assert source.made <= 1 + 31 + 8 + 8  # the reader's window, the handler's, and what the handler holds
        assert await collect(stream) == [str(number) for number in range(1, 1000)]

    await caller.run(main())
    at_rest(server, caller)


@zmesh.testing.simulated()
async def test_credit_returns_to_rest(mesh: Mesh) -> None:
    server, caller, client = await odd(mesh, Odd(), config=zmesh.Config(stream_items=64))

    async def main() -> None:
        stream = client.some_then_wait(100)
        assert await take(stream, 100) == list(range(100))
        await asyncio.sleep(1)
        (running,) = (running for link in server.node._hub._links() for running in link.running.values())
        assert running.outlet.under_way == 100 % 32  # credit is given for half a window at a time
        await stream.aclose()
        blobs = asyncio.Queue[bytes]()

        async def source() -> AsyncIterator[bytes]:
            while True:
                yield await blobs.get()

        call = asyncio.create_task(client.read_then_wait(source(), -1))
        for _ in range(100):
            blobs.put_nowait(b"x")
        await asyncio.sleep(1)
        (attempt,) = (attempt for link in caller.node._hub._links() for attempt in link.pending.values())
        assert attempt.call.outlet.under_way == 100 % 32
        call.cancel()
        await asyncio.wait([call])

    await caller.run(main())
    await asyncio.sleep(ROUND_TRIP)
    at_rest(server, caller)


@zmesh.testing.simulated()
async def test_slow_readers_hold_nothing_else_up(mesh: Mesh) -> None:
    service = Streams()
    server, caller, client = await pair(mesh, service)

    async def pings() -> list[float]:
        took = []
        for _ in range(50):
            began = mesh.now
            await client.ping()
            took.append(mesh.now - began)
        return took

    async def main() -> None:
        alone = await pings()
        slow = [client.blobs([300_000] * 100) for _ in range(20)]
        for stream in slow:
            await anext(stream)
        beside = await pings()
        assert sum(beside) / 50 < 1.05 * sum(alone) / 50
        assert max(beside) <= ROUND_TRIP
        for stream in slow:
            await stream.aclose()

    await caller.run(main())
    assert service.made == 20 * 4
    await asyncio.sleep(ROUND_TRIP)
    at_rest(server, caller)


@zmesh.testing.simulated()
async def test_a_thousand_streams_at_once(mesh: Mesh) -> None:
    service = Streams()
    server, caller, client = await pair(mesh, service)

    async def main() -> None:
        streams = [client.count(1_000_000) for _ in range(1000)]
        assert await asyncio.gather(*(take(stream, 3) for stream in streams)) == [[0, 1, 2]] * 1000
        await asyncio.gather(*(stream.aclose() for stream in streams))

    await caller.run(main())
    await asyncio.sleep(0.1)
    assert service.opened == service.closed == 1000
    at_rest(server, caller)


@zmesh.testing.simulated()
async def test_a_process_that_stands_still_loses_nothing(mesh: Mesh) -> None:
    config = zmesh.Config(max_queued_messages=500, suspect_after=60)
    server, caller, client = await pair(mesh, Streams(), config=config)
    patient = client.options(timeout=60)

    async def main() -> None:
        downwards = [collect(patient.count(1000, pause=0.0001)) for _ in range(20)]
        upwards = [patient.total(Source(1000, pause=0.0001)()) for _ in range(20)]
        both = asyncio.gather(*downwards, *upwards)
        await asyncio.sleep(0.02)
        server.stall(3)
        await asyncio.sleep(0.02)
        caller.stall(2)
        assert await both == [list(range(1000))] * 20 + [499500] * 20

    await caller.run(main())
    await asyncio.sleep(0.1)
    at_rest(server, caller)


# -- items of every kind


@dataclass
class Reading:
    sensor: uuid.UUID
    when: datetime.datetime
    values: list[float]
    inner: Reading | None = None


class Kinds(zmesh.Service):
    @zmesh.rpc
    async def views(self, items: AsyncIterator[memoryview]) -> AsyncIterator[memoryview]:
        async for item in items:
            assert type(item) is memoryview
            yield item

    @zmesh.rpc
    async def arrays(self, items: AsyncIterator[NDArray[numpy.float64]]) -> AsyncIterator[NDArray[numpy.float64]]:
        async for item in items:
            yield numpy.asarray(item * 2)

    @zmesh.rpc
    async def readings(self, items: AsyncIterator[Reading]) -> AsyncIterator[Reading]:
        async for item in items:
            assert type(item) is Reading
            assert type(item.sensor) is uuid.UUID
            yield Reading(item.sensor, item.when, item.values[::-1], item)

    @zmesh.rpc
    async def anything(self, items: AsyncIterator[Any], also: int = 0) -> AsyncIterator[Any]:
        async for item in items:
            yield item

    @zmesh.rpc
    async def wrong_reading(self) -> AsyncIterator[Reading]:
        yield Reading(uuid.UUID(int=1), datetime.datetime(2024, 1, 1), [])
        yield {"sensor": "no uuid"}  # type: ignore[misc]

    @zmesh.rpc
    async def texts(self, items: AsyncIterator[str]) -> int:
        return len([item async for item in items])

    @zmesh.rpc
    async def text_then_wait(self, text: str) -> AsyncIterator[str]:
        yield "first"
        yield text * 20_000 if text == "long" else "\ud800"
        await asyncio.sleep(1000)

    @zmesh.rpc
    async def bad_among_good(self, good: int, bad: str, behind: int) -> AsyncIterator[str]:
        for number in range(good):
            yield str(number) * 10_000
        yield bad * 20_000 if bad == "long" else "\ud800"
        for number in range(behind):
            yield str(number)

    @zmesh.rpc
    async def frames(self, items: int) -> AsyncIterator[memoryview]:
        frame = bytearray(100_000)  # the same one again and again, as a camera's
        for number in range(items):
            frame[0] = number
            yield memoryview(frame)


class Newer(zmesh.Service, name="Kinds"):
    """Kinds, as a caller knows it whose items have other types."""

    @zmesh.rpc
    async def anything(self, items: AsyncIterator[Any], also: int = 0) -> AsyncIterator[int]:
        yield 0


Kind = tuple[Host, Host, Any]


async def kinds(mesh: Mesh, by_name: bool = False, **settings: Any) -> Kind:
    server = await mesh.start(Kinds(), name="kinds", **settings)
    caller = await mesh.start(name="caller", **settings)
    return server, caller, caller.node.client("Kinds" if by_name else Kinds)


@BOTH
@zmesh.testing.simulated()
async def test_large_binary_items(mesh: Mesh, by_name: bool) -> None:
    server, caller, client = await kinds(mesh, by_name)
    blobs = [bytes([number]) * size for number, size in enumerate([0, 1, 16 * 1024, 16 * 1024 + 1, 5_000_000] * 5)]
    answers = await caller.run(collect(client.views(items=of(*map(memoryview, blobs)))))
    assert [bytes(answer) for answer in answers] == blobs
    assert {type(answer) for answer in answers} == {bytes if by_name else memoryview}
    arrays = [numpy.arange(float(size)) for size in (0, 1, 3000, 300_000)] * 5
    arrays += [numpy.arange(40_000.0).reshape(200, 200).T, numpy.arange(10.0)[::-2], numpy.array(2.0)]
    answers = await caller.run(collect(client.arrays(items=of(*arrays))))
    assert all(numpy.array_equal(answer, array * 2) for answer, array in zip(answers, arrays, strict=True))
    mixed = [{"array": arrays[3], "blob": blobs[4]}, [blobs[3], blobs[4]], None, "text", 2**70]
    answers = await caller.run(collect(client.anything(items=of(*mixed))))
    assert numpy.array_equal(answers[0].pop("array"), arrays[3])
    assert answers == [{"blob": blobs[4]}, *mixed[1:]]
    at_rest(server, caller)


@zmesh.testing.simulated()
async def test_items_are_converted_on_both_sides(mesh: Mesh) -> None:
    server, caller, client = await kinds(mesh)
    sent = [Reading(uuid.UUID(int=number), datetime.datetime(2024, 1, 1), [0.0, 1.0]) for number in range(5)]
    answers = await caller.run(collect(client.readings(of(*sent))))
    assert answers == [Reading(each.sensor, each.when, [1.0, 0.0], each) for each in sent]
    by_name = caller.node.client("Kinds")
    as_json = {"sensor": str(uuid.UUID(int=7)), "when": "2024-01-01T00:00:00", "values": [1, 2], "inner": None}
    (answer,) = await caller.run(collect(by_name.readings(items=of(as_json))))
    assert answer == {**as_json, "values": [2, 1], "inner": as_json}
    at_rest(server, caller)


@zmesh.testing.simulated()
async def test_items_that_do_not_fit(mesh: Mesh) -> None:
    server, caller, client = await kinds(mesh)
    got: list[Any] = []

    async def read(stream: Any) -> None:
        async for item in stream:
            got.append(item)

    with pytest.raises(zmesh.Internal, match=r"Kinds\.wrong_reading returned a `dict` which is not") as internal:
        await caller.run(read(client.wrong_reading()))
    assert len(got) == 1
    assert internal.value.may_have_run
    for wrong in (5, {"sensor": 1}, object()):
        with pytest.raises(zmesh.InvalidArgument, match=r"Kinds\.readings: argument 'an item of items': ") as refused:
            await caller.run(read(client.readings(of(wrong))))
        assert refused.value.node is None
    with pytest.raises(zmesh.InvalidArgument, match=r"Kinds\.readings: argument 'an item of items'") as told:
        await caller.run(read(caller.node.client("Kinds").readings(items=of({"sensor": 1}))))
    assert told.value.node == "kinds"
    with pytest.raises(zmesh.Internal, match="the answer does not fit this caller's annotation `int`"):
        await caller.run(read(caller.node.client(Newer).anything(of(1, "two", 3))))
    assert got[1:] == [1]
    with pytest.raises(zmesh.InvalidArgument, match="there is no conversion for `object`"):
        await caller.run(read(client.anything(of(object()))))
    await asyncio.sleep(ROUND_TRIP)
    at_rest(server, caller)


@pytest.mark.parametrize("direction", ["answer", "arguments"])
@zmesh.testing.simulated()
async def test_a_binary_item_over_the_peers_limit_says_so(mesh: Mesh, direction: str) -> None:
    server, caller, client = await kinds(mesh, config=zmesh.Config(max_message=50_000))
    if direction == "answer":
        with pytest.raises(zmesh.Internal, match=r"a binary value of 100000 bytes; .* takes 50000: split it"):
            await caller.run(collect(client.frames(3)))
    else:
        with pytest.raises(zmesh.InvalidArgument, match=r"Kinds\.views: .* of 50001 bytes; .* takes 50000: split it"):
            await caller.run(collect(client.views(of(memoryview(bytes(50_001))))))
    await asyncio.sleep(ROUND_TRIP)
    at_rest(server, caller)


@pytest.mark.parametrize(
    ("text", "why"), [("long", "takes 50000"), ("surrogate", "without a form on the wire")], ids=["long", "surrogate"]
)
@zmesh.testing.simulated()
async def test_an_answers_item_that_cannot_be_sent_is_an_error_at_once(mesh: Mesh, text: str, why: str) -> None:
    server, caller, client = await kinds(mesh, config=zmesh.Config(max_message=50_000))
    got: list[str] = []

    async def read() -> None:
        async for item in client.options(timeout=60).text_then_wait(text):
            got.append(item)

    began = mesh.now
    with pytest.raises(zmesh.Internal, match=why):
        await caller.run(read())
    assert mesh.now - began < 1
    assert got == ["first"]
    await asyncio.sleep(ROUND_TRIP)
    at_rest(server, caller)


@pytest.mark.parametrize(
    ("text", "why"),
    [("x" * 50_001, "takes 50000"), ("\ud800", "without a form on the wire")],
    ids=["long", "surrogate"],
)
@zmesh.testing.simulated()
async def test_an_arguments_item_that_cannot_be_sent_is_an_error_at_once(mesh: Mesh, text: str, why: str) -> None:
    server, caller, client = await kinds(mesh, config=zmesh.Config(max_message=50_000))

    async def source() -> AsyncIterator[str]:
        yield "first"
        yield text
        await asyncio.sleep(20)

    began = mesh.now
    with pytest.raises(zmesh.InvalidArgument, match=why):
        await caller.run(client.texts(source()))
    assert mesh.now - began < 1
    await asyncio.sleep(ROUND_TRIP)
    at_rest(server, caller)


@pytest.mark.parametrize("bad", ["long", "surrogate"])
@pytest.mark.parametrize("behind", [0, 5, 100])
@zmesh.testing.simulated()
async def test_what_is_behind_an_item_that_cannot_be_sent_is_left_out(mesh: Mesh, bad: str, behind: int) -> None:
    server, caller, client = await kinds(mesh, config=zmesh.Config(max_message=50_000))
    texts = [str(number) * 10_000 for number in range(5)]  # in several envelopes
    beside = asyncio.create_task(caller.run(collect(client.anything(of(*range(1000))))))
    got: list[str] = []

    async def read() -> None:
        async for item in client.bad_among_good(5, bad, behind):
            got.append(item)

    with pytest.raises(
        zmesh.Internal, match=r"item 6 of the answer (is 8\d+ bytes|has a value without a form)"
    ) as answer:
        await caller.run(read())
    assert answer.value.node == "kinds"
    assert got == texts
    wrong = "x" * 60_000 if bad == "long" else "\ud800"
    with pytest.raises(
        zmesh.InvalidArgument, match=r"Kinds\.texts: an item of its arguments: number 2 (is 6\d+|has)"
    ) as argument:
        await caller.run(client.texts(of("a", wrong, *["b"] * behind)))
    assert argument.value.node is None
    assert await beside == list(range(1000))
    await asyncio.sleep(ROUND_TRIP)
    at_rest(server, caller)


@zmesh.testing.simulated()
async def test_a_buffer_that_is_used_again_after_yield_was_sent_as_it_was(mesh: Mesh) -> None:
    _, caller, client = await kinds(mesh)
    assert [view[0] for view in await caller.run(collect(client.frames(5)))] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("size", [100, 100_000])
@zmesh.testing.simulated()
async def test_arguments_that_are_sent_again_are_what_they_were(mesh: Mesh, size: int) -> None:
    class Busy(Kinds, name="Kinds"):
        @zmesh.rpc
        async def busy(self) -> None:
            await asyncio.sleep(2)

    await mesh.start(Busy(), name="busy", config=zmesh.Config(max_calls=1))
    caller = await mesh.start(name="caller")
    client = caller.node.client(Busy)
    busy = asyncio.create_task(caller.run(client.busy()))
    await asyncio.sleep(1)

    async def source() -> AsyncIterator[Any]:
        buffer, array = bytearray(size), numpy.zeros(size, numpy.uint8)
        for number in range(3):
            buffer[0] = array[0] = number
            yield [buffer, memoryview(buffer), {"array": array}]
            await asyncio.sleep(0)
        buffer[0] = array[0] = 99

    call = asyncio.create_task(caller.run(collect(client.anything(source()))))
    await asyncio.sleep(0.5)
    await mesh.start(Kinds(), name="free")
    answers = await call
    assert [(one[0], two[0], three["array"][0]) for one, two, three in answers] == [(n, n, n) for n in range(3)]
    await busy


@BOTH
@zmesh.testing.simulated()
async def test_no_items_and_none_items(mesh: Mesh, by_name: bool) -> None:
    server, caller, client = await odd(mesh, Odd(), by_name)
    assert await caller.run(collect(client.nothing(items=of()))) == []
    assert await caller.run(collect(client.nothing(items=of(None, None, None)))) == [None] * 3
    assert await caller.run(collect(client.handed_on(items=0))) == []
    assert await caller.run(collect(client.handed_on(items=3))) == [0, 1, 2]
    assert await caller.run(client.unread(numbers=Source(0)())) == "early"
    endless = Source(1_000_000)
    assert await caller.run(client.unread(numbers=endless())) == "early"
    await asyncio.sleep(ROUND_TRIP)
    assert endless.closed == 1
    at_rest(server, caller)
