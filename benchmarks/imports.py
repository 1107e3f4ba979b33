"""How long `import zmesh` takes beside `import zmq`, in fresh processes that take turns, and what in it is slow.

Both are measured with their bytecode cached, as it is after installing, whatever the environment says.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.net.figures import table

ROOT = Path(__file__).resolve().parents[1]
# What must be loaded only when it is used.
LAZY = ["zeroconf", "rich", "click", "typer", "uvloop", "numpy", "zmesh.cli", "zmesh.testing"]


def python(*arguments: str, cache: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    env["PYTHONPYCACHEPREFIX"] = cache
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True, env=env, cwd=ROOT)


def seconds_to_import(module: str, cache: str) -> float:
    code = f"import time; began = time.perf_counter(); import {module}; print(time.perf_counter() - began)"
    return float(python("-c", code, cache=cache).stdout)


def slowest(module: str, count: int, cache: str) -> list[tuple[float, str]]:
    """Milliseconds of its own, and name, of the modules that take longest."""
    listing = python("-X", "importtime", "-c", f"import {module}", cache=cache).stderr
    lines = re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", listing)
    return sorted(((int(microseconds) / 1000, name) for microseconds, name in lines), reverse=True)[:count]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--slowest", type=int, default=12, help="how many slow modules to list")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        measure(given.rounds, given.slowest, cache)


def measure(rounds: int, count: int, cache: str) -> None:
    taken: dict[str, list[float]] = {"zmq": [], "zmesh": []}
    for module in taken:
        seconds_to_import(module, cache)  # fills the cache
    for _ in range(rounds):
        for module, values in taken.items():
            values.append(1000 * seconds_to_import(module, cache))
    more = [ours - bare for ours, bare in zip(taken["zmesh"], taken["zmq"], strict=True)]
    medians = {module: statistics.median(values) for module, values in taken.items()}
    rows = [[f"import {module}", f"{medians[module]:.0f}", f"{min(values):.0f}"] for module, values in taken.items()]
    rows.append(["zmesh more", f"{statistics.median(more):.0f}", f"{min(more):.0f}"])
    print(table(["", "median ms", "best ms"], rows))
    print()
    print(table(["own ms", "module"], [[f"{ms:.1f}", name] for ms, name in slowest("zmesh", count, cache)]))
    code = f"import sys, zmesh; print([name for name in {LAZY} if name in sys.modules])"
    print(f"\nloaded though it should wait until it is used: {python('-c', code, cache=cache).stdout.strip()}")
    print(json.dumps({"more_ms": statistics.median(more), **medians}))


if __name__ == "__main__":
    main()
