"""A node's arguments, its environment and its life."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
from typing import Any

import pytest

import zmesh
import zmesh.testing
from zmesh._platform import Platform
from zmesh.testing import Mesh


class Greeter(zmesh.Service):
    @zmesh.rpc
    async def hello(self, seconds: float = 0.0) -> str:
        await asyncio.sleep(seconds)
        return "hello"

    @zmesh.rpc
    async def leave(self) -> None:
        await zmesh.context()._running.server.node.drain()


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ZMESH_")]:
        monkeypatch.delenv(name)


LOCAL: dict[str, Any] = {"mesh": "test-node", "listen": "tcp://127.0.0.1:0", "discovery": None}


# -- arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": ""}, "a node's name is 1 to 128 printable characters, got ''"),
        ({"name": "x" * 129}, "a node's name is 1 to 128 printable characters"),
        ({"name": "a\nb"}, r"got 'a\\nb'"),
        ({"mesh": ""}, "a mesh's name is 1 to 64 letters, digits, '_', '.' or '-', got ''"),
        ({"mesh": "two words"}, "got 'two words'"),
        ({"capacity": 0}, "capacity is a positive number below a million, got 0"),
        ({"capacity": -1}, "got -1"),
        ({"capacity": float("nan")}, "got nan"),
        ({"capacity": 1e6}, "got 1000000.0"),
        ({"threads": 0}, "threads is at least 1, got 0"),
        ({"discovery": "dns"}, r"discovery is 'mdns' or None \(ZMESH_DISCOVERY: 'mdns' or 'none'\), got 'dns'"),
        ({"balance": "fair"}, "no balancing policy 'fair'"),
    ],
)
def test_arguments_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        zmesh.Node(**options)


@pytest.mark.parametrize("address", ["127.0.0.1:7001", "tcp://127.0.0.1", "http://x:1", "tcp://127.0.0.1:70000"])
def test_addresses_that_are_none(address: str) -> None:
    async def listen() -> None:
        async with zmesh.Node(Greeter(), discovery=None, listen=address):
            pass

    async def dial() -> None:
        async with zmesh.Node(discovery=None, peers=[address], config=zmesh.Config(patience=0.1)) as node:
            await node.client(Greeter).hello()

    with pytest.raises(ValueError, match=f"'{address}' is no address; write tcp://HOST:PORT"):
        asyncio.run(listen())
    with pytest.raises((ValueError, zmesh.Unavailable), match=f"'{address}' is no address; write tcp://HOST:PORT"):
        asyncio.run(dial())


def test_who_a_node_is() -> None:
    async def main() -> None:
        node = zmesh.Node(Greeter(), name="greeter-1", **LOCAL)
        assert repr(node) == "<zmesh.Node greeter-1 (Greeter) in mesh test-node>"
        assert [schema.name for schema in node.services] == ["Greeter"]
        assert len(bytes.fromhex(node.id)) == 16
        assert node.id != zmesh.Node(**LOCAL).id
        assert node.addresses == ()
        async with node:
            assert node.addresses[0].startswith("tcp://127.0.0.1:")
            assert not node.addresses[0].endswith(":0")
        async with zmesh.Node(**LOCAL) as client:
            assert client.addresses == ()  # a pure client does not listen
            assert str(os.getpid()) in client.name
        async with zmesh.Node(Greeter(), **{**LOCAL, "listen": ["tcp://127.0.0.1:0", "tcp://127.0.0.1:0"]}) as two:
            assert len([address for address in two.addresses if address.startswith("tcp://")]) == 2
            async with zmesh.Node(peers=[two.addresses[1]], **LOCAL) as client:
                assert await client.client(Greeter).hello() == "hello"

    asyncio.run(asyncio.wait_for(main(), 10))


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setenv("ZMESH_MESH", "from-the-environment")
        monkeypatch.setenv("ZMESH_LISTEN", "tcp://127.0.0.1:0, tcp://127.0.0.1:0")
        monkeypatch.setenv("ZMESH_DISCOVERY", "none")
        async with zmesh.Node(Greeter()) as server:
            assert server.mesh == "from-the-environment"
            assert len([address for address in server.addresses if address.startswith("tcp://127.0.0.1:")]) == 2
            monkeypatch.setenv("ZMESH_PEERS", f"tcp://127.0.0.1:1, {server.addresses[0]}")
            async with zmesh.Node() as client:
                assert await client.client(Greeter).hello() == "hello"
                assert not any("mdns" in problem for problem in client.problems)
            # arguments win
            async with zmesh.Node(mesh="other", peers=[server.addresses[0]]) as other:
                with pytest.raises(zmesh.RpcError, match="belongs to mesh 'from-the-environment'"):
                    await other.client(Greeter).options(timeout=0.2).hello()

    asyncio.run(asyncio.wait_for(main(), 10))
    monkeypatch.setenv("ZMESH_DISCOVERY", "bonjour")
    with pytest.raises(ValueError, match="got 'bonjour'"):
        zmesh.Node()
    assert zmesh.Node(discovery=None)._use_mdns is False
    monkeypatch.setenv("ZMESH_MESH", "no mesh")
    with pytest.raises(ValueError, match="a mesh's name"):
        zmesh.Node(discovery=None)


# -- life


def test_a_node_works_inside_async_with() -> None:
    async def main() -> None:
        node = zmesh.Node(Greeter(), **LOCAL)
        for use in (lambda: node.client(Greeter), lambda: node.peers, lambda: node.problems, lambda: node.discovery):
            with pytest.raises(RuntimeError, match="a Node works inside `async with`"):
                use()
        with pytest.raises(RuntimeError, match="inside `async with`"):
            await node.drain()
        async with node:
            with pytest.raises(RuntimeError, match="a Node is entered once; make another one"):
                await node.__aenter__()
            with pytest.raises(ValueError, match="takes a Service class or a service's name"):
                node.client("")
            for wrong in (Greeter(), int, zmesh.Service.__mro__[1]):
                with pytest.raises(TypeError, match="takes a Service class or a service's name"):
                    node.client(wrong)  # type: ignore[call-overload]
        with pytest.raises(RuntimeError, match="entered once"):
            await node.__aenter__()
        await node.__aexit__(None, None, None)  # closing again does no harm

    asyncio.run(asyncio.wait_for(main(), 10))


@zmesh.testing.simulated()
async def test_close_and_drain_may_come_often(mesh: Mesh) -> None:
    server, client = await mesh.start(Greeter()), await mesh.start()
    greeter = client.node.client(Greeter)
    call = asyncio.create_task(client.run(greeter.hello(1.0)))
    await asyncio.sleep(0.5)
    node = server.node
    began = mesh.now
    await asyncio.gather(server.run(node.drain()), server.run(node.drain()))
    assert await call == "hello"
    await server.run(node.drain())
    assert mesh.now - began < 1
    with pytest.raises(zmesh.Unavailable):
        await client.run(greeter.hello())
    await asyncio.gather(server.stop(), client.run(client.node.drain()))


@zmesh.testing.simulated()
async def test_a_drained_node_leaves_at_once_though_a_caller_never_let_go(mesh: Mesh) -> None:
    server = await mesh.start(Greeter(), config=zmesh.Config(drain_grace=3))
    client = await mesh.start()
    await client.run(client.node.client(Greeter).hello())
    client.stall(30)
    began = mesh.now
    await server.run(server.node.drain())
    assert 3 <= mesh.now - began < 3.5
    await server.stop()
    assert mesh.now - began < 4


@pytest.mark.parametrize("first", ["under way", "cancelled"])
@zmesh.testing.simulated()
async def test_leaving_waits_for_a_drain_that_is_under_way(mesh: Mesh, first: str) -> None:
    server, client = await mesh.start(Greeter()), await mesh.start()
    greeter = client.node.client(Greeter)
    await client.run(greeter.hello())
    call = asyncio.create_task(client.run(greeter.hello(1.0)))
    await asyncio.sleep(0.2)
    draining = asyncio.create_task(server.run(server.node.drain()))
    await asyncio.sleep(0.2)
    if first == "cancelled":
        draining.cancel()
        await asyncio.wait([draining])
    await server.stop()
    assert await call == "hello"


@zmesh.testing.simulated()
async def test_every_drain_waits_until_it_is_done(mesh: Mesh) -> None:
    server, client = await mesh.start(Greeter()), await mesh.start()
    greeter = client.node.client(Greeter)
    await client.run(greeter.hello())
    call = asyncio.create_task(client.run(greeter.hello(1.0)))
    await asyncio.sleep(0.2)
    first = asyncio.create_task(server.run(server.node.drain()))
    await asyncio.sleep(0.2)
    await server.run(server.node.drain())
    assert call.done()
    await first


@zmesh.testing.simulated()
async def test_a_drained_node_still_calls(mesh: Mesh) -> None:
    class Other(zmesh.Service):
        @zmesh.rpc
        async def other(self) -> str:
            return "other"

    await mesh.start(Other())
    server = await mesh.start(Greeter())
    await server.run(server.node.drain())
    assert await server.run(server.node.client(Other).other()) == "other"


def test_a_cancelled_exit_still_closes() -> None:
    async def main() -> None:
        config = zmesh.Config(drain_grace=0.5)
        async with zmesh.Node(Greeter(), config=config, **LOCAL) as server:
            address = server.addresses[0]
            async with zmesh.Node(peers=[address], **LOCAL) as client:
                asyncio.create_task(client.client(Greeter).hello(5)).add_done_callback(lambda t: t.exception())
                await asyncio.sleep(0.1)
                leaving = asyncio.create_task(server.__aexit__(None, None, None))
                await asyncio.sleep(0.1)
                leaving.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await leaving
                await server.__aexit__(None, None, None)
                with pytest.raises(zmesh.RpcError):
                    await client.client(Greeter).options(timeout=0.2).hello()

    asyncio.run(asyncio.wait_for(main(), 10))


def test_a_start_that_fails_closes_what_it_opened() -> None:
    class NoDiscovery:
        async def start(self, *_: object) -> None:
            raise OSError("no multicast at all")

        async def withdraw(self) -> None: ...
        async def close(self) -> None: ...
        def describe(self) -> str:
            return "broken"

    async def main() -> None:
        loop = asyncio.get_running_loop()
        platform = Platform(mdns=lambda interfaces: NoDiscovery())  # type: ignore[arg-type, return-value]
        options = {**LOCAL, "discovery": "mdns"}
        node = zmesh.Node(Greeter(), _platform=platform, **options)
        with pytest.raises(OSError, match="no multicast at all"):
            async with node:
                pass
        gc.collect()
        timers = [handle for handle in loop._scheduled if not handle.cancelled()]  # type: ignore[attr-defined]
        assert timers == []
        assert not loop._selector.get_map() or len(loop._selector.get_map()) == 1  # type: ignore[attr-defined]

    asyncio.run(main())


def test_nothing_is_left_on_the_loop() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        watched = len(loop._selector.get_map())  # type: ignore[attr-defined]
        async with (
            zmesh.Node(Greeter(), **LOCAL) as server,
            zmesh.Node(peers=[*server.addresses, "tcp://127.0.0.1:1"], **LOCAL) as client,
        ):
            assert await client.client(Greeter).hello() == "hello"
        assert len(loop._selector.get_map()) == watched  # type: ignore[attr-defined]
        await asyncio.sleep(0)
        assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []

    asyncio.run(main())


# -- processes


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("use", ["node", "client", "by name"])
def test_a_forked_child_gets_a_clear_error(use: str) -> None:
    async def in_child(node: zmesh.Node, typed: Greeter, named: Any) -> str:
        try:
            client = {"node": lambda: node.client(Greeter), "client": lambda: typed, "by name": lambda: named}[use]()
            async with asyncio.timeout(3):
                return str(await client.options(timeout=1).hello())
        except BaseException as error:
            return f"{type(error).__name__}: {error}"

    async def main() -> str:
        async with zmesh.Node(Greeter(), **LOCAL) as server, zmesh.Node(peers=server.addresses, **LOCAL) as node:
            typed, named = node.client(Greeter), node.client("Greeter")
            assert await typed.hello() == "hello"
            assert await named.hello() == "hello"
            reading, writing = os.pipe()
            child = os.fork()
            if child == 0:
                try:
                    signal.alarm(8)
                    os.write(
                        writing, asyncio.new_event_loop().run_until_complete(in_child(node, typed, named)).encode()
                    )
                except BaseException as error:
                    os.write(writing, f"outside: {type(error).__name__}: {error}".encode())
                finally:
                    os._exit(0)
            os.close(writing)
            answer = await asyncio.to_thread(os.read, reading, 10_000)
            os.close(reading)
            await asyncio.to_thread(os.waitpid, child, 0)
            assert await typed.hello() == "hello"  # and the parent goes on
            return answer.decode()

    assert "does not work in a forked child: make one in the child" in asyncio.run(asyncio.wait_for(main(), 20))


SERVE = """
import asyncio, sys
import zmesh

class Greeter(zmesh.Service):
    async def __aenter__(self):
        return self
    async def __aexit__(self, *error):
        print("left", flush=True)
    @zmesh.rpc
    async def hello(self, seconds: float) -> str:
        print("called", flush=True)
        await asyncio.sleep(seconds)
        return "hello"

async def main():
    async with zmesh.Node(Greeter(), mesh="test-node", listen="tcp://127.0.0.1:0", discovery=None) as node:
        print(node.addresses[0], flush=True)
        await node.serve_forever()
        print("told to leave", flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", SERVE], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        out = process.stdout

        async def main() -> str:
            async with zmesh.Node(peers=[out.readline().strip()], **LOCAL) as node:
                call = asyncio.create_task(node.client(Greeter).hello(0.4))
                assert await asyncio.to_thread(out.readline) == "called\n"
                process.send_signal(number)
                return await call

        try:
            assert asyncio.run(asyncio.wait_for(main(), 10)) == "hello"
            assert process.wait(5) == 0  # well before the grace of a drain is over
            assert out.read() == "told to leave\nleft\n"
        finally:
            process.kill()
