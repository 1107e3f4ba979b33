"""The guard of a ROUTER beside what it must not disturb. What it holds is tested with attackers, in `test_abuse`."""

from __future__ import annotations

import asyncio
import select
import sys
import time

import pytest
import zmq

from zmesh import Config
from zmesh._transport import Channel, Frame, Handler
from zmesh._transport.zeromq import ZeroMQTransport


class Reader:
    """`Handler` that says when something came."""

    def __init__(self) -> None:
        self.frames: asyncio.Queue[list[Frame]] = asyncio.Queue()

    def opened(self) -> None: ...

    def received(self, frames: list[Frame]) -> None:
        self.frames.put_nowait(frames)

    def closed(self, reason: str) -> None: ...


@pytest.mark.skipif(sys.platform != "linux", reason="there is no guard elsewhere")
def test_a_look_leaves_no_message_asleep() -> None:
    """The descriptor is edge-triggered, and the guard asks the socket what waits: that takes the edge away."""
    reader = Reader()

    def accept(channel: Channel) -> Handler:
        return reader

    async def main() -> None:
        transport = ZeroMQTransport(Config())
        stranger = zmq.Context.instance().socket(zmq.DEALER)
        stranger.linger = 0
        try:
            stranger.connect(transport.listen("tcp://127.0.0.1:0", accept))
            inbox = transport._inboxes[False]
            assert inbox.guard is not None
            for number in range(20):
                stranger.send(b"%d" % number)
                if number:  # before the first one, nobody is there to be looked at
                    assert select.select([inbox._descriptor], [], [], 10)[0], (
                        "it has arrived, and the loop stands still"
                    )
                    inbox.guard._look_at_all(time.monotonic())
                assert await asyncio.wait_for(reader.frames.get(), 10) == [b"%d" % number]
        finally:
            stranger.close()
            transport.close()

    asyncio.run(main())
