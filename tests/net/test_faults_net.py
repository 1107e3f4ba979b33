"""Failover between hosts: what the caller sees while servers are killed, cut off and stopped.

The scenario is that of `faults.py`. Times are asserted loosely here, so that a busy machine does not fail the suite;
`make faults` holds the same run against the figures that the project promises.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable

from .faults import SERVICE_MS, Fault, Load, run
from .namespaces import Network, wait_until
from .servers import read_runs, start_servers

# The promise is 0.8 s; a call and its second attempt may each wait a little longer where the machine is busy.
LOOSE_WORST_MS = 1500.0
LOOSE_SUSPECT = 1.5
LOOSE_DEAD = 3.0
REPLIES = 500
FILLER = 200  # bytes in each reply
QUIET = 0.1  # seconds without a byte; shorter than the heartbeats' interval


def losses_explained(load: Load) -> list[str]:
    """What is wrong with failures of calls that may not be repeated: each must have been in flight on a lost node."""
    wrong = []
    for outcome in load.failed:
        lost = [fault for fault in load.faults if was_in_flight(outcome.planned, fault)]
        if outcome.error != "MaybeExecuted" or outcome.code != "UNKNOWN" or not outcome.may_have_run:
            wrong.append(f"{outcome.token} failed with {outcome.error}: {outcome.message}")
        elif not lost:
            wrong.append(
                f"{outcome.token} failed {outcome.planned - load.report.start:.3f} s after the start: no fault near"
            )
    return wrong


def was_in_flight(planned: float, fault: Fault) -> bool:
    """Whether a call planned then can have been on the way to, or on, the node that the fault took away."""
    assert fault.suspect is not None
    handler_and_lag = 0.2
    return fault.at - handler_and_lag <= planned <= fault.at + fault.suspect


def test_faults_under_load(make_network: Callable[[int], Network]) -> None:
    # Both kinds of load share one play of the faults, each from a node of its own: the suite has minutes, not hours.
    network = make_network(4)
    scenario = run(network, ["work", "once"], rate=150)
    idempotent, once = scenario.loads
    print(json.dumps([load.summary() for load in scenario.loads], indent=2))

    for load in scenario.loads:
        servers = {link.remote.rpartition(":")[0].strip("[]") for link in load.links}
        for host in network.hosts[:3]:
            assert {host.ipv4, host.ipv6} & servers, f"{load.method}: no tcp link to {host.namespace}: {load.links}"
        for fault in load.faults:
            assert fault.suspect is not None, fault
            assert fault.suspect < LOOSE_SUSPECT, fault
            assert fault.dead is not None, fault
            assert fault.dead < LOOSE_DEAD, fault
        assert [fault.name for fault in load.faults if fault.back is not None] == ["cut", "stop"]
        assert load.false_deaths == []

    assert idempotent.failed == []
    assert max(idempotent.answered_ms) < LOOSE_WORST_MS + SERVICE_MS

    assert losses_explained(once) == []
    ran_on = {outcome.token: scenario.ran.get(outcome.token, []) for outcome in once.report.outcomes}
    assert {token: servers for token, servers in ran_on.items() if len(servers) > 1} == {}
    for outcome in once.report.outcomes:
        if outcome.error is None:
            assert ran_on[outcome.token] == [outcome.server]
    assert len(once.failed) < 150, "more calls failed than one node's share of the half second until it is suspect"


def test_replies_that_arrived_before_a_kill_are_read(make_network: Callable[[int], Network]) -> None:
    """500 answers are on the client's machine, unread, when their server is killed: all must reach their callers."""
    network = make_network(2)
    host = network.hosts[0]
    server = start_servers(network, 1)["server-1"]
    let_go = network.directory / "let-go"
    client = network.hosts[1].python(
        "tests.net.programs.stalled",
        *("--calls", str(REPLIES), "--filler", str(FILLER), "--ran", str(network.directory / "ran-server-1")),
        *("--until", str(let_go)),
    )
    client.wait_for("^STALLED")  # all calls wait in their handlers, and the client's loop reads nothing from now on
    assert len(read_runs({"server-1": network.directory / "ran-server-1"})) == REPLIES
    assert client.tcp_links()
    before, _ = host.bytes_acknowledged()

    server.signal(signal.SIGUSR1)  # now it answers them all
    settled: list[tuple[float, int]] = []

    def all_arrived() -> bool | None:
        """Whether the client's kernel has all replies: enough bytes, none unacknowledged, no more for a while."""
        acknowledged, pending = host.bytes_acknowledged()
        if pending or acknowledged - before < REPLIES * FILLER or (settled and settled[0][1] != acknowledged):
            settled.clear()
            return None
        settled.append((time.monotonic(), acknowledged))
        return settled[-1][0] - settled[0][0] > QUIET or None

    wait_until(
        all_arrived, 10.0, lambda: f"{REPLIES} replies on the wire: {host.bytes_acknowledged()}, {before} before"
    )
    server.signal(signal.SIGKILL)
    server.wait()
    wait_until(lambda: not client.tcp_links() or None, 5.0, lambda: "the client's link to close")

    let_go.touch()
    assert client.wait_for(r"^ANSWERED (\d+) (.*)").groups() == (str(REPLIES), "{}")
