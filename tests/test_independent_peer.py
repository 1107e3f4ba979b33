"""zmesh talks with `tests.independent_peer`, which was written from docs/protocol.md and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any

import pytest

import zmesh

from . import independent_peer as other
from .independent_bulk import BulkDialer

BIG = bytes(range(256)) * 400  # 100 KiB: out of band in both directions
MESH = "test-" + secrets.token_hex(4)


class Echo(zmesh.Service, version="1.1"):
    """Answers with what it is asked."""

    def __init__(self) -> None:
        self.held = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.release = asyncio.Event()

    @zmesh.rpc(idempotent=True)
    async def echo(self, value: Any) -> Any:
        """The value."""
        context = zmesh.context()
        if "sender" in context.metadata:
            context.reply_metadata["receiver"] = "zmesh for " + str(context.metadata["sender"])
        return value

    @zmesh.rpc
    async def fail(self, text: str) -> None:
        raise zmesh.FailedPrecondition(text, details={"tried": [1, 2, 3]})

    @zmesh.rpc
    async def hold(self) -> str:
        self.held.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return "released"


@contextlib.asynccontextmanager
async def zmesh_server() -> AsyncIterator[tuple[zmesh.Node, Echo]]:
    echo = Echo()
    config = zmesh.Config.test()
    async with zmesh.Node(echo, mesh=MESH, listen="tcp://127.0.0.1:*", discovery=None, config=config) as node:
        yield node, echo


@contextlib.asynccontextmanager
async def dialer(node: zmesh.Node, **options: Any) -> AsyncIterator[other.Dialer]:
    peer = await asyncio.to_thread(other.Dialer, tcp(node), MESH, **options)
    try:
        yield peer
    finally:
        await asyncio.to_thread(peer.close)


def tcp(node: zmesh.Node) -> str:
    return next(address for address in node.addresses if address.startswith("tcp:"))


async def ask(peer: other.Dialer, path: str, arguments: Any, *, metadata: Any = None) -> Any:
    return await asyncio.to_thread(lambda: peer.wait(peer.link.call(path, arguments, metadata=metadata)))


# -- the other one calls zmesh


async def called_by_name_and_by_position() -> None:
    async with zmesh_server() as (node, _), dialer(node) as peer:
        assert peer.link.remote["name"] == node.name
        assert [service[:2] for service in peer.link.remote["services"]] == [["Echo", "1.1"]]
        values = ["Wörld", [1, -2, 2**31, 2**53 + 1, 1.5, None, True], {"a": {"b": b"c"}}, -(2**70), {}, []]
        for value in values:
            assert await ask(peer, "Echo.echo", {"value": value}) == (value, None)
            assert await ask(peer, "Echo.echo", [value]) == (value, None)


async def metadata_both_ways() -> None:
    async with zmesh_server() as (node, _), dialer(node) as peer:
        answer = await ask(peer, "Echo.echo", [1], metadata={"sender": "me"})
        assert answer == (1, {"receiver": "zmesh for me"})


async def big_binary_out_of_band() -> None:
    async with zmesh_server() as (node, _), dialer(node) as peer:
        value = {"first": BIG, "second": [BIG[::-1], b"small"]}
        assert await ask(peer, "Echo.echo", {"value": value}) == (value, None)


async def errors_have_code_details_and_whether_it_ran() -> None:
    async with zmesh_server() as (node, _), dialer(node) as peer:
        for path, arguments, code, ran, fields in (
            ("Echo.fail", {"text": "not now"}, 9, True, {"details": {"tried": [1, 2, 3]}}),
            ("Echo.fail", {"text": 5}, 3, False, {}),
            ("Echo.fail", {}, 3, False, {}),
            ("Echo.fail", {"text": "", "more": 1}, 3, False, {}),
            ("Echo.nothing", {}, 12, False, {}),
            ("Nothing.at_all", {}, 12, False, {}),
        ):
            with pytest.raises(other.Status) as caught:
                await ask(peer, path, arguments)
            status = caught.value
            assert (status.code, status.ran, status.fields) == (code, ran, fields), (path, arguments, status)


async def a_call_without_time_does_not_run() -> None:
    async with zmesh_server() as (node, echo), dialer(node) as peer:
        with pytest.raises(other.Status) as caught:
            await asyncio.to_thread(lambda: peer.wait(peer.link.call("Echo.hold", {}, remaining=0)))
        assert (caught.value.code, caught.value.ran) == (other.DEADLINE_EXCEEDED, False)
        with pytest.raises(other.Status) as caught:
            await asyncio.to_thread(lambda: peer.wait(peer.link.call("Echo.hold", {}, remaining=200)))
        assert (caught.value.code, caught.value.ran) == (other.DEADLINE_EXCEEDED, True)
        await asyncio.wait_for(echo.cancelled.wait(), 5)


async def cancel_reaches_the_handler() -> None:
    async with zmesh_server() as (node, echo), dialer(node) as peer:
        number = peer.link.call("Echo.hold", {})
        await asyncio.wait_for(echo.held.wait(), 5)
        peer.cancel(number)
        await asyncio.wait_for(echo.cancelled.wait(), 5)
        assert await ask(peer, "Echo.echo", [1]) == (1, None)
        assert not peer.link.answers  # nothing came for the cancelled one


async def a_ping_is_answered_with_a_report() -> None:
    async with zmesh_server() as (node, echo), dialer(node) as peer:
        number = peer.link.call("Echo.hold", {})
        await asyncio.wait_for(echo.held.wait(), 5)
        peer.link.ping()
        await asyncio.to_thread(peer.run_until, lambda: peer.link.pongs)
        pong, (in_flight, yours, _, _, admission, state, *_) = peer.link.pongs[0]
        assert (pong, in_flight, yours, admission, state) == (1, 1, 1, 0, 0)
        echo.release.set()
        assert (await asyncio.to_thread(peer.wait, number))[0] == "released"


async def unknown_kinds_are_answered() -> None:
    async with zmesh_server() as (node, _), dialer(node) as peer:
        seen: list[list[Any]] = []
        handle = peer.link.handle
        peer.link.handle = lambda message, waited: (seen.append(message), handle(message, waited))  # type: ignore[method-assign]
        peer.link.outbox += [[19, 1, 0, "of a later version"], [99]]
        assert await ask(peer, "Echo.echo", [1]) == (1, None)
        assert [message for message in seen if message[0] == other.UNSUPPORTED] == [[11, 19], [11, 99]]


async def zmesh_drains() -> None:
    async with zmesh_server() as (node, echo), dialer(node) as peer:
        number = peer.link.call("Echo.hold", {})
        await asyncio.wait_for(echo.held.wait(), 5)
        leaving = asyncio.create_task(node.drain())
        await asyncio.to_thread(peer.run_until, lambda: peer.link.drained)
        with pytest.raises(other.Status) as caught:
            await asyncio.to_thread(other.Dialer, tcp(node), MESH)
        assert caught.value.code == other.UNAVAILABLE
        echo.release.set()
        assert (await asyncio.to_thread(peer.wait, number))[0] == "released"
        await asyncio.to_thread(peer.run_until, lambda: peer.link.goodbye)
        await asyncio.wait_for(leaving, 5)


async def links_that_cannot_be_are_rejected() -> None:
    async with zmesh_server() as (node, _):
        address = tcp(node)
        for options, code in (({"mesh": "elsewhere"}, 9), ({"mesh": MESH, "expects": bytes(16)}, 5)):
            with pytest.raises(other.Status) as caught:
                await asyncio.to_thread(lambda options=options: other.Dialer(address, **options))
            assert caught.value.code == code


async def described_to_the_other() -> None:
    async with zmesh_server() as (node, _), dialer(node) as peer:
        described, _metadata = await ask(peer, "zmesh.describe", {"service": "Echo"})
        assert (described["name"], described["version"]) == ("Echo", "1.1")
        echo = described["methods"]["echo"]
        assert (echo["kind"], echo["idempotent"], list(echo["parameters"]["properties"])) == ("unary", True, ["value"])
        with pytest.raises(other.Status) as caught:
            await ask(peer, "zmesh.describe", {"service": "Nothing"})
        assert caught.value.code == other.NOT_FOUND


# -- zmesh calls the other one


def describe(link: other.Link, number: int, arguments: dict[str, Any], metadata: Any) -> Any:
    if arguments["service"] != "Echo":
        raise other.Status(other.NOT_FOUND, "only Echo is here")
    method = {"doc": "", "kind": "unary", "parameters": {}, "result": {}}
    names = {"echo": True, "fail": False, "hold": False, "promised": False}
    methods = {name: {"name": name, "idempotent": idempotent, **method} for name, idempotent in names.items()}
    return {"name": "Echo", "version": "1.0", "doc": "Written elsewhere.", "methods": methods}, None


def echo(link: other.Link, number: int, arguments: dict[str, Any], metadata: Any) -> Any:
    return arguments["value"], {"receiver": b"other", **(metadata or {})}


def fail(link: other.Link, number: int, arguments: dict[str, Any], metadata: Any) -> Any:
    raise other.Status(other.FAILED_PRECONDITION, arguments["text"], fields={"details": {"tried": [1, 2, 3]}})


class Flow(zmesh.Service, version="1.0"):
    """What the other one serves: zmesh needs the annotations only."""

    @zmesh.rpc
    async def count(self, items: int) -> AsyncIterator[int]:
        raise NotImplementedError
        yield 0

    @zmesh.rpc
    async def total(self, numbers: AsyncIterator[int]) -> int:
        raise NotImplementedError

    @zmesh.rpc
    async def double(self, numbers: AsyncIterator[int]) -> AsyncIterator[int]:
        raise NotImplementedError
        yield 0


def count(arguments: dict[str, Any]) -> Generator[Any, Any, None]:
    yield from range(arguments["items"])


def total(arguments: dict[str, Any]) -> Generator[Any, Any, int]:
    result = 0
    while (number := (yield other.TAKE)) is not other.OVER:
        result += number
    return result


def double(arguments: dict[str, Any]) -> Generator[Any, Any, None]:
    while (number := (yield other.TAKE)) is not other.OVER:
        yield number * 2


class OtherServer:
    """The independent listener in a thread of its own; what it is told to do, it does there."""

    def __init__(self) -> None:
        self.held = threading.Event()
        handlers = {"Echo.echo": echo, "Echo.fail": fail, "Echo.hold": self._hold, "zmesh.describe": describe}
        self.peer = other.Listener(MESH, handlers, [["Echo", "1.0", "none"], ["Flow", "1.0", "none"]])
        self.peer.streams = {
            "Flow.count": (False, True, count),
            "Flow.total": (True, False, total),
            "Flow.double": (True, True, double),
        }
        self.stop = threading.Event()
        self._tasks: list[Callable[[], None]] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        self.holding: list[tuple[other.Link, int]] = []

    def _hold(self, link: other.Link, number: int, arguments: Any, metadata: Any) -> Any:
        self.holding.append((link, number))
        self.held.set()
        return other.LATER

    def _serve(self) -> None:
        try:
            while not self.stop.is_set():
                self.peer.run_until(lambda: self.stop.is_set() or self._tasks, timeout=60)
                while self._tasks:
                    self._tasks.pop(0)()
        finally:
            self.peer.close()

    async def perform(self, task: Callable[[], None]) -> None:
        done = threading.Event()
        self._tasks.append(lambda: (task(), done.set()))  # type: ignore[func-returns-value]
        assert await asyncio.to_thread(done.wait, 10)

    def close(self) -> None:
        self.stop.set()
        self._thread.join(10)
        assert not self._thread.is_alive()


@pytest.fixture
def server() -> Iterator[OtherServer]:
    server = OtherServer()
    yield server
    server.close()


@contextlib.asynccontextmanager
async def zmesh_client(server: OtherServer, *services: zmesh.Service, **options: Any) -> AsyncIterator[zmesh.Node]:
    config = zmesh.Config.test()
    peers = [server.peer.address]
    async with zmesh.Node(*services, mesh=MESH, peers=peers, discovery=None, config=config, **options) as node:
        yield node


def test_zmesh_calls_the_other(server: OtherServer) -> None:
    async def main() -> None:
        async with zmesh_client(server) as node:
            client = node.client("Echo")
            for value in ("Wörld", [1, -2, 2**31, 2**53 + 1, 1.5, None, True], {"a": {"b": b"c"}}, -(2**70)):
                assert await client.echo(value=value) == value
            value = {"first": BIG, "second": [BIG[::-1], b"small"]}
            assert await client.echo(value=value) == value
            call = client.options(metadata={"sender": "me"}).echo(value=1)
            await call
            assert dict(call.metadata) == {"receiver": b"other", "sender": "me"}
            with pytest.raises(zmesh.FailedPrecondition, match="not now") as caught:
                await client.fail(text="not now")
            assert (caught.value.may_have_run, caught.value.details) == (True, {"tried": [1, 2, 3]})
            with pytest.raises(zmesh.RpcError, match=r"UNIMPLEMENTED: no Echo.promised here") as refused:
                await client.options(timeout=2.0).promised()
            assert not refused.value.may_have_run

    asyncio.run(main())


def test_zmesh_cancels_and_times_out_at_the_other(server: OtherServer) -> None:
    async def main() -> None:
        async with zmesh_client(server) as node:
            client = node.client("Echo")
            call = asyncio.create_task(client.hold())
            assert await asyncio.to_thread(server.held.wait, 5)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            with pytest.raises(zmesh.DeadlineExceeded):
                await client.options(timeout=0.1).hold()
            await client.echo(value="behind both cancels")
            ((_, first), (link, second)) = server.holding
            # The second ended either by the caller's CANCEL or by the deadline that the other one keeps.
            assert server.peer.cancelled[0] == first
            assert second not in link.running

    asyncio.run(main())


def test_zmesh_answers_the_pings_of_the_other_and_pings_it(server: OtherServer) -> None:
    async def main() -> None:
        async with zmesh_client(server) as node:
            call = asyncio.create_task(node.client("Echo").hold())
            assert await asyncio.to_thread(server.held.wait, 5)
            ((link, number),) = server.holding
            await server.perform(link.ping)
            await server.perform(lambda: server.peer.run_until(lambda: link.pongs))
            assert link.pongs == [[1, None]]  # it serves nothing, so it has no load to report
            heard = link.heard
            await server.perform(lambda: server.peer.run_until(lambda: link.heard > heard))  # a ping of its own
            assert [peer.state for peer in node.peers] == ["alive"]
            await server.perform(lambda: (link.answer(number, "late"), link.flush())[1])
            assert await call == "late"

    asyncio.run(main())


def test_the_other_drains(server: OtherServer) -> None:
    async def main() -> None:
        async with zmesh_client(server) as node:
            call = asyncio.create_task(node.client("Echo").hold())
            assert await asyncio.to_thread(server.held.wait, 5)
            ((link, number),) = server.holding

            def answer_in_the_drain() -> None:
                link.answer(number, "at last")
                link.flush()

            server.peer.handlers["Echo.echo"] = lambda *_: pytest.fail("no call may come after DRAIN_ACK")
            leaving = asyncio.create_task(server.perform(server.peer.drain))
            states: list[str] = []
            drained = asyncio.Event()
            node.on_change(lambda peer, _: (states.append(peer.state), drained.set())[1])
            await asyncio.wait_for(drained.wait(), 5)
            with pytest.raises(zmesh.RpcError) as caught:
                await node.client("Echo").options(timeout=0.2).echo(value=1)
            assert not caught.value.may_have_run
            link.peer.turn, turn = lambda: (answer_in_the_drain(), turn())[1], link.peer.turn  # type: ignore[method-assign]
            assert await call == "at last"
            await leaving
            assert states[0] == "draining"
            assert link.goodbye

    asyncio.run(main())


def test_zmesh_describes_the_other(server: OtherServer) -> None:
    async def main() -> None:
        async with zmesh_client(server) as node:
            described = await node.client("Echo").describe()
            assert described["methods"]["echo"]["idempotent"] is True

    asyncio.run(main())


def test_the_other_calls_back_over_the_link_that_zmesh_dialed(server: OtherServer) -> None:
    """Links are symmetric: who was dialed may call too."""

    async def main() -> None:
        async with zmesh_client(server, Echo(), listen="tcp://127.0.0.1:*") as node:
            assert await node.client("Echo").echo(value=1) == 1
            (link,) = (link for link in server.peer.links() if link.remote.get("addresses"))
            numbers: list[int] = []

            def call_back() -> None:
                numbers.extend([link.call("Echo.echo", {"value": BIG}), link.call("Echo.nothing", {})])
                server.peer.run_until(lambda: not link.opened)

            await server.perform(call_back)
            good, bad = (link.answers[number] for number in numbers)
            assert good == (BIG, None)
            assert (bad.code, bad.ran) == (other.UNIMPLEMENTED, False)

    asyncio.run(main())


async def numbers(items: int) -> AsyncIterator[int]:
    for number in range(items):
        yield number


def test_zmesh_calls_streams_of_the_other(server: OtherServer) -> None:
    async def main() -> None:
        async with zmesh_client(server) as node:
            flow = node.client(Flow)
            for items in (0, 1, 15, 16, 17, 600):  # about one window of the other one's, and two of zmesh's
                stream = flow.count(items)
                assert [number async for number in stream] == list(range(items))
                assert dict(stream.metadata) == {"served": "elsewhere"}
                assert await flow.total(numbers(items)) == sum(range(items))
                assert [number async for number in flow.double(numbers(items))] == list(range(0, 2 * items, 2))
            assert not any(link.streams or link.running for link in server.peer.links())

    asyncio.run(main())


def test_the_other_waits_for_a_reader_that_stops(server: OtherServer) -> None:
    async def main() -> None:
        async with zmesh_client(server) as node:
            async with node.client(Flow).count(100_000) as stream:
                assert await anext(stream) == 0
                (link,) = (link for link in server.peer.links() if link.streams)
                (served,) = link.streams.values()
                window = zmesh.Config.test().stream_items
                assert await node.client("Echo").echo(value=1) == 1  # nothing else is held up
                assert served.most == window
                assert window <= served.sent <= window + 1
            assert await node.client("Echo").echo(value="behind the cancel") == "behind the cancel"
            assert not link.streams
            assert served.sent <= window + 1

    asyncio.run(main())


@pytest.mark.parametrize(
    "scenario",
    [
        called_by_name_and_by_position,
        metadata_both_ways,
        big_binary_out_of_band,
        errors_have_code_details_and_whether_it_ran,
        a_call_without_time_does_not_run,
        cancel_reaches_the_handler,
        a_ping_is_answered_with_a_report,
        unknown_kinds_are_answered,
        zmesh_drains,
        links_that_cannot_be_are_rejected,
        described_to_the_other,
    ],
    ids=lambda scenario: scenario.__name__,
)
def test_the_other_calls_zmesh(scenario: Callable[[], Any]) -> None:
    asyncio.run(scenario())


def test_large_values_by_a_second_connection() -> None:
    def talk(address: str) -> None:
        peer = BulkDialer(address, MESH)
        try:
            for taken in (1, 2):
                value = BIG * 10 * taken
                answer, _ = peer.wait(peer.call_large("Echo.echo", {"value": value}))
                assert answer == value  # which came the same way: `match` saw its place
                assert peer.taken == taken
            small, _ = peer.wait(peer.link.call("Echo.echo", {"value": BIG}))
            assert small == BIG
            assert (peer.received_by_bulk, peer.taken) == (2, 2)
        finally:
            peer.close()

    async def run() -> None:
        async with zmesh_server() as (node, _):
            await asyncio.to_thread(talk, tcp(node))

    asyncio.run(run())
