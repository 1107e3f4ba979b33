"""The serving half of a node: admits calls, runs their handlers within their deadlines, answers."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import logging
import math
import sys
import traceback
from bisect import bisect_left
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Mapping, Sequence, Sized
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Final

from ._call import NO_METADATA
from ._core import messages as m
from ._core.admission import DEFAULT_PRIORITY, LOTS, PRIORITIES, Admission, rank_of
from ._core.messages import Message, ProtocolError
from ._core.timing import Average, Deadlines
from ._introspection import BUILT_IN
from ._link import Link
from ._platform import Executor, clock_of
from ._shares import FEW, LONG, MUCH_MORE, Share
from ._signature import ABSENT
from ._slots import Slots
from ._streams import Inlet, Outlet
from ._waiter import Stepper, Waiter
from .config import Config
from .context import Context, current
from .errors import Cancelled, Code, DeadlineExceeded, RpcError, error_class
from .interceptors import InterceptedCall, Interceptor, around
from .schema import MethodSchema, ServiceSchema

if TYPE_CHECKING:
    from ._pool import ProcessPool
    from ._security import PermissionFile
    from ._watch import Watch
    from .node import Node
    from .service import Method

__all__ = ["Handler", "Running", "Server"]

_log = logging.getLogger("zmesh.server")

_LATENCY_MEMORY: Final = 10.0  # seconds
_SLICE: Final = 0.002  # seconds of handlers that do not wait, before the loop has another turn, and others are read
_IDLE_WORKERS: Final = 64
_TOGETHER: Final = 500  # calls of one method whose times are taken in at once, where no report does so before
_BUCKETS: Final = 40  # up to 2**39 us, six days
_EVERYTHING: Final = Admission()  # of methods that are never refused
_EVERYTHING.free = sys.maxsize
_LATE: Final = 0.125  # seconds in queues, here or on the way, that betray a stalled loop: half a heartbeat


# What calls of a method wait for: who may join, the queue, and that of peers with few calls.
_Lane = tuple[Admission, Sized, Sized]


class Handler:
    """A method, bound to the instance that serves it.

    took: seconds of each call that ended lately and is not in the sums yet: they are cheaper to take in together.
    """

    __slots__ = (
        "admission", "calls", "direct", "dump_flat", "errors", "express", "function", "histogram", "invoke",
        "queue", "schema", "seconds", "slots", "took",
    )  # fmt: skip

    def __init__(
        self,
        schema: MethodSchema,
        function: Callable[..., Any],
        lane: _Lane,
        slots: Slots,
        *,
        direct: bool,
    ) -> None:
        """lane: what its calls wait for. slots: of plain handlers, in threads or in processes. direct: nothing stands
        between a call and its coroutine."""
        admission, queue, express = lane
        self.schema = schema
        self.slots = slots
        self.admission = admission
        self.queue = queue
        self.express = express
        self.function = function
        self.direct = direct
        self.invoke, self.dump_flat = schema.invoke, schema.dump_flat
        self.calls = 0
        self.seconds = 0.0
        self.histogram = [0] * _BUCKETS  # of calls that took below 2**index microseconds, and at least half of that
        self.errors: dict[str, int] = {}  # by code
        self.took: list[float] = []

    def sum_up(self) -> tuple[int, float]:
        """Take in `took`: how many they were, and the seconds of all."""
        took, histogram = self.took, self.histogram
        took.sort()
        calls, seconds, place = len(took), sum(took), 0
        self.calls += calls
        self.seconds += seconds
        bucket = int(took[0] * 1e6).bit_length() if took else 0
        while place < calls:
            end = bisect_left(took, (1 << bucket) / 1e6, place) if bucket < _BUCKETS - 1 else calls
            histogram[min(bucket, _BUCKETS - 1)] += end - place
            place, bucket = end, bucket + 1
        took.clear()
        return calls, seconds

    def stats(self) -> dict[str, Any]:
        return {
            "calls": self.calls,
            "errors": dict(self.errors),
            "mean_us": int(self.seconds / self.calls * 1e6) if self.calls else 0,
            "p50_us": self._percentile(0.5),
            "p99_us": self._percentile(0.99),
        }

    def _percentile(self, share: float) -> int:
        left = self.calls * share
        for bucket, calls in enumerate(self.histogram):
            left -= calls
            if left <= 0:
                return 1 << bucket
        return 0


class Running:
    """A call that this node serves. As an item of `Deadlines` it is called when its time is over.

    What most calls never change is only on the class: see `_client.Outgoing`.
    """

    bucket: dict[Callable[[], None], float] | None = None  # of the deadlines, once the handler waits
    reply_metadata: dict[str, str | bytes] | None = None
    waited = False  # its handler waits for something, or did
    begun = False  # its handler is being called, or was
    started = False  # the handler began
    answered = False  # nothing more is sent: answered, cancelled, or its link is gone
    over = False  # the handler ended
    task: asyncio.Task[None] | None = None
    until_begun = False  # its deadline holds only until the stream has begun
    inlet: Inlet | None = None  # of a stream of arguments
    outlet: Outlet | None = None  # of a stream of answers
    more: Sequence[object] = ()  # what CALL says behind its metadata

    def __init__(
        self,
        server: Server,
        link: Link,
        method: Handler,
        number: int,
        arguments: object,
        arrived: float,
        deadline: float,
        metadata: Mapping[str, str | bytes],
    ) -> None:
        self.server = server
        self.link = link
        self.method = method
        self.number = number
        self.arguments = arguments
        self.arrived = arrived
        self.deadline = deadline
        self.metadata = metadata
        self.answered = self.over = self.waited = False
        self.reply_metadata = None

    @property
    def rank(self) -> int:
        """How important it is: see `_core.admission`."""
        return _rank_of(self.number, self.more)

    @property
    def attempt(self) -> int:
        """Which try at its call it is, from 1."""
        more = self.more
        return more[2] if len(more) > 2 and type(more[2]) is int else 1

    def __call__(self) -> None:
        self.server.expired(self)

    # -- what its link tells of its streams

    def item_received(self, sequence: int, value: object) -> None:
        if self.inlet is None:
            raise ProtocolError(f"an item for {self.method.schema.path}, which takes no stream")
        if self.link.weight and (why := self.server.item_weighs(self.link)) is not None:
            self.server.refuse(self, Code.RESOURCE_EXHAUSTED, why)
        else:
            self.inlet.put(sequence, value)

    def items_ended(self, items: int) -> None:
        if self.inlet is None:
            raise ProtocolError(f"the end of a stream for {self.method.schema.path}, which takes none")
        self.inlet.end(items)

    def credited(self, items: int) -> None:
        if self.outlet is None:
            raise ProtocolError(f"credit for {self.method.schema.path}, which answers no stream")
        self.outlet.credited(items)

    def broken(self, why: str) -> None:
        """What came cannot go on."""
        self.server.refuse(self, Code.INVALID_ARGUMENT, why)

    def unsendable(self, why: str) -> None:
        """An item of its answer cannot leave."""
        self.server.refuse(self, Code.INTERNAL, f"{self.method.schema.path}: {why}")

    def stream_begun(self) -> None:
        """From here on it lasts as long as it takes, unless the caller said otherwise."""
        if self.until_begun:
            self.until_begun = False
            self.deadline = math.inf
            if self.bucket is not None:
                self.bucket.pop(self, None)


class _Arguments(AsyncIterator[Any]):
    """The stream of arguments, as its handler reads it."""

    __slots__ = ("_inlet", "_schema")

    def __init__(self, inlet: Inlet, schema: MethodSchema) -> None:
        self._inlet = inlet
        self._schema = schema

    async def __anext__(self) -> Any:
        inlet = self._inlet
        while not len(inlet):
            if inlet.ended:
                raise StopAsyncIteration
            if inlet.closed:
                raise Cancelled(f"{self._schema.path} is over, and with it its stream of arguments")
            await inlet.wait()
        return self._schema.load_item(inlet.take())


def _rank_of(number: int, more: Sequence[object]) -> int:
    """Of a CALL. One that does not say is of the middle, its lot drawn by its number."""
    rank = more[1] if len(more) > 1 else None
    if type(rank) is int and 0 <= rank < PRIORITIES * LOTS:
        return rank
    return rank_of(DEFAULT_PRIORITY, number)


def _text_of(error: BaseException) -> str:
    name = type(error).__name__
    try:
        return f"{name}: {error}" if str(error) else name
    except Exception:  # its own __str__ fails
        return name


class _Rest:
    """What is left of a coroutine after its first step, in its own context."""

    __slots__ = ("_awaited", "_context", "_coroutine")

    def __init__(self, context: contextvars.Context, coroutine: Coroutine[Any, Any, Any], awaited: Any) -> None:
        self._context = context
        self._coroutine = coroutine
        self._awaited = awaited

    def __await__(self) -> Generator[Any, Any, Any]:
        run, coroutine, awaited = self._context.run, self._coroutine, self._awaited
        step: Callable[[Any], Any]
        while True:
            try:
                value = yield awaited
            except BaseException as error:
                step, value = coroutine.throw, error
            else:
                step = coroutine.send
            try:
                awaited = run(step, value)
            except StopIteration as finished:
                return finished.value
            finally:
                value = None  # an error refers to this frame, which must not refer to it: all in it would live on


class Server:
    """See the module."""

    def __init__(
        self,
        *,
        config: Config,
        services: Sequence[tuple[ServiceSchema, object]],
        threads: int,
        executor: Executor,
        processes: int,
        pool: ProcessPool | None,
        deadlines: Deadlines[Callable[[], None]],
        catch_up: Callable[[float], None],
        node: Node,
        name: str,
        stepper: Stepper,
        interceptors: Sequence[Interceptor] = (),
        watch: Watch | None = None,
    ) -> None:
        """catch_up: deliver what has arrived; told for how many seconds the loop stood still, as far as is known.
        pool: None where handlers for processes run in threads.
        watch: of a secured node."""
        self.loop = asyncio.get_running_loop()
        self.time = clock_of(self.loop)
        self.node = node
        self._config = config
        self._watch = watch
        self._permissions = None if watch is None else watch.permissions
        self._context = contextvars.copy_context()  # what services set when they were entered, handlers see
        self._name = name
        self._stepper = stepper
        self._interceptors = interceptors
        self._executor = executor
        self._pool = pool
        self._deadlines = deadlines
        self._catch_up = catch_up
        self._count = 0  # calls that were received and are not over
        self._waiting: dict[Running, None] = {}  # those of them whose handler waits for something
        self._abandoned = 0  # plain handlers whose caller has its error already, but which still occupy a thread
        self._latency = Average(_LATENCY_MEMORY)
        self._queue_wait = Average(_LATENCY_MEMORY)
        self._queue: deque[Running] = deque()  # admitted, not begun
        self._express: deque[Running] = deque()  # the same, of peers with few calls, where the queue is long
        self._express_next = True
        self._crowd = 0  # calls that one peer had here, at the most, since nobody waited for the last time
        self._peer_calls = config.max_peer_calls
        target = config.queue_target
        self._lane = Admission(None, target)  # to the loop
        self._slots = Slots(threads, Admission(threads, target), self.time)
        self._processes = Slots(processes, Admission(processes, target), self.time)
        self._lanes: list[Admission] = []  # that calls of our services go by
        self.refused = 0  # calls, for load
        self.repeated = 0  # calls that were not the first attempt
        self._idle: list[Waiter] = []  # workers that wait for a call
        self.workers: dict[asyncio.Task[None], None] = {}
        self._waking = False
        self._caught_up = -math.inf  # when all that had arrived was last read
        self._held_up = False  # calls came late: what came behind them is read before they begin
        self._ended = 0.0  # when a handler last ended
        self._turned = 0.0  # when the loop last had a turn while calls were begun
        self._drained: asyncio.Event = asyncio.Event()
        self._cutting: asyncio.TimerHandle
        self.draining = False
        self._names = [schema.name for schema, _ in services]
        self._handlers: dict[object, Handler] = {}
        for schema, instance in services:
            for method in schema.methods.values():
                handle: Method[..., Any] = getattr(type(instance), method.name)
                slots = self._slots if handle.pool is None else self._processes
                direct = method.is_async and method.kind == "unary" and not interceptors
                lane, bound = self._lane_of(method, slots), handle.handler.__get__(instance)
                self._handlers[method.path] = Handler(method, bound, lane, slots, direct=direct)

    def _lane_of(self, method: MethodSchema, slots: Slots) -> _Lane:
        """What calls of a method wait for, and the two queues there."""
        threaded = not method.is_async and not method.answers_stream
        lane: _Lane = (self._lane, self._queue, self._express)
        if threaded:
            lane = (slots.admission, slots.waiting, slots.express)
        if method.service == BUILT_IN or not self._config.admission:
            return _EVERYTHING, (), ()
        if lane[0] not in self._lanes:
            self._lanes.append(lane[0])
        return lane

    @property
    def in_flight(self) -> int:
        """Calls that occupy this node."""
        return self._count + self._abandoned

    def received(self, link: Link, message: Message, waited: int, now: float) -> None:
        """A CALL that stood `waited` ms in queues on its way."""
        handler = self._handlers.get(message[2])
        remaining: int = message[3] - waited  # type: ignore[operator]
        if (
            handler is None
            or remaining <= 0
            or self._count + self._abandoned >= self._config.max_calls
            or len(link.running) >= self._peer_calls
            or message[1] in link.running
            or (self.draining and link.dialed)  # a call back; who dialed us was told by DRAIN
        ):
            self._refuse(link, message, handler, waited)
            return
        file = self._permissions
        if file is not None and (link.key, message[2]) not in file.allowed and self._forbidden(link, message, file):
            return
        if len(handler.queue) >= handler.admission.free and self._turned_away(link, message, handler, remaining, now):
            return
        if waited > _LATE * 1000:
            self._held_up = True
        number, metadata = message[1], message[5] or NO_METADATA
        running = Running(self, link, handler, number, message[4], now, now + remaining / 1000, metadata)  # type: ignore[arg-type]
        if len(message) > 6:
            running.more = message[6:]
            if len(message) > 8:
                self.repeated += 1
        if link.weight or handler.schema.kind != "unary":
            if (objection := self._shared(running)) is not None:
                self._exhausted(link, message, objection)
                return
            if handler.schema.kind != "unary":
                self._open_streams(running)
        link.running[running.number] = running
        self._count += 1
        # It starts behind the whole envelope: a cancel that came with it is seen first.
        if len(self._queue) >= LONG > len(self._express) and self._favoured(link):
            self._express.append(running)
        else:
            self._queue.append(running)
        if not self._waking:
            self._wake()

    def row_received(self, link: Link, row: Message, waited: int, now: float) -> None:
        """CALLS came: as `received` for each of them, where none asks for a closer look."""
        number: int
        every: list[object]
        _, number, path, remaining, every = row[:5]  # type: ignore[assignment]
        handler = self._handlers.get(path)
        left: int = remaining - waited  # type: ignore[operator]
        calls, numbers = len(every), range(number, number + len(every))
        here, file = link.running, self._permissions
        if (
            handler is None
            or (file is not None and (link.key, path) not in file.allowed)
            or left <= 0
            or self._count + self._abandoned + calls > self._config.max_calls
            or waited > _LATE * 1000
            or self.draining
            or handler.schema.kind != "unary"
            or len(handler.queue) + calls > handler.admission.free
            or len(here) + calls > self._peer_calls
            or numbers[-1] > m.LIMIT
            or not here.keys().isdisjoint(numbers)
            or (len(self._queue) >= LONG and self._favoured(link))
            or link.weight
        ):
            for message in m.single([row]):
                self.received(link, message, waited, now)
            return
        deadline = now + left / 1000
        metadata: Any = (row[5] if len(row) > 5 else None) or NO_METADATA
        calling = [
            Running(self, link, handler, number, arguments, now, deadline, metadata)
            for number, arguments in zip(numbers, every, strict=True)
        ]
        here.update(zip(numbers, calling, strict=True))
        self._queue.extend(calling)
        self._count += calls
        if not self._waking:
            self._wake()

    def _refuse(self, link: Link, message: Message, handler: Handler | None, waited: int) -> None:
        """Say why a CALL does not run."""
        number: int = message[1]  # type: ignore[assignment]
        path, remaining = message[2], message[3]
        if handler is None:
            code, text = Code.UNIMPLEMENTED, self._unknown(path)
        elif remaining <= waited:  # type: ignore[operator]
            code, text = Code.DEADLINE_EXCEEDED, f"{path} expired before it ran: it stood {waited} ms in queues"
        elif self.in_flight >= self._config.max_calls:
            text = f"{self._name!r} runs {self.in_flight} calls, its limit (Config.max_calls)"
            code = Code.RESOURCE_EXHAUSTED
        elif len(link.running) >= self._peer_calls:
            self._crowd = max(self._crowd, len(link.running))
            self._exhausted(link, message, f"{len(link.running)} calls of one peer, its limit (Config.max_peer_calls)")
            return
        elif number in link.running:
            code, text = Code.INVALID_ARGUMENT, f"call {number} is running already"
        else:
            code, text = Code.UNAVAILABLE, f"{self._name!r} is leaving"
        link.fail(number, code, text, ran=False)

    def _exhausted(self, link: Link, message: Message, why: str) -> None:
        """A peer has its share: refuse a CALL, and the peer where it does not stop."""
        number: int = message[1]  # type: ignore[assignment]
        self.refused += 1
        limit = why.rpartition("Config.")[2].rstrip(")")
        link.limit_broken(limit, "calls were refused")
        link.fail(number, Code.RESOURCE_EXHAUSTED, f"{self._name!r} does not take {message[2]}: {why}", ran=False)
        flood = self._share_of(link).refused(message, self.time())
        if flood is not None:
            link.cut_off("max_peer_refusals", flood)

    def _share_of(self, link: Link) -> Share:
        share = link.share
        if share is None:
            share = link.share = Share(link, self._config)
        return share

    def _shared(self, running: Running) -> str | None:
        """Count a call with much in it, or with a stream, to its peer; or why it is not taken."""
        share, stream = self._share_of(running.link), running.method.schema.kind != "unary"
        objection = share.objection(stream)
        if objection is None:
            share.took(running, stream)
        return objection

    def _forbidden(self, link: Link, message: Message, file: PermissionFile) -> bool:
        """Whether a CALL is refused because its caller has no permission."""
        path: str = message[2]  # type: ignore[assignment]
        decision = file.decide(link.key, path)
        if decision.allowed:
            return False
        assert self._watch is not None
        self._watch.call_refused(link, path, decision.why)
        who = "?" if link.remote is None else link.remote.name
        text = f"{self._name!r} does not let {who!r} call {path}: {file.told(decision)}"
        link.fail(message[1], Code.PERMISSION_DENIED, text, ran=False)  # type: ignore[arg-type]
        return True

    def _turned_away(self, link: Link, message: Message, handler: Handler, remaining: int, now: float) -> bool:
        """Whether a CALL is refused because there is too much to do."""
        if self._favoured(link) and len(handler.express) < FEW:
            return False  # it does not stand behind those who have much
        refusal = handler.admission.admit(len(handler.queue), remaining / 1000, _rank_of(message[1], message[6:]), now)  # type: ignore[arg-type]
        if refusal is None:
            return False
        self.refused += 1
        text = f"{self._name!r} does not take {message[2]} now: {refusal.reason}"
        fields: dict[str, object] = {"retry-after": min(int(refusal.retry_after * 1000) + 1, m.LIMIT)}
        if refusal.level:
            fields["level"] = refusal.level
        link.fail(message[1], Code.RESOURCE_EXHAUSTED, text, ran=False, fields=fields)  # type: ignore[arg-type]
        return True

    def _open_streams(self, running: Running) -> None:
        """Make room for the items of a call: they may come right behind it."""
        link, number, schema = running.link, running.number, running.method.schema
        running.until_begun = len(running.more) > 0 and running.more[0] is True
        if schema.stream_parameter is not None:
            items, size = self._config.stream_items, self._config.stream_bytes
            running.inlet = Inlet(self.loop, items, size, lambda items: link.credit(number, False, items))
        if schema.answers_stream:
            running.outlet = Outlet(self.loop, answer=True)
            running.outlet.attach(link, number)

    def item_weighs(self, link: Link) -> str | None:
        """A large item has come: why its call cannot go on, or None."""
        why = self._share_of(link).item()
        if why is not None:
            link.limit_broken("max_peer_memory", "an item of a stream was refused")
        return why

    def refuse(self, running: Running, code: int, why: str) -> None:
        """End a call of which what came, or what is to be sent, cannot go on."""
        if not running.answered:
            self._fail(running, code, why, None)
            self._stop(running)

    def cancelled(self, link: Link, number: int) -> None:
        """The caller gave up a call."""
        running = link.running.get(number)
        if running is not None:
            self._stop(running)

    def expired(self, running: Running) -> None:
        """A call's deadline has passed; unless its stream has begun in the last moment."""
        if not running.answered and running.deadline <= self.time():
            text = f"{running.method.schema.path} did not finish by its deadline"
            running.link.fail(running.number, Code.DEADLINE_EXCEEDED, text, ran=running.started)
            self._stop(running)

    def link_closed(self, link: Link) -> None:
        """A caller is gone: nobody waits for what runs for it."""
        for running in list(link.running.values()):
            self._stop(running)

    def report(self, link: Link) -> Message:
        """Our load, for one peer."""
        for handler in self._handlers.values():
            if handler.took and handler.schema.kind == "unary":  # how long a stream lasts says nothing of the load
                self._sum_up(handler)
        latency, wait = self._latency.value, self._queue_wait.value
        if self.time() - self._latency.when > _LATENCY_MEMORY:  # how long calls took then says nothing of now
            latency = None
        return [
            self.in_flight,
            len(link.running),
            None if latency is None else min(int(latency * 1e6), m.LIMIT),
            0 if wait is None else min(int(wait * 1e6), m.LIMIT),
            self._level_for(link),
            m.DRAINING if self.draining else m.SERVING,
        ]

    def _level_for(self, link: Link) -> int:
        """The rank below which every call of a peer is refused: none where it has few, and others have too many."""
        level = self._level()
        if not any(lane.level or lane.standing for lane in self._lanes):
            self._crowd = 0
        favoured = self._favoured(link) and max(len(self._express), len(self._slots.express)) < FEW
        return 0 if favoured else level

    def _favoured(self, link: Link) -> bool:
        """Whether a peer has few calls here while another one has very many: they do not stand behind those."""
        here = len(link.running)
        self._crowd = max(self._crowd, here)
        return here < FEW and here * MUCH_MORE < self._crowd

    def _sum_up(self, handler: Handler) -> None:
        """Take in how long calls of a method took."""
        calls, seconds = handler.sum_up()
        if handler.schema.kind == "unary":
            self._latency.add(seconds / calls, self.time(), calls)

    def _level(self) -> int:
        """The rank below which every call is refused, whatever its method."""
        least = 0
        for admission in self._lanes:
            if not admission.level:
                return 0
            admission.relax(self.time())
            least = min(admission.level, least or admission.level)
        return least

    def stats(self) -> dict[str, Any]:
        """What happened since the start, for introspection."""
        for handler in self._handlers.values():
            if handler.took:
                self._sum_up(handler)
        called = [handler for handler in self._handlers.values() if handler.calls or handler.errors]
        return {
            "in_flight": self.in_flight,
            "refused": self.refused,
            "repeated": self.repeated,
            "methods": {handler.schema.path: handler.stats() for handler in called},
        }

    async def drained(self, grace: float) -> None:
        """Wait until nothing runs, at most `grace` seconds; then cancel what does (a plain `def` cannot be).

        Streams of answers that may have no end are cut off before, so that their readers go elsewhere.
        """
        self._cutting = self.loop.call_later(min(grace, self._config.stream_grace), self._cut_off)
        try:
            async with asyncio.timeout(grace):
                while self._count or self._abandoned:
                    self._drained.clear()
                    await self._drained.wait()
        except TimeoutError:
            still = [running.method.schema.path for running in self._waiting]
            _log.warning("%r leaves without waiting for %s", self._name, ", ".join(still[:10]) or "abandoned threads")
        finally:
            self._cutting.cancel()

    def _cut_off(self) -> None:
        """End the streams of answers that have begun and last as long as they take; later on, those that begin late."""
        self._cutting = self.loop.call_later(self._config.stream_grace, self._cut_off)
        for running in list(self._waiting):
            outlet = running.outlet
            if outlet is not None and outlet.sent and running.deadline == math.inf and not running.answered:
                text = f"{running.method.schema.path} was cut off after {outlet.sent} items: {self._name!r} is leaving"
                self._fail(running, Code.UNAVAILABLE, text, {"details": {"delivered": outlet.sent}})
                self._stop(running)

    def stop(self) -> None:
        """Cancel what runs; take no more. Who was cancelled before goes on closing."""
        busy = {running.task for running in self._waiting}
        for running in [*self._queue, *self._express, *self._waiting]:
            if not running.answered:
                self._stop(running)
        for worker in list(self.workers):
            if worker not in busy:
                worker.cancel()
        self._executor.close()
        if self._pool is not None:
            self._pool.close()

    # -- workers

    def _wake(self) -> None:
        """Let one more worker go through the queue: an idle one behind the envelope that is read, else a new one."""
        self._waking = True
        while self._idle:
            waiting = self._idle.pop()
            if not waiting.done():
                waiting.set_result(None)
                return
        task = self.loop.create_task(self._work(), context=self._context.copy())
        self.workers[task] = None
        task.add_done_callback(self.workers.pop)

    async def _work(self) -> None:
        """Run calls, one after the other: those that finish without waiting cost no task and no turn of the loop.

        While one waits, another worker goes on with the queue. A worker whose task was cancelled has done its last
        call, as nothing of a cancellation may reach the next.
        """
        queue, express, lane = self._queue, self._express, self._lane
        task = asyncio.current_task()
        assert task is not None
        self._turned = now = self.time()
        slice_ends = now + _SLICE
        try:
            while True:
                self._waking = False
                while queue or express:
                    running = self._next() if express else self._newest() if lane.newest_first else queue.popleft()
                    lane.begun += 1
                    if running.over:  # cancelled before it began
                        continue
                    rest = self._begin(running, now)
                    if rest is None:
                        now = self._ended
                    else:
                        running.task = task
                        await rest
                        now = self.time()
                    if task.cancelling():
                        return
                    if now > slice_ends:  # heartbeats and timers have their turn
                        await asyncio.sleep(0)
                        self._turned = now = self.time()
                        slice_ends = now + _SLICE
                if lane.standing:
                    lane.emptied(self.time())
                if len(self._idle) >= _IDLE_WORKERS:
                    return
                waiting = Waiter(self._stepper)
                self._idle.append(waiting)
                await waiting
                self._turned = now = self.time()
                slice_ends = now + _SLICE
        finally:
            if (queue or express) and not self._waking:  # whatever ended this worker, the calls behind go on
                self._wake()

    def _next(self) -> Running:
        """The next call, while some are of peers with few: every other one is."""
        self._express_next = not self._express_next or not self._queue
        if self._express_next:
            return self._express.popleft()
        return self._newest() if self._lane.newest_first else self._queue.popleft()

    def _newest(self) -> Running:
        """The next call, where the newest goes first: those that came too early for it are told so."""
        queue, now = self._queue, self.time()
        while len(queue) > 1 and (queue[0].over or queue[0].deadline <= now):
            oldest = queue.popleft()
            if not oldest.over:
                self._begin(oldest, now)
        return queue.pop()

    # -- one call

    def _begin(self, running: Running, now: float) -> Coroutine[Any, Any, None] | None:
        """Run a call up to where its handler first waits, and return what is left of it; None where it is over, and
        `_ended` is the time."""
        running.begun = True
        method = running.method
        if self._held_up or now - running.arrived > _LATE:
            now = self._read_on(running, now)
        try:
            if running.answered:
                raise asyncio.CancelledError
            if now >= running.deadline:
                self._lane.lost()
                raise DeadlineExceeded(f"{method.schema.path} expired before it ran: {self._name!r} was held up")
            current.set(running)  # a plain `def` that returns an iterator runs right here
            coroutine: Coroutine[Any, Any, Any]
            if method.direct:
                invoke = method.invoke
                coroutine = invoke(method.function, running.arguments)
                running.started = True
            else:
                coroutine = self._coroutine(running)
            # Workers serve many calls: each runs in a context of its own, so that no variable leaks to the next. The
            # worker's has what services set when they were entered, and whose call this is.
            context = copy_context()
            try:
                awaited = context.run(coroutine.send, None)
            except StopIteration as finished:
                self._answer(running, finished.value)
            else:
                running.arguments = None
                return self._finish(running, _Rest(context, coroutine, awaited), now)
        except BaseException as error:
            self._failed(running, error)
        return None

    def _read_on(self, running: Running, now: float) -> float:
        """The loop stood still before a call was read, or since: a cancel may lie unread behind it. Where the loop goes
        round, the call stood behind others: their flood has no end. Returns the time."""
        self._held_up = False
        if now - self._caught_up > _LATE:  # at each of many late calls, reading would keep the next from beginning
            self._catch_up(now - max(self._turned, running.arrived))
            self._caught_up = now = self.time()
            self._held_up = False
        return now

    def _coroutine(self, running: Running) -> Coroutine[Any, Any, Any]:
        """What runs a call of whatever method. Raises InvalidArgument where its arguments do not fit."""
        schema = running.method.schema
        stream = None if running.inlet is None else _Arguments(running.inlet, schema)
        args, kwargs = schema.load_arguments(running.arguments, stream)
        if not schema.is_async and not schema.answers_stream:
            if self._interceptors:
                return self._intercepted(running, args, kwargs)
            return self._elsewhere(running, args, kwargs)
        coroutine: Coroutine[Any, Any, Any]
        if self._interceptors:
            coroutine = self._intercepted(running, args, kwargs)
        else:
            running.started = True
            coroutine = running.method.function(*args, **kwargs)
        if stream is not None:  # tells the caller that it has begun
            running.stream_begun()
            running.link.credit(running.number, False, 0)
        return self._produce(running, coroutine) if schema.answers_stream else coroutine

    async def _produce(self, running: Running, items: Any) -> int:
        """Send what an asynchronous iterator yields, as far as the caller gives credit; how many items there were."""
        outlet, dump = running.outlet, running.method.schema.dump_result
        assert outlet is not None
        iterator: Any = aiter(await items if inspect.iscoroutine(items) else items)
        try:
            while True:
                if not outlet.room:
                    await outlet.wait_for_room()
                try:
                    item = await anext(iterator)
                except StopAsyncIteration:
                    return outlet.sent & m.LIMIT
                if running.answered:  # and it goes on although it was cancelled
                    raise asyncio.CancelledError
                outlet.send(dump(item))
                if running.until_begun:
                    running.stream_begun()
        except GeneratorExit:  # disposed of: nobody drives this any more, and nothing can be awaited
            iterator = None
            raise
        finally:
            close = getattr(iterator, "aclose", None)
            if close is not None:
                await close()

    async def _intercepted(self, running: Running, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Call a handler with the interceptors around it: its result, or the iterator of its stream."""
        schema = running.method.schema
        arguments = dict(zip(schema.parameters, args, strict=False)) | kwargs
        left = None if running.deadline == math.inf else max(0.0, running.deadline - self.time())
        call = InterceptedCall(
            "server",
            schema.service,
            schema.name,
            schema.kind,
            arguments,
            dict(running.metadata),
            left,
            Context(running).peer,
        )

        async def last(call: InterceptedCall) -> Any:
            if not schema.is_async and not schema.answers_stream:
                return await self._elsewhere(running, [], call.arguments)
            running.started = True
            answer = running.method.function(**call.arguments)
            return answer if schema.answers_stream else await answer

        return await around(self._interceptors, last)(call)

    async def _finish(self, running: Running, rest: _Rest, now: float) -> None:
        """Wait for a handler that waits for something."""
        self._waiting[running] = None
        running.waited = True
        if running.deadline != math.inf:
            running.bucket = self._deadlines.add(running.deadline, running, now)
        if (self._queue or self._express) and not self._waking:  # this worker waits: another goes on
            self._wake()
        try:
            self._answer(running, await rest)
        except BaseException as error:
            if isinstance(error, GeneratorExit) and asyncio.current_task(self.loop) is not running.task:
                raise  # disposed of, perhaps with its loop: nobody drives this any more
            self._failed(running, error)

    def _answer(self, running: Running, value: object) -> None:
        """A handler has returned. Raises Internal where the value does not fit its annotation."""
        method, link = running.method, running.link
        if not running.answered:
            dump, reply = method.dump_flat, link.reply_flat
            result = dump(value) if method.direct or running.outlet is None else value
            if result is not ABSENT and running.reply_metadata is None:
                reply(running.number, result)
            else:
                schema = method.schema
                if result is ABSENT:
                    result = schema.dump_result(value)
                link.reply(running.number, result, running.reply_metadata, schema.buffers_in_result)
            if method.direct and not self.draining and not running.waited:  # as `_answered` and `_over` have it
                running.answered = running.over = True
                running.arguments = None
                link.running.pop(running.number, None)
                self._count -= 1
                time = self.time
                self._ended = now = time()
                method.took.append(now - running.arrived)
                return
            self._answered(running)
        self._over(running)

    def _failed(self, running: Running, error: BaseException) -> None:
        """A handler has raised, or could not be called, or its answer could not be sent: tell the caller."""
        schema = running.method.schema
        try:
            if isinstance(error, asyncio.CancelledError):
                self._fail(running, Code.CANCELLED, f"{schema.path} was cancelled at {self._name!r}", None)
            elif isinstance(error, RpcError):
                fields: dict[str, object] | None = {"details": dict(error.details)} if error.details else None
                self._fail(running, error.code, error.message, fields)
            elif isinstance(error, Exception):
                self._fail(running, Code.INTERNAL, _text_of(error), self._remote(error, schema))
            else:
                self._fail(running, Code.INTERNAL, _text_of(error), None)
                if isinstance(error, (SystemExit, KeyboardInterrupt, GeneratorExit)):
                    raise error  # the caller was told, and the process goes its way
        finally:
            self._over(running)

    async def _elsewhere(self, running: Running, args: list[Any], kwargs: dict[str, Any]) -> object:
        """Run a plain `def` in a thread or a process. Cancelled, it leaves it its slot until the function returns."""
        slots = running.method.slots
        try:
            await slots.acquire(self._favoured(running.link))
        except asyncio.CancelledError:
            if self.time() >= running.deadline:
                slots.admission.lost()
            raise
        waiting = self.time()
        self._queue_wait.add(waiting - running.arrived, waiting)
        if running.answered or waiting >= running.deadline:
            slots.release()
            what = "thread" if slots is self._slots else "process"
            raise DeadlineExceeded(f"{running.method.schema.path} expired before a {what} was free for it")
        try:
            if slots is self._processes and self._pool is not None:
                future = self._pool.submit(running, args, kwargs)
            else:
                running.started = True
                function, variables = running.method.function, contextvars.copy_context()
                future = self._executor.submit(functools.partial(variables.run, function, *args, **kwargs))
        except BaseException:
            slots.release()
            raise
        try:
            value = await asyncio.shield(future)
        except asyncio.CancelledError:
            if not future.done():
                self._abandoned += 1
                future.add_done_callback(functools.partial(self._returned, slots))
                raise
            slots.release()
            raise
        except BaseException:
            slots.release()
            raise
        slots.release()
        return value

    def _returned(self, slots: Slots, future: asyncio.Future[object]) -> None:
        """A plain handler whose caller had its error long ago has come back."""
        if not future.cancelled() and (error := future.exception()) is not None:
            _log.info("a handler that outlived its call raised %s: %s", type(error).__name__, error)
        self._abandoned -= 1
        slots.release()
        self._drained.set()

    def _answered(self, running: Running) -> None:
        """From here on nothing more is sent for this call."""
        running.answered = True
        link = running.link
        link.running.pop(running.number, None)
        if link.acknowledged:
            link.settled()

    def _fail(self, running: Running, code: int, text: str, fields: dict[str, object] | None) -> None:
        if not running.answered:
            errors, name = running.method.errors, error_class(code).__name__
            errors[name] = errors.get(name, 0) + 1
            text = text.encode(errors="replace").decode()  # a lone surrogate has no form on the wire
            running.link.fail(running.number, code, text, ran=running.started, fields=fields)
            self._answered(running)

    def _stop(self, running: Running) -> None:
        self._answered(running)
        if not running.begun:
            self._over(running)
        elif running.task is not None and not running.over:
            running.task.cancel()

    def _over(self, running: Running) -> None:
        if running.over:
            return
        running.over = True
        running.arguments = None  # who still looks at it must not keep what came with it
        self._count -= 1
        if running.waited:
            self._waiting.pop(running, None)
            if running.bucket is not None:
                running.bucket.pop(running, None)
        self._ended = now = self.time()
        if running.started:
            method = running.method
            took = method.took
            took.append(now - running.arrived)
            if len(took) >= _TOGETHER:
                self._sum_up(method)
            if not method.direct and running.inlet is not None:
                running.inlet.close()
        if self.draining and not self._count:
            self._drained.set()

    def _remote(self, error: Exception, schema: MethodSchema) -> dict[str, object]:
        """What the caller may know of an exception that is no RpcError; the log here has all of it."""
        _log.error("%s raised %s", schema.path, type(error).__name__, exc_info=error)
        fields: dict[str, object] = {"type": type(error).__qualname__}
        if self._config.send_tracebacks:
            fields["traceback"] = "".join(traceback.format_exception(error))
        return fields

    def _unknown(self, path: object) -> str:
        service, _, method = str(path).rpartition(".")
        if service not in self._names:
            return f"{self._name!r} does not offer service {service!r}; it offers {', '.join(self._names) or 'none'}"
        methods = [h.schema.name for h in self._handlers.values() if h.schema.service == service]
        return f"service {service!r} at {self._name!r} has no method {method!r}; it has {', '.join(methods)}"
