"""What the examples share: a mesh of their own on this machine, and child processes that surely end.

Your programs need none of this: without it, a node finds every node of mesh "default" on the LAN.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent

# What ZMESH_... says is the default of every Node here, and of every process that is started from here. A random mesh
# name and 127.0.0.1 keep two runs, and your LAN, apart.
os.environ.setdefault("ZMESH_MESH", f"example-{secrets.token_hex(4)}")
os.environ.setdefault("ZMESH_LISTEN", "tcp://127.0.0.1:0")
os.environ.setdefault("ZMESH_INTERFACES", "127.0.0.1")


class Processes:
    """Starts programs of this folder. At the end of the `with` block it ends those that still run, each by its pid."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start `python PROGRAM ARGUMENTS...`."""
        process = subprocess.Popen([sys.executable, str(HERE / program), *arguments])
        self._running.append(process)
        return process

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._running:
            process.terminate()  # SIGTERM: a node drains and leaves
        for process in self._running:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
