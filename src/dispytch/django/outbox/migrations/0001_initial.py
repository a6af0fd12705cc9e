"""The tables of the outbox."""

from __future__ import annotations

from typing import Any

from django.db import migrations, models

from dispytch.django import _typed

__all__ = ["Migration"]


class Migration(_typed.Migration):
    """Makes them."""

    initial: bool = True

    operations: list[Any] = [
        migrations.CreateModel(
            name="OutboxEvent",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("emitter", models.CharField(max_length=100)),
                ("event_id", models.TextField()),
                ("event_type", models.TextField()),
                ("topic", models.TextField()),
                ("payload", models.BinaryField(null=True)),
                ("message", models.JSONField()),
                ("created_at", models.DateTimeField(auto_now_add=True)),
                (
                    "due_at",
                    models.DateTimeField(help_text="When it is tried next; empty if it was given up.", null=True),
                ),
                ("tries", models.PositiveIntegerField(default=0)),
                ("error", models.TextField(blank=True)),
            ],
            options={
                "verbose_name": "event",
                "indexes": [models.Index(fields=["due_at", "id"], name="dispytch_outbox_due")],
            },
        ),
        migrations.CreateModel(
            name="OutboxLease",
            fields=[
                ("name", models.CharField(max_length=20, primary_key=True, serialize=False)),
                ("owner", models.CharField(max_length=64)),
                ("until", models.DateTimeField()),
            ],
            options={"verbose_name": "lease"},
        ),
    ]
