"""Functions around calls, on the side that makes them and on the side that serves them."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from typing import Any

import pytest

import zmesh
import zmesh.testing
from zmesh.interceptors import Proceed
from zmesh.testing import Mesh


class Shop(zmesh.Service):
    def __init__(self) -> None:
        self.metadata: list[dict[str, str | bytes]] = []

    @zmesh.rpc
    async def buy(self, item: str, count: int = 1) -> str:
        self.metadata.append(dict(zmesh.context().metadata))
        return f"{count} {item}"

    @zmesh.rpc
    def weigh(self, item: str) -> int:
        return len(item)

    @zmesh.rpc
    async def stock(self, count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number

    @zmesh.rpc
    async def total(self, numbers: AsyncIterator[int]) -> int:
        return sum([number async for number in numbers])


async def counting(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number


class Log:
    """Writes down what passes."""

    def __init__(self, name: str, lines: list[str]) -> None:
        self.name = name
        self.lines = lines

    async def __call__(self, call: zmesh.InterceptedCall, proceed: Proceed) -> Any:
        peer = call.peer.name if call.peer is not None else None
        self.lines.append(f"{self.name} {call.side} {call.path} {call.kind} from {peer}")
        try:
            return await proceed(call)
        except zmesh.RpcError as error:
            self.lines.append(f"{self.name} {error.code.name}")
            raise


async def calls(client: Any) -> list[object]:
    return [
        await client.buy("apple"),
        await client.weigh(item="apple"),
        [number async for number in client.stock(3)],
        await client.total(counting(4)),
    ]


@pytest.mark.parametrize("by_name", [False, True])
@zmesh.testing.simulated()
async def test_every_kind_of_call_passes_on_both_sides(mesh: Mesh, by_name: bool) -> None:
    lines: list[str] = []
    await mesh.start(Shop(), server_interceptors=[Log("outer", lines), Log("inner", lines)])
    caller = await mesh.start(name="caller", client_interceptors=[Log("mine", lines)])
    client: Any = caller.node.client("Shop" if by_name else Shop)
    assert await caller.run(calls(client)) == ["1 apple", 5, [0, 1, 2], 6]
    wanted = []
    for method, kind in (("buy", "unary"), ("weigh", "unary"), ("stock", "server_stream"), ("total", "client_stream")):
        wanted.append(f"mine client Shop.{method} {kind} from None")
        wanted += [f"{name} server Shop.{method} {kind} from caller" for name in ("outer", "inner")]
    assert [line for line in lines if "zmesh." not in line] == wanted


@zmesh.testing.simulated()
async def test_they_change_arguments_metadata_and_results(mesh: Mesh) -> None:
    async def signed(call: zmesh.InterceptedCall, proceed: Proceed) -> Any:
        call.metadata["token"] = b"\x01"
        return await proceed(call)

    async def doubled(call: zmesh.InterceptedCall, proceed: Proceed) -> Any:
        if call.method == "stock":
            return (2 * number async for number in await proceed(call))
        return "sold: " + await proceed(dataclasses.replace(call, arguments={**call.arguments, "count": 2}))

    shop = Shop()
    await mesh.start(shop, name="shop", server_interceptors=[doubled])
    caller = await mesh.start(client_interceptors=[signed])
    call = caller.node.client(Shop).options(metadata={"tenant": "a"}).buy("apple")
    assert await caller.run(call) == "sold: 2 apple"
    assert call.node == "shop"
    assert shop.metadata == [{"tenant": "a", "token": b"\x01"}]

    async def stock() -> list[int]:
        return [number async for number in caller.node.client(Shop).stock(3)]

    assert await caller.run(stock()) == [0, 2, 4]


@zmesh.testing.simulated()
async def test_a_refusal_never_ran(mesh: Mesh) -> None:
    async def guard(call: zmesh.InterceptedCall, proceed: Proceed) -> Any:
        if call.metadata.get("token") != "secret":
            raise zmesh.PermissionDenied(f"{call.peer.name if call.peer else '?'} has no token")
        return await proceed(call)

    shop = Shop()
    await mesh.start(shop, server_interceptors=[guard])
    caller = await mesh.start(name="stranger")
    client = caller.node.client(Shop)
    with pytest.raises(zmesh.PermissionDenied, match="stranger has no token") as caught:
        await caller.run(client.buy("apple"))
    assert not caught.value.may_have_run
    with pytest.raises(zmesh.PermissionDenied):
        await caller.run(anext(client.stock(2)))
    assert shop.metadata == []
    assert await caller.run(client.options(metadata={"token": "secret"}).buy("apple")) == "1 apple"


@zmesh.testing.simulated()
async def test_leaving_an_intercepted_stream_closes_it(mesh: Mesh) -> None:
    closed: list[int] = []

    class Endless(zmesh.Service):
        @zmesh.rpc
        async def numbers(self) -> AsyncIterator[int]:
            try:
                async for number in counting(1_000_000):
                    yield number
            finally:
                closed.append(1)

    lines: list[str] = []
    await mesh.start(Endless(), server_interceptors=[Log("theirs", lines)])
    caller = await mesh.start(client_interceptors=[Log("mine", lines)])

    async def some() -> int:
        async for number in caller.node.client(Endless).numbers():
            if number == 5:
                return number
        return -1

    assert await caller.run(some()) == 5
    await asyncio.sleep(0.1)
    assert closed == [1]
