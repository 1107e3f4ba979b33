"""The blocking face: from threads, beside other loops, under Ctrl-C, at the end of the process, in a forked child."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import types
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import zmesh
import zmesh.sync
from zmesh.sync._background import Background
from zmesh.sync._streams import _AHEAD, _Pump

pytestmark = pytest.mark.timeout(60)

LOCAL: dict[str, Any] = {"mesh": "test-sync", "discovery": None}
SECONDS = 20  # for what must happen: longer than any machine takes


class Greeter(zmesh.Service):
    """Says hello."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.cancelled = threading.Event()
        self.own: zmesh.Mesh | None = None  # that serves this
        self.mesh: zmesh.Mesh | None = None  # that calls it

    @zmesh.rpc
    async def say_hello(self, name: str, *, mark: str = "!") -> str:
        return f"Hello, {name}{mark}"

    @zmesh.rpc(idempotent=True)
    def shout(self, text: str) -> str:
        return text.upper()

    @zmesh.rpc
    async def find(self, key: str) -> str:
        raise zmesh.NotFound(f"no {key}", details={"key": key})

    @zmesh.rpc
    async def tenant(self) -> str:
        zmesh.context().reply_metadata["seen"] = "yes"
        return str(zmesh.context().metadata.get("tenant"))

    @zmesh.rpc
    async def wait(self) -> None:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()

    @zmesh.rpc
    def ask_in_thread(self, name: str) -> str:
        assert self.mesh is not None
        answer: str = self.mesh.client(Greeter).say_hello(name)
        return answer

    @zmesh.rpc
    async def left(self) -> float:
        return zmesh.context().remaining

    @zmesh.rpc
    async def left_of_stream(self) -> AsyncIterator[float]:
        yield zmesh.context().remaining
        yield zmesh.context().remaining

    @zmesh.rpc
    def left_behind_a_thread(self) -> list[float]:
        assert self.mesh is not None
        client = self.mesh.client(Greeter)
        return [client.left(), client.options(timeout=100).left(), *client.left_of_stream()]

    @zmesh.rpc
    async def ask_on_the_loop(self) -> str:
        assert self.own is not None
        with pytest.raises(RuntimeError) as refused:
            self.own.client(Greeter)
        with pytest.raises(RuntimeError, match="wait for itself"):
            self.own.close()
        return str(refused.value)


class Fragile(zmesh.Service):
    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *error: object) -> None:
        raise LookupError("lost the key")


class Streams(zmesh.Service):
    """Streams as the tour has them; on a plain instance they run here, as a client's are to do over the network."""

    def __init__(self) -> None:
        self.given = 0
        self.begun = threading.Event()
        self.left = threading.Event()
        self.threads: set[str] = set()

    @zmesh.rpc
    async def countdown(self, start: int) -> AsyncIterator[int]:
        for n in range(start, 0, -1):
            yield n

    @zmesh.rpc
    async def forever(self) -> AsyncIterator[int]:
        self.threads.add(threading.current_thread().name)
        try:
            for n in itertools.count():
                self.given += 1
                yield n
                await asyncio.sleep(0)
        finally:
            self.left.set()

    @zmesh.rpc
    async def silent(self) -> AsyncIterator[int]:
        self.begun.set()
        try:
            await asyncio.Event().wait()
            yield 0
        finally:
            self.left.set()

    @zmesh.rpc
    async def broken(self) -> AsyncIterator[int]:
        yield 1
        raise zmesh.NotFound("no second")

    @zmesh.rpc
    async def total(self, numbers: AsyncIterator[int], *, first: int = 0) -> int:
        return first + sum([n async for n in numbers])

    @zmesh.rpc
    async def first_of(self, numbers: AsyncIterator[int]) -> int:
        async for n in numbers:
            return n
        raise zmesh.OutOfRange("none")

    @zmesh.rpc
    async def echo(self, lines: AsyncIterator[str]) -> AsyncIterator[str]:
        async for line in lines:
            yield line


class Reply(types.SimpleNamespace):
    pass


