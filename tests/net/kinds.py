"""The kinds of faults that happen to servers under load, and the scenarios that are played with them. Three servers are
on the first hosts, and the load on the fourth."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from .namespaces import Network, Program
from .servers import start_server

LISTEN = "tcp://*:7001"  # so that a server comes back on the address that it had
SERVERS = 3
AFTER = 3.0  # seconds that a load goes on after the last fault
LOSS = 0.05
DELAY = 0.1
BULK = 64 * 1024 * 1024


@dataclass
class Stage:
    """What a fault may touch."""

    network: Network
    servers: dict[int, Program]
    clients: list[Program]

    def start_again(self, number: int) -> float:
        self.servers[number].wait()
        self.servers[number] = start_server(self.network, number, "--listen", LISTEN)
        return time.monotonic()

    def send_bulk(self, number: int) -> float:
        for client in self.clients:
            client.say(f"bulk server-{number} {BULK}")
        return time.monotonic()

    def disturb(self, number: int, *, loss_from: float = 0.0, loss_to: float = 0.0, delay: float = 0.0) -> float:
        """The port of a server; that of the load for number 4, which all of it goes through."""
        host = self.network.hosts[number - 1]
        return self.network.disturb(host, loss_from=loss_from, loss_to=loss_to, delay=delay)


Happens = Callable[[Stage, int], float]  # to a server, by its number; returns the monotonic time


@dataclass(frozen=True)
class Kind:
    """A kind of fault. suspect, dead: by how many seconds after it a caller should have noticed; without the latter,
    nobody is to be declared dead for it. worst: the seconds that an idempotent call may take, beside its own time."""

    says: str
    begin: Happens
    end: Happens | None = None
    suspect: float | None = None
    dead: float | None = None
    worst: float | None = None
    switched: bool = False  # needs a network that loses and delays


KINDS: Final[dict[str, Kind]] = {
    "kill": Kind(
        "SIGKILL", lambda s, n: s.servers[n].signal(signal.SIGKILL), suspect=0.05, dead=1.3, worst=0.8
    ),
    "restart": Kind(
        "SIGKILL, and started again on the same address",
        lambda s, n: s.servers[n].signal(signal.SIGKILL), Stage.start_again, 0.05, 1.3, 0.8,
    ),
    "stop": Kind(
        "SIGSTOP for 3 s",
        lambda s, n: s.servers[n].signal(signal.SIGSTOP),
        lambda s, n: s.servers[n].signal(signal.SIGCONT), 0.5, 1.3, 0.8,
    ),
    "cut": Kind(
        "link down for 3 s",
        lambda s, n: s.network.cut(s.network.hosts[n - 1]),
        lambda s, n: s.network.mend(s.network.hosts[n - 1]), 0.5, 1.3, 0.8,
    ),
    "mute": Kind(
        "all that it sends is lost, for 3 s",
        lambda s, n: s.disturb(n, loss_from=1.0), Stage.disturb, 0.5, 2.3, 0.8, switched=True,
    ),
    "deaf": Kind(
        "all that it is sent is lost, for 3 s",
        lambda s, n: s.disturb(n, loss_to=1.0), Stage.disturb, 0.5, 2.3, 0.8, switched=True,
    ),
    "lossy": Kind(
        "5 % of all frames are lost, each way, at random",
        lambda s, n: s.disturb(n, loss_from=LOSS, loss_to=LOSS), Stage.disturb, switched=True,
    ),
    "slow": Kind(
        "100 ms later, each way, one server",
        lambda s, n: s.disturb(n, delay=DELAY), Stage.disturb, switched=True,
    ),
    "far": Kind(
        "100 ms later, each way, all servers",
        lambda s, n: s.disturb(n, delay=DELAY), Stage.disturb, switched=True,
    ),
    "bulk": Kind("64 MiB there and back, on the same link", Stage.send_bulk),
}  # fmt: skip


@dataclass(frozen=True)
class Play:
    """One fault of a scenario: to which server, from when to when, in seconds from the start of the load."""

    kind: str
    server: int
    at: float
    until: float = math.inf


THREE: Final = (Play("kill", 1, 3.0), Play("cut", 2, 6.0, 10.0), Play("stop", 3, 12.0, 13.5))
THREE_END: Final = 15.0

ALL: Final = SERVERS + 1  # the port of the load, where a fault meets the links to all servers

SINGLE: Final[dict[str, Sequence[Play]]] = {
    "kill": [Play("kill", 1, 2.0)],
    "stop": [Play("stop", 1, 2.0, 5.0)],
    "cut": [Play("cut", 1, 2.0, 5.0)],
    "mute": [Play("mute", 1, 2.0, 5.0)],
    "deaf": [Play("deaf", 1, 2.0, 5.0)],
    "lossy": [Play("lossy", ALL, 2.0, 22.0)],
    "slow": [Play("slow", 1, 2.0, 6.0)],
    "far": [Play("far", ALL, 2.0, 6.0)],
    "restart": [Play("restart", number, 2.0 * number, 2.0 * number) for number in (1, 2, 3)],
    "bulk": [Play("bulk", number, 2.0 * number) for number in (1, 2, 3)],
}


def end_of(plays: Sequence[Play]) -> float:
    """Seconds of load that show a scenario and what comes after it; a busy machine takes some to start a process."""
    starts = any(play.kind == "restart" for play in plays)
    return (2.0 if starts else 1.0) * AFTER + max(play.at if play.until == math.inf else play.until for play in plays)
