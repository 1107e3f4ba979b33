"""Streams of every kind: the service that serves them, and the callers, each with a plan of its own.

An item names its call, the run of the handler that it comes from (0: the caller's own source), and its place: whoever
takes it sees at once whether it is the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import sys
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import zmesh
from zmesh.testing import Host

from .ledger import Ledger, Opened, Profile, Record

ENDLESS: Final = 1_000_000


class Method(NamedTuple):
    """What a method of `Streams` does."""

    takes_stream: bool
    answers_stream: bool
    idempotent: bool = False
    calls_on: bool = False  # its handler reads another stream


METHODS: Final = {
    "tell": Method(False, True),
    "count": Method(False, True, idempotent=True),
    "gather": Method(True, False),
    "collect": Method(True, False, idempotent=True),
    "echo": Method(True, True),
    "mirror": Method(True, True, idempotent=True),
    "relay": Method(False, True, calls_on=True),
    "back": Method(False, True, calls_on=True),  # from the caller, over its own link
    "forward": Method(True, True, calls_on=True),
}


@dataclass(frozen=True)
class Making:
    """How items are made."""

    items: int
    pause: float = 0.0  # seconds before each
    size: int = 0  # bytes, at most
    fails: int = -1  # raises in place of this one
    hold: bool = False  # makes no more when the run is quiet, and ends when it is released
    closing: float = 0.0  # seconds that it takes to close


@dataclass(frozen=True)
class Reading:
    """How a handler reads its stream of arguments."""

    pause: float = 0.0  # seconds after each
    stops: int = -1  # leaves after so many
    fails: int = -1  # raises after so many


class SourceFailed(Exception):
    """What a source raises that is told to fail."""


def item_of(token: str, run: int, number: int, size: int) -> bytes:
    return f"{token} {run} {number} ".encode() + bytes(number * 37 % (size + 1))


class Reader:
    """Takes the items of one stream, and complains about one that is not the next."""

    def __init__(self, ledger: Ledger, token: str, place: str) -> None:
        self._ledger = ledger
        self._token = token
        self._place = place
        self.run: int | None = None  # which made them
        self.taken = 0

    def take(self, item: bytes) -> None:
        token, run, number, _ = item.split(b" ", 3)
        if self.run is None:
            self.run = int(run)
        if (token.decode(), int(run), int(number)) != (self._token, self.run, self.taken):
            due = f"item {self.taken} of run {self.run} of {self._token}"
            self._ledger.complain(f"{self._place} got {item[:40]!r}, not {due}", f"at {self._ledger.now():.3f}")
        self.taken += 1


async def make(
    ledger: Ledger, opened: Opened, making: Making, failure: Callable[[], Exception]
) -> AsyncIterator[bytes]:
    """Items, as they were planned. Whoever opened it closes it."""
    with closing(ledger, opened):
        try:
            for number in range(making.items):
                if making.pause:
                    await asyncio.sleep(making.pause)
                if making.hold and ledger.quiet:
                    await ledger.released.wait()
                    break
                if number == making.fails:
                    opened.raised = True
                    raise failure()
                opened.items += 1
                yield item_of(opened.token, opened.run, number, making.size)
            opened.finished = True
        finally:
            if making.closing:  # one that ends by itself may be cancelled meanwhile; one that is closed, not again
                opened.whole = not isinstance(sys.exception(), (asyncio.CancelledError, GeneratorExit))
                await asyncio.sleep(making.closing)
                opened.whole = True


@contextlib.contextmanager
def closing(ledger: Ledger, opened: Opened) -> Iterator[Opened]:
    """Write down when something is closed."""
    opened.opened = ledger.now()
    ledger.opened.setdefault(opened.token, []).append(opened)
    try:
        yield opened
    finally:
        opened.closed = ledger.now()


async def _is_over(reader: Reader, reading: Reading, line: bytes, opened: Opened) -> bool:
    """Take an argument as it was planned; whether it was the last."""
    reader.take(line)
    if reader.taken == reading.fails:
        opened.raised = True
        raise zmesh.DataLoss("torn")
    if reading.pause:
        await asyncio.sleep(reading.pause)
    return reader.taken == reading.stops


class Streams(zmesh.Service):
    """A method of every kind."""

    def __init__(self, ledger: Ledger, place: str) -> None:
        self._ledger = ledger
        self._place = place

    def _run(self, token: str, what: str) -> Opened:
        return Opened(token, self._ledger.ran(token, self._place), what, self._place)

    @zmesh.rpc
    def tell(self, token: str, making: Making) -> AsyncIterator[bytes]:
        return make(self._ledger, self._run(token, "tell"), making, lambda: zmesh.DataLoss("torn"))

    @zmesh.rpc(idempotent=True)
    def count(self, token: str, making: Making) -> AsyncIterator[bytes]:
        return make(self._ledger, self._run(token, "count"), making, lambda: zmesh.DataLoss("torn"))

    @zmesh.rpc
    async def gather(self, token: str, lines: AsyncIterator[bytes], reading: Reading) -> int:
        return await self._gather(token, lines, reading)

    @zmesh.rpc(idempotent=True)
    async def collect(self, token: str, lines: AsyncIterator[bytes], reading: Reading) -> int:
        return await self._gather(token, lines, reading)

    async def _gather(self, token: str, lines: AsyncIterator[bytes], reading: Reading) -> int:
        with closing(self._ledger, self._run(token, "gather")) as opened:
            reader = self._reader(opened)
            async for line in lines:
                over = await _is_over(reader, reading, line, opened)
                opened.items += 1
                if over:
                    break
            opened.finished = True
            return opened.items

    @zmesh.rpc
    async def echo(self, token: str, lines: AsyncIterator[bytes], reading: Reading) -> AsyncIterator[bytes]:
        async with contextlib.aclosing(self._echo(self._run(token, "echo"), lines, reading)) as items:
            async for item in items:
                yield item

    @zmesh.rpc(idempotent=True)
    async def mirror(self, token: str, lines: AsyncIterator[bytes], reading: Reading) -> AsyncIterator[bytes]:
        async with contextlib.aclosing(self._echo(self._run(token, "mirror"), lines, reading)) as items:
            async for item in items:
                yield item

    async def _echo(self, opened: Opened, lines: AsyncIterator[bytes], reading: Reading) -> AsyncGenerator[bytes, None]:
        with closing(self._ledger, opened):
            reader = self._reader(opened)
            async for line in lines:
                over = await _is_over(reader, reading, line, opened)
                opened.items += 1
                yield item_of(opened.token, opened.run, opened.items - 1, len(line))
                if over:
                    break
            opened.finished = True

    def _reader(self, opened: Opened) -> Reader:
        return Reader(self._ledger, opened.token.partition("/")[0], self._place)

    @zmesh.rpc
    def relay(self, token: str, making: Making) -> AsyncIterator[bytes]:
        stream = zmesh.context().client(Streams).count(token + "/again", making)
        return self._pass_on(self._run(token, "relay"), token + "/again", stream)

    @zmesh.rpc
    def back(self, token: str, making: Making) -> AsyncIterator[bytes]:
        stream = zmesh.context().peer.client(Streams).tell(token + "/back", making)
        return self._pass_on(self._run(token, "back"), token + "/back", stream)

    @zmesh.rpc
    async def forward(self, token: str, lines: AsyncIterator[bytes], reading: Reading) -> AsyncIterator[bytes]:
        stream = zmesh.context().client(Streams).echo(token + "/on", lines, reading)
        async with contextlib.aclosing(self._pass_on(self._run(token, "forward"), token + "/on", stream)) as items:
            async for item in items:
                yield item

    async def _pass_on(self, opened: Opened, token: str, stream: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """What another stream yields, and that one's errors as ABORTED, which nobody else raises."""
        with closing(self._ledger, opened):
            reader = Reader(self._ledger, token, self._place)
            try:
                async with stream:  # type: ignore[attr-defined]
                    async for item in stream:
                        reader.take(item)
                        opened.items += 1
                        yield item_of(opened.token, opened.run, opened.items - 1, len(item))
            except zmesh.RpcError as error:
                opened.raised = True
                raise zmesh.Aborted(f"{token} after {reader.taken} items: {error!r}") from None
            opened.finished = True


