"""What happens to calls whose node is lost, leaves, falls silent or was never there."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

import zmesh
import zmesh.testing
from zmesh.testing import Host, Link, Mesh


class Worker(zmesh.Service):
    """Writes down which calls ran, by node."""

    def __init__(self, label: str, ran: list[tuple[str, str]], cancelled: list[tuple[str, str]] | None = None) -> None:
        self.label = label
        self.ran = ran
        self.cancelled = [] if cancelled is None else cancelled

    @zmesh.rpc
    async def once(self, call: str, seconds: float = 0.0) -> str:
        self.ran.append((self.label, call))
        await asyncio.sleep(seconds)
        return self.label

    @zmesh.rpc(idempotent=True)
    async def again(self, call: str, seconds: float = 0.0) -> str:
        self.ran.append((self.label, call))
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.cancelled.append((self.label, call))
            raise
        return self.label

    @zmesh.rpc
    async def large(self, size: int) -> bytes:
        return bytes(size)


class Cluster:
    """Some workers and one client that knows them all."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.ran: list[tuple[str, str]] = []
        self.cancelled: list[tuple[str, str]] = []
        self.hosts: dict[str, Host] = {}

    async def start(self, *labels: str, client: dict[str, Any] | None = None, **options: Any) -> Cluster:
        for label in labels:
            self.hosts[label] = await self.mesh.start(Worker(label, self.ran, self.cancelled), name=label, **options)
        self.client = await self.mesh.start(name="client", **(client or {}))
        self.worker = self.client.node.client(Worker)
        await self.client.run(self.worker.once("first"))
        await asyncio.sleep(1.5)
        for method in (self.worker.once, self.worker.again):  # as many calls as show how fast each is
            await asyncio.gather(*(self.client.run(method("warm", 0.01)) for _ in range(20)))
        assert len(self.client.node.peers) == len(labels)
        self.ran.clear()
        self.ready = self.mesh.now
        return self

    def task(self, call: Any) -> asyncio.Task[Any]:
        return asyncio.create_task(self.client.run(call))

    def states(self) -> dict[str, str]:
        return {peer.name: peer.state for peer in self.client.node.peers}

    def runs(self, call: str) -> list[str]:
        return [label for label, ran in self.ran if ran == call]


# -- lost after it was accepted


@zmesh.testing.simulated(seeds=range(3))
async def test_what_was_accepted_and_then_lost_may_have_run(mesh: Mesh) -> None:
    cluster = await Cluster(mesh).start("a", "b")
    tasks = {str(n): cluster.task(cluster.worker.once(str(n), 5)) for n in range(20)}
    await asyncio.sleep(0.5)
    cluster.hosts["a"].crash()
    await asyncio.sleep(0.1)
    for call, task in tasks.items():
        if cluster.runs(call) == ["b"]:
            assert not task.done()
            continue
        assert cluster.runs(call) == ["a"]
        error = task.exception()
        assert isinstance(error, zmesh.MaybeExecuted)
        assert error.code is zmesh.Code.UNKNOWN
        assert not isinstance(error, zmesh.Unavailable)
        assert error.may_have_run
        assert error.node == "a"
        assert error.message == (
            "Worker.once was sent to 'a', which was lost before it answered (connection lost): it may have run. "
            "Mark the method idempotent=True if running it twice does no harm; it is then tried on another node"
        )
    assert {await task for task in tasks.values() if not task.done()} == {"b"}
    assert len(cluster.ran) == 20


@zmesh.testing.simulated(seeds=range(3))
async def test_what_is_idempotent_is_tried_elsewhere(mesh: Mesh) -> None:
    cluster = await Cluster(mesh).start("a", "b", "c")
    tasks = [cluster.task(cluster.worker.again(str(n), 1)) for n in range(30)]
    await asyncio.sleep(0.5)
    cluster.hosts["a"].crash()
    assert set(await asyncio.gather(*tasks)) == {"b", "c"}
    assert all(len(cluster.runs(str(n))) == (2 if "a" in cluster.runs(str(n)) else 1) for n in range(30))


