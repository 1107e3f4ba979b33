"""What all tests stand on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Final

import pytest

# A shell that starts the suite in the background has it ignore Ctrl-C, and what it starts likewise: tests that send
# one would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)


class BackgroundSoak:
    """Two hundred seeds of the soak. Many tests wait for real time, so in a run of all tests it begins with the first
    of them and takes what they leave of the processor. That delays none of them: the kernel lets it run only where
    nothing else would (SCHED_IDLE)."""

    SEEDS: Final = 200

    def __init__(self) -> None:
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115  (until `end`)
        command = [sys.executable, "-m", "tests.soak", "--idle", "--seeds", f"0:{self.SEEDS}"]
        self._process = subprocess.Popen(command, stdout=self._output, stderr=subprocess.STDOUT, start_new_session=True)

    def result(self) -> tuple[int, str]:
        """Its exit status and what it said, once it is through."""
        status = self._process.wait()
        self._output.seek(0)
        return status, self._output.read()

    def end(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
            self._process.wait()
        self._output.close()


_soak: BackgroundSoak | None = None


def pytest_collection_finish(session: pytest.Session) -> None:
    global _soak
    all_of_them = len(session.items) > 1000 and not session.config.option.collectonly
    if all_of_them and any("background_soak" in getattr(item, "fixturenames", ()) for item in session.items):
        _soak = BackgroundSoak()


def pytest_unconfigure() -> None:
    if _soak is not None:
        _soak.end()


@pytest.fixture
def background_soak() -> Iterator[BackgroundSoak]:
    if _soak is not None:
        yield _soak
        return
    soak = BackgroundSoak()
    try:
        yield soak
    finally:
        soak.end()
