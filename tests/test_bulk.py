"""Large values by a connection of their own, in virtual time: a path of 1 MB/s, where a value of 1 MB takes a second
and everything else next to nothing."""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
from numpy.typing import NDArray

import zmesh
import zmesh.testing
from zmesh._bulk_door import BulkDoor
from zmesh._core import messages as m
from zmesh._core.bulk import LITTLE, Arrivals, Departure, Departures, Pace, Place, Stage
from zmesh._core.messages import ProtocolError
from zmesh._security import keys
from zmesh.config import Config
from zmesh.testing import Host, Link, Mesh, make_keys

from .fake_link import CLIENT, FakeOwner, accepted_link, frame_of
from .streaming import at_rest

MB = 1_000_000
SLOW = Link(bandwidth=MB)
VALUE = memoryview(bytes(range(250)) * (MB // 250))


class Store(zmesh.Service):
    """Takes values, gives values, and keeps notes."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.release = asyncio.Event()

    @zmesh.rpc
    async def put(self, value: memoryview, label: str = "put") -> int:
        self.log.append(label)
        return len(value)

    @zmesh.rpc(idempotent=True)
    async def put_again(self, value: memoryview) -> int:
        self.log.append("put again")
        return len(value)

    @zmesh.rpc
    async def get(self, size: int) -> memoryview:
        self.log.append("get")
        return memoryview(bytes(size))

    @zmesh.rpc
    async def fail(self, size: int) -> None:
        raise zmesh.NotFound("not here", details={"why": bytes(size)})

    @zmesh.rpc
    async def items(self, sizes: list[int]) -> AsyncIterator[bytes]:
        for size in sizes:
            yield bytes(size)

    @zmesh.rpc
    async def sizes(self, values: AsyncIterator[bytes]) -> list[int]:
        self.log.append("sizes")
        return [len(value) async for value in values]

    @zmesh.rpc
    async def echo(self, values: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for value in values:
            yield value

    @zmesh.rpc
    async def ping(self) -> None:
        self.log.append("ping")


async def nodes(mesh: Mesh, store: Store, **settings: Any) -> tuple[Host, Host, Store]:
    config = zmesh.Config(**settings)
    server = await mesh.start(store, name="server", config=config)
    caller = await mesh.start(name="caller", config=config)
    client = caller.node.client(Store).options(timeout=60.0)
    await caller.run(client.ping())
    store.log.clear()
    return server, caller, client


def bulk_of(host: Host) -> Any:
    """The bulk half of a host's only link."""
    hub: Any = host.node._hub
    (link,) = hub._links()
    return link.bulk


def connections(mesh: Mesh) -> list[Any]:
    return [end.connection for end in mesh._network.ends if end.dialed and end.connection.bulk]


def cut_bulk(mesh: Mesh) -> None:
    """Break every bulk connection, losing what is on its way."""
    for connection in connections(mesh):
        connection.reset()


def listens_no_more(host: Host) -> None:
    listeners = host._machine.listeners
    port = host.node._hub.bulk._port  # type: ignore[union-attr]
    del listeners[port]


async def nothing_is_kept(*hosts: Host) -> None:
    await asyncio.sleep(0.01)  # the last TAKEN is on its way
    at_rest(*hosts)
    for host in hosts:
        bulk = bulk_of(host)
        assert not bulk.busy
        assert bulk._outbox.divert is None
        assert bulk._departures._under_way == 0
        assert bulk._departures._calls == {}


@zmesh.testing.simulated(link=SLOW)
async def test_it_is_opened_when_it_is_needed_and_holds_up_nothing(mesh: Mesh) -> None:
    server, caller, client = await nodes(mesh, Store())
    await caller.run(client.put(VALUE[:100_000]))  # by the connection that all else goes by
    assert bulk_of(caller)._stage is Stage.NONE
    assert connections(mesh) == []
    began = mesh.now
    putting = asyncio.ensure_future(caller.run(client.put(VALUE)))
    getting = asyncio.ensure_future(caller.run(client.get(MB)))
    await asyncio.sleep(0.01)
    while not putting.done():
        before = mesh.now
        await caller.run(client.ping())
        assert mesh.now - before < 0.01
        await asyncio.sleep(0.05)
    assert await putting == MB
    assert len(await getting) == MB
    assert 1.0 < mesh.now - began < 1.2, "the two directions did not go on at the same time"
    assert len(connections(mesh)) == 1
    with pytest.raises(zmesh.NotFound) as caught:
        await caller.run(client.fail(MB))
    assert len(caught.value.details["why"]) == MB
    assert await caller.run(client.put(VALUE)) == MB
    assert len(connections(mesh)) == 1
    await nothing_is_kept(server, caller)


@zmesh.testing.simulated(link=SLOW)
async def test_an_answer_opens_it_too(mesh: Mesh) -> None:
    server, caller, client = await nodes(mesh, Store())
    assert len(await caller.run(client.get(MB))) == MB
    assert len(connections(mesh)) == 1
    await nothing_is_kept(server, caller)


@zmesh.testing.simulated(link=SLOW)
async def test_items_keep_their_order_whatever_their_size(mesh: Mesh) -> None:
    server, caller, client = await nodes(mesh, Store())
    sizes = [10, 400_000, 1, 20_000, 100_000, 2, 300_000, 300_000, 5, 0]  # on the page, in frames of it, and by bulk

    async def values() -> AsyncIterator[bytes]:
        for size in sizes:
            yield bytes(size)

    async def collect(stream: Any) -> list[int]:
        return [len(item) async for item in stream]

    assert await caller.run(collect(client.items(sizes))) == sizes
    assert await caller.run(client.sizes(values())) == sizes
    assert await caller.run(collect(client.echo(values()))) == sizes
    await nothing_is_kept(server, caller)


@zmesh.testing.simulated(link=Link(bandwidth=1000 * MB))
async def test_on_a_fast_path_what_holds_nobody_up_needs_no_connection_of_its_own(mesh: Mesh) -> None:
    server, caller, client = await nodes(mesh, Store())

    async def by_bulk(*calls: Any) -> tuple[int, int]:
        """How many values went by it while these calls were made, there and back."""
        before = [bulk_of(host)._departures.placed for host in (caller, server)]
        await asyncio.gather(*map(caller.run, calls))
        there, back = (bulk_of(host)._departures.placed for host in (caller, server))
        return there - before[0], back - before[1]

    assert await by_bulk(client.put(VALUE)) == (1, 0), "nobody knows yet how fast the path is"
    assert await by_bulk(client.put(VALUE)) == (0, 0)
    assert await by_bulk(client.get(MB)) == (0, 1), "each side goes by what it saw itself"
    assert await by_bulk(client.get(MB)) == (0, 0)
    assert await by_bulk(client.put(bytes(LITTLE + 1))) == (1, 0)
    assert await by_bulk(client.put(VALUE), client.put(VALUE)) == (1, 0), "the second would have waited for the first"
    await asyncio.sleep(1.1)
    assert await by_bulk(client.put(VALUE)) == (1, 0), "it may not be so fast any more"
    await nothing_is_kept(server, caller)


def test_the_pace_is_of_what_was_under_way_together() -> None:
    pace = Pace()
    assert not pace.at_once(1, 0.0)
    pace.left(1_000_000, 10.0)
    pace.left(1_000_000, 10.125)
    pace.rested(10.5)  # 4 MB/s
    assert pace.at_once(80_000, 10.6)
    assert not pace.at_once(80_001, 10.6)
    assert not pace.at_once(1, 11.6), "that was long ago"
    pace.left(1000, 20.0)
    pace.rested(20.0)
    assert pace.at_once(LITTLE, 20.1)
    assert not pace.at_once(LITTLE + 1, 20.1)
    pace.rested(25.0)
    assert not pace.at_once(1, 25.0), "nothing was under way"
    pace.left(1000, 30.0)
    pace.rested(30.0)
    pace.left(1000, 30.1)
    pace.lost()
    assert not pace.at_once(1, 30.2)
    pace.rested(30.3)
    assert not pace.at_once(1, 30.3), "it was taken from the connection before"


@zmesh.testing.simulated(link=SLOW)
async def test_bytes_under_way_are_bounded(mesh: Mesh) -> None:
    server, caller, client = await nodes(mesh, Store(), bulk_window=700_000)
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, bulk_of(caller)._departures._under_way)
            await asyncio.sleep(0.01)

    watching = asyncio.create_task(watch())
    values = [VALUE[:size] for size in (300_000, 300_000, 300_000, MB, 300_000)]
    done = await asyncio.gather(*(caller.run(client.put(value)) for value in values))
    watching.cancel()
    assert done == [len(value) for value in values]
    assert MB < most < MB + 1000, "the one that is larger than the window did not go alone"
    await nothing_is_kept(server, caller)


@zmesh.testing.simulated(link=SLOW)
async def test_a_call_that_is_cancelled_on_its_way_does_not_run(mesh: Mesh) -> None:
    store = Store()
    server, caller, client = await nodes(mesh, store, bulk_window=MB)
    calls = [asyncio.ensure_future(caller.run(client.put(VALUE))) for _ in range(3)]
    await asyncio.sleep(0.5)  # the first is under way, the others wait for it
    began = mesh.now
    for call in calls[:2]:
        call.cancel()
    assert await calls[2] == MB
    assert mesh.now - began < 1.7, "a value was sent that nobody wanted"
    assert store.log == ["put"]
    # An answer that nobody wants is spared, too.
    got = [asyncio.ensure_future(caller.run(client.get(MB))) for _ in range(3)]
    await asyncio.sleep(0.3)
    began = mesh.now
    got[1].cancel()
    await asyncio.sleep(0.01)
    assert len(await got[2]) == MB
    assert mesh.now - began < 1.9
    await got[0]
    await nothing_is_kept(server, caller)


@zmesh.testing.simulated(link=SLOW)
async def test_a_deadline_covers_the_transfer(mesh: Mesh) -> None:
    store = Store()
    server, caller, client = await nodes(mesh, store)
    with pytest.raises(zmesh.DeadlineExceeded):
        await caller.run(client.options(timeout=0.8).put(VALUE))
    await asyncio.sleep(1)
    assert store.log == []
    # What the handler has left is what the transfer left.
    left: list[float] = []

    class Timed(Store, name="Timed"):
        @zmesh.rpc
        async def put(self, value: memoryview, label: str = "put") -> int:
            left.append(zmesh.context().remaining)
            return len(value)

    await server.restart(Timed())
    await caller.run(caller.node.client(Timed).options(timeout=3.0).put(VALUE))
    assert 1.8 < left[0] < 2.0
    await nothing_is_kept(caller)


@zmesh.testing.simulated(link=SLOW)
async def test_a_transfer_is_no_time_in_queues(mesh: Mesh) -> None:
    server, caller, client = await nodes(mesh, Store())
    waits: list[int] = []
    hub: Any = server.node._hub
    received = hub.call_received

    def noted(link: Any, message: Any, waited: int, now: float) -> None:
        waits.append(waited)
        received(link, message, waited, now)

    hub.call_received = noted
    for _ in range(3):
        await caller.run(client.put(VALUE))
        await caller.run(client.ping())
    assert max(waits) <= 1


@zmesh.testing.simulated(link=SLOW, seeds=range(4))
async def test_what_a_lost_bulk_connection_swallowed_is_sent_again(mesh: Mesh) -> None:
    store = Store()
    server, caller, client = await nodes(mesh, store)
    await caller.run(client.put(VALUE, "first"))
    calls = [asyncio.ensure_future(caller.run(client.put(VALUE[:400_000], str(number)))) for number in range(8)]
    got = asyncio.ensure_future(caller.run(client.get(MB)))
    await asyncio.sleep(0.1 + mesh.random.random())
    for _ in range(2):
        cut_bulk(mesh)
        await asyncio.sleep(1.1)  # something gets through each time
    assert await asyncio.gather(*calls) == [400_000] * 8
    assert len(await got) == MB
    assert sorted(store.log) == [*"01234567", "first", "get"], "none is lost and none runs twice"
    assert bulk_of(caller)._stage is Stage.OPEN
    await nothing_is_kept(server, caller)


@zmesh.testing.simulated(link=SLOW)
async def test_where_none_can_be_made_all_goes_by_the_control_connection(mesh: Mesh) -> None:
    server, caller, client = await nodes(mesh, Store())
    listens_no_more(server)
    assert await caller.run(client.put(VALUE)) == MB
    assert len(await caller.run(client.get(MB))) == MB
    assert bulk_of(caller)._stage is Stage.OFF
    assert bulk_of(server)._stage is Stage.OFF
    assert connections(mesh) == []
    await nothing_is_kept(server, caller)


@zmesh.testing.simulated(link=SLOW)
async def test_one_that_is_lost_for_good_is_done_without(mesh: Mesh) -> None:
    """Each time before anything gets through, or it would be tried for ever."""
    store = Store()
    server, caller, client = await nodes(mesh, store)
    await caller.run(client.put(VALUE[:300_000]))
    call = asyncio.ensure_future(caller.run(client.put(VALUE)))
    got = asyncio.ensure_future(caller.run(client.get(MB)))
    for _ in range(20):
        await asyncio.sleep(0.1)
        cut_bulk(mesh)
    assert await call == MB
    assert len(await got) == MB
    assert store.log == ["put", "get", "put"]
    assert bulk_of(caller)._stage is bulk_of(server)._stage is Stage.OFF
    await nothing_is_kept(server, caller)


UNKNOWN = "refused: no link here has a bulk connection with this token"  # the dialer says so once


@zmesh.testing.simulated(link=SLOW)
async def test_a_stranger_gets_no_bulk_connection(mesh: Mesh, caplog: pytest.LogCaptureFixture) -> None:
    store = Store()
    server, caller, client = await nodes(mesh, store)
    door: Any = server.node._hub.bulk  # type: ignore[union-attr]
    # The right token, said by another node than the one of the link.
    thief = await mesh.start(name="thief")
    other = thief.node.client(Store)
    await thief.run(other.ping())
    bulk_of(thief).token = bulk_of(caller).token
    assert await thief.run(other.put(VALUE)) == MB
    assert bulk_of(thief)._stage is Stage.OFF
    assert caplog.text.count(UNKNOWN) == 1
    assert await caller.run(client.put(VALUE)) == MB
    assert bulk_of(caller)._stage is Stage.OPEN
    # A token that nobody was given.
    guest = await mesh.start(name="guest")
    other = guest.node.client(Store)
    await guest.run(other.ping())
    bulk_of(guest).token = bytes(16)
    assert await guest.run(other.put(VALUE)) == MB  # it goes otherwise
    assert bulk_of(guest)._stage is Stage.OFF
    assert caplog.text.count(UNKNOWN) == 2
    # A token is worth nothing after its link.
    for host in (thief, caller, guest):
        await host.stop()
    await asyncio.sleep(0.1)  # the last GOODBYE is on its way
    assert door._bulks == {}


@zmesh.testing.simulated(link=SLOW)
async def test_a_token_is_worth_nothing_without_the_key(
    mesh: Mesh, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = make_keys(tmp_path, "server", "caller", "thief")
    await mesh.start(Store(), name="server", security=made["server"])
    caller = await mesh.start(name="caller", security=made["caller"])
    thief = await mesh.start(name="thief", security=made["thief"])
    for host in (caller, thief):
        await host.run(host.node.client(Store).ping())
    # All that the link has, but the key.
    door: Any = thief.node._hub.bulk  # type: ignore[union-attr]
    door._identity = replace(door._identity, id=bytes.fromhex(caller.node.id))
    bulk = bulk_of(thief)
    bulk.token = bulk_of(caller).token
    assert await thief.run(thief.node.client(Store).put(VALUE)) == MB
    assert bulk is bulk_of(thief)
    assert bulk._stage is Stage.OFF
    assert caplog.text.count(UNKNOWN) == 1
    assert await caller.run(caller.node.client(Store).put(VALUE)) == MB
    assert bulk_of(caller)._stage is Stage.OPEN


@zmesh.testing.simulated(link=SLOW)
async def test_the_end_of_the_link_is_the_end_of_both(mesh: Mesh) -> None:
    store = Store()
    _, caller, client = await nodes(mesh, store, bulk_window=MB)
    under_way = asyncio.ensure_future(caller.run(client.put(VALUE)))
    waiting = asyncio.ensure_future(caller.run(client.put(VALUE, "waited")))
    await asyncio.sleep(0.5)
    hub: Any = caller.node._hub
    (link,) = hub._links()
    link.channel.connection.reset()
    with pytest.raises(zmesh.MaybeExecuted):
        await under_way
    assert await waiting == MB, "what had not left is tried again"
    assert store.log.count("waited") == 1
    assert len(connections(mesh)) == 1
    await nothing_is_kept(caller)


@zmesh.testing.simulated(link=SLOW)
async def test_a_drain_waits_for_what_is_on_its_way(mesh: Mesh) -> None:
    store = Store()
    server, caller, client = await nodes(mesh, store)
    other = await mesh.start(Store(), name="other")
    put = asyncio.ensure_future(caller.run(client.options(node="server").put(VALUE)))
    got = asyncio.ensure_future(caller.run(client.options(node="server").get(MB)))
    await asyncio.sleep(0.3)
    await server.stop()
    assert await put == MB
    assert len(await got) == MB
    assert sorted(store.log) == ["get", "put"]
    await other.stop()


@zmesh.testing.simulated(link=SLOW)
async def test_a_drain_that_cannot_wait_says_what_did_not_run(mesh: Mesh) -> None:
    store, spare = Store(), Store()
    server, caller, client = await nodes(mesh, store, drain_grace=0.2)
    await mesh.start(spare, name="spare")
    await caller.run(client.options(node="server").ping())
    store.log.clear()
    big = memoryview(bytes(3 * MB))
    put = asyncio.ensure_future(caller.run(client.put(big)))
    await asyncio.sleep(0.1)
    await caller.run(client.options(node="server").ping())  # a later call, which has run
    await server.stop()
    assert await put == 3 * MB, "it had not run, and goes to another node although it is not idempotent"
    assert (store.log, spare.log) == (["ping"], ["put"])


@zmesh.testing.simulated(link=SLOW)
@pytest.mark.parametrize("who", ["server", "caller"])
async def test_a_peer_that_does_not_do_this_is_spoken_with_as_before(mesh: Mesh, who: str) -> None:
    server = await mesh.start(Store(), name="server", config=zmesh.Config(bulk=who != "server"))
    caller = await mesh.start(name="caller", config=zmesh.Config(bulk=who != "caller"))
    client = caller.node.client(Store)
    assert await caller.run(client.put(VALUE)) == MB
    assert len(await caller.run(client.get(MB))) == MB
    assert bulk_of(caller) is None
    assert bulk_of(server) is None
    assert connections(mesh) == []


@zmesh.testing.simulated(link=SLOW)
async def test_a_value_without_a_form_fails_its_call_alone(mesh: Mesh) -> None:
    server, caller, client = await nodes(mesh, Store(), max_message=MB)
    with pytest.raises(zmesh.InvalidArgument, match="bytes beside its binary values"):
        await caller.run(client.put(VALUE, "x" * MB))
    by_name: Any = caller.node.client("Store")
    with pytest.raises(zmesh.InvalidArgument, match="form on the wire"):
        await caller.run(by_name.put(value=VALUE, label="\ud800"))
    assert await caller.run(client.put(VALUE)) == MB
    await nothing_is_kept(server, caller)


# -- the rules alone


def departing(window: int = 100) -> Departures:
    return Departures(window)


def add(departures: Departures, number: int, size: int, *, begins: bool = True) -> Departure:
    departure = Departure((number, True), [bytes(size)], size, begins=begins)
    departures.add(departure)
    return departure


def test_departures_keep_to_the_window_and_to_their_order() -> None:
    departures = departing()
    first, second = add(departures, 7, 60), add(departures, 8, 60)
    third = add(departures, 7, 300, begins=False)
    assert departures.next() is first
    departures.handed()
    assert departures.next() is None, "the window is full"
    assert departures.waits((7, True))
    assert departures.left((7, True))
    assert not departures.left((8, True))
    assert departures.left((10, True)), "it never went by bulk"
    add(departures, 9, 1, begins=False)
    assert departures.left((9, True)), "only an item of it goes by bulk"
    departures.taken(1)
    assert departures.waits((7, True)), "there is another one of it"
    assert departures.next() is second
    departures.handed()
    assert departures.next() is None
    departures.taken(2)
    assert departures.next() is third, "larger than the window, alone"
    with pytest.raises(ProtocolError, match="not under way"):
        departures.taken(3)
    departures.handed()
    with pytest.raises(ProtocolError, match="not under way"):
        departures.taken(2)
    departures.taken(3)
    assert departures.next() is not None
    departures.handed()
    departures.taken(4)
    assert len(departures) == 0
    assert not departures.waits((7, True))


def test_what_a_lost_connection_took_may_still_have_arrived() -> None:
    departures = departing()
    for number in (1, 2, 3):
        add(departures, number, 10)
        departures.handed()
    departures.again()
    departures.taken(2)  # it was on its way when the connection was lost
    assert [each.call[0] for each in departures.rest()] == [3]
    departures.taken(3)
    assert departures._under_way == 0


def test_what_is_dropped_is_replaced_and_keeps_its_number() -> None:
    departures, replaced = departing(), []

    def nothing(number: int) -> Departure:
        replaced.append(number)
        return Departure((7, True), [b""], 0)

    for number in (7, 8, 7):
        add(departures, number, 60)
    departures.handed()
    departures.drop((7, True), nothing)
    assert replaced == [3], "the first has left"
    departures.drop((9, True), nothing)
    assert len(departures) == 3


def place(number: int = 7, kind: int = m.CALL) -> Place:
    return Place(kind, number, 0, 0.0)


CALL = [m.CALL, 7, "A.b", 1000, {}, None]


def test_arrivals_match_whichever_comes_first() -> None:
    arrivals = Arrivals(100)
    assert arrivals.place(1, place()) is None
    assert arrivals.handled == 0
    assert arrivals.come(1, CALL, 10) is not None
    assert arrivals.handled == 1
    assert arrivals.come(2, CALL, 80) is None
    assert arrivals.come(3, None, 20) is None
    assert arrivals.handled == 1
    assert arrivals.place(2, place()) == (CALL, 80)
    assert arrivals.place(3, place()) == (None, 20)
    assert arrivals.come(2, CALL, 80) is None, "sent once more"
    assert arrivals.handled == 3


@pytest.mark.parametrize(
    "message", [[m.CALL, 8, "A.b", 1000, {}, None], [m.REPLY, 7, 1, None], [m.CALL], [True, 7], "text", [m.CALL, 7.0]]
)
def test_a_message_that_is_not_what_its_place_said_is_refused(message: object) -> None:
    arrivals = Arrivals(100)
    arrivals.place(1, place())
    with pytest.raises(ProtocolError, match="not what its place said"):
        arrivals.come(1, message, 10)


def test_numbers_out_of_order_and_too_much_are_refused() -> None:
    arrivals = Arrivals(100)
    with pytest.raises(ProtocolError, match="was due"):
        arrivals.place(2, place())
    for number in (0, 2, 2**31 - 1):
        with pytest.raises(ProtocolError, match="was due"):
            arrivals.come(number, CALL, 1)
    arrivals.come(1, CALL, 1000)  # larger than the window, alone
    with pytest.raises(ProtocolError, match="under way"):
        arrivals.come(2, CALL, 1)


def test_numbers_wrap() -> None:
    arrivals, departures = Arrivals(100), departing()
    arrivals._placed = arrivals._came = departures.placed = 2**31 - 2
    for number in (2**31 - 1, 0, 1):
        add(departures, 7, 10)
        departures.handed()
        assert departures.placed & m.LIMIT == number
        arrivals.place(number, place())
        assert arrivals.come(number, CALL, 10) is not None
        assert arrivals.handled == number
    assert arrivals.come(2**31 - 1, CALL, 10) is None, "sent once more"
    departures.taken(0)
    assert len(departures) == 1
    departures.taken(1)


TAKES_PART = replace(CLIENT, bulk=m.BulkOffer(1000))


@pytest.mark.parametrize(
    "messages",
    [
        [[m.PLACE, 1, m.CALL]],
        [[m.PLACE, 1, m.CANCEL, 7]],
        [[m.PLACE, 1, m.CALL, "7"]],
        [[m.PLACE, 2, m.CALL, 7]],
        [[m.PLACE, 1, m.CALL, 7], [m.BULK, 1, [m.CALL, 8, "A.b", 1000, {}, None]]],
        [[m.BULK, 1]],
        [[m.BULK, 2, None]],
        [[m.TAKEN, 1]],
        [[m.TAKEN]],
    ],
)
def test_violations_end_the_link(messages: list[Any]) -> None:
    async def run() -> list[Any]:
        owner, link, channel = taking_part()
        link.received([frame_of(owner.tag, *messages)])
        await asyncio.sleep(0)
        return channel.messages

    answers = asyncio.run(run())
    assert [answer[:2] for answer in answers if answer[0] == m.REJECT] == [[m.REJECT, 3]]


def taking_part() -> tuple[FakeOwner, Any, Any]:
    owner = FakeOwner()
    owner.bulk = BulkDoor(NoTransport(), Config(), owner.identity, lambda: b"t" * 16)
    owner.bulk.listen(["tcp://127.0.0.1:0"])
    link, channel = accepted_link(owner)
    link.received([frame_of(0, TAKES_PART.message())])
    offer = channel.messages[-1][3]["bulk"]
    assert offer == {"bytes": Config().bulk_window, "token": b"t" * 16, "port": 4242}
    channel.sent.clear()
    return owner, link, channel


def test_the_last_call_is_the_one_that_was_placed_last() -> None:
    async def run() -> None:
        owner, link, channel = taking_part()
        link.received([frame_of(owner.tag, [m.PLACE, 1, m.CALL, 7], [m.CALL, 8, "A.b", 1000, {}, None])])
        assert [call[0][1] for call in owner.told("call_received")] == [8]
        link.received([frame_of(owner.tag, [m.BULK, 1, CALL])])
        assert [call[0][1] for call in owner.told("call_received")] == [8, 7]
        link.goodbye()
        assert channel.messages == [[m.TAKEN, 1], [m.GOODBYE, 8]]

    asyncio.run(run())


class NoTransport:
    def listen(self, address: str, accept: Any, *, bulk: bool) -> str:
        assert bulk
        return "tcp://127.0.0.1:4242"


# -- real sockets


class Arrays(zmesh.Service):
    @zmesh.rpc
    async def back(self, array: NDArray[numpy.float64]) -> NDArray[numpy.float64]:
        assert not array.flags.owndata
        return array[::-1]

    @zmesh.rpc
    async def views(self, size: int, count: int) -> AsyncIterator[memoryview]:
        value = memoryview(bytes(size))
        for _ in range(count):
            yield value

    @zmesh.rpc
    async def put(self, value: memoryview) -> str:
        return type(value.obj).__name__


@pytest.mark.parametrize("secured", [False, True])
@pytest.mark.parametrize("ipc", [False, True])
def test_arrays_and_buffers_over_real_sockets(ipc: bool, secured: bool, tmp_path: Path) -> None:
    if ipc and not sys.platform.startswith("linux"):
        pytest.skip("abstract sockets exist on Linux only")

    async def run() -> None:
        config = zmesh.Config.test().replace(ipc=ipc, bulk_window=MB)
        here: dict[str, Any] = {"mesh": f"test-{secrets.token_hex(4)}", "discovery": None, "config": config}
        if secured:
            keys.write_secret(tmp_path / "secret", keys.new_secret())
            here["security"] = zmesh.Security(secret_file=tmp_path / "secret")
        async with (
            zmesh.Node(Arrays(), listen="tcp://127.0.0.1:*", **here) as server,
            zmesh.Node(peers=[server.addresses[0]], **here) as caller,
        ):
            client = caller.client(Arrays)
            array = numpy.arange(300_000.0).reshape(3, -1)
            for each in (array, array.T, array[:, ::2], array[:0]):
                assert numpy.array_equal(await client.back(each), each[::-1])
            assert await client.put(memoryview(bytearray(MB))) == "Frame"
            sizes = [len(view) async for view in client.views(400_000, 20)]
            assert sizes == [400_000] * 20
            hub: Any = caller._hub
            (link,) = hub._links()
            assert link.bulk._stage is Stage.OPEN
            assert link.bulk._channel.remote.startswith("ipc://" if ipc else "tcp://")
            there: Any = server._hub
            theirs = next(each for each in there._links() if each.bulk is not None and each.bulk._channel is not None)
            assert theirs.bulk._channel.key == theirs.key
            assert (theirs.key is not None) == secured

    asyncio.run(run())
