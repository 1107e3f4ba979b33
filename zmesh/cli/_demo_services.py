"""What the nodes of `zmesh demo` serve: a small shop. Each name in capitals is a service of one node of the demo."""

from __future__ import annotations

import asyncio
import time

import zmesh

from ._process import Child

__all__ = ["BIG_PRICES", "BIG_STOCK", "FAST", "LEDGER", "SHOP", "SLOW", "STORE", "Ledger", "Prices", "Shop", "Stock"]


class Prices(Child, name="demo.Prices"):
    """What things cost. Its nodes differ in speed."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    @zmesh.rpc(idempotent=True)
    async def quote(self, item: int) -> float:
        """The price of an item."""
        await asyncio.sleep(self._seconds)
        return 1.0 + item % 100


class Stock(Child, name="demo.Stock"):
    """What is there. A plain `def`, as around a blocking database driver: it runs in a thread."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    @zmesh.rpc(idempotent=True)
    def count(self, item: int) -> int:
        """How many of an item are there."""
        time.sleep(self._seconds)
        return 1 + item % 7


class Ledger(Child, name="demo.Ledger"):
    """The book of all orders. Remembers what was booked twice."""

    def __init__(self) -> None:
        self._booked: dict[str, int] = {}

    @zmesh.rpc
    async def book(self, order: str) -> int:
        """Book an order: not idempotent. Answers how often this one was booked so far."""
        self._booked[order] = self._booked.get(order, 0) + 1
        return self._booked[order]

    @zmesh.rpc(idempotent=True)
    async def summary(self) -> tuple[int, int]:
        """How many orders were booked, and how many of them more than once."""
        return len(self._booked), sum(1 for times in self._booked.values() if times > 1)


class Shop(Child, name="demo.Shop"):
    """Takes orders: asks prices and stock, and books, all within the deadline of its caller."""

    @zmesh.rpc
    async def order(self, id: str, item: int) -> float:
        """Order an item; answers what it costs. Not idempotent."""
        call = zmesh.context()
        price, there = await asyncio.gather(call.client(Prices).quote(item), call.client(Stock).count(item))
        if not there:
            raise zmesh.FailedPrecondition(f"item {item} is sold out")
        await call.client(Ledger).book(id)
        return price


FAST = Prices(0.002)
SLOW = Prices(0.020)
BIG_PRICES = Prices(0.005)
BIG_STOCK = Stock(0.005)
STORE = Stock(0.003)
SHOP = Shop()
LEDGER = Ledger()
