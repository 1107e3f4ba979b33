"""Word count over the nodes: a text is cut into pieces, every piece counted somewhere, the counts added up.

    python examples/word_count.py

Three worker processes count; this one only cuts and adds. The text is examples/data/alice.txt.
"""

import asyncio
import re
import sys
from collections import Counter

from _local import HERE, Processes

import zmesh

WORKERS = 3
LINES_A_PIECE = 20


class WordCount(zmesh.Service):
    """Counts words."""

    @zmesh.rpc(idempotent=True)  # counting twice does no harm: a piece whose node dies is counted by another
    def count(self, piece: str) -> dict[str, int]:
        """How often each word is in a piece of text."""
        return Counter(re.findall(r"[a-z]+", piece.lower()))


async def work(name: str) -> None:
    async with zmesh.Node(WordCount(), name=name) as node:
        await node.serve_forever()


def pieces(text: str) -> list[str]:
    lines = text.splitlines(keepends=True)
    return ["".join(lines[start : start + LINES_A_PIECE]) for start in range(0, len(lines), LINES_A_PIECE)]


async def count(text: str) -> Counter[str]:
    """Count the words of a text by whoever counts words."""
    async with zmesh.Node() as node:
        # A call goes to whoever is known at that moment: to give each worker a share, meet them all first.
        await node.discover(expect=WORKERS, timeout=30)
        counter = node.client(WordCount)
        calls = [counter.count(piece) for piece in pieces(text)]
        total: Counter[str] = Counter()
        for counts in await asyncio.gather(*calls):  # the map: all pieces at once
            total.update(counts)  # the reduce
        shares = Counter(call.node for call in calls)
        print(f"{len(calls)} pieces: " + ", ".join(f"{name} counted {n}" for name, n in sorted(shares.items())))
        return total


async def main() -> None:
    text = (HERE / "data" / "alice.txt").read_text(encoding="ascii").partition("\n***\n")[2]
    total = await count(text)
    print(f"{total.total()} words, {len(total)} different ones; the most frequent:")
    for word, times in total.most_common(8):
        print(f"{times:6} {word}")
    assert total == WordCount.count.handler(None, text), "the mesh counts as one process does"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(work(sys.argv[1]))
    else:
        with Processes() as processes:
            for number in range(1, WORKERS + 1):
                processes.start("word_count.py", f"worker-{number}")
            asyncio.run(main())
