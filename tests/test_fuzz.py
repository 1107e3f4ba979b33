"""Whatever arrives: the decoder refuses or decodes, a link answers or ends, a node stays up and its log stays short.

All inputs come from `tests.fuzzing` and a seed, so that a failure can be had again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import cbor2
import pytest
import zmq

import zmesh
from zmesh._client import Outgoing, Target
from zmesh._core import messages as m
from zmesh._core.messages import ProtocolError
from zmesh._core.wire import decode
from zmesh._link import Link, Stage

from . import independent_peer as other
from .fake_link import SERVER_ID, FakeChannel, FakeOwner, accepted_link, frame_of, open_link
from .fuzzing import Frames, Fuzzer

DECODED = 100_000
LINKS = 1_500  # with 20 inputs each
INPUTS_PER_LINK = 20
CONNECTIONS = 250  # with 8 inputs each
INPUTS_PER_CONNECTION = 8

SERVER_TAG = m.tag_of(SERVER_ID)


# -- the decoder


def test_the_decoder_refuses_or_decodes() -> None:
    fuzzer = Fuzzer(seed=2026, to=SERVER_TAG)
    outcomes: Counter[str] = Counter()
    for number in range(DECODED):
        frames = fuzzer.structured() if number % 4 == 0 else fuzzer.mutation()
        try:
            to, clock, messages = decode(frames)
        except ProtocolError as refusal:
            outcomes["refused"] += 1
            why = str(refusal)
        except BaseException as error:
            pytest.fail(f"{error!r} of input {number}: {[frame.hex() for frame in frames]}")
        else:
            outcomes["decoded"] += 1
            assert 0 <= to <= m.LIMIT
            assert 0 <= clock <= m.LIMIT
            why = ""
            for message in messages:
                with contextlib.suppress(ProtocolError):
                    m.check(message)  # type: ignore[arg-type]
        assert len(why) <= 250
        assert why.isascii() or why.isprintable()
    # Neither half of the test is empty.
    assert min(outcomes["refused"], outcomes["decoded"]) > DECODED // 10, outcomes


# -- a link


def waiting(link: Link) -> None:
    """Two calls of ours are open on the link."""
    for _ in range(2):
        target = Target("Echo", None, "Echo.echo", True, False, lambda value: value)
        call = Outgoing.__new__(Outgoing)  # without a client: nothing here waits for its answer
        call.target, call.arguments, call.request_metadata = target, {"value": 1}, None
        member: Any = None
        link.call(call, member, 0.0, 1000)


def connecting(owner: FakeOwner) -> tuple[Link, FakeChannel]:
    return accepted_link(owner)


def opened(owner: FakeOwner) -> tuple[Link, FakeChannel]:
    link, channel = open_link(owner)
    waiting(link)
    return link, channel


def draining(owner: FakeOwner) -> tuple[Link, FakeChannel]:
    link, channel = opened(owner)
    link.drain()
    return link, channel


def parted(owner: FakeOwner) -> tuple[Link, FakeChannel]:
    """We have said GOODBYE and wait for the other side's."""
    link, channel = draining(owner)
    link.goodbye()
    return link, channel


def dialed(owner: FakeOwner) -> tuple[Link, FakeChannel]:
    link, channel = Link(owner, dialed=True), FakeChannel()
    link.channel = channel
    link.opened()
    return link, channel


def dialed_and_open(owner: FakeOwner) -> tuple[Link, FakeChannel]:
    link, channel = dialed(owner)
    link.received([frame_of(SERVER_TAG, m.Hello(id=b"C" * 16, name="other", mesh="default").message())])
    assert link.stage is Stage.OPEN
    waiting(link)
    return link, channel


