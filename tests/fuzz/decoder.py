"""Inputs to the decoder, guided by coverage: libFuzzer, by atheris, keeps those that reach what none had reached.

    python -m tests.fuzz.decoder --inputs 1000000
    python -m tests.fuzz.decoder crash-...            run one input again

Half of the mutations are libFuzzer's own, of bytes. The other half know the protocol: they put messages that a peer
might send in place of others, so that what lies behind the decoder's first refusals is reached, too.
"""

from __future__ import annotations

import contextlib
import random
import sys
import tempfile
from pathlib import Path
from typing import Final

import atheris
import cbor2

with atheris.instrument_imports(include=["zmesh._core"]):
    from zmesh._core import messages as m
    from zmesh._core.messages import Hello, ProtocolError
    from zmesh._core.wire import decode, decode_row, externalize, frames_of

from .inputs import Frames, Fuzzer, vectors

LONGEST: Final = 4096  # bytes of an input: the depth and length of what it declares has other tests
SECONDS: Final = 5  # for one input: more is a hang
MEMORY: Final = 1024  # MiB: an input that makes the decoder set more aside has found something

fuzzer: Final = Fuzzer(0, to=0x29A9A9A9)


def flat(frames: Frames) -> bytes:
    """Frames as one input: how many stand behind the first, all of 8 bytes; those; the first."""
    behind = [frame[:8].ljust(8, b"\0") for frame in frames[1:4]]
    return b"".join([bytes([len(behind)]), *behind, frames[0]])


def frames_in(data: bytes) -> Frames:
    """The other way; any bytes are some frames."""
    count = data[0] & 3 if data else 0
    return [data[1 + 8 * count :], *(data[1 + 8 * number : 9 + 8 * number] for number in range(count))]


def one_input(data: bytes) -> None:
    """Decoded or refused, and what was decoded is what it says."""
    try:
        to, clock, messages = decode(frames_in(data))
    except ProtocolError as refusal:
        why = str(refusal)
    else:
        decoded(to, clock, messages)
        return
    assert len(why) <= 250, why


def decoded(to: int, clock: int, messages: list[object]) -> None:
    assert 0 <= to <= m.LIMIT
    assert 0 <= clock <= m.LIMIT
    for message in messages:
        with contextlib.suppress(ProtocolError):
            kind = m.check(message)
            assert isinstance(message, list)
            if kind == m.HELLO and message[1] == m.MAJOR:  # of another version, nothing more is read
                Hello.parse(message)
            elif kind == m.ITEMS:
                assert decode_row(message[4])
            elif kind == m.REPLY:
                with contextlib.suppress(TypeError, ValueError):  # what has no form on the wire, and says so
                    frames_of(externalize(message[2], [], 16))


def mutated(data: bytes, most: int, seed: int) -> bytes:
    """libFuzzer asks for one of at most `most` bytes."""
    rng = fuzzer.rng = random.Random(seed)
    if rng.random() < 0.5:
        return bytes(atheris.Mutate(data, most))
    try:
        to, clock, messages = decode(frames_in(data))
    except ProtocolError:
        return flat(fuzzer.hostile())[:most]
    at = rng.randrange(len(messages) + 1)
    messages[at : at + rng.randrange(2)] = [fuzzer.message()]
    with contextlib.suppress(Exception):  # cbor2 does not write all that it reads
        return flat([cbor2.dumps([to, clock, messages]), *frames_in(data)[1:]])[:most]
    return flat(fuzzer.damaged())[:most]


def main() -> None:
    arguments = sys.argv[1:]
    options = [f"-max_len={LONGEST}", f"-timeout={SECONDS}", f"-rss_limit_mb={MEMORY}", "-print_final_stats=1"]
    with tempfile.TemporaryDirectory() as folder:
        if arguments[:1] == ["--inputs"]:
            for number, frames in enumerate(vectors()):
                (Path(folder) / str(number)).write_bytes(flat(frames))
            options += [f"-runs={int(arguments[1])}", folder]
        else:
            options += arguments
        atheris.Setup([sys.argv[0], *options], one_input, custom_mutator=mutated)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
