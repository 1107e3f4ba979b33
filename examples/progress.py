"""A job that reports its progress to the program which started it, over the same link.

python examples/progress.py
"""

import asyncio

import _local  # noqa: F401  (a mesh of its own)

import zmesh


class Progress(zmesh.Service):
    """Served by who starts a job."""

    @zmesh.rpc
    async def report(self, done: int, of: int) -> bool:
        """Whether to go on."""
        print(f"{done} of {of}")
        return done < 4


class Renderer(zmesh.Service):
    @zmesh.rpc
    async def render(self, frames: int) -> str:
        progress = zmesh.context().peer.client(Progress)
        for frame in range(1, frames + 1):
            await asyncio.sleep(0.01)  # the work
            if not await progress.report(frame, frames):
                return f"stopped after frame {frame}"
        return "all frames"


async def main() -> None:
    async with zmesh.Node(Renderer(), name="worker"), zmesh.Node(Progress(), name="desk") as desk:
        print(await desk.client(Renderer).render(10))


if __name__ == "__main__":
    asyncio.run(main())
