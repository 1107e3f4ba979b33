"""Holds zmesh to what it promises under faults, between network namespaces (needs root). Parts, all of them by default:

    table     every kind of fault alone, under 300 calls/s: what callers saw of it
    work      300 calls/s while a server is killed, a host cut off and a server stopped, as other systems were measured
    hedged    the same with hedging
    once      the same with a method that is not idempotent
    restarts  8 servers restarted one after the other, twice, under 500 calls/s
    deploy    new versions of a service come beside the old one, which leaves, under 2 times 200 calls/s

Prints what was measured; ends with status 1 where a promise is broken. --write puts the table into docs/failover.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.net import deploys, faults, restarts
from tests.net.figures import percentile, table
from tests.net.kinds import KINDS, SINGLE, end_of
from tests.net.namespaces import Network, lacking
from tests.net.test_faults_net import losses_explained

from .figures import put

PAGE: Final = Path(__file__).parents[1] / "docs" / "failover.md"
P99_MS: Final = 600.0
HEDGE_AFTER: Final = 0.03  # seconds: some four times what a call takes
HEDGED_P99_MS: Final = 60.0
EXTRA: Final = 1.05  # attempts for a call, with hedging
SERVERS, RESTARTS, RESTART_RATE = 8, 16, 500.0
DEPLOY_RATE: Final = 200.0

Broken = list[str]


@contextmanager
def network_of(hosts: int, *, switched: bool = False) -> Iterator[Network]:
    with tempfile.TemporaryDirectory() as folder, Network(hosts, Path(folder), switched=switched) as network:
        yield network


def broken_by(load: faults.Load) -> Broken:
    """The promises that a load of an idempotent method did not see kept, whatever the faults were."""
    broken = []
    for fault in load.faults:
        kind = KINDS[fault.name]
        for what, after, limit in (("noticed", fault.suspect, kind.suspect), ("dead", fault.dead, kind.dead)):
            if limit is not None and (after is None or after > limit):
                broken.append(f"{fault.name} {what} after {after} s, promised {limit:g} s")
        if kind.dead is not None and kind.end is not None and fault.back is None:
            broken.append(f"{fault.server} did not come back after the {fault.name}")
    broken += [f"{one.peer} was declared {one.state}, and was there" for one in load.false_deaths]
    broken += [f"a large value came to this: {text}" for text in load.bulks if text != "OK"]
    if load.method == "work":
        if load.failed:
            broken.append(f"{len(load.failed)} idempotent calls failed, such as {load.failed[0]}")
        worst = [KINDS[fault.name].worst for fault in load.faults]
        limit = max(each for each in worst if each is not None) if None not in worst else None
        if limit is not None and max(load.answered_ms) > 1000 * limit + faults.SERVICE_MS:
            broken.append(f"a call took {max(load.answered_ms):.0f} ms, promised {1000 * limit:g} and its own time")
    return broken


def play_three(method: str, hedge_after: str = "") -> Broken:
    """The faults that other systems were measured with (docs/comparison.md)."""
    with network_of(4) as network:
        scenario = faults.run(network, [method], hedge_after=hedge_after)
    load = scenario.loads[0]
    print(json.dumps(load.summary(), indent=2))
    broken, p99 = broken_by(load), percentile(load.answered_ms, 99)
    promised = HEDGED_P99_MS if hedge_after else P99_MS
    if method == "work" and p99 > promised:
        broken.append(f"p99 {p99:.0f} ms, promised {promised:g}")
    if hedge_after and load.attempts > EXTRA:
        broken.append(f"{load.attempts:.3f} attempts for a call, promised {EXTRA:g}")
    if method == "once":
        broken.extend(losses_explained(load))
        twice = [one.token for one in load.report.outcomes if len(scenario.ran.get(one.token, [])) > 1]
        if twice:
            broken.append(f"{len(twice)} calls that are not idempotent ran twice, such as {twice[0]}")
    return broken


def play_restarts() -> Broken:
    with network_of(SERVERS + 1) as network:
        rolled = restarts.roll(network, RESTARTS, RESTART_RATE)
    summary = rolled.summary()
    print(json.dumps(summary, indent=2))
    return [f"{figure}: {summary[figure]}" for figure in ("failed", "run_twice") if summary[figure]]


def play_deploy() -> Broken:
    with network_of(4) as network:
        deployed = deploys.deploy(network, DEPLOY_RATE)
    print(json.dumps(deployed.summary(), indent=2))
    broken = [f"{figure}: {number}" for figure, number in (("failed", deployed.failed), ("run twice", deployed.twice))]
    served = {version: sorted(counts) for version, counts in deployed.served.items()}
    if served != {"1.0": ["1.0", "1.1"], "2.0": ["2.0"]}:
        broken.append(f"callers of a version were served by these: {served}")
    return [one for one in broken if not one.endswith(": 0")]


PARTS: Final[dict[str, Callable[[], Broken]]] = {
    "work": lambda: play_three("work"),
    "hedged": lambda: play_three("work", str(HEDGE_AFTER)),
    "once": lambda: play_three("once"),
    "restarts": play_restarts,
    "deploy": play_deploy,
}


# -- the table


def play_table(only: list[str], rounds: int) -> tuple[str, Broken]:
    """Each kind of fault alone; the rows, and what was broken."""
    broken: Broken = []
    loads: dict[str, list[faults.Load]] = {}
    for _ in range(rounds):
        for name in only or list(SINGLE):
            with network_of(4, switched=KINDS[name].switched) as network:
                load = faults.run(network, ["work"], SINGLE[name], end_of(SINGLE[name])).loads[0]
            loads.setdefault(name, []).append(load)
            broken += [f"{name}: {one}" for one in broken_by(load)]
            print(f"{name}: {json.dumps(load.summary())}", file=sys.stderr, flush=True)
    return table(HEAD, [row(name, each) for name, each in loads.items()]), broken


HEAD: Final = (
    "fault", "calls", "failed", "p99 ms", "worst ms", "suspect after ms", "dead after ms", "false deaths",
    "attempts for a call",
)  # fmt: skip


def row(name: str, loads: list[faults.Load]) -> list[str]:
    """One kind of fault, in all rounds: sums, the worst of all, medians of times with the longest."""
    happened = [fault for load in loads for fault in load.faults]
    answered = [ms for load in loads for ms in load.answered_ms]
    return [
        KINDS[name].says,
        f"{sum(len(load.report.outcomes) for load in loads):,}",
        str(sum(len(load.failed) for load in loads)),
        f"{percentile(answered, 99):.0f}",
        f"{max(answered):.0f}",
        times([fault.suspect for fault in happened]) if KINDS[name].suspect else suspected(loads),
        times([fault.dead for fault in happened]) if KINDS[name].dead else "–",
        str(sum(len(load.false_deaths) for load in loads)),
        f"{sum(load.attempts for load in loads) / len(loads):.4f}",
    ]


def suspected(loads: list[faults.Load]) -> str:
    """How often somebody was, where nobody needs to be: a suspect is only spared until it is heard again."""
    count = sum(one.state == "suspect" for load in loads for one in load.report.seen)
    return f"({count} suspicion{'' if count == 1 else 's'})"


def times(seconds: list[float | None]) -> str:
    """The median in milliseconds, and the longest; how many there were, if not every time."""
    known = [1000 * each for each in seconds if each is not None]
    if not known:
        return "never"
    text = f"{percentile(known, 50):.0f}" + (f" (at most {max(known):.0f})" if len(known) > 1 else "")
    return text if len(known) == len(seconds) else f"{text}, {len(known)} times of {len(seconds)}"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("parts", nargs="*", metavar="PART", help="see above")
    options.add_argument("--only", action="append", choices=list(SINGLE), help="these rows of the table; repeated")
    options.add_argument("--rounds", type=int, default=1)
    options.add_argument("--write", action="store_true", help="put the table into docs/failover.md")
    given = options.parse_args()
    parts = given.parts or (["table"] if given.only or given.write else ["table", *PARTS])
    if unknown := set(parts) - {"table", *PARTS}:
        options.error(f"no part {', '.join(sorted(unknown))}: there are table, {', '.join(PARTS)}")
    if reason := lacking():
        sys.exit(reason)
    broken: Broken = []
    if "table" in parts:
        text, broken = play_table(given.only or [], given.rounds)
        rounds = f"{given.rounds} round{'s' if given.rounds > 1 else ''}"
        text = f"Written by `make faults ARGS=--write`, {rounds}.\n\n{text}"
        print(text, flush=True)
        if given.write:
            put(PAGE, "faults", text)
    for _ in range(given.rounds):
        for part in parts:
            if part != "table":
                print(f"{part}:", flush=True)
                broken += [f"{part}: {one}" for one in PARTS[part]()]
    print("\n".join(["Broken promises:", *broken] if broken else ["All promises kept."]))
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
