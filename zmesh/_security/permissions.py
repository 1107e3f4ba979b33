"""Who may call what: the permission file, and what it says of one call. Pure: text in, decisions out.

docs/security.md has the format. A deny entry that covers a call wins; else an allow entry is needed.
"""

from __future__ import annotations

import contextlib
import re
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from .._core.messages import BUILT_IN
from .keys import check_key, check_node_name

__all__ = ["EVERYBODY", "METHOD", "Decision", "Entry", "Permissions"]

EVERYBODY: Final = "*"  # as a caller: whoever has a trusted key
_TABLES: Final = ("groups", "allow", "deny")
_VERBS: Final[tuple[Literal["deny", "allow"], ...]] = ("deny", "allow")  # in the order in which they are asked
_DONE: Final = {"allow": "allowed", "deny": "denied"}
_GROUP: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}")  # so short that "@" and a group are never a key
METHOD: Final = re.compile(r"\w+(\.\w+)+")
_PATTERN: Final = re.compile(r"\*|[\w*]+(\.[\w*]+)+")


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of [allow] or [deny]. line: where it stands, from 1; 0 where that could not be told."""

    verb: Literal["allow", "deny"]
    pattern: str
    callers: frozenset[str]
    source: str
    line: int
    _covers: re.Pattern[str] = field(repr=False, compare=False)

    def covers(self, path: str) -> bool:
        """Whether it speaks of this method, whoever calls."""
        return self._covers.fullmatch(path) is not None

    def __str__(self) -> str:
        return f'{_place(self.source, self.line)}: [{self.verb}] "{self.pattern}"'


@dataclass(frozen=True, slots=True)
class Decision:
    """entry: what decided; None where no entry did. why: in words, for the caller and for the log."""

    allowed: bool
    entry: Entry | None
    why: str


class Permissions:
    """The content of one file. Immutable."""

    def __init__(self, source: str, groups: Mapping[str, frozenset[str]], entries: Iterable[Entry]) -> None:
        """groups: by name, without the '@'."""
        self.source = source
        self.groups = groups
        self.entries = tuple(entries)

    @classmethod
    def parse(cls, text: str, source: str) -> Permissions:
        """source: the file's name, for messages. Raises ValueError that names it, the entry and what was wrong."""
        try:
            content = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise ValueError(f"{source}: no TOML: {error}") from None
        if not content:
            raise ValueError(f"{source}: is empty; to deny every call, write [allow] and nothing below it")
        for table in content:
            if table not in _TABLES:
                raise ValueError(f"{source}: unknown key {table!r}; there are [groups], [allow] and [deny]")
            if not isinstance(content[table], dict):
                raise ValueError(f"{source}: {table!r} is a table: write [{table}] and its entries below")
        lines = _lines(text)
        groups = {
            name: _members(callers, _At(source, "groups", name, lines))
            for name, callers in content.get("groups", {}).items()
        }
        entries = [
            _entry(verb, pattern, callers, groups, _At(source, verb, pattern, lines))
            for verb in _VERBS
            for pattern, callers in content.get(verb, {}).items()
        ]
        return cls(source, groups, entries)

    def decide(self, key: str | None, names: Collection[str], path: str) -> Decision:
        """Whether a caller may call `path`, which is `Service.method`.

        key: its proven public key, in Z85; None where it has proven none. names: those of that key in the trust folder.
        """
        if key is None:
            return Decision(False, None, "the caller has proven no key")
        callers = self._called(key, names)
        covering = [entry for entry in self.entries if entry.covers(path)]
        for entry in covering:  # those of [deny] come first
            if not callers.isdisjoint(entry.callers):
                return Decision(entry.verb == "allow", entry, f"{_DONE[entry.verb]} by {entry}")
        allowing = [entry for entry in covering if entry.verb == "allow"]
        if path.startswith(f"{BUILT_IN}.") and not any(each.pattern.startswith(f"{BUILT_IN}.") for each in allowing):
            return Decision(True, None, f"built in: everybody who is trusted may, unless an entry for {path} says else")
        if allowing:
            those = "; ".join(map(str, allowing[:3])) + ("; ..." if len(allowing) > 3 else "")
            return Decision(False, None, f"no entry that allows {path} has this caller in its list: {those}")
        return Decision(False, None, f"no entry allows {path} to anybody in {self.source}")

    def names(self) -> set[str]:
        """All that are called by their name in the trust folder: one that is not there is a slip of the pen."""
        everybody = frozenset[str]().union(*(entry.callers for entry in self.entries), *self.groups.values())
        return {caller for caller in everybody if _kind(caller) == "name"}

    def _called(self, key: str, names: Collection[str]) -> set[str]:
        """All that an entry may call this caller."""
        called = {EVERYBODY, key, *names}
        return called | {f"@{group}" for group, members in self.groups.items() if not called.isdisjoint(members)}