class LocalNode:
    """Stands for a node: its clients are a plain instance, so that streams run without a network."""

    def __init__(self, service: Any) -> None:
        self.service = service
        self.name, self.id, self.addresses = "local", "00", ()
        self.left = False

    async def __aenter__(self) -> LocalNode:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.left = True

    def client(self, service: Any) -> Any:
        return self.service

    def scatter(self, method: Any, *, to: str, expect: int = 0) -> Callable[..., AsyncIterator[Reply]]:
        async def replies(*args: Any) -> AsyncIterator[Reply]:
            for number in range(expect):
                value = await getattr(self.service, method.name)(*args)
                yield Reply(node=f"{to}-{number}", value=value)

        return replies


@pytest.fixture
def greeter() -> Greeter:
    return Greeter()


@pytest.fixture
def server(greeter: Greeter) -> Iterator[zmesh.Mesh]:
    with zmesh.connect(greeter, listen="tcp://127.0.0.1:0", name="server", **LOCAL) as server:
        greeter.own = server
        yield server


@pytest.fixture
def mesh(server: zmesh.Mesh, greeter: Greeter) -> Iterator[zmesh.Mesh]:
    with zmesh.connect(peers=server.addresses, **LOCAL) as mesh:
        greeter.mesh = mesh
        yield mesh


@pytest.fixture
def streams() -> Streams:
    return Streams()


@pytest.fixture
def local(streams: Streams) -> Iterator[zmesh.Mesh]:
    with zmesh.Mesh(LocalNode(streams)) as mesh:  # type: ignore[arg-type]
        yield mesh


def in_thread(function: Callable[[], Any]) -> ThreadResult:
    return ThreadResult(function)


class ThreadResult:
    """What a function does in a thread that nobody has to join."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._error: BaseException | None = None
        self._value: Any = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value = self._function()
        except BaseException as error:
            self._error = error

    def get(self) -> Any:
        self._thread.join(SECONDS)
        assert not self._thread.is_alive(), "it hangs"
        if self._error is not None:
            raise self._error
        return self._value


def tasks_of(mesh: zmesh.Mesh) -> set[str]:
    """The names of what runs on the mesh's loop."""
    names: set[str] = mesh._run(lambda: {task.get_name() for task in asyncio.all_tasks()})
    return names


# -- the tour without async


def test_the_tour(mesh: zmesh.Mesh) -> None:
    assert mesh.client("Greeter").say_hello("World") == "Hello, World!"
    assert mesh.client("Greeter").say_hello(name="World", mark="?") == "Hello, World?"
    assert mesh.client(Greeter).say_hello("World", mark=".") == "Hello, World."
    assert mesh.call(Greeter.say_hello)("World") == "Hello, World!"
    assert mesh.call(Greeter.shout, timeout=5)("World") == "WORLD"
    assert mesh.call(Greeter.tenant, metadata={"tenant": "a"})() == "a"
    assert [peer.name for peer in mesh.peers] == ["server"]
    assert [peer.services for peer in mesh.discover(expect=1)] == [{"Greeter": "1.0"}]


def test_who_it_is(server: zmesh.Mesh, mesh: zmesh.Mesh) -> None:
    assert server.name == "server"
    assert len(bytes.fromhex(server.id)) == 16
    assert server.addresses[0].startswith("tcp://127.0.0.1:")
    assert mesh.addresses == ()
    assert repr(server) == "<zmesh.Mesh of <zmesh.Node server (Greeter) in mesh test-sync>>"
    assert repr(mesh.client(Greeter)) == "<blocking client of Greeter>"
    assert repr(mesh.client("Greeter")) == "<blocking client of 'Greeter', by name>"


def test_options_and_what_comes_with_an_answer(mesh: zmesh.Mesh) -> None:
    for client in (mesh.client(Greeter), mesh.client("Greeter")):
        fast = client.options(timeout=5, metadata={"tenant": "a"})
        assert fast.options(timeout=4).tenant() == "a"
        assert client.tenant() == "None"
        answer, call = fast.tenant.with_call()
        assert (answer, call.node, dict(call.metadata)) == ("a", "server", {"seen": "yes"})
        _, call = client.options(explain=True).tenant.with_call()
        assert [attempt.node for attempt in zmesh.explain(call).attempts] == ["server"]
        with pytest.raises(zmesh.DeadlineExceeded):
            client.options(timeout=0.1).wait()
        with pytest.raises(TypeError, match="color"):
            client.options(color="red")
        with pytest.raises(ValueError, match="timeout is a positive number"):
            client.options(timeout=-1)
    with pytest.raises(TypeError, match="color"):
        mesh.call(Greeter.tenant, color="red")


