"""What all tests stand on."""

from __future__ import annotations

import signal

import pytest

# A shell that starts the suite in the background has it ignore Ctrl-C, and what it starts likewise: tests that send
# one would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)  # pytest-xdist's
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Where tests run in several processes, those with hosts of their own stay in one: they mostly wait for real time,
    and each wants the machine to itself. The other processes have what computes.

    The mark `xdist_group` would say so in fewer words: with pytest 9.2, pytest-xdist 3.8 does not heed it.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return "net" if nodeid.startswith("tests/net/") else nodeid

    return Scheduling(config, log)
