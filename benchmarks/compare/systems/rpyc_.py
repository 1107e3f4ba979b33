"""RPyC. Arguments are tuples, which go by value; a dictionary would stay where it is and be asked for its fields."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import rpyc
from rpyc.utils.helpers import buffiter
from rpyc.utils.server import ThreadedServer

from ..clients import TEXT, Blocking, now
from ..worker import ready


class Echo(rpyc.Service):  # type: ignore[misc]
    def exposed_echo(self, name: str, n: int, data: str) -> tuple[str, int, str]:
        return name, n, data

    def exposed_items(self, count: int) -> Iterator[tuple[int, str]]:
        for index in range(count):
            yield index, TEXT


def serve(variant: str, beside: Sequence[str]) -> None:
    server = ThreadedServer(Echo, hostname="127.0.0.1", port=0)
    ready(f"127.0.0.1:{server.port}")
    server.start()


class Client(Blocking):
    def open(self, addresses: Sequence[str]) -> None:
        places = [address.rpartition(":") for address in addresses]
        self._roots = [rpyc.connect(host, int(port)).root for host, _, port in places]
        self._echo = self._roots[0].echo
        self._asynchronous = [rpyc.async_(root.echo) for root in self._roots]
        self.echo(self.make(0))

    def make(self, number: int) -> Any:
        return tuple(super().make(number).values())

    def item(self, number: int) -> Any:
        return number, TEXT

    def echo(self, argument: Any) -> Any:
        return self._echo(*argument)

    def keep(self, in_flight: int, end: float) -> tuple[int, int]:
        """The oldest is waited for, and a new one begun in its place."""
        begin = self._asynchronous[0]
        waiting: deque[tuple[Any, Any]] = deque()
        done = wrong = 0
        for argument in self.arguments(in_flight):
            waiting.append((argument, begin(*argument)))
        while waiting:
            argument, answer = waiting.popleft()
            wrong += answer.value != argument
            done += 1
            if now() < end:
                argument = self.make(next(self.numbers))
                waiting.append((argument, begin(*argument)))
        return done, wrong

    def fan(self, arguments: Sequence[Any]) -> Sequence[Any]:
        answers = [begin(*argument) for begin, argument in zip(self._asynchronous, arguments, strict=True)]
        return [answer.value for answer in answers]

    def items(self, count: int) -> Iterator[Any]:
        found: Iterator[Any] = buffiter(self._roots[0].items(count), chunk=10, max_chunk=1000)
        return found