def test_where_a_call_would_go_and_what_calls_met(mesh: zmesh.Mesh) -> None:
    mesh.discover(expect=1)
    for method in (Greeter.tenant, "Greeter.tenant"):
        choice = mesh.explain(method).choice
        assert choice is not None
        assert choice.node == "server"
    assert [peer["name"] for peer in mesh.stats()["peers"].values()] == ["server"]


def test_any_option_of_the_asynchronous_client_passes() -> None:
    class Client:
        def __init__(self, **given: Any) -> None:
            self.given = given

        def options(self, **options: Any) -> Client:
            return Client(**{**self.given, **options})

        async def tell(self) -> dict[str, Any]:
            return self.given

    with zmesh.Mesh(LocalNode(Client())) as mesh:  # type: ignore[arg-type]
        client = mesh.client("Any").options(key="user-42", hedge_after=0.02)
        assert client.options(node="greeter-1").tell() == {"key": "user-42", "hedge_after": 0.02, "node": "greeter-1"}


def test_a_typo_is_an_attribute_error(mesh: zmesh.Mesh) -> None:
    with pytest.raises(AttributeError, match="'Greeter' object has no attribute 'say_helo'"):
        mesh.client(Greeter).say_helo("World")
    with pytest.raises(AttributeError, match=r"service 'Greeter' has no method 'say_helo'; it has say_hello, "):
        mesh.client("Greeter").say_helo("World")
    for client in (mesh.client(Greeter), mesh.client("Greeter")):
        assert not hasattr(client, "_repr_html_")
    assert {"options", "say_hello", "shout"} <= set(dir(mesh.client(Greeter)))
    with pytest.raises(TypeError, match=r"say_hello\(\) missing 1 required positional argument: 'name'"):
        mesh.client(Greeter).say_hello()
    for wrong in ("Greeter.say_hello", Greeter().say_hello, Greeter):
        with pytest.raises(TypeError, match="takes a method of a Service class, like"):
            mesh.call(wrong)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="takes a Service class or a service's name"):
        mesh.client(5)  # type: ignore[arg-type]


def test_an_error_keeps_its_type_and_tells_where(mesh: zmesh.Mesh) -> None:
    for client in (mesh.client(Greeter), mesh.client("Greeter")):
        with pytest.raises(zmesh.NotFound, match="no spoon") as raised:
            client.find("spoon")
        error = raised.value
        assert (error.details, error.node, error.may_have_run) == ({"key": "spoon"}, "server", True)
        files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        assert files[0] == __file__
        assert "/zmesh/" in files[-1]  # where it came to light
        assert len(files) < 10
    with zmesh.connect(config=zmesh.Config(patience=0.05), **LOCAL) as alone:
        clock = alone.client("Clock")
        with pytest.raises(zmesh.Unavailable, match="no node offers 'Clock'"):
            clock.now()


def test_connect_takes_what_a_node_takes() -> None:
    node, connect = inspect.signature(zmesh.Node).parameters, inspect.signature(zmesh.connect).parameters
    assert {name: (each.kind, each.default, each.annotation) for name, each in connect.items()} == {
        name: (each.kind, each.default, each.annotation) for name, each in node.items() if name != "_platform"
    }


def test_connect_raises_what_a_node_raises() -> None:
    with pytest.raises(ValueError, match="capacity is a positive number"):
        zmesh.connect(capacity=0)
    with pytest.raises(TypeError, match="give an instance, not the class"):
        zmesh.connect(Greeter)  # type: ignore[arg-type]
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="ddress"):
        zmesh.connect(Greeter(), listen=f"tcp://127.0.0.1:{taken.getsockname()[1]}", **LOCAL)


def test_it_runs_without_uvloop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    with zmesh.connect(Greeter(), listen="tcp://127.0.0.1:0", **LOCAL) as server:
        assert isinstance(server._background.loop, asyncio.SelectorEventLoop)
        with zmesh.connect(peers=server.addresses, **LOCAL) as mesh:
            assert mesh.client(Greeter).say_hello("World") == "Hello, World!"


def test_a_drained_server_takes_no_calls(server: zmesh.Mesh, mesh: zmesh.Mesh) -> None:
    client = mesh.client(Greeter).options(timeout=0.2)
    assert client.say_hello("World") == "Hello, World!"
    server.drain()
    with pytest.raises(zmesh.RpcError):
        client.say_hello("World")


# -- threads


