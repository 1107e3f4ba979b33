"""Streams to and from nodes that are lost, leave, refuse or fall silent."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest

import zmesh
import zmesh.testing
from zmesh.testing import Host, Link, Mesh

from .streaming import (
    BOTH,
    ROUND_TRIP,
    Again,
    Source,
    Streams,
    at_rest,
    collect,
    of,
    pair,
    take,
    until,
)


@BOTH
@zmesh.testing.simulated()
async def test_a_node_that_dies_in_the_middle_of_both_streams(mesh: Mesh, by_name: bool) -> None:
    server = await mesh.start(Again(), name="server")
    caller = await mesh.start(name="caller")
    client: Any = caller.node.client("Streams" if by_name else Again)
    source = Source(1000, pause=0.1)
    got: list[int] = []

    async def read() -> None:
        async for number in client.gather(numbers=source()):
            got.append(number)

    reading = asyncio.create_task(caller.run(read()))
    await asyncio.sleep(1)
    server.crash()
    with pytest.raises(zmesh.Unavailable, match=r"Streams\.gather was cut off: 'server' was lost after") as caught:
        await reading
    assert caught.value.may_have_run
    assert caught.value.node == "server"
    assert caught.value.details == {"delivered": len(got)}
    assert got == list(range(len(got))) != []
    assert source.closed == 1
    at_rest(caller)


@zmesh.testing.simulated()
async def test_what_has_not_begun_and_is_not_idempotent_may_have_run(mesh: Mesh) -> None:
    service, other = Again(), Again()
    server = await mesh.start(service, name="server")
    caller = await mesh.start(name="caller")
    client = caller.node.client(Again)
    reading = asyncio.create_task(caller.run(collect(client.once(3, 1.0))))
    await asyncio.sleep(0.5)
    await mesh.start(other, name="other")
    await asyncio.sleep(0.2)
    server.crash()
    with pytest.raises(zmesh.MaybeExecuted, match=r"Streams\.once was sent to 'server', which was lost"):
        await reading
    assert (service.opened, other.opened) == (1, 0)
    at_rest(caller)


@BOTH
@zmesh.testing.simulated(seeds=range(3))
async def test_refused_arguments_are_all_sent_elsewhere_in_order(mesh: Mesh, by_name: bool) -> None:
    first, second = Again(), Again()
    server = await mesh.start(first, name="first", config=zmesh.Config(max_calls=1))
    caller = await mesh.start(name="caller")
    client: Any = caller.node.client("Streams" if by_name else Again)
    await caller.run(client.ping())
    busy = asyncio.create_task(caller.run(client.options(timeout=60).busy(seconds=5.0)))
    await asyncio.sleep(0.1)
    source = Source(1000)
    call = asyncio.create_task(caller.run(client.total(numbers=source())))
    await asyncio.sleep(1)
    assert source.made == zmesh.Config().stream_items
    await mesh.start(second, name="second")
    assert await call == 499500
    assert (first.opened, second.opened) == (0, 1)
    assert second.seen == list(range(1000))
    assert (source.made, source.closed) == (1000, 1)
    await busy
    at_rest(server, caller)


@zmesh.testing.simulated(seeds=range(3))
async def test_arguments_of_an_idempotent_call_are_sent_again_after_a_crash(mesh: Mesh) -> None:
    first, second = Again(), Again()
    server = await mesh.start(first, name="first")
    caller = await mesh.start(name="caller")
    client = caller.node.client(Again)
    await caller.run(client.ping())
    await mesh.start(second, name="second")
    server.stall(5.0)  # takes nothing, and is lost before it wakes
    source = Source(1000)
    call = asyncio.create_task(caller.run(client.options(timeout=8.0).again(source())))
    await asyncio.sleep(0.2)
    server.crash()
    assert await call == 499500
    assert second.seen == list(range(1000))
    assert (first.opened, second.opened, second.closed) == (0, 1, 1)
    assert (source.made, source.closed) == (1000, 1)
    at_rest(caller)


async def refusing(mesh: Mesh, **configs: zmesh.Config) -> tuple[dict[str, Again], Host, Any, list[Any]]:
    """Nodes that run one call each for 3 s, and a caller that knows them; whose calls keep them busy."""
    services = {name: Again() for name in configs}
    for name, config in configs.items():
        await mesh.start(services[name], name=name, config=config.replace(max_calls=1))
    caller = await mesh.start(name="caller")
    client = caller.node.client(Again)
    await caller.run(client.ping())
    await asyncio.sleep(1)
    busy = [asyncio.create_task(caller.run(client.options(node=name).busy(3.0))) for name in configs]
    await asyncio.sleep(0.1)
    return services, caller, client, busy


@zmesh.testing.simulated(seeds=range(5))
async def test_no_argument_is_lost_on_its_way_through_nodes_with_smaller_windows(mesh: Mesh) -> None:
    small = zmesh.Config(stream_items=16)
    services, caller, client, busy = await refusing(mesh, large=zmesh.Config(), small=small)
    source = Source(200)
    assert await caller.run(client.total(source())) == sum(range(200))
    assert [number for service in services.values() for number in service.seen] == list(range(200))
    assert source.made == 200
    await asyncio.gather(*busy)
    at_rest(*mesh.hosts)


@pytest.mark.parametrize("window", [2, 10])
@zmesh.testing.simulated()
async def test_an_argument_that_is_made_while_the_call_goes_elsewhere_keeps_its_place(mesh: Mesh, window: int) -> None:
    _, caller, client, busy = await refusing(mesh, large=zmesh.Config())
    small = Again()
    source = Source(30, pause=0.1)
    call = asyncio.create_task(caller.run(client.total(source())))
    await asyncio.sleep(1.05)  # ten are made, and the eleventh is being made
    host = await mesh.start(small, name="small", config=zmesh.Config(stream_items=window))
    mesh.link(host, caller, Link(delay=0.15))  # so that the next is made before the first of them has its credit
    assert await call == sum(range(30))
    assert small.seen == list(range(30))
    await asyncio.gather(*busy)
    at_rest(*mesh.hosts)


@pytest.mark.parametrize("how", ["refused", "crash"])
@zmesh.testing.simulated(seeds=range(3))
async def test_an_argument_that_the_next_node_does_not_take_is_an_error(mesh: Mesh, how: str) -> None:
    first, second = Again(), Again()
    server = await mesh.start(first, name="first", config=zmesh.Config(max_calls=2))
    caller = await mesh.start(name="caller")
    client = caller.node.client(Again)
    await caller.run(client.ping())

    async def source() -> AsyncIterator[bytes]:
        yield bytes(100)
        yield bytes(50_000)
        await asyncio.sleep(2)

    if how == "crash":
        server.stall(5.0)
    else:
        busy = [asyncio.create_task(caller.run(client.busy(3.0))) for _ in range(2)]
        await asyncio.sleep(0.1)
    call = asyncio.create_task(caller.run(client.options(timeout=8.0).sizes(source())))
    await asyncio.sleep(0.2)
    await mesh.start(second, name="second", config=zmesh.Config(max_message=20_000))
    await asyncio.sleep(0.5)
    if how == "crash":
        server.crash()
    with pytest.raises(zmesh.InvalidArgument, match=r"a binary value of 50000 bytes; .* takes 20000: split it"):
        await call
    await asyncio.sleep(0.1)
    assert [member.in_flight for member in caller.node._hub.members if member.name == "second"] == [0]  # type: ignore[union-attr]
    if how == "refused":
        await asyncio.gather(*busy)


@zmesh.testing.simulated()
async def test_items_for_a_call_that_was_refused_are_nobodys(mesh: Mesh) -> None:
    services, caller, client, busy = await refusing(mesh, only=zmesh.Config())
    source = Source(1000, pause=0.001)
    with pytest.raises(zmesh.DeadlineExceeded, match="refused until its deadline, at last with RESOURCE_EXHAUSTED"):
        await caller.run(client.options(timeout=1.0).total(source()))
    assert source.closed == 1
    with pytest.raises(zmesh.DeadlineExceeded, match="RESOURCE_EXHAUSTED"):
        await caller.run(collect(client.options(timeout=1.0).count(1)))
    await asyncio.gather(*busy)
    assert await caller.run(client.total(Source(1000)())) == 499500
    assert services["only"].opened == 1
    at_rest(*mesh.hosts)


@pytest.mark.parametrize("silent", [0.7, 3.0])
@zmesh.testing.simulated(seeds=range(3))
async def test_a_second_attempt_and_the_first_item_decides(mesh: Mesh, silent: float) -> None:
    services = {"first": Streams(), "second": Streams()}
    first = await mesh.start(services["first"], name="first")
    caller = await mesh.start(name="caller")
    client = caller.node.client(Streams)
    stream = client.count(5, pause=1.0)
    reading = asyncio.create_task(caller.run(collect(stream)))
    await asyncio.sleep(0.1)
    await mesh.start(services["second"], name="second")
    await asyncio.sleep(0.1)
    first.stall(silent)
    await asyncio.sleep(0.6)
    assert [service.opened for service in services.values()] == [1, 1]
    assert await reading == [0, 1, 2, 3, 4]
    winner = "first" if silent < 1 else "second"
    assert stream.node == winner
    await asyncio.sleep(1)
    (loser,) = services.keys() - {winner}
    assert services[winner].made == 5
    assert services[loser].made <= 1
    assert [service.closed for service in services.values()] == [1, 1]
    at_rest(*mesh.hosts)


@zmesh.testing.simulated()
async def test_a_hedged_stream_is_read_from_the_first_that_begins(mesh: Mesh) -> None:
    slow, fast = Streams(), Streams()
    await mesh.start(slow, name="slow")
    caller = await mesh.start(name="caller")
    client = caller.node.client(Streams)

    async def main() -> None:
        stream = client.options(hedge_after=0.5).count(5, pause=1.0)
        first = asyncio.create_task(anext(stream))
        await asyncio.sleep(0.1)
        mesh.hosts[0].stall(1.2)  # not so long that its first item would not come later
        await mesh.start(fast, name="fast")
        assert [await first, *await collect(stream)] == [0, 1, 2, 3, 4]
        assert stream.node in ("slow", "fast")

    await caller.run(main())
    await asyncio.sleep(0.1)
    assert sorted((slow.made, fast.made))[1] == 5
    assert (slow.opened, slow.closed, fast.opened, fast.closed) == (1, 1, 1, 1)
    at_rest(*mesh.hosts)
    hedged = client.options(hedge_after=0.5)
    for method, argument in ((hedged.total, Source(1)()), (hedged.blobs, [1])):
        with pytest.raises(ValueError, match="is not idempotent or takes a stream: hedging could run it twice"):
            method(argument)


@zmesh.testing.simulated()
async def test_a_drain_cuts_streams_off_after_its_grace(mesh: Mesh) -> None:
    service = Streams()
    server, caller, client = await pair(mesh, service, config=zmesh.Config(drain_grace=2.0))
    got: list[int] = []

    async def read() -> None:
        async for number in client.count(1000, pause=0.1):
            got.append(number)

    source = Source(1000, pause=0.1)
    reading = asyncio.create_task(caller.run(read()))
    sending = asyncio.create_task(caller.run(client.total(source())))
    await asyncio.sleep(1)
    began = mesh.now
    await server.stop()
    assert mesh.now - began < 2.5
    with pytest.raises(zmesh.Unavailable, match="was cut off") as caught:
        await reading
    assert caught.value.details == {"delivered": len(got)}
    assert 25 <= len(got) <= 31
    with pytest.raises(zmesh.MaybeExecuted, match="had begun on 'server'"):
        await sending
    await asyncio.sleep(ROUND_TRIP)
    assert (service.opened, service.closed, source.closed) == (2, 2, 1)
    at_rest(caller)


@pytest.mark.parametrize("late", [0.0, 3.0])
@zmesh.testing.simulated()
async def test_a_drain_soon_ends_streams_that_may_have_no_end(mesh: Mesh, late: float) -> None:
    class Endless(zmesh.Service):
        @zmesh.rpc
        async def readings(self) -> AsyncIterator[int]:
            await asyncio.sleep(late)
            for number in itertools.count():
                yield number
                await asyncio.sleep(0.1)

    server, caller = await mesh.start(Endless(), Streams(), name="server"), await mesh.start()
    got: list[int] = []

    async def read() -> None:
        async for number in caller.node.client(Endless).readings():
            got.append(number)

    reading = asyncio.create_task(caller.run(read()))
    bounded = asyncio.create_task(
        caller.run(collect(caller.node.client(Streams).options(timeout=60).count(45, pause=0.1)))
    )
    source = Source(50, pause=0.1)
    sending = asyncio.create_task(caller.run(caller.node.client(Streams).total(source())))
    await asyncio.sleep(0.5)
    began = mesh.now
    leaving = asyncio.create_task(server.stop())
    text = r"Endless\.readings was cut off after \d+ items: 'server' is leaving"
    with pytest.raises(zmesh.Unavailable, match=text) as caught:
        await reading
    grace = zmesh.Config().stream_grace
    assert mesh.now - began == pytest.approx(grace if not late else 2 * grace, abs=0.01)
    assert caught.value.details == {"delivered": len(got)}
    assert caught.value.may_have_run
    assert len(await bounded) == 45
    assert await sending == sum(range(50))
    await leaving
    assert mesh.now - began < 5.0
    at_rest(caller)


@zmesh.testing.simulated()
async def test_a_drain_lets_arguments_finish(mesh: Mesh) -> None:
    service = Streams()
    server, caller, client = await pair(mesh, service)
    source = Source(20, pause=0.1)
    sending = asyncio.create_task(caller.run(client.total(source())))
    await asyncio.sleep(0.5)
    began = mesh.now
    await server.stop()
    assert 1.4 < mesh.now - began < 2.0
    assert await sending == sum(range(20))
    assert (service.closed, source.closed) == (1, 1)
    at_rest(caller)


async def close_node(host: Host) -> None:
    await host.node.__aexit__(None, None, None)


@pytest.mark.parametrize("kind", ["answer", "arguments", "new"])
@zmesh.testing.simulated()
async def test_streams_of_a_node_that_is_closed(mesh: Mesh, kind: str) -> None:
    service = Streams()
    server, caller, client = await pair(mesh, service)
    source = Source(1000, pause=0.1)

    async def main() -> None:
        stream = client.count(1000, pause=0.1)
        if kind == "answer":
            assert await take(stream, 3) == [0, 1, 2]
            await close_node(caller)
            for _ in range(2):
                with pytest.raises(zmesh.Cancelled, match="node 'caller' is closed") as caught:
                    await anext(stream)
            assert caught.value.may_have_run
        elif kind == "arguments":
            call = asyncio.create_task(client.total(source()))
            await asyncio.sleep(0.5)
            await close_node(caller)
            with pytest.raises(zmesh.Cancelled, match="node 'caller' is closed") as caught:
                await call
            assert caught.value.may_have_run
        else:
            await close_node(caller)
            for late in (stream, stream, caller.node.client("Streams").count(3)):
                with pytest.raises(zmesh.Unavailable, match="node 'caller' is closed") as refused:
                    await anext(late)
                assert not refused.value.may_have_run
            with pytest.raises(zmesh.Unavailable, match="node 'caller' is closed"):
                await client.total(Source(3)())
        await stream.aclose()
        assert await collect(stream) == []

    await caller.run(main())
    await asyncio.sleep(0.5)
    assert service.opened == service.closed
    at_rest(server, caller)


@zmesh.testing.simulated(seeds=range(3))
async def test_a_silence_in_the_middle_moves_nothing_elsewhere(mesh: Mesh) -> None:
    service, other = Again(), Again()
    server = await mesh.start(service, name="server")
    caller = await mesh.start(name="caller")
    client = caller.node.client(Again)
    source = Source(30, pause=0.1)
    reading = asyncio.create_task(caller.run(collect(client.count(30, pause=0.1))))
    sending = asyncio.create_task(caller.run(client.again(source())))
    await asyncio.sleep(0.5)
    await mesh.start(other, name="other")
    await asyncio.sleep(0.5)
    server.stall(3.0)
    assert await reading == list(range(30))
    assert await sending == sum(range(30))
    assert (service.opened, other.opened) == (2, 0)
    await asyncio.sleep(ROUND_TRIP)
    at_rest(*mesh.hosts)


class Soak:
    """Streams of every kind against nodes that crash, restart, stall and are cut off."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.services: dict[str, Again] = {}
        self.sources: list[Source] = []
        self.ended: dict[str, int] = {}

    async def one(self, client: Any) -> None:
        random = self.mesh.random
        kind = random.choice(["count", "once", "total", "again", "gather"])
        items, pause = random.choice([0, 1, 30, 300]), random.choice([0.0, 0.001, 0.05])
        options = random.choice([{}, {"timeout": random.choice([0.2, 3.0])}])
        source = Source(items, pause)
        got: list[int] = []
        try:
            if kind in ("total", "again"):
                self.sources.append(source)
                total = await getattr(client.options(**options), kind)(source())
                assert total == sum(range(items))
                assert source.made == items
                outcome = "answered"
            else:
                if kind == "gather":
                    self.sources.append(source)
                    stream = client.options(**options).gather(source())
                elif kind == "count":
                    stream = client.options(**options).count(items, pause=pause)
                else:
                    stream = client.options(**options).once(items, pause)
                leave_at = random.choice([-1, -1, 0, 20])
                async with stream:
                    async for number in stream:
                        assert number == len(got)
                        got.append(number)
                        if number == leave_at:
                            break
                    else:
                        assert len(got) == items
                outcome = "read"
            delivered = len(got)
        except zmesh.Unavailable as error:
            outcome = "cut off"
            delivered = error.details.get("delivered", 0)
        except (zmesh.MaybeExecuted, zmesh.DeadlineExceeded):
            outcome = "failed"
            delivered = len(got)
        assert delivered == len(got)
        self.ended[outcome] = self.ended.get(outcome, 0) + 1

    async def faults(self, hosts: list[Host], caller: Host) -> None:
        random = self.mesh.random
        for _ in range(8):
            await asyncio.sleep(random.uniform(0.1, 0.8))
            host = random.choice(hosts)
            fault = random.choice(["crash", "stop", "stall", "reset", "cut"])
            if fault == "crash":
                host.crash()
                await host.restart()
            elif fault == "stop":
                await host.restart()
            elif fault == "stall":
                random.choice([host, caller]).stall(random.choice([0.1, 0.6, 2.0]))
            elif fault == "reset":
                self.mesh.reset(host, caller)
            else:
                self.mesh.partition(host, caller)
                await asyncio.sleep(random.choice([0.2, 1.5]))
                self.mesh.heal()

    async def run(self, max_calls: int) -> None:
        mesh, random = self.mesh, self.mesh.random
        hosts = []
        for number in range(3):
            items = random.choice([2, 16, 256])
            config = zmesh.Config(drain_grace=1.0, max_calls=max_calls, stream_items=items)
            hosts.append(await mesh.start(Again(), name=f"server-{number}", config=config))
        caller = await mesh.start(name="caller", config=zmesh.Config(stream_items=random.choice([1, 16, 256])))
        client = caller.node.client(Again)

        async def calls() -> None:
            while not faults.done():
                await self.one(client)

        faults = asyncio.create_task(self.faults(hosts, caller))
        await asyncio.gather(*(caller.run(calls()) for _ in range(10)))
        await faults
        mesh.heal()
        await asyncio.sleep(5)
        at_rest(*hosts, caller)
        # One that never began has nothing to close: its call ended before its first item was asked for.
        assert all(source.closed == 1 for source in self.sources if source.made)


