"""Calls that answer one value: the service, and what must be true of each call."""

from __future__ import annotations

import asyncio
import random
from typing import Any, Final

import zmesh
import zmesh.testing
from zmesh.testing import Host

from .ledger import Ledger, Profile, Record

IDEMPOTENT: Final = ("many", "many_plain", "treat", "admit")
METHODS: Final = ("once", "many", "once_plain", "many_plain", "relay")
SOON: Final = 0.8  # seconds above its own time (twice: it runs again) that an idempotent call takes at most


class Work(zmesh.Service):
    """Methods that answer one value and write down when they run."""

    def __init__(self, ledger: Ledger, place: str) -> None:
        self._ledger = ledger
        self._place = place

    def _ran(self, token: str) -> str:
        self._ledger.ran(token, self._place)
        return f"{token} by {self._place}"

    @zmesh.rpc
    async def once(self, token: str, seconds: float) -> str:
        answer = self._ran(token)
        await asyncio.sleep(seconds)
        return answer

    @zmesh.rpc(idempotent=True)
    async def many(self, token: str, seconds: float) -> str:
        answer = self._ran(token)
        await asyncio.sleep(seconds)
        return answer

    @zmesh.rpc
    @zmesh.testing.takes(0.02)
    def once_plain(self, token: str, seconds: float) -> str:
        return self._ran(token)

    @zmesh.rpc(idempotent=True)
    @zmesh.testing.takes(0.02)
    def many_plain(self, token: str, seconds: float) -> str:
        return self._ran(token)

    @zmesh.rpc
    async def relay(self, token: str, seconds: float) -> str:
        answer = self._ran(token)
        await zmesh.context().client(Work).once(token + "/on", seconds)
        return answer


async def call_something(ledger: Ledger, host: Host, profile: Profile, chooser: random.Random) -> None:
    """A call like any other."""
    method = chooser.choice(METHODS)
    long = chooser.random() < 0.05
    seconds = chooser.uniform(0.1, 0.6) if long else chooser.uniform(0.0, 0.02)
    timeout = 5.0 if profile != "chaos" else chooser.choice((0.3, 1.0, 3.0, 5.0))
    gives_up = chooser.uniform(0.0, 0.1) if profile == "chaos" and chooser.random() < 0.05 else None
    await call(ledger, host, method, seconds, timeout, gives_up)


async def call(
    ledger: Ledger,
    host: Host,
    method: str,
    seconds: float,
    timeout: float,
    gives_up: float | None = None,
    service: type[Work] = Work,
    **options: Any,
) -> Record:
    """Call a method from a host, in whose process this runs, with these options, and write down how it ends."""
    token = ledger.token()
    takes = seconds if not method.endswith("plain") else 0.02
    record = Record(token, method, method in IDEMPOTENT, host.name, ledger.now(), timeout, takes)
    ledger.calls.append(record)
    client = host.node.client(service).options(timeout=timeout, **options)
    try:
        async with asyncio.timeout(gives_up):
            record.answer = await getattr(client, method)(token, seconds)
    except TimeoutError:
        record.cancelled = True
    except zmesh.RpcError as error:
        record.error = error
    record.end(ledger.now())
    return record


def judge(ledger: Ledger, record: Record, profile: Profile) -> None:
    """What must be true of a call that has ended."""
    assert record.ended is not None
    assert record.timeout is not None
    if record.ended > ledger.allowed(record.caller, record.began + record.timeout):
        ledger.complain("ended after its deadline", record)
    if record.answer is not None and not str(record.answer).startswith(f"{record.token} by "):
        ledger.complain("has another call's answer", record)
    if profile == "drains" and record.answer is None:
        ledger.complain("failed in a rolling restart", record)
    victims = ledger.victims(record.began, record.ended)
    if profile == "single" and record.caller not in victims:
        _judge_spared(ledger, record, victims)


def _judge_spared(ledger: Ledger, record: Record, victims: list[str]) -> None:
    """A call of somebody who was not hit, while somebody else was."""
    assert record.ended is not None
    if record.idempotent:
        if record.answer is None:
            ledger.complain("is idempotent and failed though one node only was lost", record)
        elif record.ended - record.began > 2 * record.takes + SOON:
            ledger.complain(f"is idempotent and took {record.ended - record.began:.3f} s", record)
    elif record.method != "relay" and record.error is not None:
        lost = isinstance(record.error, zmesh.MaybeExecuted) and record.error.node in victims
        if not lost:
            ledger.complain("failed, and not because its node was lost", record)


def judge_runs(ledger: Ledger, record: Record) -> None:
    """What must be true of a call and its runs, when all are over."""
    runs = ledger.runs.get(record.token, [])
    if not record.idempotent and len(runs) > 1:
        ledger.complain(f"is not idempotent and ran at {runs}", record)
    if record.answer is not None and str(record.answer).partition(" by ")[2] not in runs:
        ledger.complain("was answered and did not run", record)
    if runs and record.error is not None:
        if not record.error.may_have_run:
            ledger.complain(f"ran at {runs}, though its error says that it did not", record)
        elif isinstance(record.error, zmesh.Unavailable) and record.token not in ledger.raised:
            ledger.complain(f"ran at {runs}, though it is said to be UNAVAILABLE", record)
