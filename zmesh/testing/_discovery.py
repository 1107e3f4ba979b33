"""Multicast DNS in memory."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any, Final

from ..discovery import Found, Lost, Sighting
from ._loop import Process
from ._network import Machine, Network

__all__ = ["MemoryDiscovery"]


class MemoryDiscovery:
    """See `discovery.Discovery`. Multicast DNS in memory: announcements, questions at growing intervals, goodbyes.

    Every message is a datagram of its own: a cut path loses it, a stopped process answers late, and a process that was
    killed says no goodbye, so that others go on believing in it.
    """

    ANNOUNCED: Final = (0.0, 1.0)  # seconds after the start of advertising (RFC 6762, 8.3)
    FIRST_QUESTION: Final = 0.02  # seconds, up to 0.12: RFC 6762, 5.2
    SECOND_QUESTION: Final = 1.0  # then doubling
    LONGEST_SILENCE: Final = 60.0  # between two questions (RFC 6762 allows up to an hour)

    def __init__(self, network: Network, machine: Machine, process: Process) -> None:
        self._network = network
        self._machine = machine
        self.process = process
        self._found: Found | None = None
        self._lost: Lost | None = None
        self._own: Sighting | None = None
        self._seen: dict[str, Sighting] = {}
        self._timers: list[asyncio.TimerHandle] = []

    async def start(self, found: Found, lost: Lost) -> None:
        self._found, self._lost = found, lost
        self._machine.discoveries.append(self)
        first = self.FIRST_QUESTION + 0.1 * self._network.random.random()
        self._later(first, self._ask, self.SECOND_QUESTION)

    async def advertise(self, sighting: Sighting) -> None:
        key = sighting.key if sighting.id is None else f"{sighting.id.hex()}._zmesh._tcp.local."
        self._own = dataclasses.replace(sighting, key=key)
        for seconds in self.ANNOUNCED:
            self._later(seconds, self._announce)

    async def withdraw(self) -> None:
        if self._own is not None:
            key, self._own = self._own.key, None
            self._to_all(lambda other: other._hear_goodbye(key))

    async def close(self) -> None:
        await self.withdraw()
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        if self in self._machine.discoveries:
            self._machine.discoveries.remove(self)

    def describe(self) -> str:
        return f"mdns on {self._machine.address} (simulated)"

    def _later(self, seconds: float, callback: Callable[..., None], *args: Any) -> None:
        loop = self._network.loop
        self._timers = [timer for timer in self._timers if timer.when() > loop.time()]
        self._timers.append(loop.call_later(seconds, callback, *args, context=self.process.context))

    def _to_all(self, callback: Callable[[MemoryDiscovery], None]) -> None:
        for machine in self._network.machines:
            for other in machine.discoveries:
                if other is not self:
                    self._network.datagram(self._machine, machine, other.process, _call(callback, other))

    def _announce(self) -> None:
        sighting = self._own
        if sighting is not None:
            self._to_all(lambda other: other._hear(sighting))

    def _ask(self, next_in: float) -> None:
        if next_in == self.SECOND_QUESTION:  # the first one asks for answers to itself alone (RFC 6762, 5.4)
            self._to_all(lambda other: other._answer(self))
        else:
            self._to_all(MemoryDiscovery._announce)
        self._later(next_in, self._ask, min(next_in * 2, self.LONGEST_SILENCE))

    def _answer(self, asker: MemoryDiscovery) -> None:
        sighting = self._own
        if sighting is not None:
            hear = _call(lambda other: other._hear(sighting), asker)
            self._network.datagram(self._machine, asker._machine, asker.process, hear)

    def _hear(self, sighting: Sighting) -> None:
        if self._found is not None and self._seen.get(sighting.key) != sighting:
            self._seen[sighting.key] = sighting
            self._network.record(self._machine.name, f"found {sighting.name} at {' '.join(sighting.addresses)}")
            self._found(sighting)

    def _hear_goodbye(self, key: str) -> None:
        if self._lost is not None and self._seen.pop(key, None) is not None:
            self._network.record(self._machine.name, f"lost {key}")
            self._lost(key)


def _call(callback: Callable[[MemoryDiscovery], None], other: MemoryDiscovery) -> Callable[[], None]:
    return lambda: callback(other)
