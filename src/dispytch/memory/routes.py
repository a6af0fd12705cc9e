"""Names of the in-process broker: routes, subscriptions and options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from dispytch.abc import EventConfig, EventRoute, EventSubscription

__all__ = ["MemoryEventConfig", "MemoryEventRoute", "MemoryEventSubscription"]


@dataclass(frozen=True, slots=True)
class MemoryEventRoute(EventRoute):
    """A topic of a `MemoryBroker`; may be a template."""

    topic: str
    delimiter: str | None = field(default=None, kw_only=True)

    @property
    def address(self) -> str:
        return self.topic


@dataclass(frozen=True, slots=True)
class MemoryEventSubscription(EventSubscription):
    """A topic or a pattern on in-process brokers only; ``None`` for every topic but dead letters."""

    transport: ClassVar[str | None] = "memory"


@dataclass(frozen=True, slots=True)
class MemoryEventConfig(EventConfig):
    """Options of an event class on the in-process broker.

    Args:
        headers: Headers beside those of the envelope.
    """

    headers: Mapping[str, str | bytes] | None = None
