"""Why a call went where it went: `zmesh.explain`, `Node.explain` and `Node.stats`, in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

import zmesh
import zmesh.testing
from zmesh import explanation as told
from zmesh._core.balance import make_policy
from zmesh.balance import Candidate
from zmesh.testing import Host, Mesh


class Work(zmesh.Service):
    def __init__(self, label: str = "", takes: float = 0.01) -> None:
        self.label = label
        self.takes = takes
        self.error: Exception | None = None
        self.calls = 0

    @zmesh.rpc(idempotent=True)
    async def work(self) -> str:
        self.calls += 1
        if self.error is not None:
            raise self.error
        await asyncio.sleep(self.takes)
        return self.label

    @zmesh.rpc
    async def once(self) -> str:
        return await self.work()

    @zmesh.rpc
    async def count(self, to: int) -> AsyncIterator[int]:
        for number in range(to):
            yield number


async def start(mesh: Mesh, count: int = 3, **options: Any) -> tuple[list[Work], list[Host], Host]:
    """Some nodes a, b, ..., and a caller that has met them."""
    works = [Work("abcdefghijkl"[number]) for number in range(count)]
    hosts = [await mesh.start(work, name=work.label) for work in works]
    caller = await mesh.start(name="caller", **options)
    await caller.node.discover()
    return works, hosts, caller


def by_name(explanation: zmesh.Explanation) -> dict[str, told.Candidate]:
    return {candidate.name: candidate for candidate in explanation.candidates}


# -- a call that is made


@zmesh.testing.simulated(seeds=range(3))
async def test_a_call_tells_who_was_chosen_of_whom_and_why(mesh: Mesh) -> None:
    _, hosts, caller = await start(mesh)
    work = caller.node.client(Work).options(explain=True, timeout=5)
    for _ in range(9):
        await caller.run(work.work())
    call = work.work()
    answered = await caller.run(call)
    why = zmesh.explain(call)
    assert (why.method, why.policy, why.made, why.error, why.timeout) == ("Work.work", "least_loaded", True, "", 5.0)
    assert (why.retries_left, why.hedges_left, why.hedges) == (100, 10, 0)
    assert why.choice is not None
    assert (why.choice.kind, why.choice.node, why.choice.at) == ("first", answered, 0.0)
    assert why.choice.id == next(host.node.id for host in hosts if host.name == answered)
    assert "the least cost of all 3" in why.choice.why
    assert [candidate.chosen for candidate in why.candidates] == [True, False, False]
    for candidate in why.candidates:
        assert (candidate.state, candidate.health, candidate.why_not) == ("alive", "healthy", "")
        assert candidate.looked_at
        assert candidate.latency == pytest.approx(0.01, abs=0.002)
        assert candidate.report_age is not None
        assert candidate.cost is not None
    assert why.candidates[0].cost == min(candidate.cost or 0 for candidate in why.candidates)
    (attempt,) = why.attempts
    assert (attempt.kind, attempt.node, attempt.at, attempt.outcome) == ("first", answered, 0.0, "answered")
    assert attempt.seconds == pytest.approx(0.01, abs=0.002)


@zmesh.testing.simulated()
async def test_calls_in_flight_are_those_before_the_choice(mesh: Mesh) -> None:
    works, _, caller = await start(mesh, 1)
    works[0].takes = 1.0
    work = caller.node.client(Work).options(explain=True)
    calls = [work.work() for _ in range(3)]
    await asyncio.gather(*map(caller.run, calls))
    assert [zmesh.explain(call).candidates[0].in_flight for call in calls] == [0, 1, 2]
    assert zmesh.explain(calls[0]).choices[0].why == "the only one that can take it"


@zmesh.testing.simulated()
async def test_a_call_that_was_not_asked_about_cannot_be_explained(mesh: Mesh) -> None:
    _, _, caller = await start(mesh, 1)
    for client in (caller.node.client(Work), caller.node.client("Work"), Work("here")):
        call = client.work()
        await caller.run(call)
        with pytest.raises(ValueError, match=r"make it by client\.options\(explain=True\)"):
            zmesh.explain(call)
    with pytest.raises(TypeError, match="explain is True or False, got 5"):
        caller.node.client(Work).options(explain=5)  # type: ignore[arg-type]


@zmesh.testing.simulated()
async def test_a_call_is_explained_while_it_is_under_way(mesh: Mesh) -> None:
    works, _, caller = await start(mesh, 1)
    works[0].takes = 1.0
    call = caller.node.client(Work).options(explain=True).work()
    task = asyncio.create_task(caller.run(call))
    await asyncio.sleep(0.1)
    (attempt,) = zmesh.explain(call).attempts
    assert (attempt.outcome, attempt.seconds) == ("under way", None)
    assert str(zmesh.explain(call)).startswith("Work.work: under way\n")
    task.cancel()
    await asyncio.wait([task])
    (attempt,) = zmesh.explain(call).attempts
    assert (attempt.outcome, attempt.seconds) == ("given up", pytest.approx(0.1, abs=0.01))


@zmesh.testing.simulated(seeds=range(3))
async def test_a_refused_attempt_and_its_retry(mesh: Mesh) -> None:
    works, hosts, caller = await start(mesh, 1)
    full = await mesh.start(Work("full", takes=5.0), name="full", config=zmesh.Config(max_calls=1))
    await caller.node.discover()
    hold = asyncio.create_task(caller.run(caller.node.client(Work).options(node="full").work()))
    await asyncio.sleep(0.01)
    works[0].takes = 0.05
    work = caller.node.client(Work).options(explain=True)
    calls = [work.work() for _ in range(8)]
    await asyncio.gather(*map(caller.run, calls))
    refused = [why for why in map(zmesh.explain, calls) if len(why.attempts) > 1]
    assert refused
    for why in refused:
        first, second = why.attempts
        assert (first.kind, first.node, first.outcome) == ("first", "full", "refused")
        assert first.error.startswith("RESOURCE_EXHAUSTED")
        assert (second.kind, second.node, second.outcome) == ("retry", hosts[0].name, "answered")
        assert [choice.kind for choice in why.choices] == ["first", "retry"]
        assert by_name(why)["full"].why_not == "it refused this call, or was lost with it"
        assert why.choices[1].why == "the only one that can take it"
    stats = caller.node.stats()
    assert stats["peers"][full.node.id]["refused"] == len(refused)
    assert stats["peers"][hosts[0].node.id]["retries"] == len(refused)
    assert stats["methods"]["Work.work"]["retries"] == len(refused)
    hold.cancel()


@zmesh.testing.simulated(seeds=range(3))
async def test_a_lost_link_and_what_became_of_the_call(mesh: Mesh) -> None:
    works, hosts, caller = await start(mesh, 2)
    for work in works:
        work.takes = 1.0
    call = caller.node.client(Work).options(explain=True).work()
    task = asyncio.create_task(caller.run(call))
    await asyncio.sleep(0.1)
    victim = zmesh.explain(call).attempts[0].node
    next(host for host in hosts if host.name == victim).crash()
    await task
    why = zmesh.explain(call)
    assert [(each.node == victim, each.outcome) for each in why.attempts] == [(True, "lost"), (False, "answered")]
    assert why.attempts[0].seconds == pytest.approx(why.attempts[1].at, abs=0.3)
    assert by_name(why)[victim].why_not == "its link was lost a moment ago"


@zmesh.testing.simulated(seeds=range(3))
async def test_a_hedge_and_one_that_the_budget_does_not_have(mesh: Mesh) -> None:
    works, hosts, caller = await start(mesh, 2)
    for work in works:
        work.takes = 0.5
    work = caller.node.client(Work).options(explain=True, hedge_after=0.05)
    call = work.work()
    await caller.run(call)
    why = zmesh.explain(call)
    assert [(each.kind, each.outcome) for each in why.attempts] == [("first", "answered"), ("hedge", "given up")]
    assert why.hedges == 1
    assert why.hedges_left == 9
    assert by_name(why)[why.attempts[0].node].why_not == "it has, or had, an attempt of this call"
    calls = [work.work() for _ in range(15)]
    await asyncio.gather(*map(caller.run, calls))
    without = [why for why in map(zmesh.explain, calls) if not why.hedges]
    assert len(without) == 6
    assert {why.choice.why for why in without if why.choice} == {"the budget has no hedge left"}
    stats = caller.node.stats()
    assert stats["methods"] == {"Work.work": {"hedges": 10}}
    assert sum(stats["peers"][host.node.id]["hedges"] for host in hosts) == 10
    assert sum(stats["peers"][host.node.id]["given_up"] for host in hosts) == 10
    assert stats["services"]["Work"] == {"calls": 16, "retries_left": 100, "hedges_left": 1}


@zmesh.testing.simulated()
async def test_a_call_that_waits_says_for_what(mesh: Mesh) -> None:
    caller = await mesh.start(name="caller")
    call = caller.node.client(Work).options(explain=True).work()
    task = asyncio.create_task(caller.run(call))
    await asyncio.sleep(1.0)
    (choice,) = zmesh.explain(call).choices
    assert (choice.node, choice.candidates, choice.why) == (None, (), "nobody can take it now: it waits")
    await mesh.start(Work("late"), name="late")
    assert await task == "late"
    why = zmesh.explain(call)
    assert why.choice is not None
    assert (why.choice.node, why.choice.kind) == ("late", "first")
    assert why.choice.at >= 1.0


@zmesh.testing.simulated()
async def test_many_looks_in_vain_are_not_all_kept(mesh: Mesh) -> None:
    caller = await mesh.start(name="caller")
    call = caller.node.client(Work).options(explain=True, node="nobody", timeout=4).work()
    task = asyncio.create_task(caller.run(call))
    await asyncio.sleep(0.1)
    for number in range(6):
        await mesh.start(Work(), name=f"other-{number}")
        await asyncio.sleep(0.3)
    with pytest.raises(zmesh.DeadlineExceeded):
        await task
    why = zmesh.explain(call)
    assert len(why.choices) == 2
    assert len(why.candidates) == 6
    assert {candidate.why_not for candidate in why.candidates} == {"another was asked for"}
    assert str(why).startswith("Work.work failed: DEADLINE_EXCEEDED")


@zmesh.testing.simulated()
async def test_an_error_is_an_answer(mesh: Mesh) -> None:
    works, _, caller = await start(mesh, 1)
    works[0].error = zmesh.NotFound("no spoon")
    call = caller.node.client(Work).options(explain=True).work()
    with pytest.raises(zmesh.NotFound):
        await caller.run(call)
    why = zmesh.explain(call)
    assert (why.attempts[0].outcome, "no spoon" in why.attempts[0].error, "no spoon" in why.error) == (
        "failed", True, True,
    )  # fmt: skip
    assert caller.node.stats()["methods"] == {"Work.work": {"NOT_FOUND": 1}}


@zmesh.testing.simulated()
async def test_a_deadline(mesh: Mesh) -> None:
    works, _, caller = await start(mesh, 1)
    works[0].takes = 5.0
    call = caller.node.client(Work).options(explain=True, timeout=0.5).work()
    with pytest.raises(zmesh.DeadlineExceeded):
        await caller.run(call)
    (attempt,) = zmesh.explain(call).attempts
    assert (attempt.outcome, attempt.error) == ("given up", "no answer by the deadline")
    assert attempt.seconds == pytest.approx(0.5, abs=0.05)


@zmesh.testing.simulated()
async def test_calls_by_name_streams_and_interceptors_are_explained_as_well(mesh: Mesh) -> None:
    async def around(call: zmesh.InterceptedCall, proceed: Any) -> Any:
        return await proceed(call)

    _, _, plain = await start(mesh, 2)
    for caller in (plain, await mesh.start(client_interceptors=[around])):
        for client in (caller.node.client(Work), caller.node.client("Work")):
            client = client.options(explain=True)
            call = client.once()
            answered = await caller.run(call)
            assert zmesh.explain(call).attempts[0].node == answered
            stream = client.count(3)

            async def read(stream: Any = stream) -> None:
                async for _ in stream:
                    pass

            await caller.run(read())
            why = zmesh.explain(stream)
            assert (why.method, why.attempts[0].outcome, why.attempts[0].node) == (
                "Work.count",
                "answered",
                stream.node,
            )


@zmesh.testing.simulated()
async def test_a_stream_that_is_left_is_given_up(mesh: Mesh) -> None:
    _, _, caller = await start(mesh, 1)
    stream = caller.node.client(Work).options(explain=True).count(1_000)
    with pytest.raises(ValueError, match="once it has begun"):
        await caller.run(_explained(caller.node.client(Work).count(1)))

    async def first() -> zmesh.Explanation:
        async with stream:
            assert await anext(stream) == 0
        return zmesh.explain(stream)  # at once, not a turn of the loop later

    why = await caller.run(first())
    assert (why.attempts[0].outcome, why.timeout) == ("given up", None)


async def _explained(stream: zmesh.Stream[int]) -> zmesh.Explanation:
    return zmesh.explain(stream)


# -- who is left out, and why


@zmesh.testing.simulated(seeds=range(3))
async def test_an_ejected_node_says_why_and_its_probe_says_that_it_is_one(mesh: Mesh) -> None:
    works, hosts, caller = await start(mesh, 4)
    work = caller.node.client(Work)
    works[1].error = zmesh.Unavailable("no database")
    for _ in range(60):
        with contextlib.suppress(zmesh.Unavailable):
            await caller.run(work.work())
        if (why := caller.node.explain(Work.work)) and by_name(why)["b"].health == "ejected":
            break
    assert by_name(why)["b"].why_not.startswith("ejected for ")
    assert "5 failures in a row, the last: it answered UNAVAILABLE" in by_name(why)["b"].why_not
    stats = caller.node.stats()
    peer = stats["peers"][hosts[1].node.id]
    assert (peer["failed"], peer["ejections"], peer["health"]) == (5, 1, "ejected")
    assert peer["last_ejection"].startswith("5 failures in a row")
    assert stats["methods"]["Work.work"] == {"UNAVAILABLE": 5}
    works[1].error = None
    await asyncio.sleep(1.5)
    for _ in range(2):  # asking changes nothing
        why = caller.node.explain(Work.work)
        assert (why.choice and why.choice.node, by_name(why)["b"].health) == ("b", "due")
        assert why.choice is not None
        assert why.choice.why.startswith("its probe: it was ejected, and its pause is over (5 failures in a row")
    call = work.options(explain=True).work()
    assert await caller.run(call) == "b"
    assert (zmesh.explain(call).choice or why.choice).why == why.choice.why


@zmesh.testing.simulated()
async def test_a_panic_is_told(mesh: Mesh) -> None:
    works, _, caller = await start(mesh, 2)
    for each in works:
        each.error = zmesh.Unavailable("no database")
    for _ in range(20):
        with pytest.raises(zmesh.Unavailable):
            await caller.run(caller.node.client(Work).work())
    why = caller.node.explain(Work.work)
    assert why.choice is not None
    assert why.choice.node in ("a", "b")
    assert why.choice.why.endswith("so few are well that all are believed in")


@zmesh.testing.simulated()
async def test_nodes_that_take_no_calls_of_this_priority(mesh: Mesh) -> None:
    _, hosts, caller = await start(mesh, 2)
    members = caller.node._hub.members  # type: ignore[union-attr]
    for host in hosts:
        members.sheds(members.get(bytes.fromhex(host.node.id)), "", 6 * 128, mesh.now + 60)
        why = caller.node.explain(Work.work, priority=3)
        assert by_name(why)[host.name].why_not == "overloaded: it takes nothing of priority 3, all from 6 on"
        assert by_name(why)[host.name].level == 6
        assert caller.node.explain(Work.work, priority=7).choice.node is not None  # type: ignore[union-attr]
    assert why.choice is not None
    assert (why.choice.node, "held back here: all 2 nodes" in why.choice.why) == (None, True)
    call = caller.node.client(Work).options(explain=True, priority=3).work()
    with pytest.raises(zmesh.ResourceExhausted):
        await caller.run(call)
    why = zmesh.explain(call)
    assert {each.why_not for each in why.candidates} == {"overloaded: it takes nothing of priority 3, all from 6 on"}
    assert why.attempts == ()


@zmesh.testing.simulated()
async def test_another_version_and_a_node_that_leaves(mesh: Mesh) -> None:
    class Second(Work, name="Work", version="2.1"):
        pass

    works, hosts, caller = await start(mesh, 2)
    await mesh.start(Second(), name="second")
    await caller.node.discover()
    works[0].takes = 2.0
    call = asyncio.create_task(caller.run(caller.node.client(Work).options(node="a").work()))
    await asyncio.sleep(0.1)
    leaving = asyncio.create_task(hosts[0].run(hosts[0].node.drain()))
    await asyncio.sleep(0.1)
    why = caller.node.explain(Work.work)
    assert by_name(why)["second"].why_not == "it offers version 2.1, and this client is for 1"
    assert by_name(why)["a"].why_not == "it leaves"
    assert why.choice is not None
    assert why.choice.node == "b"
    assert await call == "a"
    await leaving


@zmesh.testing.simulated()
async def test_a_name_and_a_key(mesh: Mesh) -> None:
    _, _, caller = await start(mesh, 3)
    why = caller.node.explain(Work.work, node="b")
    assert (why.choice and why.choice.node, why.choice and why.choice.why) == ("b", "the one that was asked for")
    assert by_name(why)["a"].why_not == "another was asked for"
    why = caller.node.explain("Work.work", key="user-42")
    assert why.choice is not None
    assert why.choice.why == "where its key belongs"
    assert await caller.run(caller.node.client(Work).options(key="user-42").work()) == why.choice.node
    others = {each.why_not for each in why.candidates if not each.chosen}
    assert others == {"the key belongs to another node"}


# -- a call that is not made


@zmesh.testing.simulated(seeds=range(3))
@pytest.mark.parametrize("policy", ["least_loaded", "least_request", "peak_ewma", "round_robin", "weighted"])
async def test_it_says_where_the_next_call_goes_and_sends_nothing(mesh: Mesh, policy: str) -> None:
    works, _, caller = await start(mesh, 2, balance=policy)
    for _ in range(6):
        await caller.run(caller.node.client(Work).work())
    for _ in range(6):
        calls = sum(work.calls for work in works)
        foreseen = [caller.node.explain(Work.work) for _ in range(3)]
        assert sum(work.calls for work in works) == calls
        goes = {why.choice.node for why in foreseen if why.choice}
        assert {why.policy for why in foreseen} == {policy}
        answered = await caller.run(caller.node.client(Work).work())
        costs = {each.cost for each in foreseen[0].candidates}
        if len(costs) == len(foreseen[0].candidates) or costs == {None}:  # else a lot decides
            assert goes == {answered}


@zmesh.testing.simulated()
async def test_where_nobody_is_found_it_says_what_was_seen(mesh: Mesh) -> None:
    caller = await mesh.start(name="caller")
    why = caller.node.explain("Clock.now")
    assert why.choice is not None
    assert why.choice.node is None
    assert "no node offers 'Clock' and can take it: saw no node" in why.choice.why
    assert str(why).startswith("Clock.now would go to nobody now: ")
    for wrong in ("now", "Clock.", ".now"):
        with pytest.raises(ValueError, match=r"write 'SERVICE\.METHOD'"):
            caller.node.explain(wrong)
    with pytest.raises(TypeError, match="takes a method of a Service class"):
        caller.node.explain(Work)  # type: ignore[arg-type]


class Last:
    """A policy of one's own that looks at two."""

    def choose(self, candidates: Sequence[Candidate], method: str, now: float) -> int:
        return max((0, len(candidates) - 1), key=lambda index: candidates[index].in_flight + index)


