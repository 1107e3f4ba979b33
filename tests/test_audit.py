"""What was refused is counted and told once per peer, reason and minute, however many come."""

from __future__ import annotations

import tracemalloc

from zmesh._security.audit import EVERY, REASONS, Audit


def test_one_line_per_peer_reason_and_minute() -> None:
    audit = Audit()
    line = audit.refused("call", "ab12", "10.0.0.3", "no entry allows Orders.drop", 5.0)
    assert line == "refused a call from 10.0.0.3, key ab12: no entry allows Orders.drop"
    again = [audit.refused("call", "ab12", "10.0.0.4", "no entry allows Orders.drop", 5.0 + n) for n in range(60)]
    assert again == [None] * 60
    assert audit.refused("call", "cd34", "10.0.0.3", "no entry allows Orders.drop", 6.0) is not None, "another key"
    assert audit.refused("handshake", None, "10.0.0.3", "no key", 6.0) == ("refused a handshake from 10.0.0.3: no key")
    assert audit.refused("handshake", None, "10.0.0.3", "no key", 7.0) is None
    assert audit.refused("handshake", None, "10.0.0.3", "not CURVE", 7.0) is not None, "another reason"
    assert audit.refused("call", "ab12", "10.0.0.4", "no entry allows Orders.drop", 65.0) == (
        "refused a call from 10.0.0.4, key ab12: no entry allows Orders.drop (60 times more since this was last said)"
    )
    assert audit.stats() == {
        "refused_handshakes": 3,
        "refused_calls": 63,
        "refused_peers": {
            "cd34": {"handshakes": 0, "calls": 1, "address": "10.0.0.3", "reason": "no entry allows Orders.drop"},
            "10.0.0.3": {"handshakes": 3, "calls": 0, "address": "10.0.0.3", "reason": "not CURVE"},
            "ab12": {"handshakes": 0, "calls": 62, "address": "10.0.0.4", "reason": "no entry allows Orders.drop"},
        },
        "refused_others": 0,
    }


def test_many_addresses_keys_and_reasons_grow_nothing() -> None:
    audit, said, count = Audit(), 0, 4_000
    tracemalloc.start()
    try:
        for number in range(count):
            fingerprint = f"key{number % 1999}" if number % 2 else None
            line = audit.refused("handshake", fingerprint, f"{number}", f"{number}" * 999, 0.05 * number)
            said += line is not None
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    stats = audit.stats()
    assert stats["refused_handshakes"] == count
    assert len(stats["refused_peers"]) == 256
    assert stats["refused_others"] > count // 2
    assert grown < 2**20
    minutes = 0.05 * count / EVERY + 1
    assert said <= (256 + 1) * minutes, "a line for each that is remembered, and one for all others, a minute"


def test_one_peer_with_many_reasons_is_a_few_lines() -> None:
    audit = Audit()
    lines = [audit.refused("handshake", "ab12", "h", f"it says that it is {n}", n * 0.01) for n in range(1000)]
    assert len([line for line in lines if line]) == REASONS
    assert audit.refused("handshake", "ab12", "h", "it says that it is Ada", 75.0), "a minute later"


def test_what_a_terminal_would_obey_is_not_logged() -> None:
    line = Audit().refused("call", None, "\x1b[2J", "a\nb\x1b[31m", 0.0)
    assert line is not None
    assert line.isprintable()


def test_who_comes_when_the_table_is_full_is_told_of_with_the_others() -> None:
    audit = Audit(most=1)
    assert audit.refused("call", "a", "h", "no", 0.0)
    assert audit.refused("call", "b", "i", "no", 1.0) == (
        "refused a call from i, key b: no (and others: over 1 peers were refused in a minute)"
    )
    assert audit.refused("call", "c", "j", "no", 2.0) is None
    assert list(audit.stats()["refused_peers"]) == ["a"]
    assert audit.refused("call", "b", "i", "no", 60.0) == "refused a call from i, key b: no"
    line = audit.refused("call", "c", "j", "no", 61.0)
    assert line is not None
    assert "(and others, 1 more before: over 1 peers" in line
    assert list(audit.stats()["refused_peers"]) == ["b"]
