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
    delimiter, tokens = pattern.delimiter, pattern.tokens
    dots_separate = delimiter in (None, ".")
    for token, following in zip(tokens, (*tokens[1:], None), strict=True):
        if token.kind == "many" and not (
            token.separator in ("", ".") and (following is None or following.separator == ".") and dots_separate
        ):
            return "#"  # where it takes nothing, words on both sides of it may become one
    # A segment that matches anything is one word, or, where dots do not separate, one or more.
    one = "*" if dots_separate else "*.#"
    words: list[str] = []
    is_wild = False
    text = ""
    for token in tokens:
        if token.separator == "." and dots_separate:
            words.append(one if is_wild else text)
            text, is_wild = "", False
        else:
            text += token.separator
        if token.kind == "literal":
            text += token.text
        elif token.kind == "many":
            text = "#"
        else:
            is_wild = True
    words.append(one if is_wild else text)
    if dots_separate:
        return ".".join(words)
    return _of_text(tokens_text(pattern))


def tokens_text(pattern: Pattern) -> str:
    """The pattern as text, with a NUL for each segment that matches anything."""
    return "".join(token.separator + (token.text if token.kind == "literal" else "\0") for token in pattern.tokens)


def _of_text(text: str) -> str:
    return ".".join("*.#" if "\0" in word else word for word in text.split("."))
