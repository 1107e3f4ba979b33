"""zmesh: brokerless RPC for Python. Nodes find each other by mDNS, call, balance load and fail over."""

import typing

from ._call import Call, Stream
from ._scatter import Replies, Reply
from ._security import Security
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
from .explanation import Explanation, explain
from .interceptors import InterceptedCall, Interceptor
from .node import Node, Peer
from .service import Method, Service, Streaming, Unary, rpc

if typing.TYPE_CHECKING:
    from .sync import Mesh, connect
else:

    def __getattr__(name: str) -> object:
        if name in ("Mesh", "connect"):  # loaded when they are used: most programs need one face
            from . import sync

            return getattr(sync, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


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
    "Explanation",
    "FailedPrecondition",
    "InterceptedCall",
    "Interceptor",
    "Internal",
    "InvalidArgument",
    "MaybeExecuted",
    "Mesh",
    "Method",
    "Node",
    "NotFound",
    "OutOfRange",
    "Peer",
    "PermissionDenied",
    "Replies",
    "Reply",
    "ResourceExhausted",
    "RpcError",
    "Security",
    "Service",
    "Stream",
    "Streaming",
    "Unary",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Unknown",
    "__version__",
    "connect",
    "context",
    "explain",
    "rpc",
]
