"""The service of the tour, as its author writes it. Nothing here is wrong."""

from __future__ import annotations

import abc
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, assert_type

import numpy
from numpy.typing import NDArray

import zmesh


@dataclass
class Order:
    item: str
    count: int = 1


class Greeter(zmesh.Service, name="shop.Greeter", version="1.2"):
    """Says hello."""

    def __init__(self, greeting: str = "Hello") -> None:
        self.greeting = greeting

    @zmesh.rpc
    async def say_hello(self, name: str, *, loud: bool = False) -> str:
        """Greet one person."""
        return f"{self.greeting}, {name}"

    @zmesh.rpc(idempotent=True)
    async def count(self, text: str) -> int:
        return len(text)

    @zmesh.rpc
    def upper(self, text: str) -> str:
        return text.upper()

    @zmesh.rpc(idempotent=True)
    def shout(self, text: str) -> str:
        return text.upper()

    @zmesh.rpc(pool="process", idempotent=True)
    def crunch(self, number: int) -> list[int]:
        return [number]

    @zmesh.rpc
    def order(self, order: Order) -> dict[str, Order]:
        return {order.item: order}

    @zmesh.rpc
    def scale(self, samples: NDArray[numpy.float64], factor: float = 2.0) -> NDArray[numpy.float64]:
        return samples * factor

    @zmesh.rpc
    def forget(self) -> None:
        pass

    @zmesh.rpc
    async def countdown(self, start: int) -> AsyncIterator[int]:
        for n in range(start, 0, -1):
            yield n

    @zmesh.rpc(idempotent=True)
    async def total(self, numbers: AsyncIterator[int]) -> int:
        return sum([n async for n in numbers])

    @zmesh.rpc
    async def echo(self, lines: AsyncIterator[str]) -> AsyncIterator[str]:
        async for line in lines:
            yield line

    async def greet_twice(self, name: str) -> str:
        return await self.say_hello(name) + await self.say_hello(name)


class Loud(Greeter):
    @zmesh.rpc
    async def say_hello(self, name: str, *, loud: bool = True) -> str:
        return (await super().say_hello(name)).upper()

    @zmesh.rpc
    def shout(self, text: str) -> str:
        return text + "!"


class Stock(zmesh.Service, abc.ABC):
    @zmesh.rpc
    @abc.abstractmethod
    async def left(self, item: str) -> int: ...


class Warehouse(Stock, name="Stock"):
    @zmesh.rpc
    async def left(self, item: str) -> int:
        return 0


def handles() -> tuple[zmesh.Unary[[str], int], zmesh.Streaming[[int], int]]:
    assert_type(Greeter.say_hello.handler, Callable[..., Any])
    assert_type(Greeter.shout.idempotent, bool)
    return Greeter.count, Greeter.countdown


async def unit_test() -> None:
    greeter = Greeter("Hi")
    assert_type(await greeter.say_hello("Ann"), str)
    assert_type(await greeter.shout("Ann"), str)
    assert_type(await Warehouse().left("spoon"), int)
    coroutine: Coroutine[Any, Any, int] = greeter.count("abc")
    assert_type(await coroutine, int)
