"""The ladder of security, rung 1: one secret for the whole mesh. Who has it may call; nobody else reads along.

python examples/security_secret.py
"""

import asyncio
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
        return f"gold, for {zmesh.context().peer.name!r}"


def new_secret(file: Path) -> zmesh.Security:
    """In a shell: zmesh keys new --secret FILE. Every node gets a copy of the file."""
    command = [sys.executable, "-m", "zmesh", "keys", "new", "--secret", str(file)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return zmesh.Security(secret_file=file)


async def main(folder: Path) -> None:
    ours, other = new_secret(folder / "mesh.secret"), new_secret(folder / "other.secret")
    async with zmesh.Node(Safe(), name="bank", security=ours):
        async with zmesh.Node(name="teller", security=ours) as teller:
            print(await teller.client(Safe).open())
        # They are one identity: the secret says that somebody belongs to the mesh, and not who it is.
        async with zmesh.Node(name="the bank's owner", security=ours) as teller:
            print(await teller.client(Safe).open())
        for name, security in (("with another secret", other), ("with none", None)):
            async with zmesh.Node(security=security) as stranger:
                try:
                    await stranger.client(Safe).options(timeout=1).open()
                except zmesh.RpcError:
                    print(f"{name}: {stranger.problems[0].partition(': ')[2]}")


if __name__ == "__main__":
    import logging

    logging.getLogger("zmesh.security").setLevel(logging.ERROR)  # which tells of each stranger
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(Path(folder)))
