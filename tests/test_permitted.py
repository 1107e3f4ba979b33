"""Calls that may be made and calls that may not, between whole nodes in virtual time: whatever their kind."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

import zmesh
import zmesh.testing
from zmesh._security.keys import fingerprint, write_secret
from zmesh._security.trust import TrustFolder

RULES = """\
[groups]
clerks = ["alice", "bob"]

[allow]
"Desk.*" = ["@clerks"]
"Boss.sign" = ["alice"]
"""


class Desk(zmesh.Service):
    """What clerks may use."""

    @zmesh.rpc(idempotent=True)
    async def who(self, text: str = "") -> tuple[str, str | None, str]:
        peer = zmesh.context().peer
        return peer.name, peer.key, str(dict(zmesh.context().metadata))

    @zmesh.rpc
    async def begin(self, count: int) -> AsyncIterator[int]:
        for number in range(count):
            await asyncio.sleep(1)
            yield number


class Boss(zmesh.Service):
    """What not all of them may."""

    def __init__(self) -> None:
        self.ran = 0

    @zmesh.rpc(idempotent=True)
    async def sign(self, paper: str) -> str:
        self.ran += 1
        return paper

    @zmesh.rpc(idempotent=True)
    def stamp(self, paper: str) -> str:
        self.ran += 1
        return paper

    @zmesh.rpc
    async def read(self, count: int) -> AsyncIterator[int]:
        self.ran += 1
        yield count

    @zmesh.rpc
    async def add(self, numbers: AsyncIterator[int]) -> int:
        self.ran += 1
        return sum([number async for number in numbers])

    @zmesh.rpc
    async def echo(self, numbers: AsyncIterator[int]) -> AsyncIterator[int]:
        self.ran += 1
        async for number in numbers:
            yield number


class Ring:
    """Keys of some nodes that trust each other, in a folder; the permission file beside them."""

    def __init__(self, folder: Path, rules: str, *names: str) -> None:
        self.folder, self.rules = folder, folder / "permissions.toml"
        self._given = zmesh.testing.make_keys(folder, *names)
        trusted = TrustFolder(folder / "trust")
        self.keys = trusted.names
        self.allow(rules)

    def allow(self, rules: str) -> None:
        new = self.rules.with_suffix(".new")
        new.write_text(rules)
        new.replace(self.rules)

    def security(self, name: str, **more: Any) -> zmesh.Security:
        return dataclasses.replace(self._given[name], **more)


@pytest.fixture
def ring(tmp_path: Path) -> Ring:
    return Ring(tmp_path, RULES, "desk-1", "desk-2", "alice", "bob", "eve")


async def start(mesh: zmesh.testing.Mesh, ring: Ring, boss: Boss) -> Callable[[str], Any]:
    """Two servers with the rules; gives a function that starts the node of a name."""
    for name in ("desk-1", "desk-2"):
        await mesh.start(Desk(), boss, name=name, security=ring.security(name, permissions=ring.rules))

    async def client(name: str) -> zmesh.Node:
        host = await mesh.start(name=name, security=ring.security(name))
        await host.node.discover(expect=2)
        node: zmesh.Node = host.node
        return node

    return client


async def one(*numbers: int) -> AsyncIterator[int]:
    for number in numbers:
        yield number


def run(main: Callable[[zmesh.testing.Mesh], Any]) -> None:
    zmesh.testing.run(main)


def test_calls_that_travel_as_one_message_need_permission_too(ring: Ring) -> None:
    async def main(mesh: zmesh.testing.Mesh) -> None:
        client = await start(mesh, ring, boss := Boss())
        bob, alice = await client("bob"), await client("alice")
        sign = bob.client(Boss).sign
        refusals = await asyncio.gather(*(sign(str(number)) for number in range(12)), return_exceptions=True)
        assert {type(refusal) for refusal in refusals} == {zmesh.PermissionDenied}
        assert not boss.ran
        papers = [str(number) for number in range(12)]
        assert await asyncio.gather(*map(alice.client(Boss).sign, papers)) == papers

    run(main)


def test_who_may_is_served_and_known_by_its_key(ring: Ring) -> None:
    async def main(mesh: zmesh.testing.Mesh) -> None:
        client = await start(mesh, ring, boss := Boss())
        bob, alice = await client("bob"), await client("alice")
        forged = {"peer": "alice", "name": "alice", "key": ring.keys["alice"], "zmesh-key": ring.keys["alice"]}
        for _ in range(4):  # on both servers
            name, key, metadata = await bob.client(Desk).options(metadata=forged).who()
            assert (name, key) == ("bob", ring.keys["bob"])
            assert metadata == str(forged), "it is passed on, and nobody believes it"
        with pytest.raises(zmesh.PermissionDenied):
            await bob.client(Boss).options(metadata=forged).sign("x")
        assert await alice.client(Boss).sign("x") == "x"
        assert boss.ran == 1

    run(main)


def test_a_refusal_says_what_was_missing_and_is_final(ring: Ring) -> None:
    async def main(mesh: zmesh.testing.Mesh) -> None:
        client = await start(mesh, ring, boss := Boss())
        bob = await client("bob")
        with pytest.raises(zmesh.PermissionDenied) as caught:
            await bob.client(Boss).sign("x")
        assert not caught.value.may_have_run
        assert caught.value.node in ("desk-1", "desk-2")
        assert caught.value.message == (
            f"{caught.value.node!r} does not let 'bob' call Boss.sign: no entry that allows Boss.sign has this caller "
            'in its list: permissions.toml, line 6: [allow] "Boss.sign"'
        )
        with pytest.raises(
            zmesh.PermissionDenied, match=r"no entry allows Boss\.stamp to anybody in permissions\.toml"
        ):
            await bob.client(Boss).options(hedge_after=0.01).stamp("x")
        assert bob.stats()["methods"]["Boss.sign"] == {"PERMISSION_DENIED": 1}
        assert sum(server.node.stats()["refused_calls"] for server in mesh.hosts[:2]) == 2, "each by one node only"
        assert boss.ran == 0

    run(main)


def test_calls_of_every_kind_are_refused_before_they_run(ring: Ring) -> None:
    async def main(mesh: zmesh.testing.Mesh) -> None:
        client = await start(mesh, ring, boss := Boss())
        eve = await client("eve")
        typed, by_name = eve.client(Boss), eve.client("Boss")
        denied = pytest.raises(zmesh.PermissionDenied, match="does not let 'eve' call Boss")
        with denied:
            await typed.stamp("x")
        with denied:
            await typed.options(key="sticky").sign("x")
        with denied:
            await typed.options(node="desk-2").sign("x")
        with denied:
            await by_name.sign(paper=["of", "the", "wrong", "type"])  # the arguments are not looked at
        with denied:
            async for _ in typed.read(1):
                pass
        with denied:
            await typed.add(one(1, 2, 3))
        with denied:
            async for _ in typed.echo(one(1, 2, 3)):
                pass
        with denied:
            async for _ in eve.map(Boss.sign)(["a", "b"]):
                pass
        replies = [reply async for reply in eve.scatter(Boss.sign, expect=2)("x")]
        assert [type(reply.error) for reply in replies] == [zmesh.PermissionDenied] * 2
        assert "sign" in (await by_name.describe())["methods"], "introspection is for all who are trusted"
        assert boss.ran == 0

    run(main)


def test_many_calls_at_once_are_refused_one_by_one(ring: Ring) -> None:
    async def main(mesh: zmesh.testing.Mesh) -> None:
        client = await start(mesh, ring, boss := Boss())
        bob, alice = await client("bob"), await client("alice")
        for who, may in ((bob, False), (alice, True), (bob, False)):  # they travel in rows
            calls = [who.client(Boss).sign(str(number)) for number in range(64)]
            answers = await asyncio.gather(*calls, return_exceptions=True)
            if may:
                assert answers == [str(number) for number in range(64)]
            else:
                assert {type(answer) for answer in answers} == {zmesh.PermissionDenied}
        assert boss.ran == 64

    run(main)


def test_a_server_that_calls_back_needs_permission_too(ring: Ring) -> None:
    class Start(zmesh.Service):
        @zmesh.rpc
        async def job(self) -> str:
            return await zmesh.context().peer.client(Boss).sign("done")

    async def main(mesh: zmesh.testing.Mesh) -> None:
        ring.allow('[allow]\n"Start.job" = ["*"]\n"Boss.*" = ["desk-2"]\n')
        security = ring.security("desk-1", permissions=ring.rules)
        await mesh.start(Start(), name="desk-1", security=security)
        alice = await mesh.start(Boss(), name="alice", security=ring.security("alice", permissions=ring.rules))
        with pytest.raises(zmesh.PermissionDenied, match=r"'alice' does not let 'desk-1' call Boss\.sign"):
            await alice.node.client(Start).job()

    run(main)


def test_changed_rules_hold_from_the_next_call_on(ring: Ring, caplog: pytest.LogCaptureFixture) -> None:
    async def main(mesh: zmesh.testing.Mesh) -> None:
        client = await start(mesh, ring, Boss())
        bob = await client("bob")
        await bob.client(Desk).who()
        running = bob.client(Desk).begin(5)
        assert await anext(running) == 0
        ring.allow('[allow]\n"Boss.sign" = ["bob"]\n')
        await asyncio.sleep(1)
        with pytest.raises(zmesh.PermissionDenied, match=r"no entry allows Desk\.who to anybody"):
            await bob.client(Desk).who()
        assert await bob.client(Boss).sign("x") == "x"
        assert [number async for number in running] == [1, 2, 3, 4], "what runs is not touched"
        ring.allow('[allow]\n"Boss.sign" = ["@nobody"]\n')
        await asyncio.sleep(10)
        assert await bob.client(Boss).sign("x") == "x"
        errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
        assert len(errors) == 2, "one of each server"
        assert all("""line 2: [allow] "Boss.sign": '@nobody' is no group""" in error for error in errors)

    run(main)


def test_refused_calls_are_logged_once_a_minute_and_counted(ring: Ring, caplog: pytest.LogCaptureFixture) -> None:
    def lines() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == "zmesh.security"]

    async def main(mesh: zmesh.testing.Mesh) -> None:
        server = await mesh.start(Boss(), name="desk-1", security=ring.security("desk-1", permissions=ring.rules))
        host = await mesh.start(name="eve", security=ring.security("eve"))
        loop, boss = asyncio.get_running_loop(), host.node.client(Boss)
        began = loop.time()
        for _ in range(150):
            with pytest.raises(zmesh.PermissionDenied):
                await boss.sign("x")
            await asyncio.sleep(1)
        assert 149 < loop.time() - began < 155
        who = fingerprint(ring.keys["eve"])
        reason = f"Boss.sign: no entry that allows Boss.sign has this caller in its list: {ring.rules}, line 6: [allow]"
        assert len(lines()) == 3
        assert lines()[0] == f'refused a call from {host.address}, key {who}: {reason} "Boss.sign"'
        assert lines()[1].endswith('"Boss.sign" (59 times more since this was last said)')
        stats = server.node.stats()
        assert (stats["refused_calls"], stats["refused_handshakes"], stats["refused_others"]) == (150, 0, 0)
        (peer,) = stats["refused_peers"].items()
        assert peer[0] == who
        assert (peer[1]["calls"], peer[1]["address"]) == (150, host.address)

    run(main)


def test_with_a_mesh_secret_all_callers_are_one(tmp_path: Path) -> None:
    secret, rules = tmp_path / "secret", tmp_path / "p.toml"
    write_secret(secret, "correct horse battery staple and more than that")
    rules.write_text('[allow]\n"Boss.sign" = ["*"]\n"Boss.stamp" = ["alice"]\n')

    async def main(mesh: zmesh.testing.Mesh) -> None:
        await mesh.start(Boss(), security=zmesh.Security(secret_file=secret, permissions=rules))
        alice = await mesh.start(name="alice", security=zmesh.Security(secret_file=secret))
        assert await alice.node.client(Boss).sign("x") == "x"
        with pytest.raises(zmesh.PermissionDenied):  # her name is what she says of herself
            await alice.node.client(Boss).stamp("x")

    run(main)


def test_permissions_that_cannot_be_used(ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    ring.allow('[allow]\n"Boss.sign" = ["@nobody"]\n')
    with pytest.raises(ValueError, match=r"permissions\.toml, line 2: .*'@nobody' is no group"):
        zmesh.Node(Boss(), security=ring.security("desk-1", permissions=ring.rules))
    with pytest.raises(ValueError, match=r"nowhere\.toml: cannot read this permission file"):
        zmesh.Node(Boss(), security=ring.security("desk-1", permissions=ring.folder / "nowhere.toml"))
    with pytest.raises(TypeError, match=r"Security\.permissions is a path, got 7"):
        ring.security("desk-1", permissions=7)
    monkeypatch.setenv("ZMESH_PERMISSIONS", str(ring.rules))
    with pytest.raises(ValueError, match="security takes either the mesh's secret file"):
        zmesh.Node(Boss())
    monkeypatch.setenv("ZMESH_KEY_FILE", str(ring.folder / "desk-1.key"))
    monkeypatch.setenv("ZMESH_TRUST", str(ring.folder / "trust"))
    with pytest.raises(ValueError, match=r"permissions\.toml, line 2"):
        zmesh.Node(Boss())
