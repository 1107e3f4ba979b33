"""Keys as text and as files: a node's CURVE key pair, its fingerprint, and the pair that a mesh secret gives.

A key is 32 bytes, written as 40 characters of Z85 (ZeroMQ RFC 32), as everything of ZeroMQ writes it. Functions here
raise ValueError for what is no key, no name or no usable file; the message names it.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

__all__ = [
    "KeyPair",
    "check_key",
    "check_node_name",
    "derive",
    "fingerprint",
    "id_of_key",
    "new_pair",
    "new_secret",
    "read_private",
    "read_public",
    "read_secret",
    "read_text",
    "write_private",
    "write_public",
    "write_secret",
]

_ALPHABET: Final = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_VALUES: Final = {letter: value for value, letter in enumerate(_ALPHABET)}
_KEY_LENGTH: Final = 40  # characters: 32 bytes, five for each four
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")  # it is a file's name, too, on any system
_FILE_LIMIT: Final = 4096  # bytes: a key file has some 200, and something else may stand at its path
_SECRET_LENGTH: Final = 32  # characters at the least: a guess can be tried against a recorded handshake, offline
_SCRYPT_SALT: Final = b"zmesh 1 mesh secret"
_SCRYPT_COST: Final = {"n": 1 << 14, "r": 8, "p": 1}  # RFC 7914's own for interactive use: 16 MiB, some 40 ms


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A node's keys. name: whose they are; empty where many nodes share them."""

    name: str
    public: str
    secret: str = field(repr=False)


def check_key(text: object, what: str = "key") -> str:
    """The key itself, where it is 40 characters of Z85 that make 32 bytes."""
    if not isinstance(text, str) or len(text) != _KEY_LENGTH:
        size = f"{len(text)} characters" if isinstance(text, str) else type(text).__name__
        raise ValueError(f"{what}: a key is {_KEY_LENGTH} characters of Z85, got {size}")
    _decode(text, what)
    return text


def _decode(text: str, what: str) -> bytes:
    """The bytes of Z85 (ZeroMQ RFC 32)."""
    raw = bytearray()
    for at in range(0, len(text), 5):
        value = 0
        for letter in text[at : at + 5]:
            if letter not in _VALUES:
                raise ValueError(f"{what}: {letter!r} is no character of Z85")
            value = value * 85 + _VALUES[letter]
        if value >> 32:
            raise ValueError(f"{what}: {text[at : at + 5]!r} is no Z85: it stands for more than four bytes")
        raw += value.to_bytes(4, "big")
    return bytes(raw)


