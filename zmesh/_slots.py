"""The slots of plain handlers: so many at once, the others wait for their turn."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from ._core.admission import Admission

__all__ = ["Slots"]


class Slots:
    """In order, as a semaphore does; while there is more than can be done, the newest first."""

    __slots__ = ("_free", "_time", "admission", "waiting")

    def __init__(self, slots: int, admission: Admission, time: Callable[[], float]) -> None:
        self._free = slots
        self._time = time
        self.admission = admission
        self.waiting: deque[asyncio.Future[None]] = deque()

    async def acquire(self) -> None:
        """Wait for a slot."""
        if self._free and not self.waiting:
            self._free -= 1
            self.admission.begun += 1
            return
        future = asyncio.get_running_loop().create_future()
        self.waiting.append(future)
        try:
            await future
        except asyncio.CancelledError:
            if not future.cancelled():  # it had just been given one
                self.release()
            elif future in self.waiting:
                self.waiting.remove(future)
            raise

    def release(self) -> None:
        """Give a slot back."""
        waiting, admission = self.waiting, self.admission
        while waiting:
            future = waiting.pop() if admission.newest_first else waiting.popleft()
            if not future.cancelled():
                future.set_result(None)
                admission.begun += 1
                break
        else:
            self._free += 1
        if not waiting and admission.standing:
            admission.emptied(self._time())
