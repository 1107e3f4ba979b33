"""Balancing of one's own: what a policy is given, and what it answers.

    class Fewest:
        def choose(self, candidates, method, now):
            return min(range(len(candidates)), key=lambda index: candidates[index].in_flight)

    node = zmesh.Node(balance=Fewest())

The policies that come with zmesh are named in `zmesh.Node`; docs/balancing.md tells how they do.
"""

from __future__ import annotations

from ._core.policies import Candidate, Policy

__all__ = ["Candidate", "Policy"]