def test_many_threads_get_their_own_answers(mesh: zmesh.Mesh) -> None:
    typed, named, call = mesh.client(Greeter), mesh.client("Greeter"), mesh.call(Greeter.say_hello)

    def work(thread: int) -> list[str]:
        say_hello = (typed.say_hello, named.say_hello, call)[thread % 3]
        return [say_hello(f"{thread}.{number}") for number in range(40)]

    with ThreadPoolExecutor(64) as threads:
        for thread, answers in enumerate(threads.map(work, range(64))):
            assert answers == [f"Hello, {thread}.{number}!" for number in range(40)]
    assert not mesh._background.waiting


def test_an_interceptor_has_a_task_and_the_callers_variables(server: zmesh.Mesh) -> None:
    variable = contextvars.ContextVar("variable", default="")
    seen: list[str] = []

    async def look(call: zmesh.InterceptedCall, proceed: Any) -> Any:
        async with asyncio.timeout(SECONDS):  # which asks for the task
            seen.append(variable.get())
            return await proceed(call)

    with zmesh.connect(peers=server.addresses, client_interceptors=[look], **LOCAL) as mesh:
        client = mesh.client(Greeter)
        variable.set("mine")
        assert client.say_hello("World") == "Hello, World!"
        assert in_thread(lambda: client.say_hello("World")).get() == "Hello, World!"
    assert seen == ["mine", ""]


def test_what_fails_on_the_loop_keeps_nothing_behind_it_from_being_called() -> None:
    with zmesh.connect(**LOCAL) as mesh:
        loop, soon, called = mesh._background.loop, mesh._background.soon, threading.Event()
        loop.set_exception_handler(lambda loop, context: None)
        held, go_on = threading.Event(), threading.Event()
        # So that both are there when it looks.
        loop.call_soon_threadsafe(lambda: (held.set(), go_on.wait(SECONDS)))
        assert held.wait(SECONDS)
        soon(lambda: 1 / 0)
        soon(called.set)
        go_on.set()
        assert called.wait(SECONDS)
    with pytest.raises(RuntimeError, match="closed"):
        soon(called.set)


def test_a_plain_handler_may_call(mesh: zmesh.Mesh) -> None:
    assert mesh.client(Greeter).ask_in_thread("World") == "Hello, World!"


def test_what_a_plain_handler_calls_inherits_its_deadline(mesh: zmesh.Mesh) -> None:
    left = mesh.client(Greeter).options(timeout=SECONDS).left_behind_a_thread()
    assert len(left) == 4
    assert max(left) <= SECONDS  # not the 100 s that it asks for, and no stream without an end


def test_in_a_handler_on_the_loop_it_is_an_error_and_no_deadlock(mesh: zmesh.Mesh) -> None:
    assert "would wait for itself: in an `async def` handler, await" in mesh.client(Greeter).ask_on_the_loop()


def test_in_a_coroutine_it_is_an_error(mesh: zmesh.Mesh) -> None:
    client, say_hello = mesh.client(Greeter), mesh.client(Greeter).say_hello
    stall = "a blocking call in a coroutine would stall its event loop: use `async with zmesh.Node"

    async def main() -> str:
        for use in (lambda: client.say_hello("World"), lambda: mesh.peers, lambda: zmesh.connect(**LOCAL)):
            with pytest.raises(RuntimeError, match=stall):
                use()
        return await asyncio.to_thread(say_hello, "World")

    assert asyncio.run(main()) == "Hello, World!"


def test_in_a_notebook_it_may_be_called_in_a_running_loop(mesh: zmesh.Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    async def cell() -> str:
        with zmesh.connect(**LOCAL):
            pass
        return mesh.client(Greeter).say_hello("World")  # type: ignore[no-any-return]

    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=object))
    assert asyncio.run(cell()) == "Hello, World!"
    # A program that has IPython loaded is no notebook.
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: None))
    with pytest.raises(RuntimeError, match="would stall its event loop"):
        asyncio.run(cell())


def test_in_a_callback_of_another_loop_it_works(mesh: zmesh.Mesh) -> None:
    loop = asyncio.new_event_loop()
    answers: list[str] = []
    loop.call_soon(lambda: answers.append(mesh.client(Greeter).say_hello("World")))
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    assert answers == ["Hello, World!"]


# -- Ctrl-C


