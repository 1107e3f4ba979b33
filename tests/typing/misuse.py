"""Each line that is marked is a mistake that both checkers report; they report no other line."""

from __future__ import annotations

from collections.abc import AsyncIterator

from greeter import Greeter, Loud, Order

import zmesh


async def numbers() -> AsyncIterator[int]:
    yield 1


async def arguments(greeter: Greeter) -> None:
    await greeter.say_hello(5)  # error
    await greeter.say_hello()  # error
    await greeter.say_hello("Ann", "Bob")  # error
    await greeter.say_hello(nme="Ann")  # error
    await greeter.say_hello("Ann", loud="yes")  # error
    await greeter.count(b"abc")  # error
    await greeter.upper(5)  # error
    await greeter.upper()  # error
    await greeter.crunch("5")  # error
    await greeter.shout(txt="a")  # error
    await greeter.shout(None)  # error
    await greeter.order("spoon")  # error
    await greeter.order(Order("spoon", count="2"))  # error
    await greeter.scale([1.0, 2.0])  # error


async def results(greeter: Greeter) -> None:
    number: int = await greeter.say_hello("Ann")  # error
    text: str = greeter.say_hello("Ann")  # error
    shouted: int = await greeter.shout("a")  # error
    plain: str = greeter.upper("a")  # error
    call = greeter.count("abc")
    name: str = call.node  # error
    call.metadata["a"] = "b"  # error
    print(call.answer)  # error
    print(number, text, shouted, plain, name)


async def names(greeter: Greeter) -> None:
    await greeter.say_helo("Ann")  # error
    await Greeter.say_hello("Ann")  # error
    print(Greeter.say_hello.idempotnt)  # error


async def streams(greeter: Greeter) -> None:
    await greeter.countdown(3)  # error
    for _ in greeter.countdown(3):  # error
        pass
    async for _ in greeter.countdown("3"):  # error
        pass
    async for _ in greeter.say_hello("Ann"):  # error
        pass
    await greeter.total([1, 2])  # error
    async for _ in greeter.echo(numbers()):  # error
        pass


async def options(greeter: Greeter) -> None:
    greeter.options(timeout="1")  # error
    greeter.options(1.0)  # error
    greeter.options(metadata={"tenant": 5})  # error
    greeter.options(patience=1)  # error
    greeter.options(key=5)  # error
    await greeter.options(timeout=1).say_hello(5)  # error


async def nodes(node: zmesh.Node) -> None:
    node.client(Order)  # error
    node.client(5)  # error
    await node.client(Greeter).say_hello(5)  # error
    loud: Loud = node.client(Greeter)  # error
    zmesh.Node(Greeter)  # error
    zmesh.Node(Order("spoon"))  # error
    print(node.peers[0].nme)  # error
    print(loud)


async def many(node: zmesh.Node) -> None:
    node.scatter(Greeter.say_hello)(5)  # error
    node.scatter(Greeter.countdown)(3)  # error
    node.scatter(Greeter.say_hello, to=1.5)  # error
    node.scatter(Greeter.say_hello, "all")  # error
    async for reply in node.scatter(Greeter.count)("a"):
        text: str = reply.result()  # error
        print(text, reply.nme)  # error
    node.map(Greeter.count)([1, 2])  # error
    node.map(Greeter.countdown)([1, 2])  # error
    node.map(Greeter.forget)([1])  # error
    node.map(Greeter.count, in_flight="2")  # error
    async for number in node.map(Greeter.count)(["a"]):
        wrong: str = number  # error
        print(wrong)


def blocking(mesh: zmesh.Mesh) -> None:
    mesh.call(Greeter.say_hello)(5)  # error
    mesh.call(Greeter.say_hello)()  # error
    mesh.call(Greeter.say_hello)(nme="Ann")  # error
    number: int = mesh.call(Greeter.say_hello)("Ann")  # error
    shouted: bytes = mesh.call(Greeter.shout)("Ann")  # error
    mesh.call(Greeter.countdown)("3")  # error
    text: str = next(mesh.call(Greeter.countdown)(3))  # error
    items: list[int] = mesh.call(Greeter.countdown)(3)  # error
    mesh.call(Greeter.say_hello, timeout="1")("Ann")  # error
    mesh.call(Greeter.say_hello, metadata={"tenant": 5})("Ann")  # error
    mesh.call("Greeter.say_hello")  # error
    mesh.call(Greeter)  # error
    mesh.call(Greeter.say_helo)  # error
    mesh.client(5)  # error
    mesh.client(Order)  # error
    mesh.scatter(Greeter.say_hello, to="all")(5)  # error
    mesh.map(Greeter.count)([1])  # error
    shouts: list[int] = list(mesh.map(Greeter.shout)(["a"]))  # error
    print(shouts)
    print(mesh.peers[0].nme)  # error
    mesh.clent("Greeter")  # error
    zmesh.connect(Greeter)  # error
    zmesh.connect(peers=5)  # error
    zmesh.connect(capacty=1)  # error
    zmesh.conect()  # error
    print(number, shouted, text, items)


async def blocking_is_not_awaited(mesh: zmesh.Mesh) -> None:
    await mesh.call(Greeter.say_hello)("Ann")  # error
    async for _ in mesh.call(Greeter.countdown)(3):  # error
        pass
    async with zmesh.connect():  # error
        pass


def definitions() -> None:
    zmesh.rpc(5)  # error
    zmesh.rpc(idempotent="yes")  # error
    zmesh.rpc(True)  # error
    zmesh.rpc(pool="thread")  # error


class Override(Greeter):
    @zmesh.rpc
    async def say_hello(self, name: int) -> str:  # error
        return ""

    async def shout(self, text: str) -> str:  # error
        return ""


class Named(zmesh.Service, name=5):  # error
    pass


class Unnamed(zmesh.Service, nme="Shop"):  # error
    pass
