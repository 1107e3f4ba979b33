"""Peers that fail are left alone and come back; what that costs their callers."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

import zmesh
import zmesh.testing
from zmesh.testing import Host, Mesh


class Work(zmesh.Service):
    """Answers, or fails as it is told."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.error: Exception | None = None
        self.hangs = False
        self.calls = 0

    @zmesh.rpc(idempotent=True)
    async def work(self) -> str:
        return await self._work()

    @zmesh.rpc
    async def once(self) -> str:
        return await self._work()

    async def _work(self) -> str:
        self.calls += 1
        if self.error is not None:
            raise self.error
        await asyncio.sleep(3600 if self.hangs else 0.005)
        return self.label


class Cluster:
    def __init__(self, mesh: Mesh, count: int) -> None:
        self.mesh = mesh
        self.works = [Work("abcdefghijkl"[number]) for number in range(count)]

    async def start(self) -> Cluster:
        self.hosts = [await self.mesh.start(work, name=work.label) for work in self.works]
        self.client = await self.mesh.start(name="client")
        self.work = self.client.node.client(Work)
        await self.calls(1, 50)
        await asyncio.sleep(1.5)
        await self.calls(100, 100)
        return self

    async def one(self, **options: Any) -> str:
        work = self.work.options(**options) if options else self.work
        return await self.client.run(work.work())

    async def calls(self, count: int, rate: float, **options: Any) -> Counter[str]:
        """Calls that come at a steady rate: who answered, or with which error."""

        async def one() -> str:
            try:
                return await self.one(**options)
            except zmesh.RpcError as error:
                return error.code.name

        tasks = []
        for _ in range(count):
            tasks.append(asyncio.create_task(one()))
            await asyncio.sleep(1 / rate)
        return Counter(await asyncio.gather(*tasks))


def hub_of(host: Host) -> Any:
    return host.node._hub  # type: ignore[attr-defined]


# -- ejection


@zmesh.testing.simulated(seeds=range(3))
async def test_a_node_that_fails_fast_gets_five_calls_and_then_a_probe_now_and_then(mesh: Mesh) -> None:
    cluster = await Cluster(mesh, 5).start()
    bad = cluster.works[2]
    bad.error, bad.calls = zmesh.Unavailable("no database"), 0
    answers = await cluster.calls(400, 100)  # 4 s
    assert 5 <= bad.calls <= 8
    assert answers["UNAVAILABLE"] == bad.calls
    assert not answers["c"]


@zmesh.testing.simulated(seeds=range(3))
async def test_it_comes_back_by_one_probe_and_slowly(mesh: Mesh) -> None:
    cluster = await Cluster(mesh, 5).start()
    bad = cluster.works[2]
    bad.error = zmesh.Unavailable("no database")
    await cluster.calls(200, 100)
    bad.error = None
    first = await cluster.calls(400, 400)
    assert first["c"] < 40
    await asyncio.sleep(5)
    await cluster.calls(10, 100)
    await asyncio.sleep(6)
    later = await cluster.calls(400, 400)
    assert later["c"] > 50
    assert sum(first.values()) == sum(first[label] for label in "abcde")


@zmesh.testing.simulated(seeds=range(3))
async def test_a_node_of_which_nothing_comes_is_ejected(mesh: Mesh) -> None:
    cluster = await Cluster(mesh, 5).start()
    cluster.works[2].hangs = True
    answers = await cluster.calls(400, 100, timeout=0.5)
    assert answers["DEADLINE_EXCEEDED"] < 40  # what was sent there before the first deadlines passed, and probes
    assert not answers["c"]
    cluster.works[2].hangs = False
    await asyncio.sleep(30)
    await cluster.calls(3, 1)
    await asyncio.sleep(10)
    answers = await cluster.calls(400, 100, timeout=0.5)
    assert answers["c"] > 0
    assert not answers["DEADLINE_EXCEEDED"]


@zmesh.testing.simulated(seeds=range(3))
async def test_where_all_fail_all_are_tried(mesh: Mesh) -> None:
    cluster = await Cluster(mesh, 4).start()
    for work in cluster.works:
        work.error, work.calls = zmesh.Unavailable("no database"), 0
    answers = await cluster.calls(200, 100)
    assert answers == {"UNAVAILABLE": 200}
    assert sum(work.calls for work in cluster.works) == 200  # that a handler says so is its answer
    for work in cluster.works:
        work.error = None
    await asyncio.sleep(1)
    answers = await cluster.calls(400, 100)
    assert set(answers) == set("abcd")


@pytest.mark.parametrize("error", [zmesh.NotFound("no spoon"), zmesh.ResourceExhausted("your quota")])
@zmesh.testing.simulated()
async def test_what_the_application_says_ejects_nobody(mesh: Mesh, error: Exception) -> None:
    cluster = await Cluster(mesh, 3).start()
    cluster.works[0].error = error
    cluster.works[0].calls = 0
    await cluster.calls(300, 100)
    assert cluster.works[0].calls > 50


