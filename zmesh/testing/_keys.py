"""Keys for the nodes of a test."""

from __future__ import annotations

import os
from pathlib import Path

from .._security import Security
from .._security.keys import new_pair, write_private, write_public
from .._security.trust import SUFFIX

__all__ = ["make_keys"]


def make_keys(
    folder: str | os.PathLike[str], *names: str, permissions: str | os.PathLike[str] | None = None
) -> dict[str, Security]:
    """Make a key for each node named, in `folder`, and one trust folder, `folder/trust`, that has them all.

    Returns what each node is given, `mesh.start(..., name="a", security=keys["a"])`; real nodes take the same.
    permissions: as for `zmesh.Security`. A simulated mesh checks keys as a real one does, without cryptography.
    Raises ValueError for a name that no key can belong to, or that has one in this folder.
    """
    base, trust = Path(folder), Path(folder) / "trust"
    trust.mkdir(parents=True, exist_ok=True)
    made: dict[str, Security] = {}
    for name in names:
        pair = new_pair(name)
        write_private(base / f"{name}.key", pair)
        write_public(trust / f"{name}{SUFFIX}", pair.public)
        made[name] = Security(key_file=base / f"{name}.key", trust=trust, permissions=permissions)
    return made
