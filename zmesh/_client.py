"""The calling half of a node: from `client.method(...)` to an answer or an error, by whatever attempts it takes.

One call waits on one future. What happens to its attempts is decided in plain functions, called by the links' events;
the rules themselves are tables and functions of `_core` (`call`, `retry`, `balance`).
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

from ._call import NO_METADATA, Call, make_room
from ._core import messages as m
from ._core.admission import LOTS, rank_of
from ._core.budget import Budget
from ._core.call import Event, State, Verdict, judge
from ._core.members import Member, Members
from ._core.messages import Message, ProtocolError
from ._core.policies import Policy
from ._core.retry import Action, Cost, after, backoff, cost, pushback, worth_another_node
from ._core.selection import Selection
from ._core.timing import Deadlines
from ._judge import Judge
from ._link import Attempt, Link
from ._platform import clock_of
from ._streams import Outlet
from ._waiter import Stepper, Waiter
from .config import Config
from .context import current, inheritance
from .errors import (
    Cancelled,
    Code,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    MaybeExecuted,
    RpcError,
    Unavailable,
    error_class,
)
from .interceptors import Interceptor
from .schema import MethodSchema

if TYPE_CHECKING:
    from ._record import Record

__all__ = ["Client", "Outgoing", "Target", "error_of"]

_PREVIOUS: Final = 8  # nodes that had a call before, and that it tells of


@dataclass(frozen=True, slots=True)
class Target:
    """What is called: all of a call that its method settles.

    service, major: who may answer: peers that offer it in this major version (None: any).
    buffers: whether the arguments may hold large binary values.
    load: the result, from what came over the wire.
    key: of who may answer, in `Members.known`.
    budget: of the service's retries and hedges.
    """

    service: str
    major: int | None
    path: str
    idempotent: bool
    buffers: bool
    load: Callable[[object], Any]
    budget: Budget = field(default_factory=lambda: Budget(0.0), compare=False)
    key: tuple[str, int | None] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", (self.service, self.major))

    @classmethod
    def of(cls, method: MethodSchema, major: int | None, budget: Budget) -> Target:
        buffers, load = method.buffers_in_arguments, method.load_result
        return cls(method.service, major, method.path, method.idempotent, buffers, load, budget)


class Outgoing(Call[Any]):
    """A call on its way: what the user awaits, and all that is known of it. Called when its deadline is due.

    What most calls never need is only on the class: setting all of it costs more than all else here. What every call is
    asked for is set, though, as Python finds what is only on the class ten times slower.
    """

    metadata: Mapping[str, str | bytes] = NO_METADATA
    node: str | None = None
    future: Waiter | asyncio.Future[Any]  # of the answer's value
    special = False  # whether its options say more than most, or it has streams
    watched = False  # whether more than its caller is told of its end
    deadline: float
    selection: Selection | None = None  # which of those that offer the service may take it
    hedge_after: float | str | None = None  # seconds without an answer, or of which percentile, until it is hedged
    _record: Record | None = None  # what is noted where it is to be explained
    plain = False  # whether its arguments are known to hold nothing but scalars, dicts and lists
    rank: int | None = None  # see `_core.admission`; None: as any
    marked = False  # CALL says more of it than most: see `marks`
    previous: Sequence[int] = ()  # the tags of peers that had it and no longer have
    attempts: Sequence[Attempt] = ()
    avoid: Sequence[bytes] = ()  # peers that refused it or were lost with it
    link: Link | None = None  # over which the answer came
    tries = 0
    refusal: RpcError | None = None
    owes = False  # it waits for a retry of its service's budget
    pushback = 0.0  # seconds until a peer that refused it wants it again
    may_have_run = False
    begun = False  # its stream has: the peer took it, and what has come or gone cannot be had twice
    until_begun = False  # its deadline holds only until then
    outlet: Outlet | None = None  # of a stream of arguments
    patience: float | None = None  # until when it waits for somebody who offers the service
    retry_handle: asyncio.TimerHandle | None = None

    def __init__(
        self,
        client: Client,
        target: Target,
        timeout: float,
        metadata: Mapping[str, str | bytes] | None,
        arguments: object,
        plain: bool = False,
    ) -> None:
        self.client = client
        self.target = target
        self.request_metadata = metadata
        self.arguments = arguments
        self.plain = plain
        self.special = self.marked = False
        self.attempts = ()
        self.tries = 0
        self._coroutine = client.perform(self, timeout)

    def __call__(self) -> None:
        self.client.expired(self)

    def hurry(self) -> None:
        """Let it leave now, and not at the end of the loop's turn."""
        for attempt in self.attempts:
            attempt.link.flush()

    def marks(self) -> Message:
        """What is appended to CALL: until begun, rank, and from the second attempt on its number and who had it."""
        items: Message = [self.until_begun, self.rank]
        if self.tries:
            there = [m.tag_of(attempt.member.id) for attempt in self.attempts]
            items += [self.tries + 1, [*self.previous, *there][-_PREVIOUS:]]
        return items

    def told(self, metadata: Mapping[str, str | bytes]) -> None:
        """What came beside the answer."""
        self.metadata = metadata

    def items_received(self, attempt: Attempt, sequence: int, items: list[object] | bytes, size: int) -> None:
        """Items of the answer. Raises ProtocolError where there should be none."""
        raise ProtocolError(f"an item for {self.target.path}, which answers one value")

    def credited(self, attempt: Attempt, items: int) -> None:
        """The peer took items of the arguments. Raises ProtocolError where there are none."""
        raise ProtocolError(f"credit for {self.target.path}, which takes no stream")

    def unsendable(self, why: str) -> None:
        """An item of its arguments cannot leave."""
        self.client.item_refused(self, why)

    def lost(self, attempt: Attempt) -> RpcError:
        """The error where its stream had begun on a peer that is gone."""
        raise NotImplementedError


