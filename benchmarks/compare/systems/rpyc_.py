"""RPyC. Arguments are tuples, which go by value; a dictionary would stay where it is and be asked for its fields.

Variants: none, and large. As it comes, large values are compressed, cut into pieces of 64,000 bytes, for each of which
the rest is copied, and wait for TCP's acknowledgements: one of 64 MiB takes longer than half a minute.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import rpyc
from rpyc.core.channel import Channel
from rpyc.core.stream import SocketStream
from rpyc.utils.helpers import buffiter
from rpyc.utils.server import ThreadedServer

from ..clients import TEXT, Blocking, now
from ..worker import ready

SLOW = {"sync_request_timeout": 60.0}


def _tune() -> None:
    Channel.COMPRESSION_THRESHOLD = 1 << 40
    SocketStream.MAX_IO_CHUNK = 1 << 20


class Echo(rpyc.Service):  # type: ignore[misc]
    def exposed_echo(self, name: str, n: int, data: str) -> tuple[str, int, str]:
        return name, n, data

    def exposed_size(self, value: bytes) -> int:
        return len(value)

    def exposed_back(self, value: bytes) -> bytes:
        return value

    def exposed_items(self, count: int) -> Iterator[tuple[int, str]]:
        for index in range(count):
            yield index, TEXT


class Large(Echo):
    def on_connect(self, connection: Any) -> None:
        connection._channel.stream.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def serve(variant: str, beside: Sequence[str]) -> None:
    service: type[Echo] = Echo
    if variant == "large":
        _tune()
        service = Large
    server = ThreadedServer(service, hostname="127.0.0.1", port=0, protocol_config=SLOW)
    ready(f"127.0.0.1:{server.port}")
    server.start()


class Client(Blocking):
    def open(self, addresses: Sequence[str]) -> None:
        places = [address.rpartition(":") for address in addresses]
        if self.variant == "large":
            _tune()
        streams = [SocketStream.connect(host, int(port), nodelay=self.variant == "large") for host, _, port in places]
        self._roots = [rpyc.connect_stream(stream, config=SLOW).root for stream in streams]
        self._echo = self._roots[0].echo
        self._asynchronous = [rpyc.async_(root.echo) for root in self._roots]
        self.echo(self.make(0))

    def make(self, number: int) -> Any:
        return tuple(super().make(number).values())

    def item(self, number: int) -> Any:
        return number, TEXT

    def echo(self, argument: Any) -> Any:
        return self._echo(*argument)

    def size(self, value: bytes) -> int:
        size: int = self._roots[0].size(value)
        return size

    def back(self, value: bytes) -> Any:
        return self._roots[0].back(value)

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
