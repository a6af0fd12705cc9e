"""Names on Redis Streams: routes, subscriptions and options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from dispytch.abc import EventConfig, EventRoute, EventSubscription
from dispytch.errors import ConfigurationError

__all__ = ["TRANSPORT", "RedisStreamEventConfig", "RedisStreamEventRoute", "RedisStreamEventSubscription"]

TRANSPORT = "redis-stream"


@dataclass(frozen=True, slots=True)
class RedisStreamEventRoute(EventRoute):
    """A stream; for emitting it may be a template, for handlers not."""

    stream: str
    delimiter: str | None = field(default=None, kw_only=True)

    @property
    def address(self) -> str:
        return self.stream


class RedisStreamEventSubscription(EventSubscription):
    """A stream, on Redis only. There are no patterns: each stream is named.

    Args:
        stream: The stream's key.
        event: The event type; ``None`` for any.
    """

    __slots__ = ()

    transport: ClassVar[str | None] = TRANSPORT

    def __init__(self, stream: str, event: str | None = None) -> None:
        super().__init__(stream, event)

    @property
    def stream(self) -> str:
        """The stream's key."""
        return self.topic or ""

    def __repr__(self) -> str:
        return f"RedisStreamEventSubscription(stream={self.stream!r}, event={self.event!r})"


@dataclass(frozen=True, slots=True)
class RedisStreamEventConfig(EventConfig):
    """Options of an event class on Redis Streams.

    Args:
        headers: Fields beside the payload and those of the envelope.
        maxlen: About how many entries the stream keeps when this one is added; ``None`` for all. Older ones go, also
            those that nobody has handled: ``trim_acknowledged`` of the consumer keeps these.

    Raises:
        ConfigurationError: ``maxlen`` is no positive number.
    """

    headers: Mapping[str, str | bytes] | None = None
    maxlen: int | None = None

    def __post_init__(self) -> None:
        if self.maxlen is not None and (type(self.maxlen) is not int or self.maxlen < 1):
            raise ConfigurationError(f"maxlen={self.maxlen!r}: give a positive number of entries, or leave it out")
