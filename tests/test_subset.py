"""Where very many nodes offer a service, each caller keeps links to some of them. Here, very many are seven."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass

import pytest

import zmesh
import zmesh.testing
from zmesh._core.subset import keep
from zmesh.testing import Host, Mesh

FEW = zmesh.Config(subset_above=6, subset_size=3)


class Work(zmesh.Service):
    def __init__(self, label: str) -> None:
        self.label = label

    @zmesh.rpc(idempotent=True)
    async def work(self) -> str:
        await asyncio.sleep(0.01)
        return self.label

    @zmesh.rpc(idempotent=True)
    async def slow(self) -> str:
        await asyncio.sleep(5.0)
        return self.label


class Other(zmesh.Service):
    @zmesh.rpc
    async def nothing(self) -> None: ...


def linked(client: Host) -> set[str]:
    """To whom a client has links."""
    return {peer.name for peer in client.node.peers if peer.state == "alive"}


async def steady(client: Host, calls: int) -> Counter[str]:
    tasks = []
    for _ in range(calls):
        tasks.append(asyncio.create_task(client.run(client.node.client(Work).work())))
        await asyncio.sleep(0.005)
    return Counter(await asyncio.gather(*tasks))


async def start(mesh: Mesh, servers: int, others: int = 0) -> dict[str, Host]:
    hosts = {f"w{n}": await mesh.start(Work(f"w{n}"), name=f"w{n}") for n in range(servers)}
    for n in range(others):
        await mesh.start(Other(), name=f"o{n}")
    return hosts


@zmesh.testing.simulated(seeds=range(3))
async def test_links_go_to_some_and_calls_too(mesh: Mesh) -> None:
    await start(mesh, 7, others=7)
    client = await mesh.start(config=FEW)
    await steady(client, 200)
    kept = linked(client)
    assert len(kept) == 3
    assert kept < {f"w{n}" for n in range(7)}, "those that serve something else were let go"
    assert set(await steady(client, 200)) == kept


@zmesh.testing.simulated(seeds=range(2))
async def test_where_they_are_not_many_links_go_to_all(mesh: Mesh) -> None:
    await start(mesh, 6)
    client = await mesh.start(config=FEW)
    assert len(await steady(client, 200)) == 6


@zmesh.testing.simulated(seeds=range(3))
async def test_one_that_is_lost_is_replaced_by_one(mesh: Mesh) -> None:
    hosts = await start(mesh, 8)
    client = await mesh.start(config=FEW)
    await steady(client, 200)
    before = linked(client)
    hosts[min(before)].crash()
    await steady(client, 400)
    after = linked(client)
    assert len(after) == 3
    assert before - after == {min(before)}


@zmesh.testing.simulated(seeds=range(3))
async def test_one_that_comes_changes_one_link_at_most(mesh: Mesh) -> None:
    await start(mesh, 8)
    client = await mesh.start(config=FEW)
    await steady(client, 200)
    for n in range(8, 14):
        before = linked(client)
        await mesh.start(Work(f"w{n}"), name=f"w{n}")
        await steady(client, 200)
        after = linked(client)
        assert len(after) == 3
        assert after - before <= {f"w{n}"}


@zmesh.testing.simulated(seeds=range(3))
async def test_a_link_that_is_let_go_ends_its_calls_first(mesh: Mesh) -> None:
    await start(mesh, 7)
    client = await mesh.start(config=FEW)
    await steady(client, 100)
    work = client.node.client(Work)
    slow = [asyncio.create_task(client.run(work.slow())) for _ in range(9)]
    await asyncio.sleep(0.1)
    before = linked(client)
    for n in range(7, 12):
        await mesh.start(Work(f"w{n}"), name=f"w{n}")
    await steady(client, 200)
    assert {await each for each in slow} <= before
    await asyncio.sleep(1)
    assert len(linked(client)) == 3


@zmesh.testing.simulated(seeds=range(2))
async def test_a_name_a_key_and_a_scatter_reach_everybody(mesh: Mesh) -> None:
    await start(mesh, 7)
    for reach in ("name", "key", "scatter"):
        client = await mesh.start(config=FEW)
        await steady(client, 100)
        assert len(linked(client)) == 3
        work = client.node.client(Work)
        if reach == "name":
            for n in range(7):
                assert await client.run(work.options(node=f"w{n}").work()) == f"w{n}"
        elif reach == "key":
            await client.run(work.options(key="x").work())
            await asyncio.sleep(1)
            keys = [await client.run(work.options(key=str(key)).work()) for key in range(100)]
            assert len(set(keys)) == 7
        else:
            replies = [reply.value async for reply in client.node.scatter(Work.work)()]
            assert sorted(replies) == [f"w{n}" for n in range(7)]
        assert len(linked(client)) == 7


@zmesh.testing.simulated(seeds=range(2))
async def test_discover_meets_everybody(mesh: Mesh) -> None:
    await start(mesh, 7, others=2)
    client = await mesh.start(config=FEW)
    await steady(client, 100)
    assert len(await client.node.discover()) == 9
    assert len(linked(client)) == 9


# -- the rule


@dataclass(eq=False)
class Seen:
    rank: bytes
    failures: int = 0


def test_those_that_cannot_be_reached_are_tried_again_and_replaced() -> None:
    peers = [Seen(bytes([number])) for number in (5, 3, 1, 4, 2)]
    by_rank = sorted(peers, key=lambda peer: peer.rank)
    assert keep(peers, 5, 2) is None
    assert keep(peers, 4, 2) == set(by_rank[:2])
    by_rank[0].failures = 1
    assert keep(peers, 4, 2) == set(by_rank[:3])


def test_the_settings_are_checked() -> None:
    with pytest.raises(ValueError, match=r"subset_size \(20\) must not be more than subset_above \(10\)"):
        zmesh.Config(subset_above=10)
