"""What encryption costs: zmesh with CURVE on and off, beside a bare blocking ROUTER/DEALER loop with CURVE on and off.

All four take turns as in `compare`, in one run. The cost of CURVE is the ratio of on to off within a round: at least 1
of latencies, at most 1 of calls/s. The last column says how zmesh's cost compares with that of libzmq alone: security
costs no more than libzmq's own CURVE where it is 1 or on the better side of it. Figures are medians over the rounds,
with the lowest and highest.
"""

from __future__ import annotations

import argparse
import json
import statistics

from tests.net.figures import table

from .compare.marks import spread
from .compare.scenarios import SCENARIOS, Results, play

SYSTEMS = ["bare", "bare-curve", "zmesh", "zmesh-curve"]
FIGURES = [("latency", "p50 µs"), ("latency", "p99 µs"), *((f"throughput {k}", "calls/s") for k in (64, 256, 1000))]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--minutes", type=float, default=6.0, help="at most, rather than all rounds")
    given = options.parse_args()
    results = Results()
    play(
        results,
        {name: SCENARIOS[name] for name in ("latency", "throughput")},
        SYSTEMS,
        given.rounds,
        60 * given.minutes,
    )
    rows, costs = [], {}
    for cell, figure in FIGURES:
        bare = results.ratios(cell, figure, "bare-curve", "bare")
        ours = results.ratios(cell, figure, "zmesh-curve", "zmesh")
        both = [one / other for one, other in zip(ours, bare, strict=True)]
        medians = [f"{statistics.median(results.of(cell, system, figure)):,.0f}" for system in SYSTEMS]
        rows.append([cell, figure, *medians, spread(bare), spread(ours), spread(both)])
        costs[f"{cell} {figure}"] = {"bare": statistics.median(bare), "zmesh": statistics.median(ours)}
    print(table(["cell", "figure", *SYSTEMS, "bare on : off", "zmesh on : off", "zmesh's : bare's"], rows))
    print(json.dumps({"rounds": results.rounds, "costs": costs}))


if __name__ == "__main__":
    main()
