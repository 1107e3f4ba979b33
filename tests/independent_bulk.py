"""Section 19 of docs/protocol.md, written from that page alone, on `tests.independent_peer`: a dialer that sends and
receives large values by a second connection."""

from __future__ import annotations

from collections import deque
from typing import Any

import cbor2
import zmq

from .independent_peer import CALL, Dialer, inward, milliseconds, outward, tag_of

PLACE, BULK, TAKEN = 32, 33, 34


class BulkDialer(Dialer):
    def __init__(self, address: str, mesh: str, **options: Any) -> None:
        self.address = address
        self.bulk: Any = None
        self.places: deque[tuple[int, int, int, int, int]] = deque()  # number, kind, call, waited, when
        self.came: deque[tuple[int, Any]] = deque()
        self.sent = self.taken = self.received_by_bulk = 0
        super().__init__(address, mesh, says={"bulk": {"bytes": 2**26}}, **options)
        self.by_control, self.link.handle = self.link.handle, self.handle  # type: ignore[method-assign]

    def open(self) -> None:
        offer = self.link.remote["bulk"]
        self.bulk = self.context.socket(zmq.DEALER)
        self.bulk.linger = 200
        self.bulk.setsockopt(zmq.RECONNECT_IVL, 10**9)
        self.bulk.connect(f"{self.address.rpartition(':')[0]}:{offer['port']}")
        fields = {key: self.hello[key] for key in ("id", "name", "mesh")}
        self.envelope([1, 1, 0, {**fields, "channel": offer["token"]}], [])
        assert self.bulk.poll(5000)
        _, _, [[kind, *_]] = cbor2.loads(self.bulk.recv())
        assert kind == 1

    def envelope(self, message: list[Any], frames: list[bytes]) -> None:
        self.bulk.send_multipart([cbor2.dumps([tag_of(self.link.remote["id"]), 0, [message]]), *frames])

    def call_large(self, path: str, arguments: Any) -> int:
        self.link.calls += 1
        number = self.link.calls
        self.link.opened[number] = number
        self.sent += 1
        self.link.outbox.append([PLACE, self.sent, CALL, number])
        self.link.flush()
        if self.bulk is None:
            self.open()
        frames: list[bytes] = []
        self.envelope([BULK, self.sent, [CALL, number, path, 5000, outward(arguments, frames), None]], frames)
        return number

    def handle(self, message: list[Any], waited: int) -> None:
        match message:
            case [32, number, kind, call, *_]:
                self.places.append((number, kind, call, waited, milliseconds()))
                if self.bulk is None:
                    self.open()
                self.match()
            case [34, number, *_]:
                self.taken = number
            case _:
                self.by_control(message, waited)

    def match(self) -> None:
        while self.places and self.came:
            (number, kind, call, waited, when), (came, message) = self.places.popleft(), self.came.popleft()
            assert number == came
            self.link.outbox.append([TAKEN, number])
            if message is not None:
                assert message[:2] == [kind, call]
                self.by_control(message, waited + milliseconds() - when)

    def turn(self) -> None:
        super().turn()
        if self.bulk is not None and self.bulk.poll(0):
            frames = self.bulk.recv_multipart()
            to, _, [[kind, number, message, *_]] = cbor2.loads(frames[0])
            assert (to, kind) == (self.tag, BULK)
            self.received_by_bulk += 1
            self.came.append((number, inward(message, frames)))
            self.match()
            self.link.flush()
