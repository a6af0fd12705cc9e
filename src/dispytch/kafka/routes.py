"""Names on Kafka: routes, subscriptions and options."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar

from dispytch.abc import EventConfig, EventRoute, EventSubscription

__all__ = ["KafkaEventConfig", "KafkaEventRoute", "KafkaEventSubscription", "illegal_in_topic", "topic_problem"]

_ILLEGAL = re.compile(r"[^A-Za-z0-9._-]")
_LONGEST = 249


@dataclass(frozen=True, slots=True)
class KafkaEventRoute(EventRoute):
    """A topic; may be a template."""

    topic: str
    delimiter: str | None = field(default=None, kw_only=True)

    @property
    def address(self) -> str:
        return self.topic


@dataclass(frozen=True, slots=True)
class KafkaEventSubscription(EventSubscription):
    """A topic or a pattern of topics, on Kafka only.

    Args:
        topic: A topic, or a pattern: ``{name}`` and ``*`` match one segment, ``#`` any number; ``None`` for every topic
            but internal ones and dead letters.
        event: The event type; ``None`` for any.
    """

    transport: ClassVar[str | None] = "kafka"


@dataclass(frozen=True, slots=True)
class KafkaEventConfig(EventConfig):
    """Options of an event class on Kafka; strings may be templates.

    Args:
        partition_key: The message's key, which decides on its partition and its order; instead of ``__key__``.
        partition: The partition itself.
        timestamp_ms: The message's timestamp in milliseconds since the epoch; by default the time when it is sent.
        headers: Headers beside those of the envelope.
    """

    partition_key: str | None = None
    partition: int | str | None = None
    timestamp_ms: int | str | None = None
    headers: Mapping[str, str | bytes] | None = None


def illegal_in_topic(text: str) -> str | None:
    """The first character of a text that no topic's name may hold."""
    found = _ILLEGAL.search(text)
    return None if found is None else found[0]


@lru_cache(1024)
def topic_problem(name: str) -> str | None:
    """Why Kafka takes no topic of such a name; ``None`` if it does."""
    if not name:
        return "is empty"
    if name in (".", ".."):
        return "is one that Kafka reserves"
    if len(name) > _LONGEST:
        return f"has {len(name)} characters, and Kafka takes {_LONGEST}"
    if (character := illegal_in_topic(name)) is not None:
        return f"holds {character!r}, and Kafka takes letters, digits, '.', '_' and '-' of ASCII only"
    return None
