"""What gRPC's interoperability tests ask of an implementation, each under its own name there, over real sockets.

https://github.com/grpc/grpc/blob/master/doc/interop-test-descriptions.md
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

import zmesh

REQUESTS = [27182, 8, 1828, 45904]  # bytes, as the descriptions have them
RESPONSES = [31415, 9, 2653, 58979]
SPECIAL = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n"


class Interop(zmesh.Service):
    def __init__(self) -> None:
        self.cancelled = asyncio.Event()
        self.received: list[int] = []  # bytes of each request

    @zmesh.rpc
    async def empty_call(self) -> None:
        pass

    @zmesh.rpc
    async def unary_call(self, payload: bytes, size: int) -> bytes:
        echo_metadata()
        self.received.append(len(payload))
        return bytes(size)

    @zmesh.rpc
    async def streaming_input(self, payloads: AsyncIterator[bytes]) -> int:
        echo_metadata()
        try:
            return sum([len(payload) async for payload in payloads])
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    @zmesh.rpc
    async def streaming_output(self, sizes: list[int]) -> AsyncIterator[bytes]:
        echo_metadata()
        for size in sizes:
            yield bytes(size)

    @zmesh.rpc
    async def full_duplex(self, requests: AsyncIterator[tuple[int, bytes]]) -> AsyncIterator[bytes]:
        echo_metadata()
        try:
            async for size, payload in requests:
                self.received.append(len(payload))
                yield bytes(size)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    @zmesh.rpc
    async def status(self, code: int, message: str) -> None:
        raise {2: zmesh.Unknown, 5: zmesh.NotFound}[code](message)

    @zmesh.rpc
    async def status_in_stream(self, message: str) -> AsyncIterator[int]:
        raise zmesh.Unknown(message)
        yield 0

    @zmesh.rpc
    async def sleeping(self, lines: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for line in lines:
            await asyncio.sleep(60)
            yield line


class Larger(zmesh.Service, name="Interop"):
    """The same service as a caller of a later release knows it."""

    @zmesh.rpc
    async def later_call(self) -> None:
        pass


class Absent(zmesh.Service):
    @zmesh.rpc
    async def call(self) -> None:
        pass


def echo_metadata() -> None:
    context = zmesh.context()
    context.reply_metadata.update(context.metadata)


def run(main: Callable[[Interop, zmesh.Node], Coroutine[Any, Any, None]]) -> None:
    async def with_nodes() -> None:
        service = Interop()
        config = zmesh.Config(patience=0.5)
        async with (
            zmesh.Node(service, listen="tcp://127.0.0.1:0", discovery=None) as server,
            zmesh.Node(peers=[server.addresses[0]], discovery=None, config=config) as node,
        ):
            await main(service, node)

    asyncio.run(with_nodes())


async def of(items: list[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item


def test_empty_unary() -> None:
    async def main(_: Interop, node: zmesh.Node) -> None:
        assert await node.client(Interop).empty_call() is None

    run(main)


def test_large_unary() -> None:
    async def main(service: Interop, node: zmesh.Node) -> None:
        assert await node.client(Interop).unary_call(bytes(271828), 314159) == bytes(314159)
        assert service.received == [271828]

    run(main)


def test_client_streaming() -> None:
    async def main(_: Interop, node: zmesh.Node) -> None:
        assert await node.client(Interop).streaming_input(of([bytes(size) for size in REQUESTS])) == 74922

    run(main)


def test_server_streaming() -> None:
    async def main(_: Interop, node: zmesh.Node) -> None:
        assert [len(item) async for item in node.client(Interop).streaming_output(RESPONSES)] == RESPONSES

    run(main)


def test_ping_pong() -> None:
    async def main(service: Interop, node: zmesh.Node) -> None:
        answered: asyncio.Queue[int] = asyncio.Queue()
        answered.put_nowait(0)

        async def requests() -> AsyncIterator[tuple[int, bytes]]:
            for size, payload in zip(RESPONSES, REQUESTS, strict=True):
                await answered.get()  # the next request follows the answer to the last
                yield size, bytes(payload)

        sizes = []
        async for item in node.client(Interop).full_duplex(requests()):
            sizes.append(len(item))
            answered.put_nowait(0)
        assert sizes == RESPONSES
        assert service.received == REQUESTS

    run(main)


def test_empty_stream() -> None:
    async def main(_: Interop, node: zmesh.Node) -> None:
        assert [item async for item in node.client(Interop).full_duplex(of([]))] == []

    run(main)


def test_custom_metadata() -> None:
    async def main(_: Interop, node: zmesh.Node) -> None:
        metadata: dict[str, str | bytes] = {"x-echo-initial": "test_initial", "x-echo-trailing-bin": b"\xab\xab\xab"}
        for client in (node.client(Interop), node.client("Interop")):
            client = client.options(metadata=metadata)
            for call in (
                client.unary_call(bytes(REQUESTS[0]), RESPONSES[0]),
                client.streaming_input(of([bytes(REQUESTS[0])])),
            ):
                await call
                assert dict(call.metadata) == metadata
            for stream in (
                client.full_duplex(of([(RESPONSES[0], bytes(REQUESTS[0]))])),
                client.streaming_output(RESPONSES[:1]),
            ):
                assert [len(item) async for item in stream] == RESPONSES[:1]
                assert dict(stream.metadata) == metadata

    run(main)


def test_status_code_and_message() -> None:
    async def main(_: Interop, node: zmesh.Node) -> None:
        client = node.client(Interop)
        for code in (2, 5):
            with pytest.raises(zmesh.RpcError) as caught:
                await client.status(code, "test status message")
            assert (caught.value.code, caught.value.message) == (code, "test status message")
        with pytest.raises(zmesh.Unknown) as caught:
            await anext(client.status_in_stream("test status message"))
        assert caught.value.message == "test status message"

    run(main)


def test_special_status_message() -> None:
    async def main(_: Interop, node: zmesh.Node) -> None:
        with pytest.raises(zmesh.Unknown) as caught:
            await node.client(Interop).status(2, SPECIAL)
        assert caught.value.message == SPECIAL
        with pytest.raises(zmesh.Unknown) as caught:
            await anext(node.client(Interop).status_in_stream(SPECIAL))
        assert caught.value.message == SPECIAL

    run(main)


def test_unimplemented_method() -> None:
    async def main(_: Interop, node: zmesh.Node) -> None:
        with pytest.raises(zmesh.Unimplemented, match="has no method 'later_call'"):
            await node.client(Larger).later_call()

    run(main)


def test_unimplemented_service() -> None:
    """There is no address to call here: a service that nobody offers has no node, so its code is UNAVAILABLE."""

    async def main(_: Interop, node: zmesh.Node) -> None:
        with pytest.raises(zmesh.Unavailable, match=r"no node offers 'Absent' after 0\.5 s: saw 1 node"):
            await node.client(Absent).call()

    run(main)


def test_cancel_after_begin() -> None:
    async def main(service: Interop, node: zmesh.Node) -> None:
        began = asyncio.Event()

        async def nothing() -> AsyncIterator[bytes]:
            yield b"begun"
            began.set()
            await asyncio.Event().wait()

        call = asyncio.create_task(node.client(Interop).streaming_input(nothing()))
        await began.wait()
        hub = node._hub
        assert hub is not None
        # Until the server has begun with it: what never began is not cancelled.
        while not any(attempt.call.begun for link in hub._links() for attempt in link.pending.values()):
            await asyncio.sleep(0.001)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.wait_for(service.cancelled.wait(), 5)

    run(main)


def test_cancel_after_first_response() -> None:
    async def main(service: Interop, node: zmesh.Node) -> None:
        async def one() -> AsyncIterator[tuple[int, bytes]]:
            yield RESPONSES[0], bytes(REQUESTS[0])
            await asyncio.Event().wait()

        stream = node.client(Interop).full_duplex(one())
        assert len(await anext(stream)) == RESPONSES[0]
        await stream.aclose()
        assert [item async for item in stream] == []
        await asyncio.wait_for(service.cancelled.wait(), 5)

    run(main)


def test_timeout_on_sleeping_server() -> None:
    async def main(_: Interop, node: zmesh.Node) -> None:
        client = node.client(Interop)
        await client.empty_call()
        with pytest.raises(zmesh.DeadlineExceeded):
            await anext(client.options(timeout=0.05).sleeping(of([bytes(27182)])))

    run(main)
