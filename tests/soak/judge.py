"""What must be true of a stream, of what it opened, and of a mesh at rest."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import zmesh
from zmesh._client import Outgoing
from zmesh._server import Running
from zmesh.testing import Host

from .ledger import LATE, Ledger, Opened, Profile
from .streams import StreamRecord

PROMPTLY: Final = 0.1  # seconds from the end of a stream until all that it opened is closed, where all is well

# What may end a stream that nobody told to fail. INTERNAL and INVALID_ARGUMENT are never among it.
_FAULTS: Final = (zmesh.Unavailable, zmesh.MaybeExecuted, zmesh.DeadlineExceeded, zmesh.Cancelled)


def judge(ledger: Ledger, record: StreamRecord, profile: Profile, default: float) -> None:
    """What must be true of a stream that has ended. default: the timeout where none was given."""
    if record.alive:
        ledger.complain(f"goes on behind its end with {record.alive}", record)
    _judge_deadline(ledger, record, default)
    error = record.error
    if isinstance(error, zmesh.Unavailable) and error.details.get("delivered", record.reader.taken) != (
        record.reader.taken
    ):
        ledger.complain(f"is said to have delivered {error.details['delivered']}", record)
    if _as_planned(record):
        return
    if profile == "drains":
        ledger.complain("did not end as planned in a rolling restart", record)
    elif error is not None and not isinstance(error, _FAULTS) and not (record.plan.kind.calls_on and _aborted(record)):
        ledger.complain("ended with an error that no fault explains", record)
    elif error is None and not record.cancelled:
        ledger.complain("did not end as planned", record)
    elif profile == "single":
        _judge_spared(ledger, record)


def _aborted(record: StreamRecord) -> bool:
    return isinstance(record.error, zmesh.Aborted)


def _as_planned(record: StreamRecord) -> bool:
    plan, kind, error = record.plan, record.plan.kind, record.error
    if record.left:
        return record.reader.taken == plan.leaves
    fails = plan.reading.fails if kind.takes_stream else plan.making.fails
    if fails >= 0:
        return isinstance(error, zmesh.Aborted if kind.calls_on else zmesh.DataLoss)
    if plan.making.fails >= 0:
        return record.source_failed
    return record.complete if kind.answers_stream else record.answer is not None


def _judge_deadline(ledger: Ledger, record: StreamRecord, default: float) -> None:
    assert record.ended is not None
    plan = record.plan
    if plan.timeout is not None:
        due = record.began + plan.timeout
        for asked, got in record.waits:
            if got > ledger.allowed(record.caller, max(asked, due)):
                ledger.complain(f"had to wait for an answer until {got:.3f}", record)
        if not record.plan.kind.answers_stream and record.ended > ledger.allowed(record.caller, due):
            ledger.complain("ended after its deadline", record)
        if isinstance(record.error, zmesh.DeadlineExceeded) and record.ended < due - LATE:
            ledger.complain("ended before its deadline", record)
        return
    text = str(record.error)
    late = isinstance(record.error, zmesh.DeadlineExceeded)
    if late and record.begun:
        last = record.source.closed if record.source is not None and record.source.finished else None
        if record.plan.kind.answers_stream or last is None or record.ended < last + default - LATE:
            ledger.complain("has no deadline, had begun, and is said to be late", record)
    if _aborted(record) and record.reader.taken and "DEADLINE_EXCEEDED" in text:
        ledger.complain("has no deadline, but the stream that it hands on had", record)


def _judge_spared(ledger: Ledger, record: StreamRecord) -> None:
    """A stream that did not end as planned while one node was harmed."""
    assert record.ended is not None
    victims, error = ledger.victims(record.began, record.ended), record.error
    if record.caller in victims:
        return
    if record.plan.kind.calls_on:
        if not victims:
            ledger.complain("failed, and nobody was harmed", record)
    elif not any(victim in str(error) for victim in victims):
        ledger.complain(f"failed, and not because of {victims}", record)
    elif record.method == "count" and not record.reader.taken:
        ledger.complain("is idempotent, had not begun, and was not tried elsewhere", record)


def judge_runs(ledger: Ledger, record: StreamRecord, profile: Profile) -> None:
    """What must be true of a stream and of its handlers, when all are over."""
    runs = ledger.runs.get(record.token, [])
    handlers = [each for each in ledger.opened.get(record.token, []) if each is not record.source]
    if not record.idempotent and len(runs) > 1:
        ledger.complain(f"is not idempotent and ran at {runs}", record)
    if record.ends == 0:
        return
    error = record.error
    if runs and error is not None and not error.may_have_run:
        ledger.complain(f"ran at {runs}, though its error says that it did not", record)
    if runs and isinstance(error, zmesh.Unavailable) and "delivered" not in error.details:
        ledger.complain(f"ran at {runs}, though it is said to be UNAVAILABLE", record)
    _judge_items(ledger, record, handlers)
    _judge_closing(ledger, record, profile)


def _judge_items(ledger: Ledger, record: StreamRecord, handlers: list[Opened]) -> None:
    taken = record.reader.taken
    if record.reader.run is not None:
        handlers = [each for each in handlers if each.run == record.reader.run]
    if record.complete and not any(each.finished and each.items == taken for each in handlers):
        ledger.complain("was read to its end, which is not where its handler ended", record)
    raised = isinstance(record.error, (zmesh.DataLoss, zmesh.Aborted)) and record.plan.kind.answers_stream
    if raised and not any(each.raised and each.items == taken for each in handlers):
        ledger.complain("failed, and items before the error are missing", record)
    if record.answer is not None and not any(each.finished and each.items == record.answer for each in handlers):
        ledger.complain("was answered otherwise than its handler did", record)
    source = record.source
    if source is not None and record.plan.reading.stops < 0 and (record.complete or record.answer is not None):
        read = taken if record.complete else record.answer
        if not source.finished or source.items != read:
            ledger.complain(f"answers {read} of {source.items} arguments", record)


def _judge_closing(ledger: Ledger, record: StreamRecord, profile: Profile) -> None:
    assert record.ended is not None
    source = record.source
    ended = record.ended + record.plan.making.closing
    if source is not None and source.closed is not None and source.closed > ledger.allowed(record.caller, ended):
        ledger.complain(f"ended before {source}", record)
    if profile == "chaos":
        return
    runs = ledger.runs.get(record.token, [])
    for token in (record.token, f"{record.token}/on", f"{record.token}/again", f"{record.token}/back"):
        for each in ledger.opened.get(token, []):
            where = {record.caller, *(place.partition("#")[0] for place in [each.place, *runs])}
            harmed = where.intersection(ledger.victims(record.began, each.closed or 0))
            if each.closed is not None and each.closed > record.ended + PROMPTLY and not harmed:
                ledger.complain(f"ended long before {each}", record)


def judge_closed(ledger: Ledger) -> None:
    """Everything that was opened is closed, but for what crashed."""
    for opened in ledger.opened.values():
        for each in opened:
            if each.closed is None and each.place not in ledger.crashed:
                ledger.complain("was never closed", each)
            elif not each.whole and each.place not in ledger.crashed:
                ledger.complain("was cut short as it closed", each)


# -- a mesh at rest


def judge_held(ledger: Ledger, hosts: Sequence[Host]) -> int:
    """With streams open and nothing under way, both sides of each have counted the same; how many there are."""
    links: dict[tuple[bytes, bytes, bool], list[Any]] = {}
    for host in hosts:
        hub: Any = host.node._hub
        for link in hub._links():
            if link.remote is not None:
                links.setdefault((hub.identity.id, link.remote.id, link.dialed), []).append(link)
    count = 0
    for (one, other, dialed), ours in links.items():
        theirs = links.get((other, one, not dialed), [])
        pending = {number: attempt for link in ours for number, attempt in link.pending.items()}
        running = {number: call for link in theirs for number, call in link.running.items()}
        for number in sorted(pending.keys() | running.keys()):
            if number not in pending or number not in running:
                sides = f"{pending.get(number)} {running.get(number)}"
                ledger.complain("a call that one side only knows of", f"number {number}: {sides}")
                continue
            call, served = pending[number].call, running[number]
            count += 1
            for outlet, inlet in ((call.outlet, served.inlet), (served.outlet, getattr(call, "inlet", None))):
                _compare(ledger, f"{call.target.path} to {pending[number].member.name}", outlet, inlet)
    return count


def _compare(ledger: Ledger, what: str, outlet: Any, inlet: Any) -> None:
    if (outlet is None) != (inlet is None):
        ledger.complain("a stream that one side only knows of", what)
    elif outlet is not None:
        window, taken = outlet._window, inlet._window
        sent = (window.under_way, window._bytes_under_way)
        waiting = (taken._waiting + taken._taken, inlet.size + taken._taken_bytes)
        if sent != waiting:
            ledger.complain(f"{sent} items and bytes are under way, and {waiting} at the reader", what)


def judge_rest(ledger: Ledger, hosts: Sequence[Host]) -> None:
    """Nothing is left of any call."""
    for host in hosts:
        for what in _left(host.node._hub):
            ledger.complain("left behind", f"{what} at {ledger.places[host.name]}")
    loop: Any = asyncio.get_running_loop()
    for task, process in list(loop._tasks.items()):
        if task.get_name().endswith(" arguments") and not task.done() and process.alive:
            ledger.complain("a task that goes on", f"{task.get_name()} of {process}")


def _left(hub: Any) -> list[str]:
    left = []
    for link in hub._links():
        for name in ("pending", "running", "full"):
            if getattr(link, name):
                left.append(f"{name} of {link.label}: {getattr(link, name)!r:.200}")
        if link._outbox._messages or link._outbox._pages:
            left.append(f"messages to {link.label}")
        if link.bulk is not None and (link.bulk.busy or link.bulk._departures._under_way):
            left.append(f"bulk messages to or from {link.label}")
        if link.member is not None and link.member.in_flight:
            left.append(f"{link.member.in_flight} in flight at {link.member.name}")
    left += [f"{member.in_flight} in flight at {member.name}" for member in hub.members if member.in_flight]
    client, server, deadlines = hub.client, hub.server, hub.deadlines
    if client._parked:
        left.append(f"{len(client._parked)} calls that wait for a node")
    for buckets in (deadlines._near, deadlines._far):
        for item in (item for bucket in buckets.values() for item in bucket):
            # Taken back in its last two seconds, one may stay for them; patience and hedging come due themselves.
            over = item.over if isinstance(item, Running) else not isinstance(item, Outgoing) or item.future.done()
            if not over or (buckets is deadlines._far and isinstance(item, (Running, Outgoing))):
                left.append(f"the deadline of {item!r}")
    if server is not None:
        if server.in_flight or server._waiting or server._queue:
            left.append(
                f"{server.in_flight} calls in flight, {len(server._waiting)} wait, {len(server._queue)} to begin"
            )
        if len(server._idle) != len(server.workers):
            left.append(f"{len(server.workers) - len(server._idle)} workers that are not idle")
    return left