@zmesh.testing.simulated()
async def test_idempotent_and_nobody_else_waits_for_a_successor(mesh: Mesh) -> None:
    cluster = await Cluster(mesh).start("a")
    task = cluster.task(cluster.worker.again("x", 1))
    await asyncio.sleep(0.5)
    cluster.hosts["a"].crash()
    await asyncio.sleep(2)
    await cluster.hosts["a"].restart(Worker("a2", cluster.ran))
    assert await task == "a2"


@zmesh.testing.simulated()
async def test_idempotent_and_nobody_comes(mesh: Mesh) -> None:
    cluster = await Cluster(mesh).start("a")
    task = cluster.task(cluster.worker.again("x", 1))
    await asyncio.sleep(0.5)
    cluster.hosts["a"].crash()
    began = mesh.now
    with pytest.raises(zmesh.MaybeExecuted, match=r"may have run on a node that was lost, and no node offers 'Worker'"):
        await task
    assert mesh.now - began < 5.1


@zmesh.testing.simulated()
async def test_replies_that_were_sent_before_the_crash_arrive(mesh: Mesh) -> None:
    cluster = await Cluster(mesh).start("a")
    mesh.link(cluster.hosts["a"], cluster.client, Link(delay=0.2, jitter=0))
    tasks = [cluster.task(cluster.worker.once(str(n))) for n in range(500)]
    await asyncio.sleep(0.3)  # they ran, their answers are on the way
    assert len(cluster.ran) == 500
    cluster.hosts["a"].crash()
    assert await asyncio.gather(*tasks) == ["a"] * 500


# -- never sent, or refused before it ran


@zmesh.testing.simulated(seeds=range(3))
async def test_what_never_left_is_sent_elsewhere_whatever_the_method(mesh: Mesh) -> None:
    cluster = await Cluster(mesh).start("a", "b")

    async def call_in_the_moment_of_loss() -> list[Any]:
        tasks = [asyncio.create_task(cluster.worker.once(str(n))) for n in range(20)]
        cluster.hosts["a"].crash()
        return await asyncio.gather(*tasks, return_exceptions=True)

    results = await cluster.client.run(call_in_the_moment_of_loss())
    # Taken by a transport that has not heard of the loss: unknown. Everything else is answered by b.
    assert {result if isinstance(result, str) else type(result) for result in results} <= {"b", zmesh.MaybeExecuted}
    assert {await cluster.client.run(cluster.worker.once("after")) for _ in range(20)} == {"b"}
    assert all(len(cluster.runs(str(n))) <= 1 for n in range(20))


@zmesh.testing.simulated(seeds=range(3))
async def test_what_is_refused_is_tried_elsewhere(mesh: Mesh) -> None:
    small = zmesh.Config(max_calls=2)
    cluster = await Cluster(mesh).start("a", "b", config=small)
    results = await asyncio.gather(*(cluster.client.run(cluster.worker.once(str(n), 0.2)) for n in range(20)))
    assert set(results) == {"a", "b"}
    assert len(cluster.ran) == 20


@zmesh.testing.simulated()
async def test_what_everybody_refuses_ends_by_its_deadline(mesh: Mesh) -> None:
    cluster = await Cluster(mesh).start("a", config=zmesh.Config(max_calls=1))
    blocker = cluster.task(cluster.worker.once("blocker", 9))
    await asyncio.sleep(0.1)
    began = mesh.now
    with pytest.raises(
        zmesh.DeadlineExceeded,
        match=r"refused until its deadline, at last with RESOURCE_EXHAUSTED: 'a' runs 1 calls, its limit \(Config",
    ) as caught:
        await cluster.client.run(cluster.worker.options(timeout=2).once("x"))
    assert 2 <= mesh.now - began < 2.01
    assert not caught.value.may_have_run
    assert await blocker == "a"
    assert cluster.runs("x") == []


