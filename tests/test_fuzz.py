"""Whatever arrives: the decoder refuses or decodes, a link answers or ends, a node stays up and its log stays short.

All inputs come from `tests.fuzz` and a seed, so that a failure can be had again.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import decimal
import enum
import logging
import re
import secrets
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any, Literal, NamedTuple

import cbor2
import numpy as np
import pytest
import zmq

import zmesh
from zmesh._client import Outgoing, Target
from zmesh._core import messages as m
from zmesh._core.messages import ProtocolError
from zmesh._core.wire import decode
from zmesh._link import Link, Stage
from zmesh.schema import schema_of

from . import independent_peer as other
from .fake_link import SERVER_ID, FakeChannel, FakeOwner, accepted_link, frame_of, open_link
from .fuzz import sockets
from .fuzz.hostile import Hostile
from .fuzz.inputs import Frames, Fuzzer
from .fuzz.sockets import Echo

DECODED = 100_000
ARGUMENTS = 10_000
LINKS = 1_500  # with 20 inputs each
INPUTS_PER_LINK = 20
STRANGERS = 125  # with 8 inputs each
INPUTS_PER_CONNECTION = 8
INPUTS_OF_PEERS = 2_000

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


# -- arguments


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Tree:
    x: int
    y: float = 0.0
    children: list[Tree] = dataclasses.field(default_factory=list)


class Pair(NamedTuple):
    a: int
    b: str = ""


class Everything(zmesh.Service):
    @zmesh.rpc
    async def take(
        self, a: int = 0, b: float = 0.0, c: str = "", d: bytes = b"", e: bool = False,
        f: datetime.datetime | None = None, g: datetime.date | None = None, h: datetime.time | None = None,
        i: datetime.timedelta | None = None,
        j: uuid.UUID | None = None, k: decimal.Decimal | None = None, n: Colour | None = None, o: Tree | None = None,
        p: Pair | None = None, q: set[int] | None = None, r: dict[int, Any] | None = None, s: np.ndarray | None = None,
        t: memoryview | None = None, u: tuple[int, str] | None = None, v: list[int | str] | None = None,
        w: Literal["x"] = "x", x: frozenset[str] | None = None, z: Any = None,
    ) -> None: ...  # fmt: skip


def test_arguments_are_converted_or_refused_with_a_short_reason() -> None:
    fuzzer = Fuzzer(seed=81, to=1)
    method = schema_of(Everything).methods["take"]
    outcomes: Counter[str] = Counter()
    for number in range(ARGUMENTS):
        names = fuzzer.rng.sample(list(method.parameters), fuzzer.rng.choice([1, 1, 2]))
        wire: Any = {name: fuzzer.argument() for name in names} if number % 10 else [fuzzer.argument()]
        try:
            _, _, ((arguments,),) = decode([cbor2.dumps([1, 0, [[wire]]])])  # type: ignore[misc]
        except ProtocolError:
            continue
        try:
            method.load_arguments(arguments)
            outcomes["converted"] += 1
        except zmesh.InvalidArgument as refusal:
            outcomes["refused"] += 1
            why = str(refusal)
            if len(why) > 500:
                pytest.fail(f"{why[:500]}... has {len(why)} characters")
        except BaseException as error:
            pytest.fail(f"{error!r} of {wire!r:.500}")
    assert min(outcomes.values()) > ARGUMENTS // 50, outcomes


# -- a link


def waiting(link: Link) -> None:
    """Two calls of ours are open on the link."""
    for _ in range(2):
        target = Target("Echo", None, "Echo.echo", True, False, lambda value: value)
        call = Outgoing.__new__(Outgoing)  # without a client: nothing here waits for its answer
        call.target, call.arguments, call.request_metadata, call.plain = target, {"value": 1}, None, True
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


GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL".ljust(24, b"\0") + bytes(31)
READY = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"


def zmtp(frame: bytes) -> bytes:
    """A connection whose ZMTP handshake is in order, and what comes then."""
    return GREETING + b"\x04" + bytes([len(READY)]) + READY + frame


@contextlib.asynccontextmanager
async def attacked_node() -> AsyncIterator[tuple[zmesh.Node, Hostile, zmesh.Node]]:
    """A node, who attacks it, and an honest client."""
    async with sockets.attacked_node(zmesh.Config.test()) as (node, _, client):
        hostile = Hostile(node.addresses[0], node.mesh, m.tag_of(bytes.fromhex(node.id)))
        try:
            yield node, hostile, client
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
    while len(inputs) < STRANGERS:
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
        async with attacked_node() as (node, hostile, client):
            caplog.clear()

            def attack() -> None:
                for frames in inputs:
                    hostile.without_hello(frames, INPUTS_PER_CONNECTION)

            await while_honest(client, attack)
            assert hostile.sent >= 1000
            (refused,) = lines(caplog)  # by address and minute
            assert re.match(
                r"tcp://127\.0\.0\.1: not the zmesh protocol: .*; its link was closed \(protocol\)$", refused
            )
            assert node.stats()["limits"]["protocol"] == len(inputs)

    asyncio.run(main())


def test_a_node_outlives_hostile_peers() -> None:
    """A smoke: `make fuzz` has 20,000 inputs."""
    outcome = asyncio.run(sockets.under_attack(INPUTS_OF_PEERS))
    assert outcome.errors == []
    assert outcome.sent >= INPUTS_OF_PEERS
    assert min(outcome.links.values()) >= 5, outcome
    assert outcome.honest > 0
    assert outcome.grown < sockets.MEMORY, outcome


def test_a_node_outlives_what_is_no_zmtp(caplog: pytest.LogCaptureFixture) -> None:
    fuzzer = Fuzzer(seed=79, to=1)

    async def main() -> None:
        async with attacked_node() as (_, hostile, client):
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
        async with attacked_node() as (_, hostile, client):
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
        async with attacked_node() as (node, hostile, _):
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
