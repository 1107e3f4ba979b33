"""The arguments of `Node` and the environment: checked, with errors that say what was wrong and what to write."""

from __future__ import annotations

import os
import pickle
import re
import socket
import sys
from collections.abc import Iterable, Sequence

from . import _introspection
from ._core.messages import MAX_NAME
from ._security import Gate
from ._transport import check_address
from .schema import ServiceSchema, schema_of
from .service import Service

WORKERS_OF = "ZMESH_WORKERS_OF"  # in a worker's environment: the process that all of them belong to
_MESH_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def schema_of_instance(service: Service) -> ServiceSchema:
    if not isinstance(service, Service):
        hint = " (give an instance, not the class)" if isinstance(service, type) else ""
        raise TypeError(f"Node() serves instances of zmesh.Service, got {service!r:.60}{hint}")
    return schema_of(type(service))


def refuse_duplicates(names: list[str]) -> None:
    if _introspection.BUILT_IN in names:
        raise ValueError(f"a service cannot be named {_introspection.BUILT_IN!r}: every node has that one built in")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two services of one name on one node: {', '.join(twice)}; name one of them otherwise")


def pickled_for_processes(services: Sequence[tuple[ServiceSchema, Service]]) -> bytes:
    """The services that have handlers for processes, by name, for `_pool`; b"" where there are none."""
    found = {}
    for schema, service in services:
        methods = [name for name in schema.methods if getattr(type(service), name).pool is not None]
        if methods:
            try:
                found[schema.name] = pickle.dumps(service)
            except Exception as error:
                raise TypeError(
                    f"{schema.name}.{methods[0]} runs in a process, which gets a copy of the service, and this one "
                    f"cannot be pickled: {error} (write the class at the top of a module, and leave out in "
                    "__getstate__ what cannot travel)"
                ) from error
    return pickle.dumps(found) if found else b""


def refuse_second_main() -> None:
    """Raise RuntimeError where a process that multiprocessing starts is importing the program's main module: a node
    that is started by that import would be a second one, and would keep the process from ever being ready."""
    module = sys.modules.get("multiprocessing.process")
    if module is not None and getattr(module.current_process(), "_inheriting", False):
        raise RuntimeError(
            "a process of a pool imports the program's main module, and that starts a node: put what starts it under "
            '`if __name__ == "__main__":`'
        )


def default_name() -> str:
    process = os.environ.get(WORKERS_OF) or os.getpid()
    return f"{socket.gethostname().partition('.')[0] or 'node'}-{process}"


def check_name(name: str) -> str:
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise ValueError(f"a node's name is 1 to {MAX_NAME} printable characters, got {name!r:.150}")
    return name


def name_of(given: str | None, gate: Gate | None) -> str:
    """A node's name. With keys of its own it is the one that they belong to; another one is refused."""
    owner = gate.name if gate is not None else ""
    if given is None:
        return owner or default_name()
    if owner and given != owner:
        raise ValueError(f"name={given!r}: the key file's keys belong to {owner!r}: leave name out")
    return check_name(given)


def check_mesh(mesh: str) -> str:
    if not _MESH_NAME.fullmatch(mesh):
        raise ValueError(f"a mesh's name is 1 to 64 letters, digits, '_', '.' or '-', got {mesh!r:.80}")
    return mesh


def list_of(given: Iterable[str] | str | None, variable: str) -> tuple[str, ...]:
    if given is None:
        given = os.environ.get(variable, "").split(",")
    elif isinstance(given, str):
        given = [given]
    return tuple(item.strip() for item in given if item.strip())


def addresses_of(given: Iterable[str] | str | None, variable: str) -> tuple[str, ...]:
    """Addresses, from an argument or else from the environment. Raises ValueError that names the one that is none."""
    return tuple(check_address(address) for address in list_of(given, variable))


def peers_of(given: Iterable[str] | str | None, variable: str) -> tuple[tuple[str | None, str], ...]:
    """(name, address) of each peer that was named, as `addresses_of`. name: None where only an address was given."""
    return tuple(peer_of(text) for text in list_of(given, variable))


def peer_of(text: str) -> tuple[str | None, str]:
    """The name and the address of NAME@ADDRESS; of ADDRESS, None and itself. Raises ValueError for what is neither."""
    match = re.fullmatch(r"(?:([^@:/]*)@)?(.*)", text)
    assert match is not None
    return (None if match[1] is None else check_name(match[1])), check_address(match[2])


def use_mdns(discovery: str | None) -> bool:
    if discovery == "env":
        discovery = os.environ.get("ZMESH_DISCOVERY") or "mdns"
        if discovery == "none":
            return False
    if discovery not in ("mdns", None):
        raise ValueError(f"discovery is 'mdns' or None (ZMESH_DISCOVERY: 'mdns' or 'none'), got {discovery!r}")
    return discovery is not None


def interfaces_for(listen: tuple[str, ...]) -> tuple[str, ...] | None:
    """A node that only this machine can reach is announced on this machine only."""
    if listen and all(address.startswith(("tcp://127.", "ipc://")) for address in listen):
        return ("127.0.0.1",)
    return None


def reachable(address: str) -> list[str]:
    """The addresses behind a wildcard."""
    for wildcard in ("tcp://0.0.0.0:", "tcp://[::]:", "tcp://*:"):
        if address.startswith(wildcard):
            from .discovery.addresses import useful_addresses

            port = address[len(wildcard) :]
            return [
                f"tcp://[{ip}]:{port}" if ":" in ip else f"tcp://{ip}:{port}"
                for ip in useful_addresses()
                if ":" not in ip or wildcard != "tcp://0.0.0.0:"
            ]
    return [address]