# -- silence


@zmesh.testing.simulated(seeds=range(3))
async def test_a_suspect_gets_no_new_work_and_its_calls_a_second_attempt(mesh: Mesh) -> None:
    cluster = await Cluster(mesh).start("a", "b")
    tasks = {str(n): cluster.task(cluster.worker.again(str(n), 0.6)) for n in range(10)}
    kept = {f"once {n}": cluster.task(cluster.worker.once(f"once {n}", 0.6)) for n in range(10)}
    await asyncio.sleep(0.1)
    began = mesh.now
    cluster.hosts["a"].stall(3)
    assert set(await asyncio.gather(*tasks.values())) == {"b"}
    assert mesh.now - began < 0.375 + 0.05 + 0.6 + 0.05
    assert cluster.states() == {"a": "suspect", "b": "alive"}
    cluster.ran.clear()
    assert {await cluster.client.run(cluster.worker.again("new")) for _ in range(20)} == {"b"}
    for call, task in kept.items():  # the others wait, and are answered
        assert await task in "ab", call
    assert mesh.now - began > 2.5
    await asyncio.sleep(0.5)
    assert cluster.states() == {"a": "alive", "b": "alive"}
    assert [call for _, call in cluster.ran if call.startswith("once")] == []


@zmesh.testing.simulated(seeds=range(3))
async def test_the_first_answer_wins(mesh: Mesh) -> None:
    cluster = await Cluster(mesh).start("a", "b")
    task = cluster.task(cluster.worker.again("x", 0.7))
    await asyncio.sleep(0.01)
    (first,) = cluster.runs("x")
    (second,) = {"a", "b"} - {first}
    cluster.hosts[first].stall(0.6)  # suspect, and back before the other has an answer
    await asyncio.sleep(0.5)
    assert cluster.runs("x") == [first, second]
    assert await task == first
    assert 0.69 < mesh.now - cluster.ready < 0.75
    await asyncio.sleep(2)
    assert [peer.load for peer in cluster.client.node.peers] == [0, 0]
    assert cluster.cancelled == [(second, "x")]


@zmesh.testing.simulated(seeds=range(3))
async def test_better_a_suspect_than_nobody(mesh: Mesh) -> None:
    cluster = await Cluster(mesh).start("a", "b")
    for host in cluster.hosts.values():
        host.stall(2)
    tasks = [cluster.task(cluster.worker.once(str(n))) for n in range(10)]
    await asyncio.sleep(0.6)
    late = [cluster.task(cluster.worker.once(f"late {n}")) for n in range(10)]
    await asyncio.sleep(0.1)
    assert cluster.states() == {"a": "suspect", "b": "suspect"}
    assert sum(peer.load for peer in cluster.client.node.peers) == 20  # sent, and not waiting here
    assert set(await asyncio.gather(*tasks, *late)) <= {"a", "b"}
    assert len(cluster.ran) == 20


@zmesh.testing.simulated(seeds=range(3))
async def test_our_own_pause_is_nobodys_fault(mesh: Mesh) -> None:
    cluster = await Cluster(mesh).start("a", "b")
    states: list[str] = []
    cluster.client.node.on_change(lambda peer, before: states.append(peer.state))
    tasks = [cluster.task(cluster.worker.once(str(n), 1)) for n in range(10)]
    await asyncio.sleep(0.2)
    cluster.client.stall(3)
    assert set(await asyncio.gather(*tasks)) <= {"a", "b"}
    await asyncio.sleep(1)

    async def stand_still_behind_calls() -> list[str]:
        tasks = [asyncio.create_task(cluster.worker.once(f"late {n}")) for n in range(10)]
        await asyncio.sleep(0)
        cluster.client.stall(0.6)  # short enough that nothing comes meanwhile, not even an idle heartbeat
        return await asyncio.gather(*tasks)

    assert set(await cluster.client.run(stand_still_behind_calls())) <= {"a", "b"}
    assert states == []


