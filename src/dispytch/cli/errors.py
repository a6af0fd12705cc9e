"""What commands fail with, and how it is said in one line."""

from __future__ import annotations

import re
import traceback
from collections.abc import Sequence
from types import TracebackType

from dispytch.errors import BrokerUnreachableError, DispytchError, EmitManyError, MissingExtraError

__all__ = [
    "CHECK_FAILED",
    "CONFIGURATION",
    "FAILURE",
    "INTERRUPTED",
    "UNREACHABLE",
    "USAGE",
    "CheckFailed",
    "CommandError",
    "UsageProblem",
    "exit_code",
    "one_line",
    "sole",
    "without_passwords",
]

FAILURE, USAGE, UNREACHABLE, CHECK_FAILED, INTERRUPTED = 1, 2, 3, 4, 130
CONFIGURATION = 78
"""What a worker process exits with if starting it again would not help (EX_CONFIG); users see `FAILURE`."""


_USER_INFO = re.compile(r"://\S*@")


class CommandError(Exception):
    """The command failed; the text says what to do next."""

    exit_code = FAILURE


class UsageProblem(CommandError):
    """The command line is wrong, or what it names cannot be imported or is not there."""

    exit_code = USAGE


class CheckFailed(CommandError):
    """The dispatcher was looked at, and something is wrong with it."""

    exit_code = CHECK_FAILED


def exit_code(error: BaseException) -> int:
    """What the command exits with because of an error; for a group, if all in it agree."""
    parts: Sequence[object] = ()
    if isinstance(error, BaseExceptionGroup):
        parts = error.exceptions
    elif isinstance(error, EmitManyError):
        parts = error.results
    codes = {exit_code(item) for item in parts if isinstance(item, BaseException)}
    if codes:
        return codes.pop() if len(codes) == 1 else FAILURE
    if isinstance(error, CommandError):
        return error.exit_code
    if isinstance(error, BrokerUnreachableError):
        return UNREACHABLE
    return USAGE if isinstance(error, MissingExtraError) else FAILURE


def sole(error: BaseException) -> BaseException:
    """The one error in a group of one, however deep."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def one_line(error: BaseException) -> str:
    """What an error says, without line breaks; the type is left out where the text is written for readers."""
    error = sole(error)
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(dict.fromkeys(one_line(item) for item in error.exceptions))
    text = " ".join(str(error).split())
    text = without_passwords(text)
    if isinstance(error, CommandError | DispytchError) and text:
        return text
    where = _place(error.__traceback__)
    return f"{type(error).__name__}{': ' if text else ''}{text}{where}; --debug shows the traceback"


def without_passwords(text: str) -> str:
    """A text without the users and passwords of URLs in it."""
    return _USER_INFO.sub("://***@", text)


def _place(found: TracebackType | None) -> str:
    frames = traceback.extract_tb(found)
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
