"""A rolling restart under load: three nodes are restarted one after the other, and no call fails or runs twice.

    python examples/rolling_restart.py

The method is not idempotent, so a call whose node is lost could not be tried again. None is: on SIGTERM a node drains.
It tells its callers that it leaves, takes no new calls, finishes what it has, and goes.
"""

import asyncio
import sys
import tempfile
from collections import Counter
from pathlib import Path
from subprocess import Popen

from _local import Processes

import zmesh

NODES = 3
CALLS_A_SECOND = 100


class Till(zmesh.Service):
    """Books sales in a file of its own, one line a sale."""

    def __init__(self, file: Path) -> None:
        self.file = file

    @zmesh.rpc  # not idempotent: a sale that is booked twice is wrong
    async def book(self, sale: int) -> None:
        """Book a sale."""
        with self.file.open("a") as file:
            file.write(f"{sale}\n")
        await asyncio.sleep(0.02)


async def serve(name: str, file: Path) -> None:
    async with zmesh.Node(Till(file), name=name) as node:
        await node.serve_forever()  # SIGTERM ends it; leaving the `async with` drains


class Sales:
    """Books one sale after the other at a steady rate, without waiting for the one before."""

    def __init__(self, till: Till) -> None:
        self.till = till
        self.made = 0
        self.errors: list[zmesh.RpcError] = []

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(self.book(self.made))
                self.made += 1
                try:
                    await asyncio.sleep(1 / CALLS_A_SECOND)
                except asyncio.CancelledError:
                    return  # no more; the group waits for those under way

    async def book(self, sale: int) -> None:
        try:
            await self.till.book(sale)
        except zmesh.RpcError as error:
            self.errors.append(error)


async def restart_all(processes: Processes, folder: Path) -> Sales:
    """Restart each node under load."""
    started = 0

    def start(name: str) -> Popen[bytes]:
        nonlocal started
        started += 1
        return processes.start("rolling_restart.py", name, str(folder / f"sales-{started}"))

    async def until_alive(node: zmesh.Node, name: str, but: str = "") -> str:
        """Wait for a node of this name, not the one with the id `but`; its id."""
        async with asyncio.timeout(10):
            while True:
                for peer in node.peers:
                    if peer.name == name and peer.id != but and peer.state == "alive":
                        return peer.id
                await asyncio.sleep(0.01)

    async with zmesh.Node() as node:
        servers = {f"till-{number}": start(f"till-{number}") for number in range(1, NODES + 1)}
        sales = Sales(node.client(Till))
        selling = asyncio.create_task(sales.run())
        for name, process in servers.items():
            old = await until_alive(node, name)
            process.terminate()  # SIGTERM
            status = await asyncio.to_thread(process.wait, 10)
            start(name)
            await until_alive(node, name, but=old)  # only then comes the next one's turn
            print(f"{name} restarted (its exit status: {status})", flush=True)
        selling.cancel()
        await selling

    return sales


def report(sales: Sales, folder: Path) -> None:
    """Compare what was asked for with what the nodes wrote down."""
    booked = Counter(line for file in folder.iterdir() for line in file.read_text().split())
    lost = sales.made - len(booked)
    twice = sum(times > 1 for times in booked.values())
    print(f"{sales.made} sales: {len(sales.errors)} failed, {lost} not booked, {twice} booked twice")
    if sales.errors:
        raise SystemExit(f"for one: {sales.errors[0]}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(serve(sys.argv[1], Path(sys.argv[2])))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            with Processes() as processes:
                sales = asyncio.run(restart_all(processes, folder))
            report(sales, folder)  # now that all nodes have ended
