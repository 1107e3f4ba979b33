"""A node with more to do than it can: what it takes, what it refuses, what callers then do. In virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

import zmesh
import zmesh.testing
from zmesh._core.admission import Admission
from zmesh._slots import Slots
from zmesh.testing import Host, Mesh


class Crunch(zmesh.Service):
    """Plain handlers of 10 ms: `threads` of them at once."""

    @zmesh.rpc(idempotent=True)
    @zmesh.testing.takes(0.01)
    def crunch(self) -> int:
        return zmesh.context().priority

    @zmesh.rpc
    @zmesh.testing.takes(0.01)
    def numbers(self, upto: int) -> int:
        return sum(range(upto))

    @zmesh.rpc(idempotent=True)
    async def wait(self, seconds: float) -> int:
        await asyncio.sleep(seconds)
        return 0


class Front(zmesh.Service):
    """Calls on: twice."""

    @zmesh.rpc
    async def twice(self, priority: int = -1) -> list[int]:
        crunch = zmesh.context().client(Crunch)
        if priority >= 0:
            crunch = crunch.options(priority=priority)
        return [zmesh.context().priority, await crunch.crunch(), await crunch.crunch()]


def hub_of(host: Host) -> Any:
    return host.node._hub


def server_of(host: Host) -> Any:
    return hub_of(host).server


class Load:
    """Calls that come at a steady rate, whatever becomes of them."""

    def __init__(self, mesh: Mesh, client: Host) -> None:
        self.mesh = mesh
        self.client = client
        self.good: list[tuple[float, float]] = []  # when it was called, how long it took
        self.failed: Counter[str] = Counter()
        self.crunch = client.node.client(Crunch)
        self.tasks: list[asyncio.Task[None]] = []

    async def one(self, options: dict[str, Any]) -> None:
        began = self.mesh.now
        try:
            await self.client.run(self.crunch.options(**options).crunch())
        except zmesh.RpcError as error:
            self.failed[error.code.name] += 1
        else:
            self.good.append((began, self.mesh.now - began))

    async def run(self, rate: float, seconds: float, **options: Any) -> None:
        for _ in range(int(rate * seconds)):
            self.tasks.append(asyncio.create_task(self.one(options)))
            await asyncio.sleep(self.mesh.random.expovariate(rate))

    async def end(self) -> None:
        await asyncio.gather(*self.tasks)


async def loaded(mesh: Mesh, **options: Any) -> tuple[Host, Load]:
    """One node that can do 200 calls/s."""
    host = await mesh.start(Crunch(), threads=2, **options)
    client = await mesh.start()
    load = Load(mesh, client)
    await load.one({})
    return host, load


# -- harmless


@zmesh.testing.simulated()
async def test_a_node_that_is_not_overloaded_refuses_nothing(mesh: Mesh) -> None:
    host, load = await loaded(mesh)
    await load.run(180, 5, timeout=1.0)
    await load.end()
    assert not load.failed
    assert server_of(host).refused == 0


@zmesh.testing.simulated()
async def test_a_thousand_calls_at_once_are_all_answered(mesh: Mesh) -> None:
    host, load = await loaded(mesh)
    await asyncio.gather(*(load.one({}) for _ in range(1_000)))  # 5 s of work, each has 10 s
    assert not load.failed
    assert server_of(host).repeated == 0


@zmesh.testing.simulated()
async def test_handlers_that_wait_for_something_else_are_no_queue(mesh: Mesh) -> None:
    host, load = await loaded(mesh)
    calls = [asyncio.create_task(load.client.run(load.crunch.options(timeout=4.0).wait(3.0))) for _ in range(2_000)]
    await asyncio.sleep(0.5)
    assert server_of(host).in_flight == 2_000
    assert set(await asyncio.gather(*calls)) == {0}
    assert server_of(host).refused == 0


# -- overload


@pytest.mark.parametrize("factor", [2, 5])
@zmesh.testing.simulated()
async def test_goodput_and_recovery(mesh: Mesh, factor: int) -> None:
    host, load = await loaded(mesh)
    began = mesh.now
    await load.run(200 * factor, 8, timeout=1.0)
    spike_ended = mesh.now
    failed = load.failed.total()
    assert failed > 0
    await load.run(100, 4, timeout=1.0)
    await load.end()
    during = sum(1 for when, took in load.good if began <= when < spike_ended and took <= 1.0)
    assert during >= 0.85 * 200 * (spike_ended - began)
    after = [when for when, _ in load.good if when >= spike_ended + 2.0]
    expected = 100 * (mesh.now - 1.0 - spike_ended - 2.0)
    assert len(after) > 0.8 * expected
    assert server_of(host)._level() == 0


@zmesh.testing.simulated()
async def test_callers_hold_back_what_would_be_refused(mesh: Mesh) -> None:
    host, load = await loaded(mesh)
    await load.run(1_000, 4, timeout=1.0)
    refused = server_of(host).refused
    server_of(host).refused = 0
    before = load.failed["RESOURCE_EXHAUSTED"]
    await load.run(1_000, 2, timeout=1.0)
    await load.end()
    held_back = load.failed["RESOURCE_EXHAUSTED"] - before
    assert refused > 0
    assert held_back > 1_000
    assert server_of(host).refused < held_back / 3  # most of it never left


def overload(host: Host, now: float) -> None:
    """Let it take no calls of plain handlers but those of priority 9."""
    slots = server_of(host)._slots
    admission = slots.admission
    admission.level, admission.free, admission._share = 9 * 128, 0, 0.1
    admission.standing, admission._start = True, now
    slots.waiting.append(asyncio.get_running_loop().create_future())


@pytest.mark.parametrize("retries", [True, False])
@zmesh.testing.simulated()
async def test_who_is_refused_for_its_rank_is_told_at_once(mesh: Mesh, retries: bool) -> None:
    host, load = await loaded(mesh)
    overload(host, mesh.now)
    while not retries and hub_of(load.client).client.judge.budget("Crunch").retry(mesh.now):
        pass
    began = mesh.now
    with pytest.raises(zmesh.ResourceExhausted) as caught:
        await load.client.run(load.crunch.options(priority=3).crunch())
    assert mesh.now - began < 0.02
    assert caught.value.message == (
        "Crunch.crunch was held back here: 'host-1' is overloaded; of priority 3 only a part is taken"
    )
    assert not caught.value.may_have_run


@zmesh.testing.simulated()
async def test_calls_go_to_who_takes_them(mesh: Mesh) -> None:
    host, load = await loaded(mesh)
    other = await mesh.start(Crunch(), name="other")
    await asyncio.sleep(1)
    overload(host, mesh.now)
    for _ in range(20):
        await load.one({"timeout": 1.0})
        await load.one({"timeout": 1.0})
    assert not load.failed
    assert server_of(host).refused < 20  # hardly more than one, and that was tried elsewhere
    assert server_of(other).refused == 0


@zmesh.testing.simulated()
async def test_the_important_come_first(mesh: Mesh) -> None:
    _, load = await loaded(mesh)
    other = Load(mesh, load.client)
    await asyncio.gather(
        load.run(100, 6, timeout=1.0, priority=8),
        other.run(400, 6, timeout=1.0, priority=2),
    )
    await asyncio.gather(load.end(), other.end())
    assert len(load.good) > 0.93 * 600
    assert 0 < len(other.good) < 0.4 * 2_400


@zmesh.testing.simulated()
async def test_the_node_still_tells_how_it_is(mesh: Mesh) -> None:
    host, load = await loaded(mesh)
    await load.run(1_000, 2, timeout=1.0)
    stats = await load.client.run(load.client.node.client("Crunch").options(timeout=0.5).stats())
    (one,) = stats.values()
    assert one["refused"] == server_of(host).refused > 0
    await load.end()


@zmesh.testing.simulated()
async def test_what_is_asked_of_the_node_itself_is_never_refused(mesh: Mesh) -> None:
    host, load = await loaded(mesh)
    server = server_of(host)
    lane = server._lane
    lane.level, lane.free, lane._share, lane.standing, lane._start = 9 * 128, -1, 0.1, True, mesh.now
    refused: list[object] = []
    server._turned_away = lambda *call: refused.append(call)
    assert len(await load.client.run(load.client.node.client("Crunch").stats())) == 1
    assert not refused


@zmesh.testing.simulated()
async def test_without_admission_calls_wait_until_they_expire(mesh: Mesh) -> None:
    host, load = await loaded(mesh, config=zmesh.Config(admission=False))
    await load.run(400, 5, timeout=1.0)
    await load.end()
    assert set(load.failed) == {"DEADLINE_EXCEEDED"}
    assert server_of(host).refused == 0


@zmesh.testing.simulated()
async def test_a_limit_of_time_in_the_queue(mesh: Mesh) -> None:
    _, load = await loaded(mesh, config=zmesh.Config(queue_target=0.05))
    await load.run(400, 5, timeout=8.0)
    await load.end()
    took = sorted(took for when, took in load.good)
    assert took[len(took) // 2] < 0.12


@zmesh.testing.simulated()
async def test_plain_handlers_behind_do_not_hold_back_the_others(mesh: Mesh) -> None:
    """A level is told only where every queue has one."""
    host, load = await loaded(mesh)
    await load.run(1_000, 2, timeout=1.0)
    assert server_of(host)._slots.admission.level > 0
    assert server_of(host)._level() == 0  # `wait` is served on the loop, which has nothing to do
    began = mesh.now
    await asyncio.gather(*(load.client.run(load.crunch.options(priority=0).wait(0.01)) for _ in range(50)))
    assert mesh.now - began < 0.05
    await load.end()


# -- priorities


@pytest.mark.parametrize(("given", "seen"), [({}, 5), ({"priority": 0}, 0), ({"priority": 9}, 9)])
@zmesh.testing.simulated()
async def test_handlers_see_the_priority_and_their_calls_inherit_it(
    mesh: Mesh, given: dict[str, int], seen: int
) -> None:
    await mesh.start(Crunch())
    await mesh.start(Front())
    client = await mesh.start()
    front = client.node.client(Front).options(**given)
    assert await client.run(front.twice()) == [seen] * 3
    assert await client.run(front.twice(2)) == [seen, 2, 2]


@zmesh.testing.simulated()
async def test_what_a_handler_calls_has_its_lot(mesh: Mesh) -> None:
    crunch = await mesh.start(Crunch())
    await mesh.start(Front())
    client = await mesh.start()
    ranks: list[int] = []
    received = server_of(crunch).received

    def spy(link: Any, message: Any, *rest: Any) -> None:
        if message[2] == "Crunch.crunch":
            ranks.append(message[7])
        received(link, message, *rest)

    crunch.node._hub.call_received = spy  # type: ignore[attr-defined,union-attr]
    for _ in range(20):
        await client.run(client.node.client(Front).options(priority=7).twice())
    assert all(first == second for first, second in zip(ranks[::2], ranks[1::2], strict=True))
    assert len(set(ranks)) > 10
    assert {rank // 128 for rank in ranks} == {7}


@pytest.mark.parametrize("priority", [-1, 10, 1.5, "high", True])
def test_what_is_no_priority(priority: Any) -> None:
    async def main() -> None:
        async with zmesh.Node(discovery=None) as node:
            with pytest.raises(ValueError, match="priority is a whole number from 0 to 9"):
                node.client(Crunch).options(priority=priority)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("setting", "why"),
    [({"queue_target": 0}, "queue_target must be a positive"), ({"admission": 1}, "admission is True or False")],
)
def test_what_is_no_setting(setting: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        zmesh.Config(**setting)


# -- on the loop


@zmesh.testing.simulated()
async def test_a_queue_of_the_loop_runs_the_newest_and_answers_the_expired(mesh: Mesh) -> None:
    host = await mesh.start(Crunch())
    client = await mesh.start()
    crunch = client.node.client(Crunch)
    await client.run(crunch.wait(0.0))
    server = server_of(host)
    server._lane.newest_first = True
    began: list[float] = []
    begin = server._begin

    def spy(running: Any, now: float) -> Any:
        began.append(running.arguments["seconds"])
        return begin(running, now)

    server._begin = spy
    await asyncio.gather(*(client.run(crunch.wait(number / 1e6)) for number in range(10)))
    assert began == sorted(began, reverse=True)
    server._lane.newest_first = False
    began.clear()
    await asyncio.gather(*(client.run(crunch.wait(number / 1e6)) for number in range(10)))
    assert began == sorted(began)


# -- the slots of plain handlers


async def slots_in_order(*, newest_first: bool) -> list[int]:
    slots, order = Slots(2, Admission(2), lambda: 0.0), list[int]()
    slots.admission.newest_first = newest_first

    async def work(number: int) -> None:
        await slots.acquire()
        order.append(number)

    tasks = [asyncio.create_task(work(number)) for number in range(6)]
    await asyncio.sleep(0)
    assert order == [0, 1]
    tasks[3].cancel()
    slots.release()
    await asyncio.sleep(0)
    for _ in range(4):
        slots.release()
        await asyncio.sleep(0)
    assert not slots.waiting
    assert slots._free == 2
    assert slots.admission.begun == 5
    return order


def test_slots_are_given_in_order_or_to_the_newest() -> None:
    assert asyncio.run(slots_in_order(newest_first=False)) == [0, 1, 2, 4, 5]
    assert asyncio.run(slots_in_order(newest_first=True)) == [0, 1, 5, 4, 2]


def test_a_slot_that_was_given_to_a_cancelled_call_goes_to_the_next() -> None:
    async def main() -> None:
        slots = Slots(1, Admission(1), lambda: 0.0)
        await slots.acquire()
        first, second = (asyncio.create_task(slots.acquire()) for _ in range(2))
        await asyncio.sleep(0)
        slots.release()  # to the first, which has not run yet
        first.cancel()
        await asyncio.sleep(0)
        await second
        assert first.cancelled()
        slots.release()
        assert slots._free == 1

    asyncio.run(main())
