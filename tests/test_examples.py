"""Every example runs as its first lines say, and prints what it promises."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
SECONDS = 30  # each takes 2 to 7 on an idle machine; a test machine may be busy


def run(name: str) -> str:
    """What an example prints. Fails where it fails, prints an error, or does not end."""
    # Unbuffered, Python writes a line in two pieces, between which another process may write.
    unwanted = ("ZMESH_", "PYTHONUNBUFFERED")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    example = subprocess.Popen(
        [sys.executable, f"examples/{name}.py"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that what it started can be ended with it
    )
    try:
        output, errors = example.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(example.pid, signal.SIGKILL)
        output, errors = example.communicate()
        pytest.fail(f"{name} did not end within {SECONDS} s:\n{output}\n{errors}")
    assert example.returncode == 0, f"{output}\n{errors}"
    assert errors == "", errors
    return output


def test_hello() -> None:
    assert run("hello").splitlines() == [
        "Hello, World",
        "SO LOUD",
        "Hello, nobody in particular (said by greeter-1)",
    ]


def test_fast_slow_big() -> None:
    found = re.findall(r"^(.*?) *: fast +(\d+)%, slow +(\d+)%, big +(\d+)%; 300 calls took ([\d.]+) s$",
                       run("fast_slow_big"), re.M)  # fmt: skip
    (least, *loads, seconds), (in_turn, *turns, seconds_in_turn) = found
    assert (least, in_turn) == ("least loaded", "round robin")
    fast, slow, big = (int(share) for share in loads)
    assert slow < 15, "the slow node gets few calls"
    assert fast > 20, "the fast node gets many"
    assert big > 20, "so does the big one"
    assert all(28 <= int(share) <= 39 for share in turns), "in turn, each gets a third"
    assert float(seconds) < float(seconds_in_turn)


def test_shop() -> None:
    lines = run("shop").splitlines()
    payments = [line for line in lines if line.startswith("  Payment")]
    assert [line for line in lines if line not in payments] == [
        "3 spoons for 750 cents: receipt for 750 cents ({'cashier': 'till 3'})",
        "1 teapot: NOT_FOUND {'item': 'teapot'}",
        "2 kettle: FAILED_PRECONDITION {'item': 'kettle', 'left': 1}",
        "1 piano: DEADLINE_EXCEEDED after 0.5 s",
        "pianos on the shelf: 1",
    ]
    small, large, given_up = payments
    assert small.startswith("  Payment: 750 cents from 'Ada', within ")
    assert re.fullmatch(r"  Payment: 990000 cents from 'Ada', within 0\.[345] s", large), "the deadline was inherited"
    assert given_up == "  Payment: given up, the deadline has passed"


def test_word_count() -> None:
    shares, total, *frequent = run("word_count").splitlines()
    numbers = re.fullmatch(r"36 pieces: worker-1 counted (\d+), worker-2 counted (\d+), worker-3 counted (\d+)", shares)
    assert numbers is not None, shares
    assert sum(int(number) for number in numbers.groups()) == 36
    assert total == "6124 words, 1146 different ones; the most frequent:"
    # Counted beside zmesh: tr -cs A-Za-z '\n' < text | tr A-Z a-z | sort | uniq -c | sort -rn
    assert [line.split() for line in frequent[:4]] == [["288", "the"], ["214", "and"], ["191", "to"], ["172", "she"]]


def test_blocking_library() -> None:
    opened, titles, refused, counted, closed = run("blocking_library").splitlines()
    assert (opened, closed) == ("database opened", "database closed")
    assert titles == "before 1870: Silas Marner, Alice's Adventures in Wonderland"
    assert refused == "ALREADY_EXISTS: 'Middlemarch' is here already"
    found = re.fullmatch(r"counted to 3000000; meanwhile (\d+) pings were answered, the slowest in (\d+) ms", counted)
    assert found is not None, counted
    assert int(found[1]) > 5, "the loop was free while SQLite counted"
    assert int(found[2]) < 250


def test_rolling_restart() -> None:
    *restarts, result = run("rolling_restart").splitlines()
    assert restarts == [f"till-{number} restarted (its exit status: 0)" for number in (1, 2, 3)]
    assert re.fullmatch(r"\d+ sales: 0 failed, 0 not booked, 0 booked twice", result), result


def test_sensor() -> None:
    assert set(run("sensor").splitlines()) == {
        "fast reader: every reading of 60, in order: True",
        "slow reader: some readings of 60, in order: True",
    }


def test_progress() -> None:
    assert run("progress").splitlines() == [*(f"{frame} of 10" for frame in (1, 2, 3, 4)), "stopped after frame 4"]


def test_notebook() -> None:
    assert run("notebook").splitlines() == [
        "typed: 3.0",
        "by name: 3.0",
        "a stream: [0, 1, 4, 9, 16]",
        "a generator as argument: 5.0",
    ]


def test_quorum() -> None:
    assert run("quorum").splitlines() == [
        "3 of 5 agree: color = blue",
        "all: 4 values, 1 error (UNAVAILABLE: being repaired [said by copy-5])",
        "5 of 5: out of reach",
    ]


def test_parallel_map() -> None:
    shared, longest = run("parallel_map").splitlines()
    assert shared == "1000 numbers, in order; nodes that took part: 3"
    assert longest == "the longest way to 1 begins at 871: 178 steps"


def test_security_none() -> None:
    assert run("security_none").splitlines() == ['gold, for "the bank\'s owner", who proved None']


def test_security_secret() -> None:
    friend, pretender, other, plain = run("security_secret").splitlines()
    assert friend == "gold, for 'teller'"
    assert pretender == 'gold, for "the bank\'s owner"', "the secret is one identity for all"
    assert other.startswith("with another secret: it does not have the key that was expected, "), other
    assert plain.startswith("with none: it is secured and this node is not"), plain


def test_security_keys() -> None:
    assert run("security_keys").splitlines() == [
        "gold, for 'teller', who proved it",
        "name=\"the bank's owner\": the key file's keys belong to 'teller': leave name out",
        "revoked: MaybeExecuted",
        "afterwards: DeadlineExceeded",
        "it does not trust this node's key",
    ]


def test_security_permissions() -> None:
    placed, log, refused, cancelled, changed = run("security_permissions").splitlines()
    missing = "no entry that allows Orders.cancel has this caller in its list: "
    line = 'permissions.toml, line 7: [allow] "Orders.cancel"'
    client = "till-1 cancels it: PERMISSION_DENIED: 'orders-1' does not let 'till-1' call Orders.cancel"
    assert placed == "till-1 places order 1"
    who = r"  log: refused a call from this host, key [0-9a-f]{32}"
    assert re.fullmatch(rf"{who}: Orders\.cancel: {missing}\S+/{re.escape(line)}", log)
    assert refused == f"{client}: {missing}{line}"
    assert cancelled == "ada cancels it: a spoon, by till-1"
    assert changed == "till-1, once the file has changed: a fork, by till-1"


def test_every_example_is_tested_and_listed() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py") if not path.stem.startswith("_")}
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert names <= tested
    listed = set(re.findall(r"`python examples/(\w+)\.py`", (EXAMPLES / "README.md").read_text()))
    assert names == listed
