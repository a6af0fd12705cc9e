"""The ``dispytch`` command: see docs/guide/command-line.md.

Each command is a module of its own, imported when it is run.
"""

import sys

__all__ = ["main"]


def main() -> None:
    """Runs the command, and exits."""
    try:
        from dispytch.cli.app import command
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("click", "rich"):
            raise
        print('Error: the command line is an extra; install it with: pip install "dispytch[cli]"', file=sys.stderr)
        sys.exit(2)  # as for everything that cannot be imported
    command(prog_name="dispytch")
