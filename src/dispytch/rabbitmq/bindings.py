"""From patterns to binding keys of topic exchanges, whose words are separated by dots only."""

from __future__ import annotations

from dispytch._core.patterns import Pattern
from dispytch.errors import ConfigurationError

__all__ = ["LONGEST_NAME", "binding_key", "check_name"]

LONGEST_NAME = 255
"""Bytes of UTF-8 that names and keys may have: they are short strings of AMQP."""


def check_name(name: str, what: str) -> None:
    """Raises ConfigurationError if the broker cannot have such a name."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise ConfigurationError(f"the {what} holds half a surrogate pair; give proper text") from None
    if size > LONGEST_NAME:
        raise ConfigurationError(
            f"the {what} {name[:50]!r}... has {size} bytes, and RabbitMQ takes {LONGEST_NAME} at most; shorten it"
        )


def binding_key(pattern: Pattern) -> str:
    """The narrowest binding key that lets through every routing key that the pattern matches."""
    if pattern.is_literal:
        return pattern.source
    dots_separate = pattern.delimiter in (None, ".")
    text = ""
    for token, following in zip(pattern.tokens, (*pattern.tokens[1:], None), strict=True):
        text += token.separator
        if token.kind == "literal":
            text += token.text
        elif token.kind == "one":
            text += "\0"
        elif dots_separate and token.separator in ("", ".") and (following is None or following.separator == "."):
            text += "#"
        else:
            return "#"  # where it takes nothing, words on both sides of it may become one
    # A segment that matches anything is one word, or part of one; where dots do not separate, it may be several.
    wild = "*" if dots_separate else "*.#"
    return ".".join(wild if "\0" in word else word for word in text.split("."))