@zmesh.testing.simulated(seeds=range(4))
async def test_streams_of_every_kind_while_nodes_come_and_go(mesh: Mesh) -> None:
    soak = Soak(mesh)
    await soak.run(max_calls=10_000)
    assert soak.ended.get("answered", 0) + soak.ended.get("read", 0) > 20


@zmesh.testing.simulated(seeds=range(4))
async def test_streams_of_every_kind_while_nodes_come_and_go_and_refuse(mesh: Mesh) -> None:
    soak = Soak(mesh)
    await soak.run(max_calls=2)
    assert soak.ended.get("answered", 0) + soak.ended.get("read", 0) > 20


@zmesh.testing.simulated()
async def test_both_ends_of_a_link_number_their_streams_alike(mesh: Mesh) -> None:
    class Job(zmesh.Service):
        @zmesh.rpc
        async def work(self, numbers: AsyncIterator[int]) -> AsyncIterator[int]:
            back = zmesh.context().peer.client(Again)
            async for number in numbers:
                doubled = back.gather(of(2 * number))
                async for answer in doubled:
                    yield answer
            endless = back.count(1_000_000)
            assert await take(endless, 2) == [0, 1]
            del endless

    service = Again()
    server = await mesh.start(Job(), name="job")
    caller = await mesh.start(service, name="caller")
    client = caller.node.client(Job)
    answers = await asyncio.gather(*(caller.run(collect(client.work(Source(20, pause=0.01)()))) for _ in range(5)))
    assert answers == [[2 * number for number in range(20)]] * 5
    await asyncio.sleep(0.1)
    assert service.closed == service.opened == 5
    at_rest(server, caller)


@zmesh.testing.simulated()
async def test_a_stream_of_callbacks_ends_with_its_caller(mesh: Mesh) -> None:
    ended: list[BaseException] = []

    class Job(zmesh.Service):
        @zmesh.rpc
        async def begin(self) -> None:
            self.task = asyncio.create_task(self._read(zmesh.context().peer.client(Streams)))

        async def _read(self, back: Streams) -> None:
            try:
                await collect(back.count(1_000_000, pause=0.1))
            except BaseException as error:
                ended.append(error)

    server = await mesh.start(Job(), name="job")
    caller = await mesh.start(Streams(), name="caller")
    await caller.run(caller.node.client(Job).begin())
    await asyncio.sleep(1)
    caller.crash()
    await until(mesh, lambda: ended != [], within=1.5)
    (error,) = ended
    assert isinstance(error, zmesh.Unavailable)
    assert error.details["delivered"] in (8, 9, 10)
    at_rest(server)