def encode(raw: bytes) -> str:
    """Bytes, a multiple of four, as Z85."""
    letters: list[str] = []
    for at in range(0, len(raw), 4):
        value = int.from_bytes(raw[at : at + 4], "big")
        letters += [_ALPHABET[value // 85**place % 85] for place in (4, 3, 2, 1, 0)]
    return "".join(letters)


def id_of_key(id: bytes, key: str) -> bytes:
    """A node's id that goes with its public key: the first half of `id`, and a half that follows from both. Nobody with
    another key can say that it is theirs."""
    half = len(id) // 2
    return id[:half] + hashlib.sha256(_decode(key, "key") + id[:half]).digest()[: len(id) - half]


def fingerprint(key: str) -> str:
    """What people compare and mDNS carries: the first half of the SHA-256 of a public key, 32 hexadecimal digits."""
    return hashlib.sha256(_decode(key, "key")).hexdigest()[:32]


def check_node_name(name: str) -> str:
    """The name itself, where a key may belong to it."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"a name that a key belongs to is 1 to 63 letters, digits, '_', '.' or '-', and begins with one of the "
            f"first two, got {name!r:.80}"
        )
    return name


def new_pair(name: str) -> KeyPair:
    """A fresh key pair for the node of that name."""
    return _pair(check_node_name(name), secrets.token_bytes(32))


def _pair(name: str, raw: bytes) -> KeyPair:
    from .._transport.curve import public_of  # loads zmq

    secret = encode(raw)
    return KeyPair(name, public_of(secret), secret)


def new_secret() -> str:
    """A fresh mesh secret: 256 random bits as text."""
    return secrets.token_urlsafe(32)


def derive(secret: str) -> KeyPair:
    """The one key pair of all who know a mesh secret: scrypt (RFC 7914) makes its 32 bytes. See docs/protocol.md."""
    text = secret.strip()
    if len(text) < _SECRET_LENGTH:
        raise ValueError(
            f"a mesh secret has at least {_SECRET_LENGTH} characters, got {len(text)}: "
            "make one with 'zmesh keys new --secret FILE'"
        )
    return _pair("", hashlib.scrypt(text.encode(), salt=_SCRYPT_SALT, dklen=32, **_SCRYPT_COST))


# -- files


def read_text(path: str | os.PathLike[str], what: str, *, private: bool, limit: int = _FILE_LIMIT) -> str:
    """A file that others may not change, nor, where it is private, read. what: for messages. limit: in bytes."""
    try:
        with open(path, "rb", opener=_open) as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise ValueError(f"{path}: this is no file")
            if private and os.name == "posix" and mode & 0o077:
                raise ValueError(f"{path}: others can read this {what} (mode {mode & 0o777:04o}): chmod 600 {path}")
            if os.name == "posix" and mode & stat.S_IWOTH:
                raise ValueError(f"{path}: anybody can write to this {what}: chmod o-w {path}")
            raw = file.read(limit + 1)
    except OSError as error:
        raise ValueError(f"{path}: cannot read this {what}: {error.strerror}") from None
    if len(raw) > limit:
        raise ValueError(f"{path}: this is no {what}: it is larger than {limit} bytes")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{path}: this is no {what}: it is not text") from None


def _open(path: str, flags: int) -> int:
    """Without waiting for who would write to it, where it is a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _fields(path: str | os.PathLike[str], what: str, *, private: bool) -> dict[str, object]:
    try:
        return tomllib.loads(read_text(path, what, private=private))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: this is no {what}: {error}") from None


def read_private(path: str | os.PathLike[str]) -> KeyPair:
    """The pair in a key file, which only its owner may be able to read."""
    fields = _fields(path, "key file", private=True)
    try:
        name = check_node_name(fields.get("name"))  # type: ignore[arg-type]
        secret = check_key(fields.get("secret"), "secret")
        public = check_key(fields.get("public"), "public")
    except ValueError as error:
        raise ValueError(f"{path}: this is no key file: {error}") from None
    pair = _pair(name, _decode(secret, "secret"))
    if pair.public != public:
        raise ValueError(f"{path}: its public key does not belong to its secret key")
    return pair


def read_public(path: str | os.PathLike[str]) -> str:
    """The key in a file of a public key."""
    try:
        fields = _fields(path, "public key", private=False)
        if "secret" in fields:
            raise ValueError(f"{path}: this holds a private key, which belongs to its node alone: use its .pub file")
        return check_key(fields.get("public"), f"{path}: public")
    except ValueError as error:
        raise ValueError(str(error)) from None


def read_secret(path: str | os.PathLike[str]) -> KeyPair:
    """The pair that the mesh secret in a file gives."""
    text = read_text(path, "secret file", private=True)
    try:
        return derive(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _write(path: Path, text: str, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise ValueError(f"{path}: there is such a file already, and keys are not overwritten") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot write: {error.strerror}") from None
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


def write_private(path: Path, pair: KeyPair) -> None:
    """Write a key file that only its owner can read."""
    who = f"# The private key of a zmesh node. Whoever has it is {pair.name!r} to the mesh: keep it to its node.\n"
    _write(path, f'{who}name = "{pair.name}"\npublic = "{pair.public}"\nsecret = "{pair.secret}"\n', 0o600)


def write_public(path: Path, key: str) -> None:
    """Write a file of a public key."""
    about = f"# The public key of a zmesh node, to be trusted by others. Fingerprint: {fingerprint(key)}\n"
    _write(path, f'{about}public = "{check_key(key)}"\n', 0o644)


def write_secret(path: Path, secret: str) -> None:
    """Write a secret file that only its owner can read."""
    _write(path, f"{secret}\n", 0o600)
