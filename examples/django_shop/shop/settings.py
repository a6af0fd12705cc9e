"""Settings of the shop; what differs between places comes from the environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

BASE_DIR = Path(__file__).parent.parent

DEBUG = True
SECRET_KEY = "an example has no secrets"  # noqa: S105
ALLOWED_HOSTS = ["127.0.0.1", "localhost", "testserver"]
ROOT_URLCONF = "shop.urls"
WSGI_APPLICATION = "shop.wsgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True

INSTALLED_APPS = ["dispytch.django", "dispytch.django.outbox", "orders"]
MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]

DATABASE = os.environ.get("DATABASE", str(BASE_DIR / "db.sqlite3"))
"""A file of SQLite, or the host (a folder of sockets) of PostgreSQL as ``postgresql:/run/postgresql``."""

DATABASES: dict[str, dict[str, Any]] = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "postgres",
        "USER": "postgres",
        "HOST": DATABASE.removeprefix("postgresql:"),
    }
    if DATABASE.startswith("postgresql:")
    else {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": DATABASE,
        # A request and a worker that write at the same time wait for each other.
        "OPTIONS": {"timeout": 20, "transaction_mode": "IMMEDIATE"},
    }
}

DISPYTCH = {
    "URL": os.environ.get("BROKER_URL", "memory://django_shop"),
    "SOURCE": "django_shop",
    "GROUP": "django_shop",
    "TIMEOUT": float(os.environ.get("BROKER_TIMEOUT", "5")),
    "OUTBOX": os.environ.get("OUTBOX") == "1",
    "ON_FAILURE": "orders.failures:keep",
}
