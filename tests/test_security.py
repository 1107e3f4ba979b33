"""Who may link with whom, in virtual time: names that belong to keys, trust that comes and goes, secured meshes beside
others. Real handshakes: tests/test_curve.py and tests/net/test_security_net.py.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from pathlib import Path

import pytest

import zmesh
import zmesh.testing
from zmesh._security import keys
from zmesh._security.trust import TrustedKeys
from zmesh.testing import Host, Mesh, make_keys, simulated

WITHIN = 1.0  # seconds: the promise for errors and for revoked keys


class Greeter(zmesh.Service):
    def __init__(self) -> None:
        self.cancelled = 0

    @zmesh.rpc
    async def who(self) -> list[str | None]:
        caller = zmesh.context().peer
        return [caller.name, caller.key, caller.fingerprint]

    @zmesh.rpc
    async def slow(self) -> str:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return "done"


def problem_of(host: Host) -> str:
    return "; ".join(host.node.problems)


async def refused(mesh: Mesh, host: Host, why: str) -> None:
    """The host says within a second what keeps it from the one it calls, and so does the error of the call."""
    call = asyncio.create_task(host.run(wait(host.node.client(Greeter).options(timeout=3).who())))
    began = mesh.now
    while why not in problem_of(host):
        assert mesh.now - began < WITHIN, f"no {why!r} in {problem_of(host)!r}"
        await asyncio.sleep(0.01)
    with pytest.raises(zmesh.RpcError) as caught:
        await call
    assert not caught.value.may_have_run
    assert why in str(caught.value)


async def start_as(mesh: Mesh, name: str, security: zmesh.Security, *services: zmesh.Service) -> Host:
    """A host whose node has the name of another host's."""
    host = await mesh.start(*services, name=f"host-{len(mesh.hosts) + 1}")
    await host.restart(name=name, security=security)
    return host


async def wait(call: zmesh.Call[object]) -> object:
    return await call


@simulated()
async def test_a_handler_sees_the_key_of_its_caller(mesh: Mesh, tmp_path: Path) -> None:
    secured = make_keys(tmp_path, "server", "client")
    server = await mesh.start(Greeter(), name="server", security=secured["server"])
    client = await mesh.start(name="client", security=secured["client"])
    key = keys.read_public(tmp_path / "trust" / "client.pub")
    forged = {"key": "x", "peer": "server", "name": "server"}
    call = client.node.client(Greeter).options(metadata=forged).who()
    assert await client.run(wait(call)) == ["client", key, keys.fingerprint(key)]
    assert [(peer.name, peer.key) for peer in client.node.peers] == [
        ("server", keys.read_public(tmp_path / "trust" / "server.pub"))
    ]
    assert server.node.stats()["refused_handshakes"] == 0


@simulated()
async def test_without_security_there_is_no_key(mesh: Mesh) -> None:
    await mesh.start(Greeter())
    client = await mesh.start(name="client")
    assert await client.run(wait(client.node.client(Greeter).who())) == ["client", None, None]
    assert client.node.security is None
    assert client.node.fingerprint is None
    assert "refused_handshakes" not in client.node.stats()


@simulated()
async def test_who_has_the_mesh_secret_may_have_any_name(mesh: Mesh, tmp_path: Path) -> None:
    for name in ("one", "other"):
        keys.write_secret(tmp_path / name, keys.new_secret())
    one, other = (zmesh.Security(secret_file=tmp_path / name) for name in ("one", "other"))
    server = await mesh.start(Greeter(), name="server", security=one)
    friend = await mesh.start(name="any name", security=one)
    shared = keys.read_secret(tmp_path / "one").public
    assert await friend.run(wait(friend.node.client(Greeter).who())) == [
        "any name",
        shared,
        keys.fingerprint(shared),
    ]
    stranger = await mesh.start(name="stranger", security=other)
    await refused(mesh, stranger, "does not have the key that was expected")
    assert f"it announces {server.node.fingerprint}" in problem_of(stranger)
    assert server.node.stats()["refused_handshakes"] > 0


@simulated()
async def test_secured_and_plain_nodes_say_so_within_a_second(mesh: Mesh, tmp_path: Path) -> None:
    keys.write_secret(tmp_path / "secret", keys.new_secret())
    security = zmesh.Security(secret_file=tmp_path / "secret")
    secured = await mesh.start(Greeter(), name="secured", security=security)
    plain = await mesh.start(name="plain")
    await refused(mesh, plain, "it is secured and this node is not")
    await plain.stop()
    await secured.stop()
    await mesh.start(Greeter(), name="plain-server")
    secured = await mesh.start(name="secured-client", security=security)
    await refused(mesh, secured, "this node is secured and it is not")


