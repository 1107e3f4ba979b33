"""The guard of a ROUTER beside what it must not disturb; servers that are no better than some callers. What the guard
holds is tested with attackers, in `test_abuse`."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import sys
import threading
import time

import pytest
import zmq

from benchmarks import abuse
from zmesh import Config
from zmesh._transport import Channel, Frame, Handler
from zmesh._transport.zeromq import ZeroMQTransport


class Reader:
    """`Handler` that says when something came."""

    def __init__(self) -> None:
        self.frames: asyncio.Queue[list[Frame]] = asyncio.Queue()
        self.end: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def opened(self) -> None: ...

    def received(self, frames: list[Frame]) -> None:
        self.frames.put_nowait(frames)

    def closed(self, reason: str) -> None:
        self.end.set_result(reason)


@pytest.mark.skipif(sys.platform != "linux", reason="there is no guard elsewhere")
def test_a_look_leaves_no_message_asleep() -> None:
    """The descriptor is edge-triggered, and the guard asks the socket what waits: that takes the edge away."""

    async def main() -> None:
        reader = Reader()

        def accept(channel: Channel) -> Handler:
            return reader

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
                    inbox.guard.look_at_all(time.monotonic())
                assert await asyncio.wait_for(reader.frames.get(), 10) == [b"%d" % number]
        finally:
            stranger.close()
            transport.close()

    asyncio.run(main())


class Server:
    """Sends one message that has no end, to whoever dials it, up to what a test can bear."""

    MOST = 384 * 2**20

    def __init__(self, first: bytes) -> None:
        """first: whole messages that it sends before."""
        self._first = first
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self.sent = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        piece = abuse.frame(bytes(512 * 1024), more=True)
        end, _ = self._listener.accept()
        with end, contextlib.suppress(OSError):
            abuse.shake_hands(end, b"ROUTER")
            end.sendall(self._first)
            while self.sent < self.MOST:
                end.sendall(piece)
                self.sent += len(piece)

    def close(self) -> None:
        self._listener.close()
        self._thread.join(10)


@pytest.mark.skipif(sys.platform != "linux", reason="there is no guard elsewhere")
@pytest.mark.parametrize("first", [b"", abuse.frame(b"hello")], ids=["nothing", "a message"])
def test_a_server_that_sends_a_message_without_an_end_is_left(first: bytes) -> None:
    async def main() -> None:
        transport = ZeroMQTransport(Config(max_message=16 * 2**20))
        reader = Reader()
        with contextlib.closing(Server(first)) as server:
            try:
                transport.dial(server.address, reader)
                assert "more than it may" in await asyncio.wait_for(reader.end, 30)
                assert transport.refusals.counts == {"max_message": 1}
                assert reader.frames.qsize() == bool(first)
            finally:
                transport.close()
        assert server.sent < server.MOST

    asyncio.run(main())


class Slow(Server):
    """Sends a message, half of a large one and, when it is told, the rest."""

    SIZE = 4 * 2**20

    def __init__(self) -> None:
        self.go_on = threading.Event()
        super().__init__(abuse.frame(b"hello"))

    def _serve(self) -> None:
        large = abuse.frame(bytes(self.SIZE))
        end, _ = self._listener.accept()
        with end, contextlib.suppress(OSError):
            abuse.shake_hands(end, b"ROUTER")
            end.sendall(self._first + large[: self.SIZE // 2])
            self.go_on.wait(10)
            end.sendall(large[self.SIZE // 2 :])
            end.recv(1)  # until the other side closes


@pytest.mark.skipif(sys.platform != "linux", reason="there is no guard elsewhere")
def test_a_server_may_take_its_time_for_a_large_message() -> None:
    async def main() -> None:
        transport, reader = ZeroMQTransport(Config()), Reader()
        with contextlib.closing(Slow()) as server:
            try:
                transport.dial(server.address, reader)
                assert await asyncio.wait_for(reader.frames.get(), 10) == [b"hello"]
                (channel,) = transport._dialed
                scales = channel._scales
                assert scales is not None
                async with asyncio.timeout(10):
                    while (scales._received(channel._connection) or 0) < Slow.SIZE // 2:
                        await asyncio.sleep(0.005)
                scales.look_at_all(time.monotonic())
                server.go_on.set()
                (frame,) = await asyncio.wait_for(reader.frames.get(), 10)
                assert len(frame) == Slow.SIZE
                assert not reader.end.done()
            finally:
                server.go_on.set()
                transport.close()

    asyncio.run(main())