@zmesh.testing.simulated()
async def test_a_policy_of_ones_own(mesh: Mesh) -> None:
    _, _, caller = await start(mesh, 5, balance=Last())
    call = caller.node.client(Work).options(explain=True).work()
    answered = await caller.run(call)
    why = zmesh.explain(call)
    assert why.policy == "Last"
    assert why.choice is not None
    assert (why.choice.node, why.choice.why) == (answered, "chosen by Last among 5")
    assert sum(each.looked_at for each in why.candidates) == 2
    assert {each.cost for each in why.candidates} == {None}


@pytest.mark.parametrize("policy", ["least_loaded", "least_request", "peak_ewma"])
@pytest.mark.parametrize("seed", range(20))
def test_cost_is_what_a_policy_compares(policy: str, seed: int) -> None:
    rng = random.Random(seed)
    chooser: Any = make_policy(policy, rng)

    def peer(number: int) -> Any:
        known = rng.choice([None, rng.uniform(0.001, 0.1)])
        return SimpleNamespace(
            id=bytes([number]), name=str(number), weight=rng.choice([1.0, 4.0]), in_flight=rng.randrange(4),
            others=rng.randrange(9), reported_at=rng.choice([float("-inf"), 10 - rng.random()]),
            called_at=rng.choice([float("-inf"), 10 - rng.random()]), latency=lambda method: known,
        )  # fmt: skip

    for _ in range(50):
        peers = [peer(number) for number in range(2)]
        costs = [chooser.cost(each, "m", 10.0) for each in peers]
        index = chooser.choose(peers, "m", 10.0)
        assert costs[index] <= min(costs) * (1 + 1e-9)
        if policy == "peak_ewma":
            chooser.learn(peers[index], "m", rng.uniform(0.001, 0.1), 10.0)


# -- as text, as data


@zmesh.testing.simulated()
async def test_as_text_and_as_data(mesh: Mesh) -> None:
    _, _, caller = await start(mesh, 2)
    call = caller.node.client(Work).options(explain=True).work()
    answered = await caller.run(call)
    why = zmesh.explain(call)
    text = str(why).splitlines()
    assert text[0].startswith(f"Work.work was answered by {answered} after ")
    assert text[2].startswith(f"first attempt at 0 ms: {answered}, the least cost of all 2")
    assert text[3].split() == " ".join(told.HEADINGS).split()
    assert text[4].split()[:3] == ["→", answered, "alive"]
    assert text[-3].startswith(f"{answered}, first at 0 ms: answered after ")
    assert text[-1] == "least_loaded; 100 retries and 10 hedges in the budget; deadline 10 s"
    data = json.loads(json.dumps(why.as_dict(), allow_nan=False))
    assert data["choices"][0]["candidates"][0]["name"] == data["attempts"][0]["node"] == answered
    assert json.loads(json.dumps(caller.node.stats(), allow_nan=False)) == caller.node.stats()