@pytest.mark.parametrize(
    "stage", [connecting, opened, draining, parted, dialed, dialed_and_open], ids=lambda stage: stage.__name__
)
def test_a_link_survives_whatever_it_receives(
    stage: Callable[[FakeOwner], tuple[Link, FakeChannel]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    fuzzer = Fuzzer(seed=len(stage.__name__), to=SERVER_TAG)
    ends: Counter[str] = Counter()

    async def main() -> None:
        problems: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
        for number in range(LINKS // 6):
            caplog.clear()
            owner = FakeOwner()
            link, channel = stage(owner)
            inputs: list[Frames] = []
            for _ in range(INPUTS_PER_LINK):
                inputs.append(fuzzer.structured() if fuzzer.rng.random() < 0.9 else fuzzer.mutation())
                try:
                    link.received(list(inputs[-1]))
                    link.tick(link._loop.time())
                except BaseException as error:
                    pytest.fail(f"{error!r} in {stage.__name__} {number} after {inputs}")
                if fuzzer.rng.random() < 0.3:
                    await asyncio.sleep(0)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert not problems, (problems, inputs)
            closed = owner.told("link_closed")
            assert len(closed) == (link.stage is Stage.CLOSED)  # told once, and only if so
            answers = channel.messages  # all that was sent decodes
            kinds = Counter(m.check(message) for message in answers)
            assert kinds[m.REJECT] <= 1
            assert kinds[m.GOODBYE] <= 2  # the last word, and the answer to the other side's
            assert all(len(message[2]) <= 500 for message in answers if message[0] == m.REJECT)
            assert len(caplog.records) <= 2, caplog.messages  # one for a bad message, one for the refusal
            assert all(len(text) < 1000 and text.isprintable() for text in caplog.messages)
            ends["closed" if closed else "open"] += 1

    asyncio.run(main())
    assert ends["closed"] > 10, ends


def test_a_flood_of_one_kind_of_nonsense_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        array = cbor2.CBORTag(82, bytes(16))  # which is neither equal nor unequal to anything
        kinds: list[Any] = [
            [m.UNSUPPORTED, 3],
            [99],
            [m.CALL, "one"],
            [m.REPLY, 1],
            None,
            [array, 2],
            [m.REPLY, array, 0],
        ]
        for nonsense in kinds:
            caplog.clear()
            link, _ = open_link(FakeOwner())
            for _ in range(50):
                link.received([frame_of(SERVER_TAG, *[nonsense] * 20)])
            assert link.stage is Stage.OPEN
            assert len([record for record in caplog.records if record.levelno >= logging.INFO]) == 1, nonsense

    asyncio.run(main())


# -- a node, over sockets


class Echo(zmesh.Service):
    """What the honest call while others do their worst."""

    def __init__(self) -> None:
        self.held = asyncio.Event()
        self.release = asyncio.Event()

    @zmesh.rpc(idempotent=True)
    async def echo(self, value: Any) -> Any:
        return value

    @zmesh.rpc
    async def fail(self, text: str) -> None:
        raise zmesh.FailedPrecondition(text)

    @zmesh.rpc
    async def hold(self) -> str:
        self.held.set()
        await self.release.wait()
        return "not touched"


class Hostile:
    """Connections that do not behave, to one address."""

    def __init__(self, address: str, mesh: str, tag: int) -> None:
        self.address, self.mesh, self.tag = address, mesh, tag
        self.context = zmq.Context()
        self.sent = 0

    def close(self) -> None:
        self.context.destroy(linger=0)

    @contextlib.contextmanager
    def connection(self) -> Iterator[zmq.Socket[bytes]]:
        dealer = self.context.socket(zmq.DEALER)
        dealer.sndtimeo = dealer.rcvtimeo = 5000
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

    def without_hello(self, frames: Frames) -> None:
        """Refused at once, once, and not heard any more."""
        with self.connection() as dealer:
            for _ in range(INPUTS_PER_CONNECTION):
                dealer.send_multipart(frames)
                self.sent += 1
            kind, code, text = self.answer(dealer)
            assert (kind, code) == (m.REJECT, other.INVALID_ARGUMENT), text
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


GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL".ljust(24, b"\0") + bytes(31)
READY = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"


def zmtp(frame: bytes) -> bytes:
    """A connection whose ZMTP handshake is in order, and what comes then."""
    return GREETING + b"\x04" + bytes([len(READY)]) + READY + frame


@contextlib.asynccontextmanager
async def attacked_node() -> AsyncIterator[tuple[zmesh.Node, Echo, Hostile, zmesh.Node]]:
    """A node, who attacks it, and an honest client."""
    mesh, echo = "test-" + secrets.token_hex(4), Echo()
    config = zmesh.Config.test()
    node = zmesh.Node(echo, mesh=mesh, listen="tcp://127.0.0.1:*", discovery=None, config=config.replace(ipc=False))
    async with node:
        (address,) = node.addresses
        hostile = Hostile(address, mesh, m.tag_of(bytes.fromhex(node.id) if isinstance(node.id, str) else node.id))
        try:
            async with zmesh.Node(mesh=mesh, peers=[address], discovery=None, config=config) as client:
                assert await client.client(Echo).echo(0) == 0
                yield node, echo, hostile, client
        finally:
            await asyncio.to_thread(hostile.close)


@contextlib.asynccontextmanager
async def in_a_thread(function: Callable[[], None]) -> AsyncIterator[asyncio.Task[None]]:
    """It has ended in any case, also where the test fails: its sockets may not be closed under it."""
    task = asyncio.create_task(asyncio.to_thread(function))
    try:
        yield task
    finally:
        await asyncio.wait([task])
    await task


async def while_honest(client: zmesh.Node, attack: Callable[[], None]) -> int:
    """Attack, and call all the while; the number of calls that were answered, which is all of them."""
    calls = 0
    async with in_a_thread(attack) as attacking:
        while not attacking.done() or not calls:
            calls += 1
            assert await client.client(Echo).options(timeout=10).echo(calls) == calls
            await asyncio.wait([attacking], timeout=0.005)
    return calls


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR], caplog.text
    found = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert all(len(line) < 1000 and line.isprintable() for line in found), found
    return found


def test_a_node_refuses_strangers_with_one_line_each(caplog: pytest.LogCaptureFixture) -> None:
    fuzzer = Fuzzer(seed=77, to=1)
    inputs: list[Frames] = []
    while len(inputs) < CONNECTIONS // 2:
        frames = fuzzer.mutation()
        try:
            to, _, messages = decode(frames)
        except ProtocolError:
            inputs.append(frames)
        else:
            if messages and to > 1:  # for another incarnation
                inputs.append(frames)
    inputs += [
        [b"x" * 70_000],
        [b""],
        [b"GET / HTTP/1.1\r\n\r\n"],
        [cbor2.dumps([0, 0, [[m.CALL, 1, "a", 1, {}, None]]])],
    ]

    async def main() -> None:
        async with attacked_node() as (node, _, hostile, client):
            caplog.clear()

            def attack() -> None:
                for frames in inputs:
                    hostile.without_hello(frames)

            await while_honest(client, attack)
            assert hostile.sent >= 1000
            (refused,) = lines(caplog)  # by address and minute
            assert re.match(
                r"tcp://127\.0\.0\.1: not the zmesh protocol: .*; its link was closed \(protocol\)$", refused
            )
            assert node.stats()["limits"]["protocol"] == len(inputs)

    asyncio.run(main())


def test_a_node_outlives_hostile_peers(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with attacked_node() as (node, echo, hostile, client):
            fuzzer = Fuzzer(seed=78, to=hostile.tag)
            held = asyncio.create_task(client.client(Echo).hold())
            await asyncio.wait_for(echo.held.wait(), 5)
            caplog.clear()
            kept: list[bool] = []

            def attack() -> None:
                for _ in range(CONNECTIONS // 2):
                    inputs = [
                        frames
                        for frames in (
                            fuzzer.structured() if fuzzer.rng.random() < 0.9 else fuzzer.mutation()
                            for _ in range(INPUTS_PER_CONNECTION * 2)
                        )
                        if not says_the_last_word(frames)
                    ]
                    kept.append(hostile.after_hello(inputs))

            await while_honest(client, attack)
            assert hostile.sent >= 1000
            assert kept.count(True) >= 3
            assert kept.count(False) > 5
            found = lines(caplog)
            assert len([line for line in found if line.endswith("(protocol)")]) == 1
            assert node.stats()["limits"]["protocol"] == kept.count(False)
            assert len(found) <= 2 * len(kept)  # at most one about bad messages besides
            echo.release.set()  # replies and cancels for others' calls have not touched this one
            assert await held == "not touched"

    asyncio.run(main())


def says_the_last_word(frames: Frames) -> bool:
    """REJECT and GOODBYE end a link without an answer: there would be nothing to wait for."""
    try:
        _, _, messages = decode(frames)
    except ProtocolError:
        return False
    kinds = [message[0] for message in messages if isinstance(message, list) and message]
    return any(type(kind) is int and kind in (m.REJECT, m.GOODBYE) for kind in kinds)


def test_a_node_outlives_what_is_no_zmtp(caplog: pytest.LogCaptureFixture) -> None:
    fuzzer = Fuzzer(seed=79, to=1)

    async def main() -> None:
        async with attacked_node() as (_, _, hostile, client):
            caplog.clear()

            def attack() -> None:
                for data in (
                    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
                    b"\x16\x03\x01\x02\x00\x01\x00" * 50,
                    b"\0" * 200,
                    b"",
                ):
                    hostile.raw(data, until_closed=False)
                for _ in range(60):
                    hostile.raw(fuzzer.rng.randbytes(fuzzer.rng.randrange(300)), until_closed=False)
                    cut = zmtp(b"\x00\x05hello")
                    hostile.raw(cut[: fuzzer.rng.randrange(len(cut))], until_closed=False)
                for length in (2**63 - 1, 2**40, 64 * 2**20 + 1):  # hung up on, and no memory set aside
                    hostile.raw(zmtp(b"\x02" + length.to_bytes(8, "big") + b"abc"), until_closed=True)
                for command in (b"\x04\x05\x04PING", b"\x04\x00", b"\x06" + bytes(8), b"\x04\xff" + bytes(255)):
                    hostile.raw(zmtp(command), until_closed=False)

            await while_honest(client, attack)
            # libzmq takes some noise for the greeting of ZMTP 1.0: it gets as far as a link, and no further.
            refused = lines(caplog)
            assert len(refused) < hostile.sent / 4
            assert all(line.endswith("(protocol)") for line in refused)

    asyncio.run(main())


def test_unknown_versions_get_a_clear_answer(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with attacked_node() as (_, _, hostile, client):
            caplog.clear()

            def attack() -> None:
                for major in (0, 2, 99, 2**31 - 1):
                    with hostile.connection() as dealer:
                        kind, code, text = hostile.hello(dealer, major)
                        assert (kind, code) == (m.REJECT, other.UNIMPLEMENTED)
                        assert f"protocol version {major}.0 is not spoken here" in text

            await while_honest(client, attack)
            assert len(lines(caplog)) == 4

    asyncio.run(main())


def test_a_client_outlives_a_hostile_server(caplog: pytest.LogCaptureFixture) -> None:
    """The client dials it, is welcomed, calls, and gets nonsense."""

    async def main() -> None:
        async with attacked_node() as (node, _, hostile, _):
            router = hostile.context.socket(zmq.ROUTER)
            router.rcvtimeo = 5000
            address = f"tcp://127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}"
            config = zmesh.Config.test().replace(ipc=False, max_backoff=0.05)
            welcomed = 0

            def misbehave() -> None:
                nonlocal welcomed
                fuzzer = Fuzzer(seed=80, to=0)
                services = [["Echo", "1.0", ""]]
                while welcomed < 30:
                    routing_id, frame = router.recv_multipart()
                    _, _, messages = cbor2.loads(frame)
                    if messages[0][0] != m.HELLO:
                        continue
                    welcomed += 1
                    fuzzer.to = m.tag_of(messages[0][3]["id"])
                    fields = {"id": secrets.token_bytes(16), "name": "bad", "mesh": hostile.mesh, "services": services}
                    router.send_multipart([routing_id, cbor2.dumps([fuzzer.to, 0, [[m.HELLO, 1, 0, fields]]])])
                    for _ in range(10):
                        router.send_multipart([routing_id, *fuzzer.structured()])
                    router.send_multipart([routing_id, b"\xff"])  # and the link is refused, if it still stands
                router.close(linger=0)

            caplog.clear()
            peers = [address, node.addresses[0]]
            async with zmesh.Node(mesh=hostile.mesh, peers=peers, discovery=None, config=config) as client:
                answered: Counter[str] = Counter()
                async with in_a_thread(misbehave) as attacking:
                    while not attacking.done():
                        try:
                            answer = await client.client(Echo).options(timeout=5).echo("honest")
                            honest = isinstance(answer, str) and answer == "honest"  # a hostile answer may be an array
                            answered["answered" if honest else "nonsense"] += 1
                        except zmesh.RpcError as error:
                            answered[type(error).__name__] += 1
                        await asyncio.wait([attacking], timeout=0.005)
                assert await client.client(Echo).options(timeout=5).echo("honest") == "honest"
            assert welcomed == 30
            assert answered["answered"] > 0
            assert len(lines(caplog)) <= 3 * welcomed  # a bad message, the refusal; or what it was told

    asyncio.run(main())
