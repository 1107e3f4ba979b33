"""The rolling restart: servers under load, each ended by SIGTERM in turn and started anew once it is gone."""

from __future__ import annotations

import re
import signal
import time
from dataclasses import dataclass

from .figures import percentile
from .namespaces import Network, Program, wait_until
from .programs.openloop import Report
from .servers import read_runs

SERVICE_MS = 5.0
# More than any machine needs for one restart; the load is told to stop when the last restart is done.
SECONDS_A_RESTART = 30.0


@dataclass(frozen=True)
class Rolled:
    """What happened. `ran`: for every counted token, the server incarnations (NAME.NUMBER) that ran it."""

    report: Report
    ran: dict[str, list[str]]
    statuses: list[int]
    drain_seconds: list[float]

    def summary(self) -> dict[str, object]:
        outcomes = self.report.outcomes
        answered = [1000 * one.latency for one in outcomes if one.error is None]
        return {
            "restarts": len(self.statuses),
            "calls": len(outcomes),
            "failed": len(outcomes) - len(answered),
            "run_twice": sum(len(servers) > 1 for servers in self.ran.values()),
            "p50_ms": round(percentile(answered, 50), 1),
            "p99_ms": round(percentile(answered, 99), 1),
            "worst_ms": round(max(answered), 1),
            "drain_median_s": round(percentile(self.drain_seconds, 50), 2),
            "drain_worst_s": round(max(self.drain_seconds), 2),
        }


def roll(network: Network, restarts: int, rate: float) -> Rolled:
    """Restart one server after the other under `rate` calls/s of a method that is not idempotent. The load is on the
    last host, a server on each of the others."""
    count = len(network.hosts) - 1
    started = 0
    files = {}

    def start(name: str) -> Program:
        nonlocal started
        started += 1
        host = network.hosts[int(name.rpartition("-")[2]) - 1]
        file = files[f"{name}.{started}"] = network.directory / f"ran-{name}.{started}"
        return host.python("tests.net.programs.server", "--name", name, "--ran", str(file), name=f"{name}.{started}")

    servers = {f"server-{number}": start(f"server-{number}") for number in range(1, count + 1)}
    for server in servers.values():
        server.wait_for("^READY")
    report = network.directory / "report"
    client = network.hosts[-1].python(
        "tests.net.programs.load",
        *("--servers", str(count), "--method", "once", "--rate", str(rate)),
        *("--seconds", str(restarts * SECONDS_A_RESTART), "--ms", str(SERVICE_MS), "--report", str(report)),
    )
    client.wait_for("^READY")
    client.say("start")
    client.wait_for("^START")

    statuses, drains = [], []
    for turn in range(restarts):
        name = list(servers)[turn % count]
        told = servers[name].signal(signal.SIGTERM)
        statuses.append(servers[name].wait())
        drains.append(time.monotonic() - told)
        servers[name] = start(name)
        servers[name].wait_for("^READY")
        # The next one leaves when this one serves, as a careful operator (or Kubernetes) would have it.
        wait_until_seen(client, name, incarnations=2 + turn // count)
    client.say("stop")
    client.wait_for("^DONE")
    for server in servers.values():
        server.signal(signal.SIGTERM)
    for server in servers.values():
        server.wait()  # so that the files of runs are final
    outcomes = Report.read(report)
    counted = {one.token for one in outcomes.outcomes}
    ran = {token: where for token, where in read_runs(files).items() if token in counted}
    return Rolled(outcomes, ran, statuses, drains)


def wait_until_seen(client: Program, name: str, incarnations: int) -> None:
    """Until the load client has had so many incarnations of a server alive."""
    wait_until(
        lambda: len(set(re.findall(rf" {name} (\S+) is alive ", client.output))) >= incarnations or None,
        20.0,
        lambda: f"{name}, incarnation {incarnations}, alive for {client}",
    )
