"""Django's classes that ours derive from, with types of what is used here, since Django has none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["AppConfig", "BaseCommand", "Migration", "Model"]

if TYPE_CHECKING:

    class AppConfig:
        """See `django.apps.AppConfig`."""

        name: str
        label: str
        verbose_name: str

        def ready(self) -> None:
            """Called when all models are imported."""

    class BaseCommand:
        """See `django.core.management.base.BaseCommand`."""

        help: str

        def check(self, *args: Any, **options: Any) -> None:
            """Runs the system checks."""

    class Model:
        """See `django.db.models.Model`."""

        def __init__(self, *args: Any, **values: Any) -> None: ...

    class Migration:
        """See `django.db.migrations.Migration`."""

else:
    from django.apps import AppConfig
    from django.core.management.base import BaseCommand
    from django.db.migrations import Migration
    from django.db.models import Model
