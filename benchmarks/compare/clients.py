"""What a client of a system offers, and how it is driven: awaited or blocking, the same scenarios.

All calls echo a message of a name, a number and 32 letters; each answer is compared with what was sent, and those that
differ are counted. A scenario returns how many calls (rounds, items) it did, in how many seconds, how many were wrong,
and of single calls and rounds what they took. Large values are bytes that no compression makes smaller; of those that
come back both ends and the middle are compared.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Any

from tests.net.figures import percentile

DATA = "abcdefghijklmnopqrstuvwxyz012345"
TEXT = "sixteen letters."
SECRET = "a mesh secret that only this machine's benchmarks share"
IN_FLIGHT_OF_MAP = 64
MIB = 1024 * 1024
PROBE = 4096  # bytes of a large value that are looked at in each of three places
FEW_ITEMS = 500  # of a stream or map, the first time; from then on as many as fill the time

now = time.perf_counter
Result = dict[str, float]


def result(done: int, wrong: int, began: float, taken: Sequence[float] = ()) -> Result:
    found = {"done": done, "wrong": wrong, "seconds": now() - began}
    if taken:
        found |= {"p50": percentile(taken, 50), "p99": percentile(taken, 99)}
    return found


def same(answer: Any, value: bytes) -> bool:
    """Whether a buffer that came back is what was sent, by its length and three looks."""
    places = (0, len(value) // 2, len(value) - PROBE)
    view = memoryview(answer)
    return len(view) == len(value) and all(bytes(view[at : at + PROBE]) == value[at : at + PROBE] for at in places)


class Client:
    """What both kinds have in common."""

    def __init__(self, variant: str) -> None:
        self.variant = variant
        self.numbers = itertools.count()
        self._rates: dict[str, float] = {}

    def make(self, number: int) -> Any:
        """The argument of a call."""
        return {"name": "World", "n": number, "data": DATA}

    def item(self, number: int) -> Any:
        """What that item of a stream must be."""
        return {"i": number, "s": TEXT}

    def arguments(self, count: int) -> list[Any]:
        return [self.make(next(self.numbers)) for _ in range(count)]

    def value(self, mib: int) -> bytes:
        """A large value."""
        if not hasattr(self, "_value") or len(self._value) != mib * MIB:
            self._value = random.Random(mib).randbytes(MIB) * mib
        return self._value

    def enough(self, what: str, seconds: float) -> int:
        """How many items fill that time, by what was seen before."""
        return max(FEW_ITEMS, int(self._rates.get(what, 0.0) * seconds))

    def learn(self, what: str, found: Result) -> Result:
        self._rates[what] = found["done"] / found["seconds"]
        return found


class Awaiting(Client, ABC):
    """A client whose calls are awaited."""

    @abstractmethod
    async def open(self, addresses: Sequence[str]) -> None: ...

    @abstractmethod
    async def echo(self, argument: Any) -> Any:
        """Ask the first server."""

    def items(self, count: int) -> AsyncIterator[Any]:
        raise NotImplementedError

    def mapped(self, arguments: Iterable[Any]) -> AsyncIterator[Any]:
        """The echo of each, in order, by any of the servers."""
        raise NotImplementedError

    async def size(self, value: bytes) -> int:
        """The length of a large value, as the first server has it."""
        raise NotImplementedError

    async def back(self, value: bytes) -> Any:
        """A large value, as the first server sends it back: a buffer."""
        raise NotImplementedError

    async def fan(self, arguments: Sequence[Any]) -> Sequence[Any]:
        """Ask all servers at once, and wait for all."""
        return await asyncio.gather(*map(self._echo_of, range(len(arguments)), arguments))

    def _echo_of(self, server: int, argument: Any) -> Any:
        """Ask that server; something to await."""
        raise NotImplementedError

    async def latency(self, seconds: float, in_flight: int) -> Result:
        taken, wrong = [], 0
        began = ended = now()
        while ended < began + seconds:
            argument = self.make(next(self.numbers))
            sent = now()
            answer = await self.echo(argument)
            ended = now()
            taken.append(ended - sent)
            wrong += answer != argument
        return result(len(taken), wrong, began, taken)

    async def throughput(self, seconds: float, in_flight: int) -> Result:
        numbers, make, echo = self.numbers, self.make, self.echo
        began = now()
        end = began + seconds

        async def one_after_the_other() -> tuple[int, int]:
            done = wrong = 0
            while not done or now() < end:
                argument = make(next(numbers))
                wrong += await echo(argument) != argument
                done += 1
            return done, wrong

        all_of_them = await asyncio.gather(*(one_after_the_other() for _ in range(in_flight)))
        return result(sum(done for done, _ in all_of_them), sum(wrong for _, wrong in all_of_them), began)

    async def there(self, seconds: float, in_flight: int, mib: int) -> Result:
        return await self._one_by_one(seconds, self.value(mib), self.size, lambda answer, value: answer == len(value))

    async def there_and_back(self, seconds: float, in_flight: int, mib: int) -> Result:
        return await self._one_by_one(seconds, self.value(mib), self.back, same)

    async def _one_by_one(self, seconds: float, value: bytes, call: Any, right: Any) -> Result:
        taken, wrong = [], 0
        began = ended = now()
        while not taken or ended < began + seconds:
            sent = now()
            wrong += not right(await call(value), value)
            ended = now()
            taken.append(ended - sent)
        return result(len(taken), wrong, began, taken)

    async def fanned(self, seconds: float, in_flight: int) -> Result:
        taken, wrong = [], 0
        began = ended = now()
        while ended < began + seconds:
            arguments = self.arguments(in_flight)
            sent = now()
            answers = await self.fan(arguments)
            ended = now()
            taken.append(ended - sent)
            wrong += sum(answer != argument for answer, argument in zip(answers, arguments, strict=True))
        return result(len(taken), wrong, began, taken)

    async def streamed(self, seconds: float, in_flight: int) -> Result:
        count, number, wrong, item = self.enough("stream", seconds), 0, 0, self.item
        began = now()
        async for found in self.items(count):
            wrong += found != item(number)
            number += 1
        return self.learn("stream", result(number, wrong + abs(count - number), began))

    async def mapped_over(self, seconds: float, in_flight: int) -> Result:
        arguments = self.arguments(self.enough("map", seconds))
        began = now()
        answers = [answer async for answer in self.mapped(arguments)]
        found = result(len(answers), 0, began)
        found["wrong"] = sum(a != b for a, b in itertools.zip_longest(answers, arguments))
        return self.learn("map", found)


class Blocking(Client, ABC):
    """A client whose calls block."""

    @abstractmethod
    def open(self, addresses: Sequence[str]) -> None: ...

    @abstractmethod
    def echo(self, argument: Any) -> Any:
        """Ask the first server."""

    def keep(self, in_flight: int, end: float) -> tuple[int, int]:
        """Keep that many calls in flight until then; returns how many were answered, and how many of those wrongly.
        Here: a thread for each."""
        numbers, make = self.numbers, self.make
        every: list[tuple[int, int]] = []

        def one_after_the_other(echo: Any) -> None:
            done = wrong = 0
            while not done or now() < end:
                argument = make(next(numbers))
                wrong += echo(argument) != argument
                done += 1
            every.append((done, wrong))

        threads = [threading.Thread(target=one_after_the_other, args=(self.echo_of(n),)) for n in range(in_flight)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(every) == in_flight, "some threads failed"
        return sum(done for done, _ in every), sum(wrong for _, wrong in every)

    def echo_of(self, thread: int) -> Any:
        """What that thread calls."""
        return self.echo

    def items(self, count: int) -> Iterator[Any]:
        raise NotImplementedError

    def mapped(self, arguments: Iterable[Any]) -> Iterable[Any]:
        """The echo of each, in order, by any of the servers."""
        raise NotImplementedError

    def size(self, value: bytes) -> int:
        """The length of a large value, as the first server has it."""
        raise NotImplementedError

    def back(self, value: bytes) -> Any:
        """A large value, as the first server sends it back: a buffer."""
        raise NotImplementedError

    def fan(self, arguments: Sequence[Any]) -> Sequence[Any]:
        """Ask all servers at once, and wait for all. Here: a thread for each."""
        if not hasattr(self, "_threads"):
            self._threads = concurrent.futures.ThreadPoolExecutor(len(arguments))
        return list(self._threads.map(self.echo_at, range(len(arguments)), arguments))

    def echo_at(self, server: int, argument: Any) -> Any:
        """Ask that server."""
        raise NotImplementedError

    def latency(self, seconds: float, in_flight: int) -> Result:
        taken, wrong = [], 0
        began = ended = now()
        while ended < began + seconds:
            argument = self.make(next(self.numbers))
            sent = now()
            answer = self.echo(argument)
            ended = now()
            taken.append(ended - sent)
            wrong += answer != argument
        return result(len(taken), wrong, began, taken)

    def throughput(self, seconds: float, in_flight: int) -> Result:
        began = now()
        return result(*self.keep(in_flight, began + seconds), began)

    def there(self, seconds: float, in_flight: int, mib: int) -> Result:
        return self._one_by_one(seconds, self.value(mib), self.size, lambda answer, value: answer == len(value))

    def there_and_back(self, seconds: float, in_flight: int, mib: int) -> Result:
        return self._one_by_one(seconds, self.value(mib), self.back, same)

    def _one_by_one(self, seconds: float, value: bytes, call: Any, right: Any) -> Result:
        taken, wrong = [], 0
        began = ended = now()
        while not taken or ended < began + seconds:
            sent = now()
            wrong += not right(call(value), value)
            ended = now()
            taken.append(ended - sent)
        return result(len(taken), wrong, began, taken)

    def fanned(self, seconds: float, in_flight: int) -> Result:
        taken, wrong = [], 0
        began = ended = now()
        while ended < began + seconds:
            arguments = self.arguments(in_flight)
            sent = now()
            answers = self.fan(arguments)
            ended = now()
            taken.append(ended - sent)
            wrong += sum(answer != argument for answer, argument in zip(answers, arguments, strict=True))
        return result(len(taken), wrong, began, taken)

    def streamed(self, seconds: float, in_flight: int) -> Result:
        count, number, wrong, item = self.enough("stream", seconds), 0, 0, self.item
        began = now()
        for found in self.items(count):
            wrong += found != item(number)
            number += 1
        return self.learn("stream", result(number, wrong + abs(count - number), began))

    def mapped_over(self, seconds: float, in_flight: int) -> Result:
        arguments = self.arguments(self.enough("map", seconds))
        began = now()
        answers = list(self.mapped(arguments))
        found = result(len(answers), 0, began)
        found["wrong"] = sum(a != b for a, b in itertools.zip_longest(answers, arguments))
        return self.learn("map", found)
