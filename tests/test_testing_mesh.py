"""What a user of `zmesh.testing` writes."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

import zmesh
import zmesh.testing
from zmesh.testing import Crashed, Host, Link, Mesh, OutOfTime


class Greeter(zmesh.Service):
    """Says hello, and by whom."""

    def __init__(self, label: str = "greeter") -> None:
        self.label = label
        self.heard: list[str] = []

    @zmesh.rpc
    async def say_hello(self, name: str) -> str:
        self.heard.append(name)
        return f"Hello, {name}, from {self.label}"

    @zmesh.rpc(idempotent=True)
    async def linger(self, seconds: float) -> str:
        await asyncio.sleep(seconds)
        return self.label

    @zmesh.rpc
    @zmesh.testing.takes(2.0)
    def compute(self) -> str:
        return "computed"


def test_the_page_in_the_documentation() -> None:
    async def main(mesh: Mesh) -> str:
        await mesh.start(Greeter(), name="greeter-1")
        client = await mesh.start()
        return await client.node.client(Greeter).say_hello("World")

    began = time.monotonic()
    assert zmesh.testing.run(main, seed=7) == "Hello, World, from greeter"
    assert time.monotonic() - began < 5


@zmesh.testing.simulated(seeds=range(3))
async def test_plain_handlers_take_the_declared_time(mesh: Mesh) -> None:
    await mesh.start(Greeter())
    client = await mesh.start()
    await client.run(client.node.client(Greeter).say_hello("x"))
    began = mesh.now
    assert await client.run(client.node.client(Greeter).compute()) == "computed"
    assert 2.0 <= mesh.now - began < 2.01


@pytest.mark.parametrize("answer", [41, 42])
@zmesh.testing.simulated()
async def test_parameters_of_pytest_stay(mesh: Mesh, answer: int, tmp_path: Any) -> None:
    assert answer in (41, 42)
    assert tmp_path.exists()
    assert mesh.now == 0


def test_a_failing_seed_is_named() -> None:
    ran: list[int | str] = []

    @zmesh.testing.simulated(seeds=[3, 4, 5])
    async def test(mesh: Mesh) -> None:
        ran.append(mesh.seed)
        assert mesh.seed != 4

    with pytest.raises(AssertionError) as caught:
        test()
    assert ran == [3, 4]
    assert caught.value.__notes__ == ["zmesh.testing: simulated with seed=4, which does the same again"]


def test_a_seed_is_a_run_and_another_seed_another() -> None:
    async def main(mesh: Mesh) -> str:
        await mesh.start(Greeter("a"))
        await mesh.start(Greeter("b"))
        client = await mesh.start()
        for n in range(20):
            await client.run(client.node.client(Greeter).say_hello(str(n)))
        assert any("received" in line for line in mesh.trace)
        return mesh.trace_hash

    assert zmesh.testing.run(main, seed=1) == zmesh.testing.run(main, seed=1)
    assert zmesh.testing.run(main, seed=1) != zmesh.testing.run(main, seed=2)


@zmesh.testing.simulated(seeds=range(5))
async def test_a_crash_is_survived_and_a_restart_found(mesh: Mesh) -> None:
    first = await mesh.start(Greeter("first"), name="first")
    client = await mesh.start()
    greeter = client.node.client(Greeter)
    assert await client.run(greeter.linger(0)) == "first"
    waiting = asyncio.create_task(client.run(greeter.linger(1.0)))
    await asyncio.sleep(0.5)
    first.crash()
    assert not first.running
    with pytest.raises(RuntimeError, match="nothing runs there"):
        first.pause()
    await asyncio.sleep(1)
    await first.restart(Greeter("second"))
    assert await waiting == "second"
    assert first.running


@zmesh.testing.simulated()
async def test_what_runs_on_a_host_crashes_with_it(mesh: Mesh) -> None:
    host = await mesh.start(Greeter())
    working = asyncio.create_task(host.run(asyncio.sleep(10)))
    await asyncio.sleep(1)
    host.crash()
    with pytest.raises(Crashed):
        await working


@zmesh.testing.simulated(seeds=range(5))
async def test_a_partition_separates_and_heals(mesh: Mesh) -> None:
    near, far, client = await mesh.start(Greeter("near")), await mesh.start(Greeter("far")), await mesh.start()
    greeter = client.node.client(Greeter)
    await client.run(greeter.linger(0))
    await asyncio.sleep(1)
    mesh.partition(client, far)
    assert {await client.run(greeter.linger(0)) for _ in range(20)} == {"near"}
    mesh.partition([near], [client, far])
    with pytest.raises(zmesh.RpcError):
        await client.run(greeter.options(timeout=1.0).linger(0))
    mesh.heal(client, far)
    assert await client.run(greeter.linger(0)) == "far"
    mesh.heal()
    await asyncio.sleep(5)
    assert [peer.state for peer in client.node.peers] == ["alive", "alive"]


@zmesh.testing.simulated(seeds=range(5))
async def test_an_isolated_host_comes_back(mesh: Mesh) -> None:
    server, client = await mesh.start(Greeter()), await mesh.start()
    greeter = client.node.client(Greeter)
    await client.run(greeter.linger(0))
    mesh.isolate(server)
    with pytest.raises(zmesh.DeadlineExceeded):
        await client.run(greeter.options(timeout=2.0).linger(0))
    late = await mesh.start()
    mesh.heal(server)
    assert await late.run(late.node.client(Greeter).options(timeout=30).linger(0)) == "greeter"
    assert await client.run(greeter.linger(0)) == "greeter"


@zmesh.testing.simulated(seeds=range(5))
async def test_calls_that_expired_while_their_server_was_stopped_never_run(mesh: Mesh) -> None:
    greeter = Greeter()
    server, client = await mesh.start(greeter), await mesh.start()
    await client.run(client.node.client(Greeter).say_hello("before"))
    server.pause()
    calls = [
        asyncio.create_task(client.run(client.node.client(Greeter).options(timeout=1.0).say_hello(str(n))))
        for n in range(20)
    ]
    await asyncio.sleep(3)
    server.resume()
    await asyncio.sleep(3)
    assert all(isinstance(call.exception(), zmesh.RpcError) for call in calls)
    assert greeter.heard == ["before"]


@zmesh.testing.simulated(seeds=range(5))
async def test_a_stalled_server_is_suspect_and_not_dead_and_answers(mesh: Mesh) -> None:
    server, client = await mesh.start(Greeter(), name="stalls"), await mesh.start()
    greeter = client.node.client(Greeter)
    await client.run(greeter.linger(0))
    states: list[str] = []
    client.node.on_change(lambda peer, before: states.append(peer.state))
    call = asyncio.create_task(client.run(greeter.linger(0.1)))
    await asyncio.sleep(0.05)
    server.stall(3.0)
    assert await call == "greeter"
    assert mesh.now > 3.0
    assert states[:2] == ["suspect", "alive"]
    assert "dead" not in states


@zmesh.testing.simulated()
async def test_a_reset_loses_calls_and_no_more(mesh: Mesh) -> None:
    server, client = await mesh.start(Greeter()), await mesh.start()
    greeter = client.node.client(Greeter)
    await client.run(greeter.linger(0))
    call = asyncio.create_task(client.run(greeter.compute()))
    await asyncio.sleep(1)
    mesh.reset(server, client)
    with pytest.raises(zmesh.MaybeExecuted):
        await call
    assert await client.run(greeter.linger(0)) == "greeter"


@zmesh.testing.simulated()
async def test_paths_have_delays_of_their_own(mesh: Mesh) -> None:
    server, client = await mesh.start(Greeter()), await mesh.start()
    greeter = client.node.client(Greeter)
    await client.run(greeter.linger(0))
    mesh.link(server, client, Link(delay=0.25, jitter=0))
    began = mesh.now
    await client.run(greeter.linger(0))
    assert 0.5 <= mesh.now - began < 0.51


@zmesh.testing.simulated(clock_skew=1e6, seeds=range(3))
async def test_clocks_need_not_agree(mesh: Mesh) -> None:
    greeter = Greeter()
    await mesh.start(greeter)
    client = await mesh.start()
    times = {await host.run(read_clock()) for host in mesh.hosts}
    assert len(times) == 2
    assert await client.run(client.node.client(Greeter).say_hello("x")) == "Hello, x, from greeter"


async def read_clock() -> float:
    return asyncio.get_running_loop().time()


@zmesh.testing.simulated()
async def test_a_host_that_stops_says_goodbye(mesh: Mesh) -> None:
    server, client = await mesh.start(Greeter(), name="leaves"), await mesh.start()
    await client.run(client.node.client(Greeter).linger(0))
    assert [peer.name for peer in client.node.peers] == ["leaves"]
    began = mesh.now
    await server.stop()
    await asyncio.sleep(0.1)
    assert client.node.peers == []
    assert mesh.now - began < 2
    assert not server.running


@zmesh.testing.simulated()
async def test_names_are_unique_and_a_node_that_cannot_start_says_why(mesh: Mesh) -> None:
    await mesh.start(name="one")
    with pytest.raises(ValueError, match="a host 'one' already"):
        await mesh.start(name="one")
    with pytest.raises(ValueError, match="two services of one name"):
        await mesh.start(Greeter(), Greeter())


@zmesh.testing.simulated()
async def test_static_peers_work_too(mesh: Mesh) -> None:
    server = await mesh.start(Greeter(), listen="tcp://*:7001", discovery=None)
    client = await mesh.start(peers=[f"tcp://{server.address}:7001"], discovery=None)
    assert await client.run(client.node.client(Greeter).linger(0)) == "greeter"
    server.crash()
    await server.restart(Greeter("again"))
    assert await client.run(client.node.client(Greeter).linger(0)) == "again"


def test_the_environment_has_no_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZMESH_MESH", "elsewhere")
    monkeypatch.setenv("ZMESH_LISTEN", "tcp://127.0.0.1:1")
    monkeypatch.setenv("ZMESH_PEERS", "tcp://127.0.0.1:1")
    monkeypatch.setenv("ZMESH_DISCOVERY", "none")
    monkeypatch.setenv("ZMESH_INTERFACES", "eth7")
    test_the_page_in_the_documentation()


def test_time_is_bounded() -> None:
    async def main(mesh: Mesh) -> None:
        await mesh.start(Greeter())
        await asyncio.Event().wait()  # the node's heartbeats go on

    with pytest.raises(OutOfTime, match="not done after 30 virtual seconds"):
        zmesh.testing.run(main, time_limit=30)


def test_hosts_are_listed() -> None:
    async def main(mesh: Mesh) -> list[Host]:
        one = await mesh.start(Greeter())
        other = await mesh.start(name="other")
        one.crash()
        assert mesh.hosts == [one, other]
        assert [host.name for host in mesh.hosts] == ["host-1", "other"]
        assert "10.0.0.2" in repr(other)
        return mesh.hosts

    assert len(zmesh.testing.run(main)) == 2
