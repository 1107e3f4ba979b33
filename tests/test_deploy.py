"""Restarts and deploys under load fail no call, whatever the method, and run none twice (`make faults` does the same
between hosts)."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

import zmesh
import zmesh.testing
from zmesh.testing import Host, Mesh

RATE = 200.0


class Ran:
    """Which version ran each call, and how often."""

    def __init__(self) -> None:
        self.calls: dict[str, list[str]] = {}

    def service(self, version: str) -> type[zmesh.Service]:
        """The service in a version, as its authors then had it."""
        calls = self.calls

        class Shop(zmesh.Service, version=version):
            """Sells."""

            @zmesh.rpc
            async def sell(self, token: str) -> str:
                calls.setdefault(token, []).append(version)
                await asyncio.sleep(0.005)
                return version

        return Shop


class Load:
    """Calls of a method that is not idempotent, all the time; they are never late for one another."""

    def __init__(self, host: Host, service: type[zmesh.Service], label: str) -> None:
        self.answers: Counter[str] = Counter()
        self.errors: list[zmesh.RpcError] = []
        self._shop = host.node.client(service)
        self._label = label
        self._stop = False
        self._task = asyncio.create_task(host.run(self._run()))

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            number = 0
            while not self._stop:
                number += 1
                group.create_task(self._call(f"{self._label}-{number}"))
                await asyncio.sleep(1 / RATE)

    async def _call(self, token: str) -> None:
        try:
            self.answers[await self._shop.sell(token)] += 1  # type: ignore[attr-defined]
        except zmesh.RpcError as error:
            self.errors.append(error)

    async def end(self) -> None:
        self._stop = True
        await self._task


def twice(ran: Ran) -> dict[str, list[str]]:
    return {token: versions for token, versions in ran.calls.items() if len(versions) > 1}


@pytest.mark.parametrize("balance", ["least_loaded", "round_robin"])
@zmesh.testing.simulated()
async def test_a_rolling_restart_of_eight_fails_nothing(mesh: Mesh, balance: str) -> None:
    ran = Ran()
    shop = ran.service("1.0")
    hosts = [await mesh.start(shop(), name=f"shop-{number}") for number in range(8)]
    client = await mesh.start(balance=balance)
    load = Load(client, shop, "call")
    await asyncio.sleep(1)
    for host in hosts:
        await host.restart()
        await asyncio.sleep(0.2)
    await load.end()
    assert load.errors == []
    assert twice(ran) == {}
    assert load.answers.total() > 8 * 0.2 * RATE


@zmesh.testing.simulated()
async def test_a_deploy_beside_the_old_version_fails_nothing(mesh: Mesh) -> None:
    ran = Ran()
    one, minor, major = (ran.service(version) for version in ("1.0", "1.1", "2.0"))

    async def serve(service: type[zmesh.Service]) -> list[Host]:
        name = f"shop-{len(mesh.hosts)}"
        return [await mesh.start(service(), name=f"{name}-{number}") for number in range(3)]

    old = await serve(one)
    load = Load(await mesh.start(), one, "old")
    await asyncio.sleep(1)
    beside = await serve(minor)
    await asyncio.sleep(0.5)
    for host in old:
        await host.stop()
    new = await serve(major)
    newer = Load(await mesh.start(), major, "new")
    await asyncio.sleep(1)
    await load.end()
    for host in beside:
        await host.stop()
    await asyncio.sleep(0.2)
    await newer.end()

    assert [*load.errors, *newer.errors] == []
    assert twice(ran) == {}
    assert sorted(load.answers) == ["1.0", "1.1"]
    assert sorted(newer.answers) == ["2.0"]
    assert all(host.running for host in new)
