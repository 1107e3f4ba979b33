"""What a service may do and be: its life, its versions, what its handlers see, raise and leave behind."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import Any

import pytest

import zmesh
import zmesh.testing
from zmesh.testing import Mesh

# -- a service that is an async context manager


class Store(zmesh.Service):
    def __init__(self, events: list[str], mesh: Mesh | None = None, fails: str | None = None) -> None:
        self.events = events
        self.mesh = mesh
        self.fails = fails
        self.task: asyncio.Task[Any] | None = None

    async def __aenter__(self) -> Store:
        self.events.append("enters")
        self.task = asyncio.current_task()
        self.seen_on_entering = [line for line in self.mesh.trace if "found" in line] if self.mesh else []
        self.token = variable.set("set on entering")
        await asyncio.sleep(2)
        if self.fails == "enter":
            raise OSError("no disk")
        self.events.append("entered")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.events.append("left")
        self.left_by = asyncio.current_task()
        if self.fails == "leave":
            raise OSError("disk full")
        variable.reset(self.token)

    @zmesh.rpc
    async def put(self, seconds: float) -> str:
        assert "entered" in self.events
        await asyncio.sleep(seconds)
        assert "left" not in self.events
        self.events.append("put")
        return variable.get()


class Other(zmesh.Service):
    def __init__(self, events: list[str] | None = None) -> None:
        self.events = [] if events is None else events

    async def __aenter__(self) -> Other:
        self.events.append("other entered")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.events.append("other left")

    @zmesh.rpc
    async def hello(self) -> str:
        return "hello"


variable: ContextVar[str] = ContextVar("variable", default="unset")


@zmesh.testing.simulated()
async def test_entered_before_it_is_advertised_and_left_after_the_drain(mesh: Mesh) -> None:
    events: list[str] = []
    client = await mesh.start()
    store = Store(events, mesh)
    call = asyncio.create_task(client.node.client(Store).put(1))
    server = await mesh.start(Other(events), store, name="server")
    assert events == ["other entered", "enters", "entered"]
    assert not any("found server" in line for line in store.seen_on_entering)
    await asyncio.sleep(0.5)
    await server.stop()
    assert await call == "set on entering"
    assert events[3:] == ["put", "left", "other left"]


@zmesh.testing.simulated()
async def test_entered_and_left_by_one_task(mesh: Mesh) -> None:
    """Cancel scopes, task groups and tokens of context variables want that."""
    store = Store([])
    server = await mesh.start(store)
    await server.stop()
    assert store.left_by is store.task


@zmesh.testing.simulated()
async def test_one_that_cannot_be_entered_leaves_nothing_behind(mesh: Mesh) -> None:
    events: list[str] = []
    with pytest.raises(OSError, match="no disk"):
        await mesh.start(Other(events), Store(events, fails="enter"), listen="tcp://*:7001")
    assert events == ["other entered", "enters", "other left"]
    again = await mesh.start(Other(), listen="tcp://*:7001")
    client = await mesh.start(peers=[f"tcp://{again.address}:7001"], discovery=None)
    assert await client.node.client(Other).hello() == "hello"


def test_one_that_cannot_be_left_hinders_no_other_and_is_reported() -> None:
    events: list[str] = []

    async def main(mesh: Mesh) -> None:
        await mesh.start(Other(events), Store(events, fails="leave"))
        client = await mesh.start()
        await client.node.client(Other).hello()

    with pytest.raises(OSError, match="disk full"):
        zmesh.testing.run(main)
    assert events[-2:] == ["left", "other left"]


def test_a_port_that_is_taken_leaves_nothing_behind() -> None:
    events: list[str] = []

    async def main() -> None:
        options: dict[str, Any] = {"mesh": "test-services", "discovery": None}
        async with zmesh.Node(Other(), listen="tcp://127.0.0.1:0", **options) as node:
            taken = node.addresses[0]
            with pytest.raises(OSError, match=f"cannot listen on {taken}: Address already in use"):
                async with zmesh.Node(Other(events), listen=taken, **options):
                    pass
        assert events == ["other entered", "other left"]

    asyncio.run(asyncio.wait_for(main(), 10))


# -- names and versions


class Zmesh(zmesh.Service, name="zmesh"):
    @zmesh.rpc
    async def describe(self) -> None: ...


class Named(zmesh.Service, name="Other"):
    @zmesh.rpc
    async def hello(self) -> str:
        return "named"


def test_names_are_unique_and_the_built_in_one_is_reserved() -> None:
    with pytest.raises(ValueError, match="two services of one name on one node: Other"):
        zmesh.Node(Other(), Named(), discovery=None)
    with pytest.raises(ValueError, match="cannot be named 'zmesh'"):
        zmesh.Node(Zmesh(), discovery=None)
    with pytest.raises(TypeError, match=r"serves instances of zmesh\.Service, got .*Other'> \(give an instance"):
        zmesh.Node(Other, discovery=None)  # type: ignore[arg-type]


class One(zmesh.Service, name="Versioned", version="1.4"):
    @zmesh.rpc
    async def which(self) -> str:
        return "one"


class Two(zmesh.Service, name="Versioned", version="2.0"):
    @zmesh.rpc
    async def which(self) -> str:
        return "two"


class OneOlder(zmesh.Service, name="Versioned", version="1.0"):
    @zmesh.rpc
    async def which(self) -> str:
        return "one, older"


@zmesh.testing.simulated(seeds=range(5))
async def test_a_client_takes_nodes_of_its_major_version(mesh: Mesh) -> None:
    for service in (One(), OneOlder(), Two()):
        await mesh.start(service)
    client = await mesh.start()
    await client.node.discover()
    ones = {await client.node.client(One).which() for _ in range(20)}
    assert ones == {"one", "one, older"}
    assert {await client.node.client(Two).which() for _ in range(20)} == {"two"}
    assert {await client.node.client("Versioned").which() for _ in range(30)} == {"one", "one, older", "two"}


@zmesh.testing.simulated()
async def test_another_major_version_is_not_called_and_the_error_says_so(mesh: Mesh) -> None:
    await mesh.start(Two(), name="newer")
    client = await mesh.start()
    with pytest.raises(zmesh.Unavailable, match=r"saw 1 node \(newer\), offering Versioned; 'Versioned' is there in "
                                               r"version 2\.0;"):  # fmt: skip
        await client.node.client(One).which()


class OneNewer(zmesh.Service, name="Versioned", version="1.5"):
    @zmesh.rpc
    async def which(self) -> str:
        return "one, newer"

    @zmesh.rpc
    async def added(self) -> str:
        return "added"


@zmesh.testing.simulated()
async def test_a_client_by_name_sees_what_a_newer_release_added(mesh: Mesh) -> None:
    server, client = await mesh.start(One()), await mesh.start()
    by_name = client.node.client("Versioned")
    assert await by_name.which() == "one"
    with pytest.raises(AttributeError):
        _ = by_name.added
    await server.restart(OneNewer())
    assert await by_name.which() == "one, newer"
    assert await by_name.added() == "added"


# -- what a handler sees


class Looking(zmesh.Service):
    @zmesh.rpc
    async def look(self) -> dict[str, Any]:
        context = zmesh.context()
        await asyncio.sleep(0)
        again = zmesh.context()
        assert context.peer == again.peer
        return {
            "name": context.peer.name,
            "id": context.peer.id,
            "address": context.peer.address,
            "method": context.method,
            "remaining": context.remaining,
            "until": context.deadline - asyncio.get_running_loop().time(),
            "metadata": dict(context.metadata),
        }

    @zmesh.rpc
    def look_in_a_thread(self) -> str:
        zmesh.context().reply_metadata["from"] = "a thread"
        return f"{zmesh.context().peer.name} {zmesh.context().metadata['key']!r}"

    @zmesh.rpc
    async def call_on(self) -> list[str]:
        return [await zmesh.context().client(Other).hello(), await zmesh.context().client("Other").hello()]

    @zmesh.rpc
    async def mark(self, label: str, waits: bool) -> str:
        before = variable.get()
        variable.set(label)
        if waits:
            await asyncio.sleep(0.01)
        assert variable.get() == label
        return before

    @zmesh.rpc
    def mark_in_a_thread(self, label: str) -> str:
        before = variable.get()
        variable.set(label)
        return before

    @zmesh.rpc
    async def bounded(self, seconds: float) -> str:
        try:
            async with asyncio.timeout(seconds):
                await asyncio.sleep(5)
        except TimeoutError:
            return "timed out"
        return "slept"

    @zmesh.rpc
    async def group(self) -> str:
        async def fails() -> None:
            await asyncio.sleep(0.01)
            raise LookupError("lost")

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(fails())
                group.create_task(asyncio.sleep(10))
        except ExceptionGroup as errors:
            return str(errors.exceptions[0])
        return "no"

    @zmesh.rpc
    async def swallow(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(10)


@zmesh.testing.simulated()
async def test_the_context(mesh: Mesh) -> None:
    await mesh.start(Looking())
    await mesh.start(Other())
    client = await mesh.start(name="caller")
    looking = client.node.client(Looking)
    await looking.look()
    seen = await looking.options(timeout=3, metadata={"key": "value", "raw": b"\0"}).look()
    assert seen["name"] == "caller"
    assert seen["id"] == client.node.id
    assert seen["address"]
    assert seen["method"] == "Looking.look"
    assert 2.9 < seen["remaining"] < 3.01
    assert seen["until"] == pytest.approx(seen["remaining"])
    assert seen["metadata"] == {"key": "value", "raw": b"\0"}
    call = looking.options(metadata={"key": "value"}).look_in_a_thread()
    assert await call == "caller 'value'"
    assert call.metadata == {"from": "a thread"}
    assert await looking.call_on() == ["hello", "hello"]
    with pytest.raises(RuntimeError, match=r"zmesh\.context\(\) is for handlers"):
        zmesh.context()
    with pytest.raises(RuntimeError, match="here no such call is running"):
        await Looking().look()


@zmesh.testing.simulated()
async def test_variables_do_not_leak_between_calls(mesh: Mesh) -> None:
    await mesh.start(Looking())
    client = await mesh.start()
    looking = client.node.client(Looking)
    await looking.look()
    for waits in (False, True):
        assert [await looking.mark(str(n), waits) for n in range(5)] == ["unset"] * 5
        assert await asyncio.gather(*(looking.mark(str(n), waits) for n in range(100))) == ["unset"] * 100
    assert [await looking.mark_in_a_thread(str(n)) for n in range(5)] == ["unset"] * 5
    assert variable.get() == "unset"


@zmesh.testing.simulated()
async def test_timeouts_and_task_groups_in_handlers(mesh: Mesh) -> None:
    await mesh.start(Looking())
    client = await mesh.start()
    looking = client.node.client(Looking)
    assert await asyncio.gather(*(looking.bounded(0.5) for _ in range(20))) == ["timed out"] * 20
    assert await looking.bounded(6) == "slept"
    assert await looking.group() == "lost"
    with pytest.raises(zmesh.DeadlineExceeded):
        await looking.options(timeout=0.1).swallow()
    await asyncio.sleep(0.1)
    assert await looking.group() == "lost"  # nothing of a swallowed cancellation is left
    assert await looking.bounded(0.5) == "timed out"
    with pytest.raises(zmesh.DeadlineExceeded):
        await looking.options(timeout=1).bounded(3)
    assert await looking.bounded(0.5) == "timed out"


def test_a_context_variable_set_in_a_thread_stays_there() -> None:
    async def main() -> None:
        options: dict[str, Any] = {"mesh": "test-services", "listen": "tcp://127.0.0.1:0", "discovery": None}
        async with (
            zmesh.Node(Looking(), threads=1, **options) as server,
            zmesh.Node(peers=server.addresses[:1], name="caller", **options) as node,
        ):
            looking = node.client(Looking)
            assert [await looking.mark_in_a_thread(str(n)) for n in range(5)] == ["unset"] * 5
            assert [await looking.mark(str(n), True) for n in range(5)] == ["unset"] * 5
            call = looking.options(metadata={"key": b"v"}).look_in_a_thread()
            assert await call == "caller b'v'"
            assert call.metadata == {"from": "a thread"}

    asyncio.run(asyncio.wait_for(main(), 10))


# -- what a handler raises


class OutOfSpoons(zmesh.NotFound):
    """A subclass of the user's own."""


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Strange(BaseException):
    """Neither an Exception nor one that ends the process."""


