"""Who may connect, and as whom: with a mesh secret everybody who has it, with keys those in the trust folder.

Both are a `_transport.Gate`. Neither opens a socket; the node says when to look at the folder again.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from .keys import KeyPair, check_node_name, fingerprint, id_of_key, read_public

__all__ = ["SUFFIX", "SharedSecret", "TrustFolder", "TrustedKeys"]

_log = logging.getLogger("zmesh.security")

SUFFIX: Final = ".pub"  # of the files in a trust folder; before it stands whose key it is

Stamp = tuple[int, int, int]  # of a file: inode, size, time of its last change in ns

OnRefused = Callable[[str, str | None, str], None]
"""(address, key or None, reason) of a handshake that was refused."""


class _Gate:
    """What both have: a pair of keys, and what is told of those who were refused."""

    def __init__(self, pair: KeyPair) -> None:
        self.public = pair.public
        self.secret = pair.secret
        self.name = pair.name  # that the keys belong to; empty where they are shared
        self.refusals = 0
        self.on_refused: OnRefused = log_refused

    @property
    def problems(self) -> list[str]:
        """Of files that should trust somebody, and do not: `path: reason`."""
        return []

    def refused(self, address: str, key: str | None, reason: str) -> None:
        self.refusals += 1
        self.on_refused(address, key, reason)


def log_refused(address: str, key: str | None, reason: str) -> None:
    """A warning, with all that is known."""
    who = f", key {fingerprint(key)}" if key is not None else ""
    _log.warning("refused a handshake from %s%s: %s", address, who, reason)


class SharedSecret(_Gate):
    """Everybody who has the secret is one and the same to this gate: names are not bound, and nobody is revoked."""

    def refusal(self, key: str) -> str | None:
        return None if key == self.public else "its key comes from another mesh secret"

    def identity(self, id: bytes) -> bytes:
        return id

    def claim(self, key: str, name: str, id: bytes) -> str | None:
        return self.refusal(key)

    def key_for(self, name: str | None, print_: str | None) -> str:
        return self.public

    def refresh(self) -> dict[str, str]:
        return {}

    def describe(self) -> str:
        return f"one mesh secret (fingerprint {fingerprint(self.public)})"


class TrustedKeys(_Gate):
    """A key per node: the trust folder says who is who."""

    def __init__(self, pair: KeyPair, folder: TrustFolder) -> None:
        super().__init__(pair)
        self.folder = folder

    @property
    def problems(self) -> list[str]:
        return self.folder.problems

    def refusal(self, key: str) -> str | None:
        """None, or why nobody may connect with this key."""
        return None if key in self.folder.keys else f"its key is not in the trust folder {self.folder.path}"

    def identity(self, id: bytes) -> bytes:
        """The id of a node with this gate; id: a new one."""
        return id_of_key(id, self.public)

    def claim(self, key: str, name: str, id: bytes) -> str | None:
        """None, or why the holder of this key may not go by this name, or be the node with this id."""
        whose = self.folder.names.get(name)
        if whose == key:
            return None if id == id_of_key(id, key) else f"its id, {id.hex()}, is not one of its key"
        if key not in self.folder.keys:
            return self.refusal(key)
        return f"its key belongs to {self.folder.whose(key)!r}, and it says that it is {name!r}"

    def key_for(self, name: str | None, print_: str | None) -> str:
        """The key that somebody who was seen must prove to have. Raises LookupError that says why there is none.

        What discovery says is a hint: it chooses among the keys that are trusted, and adds none.
        """
        if name is None:
            raise LookupError("whose key is it? In a mesh of keys a peer is named NAME@tcp://HOST:PORT")
        key = self.folder.names.get(name)
        if key is None:
            raise LookupError(f"{name!r} is not in the trust folder {self.folder.path} (run 'zmesh keys trust')")
        if print_ is not None and print_ != fingerprint(key):
            raise LookupError(f"it announces key {print_}, and the key of {name!r} is {fingerprint(key)}")
        return key

    def refresh(self) -> dict[str, str]:
        """Look at the folder again: the keys that are not trusted any more, with the names they had."""
        before = {key: self.folder.whose(key) for key in self.folder.keys}
        if not self.folder.read():
            return {}
        return {key: name for key, name in before.items() if key not in self.folder.keys}

    def describe(self) -> str:
        ours = f"key of {self.name!r} (fingerprint {fingerprint(self.public)})"
        return f"{ours}, {len(self.folder.keys)} trusted in {self.folder.path}"


class TrustFolder:
    """A folder of public keys, `NAME.pub`. Raises ValueError where it cannot be used.

    A file that is no public key trusts nobody and is told, in `problems` and once in the log.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.names: dict[str, str] = {}  # name to key
        self.keys: dict[str, list[str]] = {}  # key to its names
        self.problems: list[str] = []
        self._stamps: dict[str, Stamp] = {}
        self._lacking = ""
        try:
            self._look(self._scan())
        except OSError as error:
            raise ValueError(f"{self.path}: cannot read this trust folder: {error.strerror}") from None

    def whose(self, key: str) -> str:
        """The name that a trusted key belongs to."""
        return self.keys[key][0]

    def read(self) -> bool:
        """Look again; whether anything has changed. A folder that cannot be read any more trusts nobody."""
        try:
            stamps = self._scan()
        except (OSError, ValueError) as error:
            if not self._lacking:
                self._lacking = f"{self.path}: {getattr(error, 'strerror', None) or error}"
                _log.error("%s: nobody is trusted until this is mended", self._lacking)
            stamps = {}
        else:
            self._lacking = ""
        if stamps == self._stamps:
            return False
        self._look(stamps)
        return True

    def _scan(self) -> dict[str, Stamp]:
        mode = os.stat(self.path).st_mode
        if os.name == "posix" and mode & stat.S_IWOTH:
            raise ValueError(f"{self.path}: anybody can write to this trust folder: chmod o-w {self.path}")
        found: dict[str, Stamp] = {}
        with os.scandir(self.path) as entries:
            for entry in entries:
                if entry.name.endswith(SUFFIX):
                    found[entry.name] = _stamp(entry)
        return found

    def _look(self, stamps: dict[str, Stamp]) -> None:
        former, self._stamps = self._stamps, stamps
        known, self.names, self.keys, self.problems = self.names, {}, {}, []
        for file, stamp in sorted(stamps.items()):
            name = file.removesuffix(SUFFIX)
            key = known.get(name) if former.get(file) == stamp else None
            try:
                key = self._read(file) if key is None else key
            except ValueError as error:
                self.problems.append(str(error))
                if former.get(file) != stamp:
                    _log.warning("not trusted: %s", error)
                continue
            self.names[name] = key
            self.keys.setdefault(key, []).append(name)

    def _read(self, file: str) -> str:
        path = self.path / file
        try:
            check_node_name(file.removesuffix(SUFFIX))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        return read_public(path)


def _stamp(entry: os.DirEntry[str]) -> Stamp:
    try:
        status = entry.stat()  # of what a link leads to: Kubernetes mounts secrets as links
    except OSError:
        return (0, 0, 0)
    return status.st_ino, status.st_size, status.st_mtime_ns
