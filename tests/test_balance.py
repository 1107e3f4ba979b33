"""Who gets how much of the work."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

import zmesh
import zmesh.testing
from zmesh._core.balance import POLICIES, make_policy
from zmesh.balance import Candidate
from zmesh.testing import Host, Mesh


class Worker(zmesh.Service):
    def __init__(self, label: str, seconds: float, lanes: int = 10_000) -> None:
        self.label = label
        self.seconds = seconds
        self.lanes = asyncio.Semaphore(lanes)
        self.most = 0
        self.now = 0

    @zmesh.rpc(idempotent=True)
    async def work(self) -> str:
        self.now += 1
        self.most = max(self.most, self.now)
        async with self.lanes:
            await asyncio.sleep(self.seconds)
        self.now -= 1
        return self.label


class Sibling(zmesh.Service):
    def __init__(self, label: str) -> None:
        self.label = label

    @zmesh.rpc
    async def work(self) -> str:
        return self.label


async def steady(host: Host, rate: float, seconds: float) -> Counter[str]:
    """Who answered calls that come at a steady rate."""
    worker = host.node.client(Worker)
    tasks = []
    for _ in range(int(rate * seconds)):
        tasks.append(asyncio.create_task(host.run(worker.work())))
        await asyncio.sleep(1 / rate)
    return Counter(await asyncio.gather(*tasks))


# -- least loaded


@zmesh.testing.simulated(seeds=range(2))
async def test_equal_nodes_share_equally(mesh: Mesh) -> None:
    for label in "abcd":
        await mesh.start(Worker(label, 0.05))
    client = await mesh.start()
    await steady(client, 200, 1)
    shares = await steady(client, 200, 3)
    assert set(shares) == set("abcd")
    assert all(90 < share < 240 for share in shares.values()), shares


@zmesh.testing.simulated(seeds=range(2))
async def test_slow_nodes_get_less(mesh: Mesh) -> None:
    workers = [Worker("fast", 0.02, 4), Worker("fast", 0.02, 4), Worker("slow", 0.2, 4), Worker("slow", 0.2, 4)]
    for worker in workers:
        await mesh.start(worker)
    client = await mesh.start()
    await steady(client, 260, 1)
    shares = await steady(client, 260, 3)
    assert 5 * shares["slow"] < shares["fast"], shares
    assert all(worker.most <= 12 for worker in workers[2:]), [worker.most for worker in workers]


@zmesh.testing.simulated(seeds=range(2))
async def test_capacity_is_a_weight(mesh: Mesh) -> None:
    await mesh.start(Worker("small", 0.05), capacity=1)
    await mesh.start(Worker("big", 0.05), capacity=4)
    client = await mesh.start()
    await steady(client, 200, 1)
    shares = await steady(client, 200, 3)
    assert 2.5 < shares["big"] / shares["small"] < 6, shares


@zmesh.testing.simulated(seeds=range(2))
async def test_our_own_calls_in_flight_count_at_once(mesh: Mesh) -> None:
    """A burst in one moment, before any report or answer: only our own count tells the nodes apart."""
    workers = [Worker(label, 0.05) for label in "abcd"]
    for worker in workers:
        await mesh.start(worker)
    client = await mesh.start()
    await steady(client, 200, 1)
    burst = await asyncio.gather(*(client.run(client.node.client(Worker).work()) for _ in range(200)))
    assert all(35 < share < 65 for share in Counter(burst).values()), Counter(burst)


@zmesh.testing.simulated(seeds=range(5))
async def test_a_burst_after_a_quiet_time_is_shared(mesh: Mesh) -> None:
    for label in "ab":
        await mesh.start(Worker(label, 0.05))
    client = await mesh.start()
    await steady(client, 100, 1)
    await client.run(client.node.client(Worker).work())  # one has a fresher latency than the other
    await asyncio.sleep(20.3)
    burst = await asyncio.gather(*(client.run(client.node.client(Worker).work()) for _ in range(40)))
    assert all(10 <= share <= 30 for share in Counter(burst).values()), Counter(burst)
    assert len(Counter(burst)) == 2, Counter(burst)


@zmesh.testing.simulated(seeds=range(2))
async def test_calls_of_others_count_by_report(mesh: Mesh) -> None:
    """Another client keeps one node busy by a static address; ours learns it from the node's reports."""
    await mesh.start(Worker("busy", 0.1), listen="tcp://*:7001")
    await mesh.start(Worker("free", 0.1))
    other = await mesh.start(peers=["tcp://10.0.0.1:7001"], discovery=None)
    client = await mesh.start()
    await steady(client, 20, 1)
    keeping_busy = asyncio.create_task(steady(other, 200, 4))
    await asyncio.sleep(1.5)
    shares = await steady(client, 20, 2)
    assert shares["free"] > 3 * shares["busy"], shares
    assert max(peer.load for peer in client.node.peers) > 10
    await keeping_busy


