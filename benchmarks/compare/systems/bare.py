"""Bare sockets, the limit that is measured against: what a program does that needs nothing but messages.

Variants: none, and curve.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import cbor2
import zmq

from zmesh._security.keys import derive

from ..clients import IN_FLIGHT_OF_MAP, SECRET, TEXT, Blocking, now
from ..worker import ready

HIGH_WATER = 20_000


def encrypt(socket: zmq.Socket[bytes], *, server: bool) -> None:
    """Put CURVE on a socket, with the one pair of keys that both sides have, as in a mesh with a secret."""
    pair = derive(SECRET)
    socket.curve_publickey, socket.curve_secretkey = pair.public.encode(), pair.secret.encode()
    if server:
        socket.curve_server = True
    else:
        socket.curve_serverkey = pair.public.encode()


def serve(variant: str, beside: Sequence[str]) -> None:
    """A blocking ROUTER that looks a method up: one message a call, one an item."""
    router: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
    router.linger = 0
    if variant == "curve":
        encrypt(router, server=True)
    router.sndhwm = router.rcvhwm = HIGH_WATER
    router.router_mandatory = True  # so that a full queue blocks instead of losing replies
    ready(f"tcp://127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}")
    methods: dict[str, Callable[[Any], Any]] = {"echo": lambda argument: argument}
    send, receive, dumps, loads = router.send, router.recv, cbor2.dumps, cbor2.loads
    while True:
        caller = receive()
        number, method, argument = loads(receive())
        if method in ("size", "back"):
            answer_large(router, caller, number, method)
            continue
        if method == "items":
            for index in range(argument):
                send(caller, zmq.SNDMORE)
                send(dumps([number, {"i": index, "s": TEXT}]))
            send(caller, zmq.SNDMORE)
            send(dumps([number, None]))
            continue
        send(caller, zmq.SNDMORE)
        send(dumps([number, methods[method](argument)]))


def answer_large(router: zmq.Socket[bytes], caller: bytes, number: int, method: str) -> None:
    """A large value is a frame of its own, without a copy."""
    value = router.recv(copy=False).buffer
    router.send(caller, zmq.SNDMORE)
    if method == "size":
        router.send(cbor2.dumps([number, len(value)]))
    else:
        router.send(cbor2.dumps([number, None]), zmq.SNDMORE)
        router.send(value, copy=False)


class Client(Blocking):
    """Blocking DEALERs: one to each server for the fan, one to all of them for the map."""

    def open(self, addresses: Sequence[str]) -> None:
        self.last = 0
        self.dealers = [self._dealer([address]) for address in addresses]
        self.to_all = self._dealer(addresses)
        self.fan(self.arguments(len(addresses)))

    def _dealer(self, addresses: Sequence[str]) -> zmq.Socket[bytes]:
        dealer: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        dealer.linger = 0
        if self.variant == "curve":
            encrypt(dealer, server=False)
        dealer.sndhwm = dealer.rcvhwm = HIGH_WATER
        for address in addresses:
            dealer.connect(address)
        return dealer

    def echo(self, argument: Any) -> Any:
        self.last += 1
        self.dealers[0].send(cbor2.dumps([self.last, "echo", argument]))
        number, answer = cbor2.loads(self.dealers[0].recv())
        assert number == self.last
        return answer

    def fan(self, arguments: Sequence[Any]) -> Sequence[Any]:
        self.last += 1
        for dealer, argument in zip(self.dealers, arguments, strict=False):
            dealer.send(cbor2.dumps([self.last, "echo", argument]))
        return [cbor2.loads(dealer.recv())[1] for dealer in self.dealers[: len(arguments)]]

    def size(self, value: bytes) -> int:
        size: int = self._ask("size", value)
        return size

    def back(self, value: bytes) -> Any:
        self._ask("back", value)
        return self.dealers[0].recv(copy=False).buffer

    def _ask(self, method: str, value: bytes) -> Any:
        self.last += 1
        self.dealers[0].send(cbor2.dumps([self.last, method, None]), zmq.SNDMORE)
        self.dealers[0].send(value, copy=False)
        number, answer = cbor2.loads(self.dealers[0].recv())
        assert number == self.last
        return answer

    def keep(self, in_flight: int, end: float) -> tuple[int, int]:
        """A window: a new call for each answer."""
        send, receive, make, numbers = self.dealers[0].send, self.dealers[0].recv, self.make, self.numbers
        dumps, loads = cbor2.dumps, cbor2.loads
        waiting: dict[int, Any] = {}
        done = wrong = 0

        def send_one() -> None:
            number = next(numbers)
            waiting[number] = argument = make(number)
            send(dumps([number, "echo", argument]))

        for _ in range(in_flight):
            send_one()
        while waiting:
            number, answer = loads(receive())
            wrong += waiting.pop(number) != answer
            done += 1
            if now() < end:
                send_one()
        return done, wrong

    def items(self, count: int) -> Iterator[Any]:
        receive, loads = self.dealers[0].recv, cbor2.loads
        self.dealers[0].send(cbor2.dumps([0, "items", count]))
        while (item := loads(receive())[1]) is not None:
            yield item

    def mapped(self, arguments: Iterable[Any]) -> Iterable[Any]:
        send, receive, dumps, loads = self.to_all.send, self.to_all.recv, cbor2.dumps, cbor2.loads
        answers: dict[int, Any] = {}
        sent = 0
        for sent, argument in enumerate(arguments, 1):
            send(dumps([sent, "echo", argument]))
            if sent >= IN_FLIGHT_OF_MAP:
                number, answer = loads(receive())
                answers[number] = answer
        while len(answers) < sent:
            number, answer = loads(receive())
            answers[number] = answer
        return [answers[number] for number in range(1, sent + 1)]
