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

INSTALLED_APPS = ["dispytch.django", "orders"]
MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]

DATABASES: dict[str, dict[str, Any]] = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("DATABASE", BASE_DIR / "db.sqlite3"),
        # A request and a worker that write at the same time wait for each other.
        "OPTIONS": {"timeout": 20, "transaction_mode": "IMMEDIATE"},
    }
}

DISPYTCH = {
    "URL": os.environ.get("BROKER_URL", "memory://django_shop"),
    "SOURCE": "django_shop",
    "GROUP": "django_shop",
    "TIMEOUT": 5.0,
    "ON_FAILURE": "orders.failures:keep",
}
