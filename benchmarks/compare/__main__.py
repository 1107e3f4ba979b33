"""zmesh beside a bare ROUTER/DEALER loop and the libraries that are installed; writes docs/performance.md.

All systems take turns, cell by cell and round by round, and are compared within a round, because one machine's speed
changes from second to second. A figure is the median of the rounds, with the lowest and highest; a ratio is that of the
ratios of the rounds. Needs Linux: processor time is read from /proc.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
from pathlib import Path

from .. import idle
from . import page
from .scenarios import QUICK, SCENARIOS, Results, play
from .systems import BARE, DEFAULT, SYSTEMS

IDLE_SECONDS = 10.0


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="a moment of each, zmesh and bare, on the terminal")
    options.add_argument("--only", nargs="+", choices=SCENARIOS, metavar="SCENARIO", help="these, on the terminal")
    options.add_argument("--systems", nargs="+", choices=SYSTEMS, metavar="SYSTEM", help="these, beside bare")
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--minutes", type=float, default=12.0, help="at most, rather than all rounds")
    options.add_argument("--save", type=Path, metavar="FILE", help="keep what was measured")
    options.add_argument("--load", type=Path, metavar="FILE", help="write the page from what was kept, measure nothing")
    given = options.parse_args()
    if given.load:
        kept = json.loads(given.load.read_text(encoding="utf-8"))
        values = {tuple(key): each for key, each in kept["values"]}
        results = Results(values, kept["left_out"], kept["others"], kept["rounds"])
        page.publish(results, kept["systems"], kept["seconds"], kept["idle"])
        return
    chosen = given.systems or (["zmesh", "zmesh-blocking"] if given.quick or given.only else DEFAULT)
    systems = list(dict.fromkeys([BARE, *chosen]))
    rounds = 1 if given.quick else given.rounds
    of = QUICK if given.quick else SCENARIOS
    results = Results()
    began = time.monotonic()
    for system in systems:
        if SYSTEMS[system].missing:
            print(f"{system} is left out: {', '.join(SYSTEMS[system].missing)} not installed", file=sys.stderr)
    there = [system for system in systems if not SYSTEMS[system].missing]
    most = 60 * given.minutes - 3 * IDLE_SECONDS
    play(results, {name: of[name] for name in given.only or of}, there, rounds, most)
    if given.quick or given.only:
        show(results)
        return
    at_rest = idle.report(IDLE_SECONDS)
    seconds = time.monotonic() - began
    if given.save:
        kept = {"values": [[key, each] for key, each in results.values.items()], "left_out": results.left_out}
        kept |= {"others": results.others, "rounds": results.rounds}
        kept |= {"systems": systems, "seconds": seconds, "idle": at_rest}
        given.save.write_text(json.dumps(kept), encoding="utf-8")
    page.publish(results, systems, seconds, at_rest)
    show(results)


def show(results: Results) -> None:
    """On the terminal: for people, and in the end JSON of what the marks are of."""
    print(re.sub(r"[*#]{2,}", "", "\n\n".join([*page.tables(results), page.marks(page.judged(results))])))
    for system, why in results.left_out.items():
        print(f"{system} is left out: {why}", file=sys.stderr)
    print(json.dumps({mark.says: statistics.median(values) for mark, values in page.judged(results) if values}))
    sys.exit(1 if results.left_out else 0)


if __name__ == "__main__":
    main()
