"""The tables of a peer and of an attempt, and what follows when an attempt ends without an answer."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from zmesh._core import call, peer, retry
from zmesh._core.call import Verdict
from zmesh._core.retry import Action
from zmesh.errors import Code

PEER_PAIRS = list(itertools.product(peer.State, peer.Event))
CALL_PAIRS = list(itertools.product(call.State, call.Event))


def reachable(start: Any, steps: dict[Any, set[Any]]) -> set[Any]:
    seen, new = set(), {start}
    while new:
        seen |= new
        new = {after for state in new for after in steps[state]} - seen
    return seen


# -- peers

PEER_STEPS = {state: set(row.values()) for state, row in peer.TRANSITIONS.items()}


def test_the_peer_table_has_a_row_for_every_state_and_uses_every_event() -> None:
    assert set(peer.TRANSITIONS) == set(peer.State)
    assert {event for row in peer.TRANSITIONS.values() for event in row} == set(peer.Event)


def test_every_state_of_a_peer_is_reachable_from_new() -> None:
    assert reachable(peer.State.NEW, PEER_STEPS) == set(peer.State)


def test_from_every_state_a_handshake_can_bring_a_peer_back() -> None:
    for state in peer.State:
        assert peer.State.ALIVE in reachable(state, PEER_STEPS) or peer.State.ALIVE in PEER_STEPS[state]


@pytest.mark.parametrize(("state", "event"), PEER_PAIRS, ids=lambda item: item.value)
def test_a_peer_follows_the_table_and_nothing_else(state: peer.State, event: peer.Event) -> None:
    listed = peer.TRANSITIONS[state].get(event)
    if listed is None:
        with pytest.raises(RuntimeError, match=f"{state.value} cannot have '{event.value}'"):
            peer.follow(state, event)
    else:
        assert peer.follow(state, event) is listed


def test_what_the_states_of_a_peer_promise() -> None:
    State, Event, follow = peer.State, peer.Event, peer.follow  # noqa: N806
    # A blocked node stays suspect: silence alone kills nobody.
    state = follow(State.ALIVE, Event.SILENCE)
    for _ in range(100):
        state = follow(state, Event.SILENCE)
    assert state is State.SUSPECT
    assert follow(state, Event.HEARD) is State.ALIVE
    # Dead is who lost its link and made no new one, or said goodbye.
    assert follow(follow(State.ALIVE, Event.LINK_LOST), Event.NO_HANDSHAKE) is State.DEAD
    assert follow(follow(State.ALIVE, Event.LINK_LOST), Event.HANDSHAKE) is State.ALIVE
    assert {state for state in State if peer.TRANSITIONS[state].get(Event.GOODBYE) is State.DEAD} == {
        State.ALIVE,
        State.SUSPECT,
        State.DRAINING,
    }
    # Who leaves is not taken back by whatever it still says.
    assert {after for event, after in peer.TRANSITIONS[State.DRAINING].items()} == {
        State.DRAINING,
        State.DEAD,
        State.IDLE,
    }


# -- attempts

CALL_STEPS = {state: {after for after, _ in row.values()} for state, row in call.TRANSITIONS.items()}


def test_the_attempt_table_has_a_row_for_every_state_and_uses_every_event_and_verdict() -> None:
    assert set(call.TRANSITIONS) == set(call.State)
    assert {event for row in call.TRANSITIONS.values() for event in row} == set(call.Event)
    assert {verdict for row in call.TRANSITIONS.values() for _, verdict in row.values()} == set(Verdict)


def test_every_state_of_an_attempt_is_reachable_and_each_can_end() -> None:
    assert reachable(call.State.WAITING, CALL_STEPS) == set(call.State)
    assert all(call.State.ENDED in reachable(state, CALL_STEPS) for state in call.State)
    assert call.TRANSITIONS[call.State.ENDED] == {}


@pytest.mark.parametrize(("state", "event"), CALL_PAIRS, ids=lambda item: item.value)
def test_an_attempt_is_judged_by_the_table_and_nothing_else(state: call.State, event: call.Event) -> None:
    listed = call.TRANSITIONS[state].get(event)
    if listed is None:
        with pytest.raises(RuntimeError, match=f"{state.value} cannot be '{event.value}'"):
            call.judge(state, event)
    else:
        assert call.judge(state, event) is listed[1]


def test_the_question_that_matters() -> None:
    """May it have run? Only what was sent and neither answered nor disowned."""
    unknown = [pair for pair in CALL_PAIRS if call.TRANSITIONS[pair[0]].get(pair[1], (0, 0))[1] is Verdict.UNKNOWN]
    assert unknown == [(call.State.SENT, call.Event.LINK_LOST)]


# -- retry


@pytest.mark.parametrize("verdict", [Verdict.RETRY, Verdict.UNKNOWN])
@pytest.mark.parametrize("idempotent", [False, True])
@pytest.mark.parametrize("others_out", [False, True])
def test_what_follows_an_attempt_without_an_answer(verdict: Verdict, idempotent: bool, others_out: bool) -> None:
    expected = {
        (Verdict.RETRY, False): Action.RETRY,  # it did not run: tried again whatever the method
        (Verdict.RETRY, True): Action.RETRY,
        (Verdict.UNKNOWN, False): Action.MAYBE_EXECUTED,
        (Verdict.UNKNOWN, True): Action.RETRY,
    }[verdict, idempotent]
    action = retry.after(verdict, idempotent=idempotent, others_out=others_out)
    assert action is (Action.WAIT if others_out else expected)


def test_which_refusals_another_node_may_not_repeat() -> None:
    elsewhere = {code for code in Code if retry.worth_another_node(code)}
    assert elsewhere == {Code.RESOURCE_EXHAUSTED, Code.UNIMPLEMENTED, Code.UNAVAILABLE}
    assert not retry.worth_another_node(99)  # of a later version


def test_the_backoff_doubles_within_its_bounds() -> None:
    rng = random.Random(12)
    for attempt in range(40):
        middle = min(0.05 * 2.0**attempt, 2.0)
        pauses = [retry.backoff(attempt, 0.05, 2.0, rng) for _ in range(200)]
        assert 0.8 * middle <= min(pauses) < 0.9 * middle  # the jitter is there
        assert 1.1 * middle < max(pauses) <= 1.2 * middle
    for attempt in (10_000, 2**40):  # a peer that stays away for years
        assert retry.backoff(attempt, 0.05, 2.0, rng) <= 2.4


def test_one_seed_gives_one_sequence_of_pauses() -> None:
    def pauses(seed: int) -> list[float]:
        rng = random.Random(seed)
        return [retry.backoff(attempt, 0.05, 2.0, rng) for attempt in range(10)]

    assert pauses(1) == pauses(1) != pauses(2)
