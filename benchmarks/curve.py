"""What encryption costs: zmesh with CURVE on and off, beside a bare blocking ROUTER/DEALER loop with CURVE on and off.

All four take turns as in `floor`, in one run. The cost of CURVE is the ratio of on to off within a round: of latencies
it is at least 1, of calls/s at most. The last column says how zmesh's cost compares with that of libzmq alone: security
costs no more than libzmq's own CURVE where it is 1 or on the better side of it. Figures are medians over the rounds,
with the lowest and highest.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from tests.net.figures import table

from .floor import collect

SYSTEMS = ["bare", "bare-curve", "zmesh", "zmesh-curve"]


def ratios(on: list[float], off: list[float]) -> list[float]:
    return [one / other for one, other in zip(on, off, strict=True)]


def shown(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--in-flight", nargs="+", type=int, default=[1, 64, 256])
    options.add_argument("--bytes", nargs="+", type=int, default=[65_536], help="more text in sequential calls")
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--calls", type=int, default=2000, help="sequential calls in one cell")
    options.add_argument("--seconds", type=float, default=0.7, help="of one cell with calls in flight")
    options.add_argument("--loop", choices=["uvloop", "asyncio"], default="uvloop", help="where installed")
    options.add_argument("--json", type=Path, help="write all rounds there")
    given = options.parse_args()

    cells = ["sequential", *(f"{size} bytes" for size in given.bytes), *map(str, given.in_flight)]
    figures = collect(SYSTEMS, cells, given)
    rows, summary, rounds = [], [], []
    for cell, name in dict.fromkeys((cell, name) for cell, name, _ in figures):
        of = {system: figures[cell, name, system] for system in SYSTEMS}
        bare, ours = ratios(of["bare-curve"], of["bare"]), ratios(of["zmesh-curve"], of["zmesh"])
        costs = {"bare": bare, "zmesh": ours, "zmesh : bare": ratios(ours, bare)}
        label = f"{cell} in flight" if cell.isdigit() else cell
        medians = [f"{statistics.median(of[system]):,.0f}" for system in SYSTEMS]
        rows.append([label, name, *medians, *map(shown, costs.values())])
        summary.append({"cell": cell, "figure": name, **{key: statistics.median(cost) for key, cost in costs.items()}})
        rounds.append({"cell": cell, "figure": name, "values": of, "costs": costs})
    print(table(["cell", "figure", *SYSTEMS, "bare on : off", "zmesh on : off", "zmesh's : bare's"], rows))
    print(json.dumps({"loop": given.loop, "rounds": given.rounds, "costs": summary}))
    if given.json:
        given.json.write_text(json.dumps({"costs": summary, "rounds": rounds}, indent=1))


if __name__ == "__main__":
    main()
