"""A deploy: new versions of a service come beside the old one under load, and the old one leaves.

Servers of 1.0 work for a caller of 1.0. On each host 1.1 comes beside, then 1.0 drains. Then 2.0 comes beside, with a
caller of its own; when the caller of 1.0 is done, 1.1 drains.
"""

from __future__ import annotations

import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from .namespaces import Network, Program
from .programs.openloop import Report
from .restarts import SERVICE_MS, wait_until_seen
from .servers import read_runs

LONGEST = 300.0  # seconds of load, if nobody stops it


@dataclass(frozen=True)
class Deployed:
    """What the callers of both versions saw. ran: for each token, the servers (NAME-VERSION) that ran it."""

    reports: dict[str, Report]
    ran: dict[str, list[str]]
    statuses: list[int]

    @property
    def failed(self) -> int:
        return sum(one.error is not None for report in self.reports.values() for one in report.outcomes)

    @property
    def twice(self) -> int:
        return sum(len(servers) > 1 for servers in self.ran.values())

    @property
    def served(self) -> dict[str, Counter[str]]:
        """By the version of the caller, how many of its calls each version ran."""
        counts = {version: Counter[str]() for version in self.reports}
        for token, servers in self.ran.items():
            counts[token.partition("-")[0]].update(server.rpartition("-")[2] for server in servers)
        return counts

    def summary(self) -> dict[str, object]:
        calls = {version: len(report.outcomes) for version, report in self.reports.items()}
        worst = max(1000 * one.latency for report in self.reports.values() for one in report.outcomes)
        return {
            "calls": calls,
            "failed": self.failed,
            "run_twice": self.twice,
            "worst_ms": round(worst, 1),
            "served": {version: dict(counts) for version, counts in self.served.items()},
            "statuses": self.statuses,
        }


class _Deploy:
    """The processes of one deploy. The callers are on the last host, servers on each of the others."""

    def __init__(self, network: Network, rate: float) -> None:
        self.network = network
        self.count = len(network.hosts) - 1
        self.statuses: list[int] = []
        self._rate = rate
        self._servers: dict[str, Program] = {}

    def serve(self, number: int, version: str) -> None:
        name = f"server-{number}-{version}"
        ran = str(self.network.directory / f"ran-{name}")
        host = self.network.hosts[number - 1]
        arguments = ["--name", name, "--ran", ran, "--version", version]
        self._servers[name] = host.python("tests.net.programs.server", *arguments, name=name)
        self._servers[name].wait_for("^READY")

    def drain(self, number: int, version: str) -> None:
        server = self._servers[f"server-{number}-{version}"]
        server.signal(signal.SIGTERM)
        self.statuses.append(server.wait())

    def call(self, version: str) -> Program:
        program = self.network.hosts[-1].python(
            "tests.net.programs.load",
            *("--servers", str(self.count), "--method", "once", "--version", version, "--rate", str(self._rate)),
            *("--seconds", str(LONGEST), "--ms", str(SERVICE_MS), "--report", str(self._report(version))),
            name=f"load-{version}",
        )
        program.wait_for("^READY")
        program.say("start")
        program.wait_for("^START")
        return program

    def done(self, caller: Program, version: str) -> Report:
        caller.say("stop")
        caller.wait_for("^DONE")
        return Report.read(self._report(version))

    def _report(self, version: str) -> Path:
        return self.network.directory / f"report-{version}"

    def ran(self) -> dict[str, list[str]]:
        return read_runs({name: self.network.directory / f"ran-{name}" for name in self._servers})


def deploy(network: Network, rate: float) -> Deployed:
    """Play it, with `rate` calls/s of a method that is not idempotent by each caller."""
    step = _Deploy(network, rate)
    numbers = range(1, step.count + 1)
    for number in numbers:
        step.serve(number, "1.0")
    old = step.call("1.0")
    for number in numbers:
        step.serve(number, "1.1")
        wait_until_seen(old, f"server-{number}-1.1", incarnations=1)
        step.drain(number, "1.0")
    for number in numbers:
        step.serve(number, "2.0")
    new = step.call("2.0")
    reports = {"1.0": step.done(old, "1.0")}
    for number in numbers:
        step.drain(number, "1.1")
    reports["2.0"] = step.done(new, "2.0")
    for number in numbers:
        step.drain(number, "2.0")
    counted = {one.token for report in reports.values() for one in report.outcomes}
    return Deployed(reports, {token: where for token, where in step.ran().items() if token in counted}, step.statuses)
