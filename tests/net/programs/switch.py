"""A switch between network namespaces that loses and delays frames as it is told: kernels without netem cannot.

Each host gets a TAP interface `eth0` that ends here. Says READY once they are there. A line of input changes a port:
`PORT LOSS_FROM LOSS_TO DELAY`: the port's number (from 1), the share of what comes from it and of what goes to it that
is lost, the seconds that both are late. Answers `SET PORT MOMENT` (monotonic). Frames of two ports never overtake each
other: TCP would take that for loss.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import os
import random
import struct
import sys
import time
from collections import deque
from dataclasses import dataclass, field

from .openloop import lines_of_stdin

CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
FRAME = 65_536
FRAMES_AT_ONCE = 64  # read from one port before the others get their turn


def open_tap(namespace: str) -> int:
    """Make `eth0` in a namespace, and move this thread there (`os.setns` is new in Python 3.12)."""
    descriptor = os.open(f"/var/run/netns/{namespace}", os.O_RDONLY)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), f"setns to {namespace}: {os.strerror(ctypes.get_errno())}")
    os.close(descriptor)
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", b"eth0", IFF_TAP | IFF_NO_PI))
    return tap


@dataclass
class Port:
    """One host's plug."""

    tap: int
    loss_from: float = 0.0
    loss_to: float = 0.0
    delay: float = 0.0
    coming: dict[int, deque[tuple[float, bytes]]] = field(default_factory=dict)  # by the port that it comes from


class Switch:
    """Frames from port to port."""

    def __init__(self, taps: list[int]) -> None:
        self._ports = {number: Port(tap) for number, tap in enumerate(taps, 1)}
        self._learnt: dict[bytes, int] = {}  # port by address
        self._random = random.Random(1).random
        self._loop = asyncio.get_running_loop()
        for number, port in self._ports.items():
            self._loop.add_reader(port.tap, self._read, number, port)

    def set(self, number: int, loss_from: float, loss_to: float, delay: float) -> None:
        port = self._ports[number]
        port.loss_from, port.loss_to, port.delay = loss_from, loss_to, delay

    def _read(self, number: int, port: Port) -> None:
        for _ in range(FRAMES_AT_ONCE):
            try:
                frame = os.read(port.tap, FRAME)
            except (BlockingIOError, OSError):
                return
            target, source = frame[:6], frame[6:12]
            self._learnt[source] = number
            if port.loss_from and self._random() < port.loss_from:
                continue
            known = None if target[0] & 1 else self._learnt.get(target)  # an odd first byte: to several
            for other in self._ports if known is None else (known,):
                if other != number:
                    self._send(number, port.delay, self._ports[other], frame)

    def _send(self, source: int, delay: float, port: Port, frame: bytes) -> None:
        if port.loss_to and self._random() < port.loss_to:
            return
        delay += port.delay
        coming = port.coming.setdefault(source, deque())
        if coming or delay:
            due = max(self._loop.time() + delay, coming[-1][0] if coming else 0.0)
            coming.append((due, frame))
            if len(coming) == 1:
                self._loop.call_at(due, self._deliver, port, coming)
        else:
            self._write(port, frame)

    def _deliver(self, port: Port, coming: deque[tuple[float, bytes]]) -> None:
        now = self._loop.time()
        while coming and coming[0][0] <= now:
            self._write(port, coming.popleft()[1])
        if coming:
            self._loop.call_at(coming[0][0], self._deliver, port, coming)

    def _write(self, port: Port, frame: bytes) -> None:
        # A host that does not take it has its interface down, or its queue full: as with a cable, it is lost.
        with contextlib.suppress(OSError):
            os.write(port.tap, frame)


async def main() -> None:
    switch = Switch([open_tap(namespace) for namespace in sys.argv[1:]])
    stdin = await lines_of_stdin()
    print("READY", flush=True)
    while line := await stdin.readline():
        number, *settings = line.split()
        switch.set(int(number), *(float(each) for each in settings))
        print(f"SET {int(number)} {time.monotonic()}", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
