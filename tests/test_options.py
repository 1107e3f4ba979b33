"""`options(node=...)` and `options(hedge_after=...)`, in virtual time."""

from __future__ import annotations

import asyncio

import pytest

import zmesh
import zmesh.testing
from zmesh.testing import Mesh


class Where(zmesh.Service):
    def __init__(self, name: str, takes: float = 0.0) -> None:
        self.name = name
        self.takes = takes
        self.begun = 0

    @zmesh.rpc(idempotent=True)
    async def here(self) -> str:
        self.begun += 1
        await asyncio.sleep(self.takes)
        return self.name

    @zmesh.rpc
    async def once(self) -> str:
        self.begun += 1
        return self.name


@zmesh.testing.simulated()
async def test_a_node_is_chosen_by_name_and_by_id(mesh: Mesh) -> None:
    first, _, caller = (
        await mesh.start(Where("a"), name="a"),
        await mesh.start(Where("b"), name="b"),
        await mesh.start(),
    )
    client = caller.node.client(Where)
    assert {await caller.run(client.options(node="b").here()) for _ in range(10)} == {"b"}
    assert {await caller.run(client.options(node=first.node.id).here()) for _ in range(10)} == {"a"}
    by_name = caller.node.client("Where").options(node="a")
    assert {await caller.run(by_name.once()) for _ in range(10)} == {"a"}


@zmesh.testing.simulated()
async def test_a_node_that_is_not_there_is_named_in_the_error(mesh: Mesh) -> None:
    _, caller = await mesh.start(Where("a"), name="a"), await mesh.start()
    with pytest.raises(zmesh.Unavailable, match=r"no node named 'b' offers 'Where' after 5.0 s: saw 1 node \(a\)"):
        await caller.run(caller.node.client(Where).options(node="b").here())


@zmesh.testing.simulated()
async def test_a_hedged_call_is_answered_by_the_first(mesh: Mesh) -> None:
    slow, fast = Where("slow", takes=5.0), Where("fast")
    _, caller = await mesh.start(slow, name="slow"), await mesh.start()
    call = asyncio.create_task(caller.run(caller.node.client(Where).options(hedge_after=0.5).here()))
    await asyncio.sleep(0.1)
    await mesh.start(fast, name="fast")
    began = mesh.now
    assert await call == "fast"
    assert 0.3 < mesh.now - began < 0.6
    assert (slow.begun, fast.begun) == (1, 1)


@zmesh.testing.simulated()
async def test_hedging_what_is_not_idempotent_is_refused_before_it_is_sent(mesh: Mesh) -> None:
    where = Where("a")
    _, caller = await mesh.start(where, name="a"), await mesh.start()
    for client in (caller.node.client(Where), caller.node.client("Where")):
        with pytest.raises(ValueError, match=r"Where\.once is not idempotent: hedging could run it twice"):
            await caller.run(client.options(hedge_after=0.5).once())
    assert where.begun == 0


@pytest.mark.parametrize("options", [{"hedge_after": 0}, {"hedge_after": float("inf")}, {"timeout": -1}])
def test_seconds_are_positive_numbers(options: dict[str, object]) -> None:
    async def main() -> None:
        async with zmesh.Node(discovery=None) as node:
            name = next(iter(options))
            with pytest.raises(ValueError, match=f"{name} is a positive number of seconds"):
                node.client("Where").options(**options)  # type: ignore[arg-type]

    asyncio.run(main())
