"""The fault scenario: three servers and load on a fourth host, while one server is killed, one host's link is cut and
mended, and one server is stopped and continued. What happens is gathered here; tests and benchmarks judge it."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .figures import percentile
from .namespaces import Network, Program, TcpLink
from .programs.openloop import Outcome, Report, Seen

SERVICE_MS = 5.0
RATE = 300.0


@dataclass(frozen=True)
class Schedule:
    """When the faults come, in seconds from the start of the load."""

    kill: float = 3.0  # SIGKILL of server 1
    cut: float = 6.0  # the link of host 2 goes down
    mend: float = 10.0
    stop: float = 12.0  # SIGSTOP of server 3
    resume: float = 13.5
    end: float = 15.0


@dataclass(frozen=True)
class Fault:
    """One fault, as it came and as one client noticed it (seconds from the fault; None: never)."""

    name: str
    server: str
    at: float  # monotonic
    late: float  # seconds behind the schedule
    suspect: float | None  # suspect or worse: the fault is noticed
    dead: float | None
    back: float | None  # alive again, seconds from the end of the fault


@dataclass(frozen=True)
class Load:
    """One client's side of the scenario."""

    method: str
    report: Report
    links: list[TcpLink]
    faults: list[Fault]

    @property
    def failed(self) -> list[Outcome]:
        return [outcome for outcome in self.report.outcomes if outcome.error is not None]

    @property
    def answered_ms(self) -> list[float]:
        return [1000 * outcome.latency for outcome in self.report.outcomes if outcome.error is None]

    def summary(self) -> dict[str, object]:
        """The figures that faults.md of the project's notes gives for other systems, and the times of notice."""
        ms = self.answered_ms
        failures = Counter(f"{outcome.error}, {outcome.code}" for outcome in self.failed)
        return {
            "method": self.method,
            "calls": len(self.report.outcomes),
            "failed": len(self.failed),
            "errors": dict(failures),
            "p50_ms": round(percentile(ms, 50), 1),
            "p99_ms": round(percentile(ms, 99), 1),
            "worst_ms": round(max(ms), 1),
            "over_100_ms": sum(one > 100 for one in ms),
            "client_lag_p99_ms": round(1000 * percentile([one.late for one in self.report.outcomes], 99), 1),
            "faults": {
                fault.name: {
                    key: None if value is None else round(1000 * value)
                    for key, value in {
                        "late_ms": fault.late,
                        "suspect_ms": fault.suspect,
                        "dead_ms": fault.dead,
                        "back_ms": fault.back,
                    }.items()
                }
                for fault in self.faults
            },
        }


@dataclass(frozen=True)
class Scenario:
    """All that happened. `ran`: for every token, the servers on which a handler started with it, in no order."""

    loads: list[Load]
    ran: dict[str, list[str]]


def read_runs(files: dict[str, Path]) -> dict[str, list[str]]:
    """Token to the servers that ran it, from the files that `server` processes wrote (`files`: server to file)."""
    ran: dict[str, list[str]] = {}
    for server, file in files.items():
        if not file.exists():
            continue  # it never started
        for token in file.read_text().split():
            ran.setdefault(token, []).append(server)
    return ran


def start_servers(network: Network, count: int, *arguments: str) -> dict[str, Program]:
    """A server on each of the first `count` hosts; each is ready. Its runs are noted in `ran-NAME`."""
    servers = {}
    for number, host in enumerate(network.hosts[:count], 1):
        name = f"server-{number}"
        ran = str(network.directory / f"ran-{name}")
        servers[name] = host.python("tests.net.programs.server", "--name", name, "--ran", ran, *arguments, name=name)
    for server in servers.values():
        server.wait_for("^READY")
    return servers


def run(network: Network, methods: Sequence[str], schedule: Schedule | None = None, rate: float = RATE) -> Scenario:
    """Play the scenario with one load client for each method, all at once on the fourth host."""
    schedule = schedule or Schedule()
    servers = start_servers(network, 3)
    client_host = network.hosts[3]
    clients: dict[str, Program] = {}
    for method in methods:
        clients[method] = client_host.python(
            "tests.net.programs.load",
            *("--servers", "3", "--method", method, "--rate", str(rate), "--seconds", str(schedule.end)),
            *("--ms", str(SERVICE_MS), "--timeout", "2", "--report", str(network.directory / f"report-{method}")),
            name=f"load-{method}",
        )
    for client in clients.values():
        client.wait_for("^READY")
    links = {method: client.tcp_links() for method, client in clients.items()}

    for client in clients.values():
        client.say("start")
    start = max(float(client.wait_for(r"^START (\S+)")[1]) for client in clients.values())

    def until(moment: float) -> float:
        # The plan of the scenario itself, no wait for a condition.
        time.sleep(max(0.0, start + moment - time.monotonic()))
        return start + moment

    came: dict[str, tuple[str, float, float, float | None]] = {}
    planned = until(schedule.kill)
    came["kill"] = ("server-1", planned, servers["server-1"].signal(signal.SIGKILL), None)
    planned = until(schedule.cut)
    cut = network.cut(network.hosts[1])
    until(schedule.mend)
    came["cut"] = ("server-2", planned, cut, network.mend(network.hosts[1]))
    planned = until(schedule.stop)
    stopped = servers["server-3"].signal(signal.SIGSTOP)
    until(schedule.resume)
    came["stop"] = ("server-3", planned, stopped, servers["server-3"].signal(signal.SIGCONT))

    loads = []
    for method, client in clients.items():
        client.wait_for("^DONE")
        report = Report.read(network.directory / f"report-{method}")
        faults = [_fault(name, *facts, seen=report.seen) for name, facts in came.items()]
        loads.append(Load(method, report, links[method], faults))
    for name in ("server-2", "server-3"):
        servers[name].signal(signal.SIGTERM)
    for server in servers.values():
        server.wait()  # so that the files of runs are final
    return Scenario(loads, read_runs({name: network.directory / f"ran-{name}" for name in servers}))


def _fault(name: str, server: str, planned: float, at: float, end: float | None, seen: Sequence[Seen]) -> Fault:
    after = [one for one in seen if one.peer == server and one.at >= at]

    def first(*states: str) -> float | None:
        return next((one.at - at for one in after if one.state in states), None)

    back = (
        None if end is None else next((one.at - end for one in after if one.at >= end and one.state == "alive"), None)
    )
    return Fault(name, server, at, at - planned, first("suspect", "dead", "gone"), first("dead", "gone"), back)
