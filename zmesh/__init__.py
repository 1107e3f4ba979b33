"""zmesh: brokerless RPC for Python. Nodes find each other by mDNS, call, balance load and fail over."""

from ._call import Call
from ._version import __version__
from .config import Config
from .context import Context, context
from .errors import (
    Aborted,
    AlreadyExists,
    Cancelled,
    Code,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    MaybeExecuted,
    NotFound,
    OutOfRange,
    PermissionDenied,
    ResourceExhausted,
    RpcError,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    Unknown,
)
from .node import Node, Peer
from .service import Method, Service, Streaming, Unary, rpc

__all__ = [
    "Aborted",
    "AlreadyExists",
    "Call",
    "Cancelled",
    "Code",
    "Config",
    "Context",
    "DataLoss",
    "DeadlineExceeded",
    "FailedPrecondition",
    "Internal",
    "InvalidArgument",
    "MaybeExecuted",
    "Method",
    "Node",
    "NotFound",
    "OutOfRange",
    "Peer",
    "PermissionDenied",
    "ResourceExhausted",
    "RpcError",
    "Service",
    "Streaming",
    "Unary",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Unknown",
    "__version__",
    "context",
    "rpc",
]