@zmesh.testing.simulated()
async def test_exceptions_cost_weight_where_others_raise_none(mesh: Mesh) -> None:
    """Failing at once, a node looks idle; under load it must not attract the calls of the others."""
    cluster = await Cluster(mesh, 3).start()
    cluster.works[0].error, cluster.works[0].calls = ValueError("broken"), 0
    answers = await cluster.calls(500, 3_000)
    assert answers["INTERNAL"] < 500 / 3


@zmesh.testing.simulated()
async def test_who_names_an_ejected_node_reaches_it(mesh: Mesh) -> None:
    cluster = await Cluster(mesh, 3).start()
    cluster.works[1].error = zmesh.Unavailable("no database")
    await cluster.calls(50, 100)
    cluster.works[1].error = None
    assert await cluster.one(node="b") == "b"


@zmesh.testing.simulated()
async def test_a_lost_link_is_one_failure_whatever_was_open(mesh: Mesh) -> None:
    cluster = await Cluster(mesh, 3).start()
    tasks = [asyncio.create_task(cluster.one()) for _ in range(30)]
    await asyncio.sleep(0.002)
    mesh.reset(cluster.hosts[0], cluster.client)
    assert set(await asyncio.gather(*tasks)) <= set("abc")
    await asyncio.sleep(0.5)
    answers = await cluster.calls(300, 100)
    assert answers["a"] > 50


@zmesh.testing.simulated()
async def test_a_deadline_that_passed_while_we_stood_still_is_nobodys_fault(mesh: Mesh) -> None:
    cluster = await Cluster(mesh, 3).start()
    for work in cluster.works:
        work.hangs = True
    tasks = [asyncio.create_task(cluster.one(timeout=1.0)) for _ in range(30)]
    await asyncio.sleep(0.1)
    cluster.client.stall(2.0)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert all(member.health.good for member in hub_of(cluster.client).members)


@zmesh.testing.simulated()
async def test_deadlines_shorter_than_calls_take_are_nobodys_fault(mesh: Mesh) -> None:
    cluster = await Cluster(mesh, 3).start()
    await asyncio.gather(*(asyncio.create_task(cluster.one(timeout=0.002)) for _ in range(60)), return_exceptions=True)
    assert all(member.health.good for member in hub_of(cluster.client).members)


@zmesh.testing.simulated(seeds=range(3))
async def test_probes_are_calls_of_idempotent_methods_where_there_are_any(mesh: Mesh) -> None:
    cluster = await Cluster(mesh, 3).start()
    bad = cluster.works[1]
    bad.error = zmesh.Unavailable("no database")
    while bad.calls < 1_000 and hub_of(cluster.client).members.get(cluster.hosts[1].node._id).health.good:
        await cluster.calls(1, 100)
    bad.error = None
    await asyncio.sleep(1.4)
    odd = hub_of(cluster.client).members.odd
    assert [member.name for member in odd] == ["b"]
    for _ in range(5):
        assert await cluster.client.run(cluster.work.once()) in "ac"
    assert await cluster.one() == "b"
    assert not odd


@zmesh.testing.simulated(seeds=range(3))
async def test_one_that_is_silent_gets_no_probe_until_it_speaks(mesh: Mesh) -> None:
    cluster = await Cluster(mesh, 3).start()
    bad = cluster.works[1]
    bad.hangs = True
    hanging = asyncio.create_task(cluster.client.run(cluster.work.options(node="b", timeout=60.0).once()))
    await asyncio.sleep(0.1)  # while it is open, silence shows soon
    bad.hangs, bad.error = False, zmesh.Unavailable("no database")
    member = hub_of(cluster.client).members.get(cluster.hosts[1].node._id)
    while member.health.good:
        await cluster.calls(1, 100, node="b")
    bad.error, calls = None, bad.calls
    cluster.hosts[1].stall(3.0)
    await asyncio.sleep(2.5)
    assert (member.state.value, member.health.state.value) == ("suspect", "due")
    answers = await cluster.calls(20, 100, timeout=0.2)
    assert answers["a"] + answers["c"] == 20
    await asyncio.sleep(1.0)
    assert bad.calls == calls
    assert await cluster.one() == "b"
    hanging.cancel()


@zmesh.testing.simulated()
async def test_where_there_are_none_others_will_do(mesh: Mesh) -> None:
    cluster = await Cluster(mesh, 3).start()
    cluster.works[1].error = zmesh.Unavailable("no database")
    await cluster.calls(60, 100)
    cluster.works[1].error = None
    await asyncio.sleep(3.2)
    answers = [await cluster.client.run(cluster.work.once()) for _ in range(3)]
    assert answers[0] == "b"


# -- retries


