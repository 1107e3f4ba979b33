"""The group of all commands. Each is loaded when it is asked for, so that `zmesh call` does not wait for the demo."""

from __future__ import annotations

import importlib
from typing import Final

import click
from click.shell_completion import get_completion_class

from .._version import __version__

__all__ = ["zmesh"]

_COMMANDS: Final = ("serve", "ls", "describe", "call", "why", "keys", "bench", "doctor", "demo", "version")


class _Commands(click.Group):
    """The command NAME is `command` in the module `zmesh.cli.NAME`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = importlib.import_module(f"{__package__}.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command


def _print_completion(context: click.Context, parameter: click.Parameter, shell: str | None) -> None:
    if shell is None or context.resilient_parsing:
        return
    completion = get_completion_class(shell)
    assert completion is not None
    click.echo(completion(zmesh, {}, "zmesh", "_ZMESH_COMPLETE").source())
    context.exit()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="%(prog)s %(version)s")
@click.option(
    "--completion",
    type=click.Choice(["bash", "zsh", "fish"]),
    expose_value=False,
    is_eager=True,
    callback=_print_completion,
    help='Print the script for completion in this shell: eval "$(zmesh --completion bash)".',
)
def zmesh() -> None:
    """Brokerless RPC: nodes find each other on the LAN, call, balance load and fail over.

    Exit status: 0 on success, 1 where a call or a check failed, 2 for wrong usage.
    """
