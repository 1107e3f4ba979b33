"""Uneven servers: four hosts with four handlers at a time each, two of them ten times slower than the others."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from .figures import percentile
from .namespaces import Network, Program
from .programs.openloop import Report

FACTORS = {"server-1": 10.0, "server-2": 1.0, "server-3": 10.0, "server-4": 1.0}
AT_ONCE = 4


@dataclass(frozen=True)
class Setting:
    """How long a call takes at a fast server, and how many come in a second: 60 % of what the four can do."""

    service_ms: float
    rate: float


SETTINGS = {"A": Setting(5.0, 1056.0), "B": Setting(20.0, 264.0)}


@dataclass(frozen=True)
class Outcomes:
    """What a load client saw."""

    system: str
    report: Report

    @property
    def failed(self) -> int:
        return sum(one.error is not None for one in self.report.outcomes)

    @property
    def p99_ms(self) -> float:
        return percentile([1000 * one.latency for one in self.report.outcomes if one.error is None], 99)

    def summary(self) -> dict[str, object]:
        outcomes = self.report.outcomes
        ms = [1000 * one.latency for one in outcomes if one.error is None]
        shares = Counter(one.server for one in outcomes if one.error is None)
        return {
            "system": self.system,
            "calls": len(outcomes),
            "failed": self.failed,
            "p50_ms": round(percentile(ms, 50), 1),
            "p99_ms": round(self.p99_ms, 1),
            "worst_ms": round(max(ms), 1),
            "share_percent": {name: round(100 * shares[name] / len(outcomes)) for name in FACTORS},
            "client_lag_p99_ms": round(1000 * percentile([one.late for one in outcomes], 99), 1),
        }


def run_zmesh(network: Network, setting: Setting, seconds: float) -> Outcomes:
    servers = [
        host.python(
            "tests.net.programs.server",
            *("--name", name, "--ran", str(network.directory / f"ran-{name}")),
            *("--at-once", str(AT_ONCE), "--factor", str(factor)),
            name=name,
        )
        for host, (name, factor) in zip(network.hosts[:4], FACTORS.items(), strict=True)
    ]
    for server in servers:
        server.wait_for("^READY")
    return _load(network, "zmesh", servers, setting, seconds, "load", ["--servers", "4", "--method", "once"])


def run_reference(network: Network, setting: Setting, seconds: float) -> Outcomes:
    """A DEALER to each server and the client's own count of outstanding calls."""
    servers = [
        host.python(
            "tests.net.programs.reference_server",
            *("--name", name, "--bind", f"tcp://{host.ipv4}:7000", "--at-once", str(AT_ONCE), "--factor", str(factor)),
            name=f"reference-{name}",
        )
        for host, (name, factor) in zip(network.hosts[:4], FACTORS.items(), strict=True)
    ]
    for server in servers:
        server.wait_for("^READY")
    addresses = [argument for host in network.hosts[:4] for argument in ("--server", f"tcp://{host.ipv4}:7000")]
    return _load(network, "fewest outstanding", servers, setting, seconds, "reference_load", addresses)


def _load(
    network: Network,
    system: str,
    servers: list[Program],
    setting: Setting,
    seconds: float,
    program: str,
    arguments: list[str],
) -> Outcomes:
    report = network.directory / f"report-{program}"
    client = network.hosts[4].python(
        f"tests.net.programs.{program}",
        *arguments,
        *("--rate", str(setting.rate), "--seconds", str(seconds)),
        *("--ms", str(setting.service_ms), "--report", str(report)),
    )
    client.wait_for("^READY")
    client.say("start")
    client.wait_for("^DONE", timeout=seconds + 30)
    client.wait()
    for server in servers:
        server.close()
    return Outcomes(system, Report.read(report))
