"""Fixtures of the RabbitMQ transport's tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from dispytch.rabbitmq.producer import Driver
from tests.rabbitmq.helpers import Names, is_trio


@pytest.fixture
def names(rabbitmq_url: str) -> Iterator[Names]:
    names = Names(rabbitmq_url)
    yield names
    names.delete()


@pytest.fixture(params=["pika", "aio-pika"])
def driver(request: pytest.FixtureRequest, anyio_backend: tuple[str, Any]) -> Driver | None:
    """Each driver, where it can run: on trio pika, as given and as the default."""
    driver: Driver = request.param
    return None if driver == "aio-pika" and is_trio(anyio_backend) else driver
