"""A handler calls back the node that called it, over the same link."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

import zmesh
import zmesh.testing
from zmesh.testing import Mesh


class Progress(zmesh.Service):
    def __init__(self) -> None:
        self.seen: list[int] = []
        self.callers: list[str] = []

    @zmesh.rpc
    async def report(self, percent: int) -> None:
        self.seen.append(percent)
        self.callers.append(zmesh.context().peer.name)

    @zmesh.rpc
    async def wanted(self) -> AsyncIterator[str]:
        yield "speed"
        yield "size"


class Job(zmesh.Service):
    def __init__(self) -> None:
        self.after: BaseException | None = None

    @zmesh.rpc
    async def run(self, steps: int) -> list[str]:
        progress = zmesh.context().peer.client(Progress)
        wanted = [name async for name in progress.wanted()]
        for step in range(steps):
            await progress.report((step + 1) * 100 // steps)
        return wanted

    @zmesh.rpc
    async def long(self) -> None:
        progress = zmesh.context().peer.client(Progress)
        try:
            while True:
                await progress.report(0)
                await asyncio.sleep(1)
        except BaseException as error:
            self.after = error
            raise

    @zmesh.rpc
    async def later(self, seconds: float) -> None:
        progress = zmesh.context().peer.client(Progress)
        self.task = asyncio.create_task(self._report_later(progress, seconds))

    async def _report_later(self, progress: Progress, seconds: float) -> None:
        await asyncio.sleep(seconds)
        try:
            await progress.report(1)
        except zmesh.RpcError as error:
            self.after = error


@zmesh.testing.simulated(seeds=range(3))
async def test_progress_goes_to_who_called(mesh: Mesh) -> None:
    await mesh.start(Job(), name="worker")
    first, second = Progress(), Progress()
    one, two = await mesh.start(first, name="one"), await mesh.start(second, name="two")
    answers = await asyncio.gather(
        one.run(one.node.client(Job).run(4)), two.run(two.node.client(Job).run(2)), two.run(two.node.client(Job).run(1))
    )
    assert answers == [["speed", "size"]] * 3
    assert first.seen == [25, 50, 75, 100]
    assert sorted(second.seen) == [50, 100, 100]
    assert {*first.callers, *second.callers} == {"worker"}


@zmesh.testing.simulated()
async def test_a_caller_that_serves_nothing_says_so(mesh: Mesh) -> None:
    await mesh.start(Job())
    caller = await mesh.start(name="plain")
    with pytest.raises(zmesh.Unimplemented, match="'plain' offers no services"):
        await caller.run(caller.node.client(Job).run(1))


@zmesh.testing.simulated()
async def test_a_caller_that_is_gone_is_not_waited_for(mesh: Mesh) -> None:
    job = Job()
    await mesh.start(job)
    caller = await mesh.start(Progress(), name="brief")
    await caller.run(caller.node.client(Job).later(3.0))
    caller.crash()
    await asyncio.sleep(3.5)
    assert isinstance(job.after, zmesh.Unavailable)
    assert "'brief', which called and is gone, no longer offers 'Progress'" in str(job.after)


@zmesh.testing.simulated()
async def test_a_call_back_inherits_the_deadline(mesh: Mesh) -> None:
    job, progress = Job(), Progress()
    await mesh.start(job)
    caller = await mesh.start(progress)
    with pytest.raises(zmesh.DeadlineExceeded):
        await caller.run(caller.node.client(Job).options(timeout=2.5).long())
    assert isinstance(job.after, (asyncio.CancelledError, zmesh.DeadlineExceeded))
    assert progress.seen == [0, 0, 0]


@zmesh.testing.simulated()
async def test_only_a_class_will_do(mesh: Mesh) -> None:
    class Asker(zmesh.Service):
        @zmesh.rpc
        async def ask(self) -> None:
            zmesh.context().peer.client("Progress")  # type: ignore[type-var]

    await mesh.start(Asker())
    caller = await mesh.start(Progress())
    with pytest.raises(zmesh.Internal, match="takes a Service class, got 'Progress'"):
        await caller.run(caller.node.client(Asker).ask())
