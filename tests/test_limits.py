"""What one peer may have of a node, and that others have theirs. In virtual time."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pytest

import zmesh
import zmesh.testing
from zmesh._core import messages as m
from zmesh._outbox import _PAGE_MESSAGES
from zmesh._refusals import Refusals
from zmesh.testing import Host, Mesh

from .fake_link import SERVER_ID, FakeOwner, frame_of, open_link

SERVER = m.tag_of(SERVER_ID)


class Work(zmesh.Service):
    def __init__(self) -> None:
        self.order: list[str] = []
        self.go = asyncio.Event()

    @zmesh.rpc
    async def hold(self, data: bytes = b"", numbers: list[int] | None = None) -> int:
        await self.go.wait()
        return len(data)

    @zmesh.rpc
    async def note(self, who: str) -> None:
        self.order.append(who)

    @zmesh.rpc
    async def watch(self) -> AsyncIterator[int]:
        yield 1
        await self.go.wait()

    @zmesh.rpc
    async def collect(self, items: AsyncIterator[bytes]) -> int:
        await self.go.wait()
        return sum([len(item) async for item in items])

    @zmesh.rpc(idempotent=True)
    @zmesh.testing.takes(0.01)
    def crunch(self) -> None: ...


async def three(mesh: Mesh, **limits: Any) -> tuple[Work, Host, Any, Any]:
    """A node with these limits, and the clients of two others."""
    work = Work()
    server = await mesh.start(work, name="server", threads=1, config=zmesh.Config(**limits))
    greedy, honest = [await mesh.start(name=name) for name in ("greedy", "honest")]
    clients = [host.node.client(Work).options(timeout=1.0) for host in (greedy, honest)]
    for client in clients:
        await client.crunch()
    return work, server, *clients


def limits_of(server: Host) -> dict[str, int]:
    found: dict[str, int] = server.node.stats()["limits"]
    return found


async def outcomes(*calls: Any) -> list[str]:
    """Values, and the texts of errors."""
    return [str(each) for each in await asyncio.gather(*calls, return_exceptions=True)]


@zmesh.testing.simulated()
async def test_calls_of_one_peer(mesh: Mesh) -> None:
    work, server, greedy, honest = await three(mesh, max_peer_calls=3)
    calls = asyncio.gather(*(greedy.options(timeout=30).hold() for _ in range(3)))
    await asyncio.sleep(0.1)
    with pytest.raises(
        zmesh.RpcError, match=r"RESOURCE_EXHAUSTED: 'server' .* 3 calls of one peer, .*Config.max_peer_calls"
    ) as caught:
        await greedy.note("greedy")
    assert caught.value.may_have_run is False
    await honest.note("honest")
    assert work.order == ["honest"]
    assert limits_of(server)["max_peer_calls"] >= 1
    work.go.set()
    await calls
    await greedy.note("greedy")  # it has room again


@zmesh.testing.simulated()
async def test_streams_of_one_peer(mesh: Mesh) -> None:
    _, server, greedy, honest = await three(mesh, max_peer_streams=2)
    streams = [greedy.options(timeout=30).watch() for _ in range(2)]
    assert [await anext(stream) for stream in streams] == [1, 1]
    with pytest.raises(
        zmesh.RpcError, match=r"RESOURCE_EXHAUSTED: .*2 streams of one peer are open, .*Config.max_peer_streams"
    ):
        await anext(greedy.watch())
    await greedy.note("no stream")
    assert await anext(honest.watch()) == 1
    assert limits_of(server).keys() == {"max_peer_streams"}
    await streams[0].aclose()
    assert await anext(greedy.watch()) == 1


@pytest.mark.parametrize("arguments", [{"data": bytes(100_000)}, {"numbers": list(range(10_000))}])
@zmesh.testing.simulated()
async def test_memory_of_one_peer(mesh: Mesh, arguments: dict[str, Any]) -> None:
    work, server, greedy, honest = await three(mesh, max_peer_memory=300_000)
    first = [asyncio.ensure_future(greedy.options(timeout=30).hold(**arguments)) for _ in range(1)]
    await asyncio.sleep(0.1)
    errors = await outcomes(*(greedy.hold(**arguments) for _ in range(9)))
    assert sum("calls of one peer hold some" in error and "Config.max_peer_memory" in error for error in errors) >= 7
    await greedy.note("a small one is taken")
    own = asyncio.ensure_future(honest.options(timeout=30).hold(**arguments))
    await asyncio.sleep(0.1)
    assert limits_of(server).keys() == {"max_peer_memory"}
    work.go.set()
    await asyncio.gather(*first, own)
    assert await greedy.hold(bytes(1_000_000)) == 1_000_000  # a call that comes alone is taken whatever its size


class Weighing(zmesh.Service):
    def __init__(self) -> None:
        self.seen: list[weakref.ref[memoryview]] = []

    @zmesh.rpc
    async def weigh(self, value: memoryview) -> int:
        self.seen.append(weakref.ref(value))
        return len(value)


@zmesh.testing.simulated()
async def test_what_came_with_a_call_is_let_go_when_it_is_over(mesh: Mesh) -> None:
    """Whatever still looks at the call: libzmq finds its memory warm again, where it would take fresh pages."""
    service = Weighing()
    await mesh.start(service, name="server")
    caller = await mesh.start(name="caller")
    client = caller.node.client(Weighing)
    gc.disable()
    try:
        for size in (100_000, 1_000_000, 100_000):
            assert await client.weigh(bytes(size)) == size
        assert [value() for value in service.seen] == [None] * 3
    finally:
        gc.enable()


@pytest.mark.parametrize("bulk", [False, True])
@zmesh.testing.simulated()
async def test_memory_of_the_streams_of_one_peer(mesh: Mesh, bulk: bool) -> None:
    work, server, greedy, _ = await three(mesh, max_peer_memory=4_000_000, stream_bytes=1_000_000, bulk=bulk)

    async def items() -> AsyncIterator[bytes]:
        for _ in range(9):
            yield bytes(900_000)

    calls = asyncio.gather(*(outcomes(greedy.options(timeout=30).collect(items())) for _ in range(8)))
    await asyncio.sleep(0.2)
    work.go.set()
    ended = [text for (text,) in await calls]
    all_of_it = str(9 * 900_000)
    if bulk:  # their items come when they have begun
        refused = [text for text in ended if text != all_of_it]
        assert refused
        assert all(text.startswith("RESOURCE_EXHAUSTED: calls and streams of one peer hold") for text in refused)
    else:  # those that were refused before they began came once more
        assert ended == [all_of_it] * 8
    assert limits_of(server)["max_peer_memory"] >= 1


@zmesh.testing.simulated()
async def test_a_peer_that_goes_on_is_cut_off_and_others_are_not(mesh: Mesh) -> None:
    work, server, greedy, honest = await three(mesh, max_peer_calls=2, max_peer_refusals=50)
    held = asyncio.ensure_future(honest.options(timeout=30).hold())
    flood = outcomes(*(greedy.options(timeout=0.3).hold() for _ in range(200)))
    errors = await asyncio.wait_for(flood, 10)
    assert len(errors) == 200
    assert limits_of(server)["max_peer_refusals"] == 1
    assert limits_of(server)["max_peer_calls"] >= 50
    work.go.set()
    assert await held == 0


@zmesh.testing.simulated()
async def test_a_call_does_not_stand_behind_all_of_another_peer(mesh: Mesh) -> None:
    work, _, greedy, honest = await three(mesh)
    many = asyncio.gather(*(greedy.options(timeout=30).note("greedy") for _ in range(3_000)))
    await honest.note("honest")
    before = work.order.index("honest")
    await many
    assert work.order.count("greedy") == 3_000
    assert before < 1_000  # what was read before it, and every other one since


@zmesh.testing.simulated(seeds=range(3))
async def test_plain_handlers_are_shared_out(mesh: Mesh) -> None:
    _, server, greedy, honest = await three(mesh)
    loop = asyncio.get_running_loop()
    work = [greedy.options(timeout=20).crunch() for _ in range(3_000)]  # of 30 s
    flood = asyncio.ensure_future(outcomes(*work))
    await asyncio.sleep(0.1)
    for _ in range(30):
        began = loop.time()
        await honest.crunch()  # never refused, although the node is overloaded
        assert loop.time() - began < 0.1
    flood.cancel()
    await asyncio.wait([flood])
    assert limits_of(server) == {}


@zmesh.testing.simulated()
async def test_where_all_have_few_calls_the_order_is_kept_nearly(mesh: Mesh) -> None:
    work = Work()
    await mesh.start(work, name="server", threads=1)
    clients = [(await mesh.start(name=f"client-{number}")).node.client(Work) for number in range(12)]
    loop = asyncio.get_running_loop()

    async def timed(client: Any) -> float:
        began = loop.time()
        await client.crunch()
        return loop.time() - began

    taken = await asyncio.gather(*(timed(client) for client in clients for _ in range(10)))
    assert max(taken) < 1.5  # 120 calls of 10 ms: nobody starves


def test_refusals_are_counted_and_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    refusals = Refusals()
    for second in range(130):
        refusals.note("max_message", "tcp://10.0.0.7", "too much", float(second))
    refusals.note("max_message", "tcp://10.0.0.8", "too much", 130.0)
    assert refusals.counts == {"max_message": 131}
    assert [record.getMessage() for record in caplog.records] == [
        "tcp://10.0.0.7: too much (max_message)",
        "tcp://10.0.0.7: too much (max_message; 59 times more since the last line)",
        "tcp://10.0.0.7: too much (max_message; 59 times more since the last line)",
        "tcp://10.0.0.8: too much (max_message)",
    ]
    with caplog.at_level(logging.CRITICAL):
        for number in range(5_000):
            refusals.note("max_message", f"tcp://10.0.1.{number}", "too much", 131.0)
    assert len(refusals._logged) <= 1_000


def test_an_envelope_has_few_calls() -> None:
    async def main() -> None:
        call: m.Message = [m.CALL, 1, "Work.note", 1, {}, None]
        row: m.Message = [m.CALLS, 100, "Work.note", 1, [{"who": "me"}] * (m.MAX_CALLS - 1)]
        for messages, calls in (([call, row, *[[m.CANCEL, 1]] * 100], None), ([call, call, row], 65)):
            link, channel = open_link(FakeOwner())
            link.received([frame_of(SERVER, *messages)])
            text = f"not the zmesh protocol: {calls} calls in one envelope, at most 64 are allowed"
            expected = [] if calls is None else [[m.REJECT, zmesh.InvalidArgument.code, text]]
            assert [each for each in channel.messages if each[0] == m.REJECT] == expected

    asyncio.run(main())
    assert _PAGE_MESSAGES < m.MAX_CALLS  # of our own


@zmesh.testing.simulated()
async def test_values_that_together_are_more_than_a_message_holds(mesh: Mesh) -> None:
    class Blobs(zmesh.Service):
        @zmesh.rpc
        async def sizes(self, blobs: list[bytes]) -> list[int]:
            return [len(blob) for blob in blobs]

    server = await mesh.start(Blobs(), config=zmesh.Config(max_message=2_000_000))
    client = await mesh.start()
    blobs = client.node.client(Blobs)
    assert await blobs.sizes([bytes(1_500_000)] * 2) == [1_500_000] * 2  # with the margin
    with pytest.raises(
        zmesh.InvalidArgument, match=r"is 45000\d\d bytes; .* takes 2000000: split them, or stream them"
    ):
        await blobs.sizes([bytes(1_500_000)] * 3)
    # Calls of one turn, which would leave in one message, leave in several.
    assert await asyncio.gather(*(blobs.sizes([bytes(1_900_000)]) for _ in range(5))) == [[1_900_000]] * 5
    assert server.node.stats()["limits"] == {}
