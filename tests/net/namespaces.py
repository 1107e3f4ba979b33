"""Hosts on one wire, made of network namespaces: each has an interface of its own on a bridge in one more namespace, or
on a switch of our own that loses and delays frames.

The machine's own network is never touched: the bridge has no uplink, and nothing leaves it. Needs root, since making
a network namespace does. Every namespace and process is gone when a `Network` is closed, also after a failure; what a
killed test run left behind is removed by the next one.
"""

from __future__ import annotations

import atexit
import contextlib
import ipaddress
import itertools
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

__all__ = ["ROOT", "Host", "Network", "Program", "TcpLink", "lacking", "wait_until"]

ROOT = Path(__file__).resolve().parents[2]

# Generous, since they only bound a failure: a busy machine needs seconds to start a Python process.
START_TIMEOUT = 30.0
EXIT_TIMEOUT = 20.0

_POLL = 0.005
_IP_TIMEOUT = 20.0
_PREFIX = "zm"
_serial = itertools.count(1)

T = TypeVar("T")


def lacking() -> str | None:
    """What this machine lacks to make network namespaces, None where it can."""
    if not sys.platform.startswith("linux"):
        return "network namespaces exist on Linux only"
    if os.geteuid() != 0:
        return "not root: only root may make network namespaces"
    for tool in ("ip", "ss", "setpriv"):
        if shutil.which(tool) is None:
            return f"no '{tool}' command (Debian packages iproute2 and util-linux)"
    name = f"{_PREFIX}{os.getpid()}-probe"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return f"cannot make a network namespace: {made.stderr.strip()}"
    _ip("netns", "del", name)
    return None


def wait_until(look: Callable[[], T | None], timeout: float, what: Callable[[], str]) -> T:
    """Look again and again until there is something to return; an AssertionError saying `what` after `timeout`."""
    give_up = time.monotonic() + timeout
    while True:
        seen = look()
        if seen is not None:
            return seen
        if time.monotonic() > give_up:
            raise AssertionError(f"not within {timeout:g} s: {what()}")
        time.sleep(_POLL)


@dataclass(frozen=True)
class TcpLink:
    """One established TCP connection of a process, as the kernel lists it."""

    local: str
    remote: str


