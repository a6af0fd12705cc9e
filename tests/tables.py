"""What the commands have in common that run tests and print tables of what they see. Imports nothing that tests use."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence

__all__ = ["refuse_workers"]


def refuse_workers(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    """Ends a command that makes a table of what it sees of the tests, if pytest is to run them in other processes."""
    for argument in arguments:
        if argument.startswith(("-n", "--numprocesses", "--dist", "--tx")):
            parser.error(f"{argument}: the tests must run in this process, or the table is empty; leave it out")
