"""How long `import zmesh` takes beside `import zmq`, in fresh processes that take turns, and what in it is slow."""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys

from tests.net.figures import table

# What must be loaded only when it is used.
LAZY = ["zeroconf", "rich", "click", "typer", "uvloop", "numpy", "zmesh.cli", "zmesh.testing"]


def seconds_to_import(module: str) -> float:
    code = f"import time; began = time.perf_counter(); import {module}; print(time.perf_counter() - began)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def slowest(module: str, count: int) -> list[tuple[float, str]]:
    """Milliseconds of its own, and name, of the modules that take longest."""
    argv = [sys.executable, "-X", "importtime", "-c", f"import {module}"]
    listing = subprocess.run(argv, capture_output=True, text=True, check=True).stderr
    lines = re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", listing)
    return sorted(((int(microseconds) / 1000, name) for microseconds, name in lines), reverse=True)[:count]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--slowest", type=int, default=12, help="how many slow modules to list")
    given = options.parse_args()

    taken: dict[str, list[float]] = {"zmq": [], "zmesh": []}
    for _ in range(given.rounds):
        for module, values in taken.items():
            values.append(1000 * seconds_to_import(module))
    more = [ours - bare for ours, bare in zip(taken["zmesh"], taken["zmq"], strict=True)]
    rows = [
        [f"import {module}", f"{statistics.median(values):.0f}", f"{min(values):.0f}"]
        for module, values in taken.items()
    ]
    print(
        table(
            ["", "median ms", "best ms"], [*rows, ["zmesh more", f"{statistics.median(more):.0f}", f"{min(more):.0f}"]]
        )
    )
    print()
    print(table(["own ms", "module"], [[f"{ms:.1f}", name] for ms, name in slowest("zmesh", given.slowest)]))
    code = f"import sys, zmesh; print([name for name in {LAZY} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    print(f"loaded though it should wait until it is used: {loaded}")
    print(json.dumps({"more_ms": statistics.median(more), **{name: statistics.median(v) for name, v in taken.items()}}))


if __name__ == "__main__":
    main()
