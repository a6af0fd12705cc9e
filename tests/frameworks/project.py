"""A Django project within the tests' own process; importing this sets Django up."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import django
from django.conf import settings
from django.test.utils import override_settings

from dispytch import EventBase

_FOLDER = Path(tempfile.mkdtemp(prefix="dispytch-django-"))
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)

settings.configure(
    SECRET_KEY="of tests",
    INSTALLED_APPS=["dispytch.django", "dispytch.django.outbox"],
    DATABASES={
        alias: {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": str(_FOLDER / f"{alias}.sqlite3"),
            "OPTIONS": {"timeout": 20, "transaction_mode": "IMMEDIATE"},
        }
        for alias in ("default", "other")
    },
    DISPYTCH={"URL": "memory://tests", "GROUP": "tests", "EMITTERS": {"audit": {"URL": "memory://audit"}}},
    USE_TZ=True,
)
django.setup()


class Placed(EventBase):
    __topic__ = "placed"
    n: int


@contextmanager
def changed(**values: Any) -> Iterator[None]:
    """Other values in the setting; ``None`` leaves one out."""
    given = {**settings.DISPYTCH, **values}
    with override_settings(DISPYTCH={key: value for key, value in given.items() if value is not None}):
        yield
