"""`zmesh keys`: the keys of a secured mesh."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import click

from .._security import keys
from .._security.permission_file import read_permissions
from .._security.permissions import METHOD
from .._security.trust import SUFFIX, TrustFolder
from ._json import to_json
from ._options import Failed, json_option

__all__ = ["command"]

_PRIVATE: Final = ".key"

R = TypeVar("R")


@click.group("keys")
def command() -> None:
    """Make the keys of a secured mesh, and say whose are trusted.

    The simplest mesh has one secret that all nodes share: new --secret. Else each node has keys of its own, and a
    folder with the public keys of those it trusts.
    """


def _trust_option(function: Callable[..., R], required: bool = True) -> Callable[..., R]:
    return click.option(
        "--trust",
        "folder",
        envvar="ZMESH_TRUST",
        show_envvar=True,
        required=required,
        type=click.Path(path_type=Path),
        metavar="FOLDER",
        help="The folder with the public keys of who is trusted.",
    )(function)


@command.command("new")
@click.argument("name", required=False)
@click.option("--secret", metavar="FILE", type=click.Path(path_type=Path), help="Write a mesh secret there instead.")
@click.option("--folder", type=click.Path(path_type=Path), default=Path(), help="Where to. [default: this one]")
def new(name: str | None, secret: Path | None, folder: Path) -> None:
    """Make the keys of the node NAME: NAME.key, which nobody else may read, and NAME.pub, for others to trust.

    No file is overwritten.
    """
    if (name is None) == (secret is None):
        raise click.UsageError("give the NAME of a node, or --secret FILE for a secret that a whole mesh shares")
    try:
        if secret is not None:
            text = keys.new_secret()
            keys.write_secret(secret, text)
            click.echo(f"{secret}  fingerprint {keys.fingerprint(keys.derive(text).public)}")
            click.echo(f"give a copy to every node: --secret-file {secret} or ZMESH_SECRET_FILE={secret}")
            return
        assert name is not None
        pair = keys.new_pair(name)
        private, public = folder / f"{name}{_PRIVATE}", folder / f"{name}{SUFFIX}"
        if public.exists():
            raise ValueError(f"{public}: there is such a file already, and keys are not overwritten")
        keys.write_private(private, pair)
        keys.write_public(public, pair.public)
    except ValueError as error:
        raise Failed(str(error)) from None
    click.echo(f"{private}  the private key: for node {name!r} alone")
    click.echo(f"{public}  fingerprint {keys.fingerprint(pair.public)}: for everybody, 'zmesh keys trust {public}'")


@command.command("show")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@json_option
def show(files: tuple[Path, ...], as_json: bool) -> None:
    """Show the public key and the fingerprint in files of private keys, public keys or mesh secrets.

    What is private is never shown.
    """
    found = []
    for file in files:
        try:
            found.append({"file": str(file), **_shown(file)})
        except ValueError as error:
            raise Failed(str(error)) from None
    if as_json:
        click.echo(to_json(found, indent=2))
        return
    for each in found:
        name = f" of {each['name']!r}" if each["name"] else ""
        click.echo(f"{each['file']}: {each['kind']}{name}\n  key          {each['key']}")
        click.echo(f"  fingerprint  {each['fingerprint']}")


def _shown(file: Path) -> dict[str, str]:
    if file.suffix == SUFFIX:
        kind, name, key = "public key", file.stem, keys.read_public(file)
    elif file.suffix == _PRIVATE:
        pair = keys.read_private(file)
        kind, name, key = "private key", pair.name, pair.public
    else:
        kind, name, key = "mesh secret", "", keys.read_secret(file).public
    return {"kind": kind, "name": name, "key": key, "fingerprint": keys.fingerprint(key)}


@command.command("trust")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--name", help="Whose key it is. [default: the file's name without .pub]")
@click.option("--replace", is_flag=True, help="Take the place of another key of that name, which is revoked by it.")
@_trust_option
def trust(files: tuple[Path, ...], name: str | None, replace: bool, folder: Path) -> None:
    """Trust public keys: copy FILE, NAME.pub, into the trust folder. Nodes that watch it need no restart."""
    if name is not None and len(files) > 1:
        raise click.UsageError("--name goes with one file")
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        trusted = TrustFolder(folder)
        for file in files:
            whose = keys.check_node_name(name or file.name.removesuffix(SUFFIX))
            key = keys.read_public(file)
            former = trusted.names.get(whose)
            if former is not None and former != key and not replace:
                raise ValueError(
                    f"{whose!r} has another key here, {keys.fingerprint(former)}: --replace revokes that one"
                )
            _put(folder / f"{whose}{SUFFIX}", key)
            click.echo(f"{whose}  {keys.fingerprint(key)}  trusted in {folder}")
    except (ValueError, OSError) as error:
        raise Failed(str(error)) from None


def _put(path: Path, key: str) -> None:
    """Write the file under another name first, so that nobody reads half of it."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    keys.write_public(fresh, key)
    fresh.replace(path)


