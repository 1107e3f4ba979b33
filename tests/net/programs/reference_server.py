"""What `server` does, on a bare ROUTER: no mesh, no names, no liveness. The yardstick for balancing."""

from __future__ import annotations

import argparse
import asyncio

import cbor2
import zmq
import zmq.asyncio


async def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--bind", required=True)
    options.add_argument("--name", required=True)
    options.add_argument("--at-once", type=int, required=True)
    options.add_argument("--factor", type=float, default=1.0)
    given = options.parse_args()

    router = zmq.asyncio.Context.instance().socket(zmq.ROUTER)
    router.bind(given.bind)
    print("READY", flush=True)
    turn = asyncio.Semaphore(given.at_once)

    async def serve(caller: bytes, request: bytes) -> None:
        number, ms = cbor2.loads(request)
        async with turn:
            await asyncio.sleep(given.factor * ms / 1000)
        await router.send_multipart([caller, cbor2.dumps([number, given.name])])

    running = set()
    while True:
        task = asyncio.create_task(serve(*await router.recv_multipart()))
        running.add(task)
        task.add_done_callback(running.discard)


if __name__ == "__main__":
    asyncio.run(main())
