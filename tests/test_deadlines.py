"""Deadlines and cancellation: every call ends in time, on both sides, and what expired never runs."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

import zmesh
import zmesh.testing
from zmesh.testing import Link, Mesh


class Worker(zmesh.Service):
    """Writes down what happens to it."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.background: list[asyncio.Task[object]] = []

    @zmesh.rpc
    async def wait(self, seconds: float, label: str = "wait") -> str:
        self.events.append(f"{label} began")
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.events.append(f"{label} cancelled")
            raise
        finally:
            self.events.append(f"{label} left")
        return label

    @zmesh.rpc
    async def remaining(self) -> float:
        return zmesh.context().remaining

    @zmesh.rpc
    async def tidy_up(self, seconds: float) -> None:
        try:
            await asyncio.sleep(100)
        finally:
            await asyncio.sleep(seconds)
            self.events.append("tidied up")

    @zmesh.rpc
    async def stubborn(self, seconds: float) -> str:
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            await asyncio.sleep(seconds)
        return "too late"

    @zmesh.rpc
    @zmesh.testing.takes(3.0)
    def compute(self, label: str) -> str:
        self.events.append(f"{label} computed")
        return label


class Front(zmesh.Service):
    """Calls on."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self.tasks: list[asyncio.Task[object]] = []

    @zmesh.rpc
    async def remaining_behind(self, timeout: float | None) -> float:
        worker = zmesh.context().client(Worker)
        return await (worker if timeout is None else worker.options(timeout=timeout)).remaining()

    @zmesh.rpc
    async def by_name(self) -> float:
        answer = await zmesh.context().client("Worker").remaining()
        assert isinstance(answer, float)
        return answer

    @zmesh.rpc
    async def wait_behind(self, seconds: float) -> str:
        try:
            return await zmesh.context().client(Worker).wait(seconds, "behind")
        except BaseException as error:
            self.errors.append(error)
            raise

    @zmesh.rpc
    async def in_background(self, delay: float) -> str:
        client = zmesh.context().client(Worker)

        async def later() -> float:
            await asyncio.sleep(delay)
            return await client.remaining()

        self.tasks.append(asyncio.create_task(later()))
        if delay < 1:
            await asyncio.sleep(1)
        return "answered"


async def worker_and_client(mesh: Mesh, **options: object) -> tuple[Worker, zmesh.testing.Host, Worker]:
    """The instance, the host of the client, and the client; the link stands."""
    instance = Worker()
    await mesh.start(instance, name="worker", **options)
    client = await mesh.start(name="client")
    worker = client.node.client(Worker)
    await worker.remaining()
    return instance, client, worker


# -- how long a call may take


@zmesh.testing.simulated()
async def test_ten_seconds_unless_told_otherwise(mesh: Mesh) -> None:
    instance, _, worker = await worker_and_client(mesh)
    assert 9.99 < await worker.remaining() < 10.01
    assert 1.99 < await worker.options(timeout=2).remaining() < 2.01
    began = mesh.now
    text = r"Worker\.wait (was not answered by its deadline by 'worker'|did not finish by its deadline)"
    with pytest.raises(zmesh.DeadlineExceeded, match=text) as caught:
        await worker.wait(60)
    assert 10.0 <= mesh.now - began < 10.01
    assert caught.value.may_have_run
    await asyncio.sleep(0.01)
    assert instance.events == ["wait began", "wait cancelled", "wait left"]


@zmesh.testing.simulated()
async def test_the_default_is_the_configs(mesh: Mesh) -> None:
    await mesh.start(Worker())
    client = await mesh.start(config=zmesh.Config(timeout=3))
    assert 2.9 < await client.node.client(Worker).remaining() < 3.01


@zmesh.testing.simulated()
async def test_a_day_is_a_deadline_too(mesh: Mesh) -> None:
    _, _, worker = await worker_and_client(mesh)
    assert await worker.options(timeout=86_400).remaining() > 86_399
    assert await worker.options(timeout=1e12).remaining() > 2_000_000


@zmesh.testing.simulated()
async def test_it_ends_though_nobody_answers(mesh: Mesh) -> None:
    client = await mesh.start()
    for worker in (client.node.client(Worker), client.node.client("Worker")):
        began = mesh.now
        with pytest.raises(zmesh.DeadlineExceeded, match="no node offers 'Worker' by the call's deadline: saw no node"):
            await worker.options(timeout=1).wait(0)
        assert 1.0 <= mesh.now - began < 1.01


@zmesh.testing.simulated()
async def test_a_call_by_name_has_one_deadline_with_the_question_what_there_is(mesh: Mesh) -> None:
    server, client = await mesh.start(Worker()), await mesh.start()
    await client.node.client(Worker).wait(0)
    mesh.link(server, client, Link(delay=0.4, jitter=0))
    began = mesh.now
    with pytest.raises(zmesh.DeadlineExceeded):
        await client.node.client("Worker").options(timeout=1).wait(seconds=5)
    assert 1.0 <= mesh.now - began < 1.01


@zmesh.testing.simulated()
async def test_both_sides_keep_it(mesh: Mesh) -> None:
    instance, client, worker = await worker_and_client(mesh)
    task = asyncio.create_task(client.run(worker.options(timeout=1).wait(10)))
    await asyncio.sleep(0.1)
    client.stall(3)  # its cancel is not on its way
    await asyncio.sleep(1.0)
    assert instance.events == ["wait began", "wait cancelled", "wait left"]
    with pytest.raises(zmesh.DeadlineExceeded):
        await task
    # and the other way round: a server that stands still
    instance.events.clear()
    task = asyncio.create_task(client.run(worker.options(timeout=1).wait(10)))
    await asyncio.sleep(0.1)
    mesh.hosts[0].stall(3)
    began = mesh.now
    with pytest.raises(zmesh.DeadlineExceeded, match=r"not answered by its deadline by 'worker' \(suspect\)") as caught:
        await task
    assert mesh.now - began < 0.95
    assert caught.value.may_have_run


# -- calls that a handler makes


@pytest.mark.parametrize("given", [None, 60.0])
@zmesh.testing.simulated()
async def test_a_nested_call_inherits_what_is_left(mesh: Mesh, given: float | None) -> None:
    await mesh.start(Worker())
    await mesh.start(Front())
    client = await mesh.start()
    front = client.node.client(Front)
    await front.remaining_behind(None)
    assert 1.9 < await front.options(timeout=2).remaining_behind(given) < 2.01
    assert 1.9 < await front.options(timeout=2).by_name() < 2.01
    assert 0.4 < await front.options(timeout=2).remaining_behind(0.5) < 0.51


@zmesh.testing.simulated()
async def test_a_chain_ends_together(mesh: Mesh) -> None:
    worker, front = Worker(), Front()
    await mesh.start(worker)
    await mesh.start(front)
    client = await mesh.start()
    caller = client.node.client(Front)
    await caller.wait_behind(0)
    worker.events.clear()
    front.errors.clear()
    began = mesh.now
    with pytest.raises(zmesh.DeadlineExceeded):
        await caller.options(timeout=1).wait_behind(100)
    assert 1.0 <= mesh.now - began < 1.01
    await asyncio.sleep(0.05)
    assert worker.events == ["behind began", "behind cancelled", "behind left"]
    assert len(front.errors) == 1


@zmesh.testing.simulated()
async def test_a_cancelled_chain_is_cancelled_to_its_end(mesh: Mesh) -> None:
    worker, front = Worker(), Front()
    await mesh.start(worker)
    await mesh.start(front)
    client = await mesh.start()
    caller = client.node.client(Front)
    await caller.wait_behind(0)
    worker.events.clear()
    task = asyncio.create_task(caller.wait_behind(100))
    await asyncio.sleep(0.5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.05)
    assert worker.events == ["behind began", "behind cancelled", "behind left"]
    assert [type(error) for error in front.errors] == [asyncio.CancelledError]


@zmesh.testing.simulated()
async def test_a_task_that_outlives_its_call_has_no_deadline_of_its_own(mesh: Mesh) -> None:
    await mesh.start(Worker())
    front = Front()
    await mesh.start(front)
    client = await mesh.start()
    caller = client.node.client(Front)
    await caller.remaining_behind(None)
    assert await caller.options(timeout=2).in_background(0.5) == "answered"  # asks while the call runs
    assert await caller.options(timeout=2).in_background(5) == "answered"
    inherited, free = await asyncio.gather(*front.tasks)
    assert isinstance(inherited, float)
    assert isinstance(free, float)
    assert 1.4 < inherited < 1.51
    assert 9.9 < free < 10.01


# -- what expired never runs


@zmesh.testing.simulated(seeds=range(5))
async def test_calls_queued_behind_a_blocked_loop_do_not_run(mesh: Mesh) -> None:
    instance, client, worker = await worker_and_client(mesh)
    mesh.hosts[0].stall(3)
    results = await asyncio.gather(
        *(client.run(worker.options(timeout=0.5 + n % 10 / 4).wait(0, str(n))) for n in range(200)),
        return_exceptions=True,
    )
    assert {type(result) for result in results} == {zmesh.DeadlineExceeded}
    await asyncio.sleep(5)
    assert instance.events == []


@zmesh.testing.simulated(seeds=range(5))
async def test_a_cancel_that_waits_behind_its_call_is_heard_first(mesh: Mesh) -> None:
    instance, client, worker = await worker_and_client(mesh)
    mesh.hosts[0].stall(3)
    tasks = []
    for n in range(300):
        tasks.append(asyncio.create_task(client.run(worker.wait(0, str(n)))))
        await asyncio.sleep(0.005)  # an envelope each, and more than are read in one turn
    for task in tasks:
        task.cancel()
    await asyncio.sleep(5)
    assert instance.events == []


@zmesh.testing.simulated()
async def test_calls_queued_behind_a_full_thread_pool_do_not_run(mesh: Mesh) -> None:
    instance, _, worker = await worker_and_client(mesh, threads=2)
    results = await asyncio.gather(
        *(worker.options(timeout=4).compute(str(n)) for n in range(6)), return_exceptions=True
    )
    assert results[:2] == ["0", "1"]
    assert all(isinstance(result, zmesh.DeadlineExceeded) for result in results[2:])
    await asyncio.sleep(20)
    # 2 and 3 had a thread when their time was over; 4 and 5 had none
    assert sorted(instance.events) == [f"{n} computed" for n in range(4)]


@zmesh.testing.simulated()
async def test_time_on_a_slow_way_counts(mesh: Mesh) -> None:
    instance, client, worker = await worker_and_client(mesh)
    mesh.link(mesh.hosts[0], client, Link(delay=0.6, jitter=0))
    with pytest.raises(zmesh.DeadlineExceeded):
        await client.run(worker.options(timeout=0.5).wait(0, "late"))
    await asyncio.sleep(2)
    assert instance.events == []


# -- cancellation


@zmesh.testing.simulated()
async def test_cancelling_the_caller_reaches_the_handler(mesh: Mesh) -> None:
    instance, client, worker = await worker_and_client(mesh)
    task = asyncio.create_task(worker.wait(10))
    await asyncio.sleep(0.5)
    assert client.node.peers[0].load == 1
    task.cancel()
    began = mesh.now
    with pytest.raises(asyncio.CancelledError):
        await task
    assert mesh.now == began  # the caller does not wait for the server
    await asyncio.sleep(0.01)
    assert instance.events == ["wait began", "wait cancelled", "wait left"]
    await worker.remaining()
    await asyncio.sleep(0.1)
    assert client.node.peers[0].load == 0
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await worker.wait(10, "again")
    await asyncio.sleep(0.01)
    assert instance.events[3:] == ["again began", "again cancelled", "again left"]


@zmesh.testing.simulated()
async def test_a_call_that_is_cancelled_as_it_is_made_does_not_go_on(mesh: Mesh) -> None:
    instance, _, worker = await worker_and_client(mesh)
    task = asyncio.create_task(worker.wait(10))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(1)
    assert task.cancelled()
    assert instance.events in ([], ["wait began", "wait cancelled", "wait left"])


@zmesh.testing.simulated()
async def test_a_finally_block_may_wait(mesh: Mesh) -> None:
    instance, client, worker = await worker_and_client(mesh)
    with pytest.raises(zmesh.DeadlineExceeded):
        await worker.options(timeout=1).tidy_up(2.0)
    assert await worker.wait(0) == "wait"
    assert "tidied up" not in instance.events
    await asyncio.sleep(0.3)
    assert client.node.peers[0].load == 1  # it still occupies its node
    await asyncio.sleep(2.5)
    assert "tidied up" in instance.events
    await worker.wait(0)
    await asyncio.sleep(0.1)
    assert client.node.peers[0].load == 0


@zmesh.testing.simulated()
async def test_who_swallows_its_cancellation_disturbs_no_other_call(mesh: Mesh) -> None:
    _, _, worker = await worker_and_client(mesh)
    with pytest.raises(zmesh.DeadlineExceeded):
        await worker.options(timeout=0.5).stubborn(0.5)
    assert await asyncio.gather(*(worker.wait(1, str(n)) for n in range(50))) == [str(n) for n in range(50)]


@zmesh.testing.simulated()
async def test_the_handlers_of_a_caller_that_is_gone_are_cancelled(mesh: Mesh) -> None:
    instance, client, worker = await worker_and_client(mesh)
    asyncio.create_task(client.run(worker.options(timeout=300).wait(200))).add_done_callback(lambda t: t.exception())
    await asyncio.sleep(1)
    client.crash()
    await asyncio.sleep(3)
    assert instance.events == ["wait began", "wait cancelled", "wait left"]


# -- a plain def cannot be cancelled


@zmesh.testing.simulated()
async def test_a_plain_def_goes_on_and_keeps_its_slot(mesh: Mesh) -> None:
    instance, client, worker = await worker_and_client(mesh, threads=1)
    began = mesh.now
    with pytest.raises(zmesh.DeadlineExceeded) as caught:
        await worker.options(timeout=1).compute("first")
    assert mesh.now - began < 1.01
    assert caught.value.may_have_run
    await worker.remaining()
    await asyncio.sleep(0.05)
    assert client.node.peers[0].load == 1  # counted in the report
    assert await worker.compute("second") == "second"  # waits for the slot
    assert 6.0 <= mesh.now - began < 6.1
    assert instance.events == ["first computed", "second computed"]
    await worker.remaining()
    await asyncio.sleep(0.05)
    assert client.node.peers[0].load == 0


@zmesh.testing.simulated()
async def test_a_cancelled_plain_def_too(mesh: Mesh) -> None:
    instance, client, worker = await worker_and_client(mesh, threads=1)
    running, queued = (asyncio.create_task(worker.compute(label)) for label in ("running", "queued"))
    await asyncio.sleep(1)
    running.cancel()
    queued.cancel()
    await asyncio.wait([running, queued])
    await worker.remaining()
    await asyncio.sleep(0.05)
    assert client.node.peers[0].load == 1
    assert await worker.compute("next") == "next"
    assert instance.events == ["running computed", "next computed"]


@zmesh.testing.simulated()
async def test_a_drain_leaves_without_it_after_its_grace(mesh: Mesh) -> None:
    config = zmesh.Config(drain_grace=1.0)
    _, client, worker = await worker_and_client(mesh, config=config)
    with pytest.raises(zmesh.DeadlineExceeded):
        await worker.options(timeout=0.1).compute("x")  # runs on for 2.9 s
    began = mesh.now
    await mesh.hosts[0].stop()
    assert 1.0 <= mesh.now - began < 1.5
    assert client.node.peers == []


@zmesh.testing.simulated()
async def test_a_drain_waits_for_it_within_its_grace(mesh: Mesh) -> None:
    instance, _, worker = await worker_and_client(mesh)
    call = asyncio.create_task(worker.compute("x"))
    await asyncio.sleep(0.5)
    began = mesh.now
    await mesh.hosts[0].stop()
    assert 2.4 <= mesh.now - began < 2.7
    assert await call == "x"
    assert instance.events == ["x computed"]


# -- on real threads and sockets


class Blocking(zmesh.Service):
    def __init__(self) -> None:
        self.release = threading.Event()
        self.ran: list[str] = []

    @zmesh.rpc
    def block(self, label: str) -> str:
        self.ran.append(label)
        assert threading.current_thread() is not threading.main_thread()
        assert zmesh.context().remaining > 0
        self.release.wait(10)
        return label

    @zmesh.rpc
    async def note(self, label: str) -> None:
        self.ran.append(label)


def test_on_sockets() -> None:
    async def main() -> None:
        blocking = Blocking()
        config = zmesh.Config(drain_grace=0.1, ipc=False)
        options = {"mesh": "test-deadlines", "listen": "tcp://127.0.0.1:0", "discovery": None, "config": config}
        async with (
            zmesh.Node(blocking, threads=2, **options) as server,  # type: ignore[arg-type]
            zmesh.Node(peers=server.addresses, **options) as node,  # type: ignore[arg-type]
        ):
            client = node.client(Blocking)
            await client.note("first")
            calls = [asyncio.create_task(client.options(timeout=0.3).block(str(n))) for n in range(3)]
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(result) for result in results} == {zmesh.DeadlineExceeded}
            assert blocking.ran == ["first", "0", "1"]
            last = asyncio.create_task(client.block("last"))
            await client.note("the loop is free")
            blocking.release.set()
            assert await last == "last"
            assert blocking.ran == ["first", "0", "1", "the loop is free", "last"]
            blocking.release.clear()
            with pytest.raises(zmesh.DeadlineExceeded):
                await client.options(timeout=0.05).block("left behind")
        # the drain left without it
        assert blocking.ran[-1] == "left behind"
        blocking.release.set()

    began = time.monotonic()
    asyncio.run(asyncio.wait_for(main(), 10))
    assert time.monotonic() - began < 3