@command.command("revoke")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@_trust_option
def revoke(names: tuple[str, ...], folder: Path) -> None:
    """Trust NAME no longer: take its key out of the trust folder. Links with it end within a second."""
    for name in names:
        try:
            path = folder / f"{keys.check_node_name(name)}{SUFFIX}"
            path.unlink()
        except ValueError as error:
            raise Failed(str(error)) from None
        except OSError as error:
            raise Failed(f"{name!r} is not trusted in {folder}: {path}: {error.strerror}") from None
        click.echo(f"{name}  revoked in {folder}")


@command.command("list")
@_trust_option
@json_option
def list_(folder: Path, as_json: bool) -> None:
    """List who is trusted. Exits with 1 where a file of the folder is no public key."""
    try:
        trusted = TrustFolder(folder)
    except ValueError as error:
        raise Failed(str(error)) from None
    if as_json:
        entries = [{"name": n, "key": key, "fingerprint": keys.fingerprint(key)} for n, key in trusted.names.items()]
        click.echo(to_json(entries, indent=2))
    else:
        width = max(map(len, trusted.names), default=0)
        for name, key in trusted.names.items():
            click.echo(f"{name:{width}}  {keys.fingerprint(key)}")
    if trusted.problems:
        raise Failed("\n".join(trusted.problems))


@command.command("explain")
@click.argument("node")
@click.argument("method", metavar="SERVICE.METHOD")
@click.option(
    "--permissions",
    "file",
    envvar="ZMESH_PERMISSIONS",
    show_envvar=True,
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The file that says who may call what.",
)
@functools.partial(_trust_option, required=False)
@json_option
def explain(node: str, method: str, file: Path, folder: Path | None, as_json: bool) -> None:
    """Say whether NODE may call a method of a node that has this permission file, and which line says so.

    NODE is a name in the trust folder, or a public key. Exits with 1 where it may not.
    """
    if not METHOD.fullmatch(method):
        raise click.UsageError(f"{method!r} is no method: write SERVICE.METHOD, like Greeter.say_hello")
    try:
        permissions = read_permissions(file)
        trusted = TrustFolder(folder) if folder is not None else None
        key, names = _caller(node, trusted)
    except ValueError as error:
        raise Failed(str(error)) from None
    decision = permissions.decide(key, names, method)
    covering = [entry for entry in permissions.entries if entry.covers(method)]
    if as_json:
        entry = decision.entry
        told = {
            "node": names[0] if names else None,
            "key": key,
            "fingerprint": keys.fingerprint(key),
            "method": method,
            "allowed": decision.allowed,
            "why": decision.why,
            "line": entry.line if entry is not None else None,
            "entry": entry.pattern if entry is not None else None,
        }
        click.echo(to_json(told, indent=2))
    else:
        who = f"{names[0]} (key {keys.fingerprint(key)})" if names else f"key {keys.fingerprint(key)}"
        click.echo(f"{who} {'may' if decision.allowed else 'may not'} call {method}: {decision.why}")
        for entry in covering:
            click.echo(f"  {entry} = {', '.join(sorted(entry.callers))}")
        for group in sorted({caller for entry in covering for caller in entry.callers if caller.startswith("@")}):
            if (members := permissions.groups.get(group[1:])) is not None:
                click.echo(f"  {group} = {', '.join(sorted(members))}")
    if not decision.allowed:
        raise click.exceptions.Exit(1)


def _caller(node: str, trusted: TrustFolder | None) -> tuple[str, list[str]]:
    """The key of NODE, and all names that it has in the trust folder. Raises ValueError where it is neither."""
    if trusted is not None and node in trusted.names:
        key = trusted.names[node]
        return key, [node, *(name for name in trusted.keys[key] if name != node)]
    try:
        keys.check_key(node)
    except ValueError as error:
        if trusted is None:
            raise ValueError(f"whose key is it? To name a node, give --trust FOLDER ({error})") from None
        raise ValueError(f"{node!r} is not in the trust folder {trusted.path}; and {error}") from None
    if trusted is not None and node not in trusted.keys:
        raise ValueError(f"nobody in the trust folder {trusted.path} has this key: it may not even connect")
    return node, [] if trusted is None else trusted.keys[node]
