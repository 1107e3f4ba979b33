"""What the soak found of streams, each alone and in its smallest form."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

import zmesh
import zmesh.testing
from tests.streaming import Again, Source, at_rest, collect, of
from zmesh.testing import Mesh


class HandedOn(zmesh.Service):
    @zmesh.rpc
    def who(self) -> AsyncIterator[str]:
        return of(zmesh.context().peer.name)


@zmesh.testing.simulated()
async def test_a_plain_handler_that_returns_a_stream_knows_whose_call_it_serves(mesh: Mesh) -> None:
    await mesh.start(HandedOn(), name="server")
    for name in ("one", "two"):  # the second is served by the worker of the first
        caller = await mesh.start(name=name)
        assert await caller.run(collect(caller.node.client(HandedOn).who())) == [name]


@pytest.mark.parametrize("kind", ["answers", "arguments", "both"])
@zmesh.testing.simulated()
async def test_a_stream_that_ends_with_its_own_node_may_have_run(mesh: Mesh, kind: str) -> None:
    service = Again()
    server = await mesh.start(service, name="server")
    caller = await mesh.start(name="caller")
    client = caller.node.client(Again)
    source = Source(1000, pause=0.1)
    errors: list[zmesh.RpcError] = []

    async def call() -> None:
        try:
            if kind == "arguments":
                await client.total(source())
            else:
                await collect(client.once(1000, 0.1) if kind == "answers" else client.gather(source()))
        except zmesh.RpcError as error:
            errors.append(error)

    calling = asyncio.create_task(caller.run(call()))
    await asyncio.sleep(1)
    await asyncio.gather(caller.stop(), calling)
    assert [type(error) for error in errors] == [zmesh.Cancelled]
    assert errors[0].may_have_run
    await asyncio.sleep(1)
    at_rest(server)


class Slow(zmesh.Service):
    """Its generators take a moment to close, and need the service for it."""

    def __init__(self) -> None:
        self.log: list[str] = []

    async def __aenter__(self) -> Slow:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.log.append("left")

    @zmesh.rpc
    def ticks(self) -> AsyncIterator[int]:
        return closed_slowly(self.log)

    @zmesh.rpc
    async def total(self, numbers: AsyncIterator[int]) -> int:
        return sum([number async for number in numbers])


async def closed_slowly(log: list[str]) -> AsyncIterator[int]:
    try:
        for number in range(1000):
            await asyncio.sleep(0.1)
            yield number
    finally:
        await asyncio.sleep(0.02)
        log.append("closed")


@zmesh.testing.simulated()
async def test_a_service_is_left_when_its_streams_are_closed(mesh: Mesh) -> None:
    service = Slow()
    server = await mesh.start(service, name="server", config=zmesh.Config(drain_grace=0.5))
    caller = await mesh.start(name="caller")
    client = caller.node.client(Slow).options(timeout=60.0)
    reading = asyncio.create_task(caller.run(collect(client.ticks())))
    await asyncio.sleep(1)
    await server.stop()
    assert service.log == ["closed", "left"]
    with pytest.raises(zmesh.Unavailable, match="was cut off"):
        await reading
    at_rest(caller)


@zmesh.testing.simulated()
async def test_leaving_a_node_closes_what_its_calls_read(mesh: Mesh) -> None:
    await mesh.start(Slow(), name="server")
    caller = await mesh.start(name="caller")
    log: list[str] = []
    calling = asyncio.create_task(caller.run(caller.node.client(Slow).total(closed_slowly(log))))
    await asyncio.sleep(1)
    await asyncio.gather(caller.stop(), calling, return_exceptions=True)
    assert log == ["closed"]


@zmesh.testing.simulated()
async def test_leaving_a_node_does_not_wait_for_what_refuses_to_close(mesh: Mesh) -> None:
    class Stubborn(zmesh.Service):
        @zmesh.rpc
        async def wait(self) -> None:
            while True:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(1000)

    server = await mesh.start(Stubborn(), name="server", config=zmesh.Config(drain_grace=0.5))
    caller = await mesh.start(name="caller")
    calling = asyncio.create_task(caller.run(caller.node.client(Stubborn).options(timeout=60.0).wait()))
    await asyncio.sleep(1)
    began = mesh.now
    await server.stop()
    assert mesh.now - began < 3
    with pytest.raises(zmesh.MaybeExecuted):
        await calling
