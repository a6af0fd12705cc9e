"""What the shop keeps."""

from __future__ import annotations

from django.db import models


class Order(models.Model):
    item = models.CharField(max_length=100)
    parcel = models.CharField(max_length=100, blank=True)
    customer_told = models.BooleanField(default=False)


class UnsentEvent(models.Model):
    """An event that its broker did not confirm after the commit."""

    event_id = models.CharField(max_length=64, unique=True)
    kind = models.CharField(max_length=100)
    body = models.JSONField()
    error = models.TextField()
