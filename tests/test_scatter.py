"""One call to many nodes, in virtual time."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest

import zmesh
import zmesh.testing
from zmesh.testing import Host, Mesh


class Where(zmesh.Service):
    def __init__(self, name: str = "", takes: float = 0.0, fails: bool = False) -> None:
        self.name = name
        self.takes = takes
        self.fails = fails
        self.running = 0
        self.ran = 0

    @zmesh.rpc(idempotent=True)
    async def here(self, text: str) -> str:
        self.running += 1
        self.ran += 1
        try:
            await asyncio.sleep(self.takes)
        finally:
            self.running -= 1
        if self.fails:
            raise zmesh.NotFound(f"not at {self.name}")
        return f"{text} {self.name}"

    @zmesh.rpc
    async def count(self) -> AsyncIterator[int]:
        yield 1

    @zmesh.rpc
    async def total(self, numbers: AsyncIterator[int]) -> int:
        return 0


async def collect(replies: zmesh.Replies[Any]) -> list[zmesh.Reply[Any]]:
    return [reply async for reply in replies]


async def start(mesh: Mesh, *services: Where) -> tuple[Host, ...]:
    for service in services:
        await mesh.start(service, name=service.name)
    return tuple(mesh.hosts)


def nothing_in_flight(host: Host) -> bool:
    return not any(member.in_flight for member in host.node._running().members)


@zmesh.testing.simulated()
async def test_fifty_nodes_of_which_five_are_dead_and_five_slow(mesh: Mesh) -> None:
    for number in range(50):
        await mesh.start(Where(f"n{number}", takes=60.0 if 5 <= number < 10 else 0.01), name=f"n{number}")
    caller = await mesh.start()
    await caller.run(caller.node.discover())
    for host in mesh.hosts[:5]:
        host.crash()
    began = mesh.now
    replies = await caller.run(collect(caller.node.scatter(Where.here, timeout=3.0)("x")))
    assert mesh.now - began < 3.1
    assert {each.node: each.value for each in replies if each.error is None} == {
        f"n{number}": f"x n{number}" for number in range(10, 50)
    }
    assert sorted(each.node for each in replies if each.error is not None) == sorted(f"n{n}" for n in range(10))
    assert nothing_in_flight(caller)


@zmesh.testing.simulated()
async def test_first_quorum_and_any(mesh: Mesh) -> None:
    services = [Where("a", takes=5.0), Where("b", takes=0.1), Where("c", fails=True), Where("d", takes=0.2)]
    await start(mesh, *services)
    caller = await mesh.start()
    scatter = caller.node.scatter(Where.here, expect=4)
    first = await caller.run(scatter("x").first())
    assert (first.node, first.value, first.result()) == ("b", "x b", "x b")
    assert [each.node for each in await caller.run(scatter("x").quorum(2))] == ["b", "d"]
    await asyncio.sleep(0.1)
    assert nothing_in_flight(caller)
    assert [each.running for each in services] == [0, 0, 0, 0]
    began = mesh.now
    with pytest.raises(zmesh.NotFound, match=r"4 successes are out of reach.*c: NOT_FOUND: not at c"):
        await caller.run(scatter("x").quorum(4))
    assert mesh.now - began < 0.1, "known from the first error on"
    with pytest.raises(zmesh.Unavailable, match="too few nodes"):
        await caller.run(scatter("x").quorum(5))
    replies = await caller.run(collect(caller.node.scatter(Where.here, to="any")("x")))
    assert [each.node for each in replies] == ["c", "b"]
    with pytest.raises(zmesh.NotFound):
        replies[0].result()
    with pytest.raises(zmesh.NotFound, match="1 successes are out of reach"):
        await caller.run(caller.node.scatter(Where.here, to=["c"])("x").first())


@zmesh.testing.simulated()
async def test_expect_waits_for_who_comes_late(mesh: Mesh) -> None:
    await start(mesh, Where("a"))
    caller = await mesh.start()
    task = asyncio.create_task(caller.run(collect(caller.node.scatter(Where.here, expect=2)("x"))))
    await asyncio.sleep(2.0)
    await start(mesh, Where("b"))
    assert sorted(each.node for each in await task) == ["a", "b"]
    began = mesh.now
    assert len(await caller.run(collect(caller.node.scatter(Where.here, expect=3)("x")))) == 2
    assert 4.9 < mesh.now - began < 5.2, "patience passed"
    began = mesh.now
    assert len(await caller.run(collect(caller.node.scatter(Where.here)("x")))) == 2
    assert mesh.now - began < 0.1, "who is known is not waited for again"


@zmesh.testing.simulated()
async def test_names_and_numbers(mesh: Mesh) -> None:
    services = [Where(name) for name in "abcd"]
    await start(mesh, *services)
    caller = await mesh.start()
    replies = await caller.run(collect(caller.node.scatter(Where.here, to=["d", "nobody", "a"])("x")))
    assert {each.node: each.value for each in replies} == {"a": "x a", "d": "x d", "nobody": None}
    assert isinstance(replies[-1].error, zmesh.Unavailable)
    assert not replies[-1].error.may_have_run
    assert len({each.node for each in await caller.run(collect(caller.node.scatter(Where.here, to=3)("x")))}) == 3
    assert len(await caller.run(collect(caller.node.scatter(Where.here, to=9, timeout=1)("x")))) == 4


@pytest.mark.parametrize("way", ["break", "aclose", "with"])
@zmesh.testing.simulated()
async def test_leaving_early_leaves_nothing_in_flight(mesh: Mesh, way: str) -> None:
    services = [Where("a"), Where("b", takes=50.0), Where("c", takes=50.0)]
    await start(mesh, *services)
    caller = await mesh.start()

    async def leave() -> None:
        scatter = caller.node.scatter(Where.here, expect=3, timeout=100)
        if way == "break":
            async for _ in scatter("x"):
                break
        elif way == "aclose":
            replies = scatter("x")
            await anext(replies)
            await replies.aclose()
            assert await collect(replies) == []
        else:
            async with scatter("x") as replies:
                await anext(replies)

    await caller.run(leave())
    gc.collect()
    await asyncio.sleep(0.1)
    assert nothing_in_flight(caller)
    assert [each.running for each in services] == [0, 0, 0]
    assert [each.ran for each in services] == [1, 1, 1]


@zmesh.testing.simulated()
async def test_what_makes_no_sense_is_refused_at_once(mesh: Mesh) -> None:
    caller = await mesh.start()
    node: Any = caller.node
    for to in ("some", 0, -1, True, [], [1], None, 1.5):
        with pytest.raises(ValueError, match="to is"):
            node.scatter(Where.here, to=to)
    for streaming in (Where.count, Where.total):
        with pytest.raises(TypeError, match=r"without streams, and Where\.\w+ has one"):
            node.scatter(streaming)
    with pytest.raises(TypeError, match="takes a method"):
        node.scatter("Where.here")
    with pytest.raises(ValueError, match="expect"):
        node.scatter(Where.here, expect=0)
    with pytest.raises(zmesh.Unavailable, match="no node offers 'Where'"):
        await caller.run(collect(node.scatter(Where.here)("x")))
