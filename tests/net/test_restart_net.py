"""Rolling restarts between hosts: a drain loses no call of any kind and runs none twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from .namespaces import Network
from .restarts import roll


def test_rolling_restarts_lose_nothing(make_network: Callable[[int], Network]) -> None:
    outcome = roll(make_network(4), restarts=6, rate=300)
    print(outcome.summary())
    assert [one for one in outcome.report.outcomes if one.error is not None] == []
    assert {token: servers for token, servers in outcome.ran.items() if len(servers) > 1} == {}
    assert Counter(servers[0].partition(".")[0] for servers in outcome.ran.values()).keys() == {
        "server-1",
        "server-2",
        "server-3",
    }
    assert outcome.statuses == [0] * 6, "a drained server ends well"
