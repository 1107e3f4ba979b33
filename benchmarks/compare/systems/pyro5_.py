"""Pyro5, with its own serializer; with msgpack for large values, which that would make text of. It has no calls in
flight but by threads, and a proxy belongs to one thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import Pyro5
import Pyro5.api

from ..clients import TEXT, Blocking
from ..worker import ready

Pyro5.config.SERVERTYPE = "multiplex"
Pyro5.config.SOCK_NODELAY = True


@Pyro5.api.expose
class Echo:
    def echo(self, argument: Any) -> Any:
        return argument

    def size(self, value: bytes) -> int:
        return len(value)

    def back(self, value: bytes) -> bytes:
        return value

    def items(self, count: int) -> Iterator[Any]:
        for index in range(count):
            yield {"i": index, "s": TEXT}


def serve(variant: str, beside: Sequence[str]) -> None:
    daemon = Pyro5.api.Daemon(host="127.0.0.1", port=0)
    address = str(daemon.register(Echo(), "echo"))
    ready(address)
    daemon.requestLoop()


class Client(Blocking):
    def open(self, addresses: Sequence[str]) -> None:
        self._addresses = addresses
        self._mine, self._large = Pyro5.api.Proxy(addresses[0]), Pyro5.api.Proxy(addresses[0])
        self._large._pyroSerializer = "msgpack"
        self._of_threads: list[Any] = []
        self._of_servers: list[Any] = []
        self.echo(self.make(0))

    def echo(self, argument: Any) -> Any:
        return self._mine.echo(argument)

    def size(self, value: bytes) -> int:
        size: int = self._large.size(value)
        return size

    def back(self, value: bytes) -> Any:
        return self._large.back(value)

    def keep(self, in_flight: int, end: float) -> tuple[int, int]:
        while len(self._of_threads) < in_flight:
            self._of_threads.append(Pyro5.api.Proxy(self._addresses[0]))
            self._of_threads[-1]._pyroBind()
        return super().keep(in_flight, end)

    def echo_of(self, thread: int) -> Any:
        proxy = self._of_threads[thread]

        def echo(argument: Any) -> Any:
            nonlocal claimed
            if not claimed:
                proxy._pyroClaimOwnership()
                claimed = True
            return proxy.echo(argument)

        claimed = False
        return echo

    def echo_at(self, server: int, argument: Any) -> Any:
        if not self._of_servers:
            self._of_servers = [Pyro5.api.Proxy(address) for address in self._addresses]
        proxy = self._of_servers[server]
        proxy._pyroClaimOwnership()
        return proxy.echo(argument)

    def items(self, count: int) -> Iterator[Any]:
        found: Iterator[Any] = iter(self._mine.items(count))
        return found
