"""The app of the outbox."""

from __future__ import annotations

from dispytch.django._typed import AppConfig

__all__ = ["OutboxConfig"]


class OutboxConfig(AppConfig):
    """The tables of the outbox, and the command that empties it."""

    name: str = "dispytch.django.outbox"
    label: str = "dispytch_outbox"
    verbose_name: str = "Dispytch outbox"
    default_auto_field: str = "django.db.models.BigAutoField"
