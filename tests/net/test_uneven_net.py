"""Balancing between hosts, two of four ten times slower, beside the simplest load-aware client on bare sockets."""

from __future__ import annotations

import json
from collections.abc import Callable

from .namespaces import Network
from .uneven import SETTINGS, run_reference, run_zmesh

SECONDS = 5.0


def test_slow_servers_get_less(make_network: Callable[[int], Network]) -> None:
    network = make_network(5)
    reference = run_reference(network, SETTINGS["B"], SECONDS)
    zmesh = run_zmesh(network, SETTINGS["B"], SECONDS)
    print(json.dumps([reference.summary(), zmesh.summary()], indent=2))
    assert zmesh.failed == 0
    # The promise is less than the reference (`make uneven`); a short run on a busy machine is held to less.
    assert zmesh.p99_ms < 2 * reference.p99_ms
