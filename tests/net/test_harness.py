"""The bench itself: hosts see each other, a cut is silence, and nothing stays behind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .namespaces import Network, Program, wait_until

SERVE = """
import socket, sys
listener = socket.create_server((sys.argv[1], 7000), family=socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)
print("READY", flush=True)
while True:
    connection = listener.accept()[0]
    connection.sendall(b"hello")
"""
CONNECT = """
import socket, sys, time
began = time.monotonic()
connection = socket.create_connection((sys.argv[1], 7000), timeout=20)
print("GOT", connection.recv(5).decode(), "AFTER", time.monotonic() - began, flush=True)
input()
"""


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_hosts_talk_through_the_bridge(make_network: Callable[[int], Network], family: str) -> None:
    network = make_network(2)
    server, client = network.hosts
    address = getattr(server, family)
    server.run(sys.executable, "-c", SERVE, address, name="serve").wait_for("^READY")
    program = client.run(sys.executable, "-c", CONNECT, address, name="connect")
    program.wait_for("^GOT hello")
    shown = f"[{address}]:7000" if family == "ipv6" else f"{address}:7000"
    assert [link.remote for link in program.tcp_links()] == [shown]
    assert server.bytes_acknowledged() == (5, 0)
    program.say("")
    assert program.wait() == 0


def test_a_cut_link_is_silent_until_it_is_mended(make_network: Callable[[int], Network]) -> None:
    network = make_network(2)
    server, client = network.hosts
    server.run(sys.executable, "-c", SERVE, server.ipv4, name="serve").wait_for("^READY")
    network.cut(server)
    program = client.run(sys.executable, "-c", CONNECT, server.ipv4, name="connect")
    wait_until(
        lambda: "SYN-SENT" in client.sockets() or None, 10.0, lambda: f"an attempt to connect: {client.sockets()}"
    )
    assert "GOT" not in program.output
    network.mend(server)
    program.wait_for("^GOT hello")


def test_a_switch_loses_and_delays(tmp_path: Path, make_network: Callable[[int], Network]) -> None:
    make_network(0)  # skips where there can be none
    with Network(2, tmp_path, switched=True) as network:
        server, client = network.hosts

        def connect() -> Program:
            return client.run(sys.executable, "-c", CONNECT, server.ipv4, name="connect")

        server.run(sys.executable, "-c", SERVE, server.ipv4, name="serve").wait_for("^READY")
        connect().wait_for("^GOT hello")
        network.disturb(server, delay=0.1)
        assert float(connect().wait_for(r"^GOT hello AFTER (\S+)")[1]) > 0.29, "three times the wire"
        network.disturb(server, loss_from=1.0)
        program = connect()
        wait_until(lambda: "SYN-SENT" in client.sockets() or None, 10.0, lambda: f"an attempt: {client.sockets()}")
        wait_until(lambda: "SYN-RECV" in server.sockets() or None, 10.0, lambda: f"it comes: {server.sockets()}")
        assert "GOT" not in program.output
        network.disturb(server)
        program.wait_for("^GOT hello")


def test_nothing_stays_behind(make_network: Callable[[int], Network]) -> None:
    network = make_network(2)
    program = network.hosts[0].run(sys.executable, "-c", "print('READY', flush=True); input()", name="wait")
    program.wait_for("^READY")
    network.close()
    assert not program.running
    assert network.name not in subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
