"""Seeded runs of a mesh of ten nodes under random faults, and what must be true of each of them.

    python -m tests.soak --seeds 0:2000        many seeds, on all cores
    python -m tests.soak --seed 17 --trace     one seed, and what happened in it

Whatever happens: a call ends exactly once and by its deadline; a call that is not idempotent runs at most once; what is
said not to have run did not; an answer is the answer to this call; once all is well again, everybody reaches everybody.
Of a stream, whatever its kind: items come in order, none twice, none is lost before the end or the error that ends it;
one that has begun has no deadline, unless `timeout` gave it one; every generator is closed. At the end, with streams
open that have nothing under way, the two sides of each have counted the same; without them, nothing is left of any.

Each seed belongs to one of three profiles, which promise more the less they break:

- chaos: everything at once, to everybody.
- single: one fault at a time. The idempotent calls of all who are not hit are answered, soon; their streams end as they
  should, or with the node that was hit.
- drains: servers restart as they should, one after the other. Every call is answered, every stream is whole, and each
  runs exactly once.

    python -m tests.soak --mix policies --seeds 0:10000

is the other mix: small meshes under every balancing policy, see `policies`.
"""

from collections.abc import Callable
from typing import Final

from . import policies
from .run import PROFILES, Result, hash_elsewhere, run, run_many

__all__ = ["MIXES", "PROFILES", "Result", "hash_elsewhere", "run", "run_many"]

MIXES: Final[dict[str, Callable[..., Result]]] = {"streams": run, "policies": policies.run}
