"""See the package."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator

from . import MIXES, Result, hash_elsewhere, run_many


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="seeded runs under random faults")
    parser.add_argument("--seeds", default="0:200", help="FIRST:LAST, the last not included (default 0:200)")
    parser.add_argument("--seed", type=int, help="run this one alone, here")
    parser.add_argument("--trace", action="store_true", help="with --seed: print what happened")
    parser.add_argument("--mix", choices=list(MIXES), default="streams")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--stop", action="store_true", help="stop at the first seed that fails")
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    if options.seed is not None:
        results: Iterator[Result] = iter([MIXES[options.mix](options.seed, keep_trace=options.trace)])
    else:
        first, _, last = options.seeds.partition(":")
        results = run_many(range(int(first), int(last)), options.processes, MIXES[options.mix])
    failed: list[int] = []
    calls = streams = count = 0
    profiles: set[str] = set()
    fewest_calls = fewest_streams = sys.maxsize
    outcomes: dict[str, int] = {}
    for count, result in enumerate(results, 1):  # noqa: B007
        calls += result.calls
        streams += result.streams
        profiles.add(result.profile)
        fewest_calls, fewest_streams = min(fewest_calls, result.calls), min(fewest_streams, result.streams)
        for outcome, number in result.outcomes.items():
            outcomes[outcome] = outcomes.get(outcome, 0) + number
        for line in result.trace:
            print(line)
        if result.violations:
            failed.append(result.seed)
            print(f"seed {result.seed} ({result.profile}) fails, trace hash {result.trace_hash}:")
            for violation in result.violations[:5]:
                print(f"  {violation}")
            if len(result.violations) > 5:
                print(f"  ... and {len(result.violations) - 5} more")
            if options.stop:
                close = getattr(results, "close", None)
                if close is not None:
                    close()
                break
    if failed and not options.stop:
        again = {hash_elsewhere(failed[0], hash_seed, options.mix) for hash_seed in (1, 2)}
        print(f"seed {failed[0]} run again in two other processes: {'the same' if len(again) == 1 else 'DIFFERENT'}")
    told = ", ".join(f"{name} {number}" for name, number in sorted(outcomes.items()))
    seconds = time.perf_counter() - began
    print(f"a seed of {', '.join(sorted(profiles))} has {fewest_calls} calls and {fewest_streams} streams at least")
    print(f"{count} seeds, {calls} calls, {streams} of them streams ({told}), {len(failed)} failed, {seconds:.1f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
