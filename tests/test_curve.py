"""Secured nodes over real sockets of this machine: CURVE on tcp and ipc, who is asked, what is left behind."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from pathlib import Path

import cbor2
import pytest
import zmq
import zmq.utils.monitor

import zmesh
from zmesh._security import keys
from zmesh.testing import make_keys

WITHIN = 20.0  # seconds; it only bounds a failure


class Who(zmesh.Service):
    @zmesh.rpc
    async def who(self, data: bytes = b"") -> tuple[str, str | None, bytes]:
        caller = zmesh.context().peer
        return caller.name, caller.key, data


def node(security: zmesh.Security, *services: zmesh.Service, ipc: bool = True, **more: object) -> zmesh.Node:
    config = zmesh.Config.test().replace(ipc=ipc)
    return zmesh.Node(
        *services, security=security, discovery=None, listen="tcp://127.0.0.1:0", config=config, **more  # type: ignore[arg-type]
    )  # fmt: skip


async def refused(address: str, server: str) -> int:
    """The event that ends the handshake of somebody whose key nobody trusts."""
    pair = keys.new_pair("stranger")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        with context.socket(zmq.DEALER) as dealer:
            dealer.linger = 0
            dealer.curve_publickey, dealer.curve_secretkey = pair.public.encode(), pair.secret.encode()
            dealer.curve_serverkey = server.encode()
            ends = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH
            monitor = dealer.get_monitor_socket(ends)
            dealer.connect(address)
            came = await asyncio.to_thread(monitor.poll, 1000 * WITHIN, zmq.POLLIN)
            event = int(zmq.utils.monitor.recv_monitor_message(monitor)["event"]) if came else 0
            dealer.disable_monitor()
            monitor.close()
            return event
    finally:
        context.term()


@pytest.mark.parametrize("ipc", [True, False])
def test_the_key_of_who_calls_is_known_by_whatever_way(tmp_path: Path, ipc: bool) -> None:
    async def main() -> None:
        secured = make_keys(tmp_path, "server", "client")
        server_key, client_key = (keys.read_private(tmp_path / f"{name}.key").public for name in ("server", "client"))
        async with node(secured["server"], Who(), ipc=ipc) as server:
            peer = f"server@{server.addresses[0]}"
            async with node(secured["client"], peers=[peer], ipc=ipc) as client:
                data = secrets.token_bytes(300_000)  # a frame of its own
                assert await client.client(Who).who(data) == ("client", client_key, data)
                assert [(p.address[:6], p.key) for p in client.peers] == [("ipc://" if ipc else "tcp://", server_key)]
                # Whoever is not trusted is refused by this way, too, and leaves the others alone.
                event = await refused(client.peers[0].address, server_key)
                assert event == zmq.EVENT_HANDSHAKE_FAILED_AUTH
                assert (await client.client(Who).who())[0] == "client"
                assert server.stats()["refused_handshakes"] == 1

    asyncio.run(main())


def test_who_is_revoked_and_will_not_hear_it_is_hung_up_on(tmp_path: Path) -> None:
    async def main() -> None:
        secured = make_keys(tmp_path, "server", "deaf", "other")
        pair = keys.read_private(tmp_path / "deaf.key")
        async with (
            node(secured["server"], Who()) as server,
            node(secured["other"], peers=[f"server@{server.addresses[0]}"]) as other,
        ):
            assert (await other.client(Who).who())[0] == "other"
            context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
            with context, context.socket(zmq.DEALER) as dealer:
                dealer.linger, dealer.reconnect_ivl = 0, 10**9
                dealer.curve_publickey, dealer.curve_secretkey = pair.public.encode(), pair.secret.encode()
                dealer.curve_serverkey = keys.read_private(tmp_path / "server.key").public.encode()
                monitor = dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
                dealer.connect(server.addresses[0])
                id = keys.id_of_key(bytes(16), pair.public)
                hello = [1, 1, 0, {"id": id, "name": "deaf", "mesh": server.mesh}]
                dealer.send(cbor2.dumps([0, 0, [hello]]))
                assert await asyncio.to_thread(dealer.poll, 1000 * WITHIN, zmq.POLLIN), "its HELLO"
                (tmp_path / "trust" / "deaf.pub").unlink()
                assert await asyncio.to_thread(monitor.poll, 1000 * WITHIN, zmq.POLLIN), "the end of the connection"
                said = [cbor2.loads(dealer.recv())[2] for _ in range(2)]
                assert said[1][0] == [2, 16, "the key of 'deaf' was revoked"], "REJECT came before"
                dealer.disable_monitor()
                monitor.close()
            assert [peer.state for peer in other.peers] == ["alive"]

    asyncio.run(main())


def test_a_gate_that_fails_lets_nobody_in_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        secured = make_keys(tmp_path, "server", "client")
        complaints: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(str(context)))
        async with node(secured["server"], Who()) as server:
            gate = server._gate
            assert gate is not None
            good = gate.refusal
            monkeypatch.setattr(gate, "refusal", lambda key: 1 / 0)
            async with node(secured["client"], peers=[f"server@{server.addresses[0]}"]) as client:
                with pytest.raises(zmesh.RpcError):
                    await client.client(Who).options(timeout=0.5).who()
                assert "ZeroDivisionError" in complaints[0]
                monkeypatch.setattr(gate, "refusal", good)
                assert (await client.client(Who).options(timeout=WITHIN).who())[0] == "client"

    asyncio.run(main())


def test_a_secured_node_leaves_nothing_behind(tmp_path: Path) -> None:
    async def main() -> None:
        secured = make_keys(tmp_path, "server", "client")
        async with (
            node(secured["server"], Who()) as server,
            node(secured["client"], peers=[f"server@{server.addresses[0]}"]) as client,
        ):
            await client.client(Who).who()

    def left() -> tuple[int, int]:
        return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))

    asyncio.run(main())  # what is made once and kept
    for file in [*tmp_path.rglob("*.key"), *tmp_path.rglob("*.pub")]:
        file.unlink()
    before = left()
    asyncio.run(main())
    end = time.monotonic() + WITHIN
    while any(now > then for now, then in zip(left(), before, strict=True)):
        assert time.monotonic() < end, f"threads and descriptors: {before} before, {left()} after"
        time.sleep(0.01)
