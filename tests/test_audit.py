"""What was refused is counted and told once per peer and minute, however many come."""

from __future__ import annotations

from zmesh._security.audit import EVERY, Audit


def test_one_line_per_peer_and_minute() -> None:
    audit = Audit()
    line = audit.refused("call", "ab12", "10.0.0.3", "no entry allows Orders.drop", 5.0)
    assert line == "refused a call of key ab12 at 10.0.0.3: no entry allows Orders.drop"
    assert [audit.refused("call", "ab12", "10.0.0.3", "no", 5.0 + second) for second in range(60)] == [None] * 60
    assert audit.refused("handshake", None, "10.0.0.3", "no key", 6.0) == (
        "refused a handshake of 10.0.0.3, without a key: no key"
    )
    assert audit.refused("handshake", None, "10.0.0.3", "no key", 7.0) is None, "the same host"
    assert audit.refused("call", "ab12", "10.0.0.4", "no", 65.0) == (
        "refused a call of key ab12 at 10.0.0.4: no (60 more since the last line of this kind)"
    )
    assert audit.stats() == {
        "refused_handshakes": 2,
        "refused_calls": 62,
        "refused_peers": {
            "10.0.0.3": {"handshakes": 2, "calls": 0, "address": "10.0.0.3", "reason": "no key"},
            "ab12": {"handshakes": 0, "calls": 62, "address": "10.0.0.4", "reason": "no"},
        },
        "refused_others": 0,
    }


def test_many_addresses_and_keys_grow_nothing() -> None:
    audit, said = Audit(most=10), 0
    for number in range(100_000):
        line = audit.refused(
            "handshake", f"key{number}" if number % 2 else None, f"{number}", "x" * 9999, 0.001 * number
        )
        said += line is not None
    stats = audit.stats()
    assert stats["refused_handshakes"] == 100_000
    assert len(stats["refused_peers"]) == 10
    assert all(len(peer["reason"]) < 500 for peer in stats["refused_peers"].values())
    assert stats["refused_others"] > 90_000
    assert said <= 11 * (100 / EVERY + 1), "a line for each that is remembered, and one for all others, a minute"


def test_what_a_terminal_would_obey_is_not_logged() -> None:
    line = Audit().refused("call", None, "\x1b[2J:1", "a\nb\x1b[31m", 0.0)
    assert line is not None
    assert line.isprintable()


def test_who_comes_back_later_is_remembered_anew() -> None:
    audit = Audit(most=1)
    assert audit.refused("call", "a", "h:1", "no", 0.0)
    line = audit.refused("call", "b", "h:2", "no", 1.0)
    assert line is not None
    assert line.endswith("(and others: more than 1 peers were refused in a minute)")
    assert audit.refused("call", "c", "h:3", "no", 2.0) is None
    assert audit.refused("call", "b", "h:2", "no", 61.0) is not None
    assert list(audit.stats()["refused_peers"]) == ["b"]
