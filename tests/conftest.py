"""What all tests stand on."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

NET = Path(__file__).parent / "net"

# A shell that starts the suite in the background has it ignore Ctrl-C, and what it starts likewise: tests that send
# one would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run in several processes, those with hosts of their own stay in one: they mostly wait for real time,
    and each wants the machine to itself. The other processes have what computes."""
    for item in items:
        if NET in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("net"))
