"""The columns and the transports of the conformance table."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.rig import Rig, memory_rig, redis_rig

_BACKENDS: dict[str, Any] = {
    "asyncio": ("asyncio", {"debug": False}),
    "uvloop": ("asyncio", {"debug": False, "use_uvloop": True}),
    "trio": ("trio", {}),
    "blocking": ("asyncio", {"debug": False}),
}


@pytest.fixture(params=list(_BACKENDS))
def column(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture
def anyio_backend(column: str) -> Any:
    return _BACKENDS[column]


@pytest.fixture(params=["memory", "redis"])
def rig(request: pytest.FixtureRequest, column: str) -> Rig:
    """Every transport."""
    return memory_rig(column) if request.param == "memory" else redis_rig(column, request.getfixturevalue("redis_url"))


@pytest.fixture
def memory(column: str) -> Rig:
    """The transports that acknowledge: by now the in-process broker alone."""
    return memory_rig(column)


@pytest.fixture
def pubsub(column: str, redis_url: str) -> Rig:
    """The transport that keeps nothing: Redis Pub/Sub."""
    return redis_rig(column, redis_url)