@zmesh.testing.simulated(seeds=range(2))
async def test_a_slow_newcomer_attracts_no_burst(mesh: Mesh) -> None:
    await mesh.start(Worker("old", 0.02))
    client = await mesh.start()
    await steady(client, 200, 1)
    newcomer = Worker("new", 2.0)
    await mesh.start(newcomer)
    shares = await steady(client, 200, 1.5)
    assert newcomer.most == 1
    assert shares["new"] == 1


@zmesh.testing.simulated(seeds=range(2))
async def test_a_fast_newcomer_gets_its_share(mesh: Mesh) -> None:
    await mesh.start(Worker("old", 0.05))
    client = await mesh.start()
    await steady(client, 200, 1)
    await mesh.start(Worker("new", 0.05))
    await steady(client, 200, 1)
    shares = await steady(client, 200, 3)
    assert 0.5 < shares["new"] / shares["old"] < 2, shares


@zmesh.testing.simulated(seeds=range(2))
async def test_a_node_that_was_slow_is_tried_again(mesh: Mesh) -> None:
    changing = Worker("changing", 1.0)
    await mesh.start(changing)
    client = await mesh.start()
    for _ in range(2):
        await client.run(client.node.client(Worker).work())
    await mesh.start(Worker("steady", 0.02))
    await steady(client, 50, 1)
    assert (await steady(client, 100, 1))["changing"] < 10
    changing.seconds = 0.02
    await steady(client, 20, 30)
    shares = await steady(client, 100, 1)
    assert shares["changing"] > 20, shares


@zmesh.testing.simulated(seeds=range(2))
async def test_a_node_that_reported_to_be_slow_is_tried_again(mesh: Mesh) -> None:
    """What is known of it comes from its reports alone, and nobody calls it any more."""
    changing = Worker("changing", 1.0)
    await mesh.start(changing, listen="tcp://*:7001")
    other = await mesh.start(peers=["tcp://10.0.0.1:7001"], discovery=None)
    for _ in range(2):
        await other.run(other.node.client(Worker).work())
    await other.stop()
    changing.seconds = 0.02
    client = await mesh.start()
    await mesh.start(Worker("steady", 0.02))
    await client.node.discover()
    await asyncio.sleep(2)
    await steady(client, 20, 30)
    shares = await steady(client, 100, 1)
    assert shares["changing"] > 20, shares


@zmesh.testing.simulated(seeds=range(2))
async def test_a_node_that_hangs_does_not_look_fast(mesh: Mesh) -> None:
    hanging = Worker("hanging", 0.02)
    await mesh.start(hanging)
    await mesh.start(Worker("fine", 0.02))
    client = await mesh.start()
    await steady(client, 100, 1)
    hanging.seconds = 1000.0
    worker = client.node.client(Worker).options(timeout=0.5)
    results: list[Any] = []
    for _ in range(40):
        results += await asyncio.gather(*(client.run(worker.work()) for _ in range(5)), return_exceptions=True)
    lost = [result for result in results if result != "fine"]
    assert {type(error) for error in lost} == {zmesh.DeadlineExceeded}
    assert len(lost) < 20


