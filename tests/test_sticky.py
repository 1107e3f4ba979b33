"""`options(key=...)`: the rule by itself, and in virtual time."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass

import pytest

import zmesh
import zmesh.testing
from zmesh._core.selection import Named, Sticky
from zmesh.testing import Mesh

from .test_options import Where

KEYS = [f"user-{number}" for number in range(3_000)]


@dataclass
class Peer:
    name: str
    id: bytes
    capacity: float = 1.0
    in_flight: int = 0
    others: int = 0


def peers(*capacities: float) -> list[Peer]:
    return [Peer(f"n{n}", bytes([n]) * 16, capacity) for n, capacity in enumerate(capacities)]


def place(key: str, candidates: list[Peer]) -> str:
    (chosen,) = Sticky(key).among(candidates)
    return chosen.name


def test_keys_follow_weights() -> None:
    shares = Counter(place(key, peers(1, 2, 5)) for key in KEYS)
    for name, share in (("n0", 1 / 8), ("n1", 2 / 8), ("n2", 5 / 8)):
        assert abs(shares[name] / len(KEYS) - share) < 0.03


def test_a_peer_that_comes_or_goes_moves_only_its_own_keys() -> None:
    five = peers(1, 2, 3, 4, 5)
    before = {key: place(key, five) for key in KEYS}
    without = {key: place(key, five[:2] + five[3:]) for key in KEYS}
    assert {before[key] for key in KEYS if before[key] != without[key]} == {"n2"}
    heavier = [*five[:4], Peer("n4", five[4].id, 10.0)]
    assert {place(key, heavier) for key in KEYS if before[key] != place(key, heavier)} == {"n4"}
    assert [place(key, five[::-1]) for key in KEYS[:100]] == [before[key] for key in KEYS[:100]]


def test_two_processes_agree() -> None:
    code = (
        "import hashlib; from tests.test_sticky import KEYS, peers, place; "
        "print(hashlib.sha256(''.join(place(k, peers(1, 2, 3)) for k in KEYS).encode()).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    own = hashlib.sha256("".join(place(key, peers(1, 2, 3)) for key in KEYS).encode()).hexdigest()
    assert done.stdout.strip() == own


def test_a_bounded_load_spills() -> None:
    three = peers(1, 1, 1)
    by_name = {peer.name: peer for peer in three}
    first = place("hot", three)
    for _ in range(2):  # small loads are not bounded
        assert place("hot", three) == first
        by_name[first].in_flight += 1
    second = place("hot", three)
    assert second != first
    assert second == place("hot", [peer for peer in three if peer.name != first])
    for _ in range(298):
        by_name[place("hot", three)].in_flight += 1
    loads = sorted(peer.in_flight for peer in three)
    assert sum(loads) == 300
    assert loads[-1] == 125, "1.25 times the share of 100"
    assert loads[0] == 50


def test_within_another_selection() -> None:
    three = peers(1, 1, 1)
    assert [peer.name for peer in Sticky("a", Named("n1")).among(three)] == ["n1"]
    assert Sticky("a", Named("nobody")).among(three) == []
    assert Sticky("a").among([]) == []


@zmesh.testing.simulated()
async def test_calls_stick_and_fail_over(mesh: Mesh) -> None:
    hosts = {name: await mesh.start(Where(name), name=name) for name in "abcd"}
    one, two = await mesh.start(), await mesh.start()
    for caller in (one, two):
        await caller.run(caller.node.discover())
    client = one.node.client(Where).options(key="user-42")
    answers = {await one.run(client.here()) for _ in range(10)}
    answers |= {await two.run(two.node.client("Where").options(key="user-42").here()) for _ in range(10)}
    (home,) = answers
    assert len({await one.run(one.node.client(Where).options(key=f"{n}").here()) for n in range(40)}) == 4
    assert await one.run(client.options(node="c").here()) == "c"
    assert await one.run(one.node.client(Where).options(node="c").options(key="x").here()) == "c"
    hosts[home].crash()
    after = [await one.run(client.here()) for _ in range(10)]
    assert len(set(after)) == 1
    assert home not in after
    await asyncio.sleep(1)
    assert await two.run(two.node.client(Where).options(key="user-42").here()) == after[0]


@zmesh.testing.simulated()
async def test_a_key_is_a_text(mesh: Mesh) -> None:
    caller = await mesh.start()
    with pytest.raises(TypeError, match="key is a str"):
        caller.node.client(Where).options(key=5)  # type: ignore[arg-type]
