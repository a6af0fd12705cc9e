"""Names on Redis Pub/Sub: routes, subscriptions and options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from dispytch.abc import EventConfig, EventRoute, EventSubscription

__all__ = ["RedisEventConfig", "RedisEventRoute", "RedisEventSubscription"]


@dataclass(frozen=True, slots=True)
class RedisEventRoute(EventRoute):
    """A Pub/Sub channel; may be a template."""

    channel: str
    delimiter: str | None = field(default=None, kw_only=True)

    @property
    def address(self) -> str:
        return self.channel


class RedisEventSubscription(EventSubscription):
    """A Pub/Sub channel or a pattern of channels, on Redis only.

    Args:
        channel: A channel, or a pattern: ``{name}`` and ``*`` match one segment, ``#`` any number; ``None`` for any.
        event: The event type; ``None`` for any.
    """

    __slots__ = ()

    transport: ClassVar[str | None] = "redis"

    def __init__(self, channel: str | None = None, event: str | None = None) -> None:
        super().__init__(channel, event)

    @property
    def channel(self) -> str | None:
        """The channel or the pattern as given."""
        return self.topic

    def __repr__(self) -> str:
        return f"RedisEventSubscription(channel={self.channel!r}, event={self.event!r})"


@dataclass(frozen=True, slots=True)
class RedisEventConfig(EventConfig):
    """Options of an event class on Redis Pub/Sub.

    Args:
        headers: Headers beside those of the envelope, in which they travel, since messages here have none of their own.
    """

    headers: Mapping[str, str | bytes] | None = None
