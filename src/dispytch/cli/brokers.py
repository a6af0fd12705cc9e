"""URLs of brokers on the command line."""

from __future__ import annotations

import os

import click

__all__ = ["broker_url"]


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
