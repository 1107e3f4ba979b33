"""The permission file of a running node: read again when it changes, asked for every call."""

from __future__ import annotations

import logging
import os
from typing import Final

from .keys import read_text
from .permissions import Decision, Permissions
from .trust import TrustFolder

__all__ = ["PermissionFile", "read_permissions"]

_log = logging.getLogger("zmesh.security")

_FILE_LIMIT: Final = 1024 * 1024  # bytes: thousands of entries

_Stamp = tuple[int, int, int]  # of a file: inode, size, time of its last change in ns


def read_permissions(path: str | os.PathLike[str]) -> Permissions:
    """Raises ValueError, which names the file, where it cannot be used."""
    return Permissions.parse(read_text(path, "permission file", private=False, limit=_FILE_LIMIT), os.fspath(path))


class PermissionFile:
    """See the module. Raises ValueError where the file cannot be used.

    allowed: calls that were asked about and may be made, as (key, path): what makes asking again cheap.
    """

    def __init__(self, path: str | os.PathLike[str], folder: TrustFolder | None) -> None:
        """folder: who is who; None where all have one key."""
        self.path = path
        self.allowed: set[tuple[str | None, str]] = set()
        self._denied: dict[tuple[str | None, str], Decision] = {}  # a flood of calls is not decided each time
        self._folder = folder
        self._names = None if folder is None else folder.names
        self._read = self._seen = _stamp(path)
        self._use(read_permissions(path))

    def decide(self, key: str | None, path: str) -> Decision:
        """Whether the holder of a key may call a method. path: of one that is served, so that what is remembered is
        bounded."""
        denied = self._denied.get((key, path))
        if denied is not None:
            return denied
        names = () if self._folder is None or key is None else self._folder.keys.get(key, ())
        decision = self.permissions.decide(key, names, path)
        if decision.allowed:
            self.allowed.add((key, path))
        else:
            self._denied[key, path] = decision
        return decision

    def told(self, decision: Decision) -> str:
        """Why, for the caller: whom it does not concern in which folder the file is."""
        return decision.why.replace(self.permissions.source, os.path.basename(self.permissions.source))

    def refresh(self) -> None:
        """Look at the file again. A new one holds for calls that come from then on; one that cannot be used is told
        once, and the old rules stay."""
        if self._folder is not None and self._folder.names is not self._names:
            self._names = self._folder.names
            self._forget()
        stamp, before = _stamp(self.path), self._seen
        self._seen = stamp
        if stamp == self._read or stamp != before:  # one that is being written is read when it has come to rest
            return
        self._read = stamp
        try:
            permissions = read_permissions(self.path)
        except ValueError as error:
            _log.error("%s. The permissions that were read before stay in force until this is mended", error)
            return
        self._use(permissions)
        _log.info("%s was read again: %d entries", self.path, len(permissions.entries))

    def _use(self, permissions: Permissions) -> None:
        self.permissions = permissions
        self._forget()
        if self._folder is not None:
            unknown = sorted(permissions.names() - self._folder.names.keys())
            if unknown:
                names = ", ".join(unknown[:10])
                _log.warning("%s names callers that %s does not have: %s", self.path, self._folder.path, names)

    def _forget(self) -> None:
        self.allowed.clear()
        self._denied.clear()


def _stamp(path: str | os.PathLike[str]) -> _Stamp | None:
    """None where there is no such file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
