"""What a caller without `async` writes. Nothing here is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, assert_type

from greeter import Greeter, Loud, Order

import zmesh
import zmesh.sync


def typed(mesh: zmesh.Mesh) -> None:
    assert_type(mesh.call(Greeter.say_hello)("Ann"), str)
    assert_type(mesh.call(Greeter.say_hello)(name="Ann", loud=True), str)
    assert_type(mesh.call(Greeter.shout)("Ann"), str)
    assert_type(mesh.call(Loud.count)("Ann"), int)
    assert_type(mesh.call(Greeter.order)(Order("spoon")), dict[str, Order])
    assert_type(mesh.call(Greeter.say_hello, timeout=1, metadata={"tenant": "a"})("Ann"), str)
    assert_type(mesh.call(Greeter.say_hello, key="user-42")("Ann"), str)
    assert_type(mesh.call(Greeter.countdown)(3), Iterator[int])
    assert_type(mesh.map(Greeter.shout, in_flight=3, progress=True)(["a", "b"]), Iterator[str])
    assert_type([n + 1 for n in mesh.call(Greeter.countdown, timeout=5)(3)], list[int])


def why(mesh: zmesh.Mesh) -> None:
    assert_type(mesh.explain(Greeter.say_hello, key="user-42"), zmesh.Explanation)
    assert_type(mesh.stats(), dict[str, Any])


def untyped(mesh: zmesh.Mesh) -> None:
    # The class says that its methods are awaited, so nothing is known of what blocks.
    assert_type(mesh.client(Greeter).say_hello("Ann"), Any)
    assert_type(mesh.client("Greeter").options(timeout=1).say_hello("Ann"), Any)
    assert_type(mesh.scatter(Greeter.say_hello, to="all", expect=3)("Ann"), Iterator[Any])


def around() -> None:
    mesh = zmesh.connect(Greeter(), name="greeter-1", peers=["tcp://127.0.0.1:7001"], discovery=None)
    assert_type(mesh, zmesh.Mesh)
    assert_type(mesh, zmesh.sync.Mesh)
    assert_type([peer.name for peer in mesh.discover(expect=1)], list[str])
    mesh.close()
    with zmesh.connect() as entered:
        assert_type(entered, zmesh.Mesh)
    stream: zmesh.sync.Stream[int] = mesh.client(Greeter).countdown(3)
    with stream as items:
        assert_type(next(items), int)
