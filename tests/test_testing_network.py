"""The in-memory network: what it does as ZeroMQ over TCP does, and its faults."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import subprocess
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from zmesh._transport import Channel, Frame, Sent
from zmesh.config import Config
from zmesh.discovery import Sighting
from zmesh.testing import _loop
from zmesh.testing._discovery import MemoryDiscovery
from zmesh.testing._loop import Process, VirtualLoop
from zmesh.testing._network import Link, Machine, Network
from zmesh.testing._transport import MemoryTransport


class Ear:
    """A handler that writes down what it hears, and when."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.heard: list[Any] = []
        self.channel: Channel | None = None

    def opened(self) -> None:
        self.note("opened")

    def received(self, frames: list[Frame]) -> None:
        self.note([bytes(frame) for frame in frames])

    def closed(self, reason: str) -> None:
        self.note(reason)

    def note(self, what: object) -> None:
        self.heard.append((self.world.loop.now, what))

    @property
    def what(self) -> list[object]:
        return [what for _, what in self.heard]

    @property
    def when(self) -> float:
        return float(self.heard[-1][0])


class Computer:
    """A machine with a process and its transport."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.machine: Machine = world.network.machine(name)
        self.boot()

    def boot(self) -> None:
        self.process = Process(self.world.loop, self.machine.name)
        self.transport = MemoryTransport(self.world.network, self.machine, self.process, Config())
        self.accepted: list[Ear] = []

    def listen(self, address: str = "tcp://*:0") -> str:
        return self.transport.listen(address, self.accept)

    def accept(self, channel: Channel) -> Ear:
        ear = Ear(self.world)
        ear.channel = channel
        self.accepted.append(ear)
        return ear

    def dial(self, address: str) -> tuple[Channel, Ear]:
        ear = Ear(self.world)
        return self.transport.dial(address, ear), ear

    def stop(self) -> None:
        self.process.freeze()
        self.world.network.stop(self.transport)

    def cont(self) -> None:
        self.world.network.cont(self.transport)
        self.process.thaw()

    def kill(self) -> None:
        self.process.kill()
        self.world.network.sever(self.transport)


class World:
    def __init__(self, link: Link | None, seed: int) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.loop = loop
        self.network = Network(loop, random.Random(seed), link)
        self.a = Computer(self, "a")
        self.b = Computer(self, "b")

    async def connect(self, patience: float = 0.1) -> tuple[Channel, Ear, Ear]:
        """A connection from a to b over which one message went each way."""
        channel, ear = self.a.dial(self.b.listen())
        await asyncio.sleep(patience)
        channel.send([b"hello"])
        await asyncio.sleep(patience)
        there = self.b.accepted[-1]
        assert there.channel is not None
        there.channel.send([b"welcome"])
        await asyncio.sleep(patience)
        assert ear.what == ["opened", [b"welcome"]]
        assert there.what == [[b"hello"]]
        ear.heard.clear()
        there.heard.clear()
        return channel, ear, there


Test = Callable[[World], Coroutine[Any, Any, None]]


def in_world(link: Link | None = None, seed: int = 0) -> Callable[[Test], Callable[[], None]]:
    def wrap(test: Test) -> Callable[[], None]:
        async def main() -> None:
            await test(World(link, seed))

        def wrapper() -> None:
            _loop.run(main)

        wrapper.__name__ = test.__name__
        return wrapper

    return wrap


PLAIN = Link(delay=0.01, jitter=0.0)


@in_world(PLAIN)
async def test_a_message_goes_each_way(world: World) -> None:
    address = world.b.listen()
    assert address == "tcp://10.0.0.2:49152"
    channel, ear = world.a.dial(address)
    assert channel.remote == address
    assert channel.send([b"too early"]) is Sent.FULL
    await asyncio.sleep(1)
    assert ear.heard == [(pytest.approx(0.04), "opened")]  # TCP's round trip and ZMTP's
    assert world.b.accepted == []  # a ROUTER knows a peer by its first message
    large = bytearray(b"frame")
    assert channel.send([b"envelope", memoryview(large)]) is Sent.TAKEN
    large[:] = b"other"
    await asyncio.sleep(1)
    (there,) = world.b.accepted
    assert there.heard == [(pytest.approx(1.01), [b"envelope", b"frame"])]
    assert there.channel is not None
    assert there.channel.remote == "connection 1"
    assert there.channel.send([b"answer"]) is Sent.TAKEN
    await asyncio.sleep(1)
    assert ear.heard[1:] == [(pytest.approx(2.01), [b"answer"])]


@in_world(PLAIN)
async def test_later_frames_come_as_memoryviews(world: World) -> None:
    kinds: list[type] = []

    class Looks(Ear):
        def received(self, frames: list[Frame]) -> None:
            kinds.extend(type(frame) for frame in frames)

    address = world.b.transport.listen("tcp://*:7", lambda channel: Looks(world))
    channel, _ = world.a.dial(address)
    await asyncio.sleep(1)
    channel.send([b"1", b"2"])
    await asyncio.sleep(1)
    assert kinds == [bytes, memoryview]


@in_world(Link(delay=0.01, jitter=0.05, loss=0.3))
async def test_order_is_kept_and_nothing_lost_whatever_the_path(world: World) -> None:
    channel, _ = world.a.dial(world.b.listen())
    await asyncio.sleep(5)
    for n in range(500):
        assert channel.send([str(n).encode()]) is Sent.TAKEN
        await asyncio.sleep(0.001)
    await asyncio.sleep(5)
    (there,) = world.b.accepted
    assert there.what == [[str(n).encode()] for n in range(500)]
    assert there.when > 5.7  # some were sent again after 200 ms and more


@in_world(PLAIN)
async def test_nobody_listens(world: World) -> None:
    _, refused = world.a.dial("tcp://10.0.0.2:7001")
    _, unknown = world.a.dial("tcp://192.168.0.1:7001")
    await asyncio.sleep(1)
    assert refused.heard == [(pytest.approx(0.02), "connection refused or unreachable")]
    assert unknown.heard == [(pytest.approx(0.02), "connection refused or unreachable")]
    for wrong in ("10.0.0.2:7001", "tcp://host", "tcp://host:70000", "udp://host:1"):
        with pytest.raises(ValueError, match="is no address"):
            world.a.dial(wrong)


@in_world(PLAIN)
async def test_addresses_are_taken_once_and_belong_to_a_machine(world: World) -> None:
    assert world.b.listen("tcp://0.0.0.0:7001") == "tcp://10.0.0.2:7001"
    with pytest.raises(OSError, match="already in use") as caught:
        world.b.listen("tcp://*:7001")
    assert caught.value.errno == errno.EADDRINUSE
    with pytest.raises(OSError, match="no address of b") as caught:
        world.b.listen("tcp://10.0.0.1:7001")
    assert caught.value.errno == errno.EADDRNOTAVAIL
    assert world.a.listen("tcp://*:7001") == "tcp://10.0.0.1:7001"
    _, by_name = world.a.dial("tcp://b:7001")
    _, itself = world.a.dial("tcp://127.0.0.1:7001")
    await asyncio.sleep(1)
    assert by_name.what == itself.what == ["opened"]


@in_world(PLAIN)
async def test_a_closed_end_is_told_to_the_dialer_and_found_by_the_listener(world: World) -> None:
    channel, ear, there = await world.connect()
    channel.send([b"last words"])
    await asyncio.sleep(0)
    channel.close(linger=1)
    await asyncio.sleep(1)
    assert channel.send([b"x"]) is Sent.GONE
    assert ear.what == []  # no callback after our own close
    assert there.what == [[b"last words"]]
    assert there.channel is not None
    assert there.channel.send([b"x"]) is Sent.GONE
    channel, ear = world.a.dial("tcp://10.0.0.2:49152")
    await asyncio.sleep(1)
    world.b.transport.close()
    await asyncio.sleep(1)
    assert ear.what == ["opened", "connection lost"]
    assert channel.send([b"x"]) is Sent.GONE


def test_a_close_without_linger_may_lose_what_was_sent_just_now() -> None:
    def arrives(seed: int) -> int:
        async def main() -> int:
            world = World(PLAIN, seed)
            channel, _, there = await world.connect()
            for _ in range(5):
                channel.send([b"x"])
            channel.close()
            await asyncio.sleep(1)
            return len(there.what)

        return _loop.run(main)

    assert {arrives(seed) for seed in range(60)} == {0, 1, 2, 3, 4, 5}


@in_world(PLAIN)
async def test_what_comes_on_a_closed_channel_is_ignored_until_it_ends(world: World) -> None:
    channel, ear, there = await world.connect()
    assert there.channel is not None
    accepted = len(world.b.accepted)
    there.channel.send([b"the last word"])
    there.channel.close(linger=0.1)
    channel.send([b"again"])
    await asyncio.sleep(0.5)
    assert (there.what, len(world.b.accepted)) == ([], accepted)
    assert ear.what == [[b"the last word"]]
    await asyncio.sleep(0.5)
    assert ear.what == [[b"the last word"], "connection lost"]


@in_world(PLAIN)
async def test_a_killed_process_is_noticed_at_once_and_what_it_sent_arrives(world: World) -> None:
    channel, ear, there = await world.connect()
    assert there.channel is not None
    for n in range(500):
        there.channel.send([str(n).encode()])
    world.b.kill()
    killed = world.loop.now
    await asyncio.sleep(1)
    assert ear.what == [*([str(n).encode()] for n in range(500)), "connection lost"]
    assert ear.when == pytest.approx(killed + 0.01)
    _, refused = world.a.dial("tcp://10.0.0.2:49152")
    await asyncio.sleep(1)
    assert refused.what == ["connection refused or unreachable"]
    world.b.boot()
    assert world.b.listen("tcp://*:49152") == "tcp://10.0.0.2:49152"
    _, again = world.a.dial("tcp://10.0.0.2:49152")
    await asyncio.sleep(1)
    assert again.what == ["opened"]
    assert channel.send([b"x"]) is Sent.GONE


@in_world(PLAIN)
async def test_a_killed_dialer_is_gone_for_the_listener(world: World) -> None:
    _, ear, there = await world.connect()
    world.a.kill()
    await asyncio.sleep(1)
    assert there.channel is not None
    assert there.channel.send([b"x"]) is Sent.GONE
    assert there.what == ear.what == []


@in_world(PLAIN)
async def test_a_cut_is_silent_until_heartbeats_fail(world: World) -> None:
    channel, ear, there = await world.connect()
    cut = world.loop.now
    world.network.cut(world.a.machine, world.b.machine)
    world.network.cut(world.b.machine, world.a.machine)
    await asyncio.sleep(0.7)
    assert channel.send([b"lost"]) is Sent.TAKEN
    assert ear.what == []
    await asyncio.sleep(1)
    assert ear.what == ["heartbeat timed out"]
    assert 0.75 <= ear.when - cut <= 1.0
    assert there.channel is not None
    assert there.channel.send([b"x"]) is Sent.GONE
    assert there.what == []


@in_world(PLAIN)
async def test_a_short_cut_only_delays(world: World) -> None:
    channel, ear, there = await world.connect()
    cut = world.loop.now
    world.network.cut(world.a.machine, world.b.machine)
    world.network.cut(world.b.machine, world.a.machine)
    channel.send([b"1"])
    channel.send([b"2"])
    await asyncio.sleep(0.5)
    world.network.heal(world.a.machine, world.b.machine)
    world.network.heal(world.b.machine, world.a.machine)
    await asyncio.sleep(2)
    assert there.what == [[b"1"], [b"2"]]
    assert there.when - cut == pytest.approx(0.61)  # sent again after 200 and after 400 ms more
    assert ear.what == []


@in_world(PLAIN)
async def test_a_one_way_cut_ends_both_ends(world: World) -> None:
    channel, ear, there = await world.connect()
    world.network.cut(world.a.machine, world.b.machine)
    assert there.channel is not None
    there.channel.send([b"still comes"])
    await asyncio.sleep(2)
    assert ear.what == [[b"still comes"], "connection lost"]  # b heard nothing, and said so
    assert there.channel.send([b"x"]) is Sent.GONE
    assert channel.send([b"x"]) is Sent.GONE


@in_world(PLAIN)
async def test_an_isolated_machine_is_cut_from_all(world: World) -> None:
    _, ear, _ = await world.connect()
    world.network.isolate(world.b.machine, True)
    _, waiting = world.a.dial("tcp://10.0.0.2:49152")
    await asyncio.sleep(2)
    assert ear.what == ["heartbeat timed out"]
    assert waiting.what == []
    world.network.isolate(world.b.machine, False)
    await asyncio.sleep(10)
    assert waiting.what == ["opened"]  # TCP tries for two minutes


@in_world(PLAIN)
async def test_a_reset_loses_what_is_on_its_way(world: World) -> None:
    channel, ear, there = await world.connect()
    channel.send([b"x"])
    world.network.reset(world.b.machine, world.a.machine)
    await asyncio.sleep(1)
    assert ear.what == ["connection lost"]
    assert there.what == []
    assert there.channel is not None
    assert there.channel.send([b"x"]) is Sent.GONE


@in_world(PLAIN)
async def test_a_stalled_process_keeps_its_connections(world: World) -> None:
    channel, ear, there = await world.connect()
    world.b.process.freeze()
    channel.send([b"1"])
    await asyncio.sleep(5)
    assert there.what == []
    world.b.process.thaw()
    await asyncio.sleep(1)
    assert there.what == [[b"1"]]
    assert ear.what == []


@in_world(PLAIN)
async def test_a_stopped_process_sends_no_heartbeats(world: World) -> None:
    channel, ear, there = await world.connect()
    world.b.stop()
    stopped = world.loop.now
    await asyncio.sleep(0.5)
    channel.send([b"1"])
    _, greeted = world.a.dial("tcp://10.0.0.2:49152")
    await asyncio.sleep(4.5)
    assert ear.what == ["heartbeat timed out"]
    assert 0.75 <= ear.when - stopped <= 1.0
    assert greeted.what == ["ZMTP handshake failed"]
    assert there.what == []
    world.b.cont()
    await asyncio.sleep(1)
    assert there.what in ([], [[b"1"]])  # read or not before its own timer closed the connection
    assert there.channel is not None
    assert there.channel.send([b"x"]) is Sent.GONE


@in_world(PLAIN)
async def test_a_short_stop_is_survived(world: World) -> None:
    channel, ear, there = await world.connect()
    world.b.stop()
    _, greeted = world.a.dial("tcp://10.0.0.2:49152")
    channel.send([b"1"])
    await asyncio.sleep(0.5)
    world.b.cont()
    await asyncio.sleep(2)
    assert there.what == [[b"1"]]
    assert ear.what == []
    assert greeted.what == ["opened"]


@in_world(PLAIN)
async def test_poll_delivers_what_has_arrived(world: World) -> None:
    channel, ear, there = await world.connect()
    world.b.process.freeze()
    for n in range(250):
        channel.send([str(n).encode()])
    await asyncio.sleep(1)
    world.b.transport.poll(1.0)
    assert len(there.what) == 250
    assert there.channel is not None
    world.a.process.freeze()
    there.channel.send([b"answer"])
    world.b.kill()
    await asyncio.sleep(1)
    assert ear.what == []
    world.a.transport.poll(1.0)
    assert ear.what == [[b"answer"], "connection lost"]


@in_world(PLAIN)
async def test_a_peer_that_does_not_read_fills_the_queue(world: World) -> None:
    channel, _, there = await world.connect()
    world.b.process.freeze()
    taken = 0
    while channel.send([b"x"]) is Sent.TAKEN:
        taken += 1
        await asyncio.sleep(0.001)
    assert taken == 2000
    world.b.process.thaw()
    await asyncio.sleep(1)
    assert len(there.what) == 2000
    assert channel.send([b"x"]) is Sent.TAKEN


@in_world(PLAIN)
async def test_a_turn_takes_a_share(world: World) -> None:
    channel, _, there = await world.connect()
    world.b.process.freeze()
    for _ in range(250):
        channel.send([b"x"])
    await asyncio.sleep(1)
    world.b.process.thaw()
    shares: list[int] = []
    while len(there.what) < 250:
        await asyncio.sleep(0)
        shares.append(len(there.what))
    assert sorted(set(shares) - {0}) == [100, 200, 250]


@in_world(PLAIN)
async def test_links_differ(world: World) -> None:
    world.network.set_link(world.a.machine, world.b.machine, Link(delay=0.5, jitter=0))
    _, ear = world.a.dial(world.b.listen())
    await asyncio.sleep(5)
    assert ear.heard == [(pytest.approx(1.02), "opened")]
    with pytest.raises(ValueError, match="0 <= loss < 1"):
        Link(loss=1.0)


@in_world(PLAIN)
async def test_a_handler_that_raises_does_not_swallow_the_rest(world: World) -> None:
    class Clumsy(Ear):
        def received(self, frames: list[Frame]) -> None:
            super().received(frames)
            if frames == [b"1"]:
                raise KeyError("clumsy")

    ear = Clumsy(world)
    channel, _ = world.a.dial(world.b.transport.listen("tcp://*:7", lambda channel: ear))
    await asyncio.sleep(1)
    channel.send([b"1"])
    channel.send([b"2"])
    await asyncio.sleep(1)
    assert ear.what == [[b"1"], [b"2"]]
    assert [type(error) for error in world.loop.errors] == [KeyError]
    world.loop.errors.clear()


# -- discovery


class Looker:
    def __init__(self, computer: Computer) -> None:
        self.computer = computer
        self.source = MemoryDiscovery(computer.world.network, computer.machine, computer.process)
        self.events: list[str] = []

    async def start(self, *, advertise: bool = False) -> None:
        name = self.computer.machine.name

        async def inside() -> None:
            await self.source.start(
                lambda sighting: self.events.append(f"+{sighting.key}"), lambda key: self.events.append(f"-{key}")
            )
            if advertise:
                await self.source.advertise(Sighting(name, ("tcp://10.0.0.9:1",), name=name, mesh="default"))

        await self.computer.process.run(inside())


@in_world()
async def test_nodes_are_found_and_say_goodbye(world: World) -> None:
    early, late = Looker(world.a), Looker(world.b)
    await early.start(advertise=True)
    await asyncio.sleep(10)
    await late.start(advertise=True)
    began = world.loop.now
    await asyncio.sleep(0.2)
    assert early.events == ["+b"]
    assert late.events == ["+a"]
    assert world.loop.now - began < 0.3
    await late.source.withdraw()
    await asyncio.sleep(1)
    assert early.events == ["+b", "-b"]
    await late.source.close()
    await early.source.close()
    assert "simulated" in early.source.describe()


@in_world()
async def test_a_killed_node_stays_in_sight(world: World) -> None:
    looker, seen = Looker(world.a), Looker(world.b)
    await looker.start()
    await seen.start(advertise=True)
    await asyncio.sleep(2)
    world.b.kill()
    await asyncio.sleep(300)
    assert looker.events == ["+b"]
    newcomer = Looker(Computer(world, "c"))
    await newcomer.start()
    await asyncio.sleep(300)
    assert newcomer.events == []


@in_world()
async def test_discovery_does_not_cross_a_cut_and_does_after_it(world: World) -> None:
    looker, seen = Looker(world.a), Looker(world.b)
    world.network.isolate(world.b.machine, True)
    await looker.start()
    await seen.start(advertise=True)
    await asyncio.sleep(30)
    assert looker.events == []
    world.network.isolate(world.b.machine, False)
    await asyncio.sleep(60)
    assert looker.events == ["+b"]
    world.network.cut(world.b.machine, world.a.machine)
    await seen.source.withdraw()
    await asyncio.sleep(60)
    assert looker.events == ["+b"]  # nobody heard the goodbye


@in_world()
async def test_a_stopped_node_answers_late(world: World) -> None:
    looker, seen = Looker(world.a), Looker(world.b)
    await seen.start(advertise=True)
    await asyncio.sleep(5)
    world.b.stop()
    await looker.start()
    await asyncio.sleep(5)
    assert looker.events == []
    world.b.cont()
    await asyncio.sleep(0.1)
    assert looker.events == ["+b"]


# -- replay


def hash_of_a_run(seed: int) -> str:
    """A run with some of everything; printed by another process below."""

    async def main() -> str:
        world = World(Link(delay=0.001, jitter=0.01, loss=0.1), seed)
        channel, ear, there = await world.connect(patience=5)
        channels: Sequence[Channel | None] = [channel, there.channel]
        for n in range(200):
            for end in channels:
                if end is not None:
                    end.send([str(n).encode(), b"x" * n])
            await asyncio.sleep(world.network.random.random() * 0.01)
            if n == 100:
                world.network.cut(world.a.machine, world.b.machine)
            elif n == 150:
                world.network.heal(world.a.machine, world.b.machine)
        world.b.kill()
        await asyncio.sleep(3)
        assert len(ear.what) > 100
        return world.network.trace_hash

    return _loop.run(main)


def test_a_seed_is_a_run() -> None:
    assert hash_of_a_run(1) == hash_of_a_run(1)
    assert len({hash_of_a_run(seed) for seed in range(5)}) == 5


def test_a_seed_is_the_same_run_in_other_processes() -> None:
    program = "from tests.test_testing_network import hash_of_a_run; print(hash_of_a_run(7))"
    hashes = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout.strip()
        for hash_seed in ("1", "2")
    }
    assert hashes == {hash_of_a_run(7)}
