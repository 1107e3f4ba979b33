"""Servers that stand still: stopped by a signal, or by a handler that blocks their loop."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

from .namespaces import Network, Program
from .programs.openloop import Outcome, Report
from .servers import read_runs, start_servers


def start_asking(network: Network, report: Path, *arguments: str) -> Program:
    """A client on the last host that waits for a line before each of its steps."""
    return network.hosts[-1].python("tests.net.programs.asking", "--report", str(report), *arguments)


def test_calls_that_expired_while_the_server_was_stopped_never_run(make_network: Callable[[int], Network]) -> None:
    network = make_network(2)
    server = start_servers(network, 1)["server-1"]
    report = network.directory / "report"
    client = start_asking(network, report, "--calls", "50", "--timeout", "1")
    client.wait_for("^READY")

    stopped = server.signal(signal.SIGSTOP)
    client.say("call")
    client.wait_for("^CALLED")
    time.sleep(max(0.0, stopped + 3 - time.monotonic()))  # how long the server stands still: the fault itself
    server.signal(signal.SIGCONT)
    client.say("call once more")  # proves that the server has come back and works
    client.wait_for("^AGAIN")
    server.signal(signal.SIGTERM)
    assert server.wait() == 0

    outcomes = Report.read(report).outcomes
    assert len(outcomes) == 50
    assert all(one.error is not None for one in outcomes)
    # They had left for the server, so that their not running is its doing.
    assert sum(one.may_have_run for one in outcomes) > 25
    ran = read_runs({"server-1": network.directory / "ran-server-1"})
    assert "again" in ran
    assert [token for token in ran if token.startswith("paused-")] == []


def test_a_blocked_loop_is_suspect_and_not_dead(make_network: Callable[[int], Network]) -> None:
    network = make_network(3)
    servers = start_servers(network, 1, "--blocker")
    ran = str(network.directory / "ran-server-2")
    other = network.hosts[1].python("tests.net.programs.server", "--name", "server-2", "--ran", ran, name="server-2")
    other.wait_for("^READY")
    report = network.directory / "report"
    load = network.hosts[2].python(
        "tests.net.programs.load",
        *("--servers", "2", "--method", "once", "--rate", "200", "--seconds", "7", "--ms", "20", "--timeout", "8"),
        *("--report", str(report), "--block-at", "1", "--block-for", "3"),
    )
    load.wait_for("^READY")
    load.say("start")
    began = float(load.wait_for(r"^BLOCKING (\S+)")[1])
    ended = float(load.wait_for(r"^BLOCKED (\S+)")[1])
    load.wait_for("^DONE")
    assert servers["server-1"].running

    result = Report.read(report)
    states = [(one.at, one.state) for one in result.seen if one.peer == "server-1" and one.at > began]
    suspect = next(at for at, state in states if state == "suspect")
    assert began < suspect < ended - 1.0
    assert [state for _, state in states if state in ("dead", "gone")] == []
    assert states[-1][1] == "alive"

    assert [one for one in result.outcomes if one.error is not None] == []

    def by(server: str, since: float, until: float) -> list[Outcome]:
        return [one for one in result.outcomes if one.server == server and since <= one.planned < until]

    lag = 0.1  # between a call's plan and its start, on a busy machine
    assert by("server-1", suspect + lag, ended - lag) == []
    assert by("server-2", suspect + lag, ended - lag)
    waited = [one for one in by("server-1", began, suspect) if one.latency > 1.0]
    assert waited, "calls were in flight on the blocked node, and it answered them"
    assert by("server-1", ended + lag, ended + 10), "it gets work again"