class Told(zmesh.Service):
    @zmesh.rpc(idempotent=True)
    async def attempt(self, seconds: float = 0.0) -> int:
        attempt = zmesh.context().attempt
        await asyncio.sleep(seconds)
        return attempt


@zmesh.testing.simulated(seeds=range(3))
async def test_a_server_is_told_which_attempt_it_serves_and_counts_them(mesh: Mesh) -> None:
    hosts = [await mesh.start(Told(), name=name) for name in "ab"]
    client = await mesh.start()
    told = client.node.client(Told)
    assert await client.run(told.attempt()) == 1
    await asyncio.sleep(1)
    calls = [asyncio.create_task(client.run(told.attempt(1.0))) for _ in range(10)]
    await asyncio.sleep(0.5)
    hosts[0].crash()
    attempts = Counter(await asyncio.gather(*calls))
    assert set(attempts) == {1, 2}
    stats = await client.run(client.node.client("Told").stats())
    assert [each["repeated"] for each in stats.values()] == [attempts[2]]


@zmesh.testing.simulated()
async def test_where_everything_is_refused_there_are_at_most_1_2_attempts_a_call(mesh: Mesh) -> None:
    cluster = await Cluster(mesh, 3).start()
    refused = Counter[str]()
    for host in cluster.hosts:
        server = hub_of(host).server

        def turned_away(link: Any, message: Any, *_: Any, name: str = host.name) -> bool:
            refused[name] += 1
            link.fail(message[1], 8, "too much", ran=False)
            return True

        server._turned_away = turned_away
        for handler in server._handlers.values():
            handler.admission.free = 0 if handler.schema.service == "Work" else handler.admission.free
    answers = await cluster.calls(2_000, 200, timeout=1.0)
    assert answers == {"DEADLINE_EXCEEDED": 2_000}
    assert sum(refused.values()) <= 1.2 * 2_000 + 100 + 10  # the floor, which was saved; and that of the last second
    assert sum(refused.values()) >= 1.1 * 2_000


@pytest.mark.parametrize(("asked", "least"), [(800, 0.8), (None, 0.0)])
@zmesh.testing.simulated()
async def test_a_node_says_when_to_try_again(mesh: Mesh, asked: int | None, least: float) -> None:
    cluster = await Cluster(mesh, 1).start()
    server = hub_of(cluster.hosts[0]).server
    when = []

    def turned_away(link: Any, message: Any, *_: Any) -> bool:
        when.append(mesh.now)
        if len(when) > 1:
            return False
        link.fail(message[1], 8, "busy", ran=False, fields=None if asked is None else {"retry-after": asked})
        return True

    server._turned_away = turned_away
    server._lane.free = 0
    assert await cluster.one() == "a"
    assert least <= when[1] - when[0] < least + 0.1


@zmesh.testing.simulated()
async def test_a_node_says_never_again(mesh: Mesh) -> None:
    cluster = await Cluster(mesh, 3).start()
    for host in cluster.hosts:
        server = hub_of(host).server

        def turned_away(link: Any, message: Any, *_: Any) -> bool:
            link.fail(message[1], 8, "all of us are", ran=False, fields={"retry-after": False})
            return True

        server._turned_away = turned_away
        server._lane.free = 0
    began = mesh.now
    with pytest.raises(zmesh.ResourceExhausted, match="all of us are") as caught:
        await cluster.one()
    assert not caught.value.may_have_run
    assert mesh.now - began < 0.01


# -- hedges


@zmesh.testing.simulated(seeds=range(3))
async def test_hedging_after_a_percentile(mesh: Mesh) -> None:
    cluster = await Cluster(mesh, 4).start()
    await cluster.calls(200, 100, hedge_after="p95")
    cluster.works[0].hangs = True
    before = sum(work.calls for work in cluster.works)
    began = mesh.now
    answers = await cluster.calls(100, 100, hedge_after="p95", timeout=2.0)
    assert set(answers) <= set("bcd")
    assert mesh.now - began < 1.1
    assert 100 < sum(work.calls for work in cluster.works) - before < 140


@zmesh.testing.simulated()
async def test_before_enough_was_measured_nothing_is_hedged(mesh: Mesh) -> None:
    cluster = await Cluster(mesh, 4).start()
    for work in cluster.works:
        work.calls = 0
    await cluster.calls(15, 100, hedge_after="p95")
    assert sum(work.calls for work in cluster.works) == 15


@zmesh.testing.simulated()
async def test_at_most_a_twentieth_of_the_calls_are_hedged(mesh: Mesh) -> None:
    cluster = await Cluster(mesh, 4).start()
    for work in cluster.works:
        work.calls = 0
    answers = await cluster.calls(1_000, 200, hedge_after=0.001)  # before any answer can come
    assert sum(answers.values()) == 1_000
    assert 1_040 <= sum(work.calls for work in cluster.works) <= 1_050