def interrupt_in(function: Callable[..., Any], after: threading.Event) -> None:
    """Send this process what Ctrl-C sends, once the main thread waits in `function`."""
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        assert after.wait(SECONDS)
        while sys._current_frames()[main].f_code is not function.__code__:
            time.sleep(0.001)
        signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()


@pytest.mark.parametrize("service", [Greeter, "Greeter"])
def test_ctrl_c_cancels_the_call(mesh: zmesh.Mesh, greeter: Greeter, service: Any) -> None:
    client = mesh.client(service)
    assert client.say_hello("World") == "Hello, World!"
    before = tasks_of(mesh)
    interrupt_in(Background.run, after=greeter.begun)
    with pytest.raises(KeyboardInterrupt):
        client.wait()
    assert greeter.cancelled.wait(SECONDS)  # the server was told
    assert client.say_hello("World") == "Hello, World!"
    assert len(tasks_of(mesh)) == len(before)
    assert not mesh._background.waiting


def test_ctrl_c_ends_a_stream(local: zmesh.Mesh, streams: Streams) -> None:
    stream = local.client(Streams).silent()
    interrupt_in(_Pump.take, after=streams.begun)
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    assert streams.left.wait(SECONDS)
    with pytest.raises(StopIteration):
        next(stream)
    assert list(local.client(Streams).countdown(2)) == [2, 1]


# -- closing


def test_a_closed_mesh_says_so(server: zmesh.Mesh) -> None:
    mesh = zmesh.connect(peers=server.addresses, **LOCAL)
    client = mesh.client(Greeter)
    assert client.say_hello("World") == "Hello, World!"
    mesh.close()
    mesh.close()
    uses: list[Callable[[], Any]] = [
        lambda: client.say_hello("World"),
        lambda: mesh.client(Greeter),
        lambda: mesh.call(Greeter.say_hello),
        lambda: mesh.peers,
        mesh.discover,
        mesh.drain,
        mesh.__enter__,
    ]
    for use in uses:
        with pytest.raises(RuntimeError, match=r"this Mesh is closed: connect\(\) again"):
            use()
    assert repr(mesh).endswith(", closed>")
    assert not mesh._background._thread.is_alive()