class Raising(zmesh.Service):
    def __init__(self) -> None:
        self.ran = 0

    def make(self, kind: str) -> BaseException:
        self.ran += 1
        return {
            "lookup": lambda: LookupError("lost"),
            "key": lambda: KeyError("spoon"),
            "stop": lambda: StopIteration(5),
            "stop_async": lambda: StopAsyncIteration(),
            "cancelled": lambda: asyncio.CancelledError("me"),
            "timeout": lambda: TimeoutError("slow"),
            "strange": lambda: Strange("odd"),
            "generator_exit": lambda: GeneratorExit(),
            "unprintable": lambda: Unprintable(),
            "group": lambda: ExceptionGroup("several", [ValueError("one")]),
            "surrogate": lambda: ValueError("\ud800"),
            "spoons": lambda: OutOfSpoons("no spoon", details={"key": "spoon", "n": [1, {"a": b"\0"}]}),
            "exception_as_text": lambda: zmesh.NotFound(KeyError("spoon")),  # type: ignore[arg-type]
            "surrogate_text": lambda: zmesh.NotFound("\ud800"),
            "list_details": lambda: zmesh.NotFound("x", details=["a", "b"]),  # type: ignore[arg-type]
            "object_details": lambda: zmesh.NotFound("x", details={"o": object()}),
            "deep_details": lambda: zmesh.NotFound("x", details={"o": nest(100)}),
            "key_details": lambda: zmesh.NotFound("x", details={1: 2}),  # type: ignore[dict-item]
            "plain": lambda: zmesh.RpcError("just an error"),
            "maybe": lambda: zmesh.MaybeExecuted("who knows"),
            "unavailable": lambda: zmesh.Unavailable("our database"),
        }[kind]()

    @zmesh.rpc
    async def fail(self, kind: str) -> None:
        raise self.make(kind)

    @zmesh.rpc
    async def fail_late(self, kind: str) -> None:
        await asyncio.sleep(0.01)
        raise self.make(kind)

    @zmesh.rpc
    def fail_in_a_thread(self, kind: str) -> None:
        raise self.make(kind)

    @zmesh.rpc
    async def fine(self) -> str:
        return "fine"

    @zmesh.rpc
    async def with_code(self, code: int, details: dict[str, Any]) -> None:
        raise zmesh.errors.error_class(code)("on purpose", details=details)

    @zmesh.rpc
    async def call_on(self, kind: str) -> None:
        await zmesh.context().client(Inner).fail(kind)


