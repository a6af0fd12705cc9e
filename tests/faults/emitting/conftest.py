"""Brokers for the whole session, and the worlds that an emitter lives in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.conftest import program_of
from tests.faults.emitting.emitters import LONG, World
from tests.faults.emitting.places import PLACES, Place


@pytest.fixture(scope="session")
def place_of(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Place]]:
    """The session's broker of a name."""
    found: dict[str, Place] = {}
    with ExitStack() as stack:

        def place_of(name: str) -> Place:
            if name not in found:
                program_of(pytestconfig, "redis" if name == "pubsub" else name)
                place = found[name] = PLACES[name](tmp_path_factory.mktemp(name))
                stack.callback(place.close)
            return found[name]

        yield place_of


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, place_of: Callable[[str], Place]) -> Iterator[Place]:
    """Each broker."""
    place = place_of(request.param)
    yield place
    place.mend()


@pytest.fixture(params=["loop", "aio-pika", "blocking"])
def world(request: pytest.FixtureRequest) -> World:
    """How it is emitted; see `EitherEmitter`."""
    world: World = request.param
    return world


_LASTING = {"test_nothing_confirmed_is_lost_when_the_broker_is_killed", "test_a_memory_alarm"}
"""Those that take many seconds, and hardly depend on the world."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Blocking code has no loop, and so runs once; aio-pika runs on asyncio, and against RabbitMQ.

    Unless ``DISPYTCH_LONG=1`` is set, what takes long runs on asyncio only, and uvloop is left to the one client that
    runs in the loop itself.
    """
    left_out = [item for item in items if not _makes_sense(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def _makes_sense(item: pytest.Item) -> bool:
    given: dict[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
    if "world" not in given:
        return LONG or given.get("place") not in PLACES or given.get("backend") != "trio"
    (loop, options), world, place = given["anyio_backend"], given["world"], given["place"]
    is_uvloop = bool(options.get("use_uvloop"))
    if world == "aio-pika" and (place != "rabbitmq" or loop != "asyncio"):
        return False
    if world == "blocking" and (loop != "asyncio" or is_uvloop):
        return False
    if LONG:
        return True
    if getattr(item, "originalname", "") in _LASTING:
        return loop == "asyncio" and not is_uvloop and world != "blocking"
    return not is_uvloop or (place == "redis" and world == "loop")
