"""What becomes of events that were not confirmed after their transaction."""

from __future__ import annotations

from dispytch.django import EmitFailure

from .models import UnsentEvent


def keep(failure: EmitFailure) -> None:
    """Keeps the event, for whoever looks after it."""
    UnsentEvent.objects.update_or_create(
        event_id=failure.id,
        defaults={
            "kind": type(failure.event).__qualname__,
            "body": failure.event.model_dump(mode="json"),
            "error": str(failure.error),
        },
    )
