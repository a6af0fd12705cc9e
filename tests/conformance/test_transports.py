"""The conformance suite on Dispytch's own transports."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import ClassVar

import pytest
import redis

from dispytch import consumer_from_url, producer_from_url
from dispytch.abc import Consumer, EventConfig, EventRoute, Producer
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryEventConfig, MemoryProducer
from dispytch.redis import RedisConsumer, RedisEventConfig
from dispytch.testing import Faults, TransportSuite
from dispytch.testing.conformance.rows import COLUMNS, INSTALLED
from tests.conftest import in_ci


class OwnSuite(TransportSuite):
    """A transport of Dispytch, for `python -m tests.conformance` too."""

    columns = COLUMNS if in_ci() else INSTALLED
    title: ClassVar[str]

    def server(self) -> str:
        """What the server says that it is, with its version."""
        raise NotImplementedError


class TestMemory(OwnSuite):
    features = MemoryConsumer.features
    title = "memory"

    @pytest.fixture(autouse=True)
    def broker(self) -> None:
        self.faults = Faults()
        self.memory = MemoryBroker(faults=self.faults)

    def producer(self) -> Producer:
        return MemoryProducer(self.memory)

    def consumer(self, group_id: str) -> Consumer:
        return MemoryConsumer(self.memory, group_id)

    def headers(self, headers: Mapping[str, str | bytes]) -> EventConfig:
        return MemoryEventConfig(headers=headers)

    @asynccontextmanager
    async def unwritable(self, route: EventRoute) -> AsyncIterator[None]:
        self.faults.sometimes("dead_letter", 1.0)
        yield
        self.faults.sometimes("dead_letter", 0.0)

    def server(self) -> str:
        return f"in the process, dispytch {version('dispytch')}"


class TestRedisPubSub(OwnSuite):
    features = RedisConsumer.features
    title = "Redis Pub/Sub"

    @pytest.fixture(autouse=True)
    def broker(self, redis_url: str) -> None:
        self.url = redis_url

    def producer(self) -> Producer:
        return producer_from_url(self.url)

    def consumer(self, group_id: str) -> Consumer:
        return consumer_from_url(self.url, group_id)

    def headers(self, headers: Mapping[str, str | bytes]) -> EventConfig:
        return RedisEventConfig(headers=headers)

    def server(self) -> str:
        with redis.Redis.from_url(self.url) as client:
            return f"Redis {client.info('server')['redis_version']}"
