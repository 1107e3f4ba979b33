"""The command `zmesh`. click and rich are imported when it runs, never by `import zmesh`.

One module a command; `_commands` lists them and loads the one that is asked for.
"""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the command line. Exits with 0 on success, 1 where the call failed, 2 for wrong usage."""
    from ._commands import zmesh

    zmesh(prog_name="zmesh")