# -- the others


@zmesh.testing.simulated(seeds=range(2))
async def test_round_robin_takes_one_after_the_other(mesh: Mesh) -> None:
    for label, seconds in (("a", 0.001), ("b", 0.5), ("c", 0.01)):
        await mesh.start(Worker(label, seconds))
    client = await mesh.start(balance="round_robin")
    await client.node.discover()
    labels = [await client.run(client.node.client(Worker).work()) for _ in range(30)]
    assert set(Counter(labels).values()) == {10}
    assert labels[:3] * 10 == labels


@zmesh.testing.simulated(seeds=range(2))
async def test_round_robin_goes_round_for_each_service(mesh: Mesh) -> None:
    """Calls of two services that take turns: each service is shared equally, too."""
    for label in "ab":
        await mesh.start(Worker(label, 0), Sibling(label))
    client = await mesh.start(balance="round_robin")
    await client.node.discover()
    worker, sibling = client.node.client(Worker), client.node.client(Sibling)
    shares: Counter[str] = Counter()
    for _ in range(20):
        shares["worker " + await client.run(worker.work())] += 1
        shares["sibling " + await client.run(sibling.work())] += 1
    assert set(shares.values()) == {10}, shares


@zmesh.testing.simulated(seeds=range(2))
async def test_round_robin_skips_who_is_gone(mesh: Mesh) -> None:
    hosts = [await mesh.start(Worker(label, 0)) for label in "abc"]
    client = await mesh.start(balance="round_robin")
    await client.node.discover()
    hosts[0].crash()
    await asyncio.sleep(0.5)
    labels = [await client.run(client.node.client(Worker).work()) for _ in range(30)]
    assert Counter(labels) == {"b": 15, "c": 15}


@zmesh.testing.simulated(seeds=range(2))
async def test_random_takes_any(mesh: Mesh) -> None:
    for label, seconds in (("a", 0.001), ("b", 0.05), ("c", 0.01)):
        await mesh.start(Worker(label, seconds))
    client = await mesh.start(balance="random")
    await client.node.discover()
    shares = Counter([await client.run(client.node.client(Worker).work()) for _ in range(300)])
    assert all(65 < share < 140 for share in shares.values()), shares


def test_a_policy_that_there_is_not() -> None:
    with pytest.raises(
        ValueError, match="no balancing policy 'fastest'; there are least_loaded, least_request, peak_ewma, "
    ):
        zmesh.Node(balance="fastest")


# -- the rules themselves


@dataclass
class Fake:
    """A peer that was not called for long, and whose report has just come."""

    seconds: float | None = 0.01
    in_flight: int = 0
    others: int = 0
    weight: float = 1.0
    reported_at: float = 100.0
    called_at: float = 0.0
    id: bytes = b""
    name: str = ""

    def latency(self, method: str) -> float | None:
        return self.seconds


NOW = 100.0


def chosen(*candidates: Fake, policy: str = "least_loaded") -> set[int]:
    """Who is chosen first, whatever the dice say."""
    return {make_policy(policy, random.Random(seed)).choose(candidates, "S.m", NOW) for seed in range(100)}


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        ([Fake(), Fake()], {0, 1}),
        ([Fake(in_flight=1), Fake()], {1}),
        ([Fake(others=1), Fake()], {1}),
        ([Fake(in_flight=1, others=2), Fake(in_flight=2)], {1}),
        ([Fake(0.1), Fake(0.01)], {1}),
        ([Fake(0.1), Fake(0.01, in_flight=8)], {1}),
        ([Fake(0.1), Fake(0.01, in_flight=20)], {0}),
        ([Fake(weight=4, in_flight=2), Fake(weight=1)], {0}),
        ([Fake(None, in_flight=1), Fake(100.0, in_flight=100)], {1}),  # its first answer is waited for
        ([Fake(None, in_flight=1), Fake(None, in_flight=3)], {0}),
        ([Fake(None, in_flight=1), Fake(None)], {1}),
        ([Fake(0.0), Fake(0.0)], {0, 1}),  # no time at all, as in virtual time
        ([Fake(called_at=NOW), Fake(called_at=NOW - 0.01)], {1}),  # who was called longer ago
        ([Fake(called_at=NOW), Fake(called_at=NOW - 0.01, in_flight=1)], {0}),  # but load counts more
        ([Fake(others=50, reported_at=0.0), Fake(in_flight=1)], {0}),  # of a long time ago
        ([Fake(in_flight=9)] * 3 + [Fake()], {3}),
    ],
)
def test_least_loaded(candidates: list[Fake], expected: set[int]) -> None:
    assert chosen(*candidates) == expected


