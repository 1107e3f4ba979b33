"""The slots of plain handlers: so many at once, the others wait for their turn."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from ._core.admission import Admission

_TURNS: Final = 4  # calls for each slot that wait: more are many

__all__ = ["Slots"]


class Slots:
    """In order, as a semaphore does; while there is more than can be done, the newest first. Where many wait, calls of
    peers with few of them have every other slot."""

    __slots__ = ("_express_next", "_free", "_long", "_time", "admission", "express", "waiting")

    def __init__(self, slots: int, admission: Admission, time: Callable[[], float]) -> None:
        self._free = slots
        self._long = _TURNS * slots
        self.express: deque[asyncio.Future[None]] = deque()
        self._express_next = True
        self._time = time
        self.admission = admission
        self.waiting: deque[asyncio.Future[None]] = deque()

    async def acquire(self, favoured: bool = False) -> None:
        """Wait for a slot. favoured: whether it is for a peer with few calls while another one has very many."""
        if self._free and not self.waiting:
            self._free -= 1
            self.admission.begun += 1
            return
        future = asyncio.get_running_loop().create_future()
        many = len(self.waiting) >= self._long > len(self.express)
        lane = self.express if favoured and many else self.waiting
        lane.append(future)
        try:
            await future
        except asyncio.CancelledError:
            if not future.cancelled():  # it had just been given one
                self.release()
            elif future in lane:
                lane.remove(future)
            raise

    def release(self) -> None:
        """Give a slot back."""
        waiting, express, admission = self.waiting, self.express, self.admission
        while waiting or express:
            self._express_next = bool(express) and (not self._express_next or not waiting)
            if self._express_next:
                future = express.popleft()
            else:
                future = waiting.pop() if admission.newest_first else waiting.popleft()
            if not future.cancelled():
                future.set_result(None)
                admission.begun += 1
                break
        else:
            self._free += 1
        if not waiting and admission.standing:
            admission.emptied(self._time())
