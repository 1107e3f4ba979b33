"""Plays the scenarios on all cores, holds them against the marks, and writes docs/balancing.md's tables and plots."""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import os
import platform
import random
import re
import sys
import time
from pathlib import Path

from zmesh._core.balance import make_policy
from zmesh._core.members import Members

from ..figures import Measured, chart, put, table
from .marks import MARKS, Summary, links_changed, summary_of
from .play import play
from .scenarios import ABLATED, PLAYED, SCENARIOS

PAGE = Path(__file__).parents[2] / "docs" / "balancing.md"
SEEDS, QUICK_SEEDS = 10, 2
PICKED_FROM = (2, 10, 100, 1000)
PICK, PICK_GROWS = 3.0, 2.0  # microseconds for one of 10; how many times as much for one of 1,000
QUICK = 0.05  # of the calls
Results = dict[tuple[str, str], list[Summary]]


def one(name: str, policy: str, seed: int, share: float) -> Summary:
    """One run, in a process of its own."""
    if name == "links":
        return {"changed": links_changed(seed, int(1000 * share))}
    scenario = SCENARIOS[name]
    scenario = dataclasses.replace(scenario, calls=max(int(scenario.calls * share), 100))
    return summary_of(play(scenario, policy, seed), scenario.capacity)


def everything(only: str, seeds: int, share: float) -> Results:
    """All runs whose scenario's name begins with `only`."""
    jobs = [
        (name, policy, seed)
        for name, policies in {**PLAYED, "links": ("",)}.items()
        for policy in policies
        for seed in range(seeds)
        if name.startswith(only)
    ]
    results: Results = {}
    with concurrent.futures.ProcessPoolExecutor() as pool:
        futures = [pool.submit(one, *job, share) for job in jobs]
        for number, ((name, policy, _), future) in enumerate(zip(jobs, futures, strict=True), 1):
            results.setdefault((name, policy), []).append(future.result())
            if sys.stderr.isatty() or number % 100 == 0:
                print(f"\r{number} of {len(jobs)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return results


def measured(results: Results, name: str, policy: str, figure: str) -> Measured:
    return Measured.of([summary.get(figure, float("inf")) for summary in results[name, policy]])


def marks(results: Results) -> str:
    """Every mark, what was measured, and whether it holds."""
    rows: list[list[object]] = []
    reasons = []
    for mark in MARKS:
        try:
            seeds = len(next(iter(results.values())))
            values = [mark.of(lambda n, p, f, s=seed: results[n, p][s][f]) for seed in range(seeds)]  # type: ignore[misc]
        except KeyError:
            continue
        found = Measured.of(values)
        verdict = mark.verdict(found)
        rows.append([mark.says, mark.bound, found, verdict])
        if verdict != "holds" and mark.why:
            reasons.append(f"- {mark.says}: {mark.why}.")
    text = table(["what", "must be", "measured", ""], rows)
    return text + ("\n\nWhy some do not hold:\n\n" + "\n".join(reasons) if reasons else "")


def scenario_tables(results: Results) -> str:
    """One table for each scenario that is played with more than one policy."""
    parts = []
    for name, scenario in SCENARIOS.items():
        played = [policy for policy in PLAYED[name] if (name, policy) in results]
        if len(played) < 2 or name.startswith(("ablation", "reports")):
            continue
        rows = [
            [f"`{policy}`", *(measured(results, name, policy, figure) for figure in ("p50", "p99", "p99.9", "failed"))]
            for policy in played
        ]
        parts.append(f"**{scenario.title}**\n\n" + table(["policy", "p50", "p99", "p99.9", "failed %"], rows))
    return "\n\n".join(parts)


def ablations(results: Results) -> str:
    """Each alternative to the default: its p99 over that of the default, in each scenario."""
    names = [name for name in SCENARIOS if name.startswith("ablation") and (name, ABLATED[0]) in results]
    if not names:
        return ""
    rows = []
    for policy in ABLATED:
        row: list[object] = [f"`{policy}`"]
        for name in names:
            pairs = zip(results[name, policy], results[name, "least_loaded"], strict=True)
            row.append(Measured.of([mine["p99"] / ours["p99"] for mine, ours in pairs]))
        rows.append(row)
    return table(["", *(SCENARIOS[name].title for name in names)], rows)


def report_ages(results: Results) -> str:
    names = [name for name in SCENARIOS if name.startswith("reports_") and (name, "believing") in results]
    rows = [
        [f"{SCENARIOS[name].heartbeat * 1000:g}", *(measured(results, name, p, "p99") for p in PLAYED[name])]
        for name in names
    ]
    return table(["ms between reports", "`least_loaded`: p99", "reports believed as they came: p99"], rows)


def pick_costs(name: str) -> dict[int, float]:
    """Microseconds for one choice by the number of peers, the best of some rounds: others may use the machine."""
    rng = random.Random(0)
    costs = {}
    for count in PICKED_FROM:
        members: Members[object] = Members(lambda member, before: None, rng.random)
        peers = [members.add(number.to_bytes(16, "big"), str(number), (), 0.0) for number in range(count)]
        for peer in peers:
            peer.observe("Lab.work", 0.0, 0.01 + 0.01 * rng.random())
            peer.called_at = peer.reported_at = 0.0
            peer.others = int(5 * rng.random())
        choose, best = make_policy(name, rng).choose, float("inf")
        for _ in range(40):
            began = time.perf_counter()
            for _ in range(500):
                choose(peers, "Lab.work", 1.0)
            best = min(best, (time.perf_counter() - began) / 500 * 1e6)
        costs[count] = best
    return costs


def pick_cost() -> str:
    """What a choice costs, with each policy."""
    names = ("least_loaded", "least_request", "peak_ewma", "weighted", "round_robin", "random")
    rows = [[f"`{name}`", *(f"{cost:.1f}" for cost in pick_costs(name).values())] for name in names]
    return table(["µs for a choice of", *(f"{count:,} peers" for count in PICKED_FROM)], rows)


def hold_pick() -> None:
    """Print what a choice costs; ends with status 1 where the default costs more than it may."""
    print(pick_cost())
    costs = [pick_costs("least_loaded") for _ in range(5)]
    few, many = (min(each[count] for each in costs) for count in (10, 1000))
    print(f"least_loaded: {few:.2f} µs for one of 10, at most {PICK:g}; {many / few:.2f} times that for one of 1,000, "
          f"at most {PICK_GROWS:g}")  # fmt: skip
    sys.exit(0 if few <= PICK and many <= PICK_GROWS * few else 1)


def plots(results: Results, folder: Path) -> None:
    """The plots of the page."""
    policies = [policy for policy in PLAYED["equal_0.9_1"] if policy != "random"]
    lines = {
        policy: [(float(c), measured(results, f"equal_0.9_{c}", policy, "p99").mean) for c in (1, 4, 64)]
        for policy in policies
    }
    text = chart("10 equal servers, load 0.9", "callers", "p99, in mean service times", lines)
    (folder / "balancing-callers.svg").write_text(text, encoding="utf-8")
    ages = [float(name.removeprefix("reports_")) for name in SCENARIOS if name.startswith("reports_")]
    lines = {
        named: [(age * 1000, measured(results, f"reports_{age:g}", policy, "p99").mean) for age in ages]
        for policy, named in (("least_loaded", "least_loaded"), ("believing", "believed as it came"))
    }
    text = chart("64 callers, load 0.9", "ms between reports", "p99, in mean service times", lines)
    (folder / "balancing-reports.svg").write_text(text, encoding="utf-8")


def page(results: Results, seeds: int, seconds: float) -> str:
    """The generated part of the page."""
    machine = f"Python {platform.python_version()}, {os.cpu_count()} cores"
    return "\n\n".join(
        [
            f"Written by `make lab`: {seeds} seeds, {seconds / 60:.0f} minutes of {machine}. After ± stands half "
            "the width of the 95 % interval over the seeds. A mark holds only where the whole interval does.",
            "### Marks",
            marks(results),
            "### What a choice costs",
            "Measured on the same machine, beside other work; the best of 40 rounds.",
            pick_cost(),
            "### Scenarios",
            "Latencies in mean service times (10 ms there) of a fast server.",
            scenario_tables(results),
            "![p99 by callers](balancing-callers.svg)",
            "### Alternatives to the default",
            "The p99 of each over that of the default, in the same runs. Above 1 is worse.",
            ablations(results),
            "### How old reports may be",
            report_ages(results),
            "![p99 by the age of reports](balancing-reports.svg)",
        ]
    )


def attempt(name: str) -> None:
    """One scenario, on the terminal."""
    results = everything(name, 3, 0.5)
    for (scenario, policy), summaries in results.items():
        figures = ", ".join(f"{key} {Measured.of([s.get(key, 0.0) for s in summaries])}" for key in summaries[0])
        print(f"{scenario} {policy}: {figures}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="a small part of it, on the terminal")
    options.add_argument("--try", dest="name", help="the scenarios whose names begin so, on the terminal")
    options.add_argument("--seeds", type=int, default=SEEDS)
    options.add_argument("--save", type=Path, metavar="FILE", help="keep what was measured")
    options.add_argument(
        "--load", type=Path, metavar="FILE", help="write the page from what was kept, and play nothing"
    )
    options.add_argument("--pick", action="store_true", help="only what a choice costs, on the terminal")
    given = options.parse_args()
    if given.pick:
        hold_pick()
    os.nice(10)
    if given.name:
        attempt(given.name)
        return
    if given.load:
        seeds, seconds, kept = json.loads(given.load.read_text(encoding="utf-8"))
        publish({(name, policy): summaries for name, policy, summaries in kept}, seeds, seconds)
        return
    began = time.monotonic()
    results = everything("", QUICK_SEEDS if given.quick else given.seeds, QUICK if given.quick else 1.0)
    if given.quick:
        print(re.sub(r"[*`]", "", marks(results)))
        return
    seconds = time.monotonic() - began
    if given.save:
        kept = [[*key, summaries] for key, summaries in results.items()]
        given.save.write_text(json.dumps([given.seeds, seconds, kept]), encoding="utf-8")
    publish(results, given.seeds, seconds)


def publish(results: Results, seeds: int, seconds: float) -> None:
    """Write the page and its plots."""
    put(PAGE, "lab", re.sub(r"\n{3,}", "\n\n", page(results, seeds, seconds)))
    plots(results, PAGE.parent)
    print(marks(results))


if __name__ == "__main__":
    main()
