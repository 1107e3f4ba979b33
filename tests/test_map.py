"""One method over many items: in virtual time, and blocking over real sockets."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator

import pytest

import zmesh
import zmesh.testing
from zmesh.testing import Mesh


class Work(zmesh.Service):
    def __init__(self) -> None:
        self.running = 0
        self.most = 0

    @zmesh.rpc(idempotent=True)
    async def square(self, number: int) -> int:
        await asyncio.sleep(0.01)
        return number * number

    @zmesh.rpc
    async def once(self, number: int) -> int:
        await asyncio.sleep(0.01)
        return number

    @zmesh.rpc(idempotent=True)
    async def slow_first(self, number: int) -> int:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(3.0 if number == 0 else 0.01)
        finally:
            self.running -= 1
        if number == 77:
            raise zmesh.NotFound("no 77")
        return number

    @zmesh.rpc(idempotent=True)
    def shout(self, text: str) -> str:
        return text.upper()


@zmesh.testing.simulated()
async def test_a_host_that_is_killed_loses_no_result(mesh: Mesh) -> None:
    hosts = [await mesh.start(Work()) for _ in range(3)]
    caller = await mesh.start()

    async def main() -> None:
        number = 0
        async for result in caller.node.map(Work.square, timeout=30)(range(10_000)):
            assert result == number * number
            number += 1
            if number == 4_000:
                hosts[1].crash()
        assert number == 10_000

    await caller.run(main())


@zmesh.testing.simulated()
async def test_what_is_not_idempotent_is_not_run_twice(mesh: Mesh) -> None:
    hosts = [await mesh.start(Work()) for _ in range(3)]
    caller = await mesh.start()

    async def main() -> None:
        async for number in caller.node.map(Work.once)(itertools.count()):
            if number == 100:
                hosts[1].crash()

    with pytest.raises(zmesh.MaybeExecuted) as caught:
        await caller.run(main())
    assert any("map(Work.once), at item 1" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("ordered", [True, False])
@zmesh.testing.simulated()
async def test_infinite_input_is_read_as_needed(mesh: Mesh, ordered: bool) -> None:
    work = Work()
    await mesh.start(work)
    caller = await mesh.start()
    taken = given = most = 0

    async def endless() -> AsyncIterator[int]:
        nonlocal taken, most
        for number in itertools.count():
            taken += 1
            most = max(most, taken - given)
            yield number

    async def main() -> None:
        nonlocal given
        async for _ in caller.node.map(Work.slow_first, ordered=ordered, in_flight=5)(endless()):
            given += 1
            if given == 40:
                break

    began = mesh.now
    await caller.run(main())
    assert (mesh.now - began > 3.0) is ordered
    assert 5 <= most <= 10
    await asyncio.sleep(0.1)
    assert (work.running, work.most) == (0, 5)
    assert not any(member.in_flight for member in caller.node._running().members)


@zmesh.testing.simulated()
async def test_an_error_comes_at_its_place(mesh: Mesh) -> None:
    await mesh.start(Work())
    caller = await mesh.start()
    seen: list[int] = []

    async def main() -> None:
        async for number in caller.node.map(Work.slow_first)(range(1, 200)):
            seen.append(number)

    with pytest.raises(zmesh.NotFound) as caught:
        await caller.run(main())
    assert seen == list(range(1, 77))
    assert caught.value.__notes__ == ["zmesh: in map(Work.slow_first), at item 76"]
    seen.clear()

    def broken() -> Iterator[int]:
        yield 1
        raise KeyError("input")

    async def broken_input() -> None:
        async for number in caller.node.map(Work.slow_first)(broken()):
            seen.append(number)

    with pytest.raises(KeyError, match="input") as failed:
        await caller.run(broken_input())
    assert seen == [1]
    assert "at item 1" in failed.value.__notes__[0]


@zmesh.testing.simulated()
async def test_more_nodes_more_in_flight(mesh: Mesh) -> None:
    await mesh.start(Work(), capacity=3)
    caller = await mesh.start()

    async def main() -> None:
        over = caller.node.map(Work.square)
        assert over.limit() == 2  # type: ignore[attr-defined]
        assert [number async for number in over([])] == []
        assert [number async for number in over([3, 2])] == [9, 4]
        assert over.limit() == 6  # type: ignore[attr-defined]
        await mesh.start(Work(), capacity=1.5)
        await asyncio.sleep(1)
        assert over.limit() == 9  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match="in_flight is at least 1"):
            caller.node.map(Work.square, in_flight=0)
        with pytest.raises(TypeError, match="goes over an iterable"):
            over(5)  # type: ignore[arg-type]

    await caller.run(main())


def test_blocking(capsys: pytest.CaptureFixture[str]) -> None:
    local = {"mesh": "test-map", "discovery": None}
    with (
        zmesh.connect(Work(), listen="tcp://127.0.0.1:0", **local) as server,  # type: ignore[arg-type]
        zmesh.connect(peers=server.addresses[:1], **local) as mesh,  # type: ignore[arg-type]
    ):
        texts = [f"a{number}" for number in range(100)]
        assert list(mesh.map(Work.shout)(texts)) == [text.upper() for text in texts]
        assert capsys.readouterr().err == ""
        assert sorted(mesh.map(Work.shout, ordered=False, progress=True)(texts)) == sorted(map(str.upper, texts))
        assert "100/100" in capsys.readouterr().err
        endless = mesh.map(Work.square)(itertools.count())
        assert [next(endless) for _ in range(5)] == [0, 1, 4, 9, 16]
        endless.close()  # type: ignore[attr-defined]
        assert {reply.node for reply in mesh.scatter(Work.shout, expect=1)("a")} == {server.name}
