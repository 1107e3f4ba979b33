"""Faults under load: three servers and load on a fourth host, while faults of the kinds of `kinds.py` happen to them.
What happens is gathered here; tests and benchmarks judge it."""

from __future__ import annotations

import math
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from .figures import percentile
from .kinds import ALL, KINDS, LISTEN, SERVERS, THREE, THREE_END, Play, Stage
from .namespaces import Network, TcpLink
from .programs.openloop import Outcome, Report, Seen
from .servers import read_runs, start_servers

SERVICE_MS = 5.0
RATE = 300.0
SETTLE = 1.0  # seconds after a fault in which its server may still be declared dead for it


@dataclass(frozen=True)
class Fault:
    """One fault, as it came and as one client noticed it (seconds from the fault; None: never)."""

    name: str
    server: str
    at: float  # monotonic
    late: float  # seconds behind the schedule
    ended: float  # monotonic
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
    bulks: list[str] = field(default_factory=list)  # what became of each large value: "OK", or an error

    @property
    def failed(self) -> list[Outcome]:
        return [outcome for outcome in self.report.outcomes if outcome.error is not None]

    @property
    def answered_ms(self) -> list[float]:
        return [1000 * outcome.latency for outcome in self.report.outcomes if outcome.error is None]

    @property
    def attempts(self) -> float:
        """For each call, on average."""
        return 1.0 + sum(self.report.extra.values()) / max(len(self.report.outcomes), 1)

    @property
    def false_deaths(self) -> list[Seen]:
        """Incarnations that were declared dead, or were not listed any more, while they were there."""
        first: dict[str, float] = {}
        for one in self.report.seen:
            first.setdefault(one.id, one.at)

        def explained(one: Seen) -> bool:
            return any(
                fault.server == one.peer
                and first[one.id] < fault.at <= one.at
                and (KINDS[fault.name].end is None or fault.name == "restart" or one.at < fault.ended + SETTLE)
                for fault in self.faults
                if KINDS[fault.name].dead is not None
            )

        return [one for one in self.report.seen if one.state in ("dead", "gone") and not explained(one)]

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
            "attempts": round(self.attempts, 4),
            **self.report.extra,
            "false_deaths": len(self.false_deaths),
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


def run(
    network: Network,
    methods: Sequence[str],
    plays: Sequence[Play] = THREE,
    seconds: float = THREE_END,
    rate: float = RATE,
    hedge_after: str = "",
) -> Scenario:
    """Let faults happen, with one load client for each method, all at once on the fourth host."""
    servers = start_servers(network, SERVERS, "--listen", LISTEN)
    stage = Stage(network, dict(enumerate(servers.values(), 1)), [])
    for method in methods:
        client = network.hosts[SERVERS].python(
            "tests.net.programs.load",
            *("--servers", str(SERVERS), "--method", method, "--rate", str(rate), "--seconds", str(seconds)),
            *("--ms", str(SERVICE_MS), "--timeout", "2", "--report", str(network.directory / f"report-{method}")),
            *(("--hedge-after", hedge_after) if hedge_after else ()),
            name=f"load-{method}",
        )
        stage.clients.append(client)
    for client in stage.clients:
        client.wait_for("^READY")
    links = [client.tcp_links() for client in stage.clients]
    for client in stage.clients:
        client.say("start")
    start = max(float(client.wait_for(r"^START (\S+)")[1]) for client in stage.clients)

    came, ended = _play(stage, plays, start)
    loads = []
    for method, client, own in zip(methods, stage.clients, links, strict=True):
        client.wait_for("^DONE", timeout=seconds + 60.0)
        report = Report.read(network.directory / f"report-{method}")
        faults = [
            _fault(play, start + play.at, at, ended.get(play, math.inf), seen=report.seen) for play, at in came.items()
        ]
        bulks = [line.removeprefix("BULK ") for line in client.output.splitlines() if line.startswith("BULK ")]
        loads.append(Load(method, report, own, faults, bulks))
    for server in stage.servers.values():
        if server.running:
            server.signal(signal.SIGTERM)
    for server in stage.servers.values():
        server.wait()  # so that the files of runs are final
    return Scenario(loads, read_runs({name: network.directory / f"ran-{name}" for name in servers}))


def _play(stage: Stage, plays: Sequence[Play], start: float) -> tuple[dict[Play, float], dict[Play, float]]:
    """Let all happen when it should; when each fault began and ended (monotonic)."""
    moments = [(play.at, play, False) for play in plays]
    moments += [(play.until, play, True) for play in plays if play.until < math.inf]
    came, ended = dict[Play, float](), dict[Play, float]()
    for moment, play, over in sorted(moments, key=lambda each: (each[0], each[2])):
        # The plan of the scenario itself, no wait for a condition.
        time.sleep(max(0.0, start + moment - time.monotonic()))
        kind = KINDS[play.kind]
        if not over:
            came[play] = kind.begin(stage, play.server)
        elif kind.end is not None:
            ended[play] = kind.end(stage, play.server)
    return came, ended


def _fault(play: Play, planned: float, at: float, end: float, seen: Sequence[Seen]) -> Fault:
    server = f"server-{play.server}"
    after = [one for one in seen if (one.peer == server or play.server == ALL) and one.at >= at]
    if play.kind in ("kill", "restart"):
        known = {one.id for one in seen if one.peer == server and one.at < at}
        lost = [one for one in after if one.id in known]
    else:
        lost = [one for one in after if one.at < end + SETTLE]

    def first(*states: str) -> float | None:
        return next((one.at - at for one in lost if one.state in states), None)

    back = next((one.at - end for one in after if one.at >= end and one.state == "alive"), None)
    noticed, dead = first("suspect", "dead", "gone"), first("dead", "gone")
    return Fault(play.kind, server, at, at - planned, end, noticed, dead, back)
