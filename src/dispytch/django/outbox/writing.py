"""Events into the outbox."""

from __future__ import annotations

from collections.abc import Sequence

from django.utils import timezone

from dispytch._core.events import EventBase
from dispytch._core.messages import Message
from dispytch.django.outbox.messages import pack
from dispytch.django.outbox.models import OutboxEvent

__all__ = ["write"]


def write(events: Sequence[EventBase], messages: Sequence[Message], emitter: str, using: str) -> None:
    """Writes events to the outbox of a database, in the transaction that there is.

    Raises:
        ConfigurationError: a route or an option is of a type that cannot be kept.
        DatabaseError: they cannot be written.
    """
    now = timezone.now()
    OutboxEvent.objects.using(using).bulk_create(
        OutboxEvent(
            emitter=emitter,
            event_id=message.id,
            event_type=type(event).__qualname__,
            topic=message.route.address,
            payload=message.payload,
            message=pack(message),
            due_at=now,
        )
        for event, message in zip(events, messages, strict=True)
    )
