"""How a service is written, and what its methods are on the class, on an instance and on a client."""

from __future__ import annotations

import abc
import asyncio
import contextvars
import dataclasses
import functools
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from zmesh._call import Call
from zmesh.schema import MethodSchema, schema_of
from zmesh.service import Service, Streaming, Unary, make_client, rpc


class Greeter(Service):
    """Says hello."""

    def __init__(self, greeting: str = "Hello") -> None:
        self.greeting = greeting

    @rpc
    async def say_hello(self, name: str) -> str:
        """Greet one person."""
        return f"{self.greeting}, {name}"

    @rpc(idempotent=True)
    def shout(self, text: str) -> str:
        return text.upper()

    @rpc
    async def countdown(self, start: int) -> AsyncIterator[int]:
        for n in range(start, 0, -1):
            yield n

    @rpc
    async def total(self, numbers: AsyncIterator[int]) -> int:
        return sum([n async for n in numbers])

    @rpc
    async def echo(self, lines: AsyncIterator[str]) -> AsyncIterator[str]:
        async for line in lines:
            yield line

    async def greet_twice(self, name: str) -> str:
        return await self.say_hello(name) + "! " + await self.say_hello(name)


class Loud(Greeter, version="2.1"):
    @rpc
    async def say_hello(self, name: str) -> str:
        return (await super().say_hello(name)).upper()

    @rpc
    def shout(self, text: str) -> str:
        return text + "!"


