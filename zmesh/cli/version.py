"""`zmesh version`: this version and those of what it stands on, for a bug report."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import sys

import click

from .._version import __version__
from ._json import to_json
from ._options import json_option

__all__ = ["command", "versions"]

_LIBRARIES = ("pyzmq", "zeroconf", "cbor2", "msgspec", "click", "rich", "uvloop")


def versions() -> dict[str, str]:
    """Name to version; libraries that are not installed are left out."""
    found = {"zmesh": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if "pyzmq" in found:
        # Asked of the module for its number alone: sockets are the transport's business.
        found["libzmq"] = importlib.import_module("zmq").zmq_version()
    found["system"] = f"{platform.system()} {platform.release()} {platform.machine()}"
    return found


@click.command("version")
@json_option
def command(as_json: bool) -> None:
    """Show the versions of zmesh and of what it stands on."""
    found = versions()
    if as_json:
        click.echo(to_json({**found, "executable": sys.executable}, indent=2))
        return
    for name, version in found.items():
        click.echo(f"{name} {version}")
