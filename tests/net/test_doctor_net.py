"""`zmesh doctor` on hosts where something is wrong with the network."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable

import pytest

from .conftest import skip_or_fail
from .namespaces import Host, Network
from .test_discovery_net import serve, wait_until_listed


def findings(host: Host, *arguments: str, status: int = 1) -> dict[str, dict[str, str]]:
    doctor = host.run(sys.executable, "-m", "zmesh", "doctor", "--json", *arguments, name="doctor")
    assert doctor.wait() == status, doctor
    return {finding["check"]: finding for finding in json.loads(doctor.output)}


def run(host: Host, *argv: str) -> None:
    program = host.run(*argv)
    assert program.wait() == 0, program


@pytest.fixture
def iptables() -> None:
    if shutil.which("iptables") is None:
        skip_or_fail("no 'iptables' (Debian package iptables)")


def test_a_healthy_host(make_network: Callable[[int], Network]) -> None:
    one, two = make_network(2).hosts
    serve(one, "greeter-1")
    wait_until_listed(two, "greeter-1")
    found = findings(two, status=0)
    assert found["interfaces"]["found"].startswith(f"eth0 ({two.ipv4}")
    assert found["meshes"]["found"].endswith("greeter-1")
    assert found["reachable"]["found"] == "1 of 1 nodes accept connections"


def test_an_interface_that_is_down(make_network: Callable[[int], Network]) -> None:
    (host,) = make_network(1).hosts
    host.ip("link", "set", "eth0", "down")
    found = findings(host)
    assert found["interfaces"]["found"] == "eth0: down"
    assert found["interfaces"]["cure"] == "ip link set eth0 up"


def test_a_host_that_is_not_connected(make_network: Callable[[int], Network]) -> None:
    network = make_network(1)
    (host,) = network.hosts
    network.cut(host)
    assert "not connected" in findings(host)["interfaces"]["found"]


def test_multicast_that_is_switched_off(make_network: Callable[[int], Network]) -> None:
    (host,) = make_network(1).hosts
    host.ip("link", "set", "dev", "eth0", "multicast", "off")
    found = findings(host)["multicast"]
    assert found["found"] == "switched off on eth0"
    assert found["cure"].startswith("ip link set dev eth0 multicast on")


@pytest.mark.usefixtures("iptables")
@pytest.mark.parametrize(("chain", "found"), [("INPUT", "never returns"), ("OUTPUT", "cannot be sent to")])
def test_a_firewall_that_drops_mdns(make_network: Callable[[int], Network], chain: str, found: str) -> None:
    (host,) = make_network(1).hosts
    run(host, "iptables", "-A", chain, "-p", "udp", "--dport", "5353", "-j", "DROP")
    mdns = findings(host)["mdns"]
    assert mdns["status"] == "fail"
    assert found in mdns["found"]
    assert "UDP 5353" in mdns["cure"]


def test_a_program_that_keeps_the_port_for_itself(make_network: Callable[[int], Network]) -> None:
    (host,) = make_network(1).hosts
    code = "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('', 5353)); print('BOUND'); input()"
    host.run(sys.executable, "-c", code, name="greedy").wait_for("^BOUND")
    mdns = findings(host)["mdns"]
    assert "Address already in use" in mdns["found"]
    assert "ss -ulpn" in mdns["cure"]


@pytest.mark.usefixtures("iptables")
def test_a_node_behind_a_firewall(make_network: Callable[[int], Network]) -> None:
    one, two = make_network(2).hosts
    serve(one, "greeter-1")
    wait_until_listed(two, "greeter-1")
    run(one, "iptables", "-A", "INPUT", "-p", "tcp", "--syn", "-j", "DROP")
    run(one, "ip6tables", "-A", "INPUT", "-p", "tcp", "--syn", "-j", "DROP")
    found = findings(two)
    assert found["mdns"]["status"] == "ok"
    assert found["meshes"]["found"].endswith("greeter-1")
    assert found["reachable"]["status"] == "fail"
    assert "greeter-1 at " in found["reachable"]["found"]
    assert "into that host" in found["reachable"]["cure"]


def test_nodes_of_another_mesh(make_network: Callable[[int], Network]) -> None:
    network = make_network(2)
    one, two = network.hosts
    serve(one, "theirs", mesh="elsewhere")
    found = findings(two)["meshes"]
    assert found["found"] == f"nobody in mesh '{network.mesh}', but mesh 'elsewhere': theirs"
    assert "--mesh elsewhere" in found["cure"]
