"""Fixtures of the RabbitMQ transport's tests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from dispytch.rabbitmq.producer import Driver
from tests.rabbitmq.helpers import Names, earlier_threads, is_trio


@pytest.fixture(autouse=True)
def _threads_of_others() -> None:
    """What an earlier test has left behind fails no other."""
    earlier_threads.clear()
    earlier_threads.update(threading.enumerate())


@pytest.fixture
def names(rabbitmq_url: str) -> Iterator[Names]:
    names = Names(rabbitmq_url)
    yield names
    names.delete()


@pytest.fixture(params=["pika", "aio-pika"])
def driver(request: pytest.FixtureRequest, anyio_backend: tuple[str, Any]) -> Driver | None:
    """Each driver, where it can run: on trio pika only, as the default, which is the same."""
    driver: Driver = request.param
    return None if is_trio(anyio_backend) else driver


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What aio-pika cannot run on is left out, instead of running pika twice."""
    left_out = [item for item in items if _is_aio_pika_on_trio(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not _is_aio_pika_on_trio(item)]


def _is_aio_pika_on_trio(item: pytest.Item) -> bool:
    given = getattr(item, "callspec", None)
    if given is None or given.params.get("driver") != "aio-pika":
        return False
    backend = given.params.get("anyio_backend")
    return backend is not None and is_trio(backend)