# -- the callers


@dataclass(frozen=True)
class Plan:
    """What a caller means to do."""

    method: str
    making: Making  # of the source, where the method takes a stream, else of the handler
    reading: Reading = Reading()
    pause: float = 0.0  # seconds after each answer
    leaves: int = -1  # after so many answers
    closes: bool = True  # and says so, or only forgets the stream
    timeout: float | None = None
    hedge_after: float | None = None
    gives_up: float | None = None  # cancelled after so many seconds
    by_name: bool = False

    @property
    def kind(self) -> Method:
        return METHODS[self.method]

    def __str__(self) -> str:
        said = [self.method]
        for each in (self.making, self.reading, self):
            for each_field in dataclasses.fields(each):
                name, value = each_field.name, getattr(each, each_field.name)
                if value != each_field.default and name not in ("method", "making", "reading"):
                    said.append(f"{name}={round(value, 3) if isinstance(value, float) else value}")
        return " ".join(said)


@dataclass
class StreamRecord(Record):
    """A call with a stream, and how it ended."""

    plan: Plan = field(kw_only=True)
    place: str = field(kw_only=True)
    reader: Reader = field(kw_only=True)
    source: Opened | None = None
    complete: bool = False  # read to the end
    left: bool = False
    source_failed: bool = False
    begun: bool = False  # as the caller's node knows
    waits: list[tuple[float, float]] = field(default_factory=list)  # for answers, that lasted past the deadline
    alive: str = ""  # what came behind the end

    @property
    def outcome(self) -> str:
        if self.complete or self.left:
            return "ok"
        return "source failed" if self.source_failed else super().outcome

    def __str__(self) -> str:
        end = f"{type(self.error).__name__}: {self.error}" if self.error is not None else self.answer or self.outcome
        return (
            f"{self.plan} ({self.token}) from {self.place} at {self.began:.3f}, "
            f"ended {self.ended if self.ended is None else round(self.ended, 3)} after {self.reader.taken}: {end}"
        )