def test_a_call_that_comes_just_too_late_is_told_the_same(server: zmesh.Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = zmesh.connect(peers=server.addresses, **LOCAL)
    client = mesh.client(Greeter)
    mesh.close()
    monkeypatch.setattr(Background, "check", lambda self: None)
    with pytest.raises(RuntimeError, match="this Mesh is closed"):
        client.options(timeout=1)
    assert not mesh._background.waiting


def test_closing_ends_what_other_threads_wait_for(server: zmesh.Mesh, greeter: Greeter) -> None:
    mesh = zmesh.connect(peers=server.addresses, **LOCAL)
    waiting = [in_thread(mesh.client(service).options(timeout=60).wait) for service in (Greeter, "Greeter")]
    assert greeter.begun.wait(SECONDS)
    mesh.close()
    for each in waiting:
        with pytest.raises((zmesh.RpcError, RuntimeError), match="closed"):
            each.get()


def test_threads_that_call_while_it_closes_all_end(server: zmesh.Mesh) -> None:
    for _ in range(5):
        mesh = zmesh.connect(peers=server.addresses, **LOCAL)
        say_hello = mesh.client(Greeter).say_hello
        assert say_hello("World") == "Hello, World!"

        def call_on(say_hello: Callable[[str], str] = say_hello) -> None:
            while True:
                say_hello("World")

        callers = [in_thread(call_on) for _ in range(8)]
        mesh.close()
        for each in callers:
            with pytest.raises((zmesh.RpcError, RuntimeError), match="closed"):
                each.get()
        assert not mesh._background.waiting


def test_closing_ends_a_stream_that_another_thread_reads(streams: Streams) -> None:
    mesh = zmesh.Mesh(LocalNode(streams))  # type: ignore[arg-type]
    stream = mesh.client(Streams).silent()
    waiting = in_thread(lambda: next(stream))
    mesh.close()
    with pytest.raises((zmesh.Cancelled, RuntimeError), match="closed"):
        waiting.get()
    assert streams.left.is_set()
    stream.close()
    with pytest.raises(RuntimeError, match="this Mesh is closed"):
        next(stream)


def test_a_task_that_refuses_to_end_does_not_keep_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zmesh.sync._background._EXIT_GRACE", 0.05)

    async def stubborn() -> None:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if released:
                    raise

    released: list[bool] = []
    mesh = zmesh.Mesh(LocalNode(None))  # type: ignore[arg-type]
    task = mesh._run(lambda: [asyncio.get_running_loop().create_task(stubborn())])[0]
    mesh.close()
    released.append(True)
    task.get_coro().close()  # or it is noticed as a pending task that was destroyed
    task._log_destroy_pending = False


def test_a_mesh_that_nobody_holds_is_closed(server: zmesh.Mesh) -> None:
    mesh = zmesh.connect(peers=server.addresses, **LOCAL)
    say_hello = mesh.client(Greeter).say_hello
    thread = mesh._background._thread
    del mesh
    gc.collect()
    assert say_hello("World") == "Hello, World!"  # a client holds it
    del say_hello
    gc.collect()
    thread.join(SECONDS)
    assert not thread.is_alive()


def test_what_a_service_is_left_with_is_raised() -> None:
    mesh = zmesh.connect(Fragile(), listen="tcp://127.0.0.1:0", **LOCAL)
    with pytest.raises(LookupError, match="lost the key"):
        mesh.close()
    mesh.close()


# -- streams


def test_a_stream_is_iterated(local: zmesh.Mesh, streams: Streams) -> None:
    client = local.client(Streams)
    assert list(client.countdown(3)) == [3, 2, 1]
    assert list(client.countdown(1000)) == list(range(1000, 0, -1))
    assert list(client.countdown(0)) == []
    assert list(local.call(Streams.countdown)(3)) == [3, 2, 1]
    stream = client.countdown(2)
    assert isinstance(stream, zmesh.sync.Stream)
    assert iter(stream) is stream
    assert [next(stream), next(stream)] == [2, 1]
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(stream)
    stream.close()
    with pytest.raises(TypeError, match="start"):
        client.countdown()


def test_a_stream_ends_with_its_error(local: zmesh.Mesh) -> None:
    stream = local.client(Streams).broken()
    assert next(stream) == 1
    with pytest.raises(zmesh.NotFound, match="no second"):
        next(stream)
    with pytest.raises(StopIteration):
        next(stream)


def test_few_items_are_fetched_ahead(local: zmesh.Mesh, streams: Streams) -> None:
    stream = local.client(Streams).forever()
    assert [next(stream) for _ in range(100)] == list(range(100))
    assert next(iter(streams.threads)).startswith("zmesh ")
    for _ in range(50):  # turns of the loop, each of which would be enough for an item
        local._run(asyncio.sleep, 0)
    assert 100 < streams.given <= 100 + _AHEAD
    assert [next(stream) for _ in range(100)] == list(range(100, 200))


@pytest.mark.parametrize("how", ["close", "with", "break", "forgotten", "never read", "error"])
def test_a_stream_that_is_left_early_is_closed(local: zmesh.Mesh, streams: Streams, how: str) -> None:
    stream = local.client(Streams).forever()
    if how == "never read":
        del stream
    elif how == "close":
        assert next(stream) == 0
        stream.close()
        assert streams.left.is_set()  # close() has waited for it
        assert list(stream) == []
        stream.close()
    elif how == "with":
        with stream as entered:
            assert next(entered) == 0
        assert streams.left.is_set()
    elif how == "break":
        del stream
        for n in local.client(Streams).forever():
            if n == 30:
                break
    elif how == "error":
        with pytest.raises(ZeroDivisionError), stream:
            _ = 1 // next(stream)
    else:
        assert next(stream) == 0
        del stream
    assert streams.left.wait(SECONDS)


def test_an_iterable_is_streamed(local: zmesh.Mesh) -> None:
    client = local.client(Streams)
    assert client.total([1, 2, 3]) == 6
    assert client.total(numbers=range(1000)) == 499500
    assert client.total((n for n in range(5)), first=5) == 15
    assert client.total([]) == 0
    assert list(client.echo(str(n) for n in range(100))) == [str(n) for n in range(100)]
    assert list(client.echo(lines=["a", "b"])) == ["a", "b"]

    async def numbers() -> AsyncIterator[int]:
        yield 4

    assert client.total(numbers()) == 4
    with pytest.raises(TypeError):
        client.total(5)
    with pytest.raises(TypeError):
        client.total()


def test_by_name_an_iterator_is_streamed(local: zmesh.Mesh) -> None:
    client = local.client("Streams")
    assert client.total(iter([1, 2, 3])) == 6
    assert client.total(numbers=(n for n in range(5)), first=1) == 11
    assert list(client.echo(iter(["a", "b"]))) == ["a", "b"]
    with pytest.raises(TypeError, match="list"):
        client.total([1, 2, 3])


def test_an_iterable_is_read_in_a_thread_of_its_own_with_the_callers_variables(local: zmesh.Mesh) -> None:
    variable = contextvars.ContextVar("variable", default="")
    variable.set("the caller's")
    seen: set[tuple[str, str]] = set()

    def numbers() -> Iterator[int]:
        for n in range(50):
            seen.add((threading.current_thread().name, variable.get()))
            yield n

    assert local.client(Streams).total(numbers()) == sum(range(50))
    assert seen == {("zmesh feed", "the caller's")}


def test_an_iterable_may_block(local: zmesh.Mesh) -> None:
    sent, come_back = threading.Semaphore(0), threading.Semaphore(0)

    def lines() -> Iterator[str]:
        for n in range(3):
            yield str(n)
            sent.release()
            assert come_back.acquire(timeout=SECONDS)

    answers = local.client(Streams).echo(lines())
    for n in range(3):  # each answer is here before the next line is: nothing waits for a full batch
        assert next(answers) == str(n)
        assert sent.acquire(timeout=SECONDS)
        come_back.release()
    assert list(answers) == []


def test_an_error_of_the_iterable_reaches_the_caller(local: zmesh.Mesh) -> None:
    def numbers() -> Iterator[int]:
        yield 1
        raise LookupError("no more numbers")

    with pytest.raises(LookupError, match="no more numbers"):
        local.client(Streams).total(numbers())
    answers = local.client(Streams).echo(map(str, numbers()))
    assert next(answers) == "1"
    with pytest.raises(LookupError, match="no more numbers"):
        next(answers)


@pytest.mark.parametrize("method", ["first_of", "echo"])
def test_an_iterable_is_read_a_little_ahead_and_no_further_than_the_call(local: zmesh.Mesh, method: str) -> None:
    read = 0
    stopped = threading.Event()

    def numbers() -> Iterator[Any]:
        nonlocal read
        try:
            while True:
                read += 1
                yield read
        finally:
            stopped.set()

    if method == "first_of":
        assert local.client(Streams).first_of(numbers()) == 1
    else:
        with local.client(Streams).echo(numbers()) as answers:
            assert next(answers) == 1
            assert not stopped.is_set()
    assert stopped.wait(SECONDS)
    assert read <= 3 * _AHEAD


def test_scatter_gives_the_replies_of_many() -> None:
    with zmesh.Mesh(LocalNode(Greeter())) as mesh:  # type: ignore[arg-type]
        replies = mesh.scatter(Greeter.say_hello, to="all", expect=3)("everyone")
        assert [(each.node, each.value) for each in replies] == [
            (f"all-{number}", "Hello, everyone!") for number in range(3)
        ]
        with pytest.raises(TypeError, match="color"):
            mesh.scatter(Greeter.say_hello, to="all", color="red")("everyone")


# -- the end of the process

SCRIPT = """
import sys, threading
import zmesh
from tests.test_sync import LOCAL, Greeter, LocalNode, Streams

mesh = zmesh.connect(peers=[sys.argv[1]], **LOCAL)
print(mesh.call(Greeter.say_hello)("World"), flush=True)
"""
IN_THREAD = """
entered = threading.Event()
def run():
    entered.set()
    while True:
        {call}
threading.Thread(target=run, daemon=True).start()
entered.wait()
"""
ENDS = {
    "falls off the end": "",
    "sys.exit": "sys.exit()",
    "in a with": "with mesh: sys.exit()",
    "a stream open": """
streams = zmesh.Mesh(LocalNode(Streams())).client(Streams)
stream, silent, never = streams.forever(), streams.silent(), streams.forever()
next(stream)
""",
    "a stream read in a thread": "streams = zmesh.Mesh(LocalNode(Streams())).client(Streams)"
    + IN_THREAD.format(call="next(streams.silent())"),
    "a feed that blocks": """
read = threading.Event()
def numbers():
    yield 1
    read.set()
    threading.Event().wait()
streams = zmesh.Mesh(LocalNode(Streams())).client(Streams)
stream = streams.echo(numbers())
next(stream)
read.wait()
""",
    "a call in a thread": IN_THREAD.format(call="mesh.client(Greeter).options(timeout=60).wait()"),
    "calls in a thread": IN_THREAD.format(call="mesh.client(Greeter).say_hello('you')"),
    "used by another atexit": """
import atexit
@atexit.register
def last():
    mesh.client(Greeter).say_hello("at the end")
""",
}


def run_script(script: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-W", "default::ResourceWarning", "-c", script, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=os.path.dirname(os.path.dirname(__file__)),
        **options,
    )


@pytest.mark.parametrize("end", ENDS)
def test_a_process_ends_in_silence_though_nobody_closed(server: zmesh.Mesh, end: str) -> None:
    with run_script(SCRIPT + ENDS[end], server.addresses[0]) as process:
        try:
            output, errors = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
    assert (output, errors, process.returncode) == ("Hello, World!\n", "", 0)


SERVE = """
import sys, time
import zmesh
from tests.test_sync import LOCAL

class Slow(zmesh.Service):
    @zmesh.rpc
    def work(self) -> str:
        print("begun", flush=True)
        time.sleep(float(sys.argv[1]))
        return "done"

mesh = zmesh.connect(Slow(), listen="tcp://127.0.0.1:0", **LOCAL)
print(mesh.addresses[0], flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("seconds", [0.2, 1000])
def test_a_process_that_ends_drains_for_a_moment(seconds: float) -> None:
    with run_script(SERVE, str(seconds), stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            with zmesh.connect(peers=[process.stdout.readline().strip()], **LOCAL) as mesh:
                call = in_thread(mesh.client("Slow").work)
                assert process.stdout.readline() == "begun\n"
                _, errors = process.communicate("\n", timeout=SECONDS)
                if seconds < 1:
                    assert call.get() == "done"
                else:
                    with pytest.raises(zmesh.MaybeExecuted):
                        call.get()
        finally:
            process.kill()
    assert (errors, process.returncode) == ("", 0)


def test_what_a_service_is_left_with_is_logged_at_the_end() -> None:
    script = """
import zmesh
from tests.test_sync import Fragile, LOCAL
mesh = zmesh.connect(Fragile(), listen="tcp://127.0.0.1:0", **LOCAL)
"""
    with run_script(script) as process:
        try:
            _, errors = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
    assert errors.startswith("a node was left with an error\nTraceback")
    assert errors.endswith("LookupError: lost the key\n")


def test_ctrl_c_ends_a_script(server: zmesh.Mesh, greeter: Greeter) -> None:
    with run_script(SCRIPT + "mesh.client(Greeter).options(timeout=60).wait()", server.addresses[0]) as process:
        try:
            assert greeter.begun.wait(SECONDS)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert errors.count("Traceback") == 1
    assert process.returncode == -signal.SIGINT
    assert greeter.cancelled.wait(SECONDS)


# -- forks


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_gets_a_clear_error(mesh: zmesh.Mesh, local: zmesh.Mesh) -> None:
    client, stream = mesh.client(Greeter), local.client(Streams).countdown(100)
    assert client.say_hello("World") == "Hello, World!"
    assert next(stream) == 100
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(SECONDS)
            uses: list[Callable[[], Any]] = [
                lambda: client.say_hello("World"),
                lambda: mesh.client("Greeter"),
                lambda: mesh.peers,
                lambda: next(stream),
            ]
            for use in uses:
                try:
                    use()
                except BaseException as error:
                    os.write(writing, f"{type(error).__name__}: {error}\n".encode())
            stream.close()
            del stream
            mesh.close()
            zmesh.sync._background._end_of_process()
            with zmesh.connect(peers=[address for _, address in mesh._node._peers], **LOCAL) as own:
                os.write(writing, f"{own.client(Greeter).say_hello('child')}\n".encode())
        except BaseException as error:
            os.write(writing, f"outside: {type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        lines = pipe.read().splitlines()
    os.waitpid(child, 0)
    refused = r"FailedPrecondition: .*does not work in a forked child: connect in the child.*"
    assert len(lines) == 5
    assert all(re.fullmatch(refused, line) for line in lines[:4]), lines
    assert lines[4] == "Hello, child!"
    assert client.say_hello("World") == "Hello, World!"  # and the parent goes on
    assert next(stream) == 99
