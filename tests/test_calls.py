"""What one call carries there and back, and how it fails when it cannot."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
from dataclasses import dataclass
from typing import Any

import numpy
import pytest
from numpy.typing import NDArray

import zmesh
import zmesh.testing
from zmesh._clients import Options
from zmesh.testing import Mesh


@dataclass
class Item:
    name: str
    price: float = 1.0
    parts: list[Item] | None = None


class Shop(zmesh.Service):
    """Something of everything."""

    @zmesh.rpc
    async def greet(self, name: str, greeting: str = "Hello", *, mark: str = "!") -> str:
        return f"{greeting}, {name}{mark}"

    @zmesh.rpc(idempotent=True)
    def shout(self, text: str) -> str:
        return text.upper()

    @zmesh.rpc
    async def nothing(self) -> None:
        return None

    @zmesh.rpc
    async def item(self, item: Item) -> Item:
        assert type(item) is Item
        return Item(item.name, item.price * 2, item.parts)

    @zmesh.rpc
    async def anything(self, value: Any) -> Any:
        return value

    @zmesh.rpc
    async def size(self, data: bytes) -> int:
        assert type(data) is bytes
        return len(data)

    @zmesh.rpc
    async def view(self, data: memoryview) -> memoryview:
        assert type(data) is memoryview
        return data

    @zmesh.rpc
    async def double(self, array: NDArray[numpy.float64]) -> NDArray[numpy.float64]:
        return numpy.asarray(array * 2)

    @zmesh.rpc
    async def broken(self) -> int:
        return "no number"  # type: ignore[return-value]

    @zmesh.rpc
    async def unspeakable(self) -> Any:
        return object()

    @zmesh.rpc
    async def nested(self, depth: int) -> Any:
        return nest(depth)

    @zmesh.rpc
    async def text(self, length: int) -> str:
        return "x" * length

    @zmesh.rpc
    async def blob(self, length: int) -> bytes:
        return bytes(length)

    @zmesh.rpc
    async def bad_text(self) -> str:
        return "\ud800"

    @zmesh.rpc
    async def metadata(self) -> dict[str, str]:
        context = zmesh.context()
        context.reply_metadata["answered-by"] = "the shop"
        context.reply_metadata["raw"] = b"\0\1"
        return {key: value if isinstance(value, str) else value.hex() for key, value in context.metadata.items()}

    @zmesh.rpc
    async def bad_metadata(self, value: Any) -> str:
        zmesh.context().reply_metadata["count"] = value
        return "done"

    @zmesh.rpc
    async def wait(self, seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds


class Renamed(zmesh.Service, name="shop.Renamed", version="2.1"):
    @zmesh.rpc
    async def where(self) -> str:
        return "here"


class Older(zmesh.Service, name="Shop"):
    """Shop, as an older release had it."""

    @zmesh.rpc
    async def greet(self, name: str) -> str:
        return f"Hi, {name}"


def nest(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


async def shop_and_client(mesh: Mesh, **options: Any) -> tuple[zmesh.Node, Shop]:
    await mesh.start(Shop(), name="shop-1")
    client = await mesh.start(name="client", **options)
    return client.node, client.node.client(Shop)


# -- arguments and results


@zmesh.testing.simulated()
async def test_by_class(mesh: Mesh) -> None:
    _, shop = await shop_and_client(mesh)
    assert await shop.greet("World") == "Hello, World!"
    assert await shop.greet("World", "Bye") == "Bye, World!"
    assert await shop.greet(name="World", greeting="Bye", mark="?") == "Bye, World?"
    assert await shop.greet("World", mark=".") == "Hello, World."
    assert await shop.shout("loud") == "LOUD"
    assert await shop.nothing() is None
    assert await shop.item(Item("a", 2.0, [Item("b")])) == Item("a", 4.0, [Item("b")])


@zmesh.testing.simulated()
async def test_by_name(mesh: Mesh) -> None:
    node, _ = await shop_and_client(mesh)
    shop = node.client("Shop")
    assert await shop.greet(name="World", greeting="Bye") == "Bye, World!"
    assert await shop.greet("World", "Bye") == "Bye, World!"
    assert await shop.shout(text="loud") == "LOUD"
    assert await shop.item(item={"name": "a"}) == {"name": "a", "price": 2.0, "parts": None}
    call = shop.greet("World")
    assert await call == "Hello, World!"
    assert call.node == "shop-1"
    with pytest.raises(TypeError, match="all arguments by keyword or all by position"):
        shop.greet("World", mark="?")
    described = await shop.describe()
    assert described["doc"] == "Something of everything."
    assert set(described["methods"]["greet"]["parameters"]["required"]) == {"name"}


@zmesh.testing.simulated()
async def test_a_typo_by_name_is_an_attribute_error_once_the_service_is_known(mesh: Mesh) -> None:
    node, _ = await shop_and_client(mesh)
    shop = node.client("Shop")
    with pytest.raises(AttributeError, match=r"service 'Shop' has no method 'great'; it has greet, shout"):
        await shop.great("World")
    with pytest.raises(AttributeError, match="no method 'great'"):
        _ = shop.great
    with pytest.raises(AttributeError):
        _ = shop._private
    assert await shop.greet("World") == "Hello, World!"


@zmesh.testing.simulated()
async def test_a_typed_client_refuses_what_does_not_fit_before_anything_is_sent(mesh: Mesh) -> None:
    _, shop = await shop_and_client(mesh)
    with pytest.raises(TypeError, match=r"Shop\.greet\(\) missing 1 required positional argument: 'name'"):
        shop.greet()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"Shop\.greet\(\) takes from 1 to 2 positional arguments but 3"):
        shop.greet("a", "b", "c")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected keyword argument 'nmae'"):
        shop.greet(nmae="World")  # type: ignore[call-arg]
    with pytest.raises(AttributeError, match="no attribute 'great'"):
        shop.great("World")  # type: ignore[attr-defined]
    with pytest.raises(
        zmesh.InvalidArgument, match=r"Shop\.greet: argument 'name': expected `str`, got `int`"
    ) as caught:
        shop.greet(5)  # type: ignore[arg-type]
    assert not caught.value.may_have_run


@zmesh.testing.simulated()
async def test_the_server_checks_too(mesh: Mesh) -> None:
    node, _ = await shop_and_client(mesh)
    shop = node.client("Shop")
    for arguments, text in [
        ({"name": 5}, "argument 'name': expected `str`, got `int`"),
        ({}, "missing argument 'name'; it takes name, greeting, mark"),
        ({"name": "x", "nmae": "y"}, "unknown argument 'nmae'; it takes name, greeting, mark"),
    ]:
        with pytest.raises(zmesh.InvalidArgument, match=text) as caught:
            await shop.greet(**arguments)
        assert caught.value.node == "shop-1"
        assert caught.value.code is zmesh.Code.INVALID_ARGUMENT
        assert not caught.value.may_have_run
    with pytest.raises(zmesh.InvalidArgument, match="4 positional arguments"):
        await shop.greet("a", "b", "c", "d")


@zmesh.testing.simulated()
async def test_the_service_name_is_the_one_given(mesh: Mesh) -> None:
    await mesh.start(Renamed())
    client = await mesh.start()
    assert await client.node.client(Renamed).where() == "here"
    assert await client.node.client("shop.Renamed").where() == "here"
    assert client.node.peers[0].services == {"shop.Renamed": "2.1"}


@pytest.mark.parametrize(
    "value",
    [None, True, -1, 2**31, 2**63, 2**64, -(2**63) - 1, 2**200, 1.5, float("inf"), "", "ü\0", b"", b"\0\xff",
     [], {}, [1, [2, [3, {"a": None}]]], {"a": {"b": b"c"}}],
)  # fmt: skip
@zmesh.testing.simulated()
async def test_values_come_back_as_they_were(mesh: Mesh, value: Any) -> None:
    node, shop = await shop_and_client(mesh)
    for client in (shop, node.client("Shop")):
        answer = await client.anything(value)
        assert answer == value
        assert type(answer) is type(value)


@zmesh.testing.simulated()
async def test_large_binary_values(mesh: Mesh) -> None:
    _, shop = await shop_and_client(mesh)
    for size in (0, 1, 16 * 1024, 16 * 1024 + 1, 5_000_000):
        data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
        assert await shop.size(data) == size
        assert bytes(await shop.view(memoryview(data))) == data
        assert await shop.anything([data, {"again": data}]) == [data, {"again": data}]
    odd = memoryview(bytes(100_000))[::2]  # not contiguous
    assert len(await shop.view(odd)) == 50_000
    many = [bytes([number % 256]) * 20_000 for number in range(300)]  # more than frames behind an envelope
    assert await shop.anything(many) == many


@zmesh.testing.simulated()
async def test_arrays(mesh: Mesh) -> None:
    _, shop = await shop_and_client(mesh)
    for array in (
        numpy.arange(12.0).reshape(3, 4),
        numpy.arange(1_000_000.0),
        numpy.zeros((0, 3)),
        numpy.array(2.0),
        numpy.asfortranarray(numpy.arange(40_000.0).reshape(200, 200)),
        numpy.arange(10.0)[::-2],
        numpy.arange(5, dtype=">f8"),
    ):
        answer = await shop.double(array)
        assert answer.shape == array.shape
        assert numpy.array_equal(answer, array * 2)
    with pytest.raises(zmesh.InvalidArgument, match="float64, got one of int64"):
        await shop.double(numpy.arange(3))  # type: ignore[arg-type]


# -- a call is a coroutine


@zmesh.testing.simulated()
async def test_a_call_is_a_coroutine(mesh: Mesh) -> None:
    _, shop = await shop_and_client(mesh)
    began = mesh.now
    assert await asyncio.create_task(shop.wait(1)) == 1
    assert await asyncio.gather(*(shop.wait(n / 10) for n in range(10))) == [n / 10 for n in range(10)]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(shop.wait(0.5)) for _ in range(100)]
    assert sum(task.result() for task in tasks) == 50
    assert await asyncio.wait_for(shop.wait(0.1), 1) == 0.1
    assert mesh.now - began < 2.8
    call = shop.greet("x")
    assert inspect.isawaitable(call)
    assert (call.node, dict(call.metadata)) == (None, {})
    assert await call == "Hello, x!"
    assert call.node == "shop-1"
    with pytest.raises(RuntimeError, match="cannot reuse"):
        await call


def test_a_call_that_is_never_awaited_warns_and_is_not_made() -> None:
    async def main(mesh: Mesh) -> None:
        _, shop = await shop_and_client(mesh)
        shop.greet("never")
        gc.collect()
        assert await shop.greet("x") == "Hello, x!"

    with pytest.warns(RuntimeWarning, match="never awaited"):
        zmesh.testing.run(main)


@zmesh.testing.simulated()
async def test_a_local_instance_runs_here(mesh: Mesh) -> None:
    call = Shop().greet("World")
    assert await call == "Hello, World!"
    assert call.node is None
    assert await Shop().shout("a") == "A"
    with pytest.raises(TypeError, match=r"this is a local Shop: use node\.client\(Shop\)"):
        Shop().options(timeout=1)


# -- options and metadata


@zmesh.testing.simulated()
async def test_metadata_travels_both_ways(mesh: Mesh) -> None:
    node, shop = await shop_and_client(mesh)
    for client in (shop, node.client("Shop")):
        call = client.options(metadata={"tenant": "a", "raw": b"\xff"}).metadata()
        assert await call == {"tenant": "a", "raw": "ff"}
        assert call.metadata == {"answered-by": "the shop", "raw": b"\0\1"}
        assert await client.metadata() == {}


@zmesh.testing.simulated()
async def test_options_are_kept_changed_and_checked(mesh: Mesh) -> None:
    assert Options().change({"metadata": {"tenant": "a"}}) == Options(metadata={"tenant": "a"})  # and no other
    node, shop = await shop_and_client(mesh)
    await shop.nothing()
    for client in (shop, node.client("Shop")):
        tenant = client.options(metadata={"tenant": "a"})
        both = tenant.options(timeout=0.5)
        assert await both.metadata() == {"tenant": "a"}
        with pytest.raises(zmesh.DeadlineExceeded):
            await both.wait(1)
        assert await tenant.wait(1) == 1
        for wrong in (0, -1, float("inf"), float("nan"), "1"):
            with pytest.raises(ValueError, match="timeout is a positive number of seconds"):
                client.options(timeout=wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="metadata maps str to str or bytes, got 'n': 5"):
            client.options(metadata={"n": 5})  # type: ignore[dict-item]
        with pytest.raises(TypeError):
            client.options(timout=1)  # type: ignore[call-arg]


@zmesh.testing.simulated()
async def test_metadata_that_cannot_travel_back_fails_the_call_with_a_clear_error(mesh: Mesh) -> None:
    _, shop = await shop_and_client(mesh)
    began = mesh.now
    for value in (5, None, [1]):
        with pytest.raises(zmesh.Internal, match=r"malformed.*count"):
            await shop.bad_metadata(value)
    assert mesh.now - began < 1


# -- what cannot be carried fails its own call and nothing else


@zmesh.testing.simulated()
async def test_unknown_service(mesh: Mesh) -> None:
    await mesh.start(Shop(), name="adder-1")
    await mesh.start(Renamed(), name="adder-2")
    client = await mesh.start()

    class Greeter(zmesh.Service):
        @zmesh.rpc
        async def hello(self) -> None: ...

    for greeter in (client.node.client(Greeter), client.node.client("Greeter")):
        began = mesh.now
        with pytest.raises(zmesh.Unavailable) as caught:
            await greeter.hello()
        assert 5.0 <= mesh.now - began < 5.1
        assert not caught.value.may_have_run
        assert caught.value.message == (
            "no node offers 'Greeter' after 5.0 s: saw 2 nodes (adder-1, adder-2), offering Shop, shop.Renamed; "
            f"discovery: mdns on {client.address} (simulated) (run 'zmesh doctor')"
        )


@zmesh.testing.simulated()
async def test_unknown_method_is_unimplemented_and_says_so_at_once(mesh: Mesh) -> None:
    await mesh.start(Older(), name="older")
    client = await mesh.start()
    shop = client.node.client(Shop)
    assert await shop.greet("x") == "Hi, x"
    began = mesh.now
    with pytest.raises(zmesh.RpcError, match="service 'Shop' at 'older' has no method 'shout'; it has greet") as caught:
        await shop.shout("x")
    assert not caught.value.may_have_run
    assert caught.value.code is zmesh.Code.UNIMPLEMENTED
    assert mesh.now - began < 1


@zmesh.testing.simulated(seeds=range(5))
async def test_a_method_that_only_newer_nodes_have_is_called_there(mesh: Mesh) -> None:
    await mesh.start(Older(), name="older")
    await mesh.start(Shop(), name="newer")
    client = await mesh.start()
    shop = client.node.client(Shop)
    await shop.wait(0)
    await asyncio.sleep(1)
    assert [await shop.wait(0) for _ in range(20)] == [0] * 20


@zmesh.testing.simulated()
async def test_values_without_a_form_fail_only_their_own_call(mesh: Mesh) -> None:
    _, shop = await shop_and_client(mesh)
    await shop.nothing()
    results = await asyncio.gather(
        shop.greet("a"),
        shop.greet("\ud800"),  # no UTF-8
        shop.unspeakable(),
        shop.broken(),
        shop.bad_text(),
        shop.nested(64),
        shop.nested(65),
        shop.anything(nest(65)),
        shop.greet("b"),
        return_exceptions=True,
    )
    first, surrogate, unspeakable, broken, bad_text, deep, deeper, too_deep, last = results
    assert (first, last) == ("Hello, a!", "Hello, b!")
    assert deep == nest(64)
    assert isinstance(surrogate, zmesh.InvalidArgument)
    assert not surrogate.may_have_run
    assert isinstance(unspeakable, zmesh.Internal)
    assert "returned a `object`" in str(unspeakable)
    assert isinstance(broken, zmesh.Internal)
    assert "Shop.broken returned a `str` which is not its annotated `int`" in broken.message
    assert broken.may_have_run
    assert isinstance(bad_text, zmesh.Internal)
    assert isinstance(deeper, zmesh.Internal)
    assert "nested deeper than 64" in deeper.message
    assert isinstance(too_deep, zmesh.InvalidArgument)
    assert "nested deeper than 64" in too_deep.message
    with pytest.raises(zmesh.InvalidArgument, match="there is no conversion for `object`"):
        await shop.anything(object())


@zmesh.testing.simulated()
async def test_what_is_too_large_fails_only_its_own_call(mesh: Mesh) -> None:
    config = zmesh.Config(max_message=100_000)
    await mesh.start(Shop(), config=config)
    client = await mesh.start(config=config)
    shop = client.node.client(Shop)
    await shop.nothing()
    results = await asyncio.gather(
        shop.shout("a"),
        shop.shout("x" * 100_001),
        shop.size(bytes(100_001)),
        shop.text(100_001),
        shop.blob(100_001),
        shop.text(99_000),
        return_exceptions=True,
    )
    small, text, data, long_text, blob, fits = results
    assert (small, fits) == ("A", "x" * 99_000)
    for error in (text, data):
        assert isinstance(error, zmesh.InvalidArgument)
        assert "takes 100000" in error.message
        assert not error.may_have_run
    for error in (long_text, blob):
        assert isinstance(error, zmesh.Internal)
        assert "takes 100000" in error.message


@zmesh.testing.simulated()
async def test_a_call_that_is_given_up_while_it_is_refused_leaves_no_trace(mesh: Mesh) -> None:
    config = zmesh.Config(max_message=100_000)
    await mesh.start(Shop(), config=config)
    client = await mesh.start()
    shop = client.node.client(Shop)
    await shop.nothing()
    task = asyncio.create_task(shop.shout("x" * 100_001))  # runs with the next turn, is encoded in the one after
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await shop.shout("a") == "A"
    assert client.node.peers[0].load == 0


# -- the same on real sockets


def on_sockets(*services: zmesh.Service, **options: Any) -> zmesh.Node:
    return zmesh.Node(*services, mesh="test-calls", listen="tcp://127.0.0.1:0", discovery=None, **options)


@pytest.mark.parametrize("ipc", [False, True])
def test_on_sockets(ipc: bool) -> None:
    async def main() -> None:
        config = zmesh.Config(ipc=ipc)
        async with on_sockets(Shop(), name="shop-1", config=config) as server:
            peers = [address for address in server.addresses if address.startswith("tcp")]
            async with on_sockets(peers=peers, config=config) as node:
                shop = node.client(Shop)
                call = shop.options(metadata={"k": "v"}).metadata()
                assert await call == {"k": "v"}
                assert call.node == "shop-1"
                assert await shop.shout("x") == "X"
                assert await node.client("Shop").greet(name="y") == "Hello, y!"
                data = bytes(5_000_000)
                assert await asyncio.gather(*(shop.size(data) for _ in range(5))) == [len(data)] * 5
                assert bytes(await shop.view(memoryview(data))) == data
                array = numpy.arange(1_000_000.0)
                assert numpy.array_equal(await shop.double(array), array * 2)
                with pytest.raises(zmesh.InvalidArgument):
                    await node.client("Shop").greet(name=5)
                assert len(await asyncio.gather(*(shop.greet(str(n)) for n in range(1000)))) == 1000
                assert node.peers[0].address.startswith("ipc://@" if ipc else "tcp://")

    asyncio.run(asyncio.wait_for(main(), 10))


@pytest.mark.parametrize("what", ["bytes", "result", "together"])
def test_on_sockets_a_value_over_the_peers_limit_costs_no_connection(what: str, caplog: Any) -> None:
    caplog.set_level(logging.INFO, "zmesh")

    async def main() -> None:
        config = zmesh.Config(max_message=1_000_000, timeout=2)
        async with on_sockets(Shop(), config=config) as server:
            peers = [address for address in server.addresses if address.startswith("tcp")]
            async with on_sockets(peers=peers, config=config) as node:
                shop = node.client(Shop)
                await shop.nothing()
                others = [asyncio.create_task(shop.wait(0.2)) for _ in range(5)]
                await asyncio.sleep(0.05)
                if what == "bytes":
                    with pytest.raises(zmesh.InvalidArgument, match="takes 1000000"):
                        await shop.size(bytes(1_000_001))
                elif what == "result":
                    for call in (shop.blob(1_000_001), shop.text(1_000_001)):
                        with pytest.raises(zmesh.Internal, match="takes 1000000"):
                            await call
                else:  # each fits, and what they are together is nobody's fault
                    texts = ["x" * 400_000] * 5
                    assert await asyncio.gather(*(shop.shout(text) for text in texts)) == ["X" * 400_000] * 5
                assert await asyncio.gather(*others) == [0.2] * 5

    asyncio.run(asyncio.wait_for(main(), 10))
    assert "lost the link" not in caplog.text
