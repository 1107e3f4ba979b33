"""Misuse of streams, and what few will do with them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from typing import Any

import pytest

import zmesh
import zmesh.testing
from zmesh._core import messages as m
from zmesh.interceptors import Proceed
from zmesh.testing import Host, Mesh

from .streaming import (
    BOTH,
    ROUND_TRIP,
    Odd,
    Sink,
    Source,
    Streams,
    at_rest,
    collect,
    lines,
    odd,
    pair,
    take,
)


@zmesh.testing.simulated()
async def test_a_stream_of_arguments_that_is_none(mesh: Mesh) -> None:
    server, caller, client = await pair(mesh, Streams())
    by_name = caller.node.client("Streams")
    await caller.run(by_name.ping())
    for wrong, kind in [([1], "list"), (5, "int"), ((n for n in range(3)), "generator"), (Source(1), "Source")]:
        text = rf"Streams\.total: its stream of arguments is an asynchronous iterator, got {kind}: write an `async def`"
        for client_ in (client, by_name):
            with pytest.raises(zmesh.InvalidArgument, match=text) as caught:
                await caller.run(client_.total(numbers=wrong))
            assert not caught.value.may_have_run
    text = r"Streams\.total takes a stream, an asynchronous iterator as 'numbers'"
    for arguments in ({}, {"numbers": None}, {"upto": 3}):
        with pytest.raises(zmesh.InvalidArgument, match=text):
            await caller.run(by_name.total(**arguments))
    for positional in ([1], [[1, 2], 3]):
        with pytest.raises(zmesh.InvalidArgument, match=text):
            await caller.run(by_name.total(*positional))
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'numbers'"):
        client.total()
    at_rest(server, caller)


@pytest.mark.parametrize(("by_name", "intercepted"), [(False, False), (False, True), (True, True)])
@zmesh.testing.simulated()
async def test_none_is_no_stream_of_arguments(mesh: Mesh, by_name: bool, intercepted: bool) -> None:
    async def plain(call: zmesh.InterceptedCall, proceed: Proceed) -> Any:
        return await proceed(call)

    await mesh.start(Streams(), name="server")
    caller = await mesh.start(name="caller", client_interceptors=[plain] if intercepted else [])
    client: Any = caller.node.client("Streams" if by_name else Streams)
    with pytest.raises(zmesh.InvalidArgument, match="an asynchronous iterator"):
        await caller.run(client.total(numbers=None))


@BOTH
@zmesh.testing.simulated()
async def test_what_a_reader_has_not_read_yet_comes_before_the_error(mesh: Mesh, by_name: bool) -> None:
    server, caller, client = await pair(mesh, Streams(), by_name)

    async def main() -> None:
        stream = client.count(items=100, fail=True)
        assert await anext(stream) == 0
        await asyncio.sleep(1)
        server.crash()
        await asyncio.sleep(1)
        assert await take(stream, 99) == list(range(1, 100))
        for _ in range(2):
            with pytest.raises(zmesh.DataLoss, match="torn"):
                await anext(stream)

    await caller.run(main())
    at_rest(caller)


@BOTH
@zmesh.testing.simulated()
async def test_a_stream_that_is_over_stays_over(mesh: Mesh, by_name: bool) -> None:
    server, caller, client = await pair(mesh, Streams(), by_name)

    async def main() -> None:
        stream = client.count(items=2)
        assert await collect(stream) == [0, 1]
        assert await collect(stream) == []
        assert (stream.node, dict(stream.metadata)) == ("server", {"last": "2"})
        await stream.aclose()
        await stream.aclose()
        assert await collect(stream) == []

    await caller.run(main())
    at_rest(server, caller)


@BOTH
@zmesh.testing.simulated()
async def test_aclose_ends_an_anext_in_another_task(mesh: Mesh, by_name: bool) -> None:
    service = Streams()
    server, caller, client = await pair(mesh, service, by_name)

    async def main() -> None:
        stream = client.count(items=10, pause=5.0)
        reading = asyncio.create_task(collect(stream))
        await asyncio.sleep(1)
        await stream.aclose()
        assert await reading == []

    began = mesh.now
    await caller.run(main())
    assert mesh.now - began < 1.1
    await asyncio.sleep(ROUND_TRIP)
    assert service.closed == 1
    at_rest(server, caller)


async def slowly(call: zmesh.InterceptedCall, proceed: Proceed) -> Any:
    await asyncio.sleep(0.5)
    return await proceed(call)


OPENING = pytest.mark.parametrize("how", ["by name", "intercepted"])


async def opening(mesh: Mesh, service: Streams, how: str) -> tuple[Host, Host, Any]:
    """A client whose streams take a while to be opened: a description is asked for, or an interceptor waits."""
    server = await mesh.start(service, name="server")
    caller = await mesh.start(name="caller", client_interceptors=[slowly])
    return server, caller, caller.node.client("Streams" if how == "by name" else Streams)


@OPENING
@zmesh.testing.simulated()
async def test_aclose_of_a_stream_that_is_being_opened(mesh: Mesh, how: str) -> None:
    service = Streams()
    server, caller, client = await opening(mesh, service, how)

    async def main() -> None:
        stream = client.count(items=10, pause=1.0)
        reading = asyncio.create_task(collect(stream))
        await asyncio.sleep(0.1)
        await stream.aclose()
        assert await reading == []

    await caller.run(main())
    await asyncio.sleep(1)
    assert service.opened == service.closed
    at_rest(server, caller)


@pytest.mark.parametrize("close", [False, True])
@zmesh.testing.simulated()
async def test_a_stream_that_is_let_go_while_it_is_opened(mesh: Mesh, close: bool) -> None:
    log: list[str] = []

    async def slow(call: zmesh.InterceptedCall, proceed: Proceed) -> Any:
        try:
            await asyncio.sleep(100)
        finally:
            log.append("ended")
        return await proceed(call)

    service = Streams()
    server = await mesh.start(service, name="server")
    caller = await mesh.start(name="caller", client_interceptors=[slow])

    async def main() -> None:
        stream = caller.node.client(Streams).count(3)
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(stream), 0.5)
        assert log == []
        if close:
            await stream.aclose()
            assert log == ["ended"]
        del stream
        gc.collect()
        await asyncio.sleep(0.01)
        assert log == ["ended"]

    await caller.run(main())
    assert service.opened == 0
    at_rest(server, caller)


@OPENING
@zmesh.testing.simulated()
async def test_two_tasks_and_a_stream_that_is_being_opened(mesh: Mesh, how: str) -> None:
    service = Streams()
    _, caller, client = await opening(mesh, service, how)

    async def main() -> None:
        stream = client.count(items=3, pause=1.0)
        one, other = await asyncio.gather(anext(stream), anext(stream), return_exceptions=True)
        assert one == 0
        assert "two tasks read one stream" in str(other)
        assert [one, *await collect(stream)] == [0, 1, 2]

    await caller.run(main())
    assert service.opened == 1


@zmesh.testing.simulated()
async def test_a_stream_by_name_is_a_context_manager_too(mesh: Mesh) -> None:
    service = Streams()
    server, caller, client = await pair(mesh, service, by_name=True)

    async def main() -> None:
        stream = client.count(items=1_000_000)
        assert await anext(stream) == 0
        async with stream:
            assert await anext(stream) == 1

    await caller.run(main())
    await asyncio.sleep(ROUND_TRIP)
    assert service.closed == 1
    at_rest(server, caller)


@zmesh.testing.simulated()
async def test_a_stream_by_name_that_was_closed_is_not_opened(mesh: Mesh) -> None:
    service = Streams()
    _, caller, client = await pair(mesh, service, by_name=True)

    async def main() -> None:
        stream = client.count(items=3)
        await stream.aclose()
        assert await collect(stream) == []

    await caller.run(main())
    assert service.opened == 0


@zmesh.testing.simulated()
async def test_one_stream_of_many_fails(mesh: Mesh) -> None:
    service = Streams()
    server, caller, client = await pair(mesh, service)

    async def together() -> None:
        async with asyncio.TaskGroup() as group:
            for n in range(60):
                group.create_task(collect(client.count(100, fail=True, pause=0.01 + n / 1000)))

    async def main() -> None:
        results = await asyncio.gather(
            *(collect(client.count(n, fail=n % 3 == 0, pause=0.01)) for n in range(60)), return_exceptions=True
        )
        for n, result in enumerate(results):
            assert isinstance(result, zmesh.DataLoss) if n % 3 == 0 else result == list(range(n))
        with pytest.raises(ExceptionGroup, match="unhandled errors"):
            await together()
        gc.collect()

    await caller.run(main())
    await asyncio.sleep(ROUND_TRIP)
    assert service.opened == service.closed == 120
    at_rest(server, caller)


@zmesh.testing.simulated()
async def test_a_stream_in_a_cycle_ends_when_it_is_collected(mesh: Mesh) -> None:
    service = Sink()
    server = await mesh.start(service, name="server")
    caller = await mesh.start(name="caller")
    client = caller.node.client(Sink)
    source = Source(1_000_000)

    async def main() -> None:
        cycle: list[Any] = [client.count(1_000_000), client.both(source()), client.count(3), client.ping]
        cycle.append(cycle)
        assert await take(cycle[0], 2) == [0, 1]
        assert await take(cycle[1], 2) == [0, 1]

    await caller.run(main())
    await asyncio.sleep(1)
    assert (service.closed, source.closed) == (0, 0)
    gc.collect()
    await asyncio.sleep(ROUND_TRIP)
    assert (service.opened, service.closed, source.closed) == (2, 2, 1)
    at_rest(server, caller)


@zmesh.testing.simulated()
async def test_a_handler_with_a_task_group_around_its_items(mesh: Mesh) -> None:
    ended: list[str] = []

    class Group(zmesh.Service):
        @zmesh.rpc
        async def count(self, fail: bool) -> AsyncIterator[int]:
            async def child() -> None:
                try:
                    await asyncio.sleep(0.5 if fail else 1000)
                finally:
                    ended.append("child")
                raise zmesh.NotFound("by the child")

            async with asyncio.TaskGroup() as group:
                group.create_task(child())
                for number in itertools.count():
                    async with asyncio.timeout(5):
                        yield number
                    await asyncio.sleep(0.1)

    server = await mesh.start(Group())
    caller = await mesh.start()
    client = caller.node.client(Group)

    async def main() -> None:
        stream = client.count(False)
        assert await take(stream, 3) == [0, 1, 2]
        await stream.aclose()
        await asyncio.sleep(ROUND_TRIP)
        assert ended == ["child"]
        with pytest.raises(zmesh.Internal, match="unhandled errors in a TaskGroup"):
            await collect(client.count(True))

    await caller.run(main())
    at_rest(server, caller)


@zmesh.testing.simulated()
async def test_a_task_that_outlives_its_handler_does_not_wait_for_arguments_for_ever(mesh: Mesh) -> None:
    class Careless(zmesh.Service):
        @zmesh.rpc
        async def begin(self, numbers: AsyncIterator[int]) -> str:
            self.task = asyncio.create_task(collect(numbers))
            await asyncio.sleep(0.1)
            return "begun"

    service = Careless()
    _, caller = await mesh.start(service), await mesh.start()
    assert await caller.run(caller.node.client(Careless).begin(Source(1000, pause=0.01)())) == "begun"
    await asyncio.sleep(1)
    assert service.task.done()
    with contextlib.suppress(Exception):
        await service.task


@zmesh.testing.simulated()
async def test_two_tasks_of_a_handler_read_its_arguments(mesh: Mesh) -> None:
    class Careless(zmesh.Service):
        @zmesh.rpc
        async def both(self, numbers: AsyncIterator[int]) -> list[str]:
            results = await asyncio.gather(anext(numbers), anext(numbers), return_exceptions=True)
            return [str(result) for result in results]

    _, caller = await mesh.start(Careless()), await mesh.start()
    one, other = await caller.run(caller.node.client(Careless).both(Source(3, pause=0.1)()))
    assert one == "0"
    assert "two tasks read one stream at the same time" in other


@zmesh.testing.simulated()
async def test_a_source_that_is_read_twice(mesh: Mesh) -> None:
    server, caller, client = await pair(mesh, Streams())
    numbers = Source(10, pause=0.1)()

    async def main() -> None:
        first = asyncio.create_task(client.total(numbers))
        await asyncio.sleep(0.25)
        with pytest.raises(RuntimeError, match="already running"):
            await client.total(numbers)
        assert await first == 45
        assert await client.total(numbers) == 0

    await caller.run(main())
    await asyncio.sleep(ROUND_TRIP)
    at_rest(server, caller)


@zmesh.testing.simulated()
async def test_a_stream_is_not_begun_before_its_first_item_is_asked_for(mesh: Mesh) -> None:
    service = Streams()
    server, caller, client = await pair(mesh, service)
    await caller.run(client.ping())

    async def main() -> None:
        stream, dropped = client.count(3), client.count(3)
        await asyncio.sleep(1)
        assert service.opened == 0
        await dropped.aclose()
        del dropped
        assert await anext(stream) == 0
        assert service.opened == 1
        await stream.aclose()

    await caller.run(main())
    await asyncio.sleep(ROUND_TRIP)
    at_rest(server, caller)


@zmesh.testing.simulated()
async def test_by_name_the_arguments_stand_where_they_like(mesh: Mesh) -> None:
    _, caller, client = await pair(mesh, Streams(), by_name=True)
    assert await caller.run(client.total(Source(9)(), 3)) == 3
    assert await caller.run(client.total(upto=-1, numbers=Source(9)())) == 36
    assert await caller.run(collect(client.count(2, False, 0.1))) == [0, 1]

    async def awaited() -> None:
        stream = await client.count(3)
        assert isinstance(stream, zmesh.Stream)
        assert await collect(stream) == [0, 1, 2]
        assert stream.node == "server"
        async with await client.count(1_000_000) as stream:
            assert await anext(stream) == 0
        call = client.total(Source(3)())
        assert await call == 3
        assert call.node == "server"

    await caller.run(awaited())
    with pytest.raises(zmesh.InvalidArgument, match="unknown argument 'itmes'"):
        await caller.run(collect(client.count(items=3, itmes=3)))
    with pytest.raises(AttributeError, match="has no method 'cuont'"):
        await caller.run(collect(client.cuont(3)))
    for call in (client.count, client.total):
        with pytest.warns(RuntimeWarning, match="neither awaited nor iterated over"):
            call(Source(1)())


@zmesh.testing.simulated()
async def test_a_wrong_message_ends_its_own_call_and_no_other(mesh: Mesh) -> None:
    server, caller, client = await odd(mesh, Odd(), config=zmesh.Config(stream_items=4))
    beside = Source(30, pause=0.05)
    other = asyncio.create_task(caller.run(collect(client.relay(str(n) async for n in beside()))))
    await caller.run(client.ping())
    (link,) = caller.node._hub._links()
    (back,) = server.node._hub._links()
    for wrong, text in [
        ([[m.ITEM, 0, False, 2, "b"]], "item 2 of a stream came where 1 was due"),
        ([[m.ITEM, 0, False, n, "b"] for n in range(1, 10)], "more than the 4 items that a stream may have"),
        ([[m.END, 0, 3]], "a stream ended after 3 items, and 0 came"),
        ([[m.END, 0, 0], [m.ITEM, 0, False, 1, "b"]], "an item behind the end"),
        ([[m.END, 0, 0], [m.END, 0, 0]], "a second end"),
        ([[m.ITEM, 0, 0, 1, "b"]], "ITEM has fields of the wrong number or type"),
        ([[m.ITEMS, 0, False, 1, b"\x80"]], "a row of items is an array of 1 to 1024"),
        ([[m.ITEMS, 0, False, 1, b"\x85bbbbb"]], "more than the 4 items that a stream may have"),
        ([[m.ITEMS, 0, False, 1, b"\x82\x61b"]], "a row of items is not CBOR"),
        ([[m.ITEMS, 0, False, 2, b"\x81\x61b"]], "item 2 of a stream came where 1 was due"),
        ([[m.CREDIT, 0, 1, 0]], "CREDIT has fields of the wrong number or type"),
        ([[m.CREDIT, 0, True, 7]], "credit for 7 items"),
    ]:

        async def wrongly(messages: list[list[Any]] = wrong) -> None:
            async def never() -> AsyncIterator[str]:
                await asyncio.sleep(1000)
                yield ""

            call = asyncio.create_task(collect(client.relay(never())))
            await asyncio.sleep(ROUND_TRIP)
            for message in messages:
                link.post([message[0], link.sequence & m.LIMIT, *message[2:]])
            await call

        with pytest.raises(zmesh.InvalidArgument, match=f"malformed stream: {text}"):
            await caller.run(wrongly())
    for wrong, text in [
        ([[m.ITEM, 0, True, 2, 1]], "item 2 of a stream came where 1 was due"),
        ([[m.CREDIT, 0, False, 1]], "credit for Odd.stubborn, which takes no stream"),
        ([[m.ITEMS, 0, True, 1, b"\x82\x01"]], "malformed stream: a row of items is not CBOR"),
        ([[m.ITEMS, 0, True, 1, b"\x01"]], "a row of items is an array"),
        ([[m.ITEM, 0, 1, 1, 1]], "ITEM has fields of the wrong number or type"),
        ([[m.CREDIT, 0, 0, 0]], "CREDIT has fields of the wrong number or type"),
        ([[m.REPLY, 0, 5, None]], "0 items came of 5"),
        ([[m.REPLY, 0, "five", None]], "0 items came of 'five'"),
    ]:

        async def wrongly_back(messages: list[list[Any]] = wrong) -> None:
            call = asyncio.create_task(collect(client.stubborn(3)))
            await asyncio.sleep(ROUND_TRIP)
            for message in messages:
                back.post([message[0], link.sequence & m.LIMIT, *message[2:]])
            await call

        with pytest.raises(zmesh.Internal, match=text):
            await caller.run(wrongly_back())
    for message in ([m.ITEM, 77, False, 1, 0], [m.ITEM, 77, True, 1, 0], [m.END, 77, 1], [m.CREDIT, 77, True, 9]):
        link.post(message)  # of calls that are over: on its way when they ended
        back.post(message)
    assert await other == [str(n) for n in range(30)]
    await asyncio.sleep(0.5)
    at_rest(server, caller)


def test_streams_of_a_plain_instance_are_the_generators_themselves() -> None:
    async def main() -> None:
        stream = Streams().echo(lines("a", "b"))
        assert [line async for line in stream] == ["a", "b"]
        assert (stream.node, dict(stream.metadata)) == (None, {})
        odd = Odd()
        async with odd.silent() as silent:
            assert await anext(silent) == 0
        assert odd.log == ["closed"]
        stream = odd.stubborn(3)
        assert await anext(stream) == 0
        await stream.aclose()
        assert await collect(stream) == []
        stream = odd.silent()
        assert await anext(stream) == 0
        await stream.aclose()
        assert odd.log == ["closed", "closed"]
        assert await collect(odd.handed_on(3)) == [0, 1, 2]
        with pytest.raises(zmesh.OutOfRange):
            await odd.fail_after(Source(9)(), 3)

    asyncio.run(main())


def test_a_host_that_crashed_with_a_stream_open_says_nothing_when_it_is_disposed_of(caplog: Any) -> None:
    async def main(mesh: Mesh) -> None:
        server, caller, client = await pair(mesh, Streams())
        reading = asyncio.create_task(caller.run(collect(client.count(1000, pause=0.1))))
        await asyncio.sleep(0.5)
        server.crash()
        with pytest.raises(zmesh.Unavailable):
            await reading

    zmesh.testing.run(main)
    gc.collect()
    assert "RuntimeError" not in caplog.text


EXIT = """
    import asyncio
    from collections.abc import AsyncIterator

    import zmesh

    class Endless(zmesh.Service):
        @zmesh.rpc
        async def count(self) -> AsyncIterator[int]:
            number = 0
            while True:
                yield number
                number += 1

        @zmesh.rpc
        async def total(self, numbers: AsyncIterator[int]) -> int:
            return sum([number async for number in numbers])

    async def numbers():
        while True:
            yield 1
            await asyncio.sleep(0.001)

    kept = []

    async def main(close):
        server = zmesh.Node(Endless(), listen="tcp://127.0.0.1:0", discovery=None, config=zmesh.Config(drain_grace=0.1))
        await server.__aenter__()
        node = zmesh.Node(peers=[server.addresses[0]], discovery=None)
        await node.__aenter__()
        client = node.client(Endless)
        left, cycle = client.count(), [client.count(), client.count()]
        cycle.append(cycle)
        kept.extend([client.count(), node.client("Endless").count(), client.count()])
        for stream in (left, cycle[0], *kept[:2]):
            assert await anext(stream) == 0
        call = asyncio.create_task(client.total(numbers()))
        await asyncio.sleep(0.01)
        if close:
            call.cancel()
            await node.__aexit__(None, None, None)
            await server.__aexit__(None, None, None)
        else:
            kept.extend([node, server])

    if {run}:
        asyncio.run(main({close}))
    else:
        asyncio.new_event_loop().run_until_complete(main({close}))
    print("done")
"""


def run_program(close: bool, run: bool) -> subprocess.CompletedProcess[str]:
    program = textwrap.dedent(EXIT).replace("{close}", str(close)).replace("{run}", str(run))
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("close", [False, True])
def test_streams_that_are_open_when_the_interpreter_exits(close: bool) -> None:
    ended = run_program(close, run=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")


def test_streams_of_a_loop_that_was_never_closed() -> None:
    ended = run_program(close=False, run=False)
    assert (ended.returncode, ended.stdout) == (0, "done\n")
    assert "RuntimeError" not in ended.stderr  # that tasks are destroyed is asyncio's to say
