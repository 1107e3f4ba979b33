"""A service to give to `zmesh serve`."""

from __future__ import annotations

import zmesh


class Greeter(zmesh.Service):
    """Says hello."""

    @zmesh.rpc
    async def say_hello(self, name: str) -> str:
        """Greet one person."""
        return f"Hello, {name}"