make_room(
    Outgoing, "client", "target", "request_metadata", "arguments", "plain", "special", "marked", "attempts", "tries",
    "deadline", "future", "link", "node", "metadata", "may_have_run", "previous", "avoid", "refusal", "rank",
)  # fmt: skip


class Client:
    """See the module."""

    def __init__(
        self,
        *,
        config: Config,
        members: Members[Link],
        policy: Policy,
        deadlines: Deadlines[Callable[[], None]],
        want: Callable[[str, bool], None],
        describe: Callable[[str], str],
        random: random.Random,
        stepper: Stepper,
        interceptors: Sequence[Interceptor] = (),
    ) -> None:
        """want: told of a service that is called while nobody is known to take its calls, and whether all who offer it
        are to be known.
        describe: what was seen and what was looked at, for the error that nobody offers a service."""
        self.loop = self._loop = asyncio.get_running_loop()
        self.thread = threading.get_ident()
        self.config = self._config = config
        self._time = clock_of(self._loop)
        self._create_future = self._loop.create_future
        self._members = members
        self._policy = policy
        self._known, self._odd = members.known, members.odd
        self._learn = getattr(policy, "learn", None)
        self._deadlines = deadlines
        self._want = want
        self._describe = describe
        self._random = random
        self._stepper = stepper
        self.judge = Judge(members, random, self._time)
        self.interceptors = interceptors
        self._parked: dict[Outgoing, None] = {}  # calls that wait for a peer
        self._silent: dict[Link, None] = {}  # links of which this was told, and perhaps no longer holds
        self._resume_handle: asyncio.Handle | None = None
        self.closed: RpcError | None = None
        self.sources: dict[asyncio.Task[None], None] = {}  # that read streams of arguments, or close them
        _CLIENTS.add(self)

    # -- one call

    async def perform(self, call: Outgoing, timeout: float) -> Any:
        """Send a call and wait for its answer. Raises RpcError; on any way out nothing of the call is left behind."""
        bucket = self.begin(call, timeout)
        try:
            value = await call.future
        finally:
            bucket.pop(call, None)
            if call.attempts or call.tries != 1 or call.marked:  # else it was answered by the one that it went to
                self.forget(call)
        call.node = call.link.remote.name  # type: ignore[union-attr]
        load = call.target.load  # what is no method, Python calls much faster by a local name, here and elsewhere
        return load(value)

    def begin(self, call: Outgoing, timeout: float) -> dict[Callable[[], None], float]:
        """Put a call on its way; the bucket that its deadline waits in. Whoever waits for it calls `forget` at last."""
        if self.closed is not None:
            raise type(self.closed)(self.closed.message, may_have_run=False)
        time, create_future = self._time, self._create_future
        now = time()
        call.deadline = deadline = now + timeout
        if current.get() is not None:
            deadline = self._inherit(call)
        bucket = self._deadlines.add(deadline, call, now)
        target = call.target
        target.budget.calls += 1
        # A call that is alone goes on at once when it is answered. Where there are many, a turn of the loop serves them
        # all, and asyncio's own future costs less; it also tells more than one of its end.
        special = call.special
        call.future = Waiter(self._stepper) if len(bucket) == 1 and not special else create_future()
        # What nearly every call comes to, without what is asked only of others.
        candidates = self._known.get(target.key)
        if candidates and not special and not self._odd:
            one = len(candidates) == 1
            member = candidates[0] if one else candidates[self._policy.choose(candidates, target.path, now)]
            link = member.link
            if link is not None and link.usable:
                if not link.call_again(call, member, now, timeout):
                    self._attempt(call, member, link, now)
                    link.like(call, timeout)
                return bucket
        self._start(call, now)
        if special and call.hedge_after is not None:
            after = call.hedge_after
            delay = after if not isinstance(after, str) else self.judge.hedge_delay(call, after, now)
            if delay is not None:
                self._deadlines.add(now + delay, _Hedge(call), now)
        return bucket

    def _inherit(self, call: Outgoing) -> float:
        """What a call that is made by a handler has of the one that it serves; its deadline."""
        inherited = inheritance()
        if inherited is not None:
            call.deadline = min(call.deadline, inherited[0])
            own = call.rank
            call.rank = inherited[1] if own is None else rank_of(own // LOTS, inherited[1])
            call.marked = True
        return call.deadline

    def put_down(self, call: Outgoing, timeout: float) -> dict[Callable[[], None], float]:
        """A new deadline for a call; the bucket that it waits in."""
        now = self._time()
        call.deadline = now + timeout
        return self._deadlines.add(call.deadline, call, now)

    def timeout(self, given: float | None) -> float:
        """Seconds, where the caller may not have said how many."""
        return self._config.timeout if given is None else given

    def run_source(self, source: Coroutine[Any, Any, None], path: str) -> asyncio.Task[None]:
        """Read a stream of arguments for a call of `path`, or close it, in a task of its own."""
        task = self.loop.create_task(source, name=f"{path} arguments")
        self.sources[task] = None
        task.add_done_callback(self.sources.pop)
        return task

    def want(self, service: str, all: bool = False) -> None:
        """Calls of `service` are about to be made; they may go to `all` who offer it."""
        self._want(service, all)

    def _start(self, call: Outgoing, now: float) -> None:
        """One more attempt, on the best peer there is; without one, wait for it."""
        target = call.target
        candidates: Sequence[Member[Link]] = self._members.candidates(target.service, target.major)
        if call.selection is not None:
            self._want(target.service, True)
            candidates = self._selected(call, call.selection, candidates)
        record = call._record
        if record is not None:
            record.looks(self._members, candidates, now)
        count = len(candidates)
        if not count:
            if call.selection is not None and call.selection.hopeless:
                self.settle(call, Unavailable(f"{self._nobody(call)}", may_have_run=False))
            else:
                self._park(call)
            return
        if self._members.odd:
            careful = self.judge.with_care(call, candidates, now)
            if isinstance(careful, RpcError):
                self.settle(call, careful)
                return
            candidates, count = careful, len(careful)
        if record is not None:
            candidates = record.shows(candidates)
        member = candidates[self._policy.choose(candidates, target.path, now) if count > 1 else 0]
        link = member.link
        if link is None or not link.usable or (call.avoid and member.id in call.avoid):
            usable = [c for c in candidates if c.link is not None and c.link.usable and c.id not in call.avoid]
            if not usable:
                if self._hopeless(call, candidates):
                    self.settle(call, call.refusal)  # type: ignore[arg-type]
                else:
                    self._park(call)
                return
            if record is not None:
                usable = record.shows(usable)  # type: ignore[assignment]
            member = usable[self._policy.choose(usable, target.path, now) if len(usable) > 1 else 0]
        self._attempt(call, member, member.link, now)  # type: ignore[arg-type]
        if record is not None:
            record.went()

    def _candidates(self, call: Outgoing) -> Sequence[Member[Link]]:
        candidates = self._members.candidates(call.target.service, call.target.major)
        return candidates if call.selection is None else self._selected(call, call.selection, candidates)

    def _selected(
        self, call: Outgoing, selection: Selection, candidates: Sequence[Member[Link]]
    ) -> Sequence[Member[Link]]:
        """What a selection leaves of those who have not refused the call; of all, where that is nobody; of those who
        are there at all, well or not, where that is nobody either: who names a node wants it."""
        if call.avoid:
            rest = selection.among([member for member in candidates if member.id not in call.avoid])
            if rest:
                return rest
        return selection.among(candidates) or selection.among(
            self._members.standing(call.target.service, call.target.major)
        )

    def _hopeless(self, call: Outgoing, candidates: Sequence[Member[Link]]) -> bool:
        """Whether everybody who offers the service has said that it lacks the method: waiting changes nothing."""
        refusal = call.refusal
        if refusal is None or refusal.code is not Code.UNIMPLEMENTED:
            return False
        return all(member.id in call.avoid for member in candidates)

    def _attempt(self, call: Outgoing, member: Member[Link], link: Link, now: float) -> None:
        left = call.deadline - now
        if left <= 0:  # its deadline is due in this turn
            return
        remaining = int(left * 1000 + 1.001)  # as many for each call of one timeout, whatever rounding does
        try:
            attempt = link.call(call, member, now, remaining if remaining <= m.LIMIT else m.LIMIT)
        except (TypeError, ValueError) as error:
            self.settle(call, InvalidArgument(f"{call.target.path}: {error}", may_have_run=False))
            return
        call.attempts = [*call.attempts, attempt] if call.attempts else (attempt,)
        call.tries += 1
        member.in_flight += 1
        member.called_at = now
        if call.special and call.outlet is not None:
            try:
                call.outlet.attach(attempt.link, attempt.sequence & m.LIMIT)
            except (TypeError, ValueError) as error:  # sent to an earlier peer, and this one does not take it
                self.item_refused(call, error)

    def _park(self, call: Outgoing) -> None:
        """Wait for a peer, or for the back-off to pass where all who could take it refused."""
        now = self._time()
        if call._record is not None:
            call._record.waits(now)
        self._parked[call] = None
        self._want(call.target.service, call.selection is not None)
        if (call.avoid or call.owes) and call.retry_handle is None:
            pause = backoff(call.tries - 1, self._config.backoff, self._config.max_backoff, self._random)
            call.retry_handle = self._loop.call_later(max(pause, call.pushback), self._retry, call)
        if call.patience is None:
            call.patience = now + self._config.patience
            if call.patience < call.deadline:
                self._deadlines.add(call.patience, _Patience(call), now)

    def _retry(self, call: Outgoing) -> None:
        """The back-off has passed: those who refused it are worth another try."""
        call.retry_handle = None
        if call in self._parked and not call.future.done():
            del self._parked[call]
            call.avoid, call.pushback = (), 0.0
            self._again(call, Cost.ASKED if call.owes else Cost.NOTHING)

    def resume(self) -> None:
        """Somebody may have come who can take the waiting calls: look in this turn of the loop, once."""
        if self._parked and self._resume_handle is None:
            self._resume_handle = self._loop.call_soon(self._resume)

    def _resume(self) -> None:
        self._resume_handle = None
        parked, self._parked = self._parked, {}
        for call in parked:
            if call.owes:
                self._parked[call] = None
            elif not call.future.done():
                self._start_again(call, self._time())

    def forget(self, call: Outgoing) -> None:
        """The call is over for its caller, whatever its attempts do."""
        self._parked.pop(call, None)
        if call.retry_handle is not None:
            call.retry_handle.cancel()
        attempts, call.attempts = call.attempts, ()
        for attempt in attempts:
            self._abandon(attempt)

    def _abandon(self, attempt: Attempt) -> None:
        attempt.member.in_flight -= 1
        attempt.member.counts.given_up += 1
        path = attempt.call.target.path
        if not attempt.call.begun:
            # What it took so far is the least that it takes: a peer that hangs does not look fast.
            now = self._time()
            known = attempt.member.latency(path)
            if known is None or now - attempt.started > known:
                self._took(attempt.member, path, attempt.started, now)
        attempt.link.cancel(attempt.sequence & m.LIMIT)

    def _took(self, member: Member[Link], path: str, started: float, now: float) -> None:
        """A call of a method took from `started` until now, at the least."""
        member.observe(path, started, now)
        if self._learn is not None:
            self._learn(member, path, now - started, now)

    def only(self, attempt: Attempt) -> None:
        """A call's stream has begun with this attempt: give up the others."""
        others = [each for each in attempt.call.attempts if each is not attempt]
        attempt.call.attempts = (attempt,)
        for other in others:
            self._abandon(other)

    def item_refused(self, call: Outgoing, why: object) -> None:
        """An item of a call's arguments cannot be sent."""
        self.settle(call, InvalidArgument(f"{call.target.path}: an item of its arguments: {why}"))

    def settle(self, call: Outgoing, error: RpcError) -> None:
        if not call.future.done():
            self.judge.count(call.target.path, error.code.name)
            call.future.set_exception(error)

    # -- what links and timers tell

    def expired(self, call: Outgoing) -> None:
        """A call's deadline has passed; unless that was taken away, or put off, in the last moment."""
        if call.future.done() or self._time() < call.deadline:
            return
        ran = call.may_have_run or any(attempt.link.left(attempt) for attempt in call.attempts)
        if call.attempts:
            names = ", ".join(f"{a.member.name!r} ({a.member.state.value})" for a in call.attempts)
            now = self._time()
            for attempt in call.attempts:
                if not call.begun and attempt.link.left(attempt):
                    self.judge.expired(attempt, now)
            text = f"{call.target.path} was not answered by its deadline by {names}"
        elif call.refusal is not None:
            text = f"{call.target.path} was refused until its deadline, at last with {call.refusal}"
        else:
            text = f"{self._nobody(call)} by the call's deadline: {self._describe(call.target.service)}"
        self.settle(call, DeadlineExceeded(text, may_have_run=ran))

    def _nobody(self, call: Outgoing) -> str:
        who = f" {call.selection}".rstrip() if call.selection is not None else ""
        return f"no node{who} offers {call.target.service!r}"

    def impatient(self, call: Outgoing) -> None:
        """The time to wait for a peer has passed."""
        if call.future.done() or call not in self._parked:
            return
        if self._candidates(call):
            return  # there are peers, and they refuse: until the deadline
        service = call.target.service
        text = f"{self._nobody(call)} after {self._config.patience:.1f} s: {self._describe(service)}"
        if call.may_have_run:
            self.settle(call, MaybeExecuted(f"{call.target.path} may have run on a node that was lost, and {text}"))
        else:
            self.settle(call, Unavailable(text, may_have_run=False))

    def replied(self, link: Link, attempt: Attempt, message: Message, now: float) -> None:
        """A REPLY or ERROR came for an attempt."""
        call, member, _, _, started = attempt
        if len(call.attempts) == 1 and call.attempts[0] is attempt:
            call.attempts = ()
        elif not self._taken_out(attempt):  # given up while its answer was on its way through here
            return
        member.in_flight -= 1
        if message[0] == m.REPLY:
            if not call.begun:
                self._took(member, call.target.path, started, now)
            member.health.successes += 1
            if member.health.troubled:
                self._members.succeeded(member, started, now)
            if not call.future.done():
                call.link = link
                if message[3]:
                    call.told(message[3])  # type: ignore[arg-type]
                call.future.set_result(message[2])
            return
        error = error_of(message, link)
        self.judge.failed_answer(attempt, error, now)
        if error.may_have_run or call.begun:
            self.settle(call, error)
        elif worth_another_node(error.code):
            self.judge.told(attempt, message[5], now)
            wanted = pushback(message[5])
            if wanted == math.inf:
                error.may_have_run = call.may_have_run
                self.settle(call, error)
                return
            if wanted is not None:
                call.pushback = min(wanted, call.pushback or wanted)
            call.refusal = error
            self._ended(attempt, judge(State.SENT, Event.REFUSED), error.code)
        else:
            error.may_have_run = call.may_have_run
            self.settle(call, error)

    def row_replied(self, link: Link, row: Message, now: float) -> None:
        """REPLIES came: as `replied` for each of them, but that what they tell of the peer is summed up."""
        pending, numbers, values = link.pending, row[1], row[2]
        member = target = None
        answered, starts, since = 0, 0.0, math.inf
        for number, value in zip(numbers, values, strict=True):  # type: ignore[call-overload]
            attempt = pending.pop(number, None)
            if attempt is None:  # given up
                continue
            call, its_member, _, _, started = attempt
            if call.target is not target or its_member is not member or started < since:
                if answered:
                    self._answered(member, target, answered, starts, now)
                    answered, starts = 0, 0.0
                if its_member.health.troubled or self._learn is not None or started < its_member.since:
                    self.replied(link, attempt, [m.REPLY, number, value, None], now)
                    continue
                member, target, since = its_member, call.target, its_member.since
            if call.attempts != (attempt,) or (call.special and call.begun):
                self.replied(link, attempt, [m.REPLY, number, value, None], now)
                continue
            call.attempts = ()
            answered += 1
            starts += started
            future = call.future
            if not future.done():
                call.link = link
                future.set_result(value)
        if answered:
            self._answered(member, target, answered, starts, now)

    def _answered(self, member: Any, target: Any, calls: int, starts: float, now: float) -> None:
        """So many calls of a method were answered by a peer; `starts`: the sum of the times when they were sent."""
        member.in_flight -= calls
        member.health.successes += calls
        member.observe(target.path, starts / calls, now, calls)

    def link_closed(self, link: Link) -> None:
        """A link is over: what was open on it did not run, or may have."""
        pending, link.pending = link.pending, {}
        if pending and link.last_run is None and self.closed is None:
            self.judge.link_lost(list(pending.values()), self._time())
        for attempt in pending.values():
            self._taken_out(attempt)
            attempt.member.in_flight -= 1
            state = State.SENT if link.left(attempt) else State.WAITING
            if attempt.call.begun:
                state = State.STREAMING
            never_ran = link.last_run is not None and attempt.sequence > link.last_run
            self._ended(attempt, judge(state, Event.NEVER_RAN if never_ran else Event.LINK_LOST))

    def _taken_out(self, attempt: Attempt) -> bool:
        """Whether this attempt was still under way; it no longer is."""
        others = [each for each in attempt.call.attempts if each is not attempt]
        if len(others) == len(attempt.call.attempts):
            return False
        attempt.call.attempts = others
        return True

    def _ended(self, attempt: Attempt, verdict: Verdict, code: int | None = None) -> None:
        """An attempt ended without an answer. code: with which it was refused, if it was."""
        call = attempt.call
        if call._record is not None:
            call._record.lost(attempt, self._time())
        if call.future.done():
            return
        if self.closed is not None:
            ran = call.may_have_run or verdict in (Verdict.UNKNOWN, Verdict.BROKEN)
            self.settle(call, Cancelled(self.closed.message, may_have_run=ran))
            return
        if verdict is Verdict.BROKEN:
            self.settle(call, call.lost(attempt))
            return
        call.avoid = [*call.avoid, attempt.member.id]
        call.previous, call.marked = [*call.previous, m.tag_of(attempt.member.id)], True
        if verdict is Verdict.UNKNOWN:
            call.may_have_run = True
        action = after(verdict, idempotent=call.target.idempotent, others_out=bool(call.attempts))
        if action is Action.RETRY:
            self._again(call, cost(verdict, code))
        elif action is Action.WAIT:
            self._try_elsewhere(call)
        elif action is Action.MAYBE_EXECUTED:
            text = (
                f"{call.target.path} was sent to {attempt.member.name!r}, which was lost before it answered "
                f"({attempt.link.ended}): it may have run. Mark the method idempotent=True if running it twice does no "
                "harm; it is then tried on another node"
            )
            self.settle(call, MaybeExecuted(text, node=attempt.member.name))

    def _again(self, call: Outgoing, price: Cost) -> None:
        """One more attempt, as soon as the budget has it."""
        now, budget = self._time(), call.target.budget
        call.owes = False
        if price is Cost.CHARGED:
            budget.charge(now)
        elif price is Cost.ASKED and not budget.retry(now):
            hopeless = self.judge.hopeless(call, self._candidates(call), now)
            if hopeless is not None:
                self.settle(call, hopeless)
                return
            call.owes = True
            self._park(call)
            return
        self._start_again(call, now)

    def _start_again(self, call: Outgoing, now: float) -> None:
        """As `_start`, and counted where it is a retry."""
        before = call.tries
        self._start(call, now)
        if call.tries > before > 0:
            self.judge.count(call.target.path, "retries")
            call.attempts[-1].member.counts.retries += 1

    def second_attempts(self, link: Link) -> None:
        """A peer is silent: its idempotent calls get a second attempt elsewhere, and the first answer wins."""
        if link.dialed:
            self._silent[link] = None
        for attempt in list(link.pending.values()):
            self._try_elsewhere(attempt.call)

    def look_for_others(self) -> None:
        """Somebody came: calls that wait for silent peers alone may be tried there."""
        silent, self._silent = self._silent, {}
        for link in silent:
            if link.suspected and link.pending:
                self.second_attempts(link)

    def _try_elsewhere(self, call: Outgoing) -> None:
        """One more attempt at an idempotent call, if every one that is out is with a silent peer."""
        if not call.target.idempotent or call.begun or call.future.done():
            return
        if all(attempt.link.suspected for attempt in call.attempts):
            self._second(call, hedge=False)

    def hedge(self, call: Outgoing) -> None:
        """An idempotent call has had no answer for `hedge_after`: try another peer too, and take the first answer."""
        if not call.future.done() and not call.begun and len(call.attempts) == 1 and call.refusal is None:
            self._second(call, hedge=True)

    def _second(self, call: Outgoing, *, hedge: bool) -> None:
        tried = [a.member for a in call.attempts]

        def fresh(c: Member[Link]) -> bool:
            new = c not in tried and c.id not in call.avoid
            return new and c.link is not None and c.link.usable and not c.link.suspected

        candidates = self._members.candidates(call.target.service, call.target.major)
        others: Sequence[Member[Link]] = list(filter(fresh, candidates))
        if call.selection is not None:
            others = list(filter(fresh, call.selection.among(others)))
        if call.outlet is not None:  # a stream of arguments is read once, and goes to one peer
            return
        now, budget, record = self._time(), call.target.budget, call._record
        if record is not None:
            record.looks(self._members, others, now, "hedge" if hedge else "second")
        if not others:
            return
        if not hedge:
            budget.charge(now)
        elif not budget.hedge(now):
            if record is not None:
                record.nobody("the budget has no hedge left")
            return
        call.may_have_run = call.marked = True
        if record is not None:
            others = record.shows(others)
        other = others[self._policy.choose(others, call.target.path, now) if len(others) > 1 else 0]
        self._attempt(call, other, other.link, now)  # type: ignore[arg-type]
        self.judge.count(call.target.path, "hedges" if hedge else "second_attempts")
        if hedge:
            other.counts.hedges += 1
        else:
            other.counts.retries += 1
        if record is not None:
            record.went()

    def close(self, reason: str) -> None:
        """Fail every call that is open."""
        self.closed = Unavailable(reason, may_have_run=False)
        parked, self._parked = self._parked, {}
        for call in parked:
            kind = Cancelled if call.may_have_run else Unavailable
            self.settle(call, kind(reason, may_have_run=call.may_have_run))


_CLIENTS: WeakSet[Client] = WeakSet()


def _in_forked_child() -> None:
    text = "this Node was made in the parent process and does not work in a forked child: make one in the child"
    for client in _CLIENTS:
        client.closed = FailedPrecondition(text, may_have_run=False)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_child)


