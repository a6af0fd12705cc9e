"""Dead letters: where they go, and what is written with them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from dispytch._core.messages import DeadLetter, Delivery, Headers

__all__ = ["dead_letter_headers", "dead_letter_topic", "error_text", "own_header", "read_dead_letter"]

_PREFIX = "dispytch-dead-"
_MAX_TEXT = 1024


def own_header(name: str) -> bool:
    """Whether a header is one that only Dispytch writes."""
    return name.startswith("dispytch-")


def dead_letter_topic(source: str, is_literal: bool, group: str) -> str:
    """The default destination: a topic's own, or the group's for patterns, whose sources are without number."""
    return f"{source}.{group}.dead" if is_literal else f"{group}.dead"


def error_text(error: BaseException) -> str:
    """The error's type and text, bounded."""
    text = type(error).__qualname__
    try:
        if said := str(error):
            text += f": {said}"
    except Exception:  # an error of the user's, whose text must not cost more than itself
        text += ": its text cannot be told"
    return text.encode("utf-8", "backslashreplace")[:_MAX_TEXT].decode("utf-8", "ignore")


def dead_letter_headers(delivery: Delivery, letter: DeadLetter) -> Headers:
    """The original's headers, less any that pretend to be ours, and what the letter tells."""
    added: Mapping[str, str | None] = {
        "error": letter.error,
        "handler": letter.handler,
        "attempts": str(letter.attempts),
        "source": letter.source,
        "position": letter.position,
        "failed-at": letter.failed_at,
    }
    return (
        *((name, value) for name, value in delivery.headers if not own_header(name)),
        *(
            (_PREFIX + name, value.encode("utf-8", "backslashreplace")[:_MAX_TEXT])
            for name, value in added.items()
            if value is not None
        ),
    )


def read_dead_letter(headers: Headers) -> DeadLetter | None:
    """What a dead letter's headers tell; ``None`` if it is none."""
    found = {
        name.removeprefix(_PREFIX): value.decode("utf-8", "replace")
        for name, value in headers
        if name.startswith(_PREFIX)
    }
    if "error" not in found or "source" not in found:
        return None
    attempts = found.get("attempts", "")
    return DeadLetter(
        error=found["error"],
        handler=found.get("handler"),
        attempts=int(attempts) if attempts.isdecimal() and len(attempts) < 10 else 0,
        source=found["source"],
        position=found.get("position"),
        failed_at=found.get("failed-at", ""),
    )


def utc_text(seconds: float) -> str:
    """A moment as ISO 8601, UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