@zmesh.testing.simulated(seeds=range(5))
async def test_a_paused_process_is_dead_after_its_connection_and_comes_back(mesh: Mesh) -> None:
    cluster = await Cluster(mesh).start("a", "b")
    states: list[tuple[float, str]] = []
    began = mesh.now
    cluster.client.node.on_change(lambda peer, before: states.append((mesh.now - began, peer.state)))
    task = cluster.task(cluster.worker.again("x", 2))
    await asyncio.sleep(0.01)
    (label,) = cluster.runs("x")
    cluster.hosts[label].pause()
    assert await task != label
    await asyncio.sleep(1)
    assert [state for _, state in states] == ["suspect", "dead"]
    assert states[0][0] < 0.5
    assert states[1][0] < 1.3
    cluster.hosts[label].resume()
    await asyncio.sleep(3)
    assert cluster.states() == {"a": "alive", "b": "alive"}
    answered: set[str] = set()
    for _ in range(3):
        calls = (cluster.client.run(cluster.worker.once(str(n), 0.01)) for n in range(40))
        answered.update(await asyncio.gather(*calls))
    assert answered == {"a", "b"}


# -- leaving


@zmesh.testing.simulated(seeds=range(5))
async def test_a_draining_node_finishes_what_it_took_and_gets_no_more(mesh: Mesh) -> None:
    cluster = await Cluster(mesh).start("a", "b")
    tasks = [cluster.task(cluster.worker.once(str(n), 1)) for n in range(20)]
    await asyncio.sleep(0.2)
    taken = len([label for label, _ in cluster.ran if label == "a"])
    assert taken
    stopping = asyncio.create_task(cluster.hosts["a"].stop())
    await asyncio.sleep(0.1)
    assert cluster.states() == {"a": "draining", "b": "alive"}
    assert {await cluster.client.run(cluster.worker.once(f"new {n}")) for n in range(20)} == {"b"}
    assert set(await asyncio.gather(*tasks)) == {"a", "b"}
    await stopping
    assert len([label for label, _ in cluster.ran if label == "a"]) == taken
    await asyncio.sleep(0.1)
    assert cluster.states() == {"b": "alive"}


@zmesh.testing.simulated(seeds=range(5))
async def test_rolling_restarts_fail_no_call_and_run_none_twice(mesh: Mesh) -> None:
    cluster = await Cluster(mesh).start("a", "b", "c")
    done = asyncio.Event()
    tasks: list[asyncio.Task[Any]] = []

    async def load() -> None:
        while not done.is_set():
            tasks.append(cluster.task(cluster.worker.once(f"call {len(tasks)}", 0.02)))
            await asyncio.sleep(0.01)

    loading = asyncio.create_task(load())
    for label in "abcabc":
        await cluster.hosts[label].restart()
        await asyncio.sleep(0.5)
    done.set()
    await loading
    await asyncio.gather(*tasks)
    calls = [call for _, call in cluster.ran]
    assert len(calls) == len(set(calls)) == len(tasks) > 300


@pytest.mark.parametrize("delay", [0.15, 0.3, 0.5])
@zmesh.testing.simulated(seeds=range(3))
async def test_calls_above_the_last_number_of_a_goodbye_run_once_elsewhere(mesh: Mesh, delay: float) -> None:
    """The way is so long that calls are still on it when the grace is over and GOODBYE is said."""
    ran: list[tuple[str, str]] = []
    config = zmesh.Config(drain_grace=0.1, suspect_after=30, transport_timeout=30)
    leaving = await mesh.start(Worker("leaving", ran), config=config)
    client = await mesh.start(config=zmesh.Config(suspect_after=30, transport_timeout=30))
    worker = client.node.client(Worker)
    await client.run(worker.once("first"))
    mesh.link(leaving, client, Link(delay=delay, jitter=0))
    await client.run(worker.once("second"))
    tasks: list[asyncio.Task[Any]] = []

    async def load() -> None:
        for n in range(200):
            tasks.append(asyncio.create_task(client.run(worker.once(f"call {n}"))))
            await asyncio.sleep(0.01)

    loading = asyncio.create_task(load())
    await asyncio.sleep(1)
    stopping = asyncio.create_task(leaving.stop())
    await mesh.start(Worker("staying", ran))
    await stopping
    await loading
    results = await asyncio.gather(*tasks, return_exceptions=True)
    calls = [call for _, call in ran if call.startswith("call")]
    assert len(calls) == len(set(calls)), "a call that is not idempotent ran twice"
    assert {result if isinstance(result, str) else type(result) for result in results} <= {
        "leaving", "staying", zmesh.MaybeExecuted
    }  # fmt: skip
    assert len(calls) >= 190


