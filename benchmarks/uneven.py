"""Two of four servers ten times slower, between network namespaces (needs root): zmesh beside the simplest load-aware
client on bare sockets, one after the other in each round. A: 5 ms and 50 ms a call, 1,056 calls/s; B: 20 ms and 200 ms,
264 calls/s. Ends with status 1 where a call failed, or where the p99 of zmesh is not below that of the same rounds."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from tests.net.figures import table
from tests.net.namespaces import Network, lacking
from tests.net.uneven import FACTORS, SETTINGS, Outcomes, run_reference, run_zmesh

FIGURES = ("system", "calls", "failed", "p50_ms", "p99_ms", "worst_ms", "client_lag_p99_ms")


def row(setting: str, outcome: Outcomes) -> list[str]:
    summary = outcome.summary()
    shares = " / ".join(str(summary["share_percent"][name]) for name in FACTORS)  # type: ignore[index]
    return [setting, *(str(summary[figure]) for figure in FIGURES), shares]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("settings", nargs="*", metavar="SETTING", help="A, B; both by default")
    options.add_argument("--seconds", type=float, default=15.0)
    options.add_argument("--rounds", type=int, default=3)
    given = options.parse_args()
    settings = given.settings or list(SETTINGS)
    if unknown := set(settings) - set(SETTINGS):
        options.error(f"no setting {', '.join(sorted(unknown))}: there are {', '.join(SETTINGS)}")
    if reason := lacking():
        sys.exit(reason)
    rows, verdicts, kept = [], [], True
    for name in settings:
        of: dict[str, list[Outcomes]] = {}
        for _ in range(given.rounds):
            for play in (run_reference, run_zmesh):
                with tempfile.TemporaryDirectory() as folder, Network(5, Path(folder)) as network:
                    outcome = play(network, SETTINGS[name], given.seconds)
                of.setdefault(outcome.system, []).append(outcome)
                rows.append(row(name, outcome))
        p99 = {system: statistics.median(each.p99_ms for each in outcomes) for system, outcomes in of.items()}
        failed = sum(each.failed for each in of["zmesh"])
        reference = p99["fewest outstanding"]
        verdicts.append(f"{name}: {failed} failed, p99 {p99['zmesh']:.1f} ms, the reference's {reference:.1f} ms")
        kept = kept and failed == 0 and p99["zmesh"] < reference
    print(table(["setting", *FIGURES, "answers per server, % (slow, fast, slow, fast)"], rows))
    print("\n".join(verdicts))
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
