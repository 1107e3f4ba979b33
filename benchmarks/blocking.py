"""What a blocking call costs beside an awaited one: sequential latency of `zmesh.connect()` and of `zmesh.Node`.

One server process and one client process for each, over tcp on 127.0.0.1, on uvloop where it is installed. The clients
take turns, and are compared within a round, because one machine's speed changes from second to second. A figure is the
median over the rounds, with the lowest and highest; a ratio is the median of the ratios of the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys

from benchmarks.floor import Side
from tests.net.figures import percentile, table

CLIENTS = {"awaited": "zmesh", "blocking": "zmesh-blocking"}
LIMIT = 1.7  # a blocking call may cost this many awaited ones


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--calls", type=int, default=1000, help="of each client in one round")
    given = options.parse_args()

    figures: dict[tuple[str, str], list[float]] = {}
    with contextlib.ExitStack() as stack:
        server = Side("zmesh", "serve", "uvloop")
        stack.callback(server.close)
        sides = {name: Side(system, "ask", "uvloop", server.address) for name, system in CLIENTS.items()}
        for side in sides.values():
            stack.callback(side.close)
        for turn in range(given.rounds):
            # Who comes first changes from round to round: what follows a pause may run faster or slower.
            for name in CLIENTS if turn % 2 == 0 else reversed(CLIENTS):
                taken = sides[name].tell(do="latency", calls=given.calls)["seconds"]
                for percent in (50, 99):
                    figures.setdefault((f"p{percent} µs", name), []).append(1e6 * percentile(taken, percent))
            print(f"round {turn + 1} of {given.rounds}", file=sys.stderr)

    rows, summary = [], {}
    for figure in ("p50 µs", "p99 µs"):
        awaited, blocking = figures[figure, "awaited"], figures[figure, "blocking"]
        ratios = [ours / other for ours, other in zip(blocking, awaited, strict=True)]
        summary[figure] = round(statistics.median(ratios), 2)
        row = [f"{statistics.median(each):,.0f} ({min(each):,.0f}–{max(each):,.0f})" for each in (awaited, blocking)]
        rows.append([figure, *row, f"{summary[figure]:.2f} ({min(ratios):.2f}–{max(ratios):.2f})"])
    print(table(["figure", *CLIENTS, "blocking : awaited"], rows))
    print(
        json.dumps(
            {"rounds": given.rounds, "calls": given.calls, "limit": LIMIT, "ratios": summary}, ensure_ascii=False
        )
    )


if __name__ == "__main__":
    main()
