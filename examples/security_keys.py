"""The ladder of security, rung 2: a key for each node. Names are true, and one key is revoked without a restart.

python examples/security_keys.py
"""

import asyncio
import logging
import subprocess
import sys
import tempfile
from pathlib import Path

import _local  # noqa: F401  (a mesh of its own on this machine)

import zmesh


class Safe(zmesh.Service):
    """Holds something."""

    @zmesh.rpc
    async def open(self) -> str:
        """What is inside."""
        caller = zmesh.context().peer
        return f"gold, for {caller.name!r}, who proved it"

    @zmesh.rpc
    async def guard(self) -> None:
        """Stand there."""
        await asyncio.sleep(60)


def keys(*arguments: object) -> None:
    """In a shell: zmesh keys ..."""
    command = [sys.executable, "-m", "zmesh", "keys", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


async def main(folder: Path) -> None:
    trust = folder / "trust"  # each node may have a folder of its own; these share one
    for name in ("bank", "teller"):
        keys("new", name, "--folder", folder)
        keys("trust", folder / f"{name}.pub", "--trust", trust)
    bank, teller = (zmesh.Security(key_file=folder / f"{name}.key", trust=trust) for name in ("bank", "teller"))

    async with zmesh.Node(Safe(), security=bank), zmesh.Node(security=teller) as node:
        print(await node.client(Safe).open())
        try:
            zmesh.Node(name="the bank's owner", security=teller)
        except ValueError as error:
            print(error)

        guarding = asyncio.ensure_future(error_of(node.client(Safe).guard()))
        await asyncio.sleep(0.1)
        await asyncio.to_thread(keys, "revoke", "teller", "--trust", trust)
        print("revoked:", await guarding)
        print("afterwards:", await error_of(node.client(Safe).options(timeout=1).open()))
        print(node.problems[-1].partition(": ")[2])


async def error_of(call: zmesh.Call[object]) -> str:
    try:
        await call
    except zmesh.RpcError as error:
        return type(error).__name__
    return "no error"


if __name__ == "__main__":
    logging.getLogger("zmesh").setLevel(logging.CRITICAL)  # which tells of the key, and of each attempt with it
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(Path(folder)))
