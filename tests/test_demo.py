"""`zmesh demo`: no call fails, and nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zmesh.cli._demo import PARTS, Fault, Part, Processes, Tally

ROOT = Path(__file__).resolve().parent.parent
WITHIN = 100.0  # bounds a failure; seven interpreters start, and one more


def demo(*arguments: str, mark: str) -> subprocess.Popen[str]:
    """Start a demo whose whole family carries `mark` in its environment."""
    return subprocess.Popen(
        [sys.executable, "-m", "zmesh", "demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "MARK": mark},
    )


def family(mark: str) -> list[int]:
    """The processes that carry a mark."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            environment = entry.read_bytes()
        except OSError:  # ended since, or not ours
            continue
        if f"MARK={mark}\0".encode() in environment:
            found.append(int(entry.parent.name))
    return found


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are looked up in /proc")


@linux
def test_no_call_fails() -> None:
    running = demo("--seconds", "5", "--rate", "100", mark=(mark := f"no-call-fails-{os.getpid()}"))
    try:
        out, err = running.communicate(timeout=WITHIN)
    finally:
        running.kill()
    assert running.returncode == 0, out + err
    assert err == ""
    calls, idempotent, failed = map(
        int, re.findall(r"\d+", re.search(r"^\d+ calls \(\d+ idempotent\), \d+ failed$", out, re.M)[0])
    )
    assert calls >= 500
    assert 0 < idempotent < calls
    assert failed == 0
    orders = calls - idempotent
    assert f"orders (not idempotent): {orders} made, {orders} in the ledger, 0 booked twice" in out
    assert re.search(r"^noticed: SIGKILL to fast: suspect after \d+ ms, dead after \d+ ms$", out, re.M)
    assert re.search(r"^noticed: SIGSTOP to store: suspect after \d+ ms", out, re.M)
    # it is stopped for a second, which is also when a silent peer is held to be dead: either may come first
    assert re.search(r"^noticed: SIGCONT to store: (dead after \d+ ms, )?alive after \d+ ms$", out, re.M)
    assert re.search(r"^noticed: SIGTERM \(restart\) to shop-1: draining after \d+ ms", out, re.M)
    assert family(mark) == []


@linux
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing_behind(number: signal.Signals) -> None:
    mark = f"interrupted-{number.name}-{os.getpid()}"
    running = demo("--seconds", "10", mark=mark)
    try:
        assert running.stdout is not None
        for line in running.stdout:
            if "SIGSTOP" in line:  # the moment at which ending all of them is hardest
                break
        assert len(family(mark)) >= len(PARTS)
        running.send_signal(number)
        _, err = running.communicate(timeout=WITHIN)
    finally:
        running.kill()
    assert running.returncode == 1
    assert "Traceback" not in err
    assert family(mark) == []


@linux
def test_nodes_leave_when_the_demo_is_killed() -> None:
    running = demo("--seconds", "60", mark=(mark := f"killed-{os.getpid()}"))
    try:
        assert running.stdout is not None
        for line in running.stdout:
            if "found all" in line:
                break
    finally:
        running.kill()
    running.communicate(timeout=WITHIN)
    give_up = time.monotonic() + WITHIN
    while family(mark):
        assert time.monotonic() < give_up, family(mark)
        time.sleep(0.05)


def test_a_node_that_does_not_start_says_why() -> None:
    async def start() -> None:
        async with Processes("test-demo") as processes:
            await processes.start(Part("broken", ("NO_SUCH_SERVICE",), 1, ""))

    with pytest.raises(RuntimeError, match=r"(?s)node broken does not start:.*has no 'NO_SUCH_SERVICE'"):
        asyncio.run(start())


def test_tally_looks_back_a_few_seconds() -> None:
    tally = Tally()
    for number in range(100):
        tally.add(when := 10.0 + number / 100, (number + 1) / 1000)
    assert tally.rate(when) == 20.0
    assert tally.percentiles(when) == (0.0505, 0.1)
    assert tally.percentiles(when + 60) is None
    assert tally.answered == 100


def test_a_fault_that_nobody_saw_says_so() -> None:
    fault = Fault("SIGKILL to", "fast", 1.0)
    assert str(fault) == "SIGKILL to fast: not noticed"
    fault.states["dead"] = 0.0123
    assert str(fault) == "SIGKILL to fast: dead after 12 ms"
