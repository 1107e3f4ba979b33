"""One side of one system, as a process: a server, or a client that obeys its input.

Both say READY, a server with its address. The client reads a JSON order a line and answers each with a JSON line. Both
end with whoever started them.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import importlib.util
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Coroutine
from typing import Any

from .clients import Awaiting, Blocking
from .systems import SYSTEMS

__all__ = ["answer", "free_port", "order", "ready", "run"]


def ready(address: str = "") -> None:
    print(f"READY {address}", flush=True)


def order() -> dict[str, Any]:
    """What the parent wants next. Ends the process where there is no parent any more."""
    line = sys.stdin.readline()
    if not line:
        os._exit(0)
    told: dict[str, Any] = json.loads(line)
    return told


def answer(found: dict[str, Any]) -> None:
    print(json.dumps(found), flush=True)


def free_port() -> int:
    """A port that was free a moment ago, for servers that cannot tell which one they took."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def run(main: Coroutine[Any, Any, None], loop: str = "asyncio") -> None:
    """Run it on asyncio's own loop, or on uvloop."""
    factory = None
    if loop != "asyncio":
        factory = importlib.import_module("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main)


def end_with_parent() -> None:
    """End this process and those that it started when the parent's end of standard input closes."""

    def watch() -> None:
        sys.stdin.read()
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def obey_blocking(client: Blocking, addresses: list[str]) -> None:
    client.open(addresses)
    ready()
    while True:
        told = order()
        answer(getattr(client, told.pop("do"))(**told))


async def obey(client: Awaiting, addresses: list[str]) -> None:
    await client.open(addresses)
    ready()
    loop = asyncio.get_running_loop()
    # A thread reads, so that connections live on while another system is measured.
    while True:
        told = await loop.run_in_executor(None, order)
        answer(await getattr(client, told.pop("do"))(**told))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("system", choices=SYSTEMS)
    options.add_argument("side", choices=["serve", "ask"])
    options.add_argument("--address", nargs="*", default=[], help="of the servers; to a server: of the first one")
    given = options.parse_args()
    system = SYSTEMS[given.system]
    module = importlib.import_module(f"{__package__}.systems.{system.module}")
    if given.side == "serve":
        end_with_parent()
        module.serve(system.variant, given.address)
        return
    client = module.Client(system.variant)
    if isinstance(client, Blocking):
        obey_blocking(client, given.address)
    else:
        run(obey(client, given.address), getattr(client, "loop", "asyncio"))


if __name__ == "__main__":
    main()
