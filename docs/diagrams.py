"""Draws the state diagrams of docs/architecture.md from the tables that the code runs on.

    python docs/diagrams.py            print them
    python docs/diagrams.py --write    put them into docs/architecture.md

tests/test_docs.py fails where the page and the tables differ.
"""

from __future__ import annotations

import argparse
import enum
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zmesh._core import bulk, call, health, peer

PAGE = Path(__file__).with_name("architecture.md")


@dataclass(frozen=True)
class Edge:
    """One entry of a table: from, to, what happened, and what follows from it."""

    source: enum.Enum
    target: enum.Enum
    event: str
    follows: str = ""


def edges(table: Mapping[Any, Mapping[Any, Any]]) -> list[Edge]:
    """Of a table from state to event to state."""
    return [Edge(state, to, event.value) for state, row in table.items() for event, to in row.items()]


def attempt_edges() -> list[Edge]:
    """The table of one attempt at a call; what follows for the call is behind an arrow."""
    return [
        Edge(state, to, event.value, "" if verdict is call.Verdict.NOTHING else f" ⇒ {verdict.value}")
        for state, row in call.TRANSITIONS.items()
        for event, (to, verdict) in row.items()
    ]


def mermaid(edges: Iterable[Edge], states: type[enum.Enum]) -> str:
    """The diagram: the first state is the start, a state that no arrow leaves is an end."""
    arrows: dict[tuple[enum.Enum, enum.Enum, str], list[str]] = {}
    for edge in edges:
        arrows.setdefault((edge.source, edge.target, edge.follows), []).append(edge.event)
    leaving = {source for source, _, _ in arrows}
    lines = [f"[*] --> {next(iter(states)).value}"]
    for (source, target, follows), events in arrows.items():
        lines.append(f"{source.value} --> {target.value}: {', '.join(events)}{follows}")
    lines += [f"{state.value} --> [*]" for state in states if state not in leaving]
    return "\n".join(["```mermaid", "stateDiagram-v2", *(f"    {line}" for line in lines), "```"])


def diagrams() -> dict[str, str]:
    """Name of the diagram to its text; the names mark its place on the page."""
    return {
        "peer": mermaid(edges(peer.TRANSITIONS), peer.State),
        "attempt": mermaid(attempt_edges(), call.State),
        "health": mermaid(edges(health.TRANSITIONS), health.State),
        "bulk": mermaid(edges(bulk.TRANSITIONS), bulk.Stage),
    }


def drawn(page: str) -> str:
    """The page with its diagrams drawn anew. Raises ValueError where a diagram has no place on it."""
    for name, text in diagrams().items():
        place = re.compile(rf"(<!-- diagram: {name} -->).*?(<!-- end -->)", re.DOTALL)
        parts = place.split(page)
        if len(parts) != 4:
            raise ValueError(f"{PAGE.name} has {len(parts) // 3} places for the diagram {name!r}, not one")
        before, opening, ending, after = parts
        page = f"{before}{opening}\n\n{text}\n\n{ending}{after}"
    return page


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--write", action="store_true", help="put them into docs/architecture.md")
    if options.parse_args().write:
        PAGE.write_text(drawn(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print("\n\n".join(diagrams().values()))


if __name__ == "__main__":
    main()