def draw(chooser: random.Random, profile: Profile, *, serves: bool) -> Plan:
    """A plan; all of a seed's come from its generator."""
    method = chooser.choice([name for name in METHODS if serves or name != "back"])
    kind = METHODS[method]
    items = chooser.choice((0, 1, 2, 5, 15, 40))
    pause = chooser.choice((0.0, 0.0, 0.0, 0.004, 0.02, 0.2))
    making = Making(items, min(pause, 3.0 / (items + 1)), chooser.choice((0, 0, 100, 2000)))
    slow = chooser.choice((0.0, 0.0, 0.0, 0.005, 0.05))
    reading = Reading(min(chooser.choice((0.0, 0.0, 0.0, 0.01, 0.2)), 2.5 / (items + 1)))
    plan = Plan(method, making, reading, min(slow, 1.0 / (items + 1)))
    plan = dataclasses.replace(plan, by_name=chooser.random() < 0.15)
    if chooser.random() < 0.1:
        plan = dataclasses.replace(plan, making=dataclasses.replace(making, closing=0.02))
    if method == "count" and chooser.random() < 0.3:
        plan = dataclasses.replace(plan, hedge_after=chooser.choice((0.001, 0.1)))
    if profile == "chaos" and chooser.random() < 0.3:
        plan = dataclasses.replace(plan, timeout=chooser.choice((0.3, 1.0, 3.0)))
    some = chooser.randint(1, max(items, 1))
    if not items:
        return plan
    match chooser.choice(("all", "all", "all", "all", "leaves", "forgets", "fails", "source", "stops", "cancel")):
        case "leaves" | "forgets" as how if kind.answers_stream:
            return dataclasses.replace(plan, leaves=some, closes=how == "leaves")
        case "fails" if kind.takes_stream:
            return dataclasses.replace(plan, reading=dataclasses.replace(reading, fails=some))
        case "fails":
            return dataclasses.replace(plan, making=dataclasses.replace(plan.making, fails=some - 1))
        case "source" if kind.takes_stream:
            return dataclasses.replace(plan, making=dataclasses.replace(plan.making, fails=some - 1))
        case "stops" if kind.takes_stream:
            return dataclasses.replace(plan, reading=dataclasses.replace(reading, stops=some))
        case "cancel" if profile == "chaos":
            return dataclasses.replace(plan, gives_up=chooser.uniform(0.0, 0.5))
    return plan


