"""The checks of `zmesh doctor`, each with facts that it should judge; and the command against real nodes."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import zmesh
from zmesh._transport import BROKEN_OFF, NOT_TRUSTED, ONLY_HERE, ONLY_THERE, OTHER_KEY
from zmesh.cli import _checks as checks
from zmesh.cli._checks import Finding, Reach
from zmesh.discovery import Sighting
from zmesh.discovery.probe import Echo, Interface, browse, echo, system_interfaces

from .test_cli import CLEAN, ROOT, Served, here, random_mesh

LO = Interface("lo", ("127.0.0.1", "::1"), multicast=False, loopback=True)
ETH = Interface("eth0", ("10.0.0.3", "fe80::1"))


def interface(
    name: str = "eth0", *addresses: str, up: bool = True, carrier: bool = True, multicast: bool = True
) -> Interface:
    return Interface(name, addresses, up=up, carrier=carrier, multicast=multicast)


def seen(name: str, mesh: str | None) -> Sighting:
    return Sighting(f"mdns {name}", ("tcp://10.0.0.4:5000",), bytes(16), name, mesh)


def assert_finding(finding: Finding, status: str, found: str, cure: str) -> None:
    assert finding.status == status, finding
    assert found in finding.found, finding
    assert cure in finding.cure, finding
    assert bool(cure) == bool(finding.cure), finding


@pytest.mark.parametrize(
    ("interfaces", "wanted", "status", "found", "cure"),
    [
        ([LO, ETH], (), "ok", "eth0 (10.0.0.3)", ""),
        ([LO, ETH], ("eth0",), "ok", "eth0 (10.0.0.3)", ""),
        ([LO, ETH], ("10.0.0.3",), "ok", "eth0 (10.0.0.3)", ""),
        ([LO, ETH], ("lo",), "ok", "loopback only, as asked", ""),
        ([LO, ETH], ("127.0.0.1",), "ok", "loopback only, as asked", ""),
        ([LO, ETH], ("wlan0",), "fail", "no interface wlan0; there are: lo, eth0", "--interface or ZMESH_INTERFACES"),
        ([LO, interface("eth0", "169.254.3.4")], (), "ok", "eth0 (169.254.3.4)", ""),
        ([LO, interface("eth0", "2001:db8::1")], (), "ok", "eth0 (2001:db8::1)", ""),
        ([LO], (), "fail", "no interface besides loopback", "connect this machine"),
        ([replace(LO, up=False)], (), "fail", "no interface is up, not even loopback", "ip link set lo up"),
        ([LO, interface(up=False)], (), "fail", "eth0: down", "ip link set eth0 up"),
        ([LO, interface("eth0", "fe80::1")], (), "fail", "eth0: up, without an address", "dev eth0"),
        ([LO, interface("eth0", "10.0.0.3", carrier=False)], (), "fail", "up, but not connected", "cable"),
        ([LO, ETH, interface("eth1", "10.1.0.3", carrier=False)], (), "ok", "eth1 (10.1.0.3)", ""),
    ],
)
def test_interfaces(interfaces: list[Interface], wanted: tuple[str, ...], status: str, found: str, cure: str) -> None:
    assert_finding(checks.check_interfaces(interfaces, wanted), status, found, cure)


@pytest.mark.parametrize(
    ("interfaces", "status", "found", "cure"),
    [
        ([LO, ETH], "ok", "eth0", ""),
        ([LO], "ok", "no interface to ask", ""),
        ([LO, interface("wg0", "10.9.0.1", multicast=False)], "fail", "switched off on wg0", "dev wg0 multicast on"),
        ([ETH, interface("wg0", "10.9.0.1", multicast=False)], "warn", "switched off on wg0", "dev wg0 multicast on"),
        ([ETH, interface("wg0", "10.9.0.1", multicast=False, up=False)], "ok", "eth0", ""),
    ],
)
def test_multicast(interfaces: list[Interface], status: str, found: str, cure: str) -> None:
    assert_finding(checks.check_multicast(interfaces), status, found, cure)


HEARD = Echo("eth0", "10.0.0.3", returned=True)
LOOPED = Echo("lo", "127.0.0.1", returned=True)


def silent(error: str | None = None) -> Echo:
    return Echo("eth1", "10.1.0.3", returned=False, error=error)


@pytest.mark.parametrize(
    ("echoes", "status", "found", "cure"),
    [
        ([HEARD, LOOPED], "ok", "sent to eth0 by UDP 5353 returns", ""),
        ([LOOPED], "ok", "sent to lo by UDP 5353 returns", ""),
        ([], "fail", "no interface", "interfaces"),
        ([silent(), LOOPED], "fail", "eth1 (10.1.0.3) never returns: UDP 5353 is blocked", "ufw allow 5353/udp"),
        ([silent(), HEARD], "warn", "eth1 (10.1.0.3) never returns", "ufw allow 5353/udp"),
        ([silent("Operation not permitted")], "fail", "cannot be sent to eth1", "ufw allow 5353/udp"),
        ([silent("Network is unreachable")], "fail", "unreachable", "ip route add 224.0.0.0/4 dev eth1"),
        ([silent("No route to host")], "fail", "No route", "ip route add 224.0.0.0/4 dev eth1"),
        ([silent("Address already in use")], "fail", "in use", "ss -ulpn 'sport = :5353'"),
        ([silent("No buffer space available")], "fail", "No buffer space", "ip link show eth1"),
    ],
)
def test_echo(echoes: list[Echo], status: str, found: str, cure: str) -> None:
    assert_finding(checks.check_echo(echoes), status, found, cure)


@pytest.mark.parametrize(
    ("sightings", "status", "found", "cure"),
    [
        ([], "warn", "mDNS shows no node of any mesh (this one is 'home')", "zmesh serve"),
        ([seen("a", "home")], "ok", "mesh 'home': a", ""),
        ([seen("b", "home"), seen("c", "lab"), seen("a", "home")], "ok", "mesh 'home': a, b; mesh 'lab': c", ""),
        ([seen("c", "lab")], "fail", "nobody in mesh 'home', but mesh 'lab': c", "--mesh lab or ZMESH_MESH=lab"),
        ([seen("c", None)], "fail", "mesh '(none)': c", "--mesh"),
        ([seen(str(n), "home") for n in range(9)], "ok", "0, 1, 2, 3, 4, ... (9 nodes)", ""),
    ],
)
def test_meshes(sightings: list[Sighting], status: str, found: str, cure: str) -> None:
    assert_finding(checks.check_meshes("home", sightings), status, found, cure)


GOOD = Reach("a", "tcp://10.0.0.4:5000")
REFUSED = Reach("b", "tcp://10.0.0.5:5000", "Connection refused", refused=True)
SILENT = Reach("c", "tcp://10.0.0.6:6000", "no answer within 1.5 s")


@pytest.mark.parametrize(
    ("reaches", "status", "found", "cure"),
    [
        ([], "ok", "no address to try", ""),
        ([GOOD], "ok", "1 of 1 nodes", ""),
        ([GOOD, Reach("a", "tcp://172.17.0.1:5000", "no answer within 1.5 s")], "ok", "1 of 1 nodes", ""),
        ([REFUSED], "fail", "b at tcp://10.0.0.5:5000: Connection refused", "ended without a goodbye"),
        ([GOOD, REFUSED], "warn", "b at tcp://10.0.0.5:5000: Connection refused", "ended without a goodbye"),
        ([GOOD, SILENT], "fail", "c at tcp://10.0.0.6:6000: no answer", "let TCP 6000 into that host"),
        ([REFUSED, SILENT], "fail", "b at tcp://10.0.0.5:5000", "let TCP 6000 into that host"),
    ],
)
def test_reach(reaches: list[Reach], status: str, found: str, cure: str) -> None:
    assert_finding(checks.check_reach(reaches), status, found, cure)


@pytest.mark.parametrize(
    ("problems", "status", "cure"),
    [
        ([], "ok", ""),
        (["tcp://h:1: rejected by the other side: 'a' belongs to mesh 'lab', 'b' to mesh 'home'"], "fail", "--mesh"),
        (["tcp://h:1: rejected by the other side: protocol version 2.0 is not spoken here"], "fail", "zmesh version"),
        (["tcp://h:1: no HELLO within the handshake's time: no zmesh node"], "fail", "another program"),
        ([f"tcp://h:1: {ONLY_THERE}"], "fail", "--secret-file (the mesh's own)"),
        ([f"tcp://h:1: {ONLY_HERE}"], "fail", "--secret-file (the mesh's own)"),
        ([f"tcp://h:1: {BROKEN_OFF}"], "fail", "--secret-file (the mesh's own)"),
        ([f"tcp://h:1: {OTHER_KEY}"], "fail", "compare 'zmesh keys show FILE' there and here"),
        ([f"tcp://h:1: {NOT_TRUSTED}"], "fail", "on that host: zmesh keys trust NAME.pub"),
        (["tcp://h:1: 'a' is not in the trust folder t"], "fail", "if you trust it: zmesh keys trust NAME.pub"),
        (["tcp://h:1: whose key is it? In a mesh of keys a peer is named NAME@..."], "fail", "write --peer NAME@"),
        (["tcp://h:1: something new"], "fail", "on that host, too"),
    ],
)
def test_handshakes(problems: list[str], status: str, cure: str) -> None:
    assert_finding(checks.check_handshakes(problems), status, problems[0] if problems else "nobody refused", cure)


@pytest.mark.parametrize(
    ("security", "problems", "status", "found", "cure"),
    [
        (None, [], "ok", "links are not secured", ""),
        ("key of 'a'", [], "ok", "key of 'a'", ""),
        ("key of 'a'", ["t/b.pub: no key"], "warn", "key of 'a'; not trusted: t/b.pub: no key", "'zmesh keys list'"),
    ],
)
def test_keys(security: str | None, problems: list[str], status: str, found: str, cure: str) -> None:
    assert_finding(checks.check_keys(security, problems), status, found, cure)


@pytest.mark.parametrize(
    ("installed", "status", "found", "cure"),
    [
        ({"zmesh-rpc": "0.1.0"}, "ok", "zmesh-rpc 0.1.0", ""),
        ({"Zmesh_RPC": "0.1.0"}, "ok", "0.1.0", ""),
        ({}, "warn", "not installed", "pip install -e ."),
        ({"zmesh-rpc": "0.1.0", "zmesh": "1.8.0"}, "fail", "zmesh 1.8.0 is installed too", "pip uninstall zmesh;"),
    ],
)
def test_package(installed: dict[str, str], status: str, found: str, cure: str) -> None:
    assert_finding(checks.check_package(installed), status, found, cure)


def test_the_other_package_is_found_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = tmp_path / "zmesh-1.8.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: zmesh\nVersion: 1.8.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert checks.distributions()["zmesh"] == "1.8.0"
    assert checks.check_package(checks.distributions()).status == "fail"


def test_shadow(tmp_path: Path) -> None:
    package = Path(zmesh.__file__).parent
    assert checks.check_shadow(tmp_path, package).status == "ok"
    assert checks.check_shadow(package.parent, package).status == "ok", "the clone itself"
    (tmp_path / "zmesh").mkdir()
    assert checks.check_shadow(tmp_path, package).status == "ok", "a folder without __init__.py does not come first"
    (tmp_path / "zmesh" / "__init__.py").touch()
    assert_finding(checks.check_shadow(tmp_path, package), "fail", f"{tmp_path}/zmesh is imported instead", "rename")
    (tmp_path / "zmesh.py").touch()
    assert_finding(checks.check_shadow(tmp_path, package), "fail", f"{tmp_path}/zmesh.py is imported", "rename")


@pytest.mark.parametrize(
    ("installed", "status", "found", "cure"),
    [
        ({"pyzmq": "26.2.1", "cbor2": "6.0"}, "ok", "Python 3.12.1, pyzmq 26.2.1, cbor2 6.0", ""),
        ({"pyzmq": "27.0.0b1", "cbor2": "10.1"}, "ok", "cbor2 10.1", ""),
        ({"pyzmq": "26.1.9", "cbor2": "6.0"}, "fail", "pyzmq 26.1.9 (needs 26.2)", "pip install --upgrade pyzmq"),
        ({"pyzmq": "26.2"}, "fail", "cbor2 is missing (needs 6)", "pip install --upgrade cbor2"),
    ],
)
def test_versions(installed: dict[str, str], status: str, found: str, cure: str) -> None:
    required = ["pyzmq>=26.2", "cbor2 >= 6", 'uvloop>=9; extra == "uvloop"', "unbounded"]
    assert_finding(checks.check_versions("3.12.1", installed, required), status, found, cure)


def test_what_is_required_is_in_the_metadata() -> None:
    required = importlib.metadata.requires(checks.DISTRIBUTION) or []
    assert any(each.startswith("pyzmq>=") for each in required)
    assert checks.check_versions("3", {}, required).status == "fail"


@pytest.mark.parametrize(
    ("soft", "hard", "status", "found", "cure"),
    [
        (1024, 524288, "ok", "524288 (1024 before a node raises it): 104857 links", ""),
        (-1, -1, "ok", "no limit", ""),
        (256, 256, "warn", "at most 256 open files: some 51 links", "LimitNOFILE="),
    ],
)
def test_descriptors(soft: int, hard: int, status: str, found: str, cure: str) -> None:
    assert_finding(checks.check_descriptors(soft, hard), status, found, cure)


def test_uvloop() -> None:
    assert_finding(checks.check_uvloop("0.21"), "ok", "0.21", "")
    assert_finding(checks.check_uvloop(None), "ok", "not installed", "pip install 'zmesh-rpc[uvloop]'")


@pytest.mark.parametrize(
    ("environment", "status", "found", "cure"),
    [
        ({"PATH": "/bin"}, "ok", "no ZMESH_ variable is set", ""),
        ({"ZMESH_MESH": "lab"}, "ok", "ZMESH_MESH=lab", ""),
        ({"ZMESH_PEER": "tcp://h:1"}, "warn", "ZMESH_PEER: not a variable of zmesh", "ZMESH_PEERS"),
        ({"ZMESH_DISCOVERY": "none"}, "warn", "ZMESH_DISCOVERY=none", "unset ZMESH_DISCOVERY"),
    ],
)
def test_environment(environment: dict[str, str], status: str, found: str, cure: str) -> None:
    assert_finding(checks.check_environment(environment), status, found, cure)


# -- for real, on this machine


def test_this_machines_interfaces() -> None:
    (loopback,) = [each for each in system_interfaces() if "127.0.0.1" in each.addresses]
    assert loopback.loopback
    assert loopback.up


def test_a_record_returns_on_loopback() -> None:
    assert asyncio.run(echo([("lo", "127.0.0.1")])) == [Echo("lo", "127.0.0.1", returned=True)]


def test_a_record_cannot_be_sent_from_an_address_of_others() -> None:
    (found,) = asyncio.run(echo([("eth9", "192.0.2.99")]))
    assert not found.returned
    assert found.error


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    served = Served("tests.served:Greeter", "--name", "patient", mesh=random_mesh())
    yield served
    served.close()


def test_browse_sees_nodes_of_any_mesh(served: Served) -> None:
    async def look() -> list[Sighting]:
        return await browse(1.5, ("127.0.0.1",))

    assert (served.mesh, "patient") in {(each.mesh, each.name) for each in asyncio.run(look())}


def findings(*arguments: str, status: int) -> dict[str, dict[str, str]]:
    result = here("doctor", "--json", *arguments)
    assert result.exit_code == status, result.output
    return {finding["check"]: finding for finding in json.loads(result.stdout)}


def test_doctor_finds_nothing_wrong(served: Served) -> None:
    found = findings("--mesh", served.mesh, "--interface", "127.0.0.1", status=0)
    assert {name: each for name, each in found.items() if each["status"] == "fail"} == {}
    assert found["meshes"]["found"].startswith(f"mesh '{served.mesh}': patient")
    assert found["reachable"]["found"] == "1 of 1 nodes accept connections"
    assert found["mdns"]["found"] == "a record sent to lo by UDP 5353 returns"


def test_doctor_prints_findings_and_cures(served: Served) -> None:
    mesh = random_mesh()
    result = here("doctor", "--mesh", mesh, "--interface", "127.0.0.1")
    assert result.exit_code == 1
    assert f"fail  meshes       nobody in mesh '{mesh}', but " in result.stdout
    assert f"mesh '{served.mesh}': patient" in result.stdout
    assert "-> if that is yours: --mesh " in result.stdout
    assert result.stderr == ""


def test_doctor_finds_a_named_peer_of_another_mesh(served: Served) -> None:
    found = findings("--no-mdns", "--mesh", random_mesh(), "--peer", served.address, status=1)
    assert "mdns" not in found
    assert found["reachable"]["status"] == "ok"
    assert f"'patient' belongs to mesh '{served.mesh}'" in found["handshake"]["found"]
    assert "--mesh" in found["handshake"]["cure"]


def test_doctor_finds_a_named_peer_that_is_not_there() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{unused.getsockname()[1]}"
        found = findings("--no-mdns", "--mesh", random_mesh(), "--peer", address, status=1)
    assert found["reachable"]["found"] == f"{address} at {address}: Connection refused"


def test_doctor_finds_a_peer_that_is_no_zmesh_node() -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        address = f"tcp://127.0.0.1:{mute.getsockname()[1]}"
        found = findings("--no-mdns", "--mesh", random_mesh(), "--peer", address, status=1)
    assert found["reachable"]["status"] == "ok"
    assert found["handshake"]["status"] == "fail"
    assert address in found["handshake"]["found"]


def test_doctor_finds_a_node_of_another_version() -> None:
    mesh = random_mesh()
    code = (
        "import sys, zmesh._core.messages as m; m.MAJOR += 1\n"
        f"sys.argv = ['zmesh', 'serve', 'tests.served:Greeter', '--no-mdns', '--mesh', {mesh!r},"
        " '--listen', 'tcp://127.0.0.1:0']\n"
        "from zmesh.cli import main; main()"
    )
    newer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=CLEAN)
    try:
        assert newer.stdout is not None
        address = newer.stdout.readline().split()[-1]
        found = findings("--no-mdns", "--mesh", mesh, "--peer", address, status=1)
        assert "protocol version" in found["handshake"]["found"]
        assert "upgrade the older side" in found["handshake"]["cure"]
    finally:
        newer.kill()
        newer.communicate()


def test_doctor_finds_what_shadows_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "zmesh.py").touch()
    monkeypatch.chdir(tmp_path)
    found = findings("--no-mdns", status=1)
    assert found["shadow"]["status"] == "fail"
    assert os.fspath(tmp_path) in found["shadow"]["found"]
