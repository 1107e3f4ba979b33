"""Tasks that go on from the callback that woke them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any

import pytest

from zmesh._waiter import Stepper, Waiter

place: ContextVar[str] = ContextVar("place", default="nowhere")


def from_a_callback(function: Callable[[], None]) -> asyncio.Future[None]:
    """Run a function as a socket's reader runs: by the loop, inside no task."""
    loop = asyncio.get_running_loop()
    ran: asyncio.Future[None] = loop.create_future()

    def callback() -> None:
        assert asyncio.current_task() is None
        try:
            function()
        except BaseException as error:
            ran.set_exception(error)
        else:
            ran.set_result(None)

    loop.call_soon(callback)
    return ran


def wake(stepper: Stepper, waiters: list[Waiter], said: list[str]) -> None:
    """What a link does with the answers of one envelope."""
    stepper.gathering = True
    for waiter in waiters:
        waiter.set_result(None)
    said.append("handled")
    stepper.step()
    said.append("stepped")


async def waiting(stepper: Stepper, said: list[str], names: str) -> tuple[list[Waiter], list[asyncio.Task[None]]]:
    """Tasks that wait, and say their name once they go on."""

    async def wait(name: str, waiter: Waiter) -> None:
        place.set(name)
        await waiter
        said.append(place.get())

    waiters = [Waiter(stepper) for _ in names]
    tasks = [asyncio.create_task(wait(name, waiter)) for name, waiter in zip(names, waiters, strict=True)]
    await asyncio.sleep(0)
    return waiters, tasks


def run(main: Callable[[Stepper, list[str]], Coroutine[Any, Any, None]]) -> list[str]:
    said: list[str] = []

    async def within() -> None:
        await main(Stepper(asyncio.get_running_loop()), said)

    asyncio.run(within())
    return said


def test_tasks_go_on_in_order_behind_the_envelope_and_before_its_callback_ends() -> None:
    async def main(stepper: Stepper, said: list[str]) -> None:
        waiters, tasks = await waiting(stepper, said, "abc")
        await from_a_callback(lambda: wake(stepper, waiters, said))
        await asyncio.gather(*tasks)

    assert run(main) == ["handled", "a", "b", "c", "stepped"]  # each in its own context


def test_inside_a_task_they_go_on_by_the_loop() -> None:
    async def main(stepper: Stepper, said: list[str]) -> None:
        waiters, tasks = await waiting(stepper, said, "ab")
        wake(stepper, waiters, said)
        await asyncio.gather(*tasks)

    assert run(main) == ["handled", "stepped", "a", "b"]


def test_what_is_woken_outside_an_envelope_goes_on_by_the_loop() -> None:
    async def main(stepper: Stepper, said: list[str]) -> None:
        waiters, tasks = await waiting(stepper, said, "a")

        def set_result() -> None:
            waiters[0].set_result(None)
            said.append("set")

        await from_a_callback(set_result)
        await asyncio.gather(*tasks)

    assert run(main) == ["set", "a"]


def test_a_result_that_came_before_anybody_waited() -> None:
    async def main(stepper: Stepper, said: list[str]) -> None:
        waiter = Waiter(stepper)
        waiter.set_result("early")
        said.append(await waiter)

    assert run(main) == ["early"]


@pytest.mark.parametrize("early", [True, False])
def test_an_error_is_raised_where_the_task_waits(early: bool) -> None:
    async def main(stepper: Stepper, said: list[str]) -> None:
        waiter = Waiter(stepper)
        if early:
            waiter.set_exception(KeyError("x"))
        else:
            asyncio.get_running_loop().call_soon(waiter.set_exception, KeyError("x"))
        with pytest.raises(KeyError):
            await waiter
        said.append("raised")

    assert run(main) == ["raised"]


def test_a_task_that_is_cancelled_while_it_waits() -> None:
    async def main(stepper: Stepper, said: list[str]) -> None:
        waiters, tasks = await waiting(stepper, said, "a")
        tasks[0].cancel("enough")
        with pytest.raises(asyncio.CancelledError, match="enough"):
            await tasks[0]
        assert waiters[0].done()  # an answer that still comes finds it so

    assert run(main) == []


def test_a_task_that_is_cancelled_once_it_was_woken_is_cancelled() -> None:
    async def main(stepper: Stepper, said: list[str]) -> None:
        waiters, tasks = await waiting(stepper, said, "a")
        waiters[0].set_result(None)
        tasks[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]

    assert run(main) == []


def test_one_that_ends_the_program_does_not_keep_the_others_waiting() -> None:
    async def main(stepper: Stepper, said: list[str]) -> None:
        first = Waiter(stepper)

        async def interrupted() -> None:
            await first
            raise KeyboardInterrupt

        task = asyncio.create_task(interrupted())
        waiters, tasks = await waiting(stepper, said, "ab")
        with pytest.raises(KeyboardInterrupt):
            await from_a_callback(lambda: wake(stepper, [first, *waiters], said))
        await asyncio.gather(*tasks)
        assert isinstance(task.exception(), KeyboardInterrupt)

    assert run(main) == ["handled", "a", "b"]


def test_it_passes_for_a_future_and_a_call_does_not() -> None:
    """`asyncio.gather` and the like start a coroutine, and wait for a future that is under way."""
    from zmesh._client import Outgoing

    async def main(stepper: Stepper, said: list[str]) -> None:
        assert asyncio.isfuture(Waiter(stepper))

    assert run(main) == []
    assert not hasattr(Outgoing, "_asyncio_future_blocking")
