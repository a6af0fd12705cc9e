"""The tables of the outbox."""

from __future__ import annotations

from typing import Any

from django.db import models

from dispytch.django._typed import Model

__all__ = ["OutboxEvent", "OutboxLease"]


class OutboxEvent(Model):
    """An event that was committed and is to be emitted; its row goes once the broker has confirmed it."""

    id: Any = models.BigAutoField(primary_key=True)
    emitter: Any = models.CharField(max_length=100)
    event_id: Any = models.TextField()
    event_type: Any = models.TextField()
    topic: Any = models.TextField()
    payload: Any = models.BinaryField(null=True)
    message: Any = models.JSONField()
    created_at: Any = models.DateTimeField(auto_now_add=True)
    due_at: Any = models.DateTimeField(null=True, help_text="When it is tried next; empty if it was given up.")
    tries: Any = models.PositiveIntegerField(default=0)
    error: Any = models.TextField(blank=True)

    objects: Any = models.Manager()

    class Meta:
        """What Django is to know of the table."""

        indexes: tuple[Any, ...] = (models.Index(fields=["due_at", "id"], name="dispytch_outbox_due"),)
        verbose_name: str = "event"

    def __str__(self) -> str:
        return f"{self.event_type} {self.event_id} to {self.topic}"


class OutboxLease(Model):
    """Which process empties the outbox: one at a time, or events would overtake each other."""

    name: Any = models.CharField(max_length=20, primary_key=True)
    owner: Any = models.CharField(max_length=64)
    until: Any = models.DateTimeField()

    objects: Any = models.Manager()

    class Meta:
        """What Django is to know of the table."""

        verbose_name: str = "lease"

    def __str__(self) -> str:
        return f"{self.name} of {self.owner}"