# -- the calling node closes


@zmesh.testing.simulated()
async def test_pending_calls_end_when_their_own_node_closes(mesh: Mesh) -> None:
    cluster = await Cluster(mesh).start("a")
    sent = cluster.task(cluster.worker.once("x", 5))
    parked = asyncio.create_task(cluster.client.node.client("Nobody").call())
    await asyncio.sleep(0.5)
    began = mesh.now
    node = cluster.client.node
    await node.__aexit__(None, None, None)
    with pytest.raises(zmesh.Cancelled, match="node 'client' is closed") as caught:
        await sent
    assert caught.value.may_have_run
    with pytest.raises(zmesh.Unavailable, match="node 'client' is closed") as refused:
        await parked
    assert not refused.value.may_have_run
    with pytest.raises(zmesh.Unavailable, match="node 'client' is closed"):
        await node.client(Worker).once("later")
    assert mesh.now - began < 0.1


# -- incarnations, names, meshes


@zmesh.testing.simulated(seeds=range(5))
async def test_a_restart_at_the_same_address(mesh: Mesh) -> None:
    ran: list[tuple[str, str]] = []
    server = await mesh.start(Worker("old", ran), listen="tcp://*:7001", discovery=None)
    client = await mesh.start(peers=[f"tcp://{server.address}:7001"])
    worker = client.node.client(Worker)
    assert await client.run(worker.once("1")) == "old"
    old = server.node.id
    for label in ("new", "newer"):
        task = asyncio.create_task(client.run(worker.once(f"in flight {label}", 5)))
        await asyncio.sleep(0.5)
        server.crash()
        await server.restart(Worker(label, ran))
        with pytest.raises(zmesh.MaybeExecuted):  # never runs in the successor
            await task
        assert await client.run(worker.once("2")) == label
        (peer,) = client.node.peers
        assert peer.id == server.node.id != old
        assert peer.state == "alive"
    assert len([call for _, call in ran if call.startswith("in flight")]) == 2


@zmesh.testing.simulated(seeds=range(3))
async def test_two_nodes_of_one_name(mesh: Mesh) -> None:
    ran: list[tuple[str, str]] = []
    options: dict[str, Any] = {"listen": "tcp://*:7001"}
    hosts = [await mesh.start(Worker(label, ran), name=f"host {label}", **options) for label in "ab"]
    for host in hosts:
        await host.stop()
    client = await mesh.start()
    for host in hosts:
        host._options["name"] = "twin"
        await host.restart()
    worker = client.node.client(Worker)
    await client.node.discover()
    assert [peer.name for peer in client.node.peers] == ["twin", "twin"]
    assert {await client.run(worker.once(str(n))) for n in range(20)} == {"a", "b"}
    hosts[0].crash()
    await asyncio.sleep(1)
    assert sorted(peer.state for peer in client.node.peers) == ["alive", "dead"]
    assert {await client.run(worker.once(str(n))) for n in range(20)} == {"b"}


