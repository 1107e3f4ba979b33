"""Functions around calls, on the side that makes them and on the side that serves them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from .context import Caller

__all__ = ["InterceptedCall", "Interceptor", "Proceed", "around"]


@dataclass(slots=True)
class InterceptedCall:
    """One call, as an interceptor sees it; what it changes here is what `proceed` goes on with.

    side: "client" where the call is made, "server" where it is served.
    service, method: their names. kind: "unary", "server_stream", "client_stream" or "bidi".
    arguments: by name; a stream of arguments is among them as the asynchronous iterator that it is.
    metadata: what travels beside the arguments.
    timeout: seconds; on the client's side the option (None: the default), on the server's what is left.
    peer: who calls; None on the client's side, where the node is chosen later.
    """

    side: Literal["client", "server"]
    service: str
    method: str
    kind: str
    arguments: dict[str, Any]
    metadata: dict[str, str | bytes]
    timeout: float | None
    peer: Caller | None = None

    @property
    def path(self) -> str:
        """`Service.method`."""
        return f"{self.service}.{self.method}"


Proceed = Callable[[InterceptedCall], Awaitable[Any]]


class Interceptor(Protocol):
    """An `async def` that is given each call and the rest of its way.

    It awaits `proceed(call)` for the result (where the method answers a stream: for its asynchronous iterator) and
    returns that or another; or it raises, an RpcError to refuse the call. It may proceed more than once, where a method
    can be run twice. On the server's side it runs in the handler's context: `zmesh.context()` works.
    """

    async def __call__(self, call: InterceptedCall, proceed: Proceed, /) -> Any: ...


def around(interceptors: Sequence[Interceptor], last: Proceed) -> Proceed:
    """`last` with all interceptors around it, the first one outermost."""
    proceed = last
    for interceptor in reversed(interceptors):
        proceed = _around(interceptor, proceed)
    return proceed


def _around(interceptor: Interceptor, proceed: Proceed) -> Proceed:
    async def intercepted(call: InterceptedCall) -> Any:
        return await interceptor(call, proceed)

    return intercepted
