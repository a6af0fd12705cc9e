"""Names on RabbitMQ: routes, subscriptions and options."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import ClassVar, NamedTuple

from dispytch.abc import EventConfig, EventRoute, EventSubscription

__all__ = ["RabbitMQEventConfig", "RabbitMQEventRoute", "RabbitMQEventSubscription", "Scope"]


class Scope(NamedTuple):
    """How a delivery came: by which exchange, and through which queue."""

    exchange: str
    queue: str


@dataclass(frozen=True, slots=True)
class RabbitMQEventRoute(EventRoute):
    """A routing key on an exchange; both may be templates.

    Args:
        routing_key: At most 255 bytes.
        exchange: ``None`` for the one of the producer, or of the consumer; ``""`` for the default exchange, whose
            routing keys are the names of queues.
        delimiter: What separates the segments of the routing key; ``None`` for any of ``.``, ``:`` and ``/``.
    """

    routing_key: str
    exchange: str | None = None
    delimiter: str | None = field(default=None, kw_only=True)

    @property
    def address(self) -> str:
        return self.routing_key


@dataclass(frozen=True, slots=True, init=False, repr=False)
class RabbitMQEventSubscription(EventSubscription):
    """What a handler wants to receive, on RabbitMQ only.

    With a queue and neither an exchange nor a routing key, the queue is consumed as it is bound already.

    Args:
        exchange: The exchange that the queue is bound to; ``None`` to bind it to the one of the consumer, and to take
            what comes by any. ``""``, the default exchange, consumes the queue that the routing key names.
        queue: The queue to consume; ``None`` for the one of the consumer.
        routing_key: A routing key or a pattern: ``{name}`` and ``*`` match one segment, ``#`` any number; ``None`` for
            any.
        event: The event type; ``None`` for any.
    """

    transport: ClassVar[str | None] = "rabbitmq"

    exchange: str | None = None
    queue: str | None = None
    separator: str | None = None

    def __init__(
        self,
        exchange: str | None = None,
        queue: str | None = None,
        routing_key: str | None = None,
        event: str | None = None,
        *,
        delimiter: str | None = None,
    ) -> None:
        values = {"topic": routing_key, "event": event, "exchange": exchange, "queue": queue, "separator": delimiter}
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def routing_key(self) -> str | None:
        """The routing key or the pattern as given."""
        return self.topic

    @property
    def delimiter(self) -> str | None:
        return self.separator

    def takes(self, scope: Hashable) -> bool:
        return not isinstance(scope, Scope) or (
            self.exchange in (None, scope.exchange) and self.queue in (None, scope.queue)
        )

    def __repr__(self) -> str:
        return (
            f"RabbitMQEventSubscription(exchange={self.exchange!r}, queue={self.queue!r}, "
            f"routing_key={self.routing_key!r}, event={self.event!r})"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RabbitMQEventConfig(EventConfig):
    """The AMQP properties of the messages of an event class; texts may be templates.

    Args:
        headers: Headers beside those of the envelope.
        priority: From 0 to 255, for queues with ``x-max-priority``.
        expiration: After how many seconds a message that nobody took is dropped by the broker; or a timedelta.
        delivery_mode: 2 for messages that outlive the broker, 1 for those that need not.
        correlation_id: For replies.
        reply_to: Where replies go.
        content_type: Instead of the serializer's own.
        content_encoding: For instance ``"gzip"``, for a serializer that compresses.
        type: The AMQP property of this name; the event's type travels in the envelope.
        user_id: Checked by the broker against the user of the connection.
        app_id: What wrote it.
        mandatory: Whether an event that no queue takes is an error; ``None`` for the producer's own setting.
    """

    headers: Mapping[str, str | bytes] | None = None
    priority: int | None = None
    expiration: float | timedelta | None = None
    delivery_mode: int = 2
    correlation_id: str | None = None
    reply_to: str | None = None
    content_type: str | None = None
    content_encoding: str | None = None
    type: str | None = None
    user_id: str | None = None
    app_id: str | None = None
    mandatory: bool | None = None
