"""Calls and answers that leave together travel as one message, and each of them has its own fate all the same."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import zmesh
import zmesh.testing
from zmesh._core import messages as m
from zmesh._core.wire import decode
from zmesh.testing import Mesh

from .fake_link import FakeOwner, open_link


class Echo(zmesh.Service):
    @zmesh.rpc
    async def echo(self, value: Any) -> Any:
        return value

    @zmesh.rpc
    async def other(self, value: Any) -> Any:
        return value

    @zmesh.rpc
    async def surrogate(self, number: int) -> str:
        return "\ud800" if number == 3 else str(number)


class Tagged(zmesh.Service, name="Echo"):
    @zmesh.rpc
    async def missing(self, value: Any) -> Any: ...


def test_what_stands_in_a_row() -> None:
    asyncio.run(_rows())


async def _rows() -> None:
    link, channel = open_link(FakeOwner())

    async def sent() -> list[Any]:
        await asyncio.sleep(0)
        return decode(channel.sent[-1])[2]

    for number, path, remaining in ((1, "A.b", 100), (2, "A.b", 100), (4, "A.b", 100), (5, "A.b", 99), (6, "A.c", 99)):
        link._outbox.call(number, path, remaining, [number], None)
    for number, metadata in ((7, {"a": "b"}), (8, {"a": "b"}), (9, {"a": "c"}), (10, None)):
        link._outbox.call(number, "A.c", 99, [number], metadata)
    link.reply_flat(7, "x")
    link.post([m.CANCEL, 5])
    link.reply_flat(8, "y")
    link.reply_flat(9, None)
    link.reply_flat(9, "z")
    link._outbox.call(m.LIMIT, "A.c", 99, [], None)
    link._outbox.call(0, "A.c", 99, [], None)
    assert await sent() == [
        [m.CALLS, 1, "A.b", 100, [[1], [2]], None],
        [m.CALL, 4, "A.b", 100, [4], None],
        [m.CALL, 5, "A.b", 99, [5], None],
        [m.CALL, 6, "A.c", 99, [6], None],
        [m.CALLS, 7, "A.c", 99, [[7], [8]], {"a": "b"}],
        [m.CALL, 9, "A.c", 99, [9], {"a": "c"}],
        [m.CALL, 10, "A.c", 99, [10], None],
        [m.REPLY, 7, "x", None],
        [m.CANCEL, 5],
        [m.REPLIES, [8, 9, 9], ["y", None, "z"]],
        [m.CALL, m.LIMIT, "A.c", 99, [], None],
        [m.CALL, 0, "A.c", 99, [], None],
    ]
    link.reply_flat(1, "x")  # another page: nothing is added to what has left
    assert await sent() == [[m.REPLY, 1, "x", None]]


def test_a_row_taken_apart() -> None:
    row: m.Message = [m.CALLS, m.LIMIT, "A.b", 5, [{"a": 1}, [2]]]
    calls: list[m.Message] = [[m.CALL, m.LIMIT, "A.b", 5, {"a": 1}, None], [m.CALL, 0, "A.b", 5, [2], None]]
    assert m.single([[*row, None]]) == calls
    tenant: m.Message = [m.CALL, m.LIMIT, "A.b", 5, {"a": 1}, {"tenant": "a"}]
    assert m.single([[*row, {"tenant": "a"}, "later"]])[0] == tenant
    replies: m.Message = [m.REPLIES, [1, 2, 3], ["x", None]]
    apart: list[m.Message] = [[m.REPLY, 1, "x", None], [m.REPLY, 2, None, None], [m.REPLY, 3]]
    assert m.single([row, [m.DRAIN], replies]) == [*calls, [m.DRAIN], *apart]


@zmesh.testing.simulated()
async def test_each_call_of_a_row_has_its_own_answer(mesh: Mesh) -> None:
    host = await mesh.start(Echo())
    client = await mesh.start()
    echo = client.node.client(Echo)

    async def main() -> None:
        assert await echo.echo(0) == 0
        # The values that need a closer look, and other methods, stand between.
        values = [1, "x", [1, [2]], {"a": b"b"}, b"c" * 20_000, None, {"a": "\ud800"}, 2.5, True]
        calls = [call(value) for value in values for call in (echo.echo, echo.echo, echo.other)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        for value, *same in zip(values, answers[::3], answers[1::3], answers[2::3], strict=True):
            if value == {"a": "\ud800"}:
                assert [type(answer) for answer in same] == [zmesh.InvalidArgument] * 3
                assert all(not answer.may_have_run for answer in same)  # type: ignore[union-attr]
            else:
                assert same == [value] * 3
        results = await asyncio.gather(*map(echo.surrogate, range(6)), return_exceptions=True)
        assert [str(number) if number != 3 else "3?" for number in range(6)] == [
            result if isinstance(result, str) else "3?" for result in results
        ]
        assert isinstance(results[3], zmesh.Internal)
        missing = client.node.client(Tagged).missing
        refusals = await asyncio.gather(*map(missing, range(5)), return_exceptions=True)
        assert [type(refusal) for refusal in refusals] == [zmesh.Unimplemented] * 5
        # And so has the sum of them.
        stats: Any = host.node._hub.stats()  # type: ignore[union-attr]
        assert stats["methods"]["Echo.other"]["calls"] == len(values) - 1
        peer = next(iter(client.node._hub.client.judge.stats()["peers"].values()))  # type: ignore[union-attr]
        assert peer["in_flight"] == 0
        assert peer["answered"] == 1 + 3 * (len(values) - 1) + 5

    await client.run(main())


class Tenants(zmesh.Service):
    @zmesh.rpc
    async def tenant(self, spoil: bool) -> dict[str, str]:
        metadata: Any = zmesh.context().metadata
        if spoil:
            with pytest.raises(TypeError):
                metadata["tenant"] = "mine"
        return {key: str(value) for key, value in metadata.items()}


@zmesh.testing.simulated()
async def test_each_call_of_a_row_has_its_metadata(mesh: Mesh) -> None:
    host = await mesh.start(Tenants())
    client = await mesh.start()
    plain = client.node.client(Tenants)

    async def main() -> None:
        await plain.tenant(False)
        rows: list[tuple[int, object]] = []
        server: Any = host.node._hub
        received = server.calls_received

        def calls_received(link: Any, row: Any, waited: int, now: float) -> None:
            rows.append((len(row[4]), row[5]))
            received(link, row, waited, now)

        server.calls_received = calls_received
        a, b = (plain.options(metadata={"tenant": name}) for name in "ab")
        clients = [a, a, a, b, b, plain, plain]
        answers = await asyncio.gather(*(each.tenant(place == 0) for place, each in enumerate(clients)))
        assert answers == [{"tenant": "a"}] * 3 + [{"tenant": "b"}] * 2 + [{}] * 2
        assert rows == [(3, {"tenant": "a"}), (2, {"tenant": "b"}), (2, None)]

    await client.run(main())


@zmesh.testing.simulated()
async def test_a_row_that_is_too_long_is_several(mesh: Mesh) -> None:
    config = zmesh.Config(max_message=10_000, inline_limit=1_000)
    await mesh.start(Echo(), config=config)
    client = await mesh.start(config=config)
    echo = client.node.client(Echo).echo

    async def main() -> None:
        values = [str(number) * 800 for number in range(40)]
        assert await asyncio.gather(*map(echo, values)) == values
        answers = await asyncio.gather(*map(echo, ["a", "b" * 20_000, "c"]), return_exceptions=True)
        assert answers[0] == "a"
        assert isinstance(answers[1], zmesh.InvalidArgument)
        assert answers[2] == "c"

    await client.run(main())


@pytest.mark.parametrize("given_up", [0, 1, 2])
@zmesh.testing.simulated()
async def test_one_of_a_row_is_given_up(mesh: Mesh, given_up: int) -> None:
    host = await mesh.start(Echo())
    client = await mesh.start()
    echo = client.node.client(Echo).echo

    async def main() -> None:
        await echo(0)
        tasks = [asyncio.create_task(echo(number)) for number in range(3)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        tasks[given_up].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [result for result in results if result in range(3)] == [n for n in range(3) if n != given_up]
        assert isinstance(results[given_up], asyncio.CancelledError)
        assert not host.node._hub.server._count  # type: ignore[union-attr]

    await client.run(main())


class Busy(zmesh.Service):
    @zmesh.rpc
    async def hang(self) -> None:
        await asyncio.sleep(60)


@zmesh.testing.simulated()
async def test_a_refused_call_that_waits_for_another_try_is_forgotten_at_its_deadline(mesh: Mesh) -> None:
    await mesh.start(Busy(), config=zmesh.Config(max_calls=1))
    client = await mesh.start(config=zmesh.Config(backoff=5.0, max_backoff=5.0))
    hang = client.node.client(Busy).options(timeout=1.0).hang

    async def main() -> None:
        results = await asyncio.gather(hang(), hang(), hang(), return_exceptions=True)
        assert [type(result) for result in results] == [zmesh.DeadlineExceeded] * 3
        assert not client.node._hub.client._parked  # type: ignore[union-attr]

    await client.run(main())