def test_least_loaded_tries_who_is_not_known_when_the_known_is_busy() -> None:
    policy = make_policy("least_loaded", random.Random(0))
    known = Fake(0.01)
    policy.choose([known, known], "S.m", NOW)  # what a usual latency is
    assert policy.choose([Fake(0.01, in_flight=1), Fake(None)], "S.m", NOW) == 1
    assert policy.choose([Fake(0.01), Fake(None, weight=0.1)], "S.m", NOW) == 0, "a newcomer starts slowly"


def test_least_loaded_takes_old_reports_for_what_is_usual() -> None:
    """A report of no load at all, older than many calls take, attracts nobody; one that is fresh does."""
    policy = make_policy("least_loaded", random.Random(0))
    busy = [Fake(others=6) for _ in range(4)]
    for _ in range(50):
        policy.choose(busy, "S.m", NOW)
    assert policy.choose([Fake(in_flight=1, others=0, reported_at=NOW - 5.0), *busy], "S.m", NOW) != 0
    assert policy.choose([Fake(in_flight=1, others=0, reported_at=NOW - 0.001), *busy], "S.m", NOW) == 0


def test_least_loaded_remembers_who_was_good() -> None:
    """One fast peer among very many slow ones: drawn once, it is not lost again."""
    policy = make_policy("least_loaded", random.Random(1))
    candidates = [Fake(1.0) for _ in range(99)] + [Fake(0.001)]
    choices = [policy.choose(candidates, "S.m", NOW) for _ in range(1000)]
    found = choices.index(99)
    assert set(choices[found:]) == {99}
    assert policy.choose(candidates[:2], "S.m", NOW) in {0, 1}, "who is gone is forgotten"


def test_least_loaded_remembers_for_each_method() -> None:
    policy = make_policy("least_loaded", random.Random(1))
    many, others = [Fake(1.0) for _ in range(99)] + [Fake(0.001)], [Fake(1.0) for _ in range(100)]
    while policy.choose(many, "S.m", NOW) != 99:
        pass
    for _ in range(100):
        policy.choose(others, "T.m", NOW)
        assert policy.choose(many, "S.m", NOW) == 99


@pytest.mark.parametrize("name", ["least_loaded", "least_request", "peak_ewma"])
def test_those_looked_at_are_distinct(name: str) -> None:
    """Drawing with replacement would meet the one that hangs alone."""
    policy = make_policy(name, random.Random(0))
    hanging = Fake(in_flight=1000)
    for count in range(2, 40):
        candidates = [Fake() for _ in range(count - 1)] + [hanging]
        assert count - 1 not in {policy.choose(candidates, "S.m", NOW) for _ in range(50)}


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_everybody_is_reached(name: str) -> None:
    policy = make_policy(name, random.Random(0))
    now = NOW
    for count in range(2, 40):
        everyone = [Fake(id=bytes([number])) for number in range(count)]
        reached = set()
        for _ in range(60 * count):
            now += 0.001
            reached.add(index := policy.choose(everyone, "S.m", now))
            everyone[index].called_at = now
        assert reached == set(range(count))


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        ([Fake(in_flight=1), Fake()], {1}),
        ([Fake(0.001, in_flight=1), Fake(1.0, others=9)], {1}),  # nothing but our own calls
        ([Fake(weight=4, in_flight=2), Fake(weight=1)], {0}),
    ],
)
def test_least_request(candidates: list[Fake], expected: set[int]) -> None:
    assert chosen(*candidates, policy="least_request") == expected