def draw_held(chooser: random.Random) -> Plan:
    """A stream that lasts: it goes on until the run is quiet, stands still, and is read to the end when released."""
    making = Making(ENDLESS, chooser.choice((0.15, 0.4)), chooser.choice((0, 100, 2000)), hold=True)
    return Plan(chooser.choice(list(METHODS)[:6]), making, pause=chooser.choice((0.0, 0.1, 0.5)))


async def call(ledger: Ledger, host: Host, plan: Plan) -> StreamRecord:
    """Carry out a plan from a host, in whose process this runs, and write down how it ends."""
    token, place, kind = ledger.token(), ledger.places[host.name], plan.kind
    reader = Reader(ledger, token, f"the caller at {place}")
    record = StreamRecord(
        token, plan.method, kind.idempotent, host.name, ledger.now(), plan.timeout,
        plan=plan, place=place, reader=reader,
    )  # fmt: skip
    ledger.calls.append(record)
    arguments: dict[str, Any] = {"token": token}
    if kind.takes_stream:
        record.source = Opened(token, 0, "source", place)
        arguments["lines"] = make(ledger, record.source, plan.making, SourceFailed)
        arguments["reading"] = dataclasses.asdict(plan.reading) if plan.by_name else plan.reading
    else:
        arguments["making"] = dataclasses.asdict(plan.making) if plan.by_name else plan.making
    client: Any = host.node.client("Streams" if plan.by_name else Streams).options(
        timeout=plan.timeout, hedge_after=plan.hedge_after
    )
    made = getattr(client, plan.method)(**arguments)
    del arguments
    try:
        async with asyncio.timeout(plan.gives_up):
            if kind.answers_stream:
                stream, made = made, None
                await _read(ledger, record, stream)
                del stream
            else:
                record.answer = await made
    except TimeoutError:
        record.cancelled = True
    except SourceFailed:
        record.source_failed = True
    except zmesh.RpcError as error:
        record.error = error.with_traceback(None)
    record.begun = record.reader.taken > 0 or getattr(made, "begun", False)
    record.end(ledger.now())
    return record


async def _read(ledger: Ledger, record: StreamRecord, stream: AsyncIterable[bytes]) -> None:
    plan, reader, iterator = record.plan, record.reader, aiter(stream)
    while True:
        asked = ledger.now()
        try:
            item = await anext(iterator)
        except StopAsyncIteration:
            record.complete = True
            await _see_that_it_is_over(record, iterator)
            return
        except (zmesh.RpcError, SourceFailed):
            await _see_that_it_is_over(record, iterator)
            raise
        finally:
            if plan.timeout is not None and ledger.now() > record.began + plan.timeout:
                record.waits.append((asked, ledger.now()))
        reader.take(item)
        if reader.taken == plan.leaves:
            record.left = True
            if plan.closes:
                await iterator.aclose()  # type: ignore[attr-defined]
            return
        if plan.making.hold and ledger.quiet and plan.pause:
            await ledger.released.wait()
        elif plan.pause:
            await asyncio.sleep(plan.pause)


async def _see_that_it_is_over(record: StreamRecord, iterator: AsyncIterator[bytes]) -> None:
    try:
        record.alive = f"{await anext(iterator)!r:.40}"
    except StopAsyncIteration:
        pass
    except (zmesh.RpcError, SourceFailed) as error:  # said again, to who asks again
        if record.complete:
            record.alive = repr(error)
