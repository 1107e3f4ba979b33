"""An idempotent call never waits for silent peers alone while another one could answer."""

from __future__ import annotations

import asyncio

import pytest

import zmesh
import zmesh.testing
from zmesh.testing import Mesh


class Slow(zmesh.Service):
    """Says who ran it, and writes down that it did."""

    def __init__(self, label: str, ran: list[str]) -> None:
        self.label = label
        self.ran = ran

    @zmesh.rpc(idempotent=True)
    async def work(self, seconds: float) -> str:
        self.ran.append(self.label)
        await asyncio.sleep(seconds)
        return self.label


@pytest.mark.parametrize("second", ["crash", "stall"])
@zmesh.testing.simulated(seeds=range(3))
async def test_a_third_peer_is_tried_when_the_second_is_lost_too(mesh: Mesh, second: str) -> None:
    ran: list[str] = []
    hosts = {name: await mesh.start(Slow(name, ran), name=name) for name in "abc"}
    client = await mesh.start()
    slow = client.node.client(Slow)
    await client.run(slow.work(0))
    await asyncio.sleep(1)
    ran.clear()
    call = asyncio.create_task(client.run(slow.options(timeout=5).work(0.6)))
    await asyncio.sleep(0.05)
    hosts[ran[0]].stall(4.5)
    await asyncio.sleep(0.6)
    if second == "crash":
        hosts[ran[1]].crash()
    else:
        hosts[ran[1]].stall(4.5)
    began = mesh.now
    assert await call not in ran[:2]
    assert mesh.now - began < 1.2


@zmesh.testing.simulated(seeds=range(3))
async def test_who_comes_later_is_tried(mesh: Mesh) -> None:
    ran: list[str] = []
    silent, client = await mesh.start(Slow("silent", ran)), await mesh.start()
    slow = client.node.client(Slow)
    await client.run(slow.work(0))
    call = asyncio.create_task(client.run(slow.options(timeout=5).work(0.1)))
    await asyncio.sleep(0.05)
    silent.stall(4.5)
    await asyncio.sleep(1)
    began = mesh.now
    await mesh.start(Slow("late", ran))
    assert await call == "late"
    assert mesh.now - began < 0.5


@pytest.mark.parametrize("options", [{"hedge_after": 0.03}, {"timeout": 0.1}], ids=["hedged", "short timeout"])
@zmesh.testing.simulated(seeds=range(3))
async def test_a_peer_that_hangs_is_suspect_though_no_call_stays_with_it(mesh: Mesh, options: dict[str, float]) -> None:
    hosts = {name: await mesh.start(Slow(name, []), name=name) for name in "ab"}
    client = await mesh.start(balance="round_robin")
    slow = client.node.client(Slow)
    for _ in range(10):
        await client.run(slow.work(0.0))
    await asyncio.sleep(1)
    slow = slow.options(**options)  # type: ignore[arg-type]
    hosts["a"].stall(2.0)
    began = mesh.now
    while mesh.now < began + 0.6:
        await asyncio.gather(*(client.run(slow.work(0.0)) for _ in range(2)), return_exceptions=True)
        await asyncio.sleep(0.05)
    assert {peer.name: peer.state for peer in client.node.peers} == {"a": "suspect", "b": "alive"}
    await asyncio.sleep(2)
    assert {peer.name: peer.state for peer in client.node.peers} == {"a": "alive", "b": "alive"}


@zmesh.testing.simulated(seeds=range(3))
async def test_calls_that_are_given_up_make_no_suspect_of_a_peer_that_lives(mesh: Mesh) -> None:
    await mesh.start(Slow("a", []), name="a")
    client = await mesh.start()
    slow = client.node.client(Slow)
    await client.run(slow.work(0.0))
    seen = set()
    for _ in range(20):
        with pytest.raises(zmesh.DeadlineExceeded):
            await client.run(slow.options(timeout=0.02).work(5.0))
        for _ in range(10):
            await asyncio.sleep(0.1)
            seen.update(peer.state for peer in client.node.peers)
    assert seen == {"alive"}