class Inner(zmesh.Service):
    @zmesh.rpc
    async def fail(self, kind: str) -> None:
        raise Raising().make(kind)


def nest(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


METHODS = ["fail", "fail_late", "fail_in_a_thread"]

# kind: (class, code, part of the message, remote type)
ANSWERS: Mapping[str, tuple[type[zmesh.RpcError], str, str | None]] = {
    "lookup": (zmesh.Internal, "LookupError: lost", "LookupError"),
    "key": (zmesh.Internal, "KeyError: 'spoon'", "KeyError"),
    "stop": (zmesh.Internal, "StopIteration", "RuntimeError"),
    "stop_async": (zmesh.Internal, "StopAsyncIteration", None),
    "timeout": (zmesh.Internal, "TimeoutError: slow", "TimeoutError"),
    "strange": (zmesh.Internal, "Strange: odd", None),
    "generator_exit": (zmesh.Internal, "GeneratorExit", None),
    "unprintable": (zmesh.Internal, "Unprintable", "Unprintable"),
    "group": (zmesh.Internal, "several", "ExceptionGroup"),
    "surrogate": (zmesh.Internal, "ValueError", "ValueError"),
    "cancelled": (zmesh.Cancelled, "was cancelled at 'raiser'", None),
    "spoons": (zmesh.NotFound, "no spoon", None),
    "exception_as_text": (zmesh.NotFound, "spoon", None),
    "surrogate_text": (zmesh.NotFound, "", None),
    "list_details": (zmesh.Internal, "details is a mapping", None),
    "object_details": (zmesh.NotFound, "x", None),
    "deep_details": (zmesh.NotFound, "x", None),
    "key_details": (zmesh.NotFound, "x", None),
    "plain": (zmesh.Unknown, "just an error", None),
    "maybe": (zmesh.Unknown, "who knows", None),
    "unavailable": (zmesh.Unavailable, "our database", None),
}


@pytest.mark.parametrize("kind", ANSWERS)
@pytest.mark.parametrize("method", METHODS)
def test_whatever_a_handler_raises_is_answered_and_harms_no_other_call(method: str, kind: str) -> None:
    async def main(mesh: Mesh) -> None:
        raising = Raising()
        await mesh.start(raising, name="raiser")
        client = await mesh.start()
        caller = client.node.client(Raising)
        await caller.fine()
        began = mesh.now
        results = await asyncio.gather(
            caller.fine(), getattr(caller, method)(kind), caller.fine(), return_exceptions=True
        )
        assert mesh.now - began < 1
        assert (results[0], results[2]) == ("fine", "fine")
        error = results[1]
        cls, text, remote_type = ANSWERS[kind]
        assert type(error) is cls
        assert text in error.message
        assert error.node == "raiser"
        assert error.may_have_run
        assert raising.ran == 1  # whatever its code says, what ran is not tried again
        assert error.remote_traceback is None
        if remote_type is not None:
            assert error.remote_type == remote_type
        if kind == "spoons":
            assert error.details == {"key": "spoon", "n": [1, {"a": b"\0"}]}
        assert await caller.fine() == "fine"

    logging.getLogger("zmesh").setLevel(logging.CRITICAL)
    try:
        zmesh.testing.run(main)
    finally:
        logging.getLogger("zmesh").setLevel(logging.NOTSET)


@zmesh.testing.simulated()
async def test_codes_and_details_travel(mesh: Mesh) -> None:
    await mesh.start(Raising(), name="raiser")
    client = await mesh.start()
    raising = client.node.client(Raising)
    for code in zmesh.Code:
        if code is zmesh.Code.OK:
            continue
        with pytest.raises(zmesh.RpcError) as caught:
            await raising.with_code(int(code), {"code": int(code)})
        assert caught.value.code is code
        assert type(caught.value).code is code
        assert caught.value.message == "on purpose"
        assert caught.value.details == {"code": int(code)}
        assert str(caught.value) == f"{code.name}: on purpose [said by raiser]"


@zmesh.testing.simulated()
async def test_an_error_passes_through_nodes(mesh: Mesh) -> None:
    await mesh.start(Raising(), name="raiser")
    await mesh.start(Inner(), name="inner")
    client = await mesh.start()
    with pytest.raises(zmesh.NotFound, match="no spoon") as caught:
        await client.node.client(Raising).call_on("spoons")
    assert caught.value.details["key"] == "spoon"
    assert caught.value.node == "raiser"


@pytest.mark.parametrize("allowed", [False, True])
@zmesh.testing.simulated()
async def test_tracebacks_travel_only_where_the_node_allows_it(mesh: Mesh, allowed: bool) -> None:
    await mesh.start(Raising(), config=zmesh.Config(send_tracebacks=allowed))
    client = await mesh.start(config=zmesh.Config(send_tracebacks=True))
    for method in METHODS:
        with pytest.raises(zmesh.Internal) as caught:
            await getattr(client.node.client(Raising), method)("lookup")
        assert caught.value.remote_type == "LookupError"
        if allowed:
            assert caught.value.remote_traceback is not None
            assert f"in {method}\n" in caught.value.remote_traceback
            assert "The remote traceback was:" in str(caught.value)
        else:
            assert caught.value.remote_traceback is None
            assert "Traceback" not in str(caught.value)


class Exiting(zmesh.Service):
    @zmesh.rpc
    async def leave(self) -> None:
        raise SystemExit(3)


def test_sys_exit_in_a_handler_is_answered_and_ends_the_process() -> None:
    errors: list[BaseException] = []

    async def main() -> None:
        options: dict[str, Any] = {"mesh": "test-services", "listen": "tcp://127.0.0.1:0", "discovery": None}
        async with (
            zmesh.Node(Exiting(), **options) as server,
            zmesh.Node(peers=server.addresses[:1], **options) as node,
        ):
            try:
                await node.client(Exiting).leave()
            except zmesh.RpcError as error:
                errors.append(error)

    began = time.monotonic()
    with pytest.raises(SystemExit) as caught:
        asyncio.run(main())
    assert caught.value.code == 3
    assert time.monotonic() - began < 5
