"""Who may take a call: health and suspicion, panic, probes, weights."""

from __future__ import annotations

from zmesh._core.health import State as Wellness
from zmesh._core.members import Member, Members
from zmesh._core.messages import Hello, Offer
from zmesh._core.peer import Event, State

OFFER = Offer("Work", "1.0", "")


class Mesh:
    """Members that offer one service, their link a text."""

    def __init__(self, count: int, capacity: float = 1.0) -> None:
        self.members: Members[str] = Members(lambda member, before: None, lambda: 0.0)
        self.now = 0.0
        self.peers = [self.meet(number, capacity) for number in range(count)]

    def meet(self, number: int, capacity: float = 1.0) -> Member[str]:
        hello = Hello(bytes([number] * 16), f"n{number}", "m", capacity=capacity, services=(OFFER,))
        member = self.members.add(hello.id, hello.name, (), self.now)
        self.members.met(member, hello, "link", self.now)
        return member

    def eject(self, *peers: int) -> None:
        for peer in peers:
            changed = [self.members.failed(self.peers[peer], "no answer", self.now, self.now) for _ in range(5)]
            assert changed == [False] * 4 + [True]

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.members.tick(self.now)

    @property
    def candidates(self) -> list[int]:
        return [self.peers.index(member) for member in self.members.candidates("Work", 1)]


def test_the_ejected_get_no_calls_until_fewer_than_a_fifth_are_left() -> None:
    mesh = Mesh(6)
    mesh.eject(1)
    assert mesh.candidates == [0, 2, 3, 4, 5]
    mesh.eject(3, 0, 2)
    assert mesh.candidates == [4, 5]
    mesh.eject(4)
    assert mesh.candidates == [0, 1, 2, 3, 4, 5]


def test_one_of_two_is_enough_and_one_alone_is_never_ejected() -> None:
    mesh = Mesh(2)
    mesh.eject(0)
    assert mesh.candidates == [1]
    alone = Mesh(1)
    alone.eject(0)
    assert alone.candidates == [0]


def test_panic_believes_in_the_suspect_too_but_in_nobody_without_a_link() -> None:
    mesh = Mesh(5)
    mesh.members.happen(mesh.peers[0], Event.SILENCE, 0.0)
    mesh.eject(1, 3, 4)
    assert mesh.candidates == [2]
    mesh.members.happen(mesh.peers[2], Event.SILENCE, 0.0)
    assert mesh.candidates == [0, 1, 2, 3, 4]
    mesh.members.parted(mesh.peers[0])
    assert mesh.candidates == [1, 2, 3, 4]


def test_the_ejected_are_due_after_their_pause_and_back_with_an_answer() -> None:
    mesh = Mesh(3)
    mesh.eject(1)
    mesh.tick(0.4)
    assert not mesh.members.odd
    mesh.tick(0.1)
    assert list(mesh.members.odd) == [mesh.peers[1]]
    assert mesh.candidates == [0, 2]  # but for the one call that is its probe
    mesh.members.probe(mesh.peers[1], mesh.now)
    assert not mesh.members.odd
    assert mesh.members.succeeded(mesh.peers[1], mesh.now, mesh.now)
    assert mesh.candidates == [0, 1, 2]


def test_who_is_removed_is_not_due() -> None:
    mesh = Mesh(3)
    mesh.eject(1)
    mesh.tick(1.0)
    mesh.members.remove(mesh.peers[1])
    assert not mesh.members.odd


def test_a_caller_over_its_own_link_is_no_peer_to_probe() -> None:
    mesh = Mesh(3)
    stranger: Member[str] = Member(mesh.peers[1].id, "caller", (), 0.0, lambda: 0.0)
    for _ in range(5):
        mesh.members.failed(stranger, "no answer", 0.0, 0.0)
    assert stranger.health.state is Wellness.EJECTED
    stranger.health.tick(10.0)
    mesh.members._wellness(stranger, True)
    assert not mesh.members.odd


def test_weight_is_capacity_times_health() -> None:
    mesh = Mesh(3, capacity=4.0)
    peer = mesh.peers[1]
    assert peer.weight == 4.0
    mesh.eject(1)
    mesh.tick(1.0)
    mesh.members.succeeded(peer, mesh.now, mesh.now)
    assert peer.weight == 0.4
    mesh.tick(5.0)
    assert peer.weight == 2.0
    mesh.tick(5.0)
    assert peer.weight == 4.0
    mesh.members.raised(peer, mesh.now)
    assert 3.0 < peer.weight < 4.0


def test_a_newcomer_among_old_ones_starts_slowly_and_equals_do_not() -> None:
    mesh = Mesh(3)
    assert [peer.weight for peer in mesh.peers] == [1.0] * 3
    mesh.tick(9.9)
    assert mesh.meet(3).weight == 1.0
    mesh.tick(0.1)
    assert mesh.meet(4).weight == 0.1
    mesh.members.happen(mesh.peers[0], Event.LINK_LOST, mesh.now)
    mesh.meet(0)  # the same link again, a moment later
    assert mesh.peers[0].state is State.ALIVE
    assert mesh.peers[0].weight == 1.0
