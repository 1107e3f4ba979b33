"""Holds zmesh to what it promises under faults, between network namespaces (needs root): 300 calls/s while a server is
killed, a host cut off and a server stopped; with idempotent calls and with others; and rolling restarts under 500
calls/s. Prints what was measured; ends with status 1 where a promise is broken."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tests.net import faults, restarts
from tests.net.figures import percentile
from tests.net.namespaces import Network, lacking
from tests.net.test_faults_net import losses_explained

WORST_MS = 800.0
P99_MS = 600.0
NOTICED_MS = {"kill": 50.0, "cut": 500.0, "stop": 500.0}
DEAD_MS = 1300.0
RESTARTS = 20
RESTART_RATE = 500.0


def broken_by(load: faults.Load, ran: dict[str, list[str]]) -> list[str]:
    """The promises that a load did not see kept."""
    broken = []
    for fault in load.faults:
        for what, after, limit in (("noticed", fault.suspect, NOTICED_MS[fault.name]), ("dead", fault.dead, DEAD_MS)):
            if after is None or 1000 * after > limit:
                broken.append(f"{fault.name} {what} after {after} s, promised {limit:g} ms")
        if fault.name != "kill" and fault.back is None:
            broken.append(f"{fault.server} did not come back after the {fault.name}")
    if load.method == "work":
        if load.failed:
            broken.append(f"{len(load.failed)} idempotent calls failed, such as {load.failed[0]}")
        if max(load.answered_ms) > WORST_MS + faults.SERVICE_MS:
            broken.append(f"a call took {max(load.answered_ms):.0f} ms, promised {WORST_MS:g} plus its service time")
        if percentile(load.answered_ms, 99) > P99_MS:
            broken.append(f"p99 {percentile(load.answered_ms, 99):.0f} ms, promised {P99_MS:g}")
    else:
        broken.extend(losses_explained(load))
        twice = [one.token for one in load.report.outcomes if len(ran.get(one.token, [])) > 1]
        if twice:
            broken.append(f"{len(twice)} calls that are not idempotent ran twice, such as {twice[0]}")
    return broken


def play_faults(method: str) -> list[str]:
    with tempfile.TemporaryDirectory() as folder, Network(4, Path(folder)) as network:
        scenario = faults.run(network, [method])
    load = scenario.loads[0]
    print(json.dumps(load.summary(), indent=2))
    return broken_by(load, scenario.ran)


def play_restarts() -> list[str]:
    with tempfile.TemporaryDirectory() as folder, Network(4, Path(folder)) as network:
        rolled = restarts.roll(network, RESTARTS, RESTART_RATE)
    print(json.dumps(rolled.summary(), indent=2))
    return [f"{figure}: {rolled.summary()[figure]}" for figure in ("failed", "run_twice") if rolled.summary()[figure]]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("parts", nargs="*", default=["work", "once", "restarts"], help="of: work once restarts")
    options.add_argument("--rounds", type=int, default=1)
    given = options.parse_args()
    if reason := lacking():
        sys.exit(reason)
    broken = []
    for _ in range(given.rounds):
        for part in given.parts:
            found = play_restarts() if part == "restarts" else play_faults(part)
            broken += [f"{part}: {one}" for one in found]
    print("\n".join(["Broken promises:", *broken] if broken else ["All promises kept."]))
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
