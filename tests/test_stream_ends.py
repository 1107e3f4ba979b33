"""However a stream ends, the generators on both sides are closed and nothing is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

import zmesh
import zmesh.testing
from zmesh.testing import Crashed, Host, Mesh

from .streaming import (
    BOTH,
    NOTHING,
    ROUND_TRIP,
    Odd,
    Sink,
    Source,
    Streams,
    at_rest,
    collect,
    odd,
    pair,
    take,
    until,
)


@BOTH
@zmesh.testing.simulated()
async def test_a_deadline_ends_a_stream_in_the_middle_on_both_sides(mesh: Mesh, by_name: bool) -> None:
    service = Streams()
    server, caller, client = await pair(mesh, service, by_name)
    await caller.run(client.ping())
    got: list[int] = []

    async def read() -> None:
        async for number in client.options(timeout=1.0).count(items=100, pause=0.3):
            got.append(number)

    began = mesh.now
    with pytest.raises(zmesh.DeadlineExceeded) as caught:
        await caller.run(read())
    assert 1.0 <= mesh.now - began < 1.0 + 1 / 64
    assert caught.value.may_have_run
    assert got == [0, 1, 2]
    await asyncio.sleep(1 / 64)
    assert (service.opened, service.closed) == (1, 1)
    at_rest(server, caller)


@pytest.mark.parametrize("how", ["crash", "pause", "isolate", "reset", "stop"])
@zmesh.testing.simulated(seeds=range(3))
async def test_a_reader_that_is_lost_closes_the_generator(mesh: Mesh, how: str) -> None:
    service = Odd()
    server, caller, client = await odd(mesh, service)

    async def read() -> None:
        with pytest.raises((zmesh.Unavailable, zmesh.Cancelled)):
            await collect(client.silent())

    reading = asyncio.create_task(caller.run(read()))
    await asyncio.sleep(0.5)
    leaving = None
    if how == "crash":
        caller.crash()
    elif how == "pause":
        caller.pause()
    elif how == "isolate":
        mesh.isolate(caller)
    elif how == "reset":
        mesh.reset(server, caller)
    else:
        leaving = asyncio.create_task(caller.stop())
    await until(mesh, lambda: service.log == ["closed"], within=1.5)
    await asyncio.sleep(0.1)
    at_rest(server)
    if how == "pause":
        caller.resume()
    mesh.heal()
    if leaving is not None:
        await leaving
    try:
        await reading
    except Crashed:
        assert how == "crash"
    assert service.log == ["closed"]


async def answered_early(server: Host, caller: Host, client: Any, source: Source) -> None:
    assert await caller.run(client.total(numbers=source(), upto=5)) == 10


async def refused_an_item(server: Host, caller: Host, client: Any, source: Source) -> None:
    with pytest.raises(zmesh.OutOfRange, match="too many") as caught:
        await caller.run(client.limited(numbers=source()))
    assert caught.value.may_have_run


async def cancelled(server: Host, caller: Host, client: Any, source: Source) -> None:
    task = asyncio.create_task(caller.run(client.total(numbers=source())))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def timed_out(server: Host, caller: Host, client: Any, source: Source) -> None:
    with pytest.raises(zmesh.DeadlineExceeded):
        await caller.run(client.options(timeout=0.1).total(numbers=source()))
    await asyncio.sleep(1 / 64)


async def left_alone(server: Host, caller: Host, client: Any, source: Source) -> None:
    """The answer of a call both ways is not read to its end."""

    async def main() -> None:
        stream = client.both(numbers=source())
        assert await take(stream, 3) == [0, 1, 2]
        await stream.aclose()

    await caller.run(main())


async def failed_itself(server: Host, caller: Host, client: Any, source: Source) -> None:
    source.items, source.error = 5, KeyError("mine")
    with pytest.raises(KeyError, match="mine"):
        await caller.run(client.total(numbers=source()))


@BOTH
@pytest.mark.parametrize("pause", [0.0, 0.01])
@pytest.mark.parametrize("end", [answered_early, refused_an_item, cancelled, timed_out, left_alone, failed_itself])
@zmesh.testing.simulated()
async def test_however_it_ends_both_generators_are_closed(
    mesh: Mesh, end: Callable[..., Awaitable[None]], pause: float, by_name: bool
) -> None:
    service = Sink()
    server = await mesh.start(service, name="server")
    caller = await mesh.start(name="caller")
    client: Any = caller.node.client("Streams" if by_name else Sink)
    source = Source(1_000_000, pause=pause)
    await end(server, caller, client, source)
    await asyncio.sleep(ROUND_TRIP)
    assert source.closed == 1
    assert service.closed == service.opened
    assert service.opened == 1 or end is failed_itself  # so soon that the handler did not begin
    at_rest(server, caller)


@pytest.mark.parametrize("how", ["crash", "isolate", "stop"])
@zmesh.testing.simulated(seeds=range(3))
async def test_arguments_are_closed_when_their_node_is_lost(mesh: Mesh, how: str) -> None:
    service = Streams()
    server, caller, client = await pair(mesh, service, config=zmesh.Config(drain_grace=1.0))
    source = Source(1_000_000, pause=0.1)
    call = asyncio.create_task(caller.run(client.total(source())))
    await asyncio.sleep(0.5)
    if how == "crash":
        server.crash()
    elif how == "isolate":
        mesh.isolate(server)
    else:
        await server.stop()
    await until(mesh, lambda: source.closed == 1, within=1.5)
    with pytest.raises(zmesh.MaybeExecuted, match="had begun on 'server', which was lost before it answered"):
        await call
    await asyncio.sleep(1.0)
    assert how == "crash" or service.closed == 1
    at_rest(caller)


@pytest.mark.parametrize("end", ["answer", "cancel", "deadline", "crash"])
@zmesh.testing.simulated()
async def test_a_source_that_takes_its_time_to_close_is_not_cut_short(mesh: Mesh, end: str) -> None:
    log: list[str] = []

    async def inner() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(1)
            log.append("inner")

    async def source() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.create_task(inner())
        finally:
            await asyncio.sleep(1)
            log.append("outer")

    server, caller, client = await pair(mesh, Streams())
    if end == "answer":
        assert await caller.run(client.total(source(), upto=1)) == 1
    else:
        task = asyncio.create_task(caller.run(client.options(timeout=2.0).total(source())))
        await asyncio.sleep(1)
        if end == "cancel":
            task.cancel()
        elif end == "crash":
            server.crash()
        with pytest.raises((asyncio.CancelledError, zmesh.DeadlineExceeded, zmesh.MaybeExecuted)):
            await task
    await asyncio.sleep(5)
    assert log == ["inner", "outer"]


@pytest.mark.parametrize("end", ["aclose", "deadline", "crash"])
@zmesh.testing.simulated()
async def test_a_handler_that_takes_its_time_to_close_is_not_cut_short(mesh: Mesh, end: str) -> None:
    service = Odd()
    server, caller, client = await odd(mesh, service)
    source = Source(1_000_000, pause=0.01)

    async def read() -> None:
        stream = client.options(timeout=1.0).slow_to_close(source())
        if end != "aclose":
            await collect(stream)
        await take(stream, 5)
        await stream.aclose()

    task = asyncio.create_task(caller.run(read()))
    await asyncio.sleep(0.5)
    if end == "crash":
        caller.crash()
    with pytest.raises((zmesh.DeadlineExceeded, Crashed)) if end != "aclose" else NOTHING:
        await task
    await asyncio.sleep(3)
    assert service.log == ["closing", "closed"]
    at_rest(server)


@zmesh.testing.simulated()
async def test_an_error_while_a_handler_closes_is_logged_and_goes_no_further(mesh: Mesh, caplog: Any) -> None:
    server, caller, client = await odd(mesh, Odd())

    async def main() -> None:
        stream = client.fails_to_close()
        await take(stream, 5)
        await stream.aclose()

    await caller.run(main())
    await asyncio.sleep(ROUND_TRIP)
    assert "Odd.fails_to_close raised KeyError" in caplog.text
    at_rest(server, caller)
    with pytest.raises(zmesh.Internal, match="KeyError: 'at the end'"):
        await caller.run(collect(client.fails_at_the_end()))
    await caller.run(client.ping())


@zmesh.testing.simulated()
async def test_handlers_that_do_not_want_to_stop(mesh: Mesh) -> None:
    service = Odd()
    server, caller, client = await odd(mesh, service)

    async def some(stream: Any) -> None:
        await take(stream, 5)
        await stream.aclose()

    await caller.run(some(client.stubborn(1_000_000)))
    await asyncio.sleep(0.2)
    assert service.log == ["cancelled"]  # its next item is where it ends
    at_rest(server, caller)
    service.log.clear()
    await caller.run(some(client.yields_when_closed()))
    await asyncio.sleep(ROUND_TRIP)
    assert service.log == ["exit"]
    at_rest(server, caller)


@BOTH
@zmesh.testing.simulated()
async def test_an_error_of_the_source_is_the_callers_and_cancels_the_handler(mesh: Mesh, by_name: bool) -> None:
    class Mine(Exception):
        pass

    error = Mine("mine")

    async def source() -> AsyncIterator[str]:
        yield "a"
        await asyncio.sleep(0.1)
        raise error

    service = Odd()
    server, caller, client = await odd(mesh, service, by_name)
    got: list[str] = []

    async def read() -> None:
        async for line in client.relay(lines=source()):
            got.append(line)

    with pytest.raises(Mine) as caught:
        await caller.run(read())
    assert caught.value is error
    assert got == ["a"]
    await asyncio.sleep(ROUND_TRIP)
    assert service.log in (["CancelledError"], ["GeneratorExit"])
    at_rest(server, caller)


@pytest.mark.parametrize("error", [StopAsyncIteration(), StopIteration(), TimeoutError("late"), zmesh.NotFound("gone")])
@zmesh.testing.simulated()
async def test_errors_with_a_meaning_of_their_own_raised_by_a_source(mesh: Mesh, error: Exception) -> None:
    async def source() -> AsyncIterator[int]:
        yield 1
        raise error

    server, caller, client = await pair(mesh, Streams())
    wanted = RuntimeError if isinstance(error, (StopAsyncIteration, StopIteration)) else type(error)  # PEP 479
    with pytest.raises(wanted):
        await caller.run(asyncio.wait_for(client.total(source()), 60))
    await asyncio.sleep(ROUND_TRIP)
    at_rest(server, caller)


class Iterator:
    """A source written by hand, with an error that no generator lets out."""

    def __init__(self, error: BaseException, where: str) -> None:
        self.error = error
        self.where = where
        self.given = 0

    def __aiter__(self) -> Iterator:
        if self.where == "aiter":
            raise self.error
        return self

    def __anext__(self) -> Any:
        self.given += 1
        if self.where == "anext" and self.given > 1:
            raise self.error
        return asyncio.sleep(0, 1)


@zmesh.testing.simulated()
async def test_an_iterator_that_is_no_generator_ends_with_stop_async_iteration(mesh: Mesh) -> None:
    server, caller, client = await pair(mesh, Streams())
    assert await caller.run(client.total(Iterator(StopAsyncIteration(), "anext"))) == 1
    await asyncio.sleep(ROUND_TRIP)
    at_rest(server, caller)


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (asyncio.CancelledError(), "anext"),
        (GeneratorExit(), "anext"),
        (StopIteration(), "anext"),
        (KeyError("bad"), "aiter"),
        (TypeError("bad"), "aiter"),
    ],
)
@zmesh.testing.simulated()
async def test_whatever_a_source_raises_ends_the_call(mesh: Mesh, error: BaseException, where: str) -> None:
    server, caller, client = await pair(mesh, Streams())
    began = mesh.now
    with pytest.raises(BaseException) as caught:  # noqa: PT011  (any but the one of wait_for)
        await caller.run(asyncio.wait_for(client.total(Iterator(error, where)), 60))
    assert not isinstance(caught.value, TimeoutError)
    assert mesh.now - began < 1
    await asyncio.sleep(ROUND_TRIP)
    at_rest(server, caller)


@zmesh.testing.simulated()
async def test_a_source_that_awaits_what_was_cancelled_ends_the_call(mesh: Mesh) -> None:
    server, caller, client = await pair(mesh, Streams())
    helper = asyncio.create_task(asyncio.sleep(1000))

    async def source() -> AsyncIterator[int]:
        yield 1
        await helper

    call = asyncio.create_task(caller.run(client.total(source())))
    await asyncio.sleep(1)
    helper.cancel()
    done, _ = await asyncio.wait([call], timeout=60)
    assert done
    with pytest.raises(zmesh.Cancelled, match=r"Streams\.total: its stream of arguments was cancelled"):
        await call
    await asyncio.sleep(ROUND_TRIP)
    at_rest(server, caller)


@zmesh.testing.simulated()
async def test_a_source_that_fails_takes_its_time_to_close(mesh: Mesh) -> None:
    class Slow:
        closed = False

        def __aiter__(self) -> Slow:
            return self

        async def __anext__(self) -> int:
            raise KeyError("mine")

        async def aclose(self) -> None:
            await asyncio.sleep(1)
            self.closed = True

    server, caller, client = await pair(mesh, Streams())
    source = Slow()
    with pytest.raises(KeyError, match="mine"):
        await caller.run(client.total(source))
    await asyncio.sleep(2)
    assert source.closed
    at_rest(server, caller)


@pytest.mark.parametrize("turns", range(5))
@zmesh.testing.simulated()
async def test_a_source_is_closed_however_soon_its_call_is_cancelled(mesh: Mesh, turns: int) -> None:
    server, caller, client = await pair(mesh, Streams())
    source = Source(5)

    async def main() -> None:
        numbers = source()
        assert await anext(numbers) == 0
        call = asyncio.create_task(client.total(numbers))
        await asyncio.sleep(0)  # it begins
        for _ in range(turns):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait([call])
        await asyncio.sleep(ROUND_TRIP)
        assert source.closed == 1

    await caller.run(main())
    at_rest(server, caller)


@zmesh.testing.simulated()
async def test_a_source_is_closed_though_the_other_arguments_are_refused_at_once(mesh: Mesh) -> None:
    class Both(zmesh.Service):
        @zmesh.rpc
        async def total(self, blob: bytes, numbers: AsyncIterator[int]) -> int:
            return 0

    server = await mesh.start(Both(), config=zmesh.Config(max_message=50_000))
    caller = await mesh.start()
    source = Source(5)

    async def main() -> None:
        await caller.node.discover(expect=1)
        numbers = source()
        assert await anext(numbers) == 0
        with pytest.raises(zmesh.InvalidArgument, match="takes 50000: split it"):
            await caller.node.client(Both).total(bytes(60_000), numbers)
        await asyncio.sleep(ROUND_TRIP)
        assert source.closed == 1

    await caller.run(main())
    at_rest(server, caller)


@zmesh.testing.simulated()
async def test_a_source_is_closed_though_the_call_was_never_sent(mesh: Mesh) -> None:
    _, caller, client = await pair(mesh, Streams())
    source = Source(5)

    async def main() -> None:
        numbers = source()
        assert await anext(numbers) == 0
        await caller.node.__aexit__(None, None, None)
        with pytest.raises(zmesh.Unavailable, match="node 'caller' is closed"):
            await client.total(numbers)
        await asyncio.sleep(ROUND_TRIP)
        assert source.closed == 1

    await caller.run(main())
