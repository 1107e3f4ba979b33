"""The loop with virtual time, and the simulated processes on it."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import AsyncIterator

import pytest

from zmesh.testing import _loop
from zmesh.testing._executor import InlineExecutor, takes
from zmesh.testing._loop import Crashed, OutOfTime, Process, SimulationError, Stuck, VirtualLoop, run


def current() -> VirtualLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop


def test_a_year_passes_at_once() -> None:
    async def main() -> float:
        await asyncio.sleep(365 * 86_400)
        return asyncio.get_running_loop().time()

    began = time.monotonic()
    assert run(main, time_limit=1e9) == 365 * 86_400
    assert time.monotonic() - began < 5


def test_timers_fire_in_order_of_time_then_of_setting() -> None:
    async def main() -> list[str]:
        seen: list[str] = []
        loop = asyncio.get_running_loop()
        loop.call_later(2, seen.append, "late")
        loop.call_later(1, seen.append, "first")
        loop.call_later(1, seen.append, "second")
        loop.call_later(1, seen.append, "cancelled").cancel()
        loop.call_soon(seen.append, "now")
        await asyncio.sleep(3)
        return seen

    assert run(main) == ["now", "first", "second", "late"]


def test_thousands_of_cancelled_timers_are_let_go() -> None:
    async def main() -> int:
        loop = current()
        for _ in range(10_000):
            loop.call_later(1000, print).cancel()
        return len(loop._timers)

    assert run(main) < 300


def test_timeouts_queues_and_locks_work() -> None:
    async def main() -> tuple[float, list[int]]:
        queue: asyncio.Queue[int] = asyncio.Queue(1)

        async def produce() -> None:
            for n in range(3):
                await asyncio.sleep(1)
                await queue.put(n)

        async with asyncio.TaskGroup() as group:
            group.create_task(produce())
            items = [await queue.get() for _ in range(3)]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(10):
                await asyncio.Event().wait()
        return asyncio.get_running_loop().time(), items

    assert run(main) == (13.0, [0, 1, 2])


def test_waiting_for_ever_is_an_error_that_says_who_waits() -> None:
    async def nobody_calls() -> None:
        await asyncio.get_running_loop().create_future()

    async def main() -> None:
        await asyncio.create_task(nobody_calls(), name="the waiting one")

    with pytest.raises(
        Stuck, match=r"(?s)will never happen.*the waiting one: .*nobody_calls, file .*test_testing_loop"
    ):
        run(main)


def test_virtual_time_is_bounded() -> None:
    async def main() -> None:
        while True:
            await asyncio.sleep(1)

    with pytest.raises(OutOfTime, match="not done after 100 virtual seconds"):
        run(main, time_limit=100)


def test_a_loop_that_never_waits_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_loop, "CALLBACKS_PER_INSTANT", 1000)

    async def main() -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(OutOfTime, match="1000 callbacks ran and no time passed"):
        run(main)


def test_leftover_tasks_are_cancelled_and_generators_closed() -> None:
    ended: list[str] = []
    kept: list[object] = []

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("task")

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            ended.append("generator")

    async def main() -> str:
        kept.append(asyncio.create_task(waits()))
        generator = numbers()
        kept.append(generator)
        await anext(generator)
        await asyncio.sleep(0)
        return "done"

    assert run(main) == "done"
    assert ended == ["task", "generator"]


def test_errors_that_nobody_handles_are_raised() -> None:
    async def main() -> None:
        asyncio.get_running_loop().call_soon([].pop)
        await asyncio.sleep(1)

    with pytest.raises(ExceptionGroup) as caught:
        run(main)
    assert caught.group_contains(IndexError)


def test_random_is_seeded_and_put_back() -> None:
    async def main() -> float:
        return random.random()

    random.seed(5)
    expected = random.Random(5).random()
    assert run(main, seed=1) == run(main, seed=1) != run(main, seed=2)
    assert random.random() == expected
    assert gc.isenabled()


def test_threads_are_not_needed_for_what_uses_them() -> None:
    async def main() -> int:
        return await asyncio.to_thread(lambda: 42)

    assert run(main) == 42


# -- processes


async def tick(seen: list[float], every: float) -> None:
    while True:
        await asyncio.sleep(every)
        seen.append(round(current().now, 6))


def test_a_frozen_process_runs_nothing_until_it_is_thawed() -> None:
    async def main() -> tuple[list[float], list[float]]:
        frozen: list[float] = []
        other: list[float] = []
        process = Process(current(), "a")
        current().create_task(tick(frozen, 1.0), context=process.context.copy())
        ticking = asyncio.create_task(tick(other, 1.0))
        await asyncio.sleep(2.5)
        process.freeze()
        await asyncio.sleep(3)
        process.thaw()
        await asyncio.sleep(2)
        process.kill()
        ticking.cancel()
        return frozen, other

    frozen, other = run(main)
    assert frozen == [1, 2, 5.5, 6.5]  # the timer of second 3 fired when the process went on
    assert other == [1, 2, 3, 4, 5, 6, 7]


def test_what_was_ready_runs_before_expired_timers_after_a_thaw() -> None:
    async def main() -> list[str]:
        seen: list[str] = []
        loop = current()
        process = Process(loop, "a")
        loop.call_soon(seen.append, "ready", context=process.context)
        process.context.run(loop.call_later, 1, seen.append, "timer")
        process.freeze()
        process.freeze()
        loop.call_later(2, lambda: loop.call_soon(seen.append, "message", context=process.context))
        await asyncio.sleep(3)
        process.thaw()
        await asyncio.sleep(1)
        assert seen == []  # frozen twice
        process.thaw()
        await asyncio.sleep(1)
        return seen

    assert run(main) == ["ready", "message", "timer"]


def test_a_killed_process_runs_no_finally_and_its_waiters_are_told() -> None:
    ended: list[str] = []

    async def works() -> None:
        try:
            await asyncio.sleep(10)
        finally:
            ended.append("finally")

    async def main() -> str:
        process = Process(current(), "a")
        current().call_later(1, process.kill)
        with pytest.raises(Crashed, match="'a' ended while this ran"):
            await process.run(works())
        gc.collect()
        await asyncio.sleep(20)
        assert ended == []
        with pytest.raises(Crashed, match="'a' ended before this could start"):
            await process.run(works())
        return "lives on"

    assert run(main) == "lives on"


def test_run_gives_results_errors_and_cancellation() -> None:
    async def fails() -> None:
        raise KeyError("x")

    async def main() -> list[float]:
        process = Process(current(), "a")
        assert await process.run(asyncio.sleep(1, "result")) == "result"
        with pytest.raises(KeyError):
            await process.run(fails())
        seen: list[float] = []
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(process.run(tick(seen, 1)), 2.5)
        await asyncio.sleep(5)
        return seen

    assert run(main) == [2, 3]


def test_each_process_has_its_own_clock() -> None:
    async def main() -> None:
        loop = current()
        process = Process(loop, "a", clock_offset=1234.56789)

        async def inside() -> tuple[float, float]:
            own = asyncio.get_running_loop()
            before = own.time()
            async with asyncio.timeout(10):
                await asyncio.sleep(0.1)
            assert loop.now == pytest.approx(0.1)
            return before, own.time()

        before, after = await process.run(inside())
        assert before == 1234.56789
        assert after == pytest.approx(1234.66789)
        assert asyncio.get_running_loop().time() == loop.now

    run(main)


def test_a_timer_never_fires_before_its_process_reads_that_time() -> None:
    async def main() -> None:
        loop = current()
        chooser = random.Random(1)
        for n in range(300):
            process = Process(loop, str(n), clock_offset=chooser.random() * 1e6)

            async def inside() -> None:
                when = loop.time() + chooser.random()
                reached = loop.create_future()
                loop.call_at(when, reached.set_result, None)
                await reached
                assert loop.time() >= when

            await process.run(inside())

    run(main)


def test_what_a_killed_process_leaves_behind_is_no_error() -> None:
    async def fails() -> None:
        raise KeyError("nobody will look")

    async def main() -> None:
        process = Process(current(), "a")

        async def inside() -> None:
            task = asyncio.create_task(fails())
            await asyncio.sleep(1)
            await task

        waiting = asyncio.create_task(process.run(inside()))
        await asyncio.sleep(0.5)
        process.kill()
        with pytest.raises(Crashed):
            await waiting

    run(main)


def test_a_frozen_process_does_not_hold_up_the_end() -> None:
    async def main() -> str:
        process = Process(current(), "a")
        asyncio.get_running_loop().create_task(process.run(asyncio.sleep(1000)))
        await asyncio.sleep(1)
        process.freeze()
        return "done"

    assert run(main) == "done"


def test_thaw_without_freeze_is_an_error() -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="not frozen"):
            Process(current(), "a").thaw()

    run(main)


# -- plain functions


def test_a_plain_function_takes_its_declared_time() -> None:
    @takes(2.5)
    def slow() -> str:
        return "slow"

    class Holder:
        @takes(1.5)
        def method(self) -> str:
            return "method"

    async def main() -> None:
        import functools

        loop = current()
        executor = InlineExecutor(loop, Process(loop, "a"))
        assert await executor.submit(lambda: "none") == "none"
        assert loop.now == 0
        assert await executor.submit(slow) == "slow"
        assert loop.now == 2.5
        assert await executor.submit(functools.partial(Holder().method)) == "method"
        assert loop.now == 4.0

        def fails() -> None:
            raise StopIteration

        with pytest.raises(RuntimeError, match="StopIteration"):
            await executor.submit(fails)

    run(main)


def test_takes_says_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="0 seconds or more"):
        takes(-1)
    with pytest.raises(TypeError, match="is async"):

        @takes(1)
        async def handler() -> None: ...

    with pytest.raises(TypeError, match=r"beneath @zmesh\.rpc"):
        takes(1)(object())  # type: ignore[type-var]


def test_simulation_errors_are_one_family() -> None:
    assert all(issubclass(error, SimulationError) for error in (Stuck, OutOfTime, Crashed))
