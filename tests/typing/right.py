"""What a caller writes. Nothing here is wrong; `assert_type` fails the check where a type is not what it should be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any, assert_type

import numpy
from greeter import Greeter, Loud, Order, Stock
from numpy.typing import NDArray

import zmesh


async def numbers() -> AsyncIterator[int]:
    yield 1


async def unary(greeter: Greeter, samples: NDArray[numpy.float64]) -> None:
    assert_type(await greeter.say_hello("Ann"), str)
    assert_type(await greeter.say_hello(name="Ann", loud=True), str)
    assert_type(await greeter.count("abc"), int)
    assert_type(await greeter.upper("a"), str)
    assert_type(await greeter.crunch(5), list[int])
    assert_type(await greeter.shout(text="a"), str)
    assert_type(await greeter.order(Order("spoon")), dict[str, Order])
    assert_type(await greeter.scale(samples), NDArray[numpy.float64])
    await greeter.forget()
    assert_type(await greeter.greet_twice("Ann"), str)
    assert_type(greeter.greeting, str)


async def calls(greeter: Greeter) -> None:
    call = greeter.count("abc")
    assert_type(call, zmesh.Call[int])
    assert_type(await call, int)
    assert_type(call.metadata, Mapping[str, str | bytes])
    assert_type(call.node, str | None)
    task = asyncio.create_task(greeter.shout("a"))
    assert_type(await task, str)
    assert_type(await asyncio.gather(greeter.count("a"), greeter.shout("b")), tuple[int, str])
    assert_type(await asyncio.wait_for(greeter.count("a"), 1), int)
    async with asyncio.TaskGroup() as group:
        assert_type(group.create_task(greeter.count("a")), asyncio.Task[int])


async def streams(greeter: Greeter) -> None:
    async for n in greeter.countdown(3):
        assert_type(n, int)
    assert_type(await greeter.total(numbers()), int)

    async def lines() -> AsyncIterator[str]:
        yield "a"

    async for line in greeter.echo(lines()):
        assert_type(line, str)


async def subclass(loud: Loud) -> None:
    assert_type(await loud.say_hello("Ann"), str)
    assert_type(await loud.count("a"), int)
    greeter: Greeter = loud
    assert_type(await greeter.shout("a"), str)


async def options(greeter: Greeter) -> None:
    fast = greeter.options(timeout=0.2, metadata={"tenant": "a", "trace": b"\x00"})
    assert_type(fast, Greeter)
    assert_type(fast.options(key="user-42"), Greeter)
    assert_type(await fast.options(timeout=None).say_hello("Ann"), str)


async def node() -> None:
    async with zmesh.Node(Greeter(), name="greeter-1") as node:
        assert_type(node, zmesh.Node)
        assert_type(node.client(Greeter), Greeter)
        assert_type(await node.client(Loud).shout("a"), str)
        assert_type(node.client(Greeter).options(timeout=1), Greeter)
        by_name = node.client("Greeter")
        answer: int = await by_name.say_hello(name="Ann")  # Any: nothing is known of it
        assert_type(await by_name.options(timeout=1).anything("Ann", 5), Any)
        assert_type(by_name.say_hello("Ann").node, str | None)
        assert_type([peer.name for peer in node.peers], list[str])
        assert answer


async def many(node: zmesh.Node) -> None:
    assert_type(node.scatter(Greeter.count)("a"), zmesh.Replies[int])
    async for reply in node.scatter(Greeter.say_hello, to=["a", "b"], timeout=1)("Ann", loud=True):
        assert_type(reply, zmesh.Reply[str])
        assert_type(reply.value, str | None)
        assert_type(reply.result(), str)
    first = await node.scatter(Greeter.count, to=3)("a").first()
    assert_type(first.result(), int)
    assert_type(await node.scatter(Greeter.count, expect=3)("a").quorum(2), list[zmesh.Reply[int]])
    async for number in node.map(Greeter.count)(["a", "b"]):
        assert_type(number, int)
    assert_type([text async for text in node.map(Greeter.shout, ordered=False, in_flight=5)(words())], list[str])


async def words() -> AsyncIterator[str]:
    yield "a"


async def interface(node: zmesh.Node) -> None:
    # An abstract class as the interface: mypy alone refuses it for type[S].
    stock = node.client(Stock)  # type: ignore[type-abstract]
    assert_type(await stock.left("spoon"), int)


class Shop(zmesh.Service):
    @zmesh.rpc
    async def buy(self, item: str) -> int:
        context = zmesh.context()
        assert_type(context, zmesh.Context)
        assert_type(context.metadata, Mapping[str, str | bytes])
        context.reply_metadata["seen"] = "yes"
        return await context.client(Greeter).count(item)


async def why(node: zmesh.Node, greeter: Greeter) -> None:
    call = greeter.options(explain=True).count("a")
    await call
    assert_type(zmesh.explain(call), zmesh.Explanation)
    assert_type(zmesh.explain(greeter.countdown(3)), zmesh.Explanation)
    assert_type(node.explain(Greeter.count, key="user-42"), zmesh.Explanation)
    assert_type(node.explain(Greeter.countdown), zmesh.Explanation)
    assert_type([candidate.why_not for candidate in node.explain("Greeter.count").candidates], list[str])
    assert_type(node.stats(), dict[str, Any])
