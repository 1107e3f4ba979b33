"""A mesh in one process, in virtual time: for tests of services, and of zmesh itself.

    import zmesh.testing

    async def main(mesh: zmesh.testing.Mesh) -> None:
        server = await mesh.start(Greeter(), name="greeter-1")
        client = await mesh.start()
        print(await client.node.client(Greeter).say_hello("World"))
        server.crash()

    zmesh.testing.run(main, seed=7)

The nodes are the real ones. Only what they stand on is swapped: the network, the clock, threads, discovery and
randomness. A seed decides all that is random, so that a run which failed fails again. An hour passes as fast as what
happens in it; what takes time for real (a computation, a blocking call) takes none here, unless `takes` says so.

A test may `pause`, `stall`, `crash`, `restart` and `stop` hosts and `partition`, `isolate`, `reset`, slow down and
`heal` the paths between them.
"""

from __future__ import annotations

from ._executor import takes
from ._keys import make_keys
from ._loop import Crashed, OutOfTime, SimulationError, Stuck
from ._mesh import Host, Mesh, run, simulated
from ._network import Link

__all__ = [
    "Crashed",
    "Host",
    "Link",
    "Mesh",
    "OutOfTime",
    "SimulationError",
    "Stuck",
    "make_keys",
    "run",
    "simulated",
    "takes",
]
