"""The grammar in docs/protocol.md, by a validator that knows nothing of zmesh: it takes the well-formed vectors and
refuses the others."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cbor2
import pytest
from cddl_verifier import Validator

ROOT = Path(__file__).parents[1]
VECTORS = ROOT / "tests" / "vectors"
ENVELOPES = json.loads((VECTORS / "envelopes.json").read_text(encoding="utf-8"))
MALFORMED = json.loads((VECTORS / "malformed.json").read_text(encoding="utf-8"))

# What the prose forbids and a grammar cannot say, or what depends on the link's state.
NO_MATTER_OF_GRAMMAR = {
    "another incarnation",
    "tag 0 on an open link",
    "another incarnation in the handshake",
    "an indefinite array",
    "an indefinite text",
    "73 deep",
    "1,025 messages",
    "257 frames",
    "a frame that did not come",
    "frame 2 of 1",
    "half an element",
    "elements that do not fill the dimensions",
    "replies with fewer values than numbers",
    "a call before HELLO",
    "an unknown kind before HELLO",
    "HELLO with frames",
    "a long HELLO",
    "HELLO with capacity 0",
    "HELLO with capacity NaN",
    "HELLO with a version that is none",
    "a second HELLO",
}
# Tags that must not be sent but do no harm; another major version, of which this grammar knows nothing.
OUTSIDE_THE_GRAMMAR = {
    "hello of another major version, whose other items are its own affair",
    "a tag that no version knows is a value that no schema takes",
    "a regular expression is not compiled",
}


@pytest.fixture(scope="module")
def grammar() -> Iterator[Validator]:
    """The validator, which prints the values that it refuses: also integers of many digits, which Python does not."""
    most = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    page = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```cddl\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    yield Validator(block)
    sys.set_int_max_str_digits(most)


def _named(vectors: list[dict[str, Any]]) -> Any:
    return pytest.mark.parametrize("vector", vectors, ids=[vector["name"] for vector in vectors])


@_named([vector for vector in ENVELOPES if vector["name"] not in OUTSIDE_THE_GRAMMAR])
def test_the_grammar_takes_every_wellformed_vector(grammar: Validator, vector: dict[str, Any]) -> None:
    result = grammar.validate(bytes.fromhex(vector["frames"][0]))
    assert result, result.errors


def _is_wellformed(vector: dict[str, Any]) -> bool:
    unknown_kind = any(answer[0] == 11 for answer in vector["answers"])
    return unknown_kind or vector["name"] in NO_MATTER_OF_GRAMMAR


@_named([vector for vector in MALFORMED if _is_wellformed(vector)])
def test_what_only_the_prose_forbids_is_within_the_grammar(grammar: Validator, vector: dict[str, Any]) -> None:
    result = grammar.validate(bytes.fromhex(vector["frames"][0]))
    assert result, result.errors


@_named([vector for vector in MALFORMED if not _is_wellformed(vector)])
def test_the_grammar_refuses_every_malformed_vector(grammar: Validator, vector: dict[str, Any]) -> None:
    assert not grammar.validate(bytes.fromhex(vector["frames"][0]))


def test_the_grammar_knows_every_kind(grammar: Validator) -> None:
    from zmesh._core.messages import NAMES

    # With nothing behind it, each kind is too short, but for those that have no items.
    taken = {kind for kind in NAMES if grammar.validate(cbor2.dumps([0, 0, [[kind]]]))}
    assert {NAMES[kind] for kind in taken} == {"DRAIN", "DRAIN_ACK", "NO_BULK"}
