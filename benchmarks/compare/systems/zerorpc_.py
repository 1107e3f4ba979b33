"""zerorpc, on gevent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import gevent
import zerorpc

from ..clients import TEXT, Blocking, now
from ..worker import free_port, ready


class Echo:
    def echo(self, argument: Any) -> Any:
        return argument

    def size(self, value: bytes) -> int:
        return len(value)

    def back(self, value: bytes) -> bytes:
        return value

    @zerorpc.stream  # type: ignore[untyped-decorator]
    def items(self, count: int) -> Iterator[Any]:
        return ({"i": index, "s": TEXT} for index in range(count))


def serve(variant: str, beside: Sequence[str]) -> None:
    server = zerorpc.Server(Echo())
    address = f"tcp://127.0.0.1:{free_port()}"
    server.bind(address)
    ready(address)
    server.run()


class Client(Blocking):
    def open(self, addresses: Sequence[str]) -> None:
        self._clients = [zerorpc.Client(address) for address in addresses]
        self.echo(self.make(0))

    def echo(self, argument: Any) -> Any:
        return self._clients[0].echo(argument)

    def size(self, value: bytes) -> int:
        size: int = self._clients[0].size(value)
        return size

    def back(self, value: bytes) -> Any:
        return self._clients[0].back(value)

    def keep(self, in_flight: int, end: float) -> tuple[int, int]:
        count = {"done": 0, "wrong": 0}

        def one_after_the_other() -> None:
            first = True
            while first or now() < end:
                argument = self.make(next(self.numbers))
                count["wrong"] += self.echo(argument) != argument
                count["done"] += 1
                first = False

        gevent.joinall([gevent.spawn(one_after_the_other) for _ in range(in_flight)], raise_error=True)
        return count["done"], count["wrong"]

    def fan(self, arguments: Sequence[Any]) -> Sequence[Any]:
        asked = [client.echo(a, **{"async": True}) for client, a in zip(self._clients, arguments, strict=True)]
        return [answer.get() for answer in asked]

    def items(self, count: int) -> Iterator[Any]:
        found: Iterator[Any] = self._clients[0].items(count)
        return found
