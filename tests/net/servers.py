"""Servers on the first hosts of a network, and what they ran."""

from __future__ import annotations

from pathlib import Path

from .namespaces import Network, Program


def read_runs(files: dict[str, Path]) -> dict[str, list[str]]:
    """Token to the servers that ran it, from the files that `server` processes wrote (`files`: server to file)."""
    ran: dict[str, list[str]] = {}
    for server, file in files.items():
        if not file.exists():
            continue  # it never started
        for token in file.read_text().split():
            ran.setdefault(token, []).append(server)
    return ran


def start_server(network: Network, number: int, *arguments: str) -> Program:
    """A server on the host of this number. Its runs are noted in `ran-NAME`."""
    name = f"server-{number}"
    ran = str(network.directory / f"ran-{name}")
    return network.hosts[number - 1].python(
        "tests.net.programs.server", "--name", name, "--ran", ran, *arguments, name=name
    )


def start_servers(network: Network, count: int, *arguments: str) -> dict[str, Program]:
    """A server on each of the first `count` hosts; each is ready."""
    servers = {f"server-{number}": start_server(network, number, *arguments) for number in range(1, count + 1)}
    for server in servers.values():
        server.wait_for("^READY")
    return servers
