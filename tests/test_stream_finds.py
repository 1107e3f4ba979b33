"""What the soak found of streams, each alone and in its smallest form."""

from __future__ import annotations

import asyncio
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
