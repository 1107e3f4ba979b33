"""Discovery between hosts, by real multicast: programs and the command line find nodes, meshes stay apart."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .faults import read_runs
from .figures import percentile
from .namespaces import Host, Network, Program, wait_until
from .programs.openloop import Report
from .restarts import wait_until_seen

GREETER = "tests.net.programs.greeter:Greeter"
# Generous: the promise is 1.5 s from the start of the process on a quiet machine; the figure is printed.
LOOSE_FIRST_CALL = 10.0


def command(host: Host, *arguments: str, mesh: str | None = None) -> Program:
    """The command line, on a host."""
    env = {} if mesh is None else {"ZMESH_MESH": mesh}
    return host.run(sys.executable, "-m", "zmesh", *arguments, name=f"zmesh-{arguments[0]}", env=env)


def output_of(program: Program) -> str:
    status = program.wait()
    assert status == 0, str(program)
    return program.output


def serve(host: Host, name: str, mesh: str | None = None) -> Program:
    return command(host, "serve", GREETER, "--name", name, mesh=mesh)


def listed(host: Host) -> dict[str, object]:
    """What `zmesh ls --json` shows: name to entry, of the nodes that serve."""
    return {entry["name"]: entry for entry in json.loads(output_of(command(host, "ls", "--json"))) if entry["services"]}


def wait_until_listed(host: Host, *names: str) -> dict[str, object]:
    def look() -> dict[str, object] | None:
        seen = listed(host)
        return seen if set(names) <= seen.keys() else None

    return wait_until(look, 20.0, lambda: f"{names} listed; seen: {listed(host)}")


def test_commands_find_nodes_on_other_hosts(make_network: Callable[[int], Network]) -> None:
    one, two, three = make_network(3).hosts
    servers = [serve(one, "greeter-1"), serve(two, "greeter-2")]
    seen = wait_until_listed(three, "greeter-1", "greeter-2")
    assert set(seen) == {"greeter-1", "greeter-2"}

    began = time.monotonic()
    answer = output_of(command(three, "call", "Greeter.say_hello", "name=World"))
    took = time.monotonic() - began
    print(f"zmesh call: {took:.3f} s from start to end of the process")
    assert json.loads(answer) == "Hello, World"
    assert took < LOOSE_FIRST_CALL

    for server in servers:
        server.signal(signal.SIGTERM)
    assert [server.wait() for server in servers] == [0, 0]


def test_first_answer_in_a_program(make_network: Callable[[int], Network]) -> None:
    one, two, three = make_network(3).hosts
    serve(one, "greeter-1")
    serve(two, "greeter-2")
    wait_until_listed(three, "greeter-1", "greeter-2")
    seconds = json.loads(three.python("tests.net.programs.first_answer").wait_for("^FIRST (.*)")[1])
    print(f"from entering Node() to the first answer: p50 {1000 * percentile(seconds, 50):.0f} ms of {seconds}")
    assert len(seconds) == 10
    assert max(seconds) < LOOSE_FIRST_CALL


def test_meshes_on_one_wire_are_apart(make_network: Callable[[int], Network]) -> None:
    network = make_network(3)
    one, two, three = network.hosts
    serve(one, "ours")
    serve(two, "theirs", mesh=f"{network.mesh}-other")
    assert set(wait_until_listed(three, "ours")) == {"ours"}
    there = command(three, "ls", "--json", mesh=f"{network.mesh}-other")
    assert [entry["name"] for entry in json.loads(output_of(there)) if entry["services"]] == ["theirs"]
    answers = {output_of(command(three, "call", "Greeter.say_hello", "name=x")) for _ in range(2)}
    assert len(answers) == 1
    assert set(listed(three)) == {"ours"}


def start_load(host: Host, report: Path) -> Program:
    return host.python(
        "tests.net.programs.load",
        *("--servers", "1", "--method", "once", "--rate", "100", "--seconds", "60", "--report", str(report)),
    )


def test_two_nodes_of_one_name_both_serve(make_network: Callable[[int], Network]) -> None:
    network = make_network(3)
    files = {f"twin-{number}": network.directory / f"ran-{number}" for number in (1, 2)}
    for host, file in zip(network.hosts[:2], files.values(), strict=True):
        host.python("tests.net.programs.server", "--name", "twin", "--ran", str(file)).wait_for("^READY")
    load = start_load(network.hosts[2], network.directory / "report")
    load.wait_for("^READY")
    load.say("start")
    wait_until(lambda: len(set(map(tuple, read_runs(files).values()))) == 2 or None, 10.0, lambda: f"both ran: {load}")
    load.say("stop")
    load.wait_for("^DONE")
    assert [one for one in Report.read(network.directory / "report").outcomes if one.error is not None] == []


def test_a_successor_on_the_same_port_runs_nothing_that_was_meant_for_its_predecessor(
    make_network: Callable[[int], Network],
) -> None:
    network = make_network(2)
    host = network.hosts[0]
    files = {f"life-{number}": network.directory / f"ran-{number}" for number in (1, 2)}
    lives = iter(files.values())

    def start() -> Program:
        server = host.python(
            "tests.net.programs.server",
            *("--name", "phoenix", "--ran", str(next(lives)), "--listen", f"tcp://{host.ipv4}:7001"),
        )
        server.wait_for("^READY")
        return server

    first = start()
    load = start_load(network.hosts[1], network.directory / "report")
    load.wait_for("^READY")
    load.say("start")
    load.wait_for("^START")
    wait_until(lambda: any("once-" in one for one in read_runs(files)) or None, 10.0, lambda: f"a call runs: {load}")
    first.signal(signal.SIGKILL)
    first.wait()
    start()
    wait_until_seen(load, "phoenix", incarnations=2)
    back = time.monotonic()
    runs = len(read_runs(files))
    wait_until(lambda: len(read_runs(files)) > runs + 50 or None, 10.0, lambda: f"the successor is called: {load}")
    load.say("stop")
    load.wait_for("^DONE")
    assert {token: lives for token, lives in read_runs(files).items() if len(lives) > 1} == {}
    outcomes = Report.read(network.directory / "report").outcomes
    assert [one for one in outcomes if one.error is not None and one.planned > back] == []


@pytest.mark.parametrize(
    ("commands", "says"),
    [
        pytest.param([("link", "set", "eth0", "down")], "no other interface is up", id="loopback only"),
        pytest.param(
            [("link", "set", "eth0", "down"), ("link", "set", "lo", "down")], "no interface is up", id="nothing up"
        ),
        pytest.param([("link", "set", "eth0", "multicast", "off")], "multicast", id="no multicast"),
        pytest.param([("addr", "flush", "dev", "eth0")], "no other interface is up", id="no address"),
    ],
)
def test_a_node_starts_whatever_the_network_lacks_and_says_so(
    make_network: Callable[[int], Network], commands: list[tuple[str, ...]], says: str
) -> None:
    host = make_network(1).hosts[0]
    for arguments in commands:
        host.ip(*arguments)
    program = host.python("tests.net.programs.alone")
    assert program.wait() == 0, str(program)
    program.wait_for("^STARTED")
    error = program.wait_for("^ERROR (.*)")[1]
    assert "no node offers 'Missing'" in error
    assert "zmesh doctor" in error
    assert says in error.partition("discovery: ")[2]


@pytest.fixture
def bus(avahi: None) -> Iterator[Path]:
    """A folder for a D-Bus of our own: the machine's is not touched, and a socket's path must be short."""
    with tempfile.TemporaryDirectory(prefix="zmesh-bus-") as folder:
        (Path(folder) / "bus.conf").write_text(
            f"""<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
            "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
            <busconfig><type>system</type><listen>unix:path={folder}/bus</listen><auth>EXTERNAL</auth>
            <policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/></policy>
            </busconfig>"""
        )
        yield Path(folder)


def test_avahi_lists_the_nodes(make_network: Callable[[int], Network], bus: Path) -> None:
    one, two, three = make_network(3).hosts
    serve(one, "greeter-1")
    serve(two, "greeter-2")
    env = {"DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={bus}/bus"}
    three.run("dbus-daemon", f"--config-file={bus}/bus.conf", "--nofork", "--nopidfile", env=env, name="dbus")
    wait_until(lambda: (bus / "bus").exists() or None, 10.0, lambda: "the bus's socket")
    # A /run of its own (`ip netns exec` gives a program its own mounts), since avahi allows one daemon for each /run.
    start = "mount -t tmpfs none /run && exec avahi-daemon --no-rlimits --no-chroot --no-drop-root"
    three.run("sh", "-c", start, env=env, name="avahi").wait_for("Server startup complete")

    def browse() -> str | None:
        seen = output_of(three.run("avahi-browse", "-rtp", "_zmesh._tcp", env=env, name="avahi-browse"))
        resolved = [line for line in seen.splitlines() if line.startswith("=")]
        return seen if all(any(host.ipv4 in line for line in resolved) for host in (one, two)) else None

    print(wait_until(browse, 20.0, lambda: "both nodes in avahi-browse"))
