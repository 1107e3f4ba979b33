"""Security: the settings that a user gives, and what a node makes of them. Opens no socket.

`keys` has the keys and their files, `trust` who may connect, `permissions` who may call what, `permission_file` watches
the file that says so, `audit` knows who was refused.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from .keys import read_private, read_secret
from .permission_file import PermissionFile
from .trust import SharedSecret, TrustedKeys, TrustFolder

__all__ = ["Gate", "PermissionFile", "Security", "chosen", "gate_of", "permissions_of"]

Path = str | os.PathLike[str]
Gate = SharedSecret | TrustedKeys


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """How a node is secured: every link is encrypted, and both ends prove their keys. Never falls back to plain text.

    Either `secret_file`: the file of a secret that all nodes of the mesh share. They are one identity: who has the
        secret may connect, by any name, and say that it is any node.
    Or `key_file` and `trust`: the file of this node's own keys, and the folder with the public keys, `NAME.pub`, of
        those who may connect. Names and ids belong to keys. The folder is watched: revoking needs no restart.
    permissions: a file that says who may call what (docs/security.md has its format). What no entry of it allows is
        denied. It is watched, too. Without it, whoever may connect may call everything.

    Files are read when a node is made. Raises ValueError for a combination that makes no sense, TypeError for what is
    no path.
    """

    secret_file: Path | None = None
    key_file: Path | None = None
    trust: Path | None = None
    permissions: Path | None = None

    def __post_init__(self) -> None:
        for name in ("secret_file", "key_file", "trust", "permissions"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, (str, os.PathLike)):
                raise TypeError(f"Security.{name} is a path, got {value!r:.60}")
            if value is not None and (not os.fspath(value) or "\0" in str(os.fspath(value))):
                raise ValueError(f"Security.{name} is a path, got {os.fspath(value)!r:.60}")
        if (self.secret_file is None) == (self.key_file is None):
            raise ValueError(
                "security takes either the mesh's secret file (secret_file=, --secret-file, ZMESH_SECRET_FILE) "
                "or this node's key file (key_file=, --key-file, ZMESH_KEY_FILE)"
            )
        if self.key_file is not None and self.trust is None:
            raise ValueError(
                "a key file takes the folder with the public keys of who may connect: trust=, --trust, ZMESH_TRUST"
            )
        if self.secret_file is not None and self.trust is not None:
            raise ValueError("a trust folder goes with a key file; who has the mesh secret is trusted by that")


def gate_of(security: Security) -> Gate:
    """Read the files. Raises ValueError that names the one that cannot be used."""
    if not isinstance(security, Security):
        raise TypeError(f"security is a zmesh.Security, got {security!r:.60}")
    if security.secret_file is not None:
        return SharedSecret(read_secret(security.secret_file))
    assert security.key_file is not None
    assert security.trust is not None
    return TrustedKeys(read_private(security.key_file), TrustFolder(security.trust))


def permissions_of(security: Security | None, gate: Gate | None) -> PermissionFile | None:
    """Read the permission file, if there is one. Raises ValueError that names it where it cannot be used."""
    if security is None or security.permissions is None:
        return None
    return PermissionFile(security.permissions, gate.folder if isinstance(gate, TrustedKeys) else None)


def chosen(
    secret_file: Path | None = None,
    key_file: Path | None = None,
    trust: Path | None = None,
    permissions: Path | None = None,
) -> Security | None:
    """What these say, and where they say nothing ZMESH_SECRET_FILE, ZMESH_KEY_FILE, ZMESH_TRUST and ZMESH_PERMISSIONS;
    None where nobody does. Raises as `Security`."""
    if secret_file is None and key_file is None:
        secret_file, key_file = _from_environment("ZMESH_SECRET_FILE"), _from_environment("ZMESH_KEY_FILE")
    if key_file is not None and trust is None:
        trust = _from_environment("ZMESH_TRUST")
    permissions = permissions or _from_environment("ZMESH_PERMISSIONS")
    if secret_file is None and key_file is None and trust is None and permissions is None:
        return None
    return Security(secret_file=secret_file, key_file=key_file, trust=trust, permissions=permissions)


def _from_environment(variable: str) -> str | None:
    return os.environ.get(variable) or None
