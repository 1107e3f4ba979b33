"""A node that wraps a blocking library: SQLite, through Python's own sqlite3.

    python examples/blocking_library.py

Shows: plain `def` handlers, which run in worker threads and never stop the loop; `threads`, how many of them run at
once; a service as an async context manager, which opens its database before it is advertised and closes it after the
last call.
"""

import asyncio
import sqlite3
import time
from typing import Self

import _local  # noqa: F401  (a mesh of its own on this machine)

import zmesh


class Library(zmesh.Service):
    """Books, kept in SQLite."""

    async def __aenter__(self) -> Self:
        # The worker thread is another one than this; there is only one (threads=1 below), which is what sqlite3 asks
        # for when a connection is shared.
        self.database = sqlite3.connect(":memory:", check_same_thread=False)
        self.database.execute("CREATE TABLE book (title TEXT PRIMARY KEY, year INTEGER)")
        print("database opened")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.database.close()
        print("database closed")

    @zmesh.rpc
    def add(self, title: str, year: int) -> None:
        """Add a book. ALREADY_EXISTS where the library has it."""
        try:
            with self.database:
                self.database.execute("INSERT INTO book VALUES (?, ?)", (title, year))
        except sqlite3.IntegrityError as error:
            raise zmesh.AlreadyExists(f"{title!r} is here already", details={"title": title}) from error

    @zmesh.rpc(idempotent=True)
    def before(self, year: int) -> list[str]:
        """Titles of the books that are older than a year."""
        rows = self.database.execute("SELECT title FROM book WHERE year < ? ORDER BY year", (year,))
        return [title for (title,) in rows]

    @zmesh.rpc(idempotent=True)
    def count_to(self, number: int) -> int:
        """A query that takes long."""
        query = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) SELECT max(i) FROM n"
        return int(self.database.execute(query, (number,)).fetchone()[0])

    @zmesh.rpc(idempotent=True)
    async def ping(self) -> str:
        """Answers at once, from the loop."""
        return "pong"


async def main() -> None:
    async with zmesh.Node() as client, zmesh.Node(Library(), name="library", threads=1):
        library = client.client(Library)
        await library.add("Alice's Adventures in Wonderland", 1865)
        await library.add("Silas Marner", 1861)
        await library.add("Middlemarch", 1871)
        print("before 1870:", ", ".join(await library.before(1870)))
        try:
            await library.add("Middlemarch", 1872)
        except zmesh.AlreadyExists as error:
            print(f"{error.code}: {error.message}")

        slow = asyncio.create_task(library.count_to(3_000_000))
        pings, longest = 0, 0.0
        while not slow.done():
            began = time.perf_counter()
            await library.ping()
            pings, longest = pings + 1, max(longest, time.perf_counter() - began)
            await asyncio.sleep(0.01)
        print(f"counted to {await slow}; meanwhile {pings} pings were answered, the slowest in {longest * 1000:.0f} ms")


if __name__ == "__main__":
    asyncio.run(main())
