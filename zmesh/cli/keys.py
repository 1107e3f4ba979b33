"""`zmesh keys`: the keys of a secured mesh."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import click

from .._security import keys
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


def _trust_option(function: Callable[..., R]) -> Callable[..., R]:
    return click.option(
        "--trust",
        "folder",
        envvar="ZMESH_TRUST",
        show_envvar=True,
        required=True,
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
