"""URLs of brokers on the command line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import click

from dispytch.cli.errors import USAGE, CommandError, UsageProblem, exit_code
from dispytch.errors import ConfigurationError, DispytchError, MissingExtraError

__all__ = ["advising", "any_url", "broker_url", "declaring"]

_ADVICE = {
    ", or leave out declare=False": "; or check its name",
    "declare it, or allow declare=True": "check its name, or start the dispatcher that makes it",
}
"""Advice of transports for programs, and what can be done on a command line, whose consumers declare nothing."""

_ABSENT = re.compile(r"^(there is no (queue|stream) |the topic \S+ of Kafka at \S+ cannot be used: it does not exist)")
"""How transports say that there is nothing of a name."""


def broker_url(value: str) -> str:
    """A URL as it was given, or ``env:NAME`` for the value of an environment variable.

    Raises:
        click.BadParameter: it is none; the text does not quote it, since it may hold a password.
    """
    if value.startswith("env:"):
        name = value.removeprefix("env:")
        value = os.environ.get(name, "")
        if not value:
            raise click.BadParameter(f"the environment variable {name!r} is not set; set it to the broker's URL")
    if value.startswith("memory://"):
        raise click.BadParameter(
            "memory:// is within one process, and this is another one than that of your program; name a broker on the "
            "network"
        )
    if "://" not in value:
        raise click.BadParameter(
            "a broker's URL begins with its scheme, as in redis://localhost:6379; env:NAME takes one from there"
        )
    return value


def any_url(value: str) -> str:
    """The same; the broker may be in this process, too."""
    return value if value.startswith("memory://") else broker_url(value)


@contextmanager
def declaring() -> Iterator[None]:
    """What a client refuses meanwhile, before it has asked a broker, is wrong on the command line."""
    try:
        yield
    except MissingExtraError:
        raise
    except ConfigurationError as error:
        raise UsageProblem(str(error)) from error


@contextmanager
def advising() -> Iterator[None]:
    """Errors about what is not there say what can be done on a command line, which has named it."""
    try:
        yield
    except DispytchError as error:
        text = str(error)
        for ours, theirs in _ADVICE.items():
            text = text.replace(ours, theirs)
        is_absent = _ABSENT.search(text) is not None
        if text == str(error) and not is_absent:
            raise
        failure = CommandError(text)
        failure.exit_code = USAGE if is_absent else exit_code(error)
        raise failure from error