@dataclass(frozen=True, slots=True)
class _At:
    """An entry of the file, as its errors name it."""

    source: str
    table: str
    name: str
    lines: Mapping[tuple[str, str], int]

    @property
    def line(self) -> int:
        return self.lines.get((self.table, self.name), 0)

    def error(self, what: str) -> ValueError:
        return ValueError(f'{_place(self.source, self.line)}: [{self.table}] "{self.name}": {what}')


def _place(source: str, line: int) -> str:
    return f"{source}, line {line}" if line else source


def _entry(
    verb: Literal["allow", "deny"], pattern: str, callers: object, groups: Mapping[str, frozenset[str]], at: _At
) -> Entry:
    if isinstance(callers, dict):
        raise at.error(f'write the whole method in quotes, like "{pattern}.{next(iter(callers), "*")}" = [...]')
    if not _PATTERN.fullmatch(pattern):
        raise at.error('what may be called is "SERVICE.METHOD", "SERVICE.*" or "*"')
    members = _members(callers, at, groups)
    return Entry(verb, pattern, members, at.source, at.line, _compile(pattern))


def _members(callers: object, at: _At, groups: Mapping[str, frozenset[str]] | None = None) -> frozenset[str]:
    """Who is listed. groups: those that may be; None where these are the members of one."""
    if groups is None and not _GROUP.fullmatch(at.name):
        raise at.error("a group's name is 1 to 32 letters, digits, '_', '.' or '-'; the '@' is only where it is used")
    if not isinstance(callers, list):
        raise at.error(f"callers are a list of texts, got {callers!r:.60}")
    if not callers:
        raise at.error("the list is empty: leave the entry out, or write who is meant")
    for caller in callers:
        _check_caller(caller, at, groups)
    return frozenset(callers)


def _check_caller(caller: object, at: _At, groups: Mapping[str, frozenset[str]] | None) -> None:
    kind = _kind(caller) if isinstance(caller, str) else None
    if kind is None:
        size = f" has {len(caller)} characters" if isinstance(caller, str) else ""
        raise at.error(
            f"a caller is a name, a key (40 characters of Z85), '@' and a group's name, or '*'; {caller!r:.60}{size}"
        )
    assert isinstance(caller, str)
    if kind == "group" and groups is None:
        raise at.error(f"{caller!r}: groups do not have groups in them; list the callers")
    if kind == "group" and groups is not None and caller[1:] not in groups:
        there = ", ".join(f"@{name}" for name in groups) or "none"
        raise at.error(f"{caller!r} is no group of [groups]; there is {there}")


def _kind(caller: str) -> Literal["everybody", "group", "key", "name"] | None:
    """How a caller is written; None where it is in no way."""
    if caller == EVERYBODY:
        return "everybody"
    if caller.startswith("@") and _GROUP.fullmatch(caller[1:]):
        return "group"
    with contextlib.suppress(ValueError):
        check_key(caller)
        return "key"
    with contextlib.suppress(ValueError):
        check_node_name(caller)
        return "name"
    return None


def _compile(pattern: str) -> re.Pattern[str]:
    """`*` stands for any text: in a method's name, without dots; in a service's, with them; alone for everything."""
    service, _, method = ("*.*" if pattern == "*" else pattern).rpartition(".")
    anything, word = ".*", "[^.]*"
    return re.compile(
        f"{anything.join(map(re.escape, service.split('*')))}\\.{word.join(map(re.escape, method.split('*')))}"
    )


def _lines(text: str) -> dict[tuple[str, str], int]:
    """Where each entry begins, as (table, key) to line: tomllib does not tell. Of a file that parsed."""
    return {(table, key): number for table, key, number in _keys(text)}


def _keys(text: str) -> Iterator[tuple[str, str, int]]:
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if header := re.match(r"\[\s*([\w-]+)\s*\]", stripped):
            table = header[1]
        elif "=" in stripped and not stripped.startswith("#"):
            key = _key_of(stripped.partition("=")[0])
            if key is not None:
                yield table, key, number


def _key_of(text: str) -> str | None:
    """The first part of a TOML key; None for what is none, such as the middle of a list with a key in it."""
    try:
        content: dict[str, Any] = tomllib.loads(f"{text} = 0")
    except tomllib.TOMLDecodeError:
        return None
    return next(iter(content))
