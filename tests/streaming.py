"""Services that stream, what tests of them share, and whether anything of a stream is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

import zmesh
import zmesh.testing
from zmesh.testing import Mesh

ROUND_TRIP = 0.001  # seconds: there and back on the simulated network, with some to spare


BOTH = pytest.mark.parametrize("by_name", [False, True])


class Streams(zmesh.Service):
    def __init__(self, label: str = "") -> None:
        self.label = label
        self.made = 0
        self.opened = 0
        self.closed = 0
        self.seen: list[Any] = []

    @zmesh.rpc(idempotent=True)
    async def count(self, items: int, fail: bool = False, pause: float = 0.0) -> AsyncIterator[int]:
        self.opened += 1
        try:
            for number in range(items):
                if pause:
                    await asyncio.sleep(pause)
                self.made += 1
                yield number
            if fail:
                raise zmesh.DataLoss("torn")
            zmesh.context().reply_metadata["last"] = str(items)
        finally:
            self.closed += 1

    @zmesh.rpc
    async def blobs(self, sizes: list[int]) -> AsyncIterator[bytes]:
        for size in sizes:
            self.made += 1
            yield bytes(size)

    @zmesh.rpc
    async def total(self, numbers: AsyncIterator[int], upto: int = -1) -> int:
        self.opened += 1
        result = 0
        try:
            async for number in numbers:
                self.seen.append(number)
                result += number
                if len(self.seen) == upto:
                    break
        finally:
            self.closed += 1
        return result

    @zmesh.rpc
    async def echo(self, lines: AsyncIterator[str]) -> AsyncIterator[str]:
        async for line in lines:
            yield line

    @zmesh.rpc
    async def hang(self, numbers: AsyncIterator[int]) -> int:
        async for number in numbers:
            self.seen.append(number)
        await asyncio.sleep(1000)
        return 0

    @zmesh.rpc
    async def wrong(self) -> AsyncIterator[int]:
        yield 1
        yield "two"  # type: ignore[misc]

    @zmesh.rpc
    async def ping(self) -> None:
        pass


class Source:
    """Arguments, and whether their generator was closed."""

    def __init__(self, items: int, pause: float = 0.0, error: Exception | None = None) -> None:
        self.items = items
        self.pause = pause
        self.error = error
        self.made = 0
        self.closed = 0

    async def __call__(self) -> AsyncIterator[int]:
        try:
            for number in range(self.items):
                if self.pause:
                    await asyncio.sleep(self.pause)
                self.made += 1
                yield number
            if self.error is not None:
                raise self.error
        finally:
            self.closed += 1


async def lines(*texts: str) -> AsyncIterator[str]:
    for text in texts:
        yield text


async def collect(stream: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in stream]


def at_rest(*hosts: Any) -> None:
    """Nothing is left behind: neither calls, nor what they count."""
    for host in hosts:
        hub = host.node._hub
        for link in hub._links():
            assert not link.pending
            assert not link.running
        assert all(member.in_flight == 0 for member in hub.members)
        assert hub.server is None or hub.server.in_flight == 0


Pair = tuple[Any, Any, Any]


async def pair(mesh: Mesh, service: Streams, by_name: bool = False, **settings: Any) -> Pair:
    server = await mesh.start(service, name="server", **settings)
    caller = await mesh.start(name="caller", **settings)
    return server, caller, caller.node.client("Streams" if by_name else Streams)


NOTHING = contextlib.nullcontext()


class Odd(zmesh.Service):
    """Handlers that do what most do not; each writes down how it ended."""

    def __init__(self) -> None:
        self.log: list[str] = []

    @zmesh.rpc
    async def relay(self, lines: AsyncIterator[str]) -> AsyncIterator[str]:
        try:
            async for line in lines:
                yield line
        except BaseException as error:
            self.log.append(type(error).__name__)
            raise
        self.log.append("end")

    @zmesh.rpc
    async def silent(self) -> AsyncIterator[int]:
        try:
            yield 0
            await asyncio.sleep(1000)
        finally:
            self.log.append("closed")

    @zmesh.rpc
    async def slow_to_close(self, numbers: AsyncIterator[int]) -> AsyncIterator[int]:
        try:
            async for number in numbers:
                yield number
        finally:
            self.log.append("closing")
            await asyncio.sleep(1)
            self.log.append("closed")

    @zmesh.rpc
    async def fails_to_close(self) -> AsyncIterator[int]:
        try:
            for number in itertools.count():
                yield number
        finally:
            raise KeyError("while it closed")

    @zmesh.rpc
    async def fails_at_the_end(self) -> AsyncIterator[int]:
        try:
            yield 0
        finally:
            raise KeyError("at the end")

    @zmesh.rpc
    async def stubborn(self, items: int) -> AsyncIterator[int]:
        for number in range(items):
            try:
                await asyncio.sleep(0.1)
            except asyncio.CancelledError:
                self.log.append("cancelled")
            yield number

    @zmesh.rpc
    async def yields_when_closed(self) -> AsyncIterator[int]:
        for number in itertools.count():
            try:
                yield number
            except GeneratorExit:
                self.log.append("exit")
                yield -1

    @zmesh.rpc
    async def unread(self, numbers: AsyncIterator[int]) -> str:
        return "early"

    @zmesh.rpc
    async def fail_after(self, numbers: AsyncIterator[int], items: int) -> int:
        async for number in numbers:
            if number == items:
                raise zmesh.OutOfRange("too many")
        return 0

    @zmesh.rpc
    async def read_then_wait(self, blobs: AsyncIterator[bytes], first: int) -> list[int]:
        sizes = []
        async for blob in blobs:
            sizes.append(len(blob))
            if len(sizes) == first:
                await asyncio.sleep(5)
        return sizes

    @zmesh.rpc
    async def some_then_wait(self, items: int) -> AsyncIterator[int]:
        for number in range(items):
            yield number
        await asyncio.sleep(1000)

    @zmesh.rpc
    async def nothing(self, items: AsyncIterator[None]) -> AsyncIterator[None]:
        async for item in items:
            yield item

    @zmesh.rpc
    def handed_on(self, items: int) -> AsyncIterator[int]:
        return Source(items)()

    @zmesh.rpc
    async def left(self) -> AsyncIterator[float]:
        yield zmesh.context().remaining
        yield zmesh.context().remaining

    @zmesh.rpc
    async def ping(self) -> None:
        pass


async def odd(mesh: Mesh, service: Odd, by_name: bool = False, **settings: Any) -> Pair:
    server = await mesh.start(service, name="odd", **settings)
    caller = await mesh.start(name="caller", **settings)
    return server, caller, caller.node.client("Odd" if by_name else Odd)


async def take(stream: Any, items: int) -> list[Any]:
    return [await anext(stream) for _ in range(items)]


async def until(mesh: Mesh, true: Callable[[], bool], within: float) -> float:
    """Wait until something is so, and return how long that took."""
    began = mesh.now
    while not true():
        assert mesh.now - began < within
        await asyncio.sleep(0.01)
    return mesh.now - began


class Sink(Streams, name="Streams"):
    @zmesh.rpc
    async def limited(self, numbers: AsyncIterator[int]) -> int:
        self.opened += 1
        try:
            async for number in numbers:
                if number == 5:
                    raise zmesh.OutOfRange("too many")
        finally:
            self.closed += 1
        return 0

    @zmesh.rpc
    async def both(self, numbers: AsyncIterator[int]) -> AsyncIterator[int]:
        self.opened += 1
        try:
            async for number in numbers:
                yield number
        finally:
            self.closed += 1


async def of(*items: Any) -> AsyncIterator[Any]:
    for item in items:
        yield item


class Again(Streams, name="Streams"):
    """The same with a stream of arguments that may be read twice, and the bytes of it."""

    @zmesh.rpc(idempotent=True)
    async def again(self, numbers: AsyncIterator[int]) -> int:
        self.opened += 1
        self.seen.clear()
        total = 0
        try:
            async for number in numbers:
                self.seen.append(number)
                total += number
        finally:
            self.closed += 1
        return total

    @zmesh.rpc(idempotent=True)
    async def sizes(self, blobs: AsyncIterator[bytes]) -> list[int]:
        self.opened += 1
        return [len(blob) async for blob in blobs]

    @zmesh.rpc
    async def once(self, items: int, pause: float) -> AsyncIterator[int]:
        self.opened += 1
        try:
            for number in range(items):
                await asyncio.sleep(pause)
                yield number
        finally:
            self.closed += 1

    @zmesh.rpc
    async def busy(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    @zmesh.rpc
    async def gather(self, numbers: AsyncIterator[int]) -> AsyncIterator[int]:
        async for number in numbers:
            yield number
