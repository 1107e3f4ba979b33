"""The one exception tree: a class for each of gRPC's canonical status codes.

Codes and their meaning are gRPC's (https://grpc.github.io/grpc/core/md_doc_statuscodes.html), so that a reader who
knows one system knows the other. What is zmesh's own is `may_have_run`: every error says whether the handler may have
started, and `UNAVAILABLE` said by the mesh always means that it has not.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType

__all__ = [
    "Aborted",
    "AlreadyExists",
    "Cancelled",
    "Code",
    "DataLoss",
    "DeadlineExceeded",
    "FailedPrecondition",
    "Internal",
    "InvalidArgument",
    "MaybeExecuted",
    "NotFound",
    "OutOfRange",
    "PermissionDenied",
    "ResourceExhausted",
    "RpcError",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Unknown",
    "error_class",
]


class Code(enum.IntEnum):
    """gRPC's canonical status codes, by their standard names and numbers."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16

    def __str__(self) -> str:
        return self.name


_NO_DETAILS: Mapping[str, object] = MappingProxyType({})


class RpcError(Exception):
    """A call that failed. Raise a subclass in a handler to answer with its code.

    message: what was tried, what was seen, what to do next.
    details: structured data that travels with the error; anything that CBOR carries.
    node: the name of the node that said it; None where this process said it itself.
    may_have_run: whether the handler may have started (False: it certainly has not).
    remote_type: the class name of the exception that the handler raised, where one did.
    remote_traceback: its traceback, where the serving node allows that (`Config.send_tracebacks`).
    """

    code: Code = Code.UNKNOWN

    def __init__(
        self,
        message: str = "",
        *,
        details: Mapping[str, object] | None = None,
        node: str | None = None,
        may_have_run: bool = True,
        remote_type: str | None = None,
        remote_traceback: str | None = None,
    ) -> None:
        message = str(message)
        if details is not None and not isinstance(details, Mapping):
            raise TypeError(f"details is a mapping, got {type(details).__name__}")
        super().__init__(message)
        self.message = message
        self.details: Mapping[str, object] = _NO_DETAILS if details is None else details
        self.node = node
        self.may_have_run = may_have_run
        self.remote_type = remote_type
        self.remote_traceback = remote_traceback

    def __str__(self) -> str:
        text = f"{self.code.name}: {self.message}" if self.message else self.code.name
        if self.node is not None:
            text += f" [said by {self.node}]"
        if self.remote_traceback is not None:
            text += f"\n\nThe remote traceback was:\n{self.remote_traceback}"
        return text

    def __reduce__(self) -> tuple[object, ...]:
        # Exception's own pickling would pass only the message; process pools and test runners pickle errors.
        return (type(self), (self.message,), self.__dict__)


class Cancelled(RpcError):
    """The caller, or the node that served it, gave the call up."""

    code = Code.CANCELLED


class Unknown(RpcError):
    """An error of which no more is known."""

    code = Code.UNKNOWN


class MaybeExecuted(Unknown):
    """The call was accepted by a node that was then lost: it may have run, and is not idempotent.

    No subclass of `Unavailable`, so that code which retries on UNAVAILABLE never runs such a call twice in silence.
    """


class InvalidArgument(RpcError):
    """An argument is missing, unknown, or not of its annotated type."""

    code = Code.INVALID_ARGUMENT


class DeadlineExceeded(RpcError):
    """The deadline passed before the call was answered."""

    code = Code.DEADLINE_EXCEEDED


class NotFound(RpcError):
    """What the call asked for does not exist."""

    code = Code.NOT_FOUND


class AlreadyExists(RpcError):
    """What the call would create exists."""

    code = Code.ALREADY_EXISTS


class PermissionDenied(RpcError):
    """The caller may not do this."""

    code = Code.PERMISSION_DENIED


class ResourceExhausted(RpcError):
    """A limit was reached; the message names it."""

    code = Code.RESOURCE_EXHAUSTED


class FailedPrecondition(RpcError):
    """The system is not in the state that the call needs."""

    code = Code.FAILED_PRECONDITION


class Aborted(RpcError):
    """The call was aborted, typically by a conflict; the caller may try the whole again."""

    code = Code.ABORTED


class OutOfRange(RpcError):
    """The call went past a valid range."""

    code = Code.OUT_OF_RANGE


class Unimplemented(RpcError):
    """No node that was found offers this method."""

    code = Code.UNIMPLEMENTED


class Internal(RpcError):
    """The handler raised something that is no `RpcError`, or broke its own annotations."""

    code = Code.INTERNAL


class Unavailable(RpcError):
    """No node could take the call. Said by the mesh, it means that the call has not run."""

    code = Code.UNAVAILABLE


class DataLoss(RpcError):
    """Data was lost or corrupted for good."""

    code = Code.DATA_LOSS


class Unauthenticated(RpcError):
    """The caller is not known."""

    code = Code.UNAUTHENTICATED


_CLASSES: dict[int, type[RpcError]] = {
    cls.code: cls
    for cls in (
        Cancelled,
        Unknown,
        InvalidArgument,
        DeadlineExceeded,
        NotFound,
        AlreadyExists,
        PermissionDenied,
        ResourceExhausted,
        FailedPrecondition,
        Aborted,
        OutOfRange,
        Unimplemented,
        Internal,
        Unavailable,
        DataLoss,
        Unauthenticated,
    )
}


def error_class(code: int) -> type[RpcError]:
    """The class of a status code; `Unknown` for a number that this version does not know (gRPC does the same)."""
    return _CLASSES.get(code, Unknown)