@zmesh.testing.simulated()
async def test_a_node_that_is_told_its_own_address(mesh: Mesh) -> None:
    ran: list[tuple[str, str]] = []
    host = await mesh.start(Worker("self", ran), listen="tcp://*:7001", peers=["tcp://127.0.0.1:7001"])
    with pytest.raises(zmesh.Unavailable, match=r"no node offers 'Worker' after 5\.0 s: saw no node"):
        await host.node.client(Worker).once("x")
    assert host.node.peers == []
    client = await mesh.start(peers=[f"tcp://{host.address}:7001"])
    assert await client.node.client(Worker).once("x") == "self"


@zmesh.testing.simulated()
async def test_nodes_of_another_mesh(mesh: Mesh) -> None:
    ran: list[tuple[str, str]] = []
    server = await mesh.start(Worker("other", ran), mesh="other", listen="tcp://*:7001", name="server")
    by_mdns = await mesh.start()
    with pytest.raises(zmesh.Unavailable, match="saw no node"):
        await by_mdns.node.client(Worker).once("x")
    told = await mesh.start(peers=[f"tcp://{server.address}:7001"], name="client")
    with pytest.raises(
        zmesh.Unavailable,
        match=r"'server' belongs to mesh 'other', 'client' to 'simulated': give both the same --mesh or ZMESH_MESH",
    ):
        await told.node.client(Worker).once("x")
    assert ran == []
    assert told.node.peers == []


@zmesh.testing.simulated()
async def test_nothing_answers_at_a_static_address_until_something_does(mesh: Mesh) -> None:
    ran: list[tuple[str, str]] = []
    server = await mesh.start(Worker("late", ran), listen="tcp://*:7001", discovery=None)
    server.crash()
    client = await mesh.start(peers=[f"tcp://{server.address}:7001"], discovery=None)
    worker = client.node.client(Worker)
    with pytest.raises(zmesh.Unavailable, match=rf"tcp://{server.address}:7001: connection refused or unreachable"):
        await client.run(worker.once("x"))
    await server.restart()
    assert await client.run(worker.once("y")) == "late"
    assert ran == [("late", "y")]


@zmesh.testing.simulated()
async def test_found_by_both_static_address_and_discovery_is_one_peer(mesh: Mesh) -> None:
    ran: list[tuple[str, str]] = []
    server = await mesh.start(Worker("a", ran), listen="tcp://*:7001", name="a")
    client = await mesh.start(peers=[f"tcp://{server.address}:7001"])
    await client.run(client.node.client(Worker).once("x"))
    await client.node.discover()
    assert [peer.name for peer in client.node.peers] == ["a"]
    await server.stop()
    await asyncio.sleep(1)
    assert client.node.peers == []
    await server.restart()
    assert await client.run(client.node.client(Worker).once("y")) == "a"
    await client.node.discover()
    assert [(peer.name, peer.state) for peer in client.node.peers] == [("a", "alive")]


# -- a peer that does not read


@zmesh.testing.simulated()
async def test_a_link_whose_peer_does_not_read_is_closed_not_filled(mesh: Mesh) -> None:
    config = zmesh.Config(max_queued_messages=1000, suspect_after=60, patience=60)
    cluster = await Cluster(mesh).start("a", client={"config": config})
    cluster.hosts["a"].stall(30)
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("zmesh.dialer")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        tasks = []
        for n in range(10_000):  # the peer does not read: 2,000 envelopes fit into the two queues
            tasks.append(cluster.task(cluster.worker.options(timeout=20).once(str(n))))
            await asyncio.sleep(0.0005)
            if n % 2:
                tasks[-2].cancel()  # a cancel is a message too, and is sent where no new call is
        results = await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert {type(result) for result in results} <= {
        str, asyncio.CancelledError, zmesh.MaybeExecuted, zmesh.DeadlineExceeded
    }  # fmt: skip
    assert any("the peer does not read: its queue and ours are full" in record for record in records), records
    await asyncio.sleep(15)
    assert await cluster.client.run(cluster.worker.once("at last")) == "a"
    calls = [call for _, call in cluster.ran]
    assert len(calls) == len(set(calls))
