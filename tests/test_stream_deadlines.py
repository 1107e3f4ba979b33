"""When streams are over, and when they may take their time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

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
    odd,
    of,
    pair,
    take,
)


@BOTH
@zmesh.testing.simulated()
async def test_the_default_deadline_ends_what_does_not_begin(mesh: Mesh, by_name: bool) -> None:
    service = Streams()
    server, caller, client = await pair(mesh, service, by_name)
    await caller.run(client.ping())
    began = mesh.now
    with pytest.raises(zmesh.DeadlineExceeded, match="was not answered by its deadline by 'server'"):
        await caller.run(collect(client.count(items=1, pause=100.0)))
    assert 10.0 <= mesh.now - began < 10.0 + 1 / 64
    await asyncio.sleep(1 / 64)
    assert service.closed == 1
    at_rest(server, caller)


@pytest.mark.parametrize("late", [9.2, 9.9])
@BOTH
@zmesh.testing.simulated()
async def test_a_first_item_in_the_last_second_takes_the_deadline_away(mesh: Mesh, by_name: bool, late: float) -> None:
    server, caller, client = await pair(mesh, Streams(), by_name)
    assert await caller.run(collect(client.count(items=4, pause=late))) == [0, 1, 2, 3]
    at_rest(server, caller)


@zmesh.testing.simulated()
async def test_a_late_first_answer_to_a_stream_takes_the_deadline_away(mesh: Mesh) -> None:
    class Late(zmesh.Service):
        @zmesh.rpc
        async def sums(self, numbers: AsyncIterator[int]) -> AsyncIterator[int]:
            total = sum([number async for number in numbers])
            for _ in range(3):
                await asyncio.sleep(9.5)
                yield total

    server, caller = await mesh.start(Late()), await mesh.start()
    assert await caller.run(collect(caller.node.client(Late).sums(Source(4)()))) == [6, 6, 6]
    at_rest(server, caller)


@zmesh.testing.simulated()
async def test_a_stream_that_is_answered_by_a_stream_lasts_as_long_as_it_takes(mesh: Mesh) -> None:
    server, caller, client = await odd(mesh, Odd())
    texts = (str(number) async for number in Source(4, pause=30.0)())
    assert await caller.run(collect(client.relay(texts))) == ["0", "1", "2", "3"]
    left = await caller.run(collect(client.left()))
    assert left[0] < 10.1
    assert left[1] > 1e9
    left = await caller.run(collect(client.options(timeout=3.0).left()))
    assert max(left) < 3.1
    at_rest(server, caller)


@zmesh.testing.simulated()
async def test_an_explicit_timeout_holds_for_the_whole_of_the_arguments(mesh: Mesh) -> None:
    server, caller, client = await pair(mesh, Streams())
    source = Source(10, pause=1.0)
    began = mesh.now
    with pytest.raises(zmesh.DeadlineExceeded):
        await caller.run(client.options(timeout=4.5).total(source()))
    assert 4.5 <= mesh.now - began < 4.6
    await asyncio.sleep(1 / 64)
    assert (source.made, source.closed) == (4, 1)
    at_rest(server, caller)


@zmesh.testing.simulated()
async def test_a_handler_that_is_still_reading_is_not_late(mesh: Mesh) -> None:
    class Careful(zmesh.Service):
        @zmesh.rpc
        async def store(self, numbers: AsyncIterator[int]) -> int:
            stored = 0
            async for _ in numbers:
                await asyncio.sleep(0.1)
                stored += 1
            return stored

    server, caller = await mesh.start(Careful()), await mesh.start()
    assert await caller.run(caller.node.client(Careful).store(Source(250)())) == 250
    at_rest(server, caller)


@zmesh.testing.simulated()
async def test_a_handler_that_stops_reading_is_late_at_last(mesh: Mesh) -> None:
    class Stuck(zmesh.Service):
        @zmesh.rpc
        async def store(self, numbers: AsyncIterator[int]) -> int:
            for _ in range(3):
                await asyncio.sleep(6.0)
                await anext(numbers)
            await asyncio.sleep(1000)
            return 0

    server, caller = await mesh.start(Stuck()), await mesh.start()
    await caller.node.discover(expect=1)
    began = mesh.now
    with pytest.raises(zmesh.DeadlineExceeded):
        await caller.run(caller.node.client(Stuck).store(Source(5)()))
    assert mesh.now - began == pytest.approx(3 * 6.0 + 10.0, abs=0.1)
    await asyncio.sleep(ROUND_TRIP)
    at_rest(server, caller)


class Between(zmesh.Service):
    """Hands on what Streams yields."""

    @zmesh.rpc
    async def count(self, items: int, pause: float) -> AsyncIterator[int]:
        async for number in zmesh.context().client(Streams).count(items, pause=pause):
            yield number

    @zmesh.rpc
    async def begin_then_count(self, items: int, pause: float) -> AsyncIterator[int]:
        yield -1
        async for number in zmesh.context().client(Streams).count(items, pause=pause):
            yield number

    @zmesh.rpc
    async def count_for_each(self, pauses: AsyncIterator[float]) -> AsyncIterator[int]:
        async for pause in pauses:
            async for number in zmesh.context().client(Streams).count(2, pause=pause):
                yield number


async def between(mesh: Mesh) -> tuple[Streams, list[Host], Any]:
    service = Streams()
    hosts = [await mesh.start(service, name="server"), await mesh.start(Between(), name="between")]
    hosts.append(await mesh.start(name="caller"))
    return service, hosts, hosts[2].node.client(Between)


@pytest.mark.parametrize("method", ["count", "begin_then_count"])
@zmesh.testing.simulated()
async def test_a_stream_within_a_handler_ends_by_the_handlers_deadline(mesh: Mesh, method: str) -> None:
    service, hosts, client = await between(mesh)
    began = mesh.now
    with pytest.raises(zmesh.DeadlineExceeded):
        await hosts[2].run(collect(getattr(client.options(timeout=2.0), method)(100, 0.5)))
    assert 2.0 <= mesh.now - began < 2.1
    await asyncio.sleep(1 / 64)
    assert (service.opened, service.closed) == (1, 1)
    at_rest(*hosts)


@zmesh.testing.simulated()
async def test_leaving_a_stream_closes_those_that_it_reads(mesh: Mesh) -> None:
    service, hosts, client = await between(mesh)

    async def main() -> None:
        stream = client.count(1_000_000, 0.01)
        assert await take(stream, 3) == [0, 1, 2]
        await stream.aclose()

    await hosts[2].run(main())
    await asyncio.sleep(2 * ROUND_TRIP)
    assert (service.opened, service.closed) == (1, 1)
    at_rest(*hosts)


@zmesh.testing.simulated()
async def test_a_handler_without_a_deadline_reads_a_stream_for_as_long_as_it_takes(mesh: Mesh) -> None:
    _, hosts, client = await between(mesh)
    assert await hosts[2].run(collect(client.begin_then_count(15, 1.0))) == [-1, *range(15)]
    at_rest(*hosts)


@zmesh.testing.simulated()
async def test_a_handler_that_reads_a_stream_reads_others_for_as_long_as_it_takes(mesh: Mesh) -> None:
    _, hosts, client = await between(mesh)
    assert await hosts[2].run(collect(client.count_for_each(of(6.0, 6.0)))) == [0, 1, 0, 1]
    at_rest(*hosts)


@zmesh.testing.simulated()
async def test_a_handler_that_hands_a_stream_on_lasts_as_long_as_that(mesh: Mesh) -> None:
    _, hosts, client = await between(mesh)
    assert await hosts[2].run(collect(client.count(15, 1.0))) == list(range(15))
    at_rest(*hosts)


@BOTH
@zmesh.testing.simulated()
async def test_a_timeout_around_one_item_leaves_the_stream_as_it_is(mesh: Mesh, by_name: bool) -> None:
    service = Streams()
    server, caller, client = await pair(mesh, service, by_name)

    async def main() -> tuple[list[int], int]:
        stream = client.count(items=5, pause=1.0)
        got: list[int] = []
        missed = 0
        while True:
            try:
                async with asyncio.timeout(0.4):
                    got.append(await anext(stream))
            except TimeoutError:
                missed += 1
            except StopAsyncIteration:
                return got, missed

    got, missed = await caller.run(main())
    assert got == [0, 1, 2, 3, 4]
    assert missed >= 10
    assert (service.opened, service.closed) == (1, 1)
    at_rest(server, caller)


@pytest.mark.parametrize(
    "by_name",
    [
        False,
        True,
    ],
)
@zmesh.testing.simulated()
async def test_the_time_until_somebody_offers_the_service_counts(mesh: Mesh, by_name: bool) -> None:
    caller = await mesh.start()
    client: Any = caller.node.client("Streams" if by_name else Streams).options(timeout=3.0)
    call = asyncio.create_task(caller.run(collect(client.count(items=2, pause=1.0))))
    await asyncio.sleep(1.5)
    await mesh.start(Streams())
    with pytest.raises(zmesh.DeadlineExceeded):
        await call
    assert 3.0 <= mesh.now < 3.1
