"""What a node costs where there are many others: function calls, which are the same in every run, in virtual time."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import sys
from collections.abc import Iterator
from types import FrameType

import zmesh
from zmesh import testing


class Echo(zmesh.Service):
    @zmesh.rpc
    async def echo(self, number: int) -> int:
        return number


class Other(zmesh.Service):
    @zmesh.rpc
    async def nothing(self) -> None: ...


@contextlib.contextmanager
def counted() -> Iterator[collections.Counter[str]]:
    """Calls of zmesh's own functions, by name; what the simulation does is not counted."""
    count: collections.Counter[str] = collections.Counter()

    def look(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            code = frame.f_code
            if "/zmesh/" in code.co_filename and "/testing/" not in code.co_filename:
                count[code.co_qualname] += 1

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        yield count
    finally:
        sys.setprofile(before)


def costs(nodes: int, offering: int, subset_above: int, seconds: float = 1.0) -> dict[str, float]:
    """Of a caller of `Echo`, which so many of the nodes offer, and of them: function calls for each node."""

    async def run(mesh: testing.Mesh) -> dict[str, float]:
        services = [Echo() if number < offering else Other() for number in range(nodes)]
        hosts = [await mesh.start(service, discovery=None) for service in services]
        addresses = [host.node.addresses[0] for host in hosts]
        config = zmesh.Config(subset_above=subset_above)
        with counted() as meeting:
            caller = await mesh.start(peers=addresses, discovery=None, config=config)
            await caller.node.client(Echo).echo(0)
            await asyncio.sleep(seconds)
        await asyncio.sleep(8)
        with counted() as idle:
            await asyncio.sleep(2)
        linked = sum(peer.state == "alive" for peer in caller.node.peers)
        assert linked == (offering if offering <= subset_above else config.subset_size)
        return {"meeting": meeting.total() / nodes, "idle": idle.total() / nodes}

    # Each comes by itself, as on a real network.
    return testing.run(run, seed=1, link=testing.Link(delay=0.001, jitter=0.2))


def test_a_peer_costs_the_same_whether_there_are_few_or_many() -> None:
    few, many = costs(20, 20, 1000), costs(200, 200, 1000)
    assert many["meeting"] < 1.05 * few["meeting"]
    assert many["idle"] < 1.05 * few["idle"]
    very_many = costs(200, 200, 20)  # links are kept to some
    assert very_many["meeting"] < 0.5 * few["meeting"]
    assert very_many["idle"] < 0.5 * few["idle"]


def test_nodes_that_are_met_and_not_called_cost_little() -> None:
    few, many = costs(60, 6, 50, seconds=8), costs(240, 6, 50, seconds=8)
    assert many["meeting"] < 1.8 * few["meeting"]  # some are met at a time, and then all are looked at
    assert many["idle"] < 1.05 * few["idle"]
    assert many["idle"] < 0.5 * costs(20, 20, 50)["idle"]