class Program:
    """A process on a host. Its output goes to `log`; its input is a pipe (`say`). It dies with the test run."""

    def __init__(self, argv: list[str], log: Path, env: dict[str, str]) -> None:
        self.log = log
        self._argv = argv
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                # The parent's death kills it, however the parent dies: nothing may outlive a test run.
                ["setpriv", "--pdeathsig", "KILL", *argv],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=env,
            )
        self.pid = self._process.pid

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def wait_for(self, pattern: str, timeout: float = START_TIMEOUT, count: int = 1) -> re.Match[str]:
        """The `count`th match of a pattern (multi-line mode) in its output."""

        def look() -> re.Match[str] | None:
            ended = not self.running
            matches = list(re.finditer(pattern, self.output, re.MULTILINE))
            if len(matches) >= count:
                return matches[count - 1]
            if ended:
                raise AssertionError(f"ended with status {self._process.returncode} before saying {pattern!r}: {self}")
            return None

        return wait_until(look, timeout, lambda: f"{pattern!r} from {self}")

    def say(self, line: str) -> None:
        """Write a line to its standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())
        self._process.stdin.flush()

    def signal(self, number: signal.Signals) -> float:
        """Send a signal; returns the monotonic time at which it was sent."""
        self._process.send_signal(number)
        return time.monotonic()

    def wait(self, timeout: float = EXIT_TIMEOUT) -> int:
        """Its exit status, once it has ended."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still runs after {timeout:g} s: {self}") from None

    def cpu_seconds(self) -> float:
        """User and system time that it has used so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def tcp_links(self) -> list[TcpLink]:
        """Its established TCP connections."""
        inodes = set()
        for descriptor in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed since it was listed
                if found := re.fullmatch(r"socket:\[(\d+)\]", os.readlink(descriptor)):
                    inodes.add(found[1])
        return [
            TcpLink(_address(fields[1]), _address(fields[2]))
            for table in ("tcp", "tcp6")
            for line in Path(f"/proc/{self.pid}/net/{table}").read_text().splitlines()[1:]
            if (fields := line.split())[3] == "01" and fields[9] in inodes
        ]

    def close(self) -> None:
        """Kill it if it still runs."""
        if self.running:
            self._process.kill()
        self._process.wait(EXIT_TIMEOUT)
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()

    def __str__(self) -> str:
        return f"{' '.join(self._argv)}\n--- the end of {self.log}\n{self.output[-4000:]}"


class Host:
    """One network namespace with one interface, `eth0`, on the bridge."""

    def __init__(self, network: Network, number: int) -> None:
        self.namespace = f"{network.name}h{number}"
        self.port = f"p{number}"  # the bridge's end of the wire
        self.ipv4 = f"10.77.{network.subnet}.{number}"
        self.ipv6 = f"fd77:{network.subnet:x}::{number:x}"
        self._network = network

    def ip(self, *arguments: str) -> str:
        """Run `ip` in this host."""
        return _ip("-n", self.namespace, *arguments)

    def slow_down(self, megabits: float, queue: str = "50ms") -> None:
        """Let what it sends leave at so many Mbit/s from now on; what would wait longer than `queue` is dropped."""
        shape = ["root", "tbf", "rate", f"{megabits}mbit", "burst", "32kbit", "latency", queue]
        self.ip("link", "set", "eth0", "txqueuelen", "1000")
        argv = ["tc", "-n", self.namespace, "qdisc", "replace", "dev", "eth0", *shape]
        subprocess.run(argv, check=True, timeout=_IP_TIMEOUT)

    def run(self, *argv: str, name: str | None = None, env: dict[str, str] | None = None) -> Program:
        """Start a program here. `name` names its log, `env` is added to its environment."""
        return self._network.run(self, list(argv), name or Path(argv[0]).name, env or {})

    def python(self, module: str, *arguments: str, name: str | None = None) -> Program:
        """Start a module of this repository with the running interpreter."""
        return self.run(sys.executable, "-m", module, *arguments, name=name or module.rpartition(".")[2])

    def bytes_acknowledged(self) -> tuple[int, int]:
        """Over all established TCP connections: bytes that the other side's kernel has, bytes that it has not yet."""
        lines = self.sockets("-i", "state", "established").splitlines()
        acknowledged = sum(int(found[1]) for line in lines if (found := re.search(r"bytes_acked:(\d+)", line)))
        return acknowledged, sum(int(line.split()[1]) for line in lines)

    def sockets(self, *arguments: str) -> str:
        """This host's TCP sockets, one a line, as `ss` tells them."""
        argv = ["ip", "netns", "exec", self.namespace, "ss", "-tanOH", *arguments]
        return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=_IP_TIMEOUT).stdout


