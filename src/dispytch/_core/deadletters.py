"""Dead letters: where they go, and what is written with them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from dispytch._core.messages import DeadLetter, Delivery, Headers

__all__ = [
    "ALL_OF_GROUP",
    "DEAD",
    "MARK",
    "REPLAY_FOR",
    "REPLAY_MARK",
    "SCOPE",
    "dead_letter_headers",
    "dead_letter_topic",
    "error_text",
    "own_header",
    "read_dead_letter",
]

REPLAY_FOR = "dispytch-replay-for"
"""The header of an event that was replayed for one handler: its consumer group, a slash, and the handler's key."""
ALL_OF_GROUP = "*"
"""In place of the key: all handlers of the group."""
REPLAY_MARK = "dispytch-replay-mark"
"""The header of every event that was replayed: the pass that did it."""
MARK = "dispytch-dead-mark"
"""The header of a dead letter that was written during a pass over its topic, which must not take it for an old one."""
DEAD = "dispytch-dead-error"
"""The header that every dead letter has."""
SCOPE = "dispytch-dead-scope"
"""The header by which a transport tells what beside the source is needed to publish there; see `DeadLetter.scope`."""

_PREFIX = "dispytch-dead-"
_MAX_TEXT = 1024
_MAX_MARK = 64


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
        "group": letter.group,
        "scope": letter.scope,
    }
    replayed = [(MARK, value[:_MAX_MARK]) for name, value in delivery.headers if name == REPLAY_MARK]
    return (
        *((name, value) for name, value in delivery.headers if not own_header(name)),
        *(
            (_PREFIX + name, value.encode("utf-8", "backslashreplace")[:_MAX_TEXT])
            for name, value in added.items()
            if value is not None
        ),
        *replayed[:1],
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
        group=found.get("group"),
        scope=found.get("scope"),
    )


def utc_text(seconds: float) -> str:
    """A moment as ISO 8601, UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
