"""Every test in this folder is marked `net`, and skipped where the machine cannot have hosts of its own; not in CI."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from .namespaces import Network, lacking

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.net)


def skip_or_fail(reason: str) -> None:
    """Skip with a reason; in CI a skipped test would hide that nothing was tested, so there it fails."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def _namespaces() -> str | None:
    return lacking()


@pytest.fixture
def make_network(_namespaces: str | None, tmp_path: Path) -> Iterator[Callable[[int], Network]]:
    """Makes a network of so many hosts; it is gone after the test."""
    if _namespaces is not None:
        skip_or_fail(_namespaces)
    with ExitStack() as stack:
        yield lambda hosts: stack.enter_context(Network(hosts, tmp_path))


@pytest.fixture
def avahi() -> None:
    """Skips where avahi's programs are not installed (Debian packages avahi-daemon, avahi-utils, dbus)."""
    for tool in ("avahi-daemon", "avahi-browse", "dbus-daemon"):
        if shutil.which(tool) is None:
            skip_or_fail(f"no '{tool}' (Debian packages avahi-daemon, avahi-utils and dbus)")
