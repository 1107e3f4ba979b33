"""One link of a node with nothing around it: what it answers to frames, without sockets."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from typing import Any

from zmesh._core import messages as m
from zmesh._core.messages import Hello, Message
from zmesh._core.wire import decode
from zmesh._link import Link
from zmesh._transport import Frame, Sent
from zmesh._waiter import Stepper
from zmesh.config import Config

SERVER_ID = bytes.fromhex("5353535353535353a1a2a3a4a5a6a7a8")
CLIENT = Hello(id=bytes.fromhex("434343434343434301020304050607ff"), name="me", mesh="default")


class FakeChannel:
    """Takes every envelope and keeps it."""

    remote = address = "somewhere"
    key: str | None = None

    def __init__(self) -> None:
        self.sent: list[list[bytes]] = []
        self.closed = False

    def send(self, frames: Sequence[Frame]) -> Sent:
        assert not self.closed
        self.sent.append([bytes(frame) for frame in frames])
        return Sent.TAKEN

    def close(self, linger: float = 0.0) -> None:
        self.closed = True

    def penalize(self) -> None:
        self.penalized = True

    def hang_up(self) -> None:
        self.close()

    @property
    def messages(self) -> list[Any]:
        return [message for frames in self.sent for message in decode(frames)[2]]


class FakeOwner:
    """A node that admits everybody, runs nothing, and writes down what it is told."""

    def __init__(self, config: Config | None = None) -> None:
        self.config = Config() if config is None else config
        self.identity = Hello(id=SERVER_ID, name="greeter-1", mesh="default")
        self.tag = m.tag_of(SERVER_ID)
        self.events: list[tuple[Any, ...]] = []

    @functools.cached_property
    def stepper(self) -> Stepper:
        return Stepper(asyncio.get_running_loop())

    def hello(self, expects: bytes | None) -> Hello:
        return self.identity

    def admits(self, link: Link, hello: Hello) -> tuple[int, str] | None:
        return None

    def report(self, link: Link) -> Message | None:
        return None

    def link_closed(self, link: Link, reason: str, *, goodbye: bool) -> None:
        self.events.append(("link_closed", reason, goodbye))

    def __getattr__(self, name: str) -> Callable[..., None]:
        if not (name.startswith("link_") or name.endswith("_received") or name == "limit_broken"):
            raise AttributeError(name)
        return lambda link, *args: self.events.append((name, *args))

    def told(self, name: str) -> list[tuple[Any, ...]]:
        return [event[1:] for event in self.events if event[0] == name]


def accepted_link(owner: FakeOwner) -> tuple[Link, FakeChannel]:
    """A link that somebody dialed, before HELLO. Call it with a running loop."""
    link, channel = Link(owner, dialed=False), FakeChannel()
    link.channel = channel
    return link, channel


def open_link(owner: FakeOwner) -> tuple[Link, FakeChannel]:
    """The same after the handshake; the channel has forgotten it."""
    link, channel = accepted_link(owner)
    link.received([frame_of(0, CLIENT.message())])
    assert link.remote is not None
    channel.sent.clear()
    return link, channel


def frame_of(to: int, *messages: Message) -> bytes:
    from zmesh._core.wire import encode

    return encode(to, 0, list(messages))


async def answers_to(frames: Sequence[Frame], *, greeted: bool) -> list[Any]:
    """What a listener sends back for one ZeroMQ message."""
    link, channel = open_link(FakeOwner()) if greeted else accepted_link(FakeOwner())
    link.received(list(frames))
    await asyncio.sleep(0)  # what it posts leaves at the end of the turn
    return channel.messages