class RecordingCaller:
    """Answers each call with what was asked, and counts how often a method was bound."""

    def __init__(self, log: list[str] | None = None, **options: Any) -> None:
        self.bound: list[str] = [] if log is None else log
        self.chosen = options

    def bind(self, method: MethodSchema) -> Callable[..., Any]:
        self.bound.append(method.path)

        async def answer(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return method.path, method.bind(args, kwargs), self.chosen

        return lambda *args, **kwargs: Call(answer(args, kwargs))

    def options(self, **changes: Any) -> RecordingCaller:
        given = {name: value for name, value in changes.items() if value is not None}
        return RecordingCaller(self.bound, **{**self.chosen, **given})


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(coroutine)


class TestDefinition:
    def test_names_and_versions(self) -> None:
        class Plain(Service):
            pass

        class Shop(Service, name="shop.Greeter", version="12.3"):
            """Sells."""

        schema = schema_of(Shop)
        assert (schema.name, schema.version, schema.major, schema.doc) == ("shop.Greeter", "12.3", 12, "Sells.")
        assert (schema_of(Plain).name, schema_of(Plain).version, schema_of(Plain).major) == ("Plain", "1.0", 1)

    def test_a_subclass_has_a_name_of_its_own_and_inherits_the_version(self) -> None:
        class Louder(Loud):
            pass

        class Same(Loud, name="Loud"):
            pass

        assert (schema_of(Louder).name, schema_of(Louder).version, schema_of(Louder).doc) == ("Louder", "2.1", "")
        assert schema_of(Same).name == "Loud"

    @pytest.mark.parametrize("name", ["", "1st", ".a", "a b", "a-b", "é", "a" * 129, "a\n"])
    def test_refuses_a_name_that_does_not_fit_the_wire(self, name: str) -> None:
        with pytest.raises(TypeError, match="cannot name a service"):

            class Shop(Service, name=name):
                pass

    @pytest.mark.parametrize("version", ["", "v1", "1.", "1.0-beta", 1.0])
    def test_refuses_a_version_that_is_not_numbers(self, version: Any) -> None:
        with pytest.raises(TypeError, match="version is numbers with dots"):

            class Shop(Service, version=version):
                pass

    def test_refuses_names_that_clients_have(self) -> None:
        with pytest.raises(TypeError, match=r"Shop\.options: an rpc method is named neither 'options'"):

            class Shop(Service):
                @rpc
                def options(self) -> None: ...  # type: ignore[override]

        with pytest.raises(TypeError, match=r"Shop2\._hidden: an rpc method is named"):

            class Shop2(Service):
                @rpc
                def _hidden(self) -> None: ...

    def test_refuses_one_method_under_two_names(self) -> None:
        with pytest.raises(TypeError, match=r"Shop\.also is the rpc method 'put' under a second name"):

            class Shop(Service):
                @rpc
                def put(self) -> None: ...

                also = put

    def test_refuses_to_override_an_rpc_method_with_something_else(self) -> None:
        with pytest.raises(TypeError, match=r"Quiet\.say_hello overrides an rpc method: decorate it with @zmesh\.rpc"):

            class Quiet(Greeter):
                async def say_hello(self, name: str) -> str:  # type: ignore[override]
                    return ""

    @pytest.mark.parametrize(
        "wrong", [staticmethod(len), property(len), len, "x", Greeter.shout, functools.partial(print)]
    )
    def test_decorates_functions_only(self, wrong: Any) -> None:
        with pytest.raises(TypeError, match=r"zmesh\.rpc decorates a method written with def"):
            rpc(wrong)

    def test_an_abstract_base_is_a_service_too(self) -> None:
        class Base(Service, abc.ABC):
            @rpc
            @abc.abstractmethod
            async def put(self, item: str) -> int: ...

        class Shop(Base, name="Base"):
            @rpc
            async def put(self, item: str) -> int:
                return len(item)

        assert schema_of(Base).digest == schema_of(Shop).digest
        with pytest.raises(TypeError, match="abstract"):
            Base()  # type: ignore[abstract]
        assert run(Shop().put("abc")) == 3
        client = make_client(Base, RecordingCaller())  # type: ignore[type-abstract]
        assert isinstance(client, Base)
        assert run(client.put("a"))[0] == "Base.put"
        assert repr(client.options(timeout=1)) == "<client of Base>"

    def test_a_dataclass_with_slots_is_a_service(self) -> None:
        @dataclasses.dataclass(slots=True)
        class Adder(Service, name="math.Adder", version="3.0"):
            step: int = 1

            @rpc
            async def add(self, x: int) -> int:
                return x + self.step

        assert (schema_of(Adder).name, schema_of(Adder).version) == ("math.Adder", "3.0")
        assert run(Adder(5).add(1)) == 6

    def test_methods_of_all_bases_in_their_order(self) -> None:
        class Mixin:
            @rpc
            def ping(self) -> None: ...

        class Shop(Mixin, Greeter):
            @rpc
            def buy(self) -> None: ...

        assert list(schema_of(Shop).methods) == ["say_hello", "shout", "countdown", "total", "echo", "ping", "buy"]
        assert {method.service for method in schema_of(Shop).methods.values()} == {"Shop"}

    def test_refuses_an_unknown_class_argument(self) -> None:
        with pytest.raises(TypeError, match="unexpected keyword argument 'nme'"):

            class Shop(Service, nme="shop.Shop"):  # type: ignore[call-arg]
                pass


class TestHandle:
    def test_the_class_has_the_handle(self) -> None:
        handle = Greeter.say_hello
        assert isinstance(handle, Unary)
        assert isinstance(Greeter.countdown, Streaming)
        assert isinstance(Greeter.echo, Streaming)
        assert isinstance(Greeter.total, Unary)
        assert (handle.name, handle.idempotent, handle.owner) == ("say_hello", False, Greeter)
        assert Greeter.shout.idempotent
        assert inspect.getdoc(handle) == "Greet one person."
        assert repr(handle) == "<rpc method Greeter.say_hello>"

    def test_the_handler_is_the_function_as_written(self) -> None:
        assert Greeter.shout.handler(Greeter(), "a") == "A"

    def test_an_inherited_method_belongs_to_the_class_that_it_was_taken_from(self) -> None:
        assert Loud.countdown.owner is Loud
        assert Loud.countdown.handler is Greeter.countdown.handler
        assert Greeter.countdown.owner is Greeter

    def test_is_not_callable(self) -> None:
        assert not callable(Greeter.say_hello)

    def test_a_plain_def_that_hands_on_a_stream_streams(self) -> None:
        class Through(Service):
            @rpc
            def lines(self) -> AsyncIterator[int]:
                return Greeter().countdown(2)

        assert isinstance(Through.lines, Streaming)
        assert run(collect(Through().lines())) == [2, 1]


async def collect(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


async def several(*items: Any) -> AsyncIterator[Any]:
    for item in items:
        yield item


class TestLocalCalls:
    def test_an_async_method_runs_here(self) -> None:
        async def main() -> None:
            greeter = Greeter("Hi")
            assert await greeter.say_hello("Ann") == "Hi, Ann"
            assert await greeter.say_hello(name="Ann") == "Hi, Ann"
            assert await greeter.greet_twice("Ann") == "Hi, Ann! Hi, Ann"

        run(main())

    def test_a_plain_method_runs_in_a_thread_with_the_callers_context(self) -> None:
        variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable")

        class Where(Service):
            @rpc
            def here(self) -> list[int]:
                return [threading.get_ident(), variable.get()]

        async def main() -> None:
            variable.set(5)
            thread, value = await Where().here()
            assert thread != threading.get_ident()
            assert value == 5

        run(main())

    def test_streams(self) -> None:
        async def main() -> None:
            greeter = Greeter()
            assert await collect(greeter.countdown(3)) == [3, 2, 1]
            assert await greeter.total(several(1, 2)) == 3
            assert await collect(greeter.echo(several("a", "b"))) == ["a", "b"]

        run(main())

    def test_inheritance_and_super(self) -> None:
        async def main() -> None:
            assert await Loud().say_hello("Ann") == "HELLO, ANN"
            assert await Loud().shout("a") == "a!"
            assert await Loud().greet_twice("a") == "HELLO, A! HELLO, A"
            assert await Greeter().say_hello("Ann") == "Hello, Ann"

        run(main())

    def test_a_wrong_call_fails_as_in_python(self) -> None:
        with pytest.raises(TypeError, match=r"say_hello\(\) missing 1 required positional argument: 'name'"):
            Greeter().say_hello()  # type: ignore[call-arg]

    def test_have_no_options(self) -> None:
        with pytest.raises(TypeError, match=r"this is a local Greeter: use node\.client\(Greeter\)\.options"):
            Greeter().options(timeout=1)


class TestClients:
    def test_a_client_calls_by_its_caller(self) -> None:
        client = make_client(Loud, RecordingCaller())
        assert isinstance(client, Loud)
        assert run(client.say_hello("Ann")) == ("Loud.say_hello", {"name": "Ann"}, {})
        stream: Any = client.countdown(start=3)  # this caller answers a stream like anything else
        assert run(stream) == ("Loud.countdown", {"start": 3}, {})

    def test_a_method_is_bound_once(self) -> None:
        caller = RecordingCaller()
        client = make_client(Greeter, caller)
        assert caller.bound == []
        assert client.say_hello is client.say_hello
        assert caller.bound == ["Greeter.say_hello"]

    def test_init_does_not_run(self) -> None:
        class Strict(Service):
            def __new__(cls, path: str) -> Strict:
                raise AssertionError

            def __init__(self, path: str) -> None:
                raise AssertionError

            @rpc
            def read(self) -> bytes:
                return b""

        assert run(make_client(Strict, RecordingCaller()).read())[0] == "Strict.read"

    def test_a_client_does_not_pretend(self) -> None:
        client = make_client(Greeter, RecordingCaller())
        assert repr(client) == "<client of Greeter>"
        assert "Greeter object at" in repr(Greeter())
        with pytest.raises(AttributeError):
            _ = client.greeting
        with pytest.raises(AttributeError):
            _ = client.say_helo  # type: ignore[attr-defined]

    def test_a_helper_of_the_class_calls_the_remote_methods(self) -> None:
        class Twice(Service):
            @rpc
            async def get(self, key: str) -> Any: ...

            async def both(self) -> list[Any]:
                return [await self.get("a"), await self.get("b")]

        first, second = run(make_client(Twice, RecordingCaller()).both())
        assert (first[1], second[1]) == ({"key": "a"}, {"key": "b"})

    def test_options_make_another_client(self) -> None:
        client = make_client(Greeter, RecordingCaller())
        fast = client.options(timeout=0.2).options(metadata={"tenant": "a"})
        assert type(fast) is Greeter
        assert run(fast.shout("a"))[2] == {"timeout": 0.2, "metadata": {"tenant": "a"}}
        assert run(client.shout("a"))[2] == {}

    def test_an_annotation_that_does_not_resolve_is_an_error_before_the_first_call(self) -> None:
        class Shop(Service):
            @rpc
            def put(self, item: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821

        with pytest.raises(TypeError, match=r"Shop\.put: argument 'item': annotation `Missing` does not resolve"):
            make_client(Shop, RecordingCaller())


class TestCall:
    def test_is_a_coroutine_for_asyncio(self) -> None:
        async def main() -> None:
            greeter = Greeter()
            greeting = greeter.say_hello("a")
            assert isinstance(greeting, Call)
            assert inspect.isawaitable(greeting)
            assert asyncio.iscoroutine(greeting)
            assert await asyncio.create_task(greeting) == "Hello, a"
            assert tuple(await asyncio.gather(greeter.say_hello("b"), greeter.shout("b"))) == ("Hello, b", "B")
            assert await asyncio.wait_for(greeter.shout("c"), 10) == "C"

        run(main())

    def test_tells_nothing_before_it_is_answered(self) -> None:
        async def main() -> None:
            call = Greeter().say_hello("a")
            assert call.metadata == {}
            assert call.node is None
            await call

        run(main())

    def test_raises_what_the_handler_raises_and_is_cancelled_like_it(self) -> None:
        ended: list[str] = []

        class Failing(Service):
            @rpc
            async def fail(self) -> None:
                raise KeyError("x")

            @rpc
            async def wait(self) -> None:
                try:
                    await asyncio.get_running_loop().create_future()
                except asyncio.CancelledError:
                    ended.append("cancelled")
                    raise

        async def main() -> None:
            with pytest.raises(KeyError):
                await Failing().fail()
            task = asyncio.create_task(Failing().wait())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        run(main())
        assert ended == ["cancelled"]

    def test_close_ends_the_coroutine(self) -> None:
        call = Greeter().say_hello("a")
        call.close()
        with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
            call.send(None)
