"""A shop of four services, each a process of its own, that call each other under one deadline.

    python examples/shop.py

    client -> Orders -> Catalog, Stock, Payment

Shows: a call's deadline holds for the calls that its handler makes; metadata goes along; errors keep their code and
their details through every hop.
"""

import asyncio
import sys
import time
from dataclasses import dataclass

from _local import Processes

import zmesh

PRICES = {"spoon": 250, "kettle": 4900, "piano": 990000}


class Catalog(zmesh.Service):
    """What there is, and what it costs in cents."""

    @zmesh.rpc(idempotent=True)
    async def price(self, item: str) -> int:
        """The price of one piece. NOT_FOUND where there is no such item."""
        if item not in PRICES:
            raise zmesh.NotFound(f"the shop has no {item}", details={"item": item})
        return PRICES[item]


class Stock(zmesh.Service):
    """What lies on the shelves."""

    def __init__(self) -> None:
        self.pieces = {"spoon": 12, "kettle": 1, "piano": 1}

    @zmesh.rpc  # not idempotent: twice would take two
    async def take(self, item: str, count: int) -> int:
        """Take pieces off the shelf and tell how many are left. FAILED_PRECONDITION where there are too few."""
        left = self.pieces[item]
        if left < count:
            raise zmesh.FailedPrecondition(f"only {left} of {item} left", details={"item": item, "left": left})
        self.pieces[item] = left - count
        return self.pieces[item]

    @zmesh.rpc
    async def put_back(self, item: str, count: int) -> None:
        """Undo `take`."""
        self.pieces[item] += count


class Payment(zmesh.Service):
    """Charges customers; large sums take long."""

    @zmesh.rpc
    async def charge(self, cents: int) -> str:
        """Charge the customer that the metadata names; answers with a receipt."""
        call = zmesh.context()
        customer = call.metadata["customer"]
        print(f"  Payment: {cents} cents from {customer!r}, within {call.remaining:.1f} s", flush=True)
        try:
            await asyncio.sleep(0.01 if cents < 500_000 else 60)  # the bank asks somebody
        except asyncio.CancelledError:
            print("  Payment: given up, the deadline has passed", flush=True)
            raise
        return f"receipt for {cents} cents"


@dataclass
class Order:
    """What was sold."""

    item: str
    count: int
    cents: int
    receipt: str


class Orders(zmesh.Service):
    """The shop as a customer sees it."""

    @zmesh.rpc
    async def buy(self, item: str, count: int = 1) -> Order:
        """Buy something. Errors of the services behind come through as they are."""
        call = zmesh.context()
        stock = call.client(Stock)
        cents = count * await call.client(Catalog).price(item)
        await stock.take(item, count)
        try:
            # Metadata goes one hop, unless it is handed on. The deadline goes on by itself.
            receipt = await call.client(Payment).options(metadata=call.metadata).charge(cents)
        except BaseException:
            # Also where the deadline has passed and this handler is cancelled: so the pieces go back in a task of
            # their own. A task that outlives the call that made it is free of that call's deadline.
            self.undoing = asyncio.create_task(stock.put_back(item, count))
            raise
        call.reply_metadata["cashier"] = "till 3"
        return Order(item, count, cents, receipt)


async def serve(service: zmesh.Service) -> None:
    async with zmesh.Node(service, name=type(service).__name__) as node:
        await node.serve_forever()


async def customer() -> None:
    async with zmesh.Node() as node:
        await node.discover(expect=4, timeout=30)  # a call waits for a node, too, but not for four slow starts
        orders = node.client(Orders).options(metadata={"customer": "Ada"})

        call = orders.buy("spoon", count=3)
        order = await call
        print(f"{order.count} {order.item}s for {order.cents} cents: {order.receipt} ({dict(call.metadata)})")

        for item, count in (("teapot", 1), ("kettle", 2)):
            try:
                await orders.buy(item, count)
            except zmesh.RpcError as error:
                print(f"{count} {item}: {error.code} {dict(error.details)}")

        began = time.monotonic()
        try:
            await orders.options(timeout=0.5).buy("piano")
        except zmesh.DeadlineExceeded as error:
            print(f"1 piano: {error.code} after {time.monotonic() - began:.1f} s")
        await asyncio.sleep(0.2)  # meanwhile it was put back
        print(f"pianos on the shelf: {await node.client(Stock).take('piano', 0)}")


def main() -> None:
    with Processes() as processes:
        for name in ("Catalog", "Stock", "Payment", "Orders"):
            processes.start("shop.py", name)
        asyncio.run(customer())


if __name__ == "__main__":
    if len(sys.argv) > 1:
        services = {"Catalog": Catalog, "Stock": Stock, "Payment": Payment, "Orders": Orders}
        asyncio.run(serve(services[sys.argv[1]]()))
    else:
        main()