@simulated()
async def test_a_name_belongs_to_a_key(mesh: Mesh, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    secured = make_keys(tmp_path, "server", "client", "mallory")
    false = make_keys(tmp_path / "false", "server", "client")  # what somebody made who would like to be them
    shutil.rmtree(tmp_path / "false" / "trust")
    shutil.copytree(tmp_path / "trust", tmp_path / "false" / "trust")
    server = await mesh.start(Greeter(), name="server", security=secured["server"])

    # A stranger, by whatever name, is refused by its key.
    impostor = await mesh.start(name="client", security=false["client"])
    await refused(mesh, impostor, "it does not trust this node's key")
    assert "its key is not in the trust folder" in caplog.text
    await impostor.stop()

    # One who is trusted is refused by another's name: this server knows mallory's key as mallory's alone.
    shutil.copy(tmp_path / "mallory.key", tmp_path / "false" / "mallory.key")
    text = (tmp_path / "mallory.key").read_text().replace('"mallory"', '"client"')
    (tmp_path / "false" / "mallory.key").write_text(text)
    (tmp_path / "false" / "mallory.key").chmod(0o600)
    liar = zmesh.Security(key_file=tmp_path / "false" / "mallory.key", trust=tmp_path / "false" / "trust")
    impostor = await start_as(mesh, "client", liar)
    await refused(mesh, impostor, "its key belongs to 'mallory', and it says that it is 'client'")
    await impostor.stop()
    assert server.node.stats()["refused_handshakes"] >= 2
    await server.stop()

    # Who serves under another's name is not called, whatever its announcement says.
    impostor = await start_as(mesh, "server", false["server"], Greeter())
    client = await start_as(mesh, "client", secured["client"])
    await refused(mesh, client, "it announces key")
    await client.restart(peers=[f"server@{impostor.node.addresses[0]}"], discovery=None)
    await refused(mesh, client, "it does not have the key that was expected")


@simulated()
async def test_an_id_belongs_to_a_key(mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secured = make_keys(tmp_path, "server", "client", "mallory")
    server = await mesh.start(Greeter(), name="server", security=secured["server"], discovery=None)
    stolen, identity = bytes.fromhex(server.node.id), TrustedKeys.identity
    liars = {"mallory": stolen}
    monkeypatch.setattr(TrustedKeys, "identity", lambda gate, new: liars.get(gate.name) or identity(gate, new))
    at_server = f"server@{server.node.addresses[0]}"
    mallory = await mesh.start(
        Greeter(), name="mallory", security=secured["mallory"], peers=[at_server], discovery=None
    )
    assert mallory.node.id == server.node.id
    await refused(mesh, mallory, "is not one of its key")

    # Whoever is met first is not taken for the one who has this id.
    at_mallory = f"mallory@{mallory.node.addresses[0]}"
    client = await mesh.start(name="client", security=secured["client"], peers=[at_mallory], discovery=None)
    await refused(mesh, client, "is not one of its key")
    await client.restart(peers=[at_mallory, at_server])
    await client.run(wait(client.node.client(Greeter).who()))
    assert [peer.name for peer in client.node.peers] == ["server"]


@simulated()
async def test_trusting_and_revoking_need_no_restart(
    mesh: Mesh, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secured = make_keys(tmp_path, "server", "client")
    ours = tmp_path / "server-trusts"
    shutil.copytree(tmp_path / "trust", ours)
    (ours / "client.pub").unlink()
    service = Greeter()
    security = zmesh.Security(key_file=tmp_path / "server.key", trust=ours)
    await mesh.start(service, name="server", security=security)
    client = await mesh.start(name="client", security=secured["client"])
    await refused(mesh, client, "it does not trust this node's key")

    shutil.copy(tmp_path / "trust" / "client.pub", ours)
    assert (await client.run(wait(client.node.client(Greeter).who())))[0] == "client"  # type: ignore[index]

    call = asyncio.create_task(client.run(wait(client.node.client(Greeter).slow())))
    await asyncio.sleep(1)
    (ours / "client.pub").unlink()
    began = mesh.now
    with pytest.raises(zmesh.MaybeExecuted, match=r"rejected by the other side: the key of 'client' was revoked"):
        await call
    assert mesh.now - began < WITHIN
    assert service.cancelled == 1, "the handler does not go on for somebody who is not trusted"
    assert "the key of 'client'" in caplog.text
    await refused(mesh, client, "it does not trust this node's key")


@simulated()
async def test_a_client_that_revokes_its_server_calls_it_no_longer(mesh: Mesh, tmp_path: Path) -> None:
    secured = make_keys(tmp_path, "server", "client")
    service = Greeter()
    await mesh.start(service, name="server", security=secured["server"])
    theirs = tmp_path / "client-trusts"
    shutil.copytree(tmp_path / "trust", theirs)
    client = await mesh.start(name="client", security=zmesh.Security(key_file=tmp_path / "client.key", trust=theirs))
    call = asyncio.create_task(client.run(wait(client.node.client(Greeter).slow())))
    await asyncio.sleep(1)
    (theirs / "server.pub").unlink()
    began = mesh.now
    with pytest.raises(zmesh.MaybeExecuted, match=r"refused here: the key of 'server' was revoked"):
        await call
    assert mesh.now - began < WITHIN
    await asyncio.sleep(0.1)
    assert service.cancelled == 1
    await refused(mesh, client, "'server' is not in the trust folder")


@simulated()
async def test_a_peer_without_a_name_is_no_peer_in_a_mesh_of_keys(mesh: Mesh, tmp_path: Path) -> None:
    secured = make_keys(tmp_path, "server", "client")
    server = await mesh.start(Greeter(), name="server", security=secured["server"], listen="tcp://*:7001")
    address = f"tcp://{server.address}:7001"
    client = await mesh.start(name="client", security=secured["client"], peers=[address], discovery=None)
    await refused(mesh, client, "a peer is named NAME@tcp://HOST:PORT")
    await client.restart(peers=[f"server@{address}"])
    assert (await client.run(wait(client.node.client(Greeter).who())))[0] == "client"  # type: ignore[index]


def test_refusals_are_logged_with_all_that_is_known(caplog: pytest.LogCaptureFixture) -> None:
    from zmesh._security.trust import log_refused

    key = keys.new_pair("a").public
    with caplog.at_level(logging.WARNING):
        log_refused("10.0.0.1", key, "not trusted")
        log_refused("10.0.0.1", None, "plain")
    assert [record.getMessage() for record in caplog.records] == [
        f"refused a handshake from 10.0.0.1, key {keys.fingerprint(key)}: not trusted",
        "refused a handshake from 10.0.0.1: plain",
    ]
