"""A node that serves `Work`. Says READY once it is advertised, drains on SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
from pathlib import Path

import zmesh
from tests.net.programs.work import Blocker, of_version


async def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--name", required=True)
    options.add_argument("--ran", type=Path, required=True, help="a line for every handler that starts, its token")
    options.add_argument("--at-once", type=int, help="handlers that run at a time; the others wait in order")
    options.add_argument("--factor", type=float, default=1.0, help="how much slower than others")
    options.add_argument("--listen", help="an address; without it the node chooses")
    options.add_argument("--version", default="1.0", help="of the service")
    options.add_argument("--blocker", action="store_true", help="serve Blocker, too")
    given = options.parse_args()

    work = of_version(given.version)(given.name, given.ran, given.at_once, given.factor)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, work.release)
    services: list[zmesh.Service] = [work]
    if given.blocker:
        services.append(Blocker())
    async with zmesh.Node(*services, name=given.name, listen=given.listen) as node:
        print(f"READY {' '.join(node.addresses)}", flush=True)
        await node.serve_forever()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    asyncio.run(main())
