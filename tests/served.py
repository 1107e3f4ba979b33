"""Services for the tests of the command line: `zmesh serve tests.served:Greeter`."""

from __future__ import annotations

import asyncio
import enum
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmesh


class Size(enum.Enum):
    SMALL = "s"
    LARGE = "l"


@dataclass
class Parcel:
    """What is sent."""

    weight: float
    size: Size = Size.SMALL
    label: str | None = None


class Greeter(zmesh.Service, version="1.2"):
    """Says hello.

    In many ways.
    """

    @zmesh.rpc
    async def say_hello(self, name: str, greeting: str = "Hello") -> str:
        """Greet one person."""
        return f"{greeting}, {name}"

    @zmesh.rpc(idempotent=True)
    def shout(self, text: str) -> str:
        return text.upper()

    @zmesh.rpc(idempotent=True)
    async def twice(self, value: Any) -> Any:
        """The value, two times."""
        return [value, value]

    @zmesh.rpc
    async def send(self, parcel: Parcel, note: bytes = b"") -> dict[str, int]:
        return {"weight": int(parcel.weight), "note": len(note)}

    @zmesh.rpc
    async def tell_metadata(self) -> dict[str, str]:
        zmesh.context().reply_metadata["answer"] = "yes"
        return {key: str(value) for key, value in zmesh.context().metadata.items()}

    @zmesh.rpc
    async def find(self, key: str) -> str:
        raise zmesh.NotFound(f"no {key}", details={"key": key})

    @zmesh.rpc
    async def fail(self) -> None:
        raise LookupError("lost")

    @zmesh.rpc
    async def wait_for(self, begun: str, go: str) -> str:
        """Make one file, wait until there is another."""
        Path(begun).touch()  # noqa: ASYNC240
        while not Path(go).exists():  # noqa: ASYNC240
            await asyncio.sleep(0.01)
        return "done"


class Named(zmesh.Service):
    def __init__(self, name: str) -> None:
        self._name = name

    @zmesh.rpc
    async def name(self) -> str:
        return self._name


NAMED = Named("an instance")
NOTHING = 3