def test_weighted_goes_by_weight_and_evenly() -> None:
    policy = make_policy("weighted", random.Random(3))
    candidates = [Fake(weight=weight) for weight in (1.0, 4.0, 2.0, 0.1)]
    choices = [policy.choose(candidates, "S.m", NOW) for _ in range(7100)]
    assert Counter(choices) == pytest.approx({1: 4000, 2: 2000, 0: 1000, 3: 100}, abs=5)
    for start in range(0, 7000, 71):  # not in bursts
        assert Counter(choices[start : start + 71]) == pytest.approx({1: 40, 2: 20, 0: 10, 3: 1}, abs=3)


def test_weighted_follows_weights_that_change() -> None:
    policy = make_policy("weighted", random.Random(3))
    candidates = [Fake(), Fake()]
    for _ in range(11):
        policy.choose(candidates, "S.m", NOW)
    candidates[0].weight = candidates[1].weight = 1e-3
    assert Counter(policy.choose(candidates, "S.m", NOW) for _ in range(1000)) == pytest.approx({0: 500, 1: 500}, abs=5)


def test_peak_ewma_jumps_up_and_comes_down_slowly() -> None:
    policy: Any = make_policy("peak_ewma", random.Random(0))
    candidates = [Fake(id=b"a"), Fake(id=b"b", in_flight=1)]
    for candidate in candidates:
        policy.learn(candidate, "S.m", 0.01, NOW)
    assert policy.choose(candidates, "S.m", NOW) == 0
    policy.learn(candidates[0], "S.m", 1.0, NOW)
    policy.learn(candidates[0], "S.m", 0.01, NOW + 0.1)
    assert policy.choose(candidates, "S.m", NOW + 1) == 1, "a peak is not forgotten by one good answer"
    assert policy.choose(candidates, "T.m", NOW) == 0, "it is known for one method"
    for second in range(2, 60):
        for candidate in candidates:
            policy.learn(candidate, "S.m", 0.01, NOW + second)
    assert policy.choose(candidates, "S.m", NOW + 60) == 0
    assert policy.choose([Fake(id=b"c", in_flight=1), Fake(1.0, in_flight=50, id=b"b")], "S.m", NOW) == 1
    assert policy.choose([Fake(id=b"c"), candidates[0]], "S.m", NOW + 60) == 0


# -- one's own


class Newest:
    """The one that was met last, and what it was told."""

    def __init__(self) -> None:
        self.learnt: list[tuple[str, str, float]] = []

    def choose(self, candidates: Sequence[Candidate], method: str, now: float) -> int:
        return max(range(len(candidates)), key=lambda index: candidates[index].name)

    def learn(self, candidate: Candidate, method: str, seconds: float, now: float) -> None:
        self.learnt.append((candidate.name, method, seconds))


@zmesh.testing.simulated(seeds=range(2))
async def test_a_policy_of_ones_own(mesh: Mesh) -> None:
    for label in "abc":
        await mesh.start(Worker(label, 0.5), name=label)
    policy = Newest()
    client = await mesh.start(balance=policy)
    await client.node.discover()
    assert Counter([await client.run(client.node.client(Worker).work()) for _ in range(5)]) == {"c": 5}
    with pytest.raises(zmesh.DeadlineExceeded):
        await client.run(client.node.client(Worker).options(timeout=0.1).work())
    assert [(name, method) for name, method, _ in policy.learnt] == [("c", "Worker.work")] * 5
    assert all(0.5 <= seconds < 0.51 for _, _, seconds in policy.learnt)


@pytest.mark.parametrize("wrong", [Newest, 7, None])
def test_what_is_no_policy(wrong: Any) -> None:
    with pytest.raises(TypeError, match="balance is a name or an object with `choose`, got "):
        zmesh.Node(balance=wrong)