class _Patience:
    """The item of `Deadlines` for the time that a call waits for a peer."""

    __slots__ = ("_call",)

    def __init__(self, call: Outgoing) -> None:
        self._call = call

    def __call__(self) -> None:
        self._call.client.impatient(self._call)


class _Hedge:
    """The item of `Deadlines` for the time that a call waits for its first answer alone."""

    __slots__ = ("_call",)

    def __init__(self, call: Outgoing) -> None:
        self._call = call

    def __call__(self) -> None:
        self._call.client.hedge(self._call)


def error_of(message: Message, link: Link) -> RpcError:
    """The exception that an ERROR stands for."""
    _, _, code, text, ran, fields = message[:6]
    name = link.remote.name if link.remote is not None else None
    fields = fields if isinstance(fields, dict) else {}
    details, kind, trace = fields.get("details"), fields.get("type"), fields.get("traceback")
    cls = error_class(code)  # type: ignore[arg-type]
    error = cls(
        str(text),
        details=details if isinstance(details, dict) else None,
        node=name,
        may_have_run=bool(ran),
        remote_type=kind if isinstance(kind, str) else None,
        remote_traceback=trace if isinstance(trace, str) else None,
    )
    if cls.code != code and code not in (Code.UNKNOWN,):
        error.message = f"status code {code}: {error.message}"
    return error