class Network:
    """Hosts on one bridge, and the programs that run on them. A context manager; `directory` takes the logs.

    switched: on a switch of our own instead of the bridge, slower, whose ports can be made bad (`disturb`).
    """

    def __init__(self, hosts: int, directory: Path, *, switched: bool = False) -> None:
        serial = next(_serial)
        self.name = f"{_PREFIX}{os.getpid()}-{serial}"
        self.subnet = serial % 250
        self.mesh = f"test-{secrets.token_hex(4)}"
        self.directory = directory
        self.hosts = [Host(self, number) for number in range(1, hosts + 1)]
        self.programs: list[Program] = []
        self._switched = switched
        self._switch: Program | None = None
        self._settings = itertools.count(1)
        self._namespaces: list[str] = []
        self._logs = itertools.count(1)

    def __enter__(self) -> Network:
        _remove_leftovers()
        atexit.register(self.close)
        try:
            self._make_namespace(self.name)
            for host in self.hosts:
                self._make_namespace(host.namespace)
            if self._switched:
                self._start_switch()
            else:
                self._wire_to_bridge()
            for host in self.hosts:
                host.ip("addr", "add", f"{host.ipv4}/24", "dev", "eth0")
                host.ip("addr", "add", f"{host.ipv6}/64", "dev", "eth0", "nodad")
                host.ip("link", "set", "eth0", "up")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(self, host: Host, argv: list[str], name: str, env: dict[str, str]) -> Program:
        return self._run(host.namespace, argv, name, env)

    def _run(self, namespace: str, argv: list[str], name: str, env: dict[str, str]) -> Program:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("ZMESH_")}
        program = Program(
            ["ip", "netns", "exec", namespace, *argv],
            self.directory / f"{next(self._logs):02}-{name}.log",
            {**inherited, "PYTHONUNBUFFERED": "1", "ZMESH_MESH": self.mesh, **env},
        )
        self.programs.append(program)
        return program

    def cut(self, host: Host) -> float:
        """Take a host's port of the bridge down: silence on both sides, no reset. Returns the monotonic time."""
        _ip("-n", self.name, "link", "set", host.port, "down")
        return time.monotonic()

    def mend(self, host: Host) -> float:
        """Take the port up again. Returns the monotonic time."""
        _ip("-n", self.name, "link", "set", host.port, "up")
        return time.monotonic()

    def disturb(self, host: Host, *, loss_from: float = 0.0, loss_to: float = 0.0, delay: float = 0.0) -> float:
        """Have a switched network lose a share of what comes from a host, and of what goes to it, and delay both by so
        many seconds; without arguments it is well again. Returns the monotonic time."""
        assert self._switch is not None, "a bridge loses and delays nothing"
        self._switch.say(f"{self.hosts.index(host) + 1} {loss_from} {loss_to} {delay}")
        return float(self._switch.wait_for(r"^SET \d+ (\S+)", count=next(self._settings))[1])

    def close(self) -> None:
        """Kill the programs, remove the namespaces. May be called again."""
        atexit.unregister(self.close)
        for program in self.programs:
            with contextlib.suppress(subprocess.TimeoutExpired):
                program.close()
        while self._namespaces:
            subprocess.run(["ip", "netns", "del", self._namespaces.pop()], check=False, timeout=_IP_TIMEOUT)

    def _make_namespace(self, name: str) -> None:
        _ip("netns", "add", name)
        self._namespaces.append(name)
        _ip("-n", name, "link", "set", "lo", "up")

    def _wire_to_bridge(self) -> None:
        # Without snooping the bridge floods multicast, as a plain switch does.
        _ip("-n", self.name, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        _ip("-n", self.name, "link", "set", "br0", "up")
        for host in self.hosts:
            # Both ends are made in their namespaces, so that the machine's own namespace never sees them.
            ends = ["eth0", "netns", host.namespace, "type", "veth", "peer", "name", host.port, "netns", self.name]
            _ip("link", "add", *ends)
            _ip("-n", self.name, "link", "set", host.port, "master", "br0", "up")

    def _start_switch(self) -> None:
        namespaces = [host.namespace for host in self.hosts]
        argv = [sys.executable, "-m", "tests.net.programs.switch", *namespaces]
        self._switch = self._run(self.name, argv, "switch", {})
        self._switch.wait_for("^READY")


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False, timeout=_IP_TIMEOUT)
    if done.returncode != 0:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def _remove_leftovers() -> None:
    """Remove namespaces of test runs that have ended without (SIGKILL): their names carry the run's process id."""
    for name in _leftovers():
        with contextlib.suppress(OSError):  # another run may be removing it, too
            # Whatever still runs in there was started by that run: the namespace was its own.
            for pid in _ip("netns", "pids", name).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            _ip("netns", "del", name)


def _leftovers() -> Iterator[str]:
    for line in _ip("netns", "list").splitlines():
        found = re.match(rf"({_PREFIX}(\d+)-\S+)", line)
        if found and not Path(f"/proc/{found[2]}").exists():
            yield found[1]


def _address(text: str) -> str:
    """`host:port` from the kernel's hexadecimal form, whose 32-bit words are in the machine's byte order."""
    host, _, port = text.partition(":")
    words = [bytes.fromhex(host[at : at + 8])[:: 1 if sys.byteorder == "big" else -1] for at in range(0, len(host), 8)]
    address = ipaddress.ip_address(b"".join(words))
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return f"[{address}]:{int(port, 16)}" if address.version == 6 else f"{address}:{int(port, 16)}"
