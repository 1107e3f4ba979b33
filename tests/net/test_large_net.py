"""Large values over a slow path: a single frame takes longer than the heartbeats wait."""

from __future__ import annotations

import json
from collections.abc import Callable

from .namespaces import Network

# One way takes 0.84 s: more than twice as long as it may be silent.
HASTY = json.dumps({"transport_heartbeat": 0.1, "transport_timeout": 0.3})
SIZE, MEGABITS = 2 * 1024 * 1024, 20.0


def test_a_slow_transfer_is_no_silence_and_holds_up_no_call(make_network: Callable[[int], Network]) -> None:
    network = make_network(2)
    there, here = network.hosts
    server = there.python("tests.net.programs.large", "--settings", HASTY)
    address = server.wait_for(r"^READY (\S+)")[1]
    client = here.python("tests.net.programs.large", "--ask", address, "--size", str(SIZE), "--settings", HASTY)
    client.wait_for("^READY")
    for host in (there, here):
        host.slow_down(MEGABITS)
    client.say("go")
    seen = json.loads(client.wait_for(r"^\{.*\}$")[0])

    assert seen["right"]
    assert seen["seconds"] > 2 * SIZE * 8 / (MEGABITS * 1e6) * 0.9, "the path was not slow: this shows nothing"
    assert [state for state in seen["states"] if state.endswith("dead")] == []
    assert "lost the link" not in client.output + server.output
    # Calls had to wait for their share of the path, not for the transfer.
    assert len(seen["pings"]) > 5
    assert seen["pings"][len(seen["pings"]) // 2] < 0.4
