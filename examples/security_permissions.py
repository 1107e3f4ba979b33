"""The ladder of security, rung 3: each node has a key of its own, and a file says who may call what.

    python examples/security_permissions.py

All nodes are in this process, so that there is one thing to start.
"""

import asyncio
import logging
import sys
import tempfile
from pathlib import Path

import _local  # noqa: F401  (keeps this run to itself)

import zmesh
from zmesh.testing import make_keys

RULES = """
[groups]
tills = ["till-1"]

[allow]
"Orders.place" = ["@tills", "ada"]
"Orders.cancel" = ["ada"]
"""


class Orders(zmesh.Service):
    """Takes orders, and knows for certain from whom."""

    def __init__(self) -> None:
        self.placed: dict[int, str] = {}

    @zmesh.rpc
    async def place(self, item: str) -> int:
        """Order something; the order's number."""
        number = len(self.placed) + 1
        self.placed[number] = f"{item}, by {zmesh.context().peer.name}"
        return number

    @zmesh.rpc
    async def cancel(self, number: int) -> str:
        """Cancel an order; what it was."""
        return self.placed.pop(number)


async def main(folder: Path) -> None:
    rules = folder / "permissions.toml"
    rules.write_text(RULES)
    # What these commands do:  zmesh keys new NAME;  zmesh keys trust NAME.pub --trust trust
    keys = make_keys(folder, "orders-1", "till-1", "ada")
    server = zmesh.Security(key_file=folder / "orders-1.key", trust=folder / "trust", permissions=rules)
    async with (
        zmesh.Node(Orders(), security=server),
        zmesh.Node(security=keys["till-1"]) as till,
        zmesh.Node(security=keys["ada"]) as ada,
    ):
        number = await till.client(Orders).place("a spoon")
        print(f"till-1 places order {number}")
        try:
            await till.client(Orders).cancel(number)
        except zmesh.PermissionDenied as error:
            print(f"till-1 cancels it: {error.code.name}: {error.message}")
        print("ada cancels it:", await ada.client(Orders).cancel(number))

        # Another version of the file holds from the next call on, without a restart.
        new = folder / "permissions.new"
        new.write_text(RULES.replace('"Orders.cancel" = ["ada"]', '"Orders.cancel" = ["ada", "@tills"]'))
        new.replace(rules)
        number = await till.client(Orders).place("a fork")
        print("till-1, once the file has changed:", await cancel_when_allowed(till, number))


async def cancel_when_allowed(till: zmesh.Node, number: int) -> str:
    async with asyncio.timeout(10):
        while True:
            try:
                return await till.client(Orders).cancel(number)
            except zmesh.PermissionDenied:
                await asyncio.sleep(0.1)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, stream=sys.stdout, format="  log: %(message)s")
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(Path(folder)))
