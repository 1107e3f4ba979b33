"""A peer that means harm. As a program, it attacks one node:

    python -m tests.fuzz.hostile ADDRESS MESH TAG SEED INPUTS

and says as JSON what it sent and how many of its links the node ended.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import cbor2
import zmq

from zmesh._core import messages as m
from zmesh._core.messages import ProtocolError
from zmesh._core.wire import decode

from .inputs import Frames, Fuzzer

PER_LINK: Final = 25  # inputs over one link: enough that calls, credit and items meet, and many links
PATIENCE: Final = 5000  # milliseconds without an answer that are a hang


class Hostile:
    """Connections that do not behave, to one address."""

    def __init__(self, address: str, mesh: str, tag: int) -> None:
        """tag: of the node's incarnation."""
        self.address, self.mesh, self.tag = address, mesh, tag
        self.context = zmq.Context()
        self.sent = 0

    def close(self) -> None:
        self.context.destroy(linger=0)

    @contextlib.contextmanager
    def connection(self) -> Iterator[zmq.Socket[bytes]]:
        dealer = self.context.socket(zmq.DEALER)
        dealer.sndtimeo = dealer.rcvtimeo = PATIENCE
        dealer.connect(self.address)
        try:
            yield dealer
        finally:
            dealer.close(linger=0)

    def hello(self, dealer: zmq.Socket[bytes], major: int = 1, **more: Any) -> list[Any]:
        fields = {"id": secrets.token_bytes(16), "name": "hostile\x1b[2J", "mesh": self.mesh, **more}
        dealer.send(cbor2.dumps([0, 0, [[m.HELLO, major, 0, fields]]]))
        return self.answer(dealer)

    def answer(self, dealer: zmq.Socket[bytes]) -> list[Any]:
        message: list[Any] = cbor2.loads(dealer.recv_multipart()[0])[2][0]
        return message

    def without_hello(self, frames: Frames, times: int) -> None:
        """Refused at once, once, and not heard any more."""
        with self.connection() as dealer:
            for _ in range(times):
                dealer.send_multipart(frames)
                self.sent += 1
            kind, code, text = self.answer(dealer)
            assert (kind, code) == (m.REJECT, 3), text  # INVALID_ARGUMENT
            assert not dealer.poll(5)

    def after_hello(self, inputs: list[Frames]) -> bool:
        """Whether the node kept the link to the end of the inputs: it answers a last ping, or it had ended it."""
        with self.connection() as dealer:
            assert self.hello(dealer)[0] == m.HELLO
            for frames in inputs:
                dealer.send_multipart(frames)
                self.sent += 1
            dealer.send(cbor2.dumps([self.tag, 0, [[m.HEARTBEAT, 123456789, None, None]]]))
            while True:
                for message in cbor2.loads(dealer.recv_multipart()[0])[2]:
                    if message[0] == m.REJECT:
                        return False
                    if message[0] == m.HEARTBEAT and message[2] == 123456789:
                        return True

    def raw(self, data: bytes, *, until_closed: bool) -> None:
        """Bytes that are no ZMTP, or ZMTP that lies."""
        host, port = self.address.removeprefix("tcp://").split(":")
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            with contextlib.suppress(ConnectionError):
                connection.sendall(data)
                self.sent += 1
                while until_closed and connection.recv(4096):
                    pass
            # Gone without a word
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def ends_the_link(frames: Frames, tag: int) -> str | None:
    """How these frames end a link: "goodbye", which has no answer, "violation", which is refused; None: not at all."""
    try:
        to, _, messages = decode(frames)
    except ProtocolError:
        return "violation"
    kinds = [message[0] for message in messages if isinstance(message, list) and message]
    if any(type(kind) is int and kind in (m.REJECT, m.GOODBYE) for kind in kinds):
        return "goodbye"
    return "violation" if to != tag or any(type(kind) is int and kind == m.HELLO for kind in kinds) else None


def attack(hostile: Hostile, seed: int, inputs: int) -> Counter[str]:
    """So many inputs: random ones before a HELLO, and behind it those of a peer that knows the protocol. Every other
    link is that of a careful one, who gets as far as can be without being hung up on."""
    fuzzer, links = Fuzzer(seed, hostile.tag), Counter[str]()
    while hostile.sent < inputs:
        number = links.total()
        if number % 20 == 0:
            hostile.without_hello([b"\xff" + fuzzer.rng.randbytes(20)], 1)
            links["strangers"] += 1
            continue
        ends = ("goodbye", "violation") if number % 2 else ("goodbye",)
        made = (fuzzer.hostile() for _ in range(PER_LINK))
        kept = hostile.after_hello([frames for frames in made if ends_the_link(frames, hostile.tag) not in ends])
        links["kept" if kept else "ended"] += 1
    return links


def main(address: str, mesh: str, tag: str, seed: str, inputs: str) -> None:
    hostile = Hostile(address, mesh, int(tag))
    try:
        links = attack(hostile, int(seed), int(inputs))
        print(json.dumps({"sent": hostile.sent, **links}))
    finally:
        hostile.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
