"""Streams of answers, of arguments, and both ways."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

import zmesh
import zmesh.testing
from zmesh.testing import Mesh


class Streams(zmesh.Service):
    def __init__(self, label: str = "") -> None:
        self.label = label
        self.made = 0
        self.opened = 0
        self.closed = 0
        self.seen: list[Any] = []

    @zmesh.rpc(idempotent=True)
    async def count(self, items: int, fail: bool = False, pause: float = 0.0) -> AsyncIterator[int]:
        self.opened += 1
        try:
            for number in range(items):
                if pause:
                    await asyncio.sleep(pause)
                self.made += 1
                yield number
            if fail:
                raise zmesh.DataLoss("torn")
            zmesh.context().reply_metadata["last"] = str(items)
        finally:
            self.closed += 1

    @zmesh.rpc
    async def blobs(self, sizes: list[int]) -> AsyncIterator[bytes]:
        for size in sizes:
            self.made += 1
            yield bytes(size)

    @zmesh.rpc
    async def total(self, numbers: AsyncIterator[int], upto: int = -1) -> int:
        self.opened += 1
        result = 0
        try:
            async for number in numbers:
                self.seen.append(number)
                result += number
                if len(self.seen) == upto:
                    break
        finally:
            self.closed += 1
        return result

    @zmesh.rpc
    async def echo(self, lines: AsyncIterator[str]) -> AsyncIterator[str]:
        async for line in lines:
            yield line

    @zmesh.rpc
    async def hang(self, numbers: AsyncIterator[int]) -> int:
        async for number in numbers:
            self.seen.append(number)
        await asyncio.sleep(1000)
        return 0

    @zmesh.rpc
    async def wrong(self) -> AsyncIterator[int]:
        yield 1
        yield "two"  # type: ignore[misc]

    @zmesh.rpc
    async def ping(self) -> None:
        pass


class Source:
    """Arguments, and whether their generator was closed."""

    def __init__(self, items: int, pause: float = 0.0, error: Exception | None = None) -> None:
        self.items = items
        self.pause = pause
        self.error = error
        self.made = 0
        self.closed = 0

    async def __call__(self) -> AsyncIterator[int]:
        try:
            for number in range(self.items):
                if self.pause:
                    await asyncio.sleep(self.pause)
                self.made += 1
                yield number
            if self.error is not None:
                raise self.error
        finally:
            self.closed += 1


async def lines(*texts: str) -> AsyncIterator[str]:
    for text in texts:
        yield text


async def collect(stream: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in stream]


def at_rest(*hosts: Any) -> None:
    """Nothing is left behind: neither calls, nor what they count."""
    for host in hosts:
        hub = host.node._hub
        for link in hub._links():
            assert not link.pending
            assert not link.running
        assert all(member.in_flight == 0 for member in hub.members)
        assert hub.server is None or hub.server.in_flight == 0


Pair = tuple[Any, Any, Any]


async def pair(mesh: Mesh, service: Streams, by_name: bool = False, **settings: Any) -> Pair:
    server = await mesh.start(service, name="server", **settings)
    caller = await mesh.start(name="caller", **settings)
    return server, caller, caller.node.client("Streams" if by_name else Streams)


@pytest.mark.parametrize("by_name", [False, True])
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


@pytest.mark.parametrize("leave", LEAVING)
@zmesh.testing.simulated()
async def test_leaving_closes_the_generator_and_bounds_what_it_made(mesh: Mesh, leave: Callable[[Any], Any]) -> None:
    service = Streams()
    server, caller, client = await pair(mesh, service)

    async def main() -> None:
        await leave(client.count(1_000_000))
        gc.collect()  # a traceback may still refer to the stream

    await caller.run(main())
    await asyncio.sleep(0.2)
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
