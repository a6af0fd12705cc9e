"""The conformance suite on Dispytch's own transports."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from importlib.metadata import version
from typing import ClassVar

import pika
import pytest
import redis
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # it does not say what it exports
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
)

from dispytch import consumer_from_url, producer_from_url
from dispytch.abc import Consumer, EventConfig, EventRoute, Producer
from dispytch.kafka import KafkaConsumer, KafkaEventConfig
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryEventConfig, MemoryProducer
from dispytch.rabbitmq import RabbitMQConsumer, RabbitMQEventConfig
from dispytch.redis import RedisConsumer, RedisEventConfig, RedisStreamConsumer, RedisStreamEventConfig
from dispytch.testing import Faults, TransportSuite
from dispytch.testing.conformance.rows import COLUMNS, INSTALLED
from tests import brokers
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
        self.url = self.redis_url = redis_url

    def producer(self) -> Producer:
        return producer_from_url(self.url)

    def consumer(self, group_id: str) -> Consumer:
        return consumer_from_url(self.url, group_id)

    def headers(self, headers: Mapping[str, str | bytes]) -> EventConfig:
        return RedisEventConfig(headers=headers)

    def server(self) -> str:
        with redis.Redis.from_url(self.redis_url) as client:
            return f"Redis {client.info('server')['redis_version']}"


class TestRedisStreams(TestRedisPubSub):
    features = RedisStreamConsumer.features
    title = "Redis Streams"

    @pytest.fixture(autouse=True)
    def broker(self, redis_url: str) -> None:
        self.redis_url = redis_url
        self.url = redis_url.replace("redis://", "redis+stream://", 1)

    def headers(self, headers: Mapping[str, str | bytes]) -> EventConfig:
        return RedisStreamEventConfig(headers=headers)

    @asynccontextmanager
    async def unwritable(self, route: EventRoute) -> AsyncIterator[None]:
        with redis.Redis.from_url(self.redis_url) as client:
            client.delete(route.address)
            client.set(route.address, "no stream")
            yield
            client.delete(route.address)


class TestRabbitMQ(OwnSuite):
    features = RabbitMQConsumer.features
    title = "RabbitMQ"

    @pytest.fixture(autouse=True)
    def broker(self, rabbitmq_url: str) -> None:
        self.url = rabbitmq_url

    def producer(self) -> Producer:
        return producer_from_url(self.url)

    def consumer(self, group_id: str) -> Consumer:
        return consumer_from_url(self.url, group_id)

    def headers(self, headers: Mapping[str, str | bytes]) -> EventConfig:
        return RabbitMQEventConfig(headers=headers)

    @asynccontextmanager
    async def unwritable(self, route: EventRoute) -> AsyncIterator[None]:
        queue = route.address.rpartition(":")[2]
        with closing(pika.BlockingConnection(pika.URLParameters(self.url))) as connection:
            channel = connection.channel()
            channel.queue_delete(queue)
            yield
            channel.queue_declare(queue, durable=True)

    def server(self) -> str:
        with closing(pika.BlockingConnection(pika.URLParameters(self.url))) as connection:
            properties = connection._impl.server_properties
        return f"{properties['product']} {properties['version']}"


class TestKafka(OwnSuite):
    features = KafkaConsumer.features
    title = "Kafka"

    @pytest.fixture(autouse=True)
    def broker(self, kafka_url: str) -> None:
        self.url = kafka_url

    def producer(self) -> Producer:
        return producer_from_url(self.url)

    def consumer(self, group_id: str) -> Consumer:
        return consumer_from_url(self.url, group_id)

    def headers(self, headers: Mapping[str, str | bytes]) -> EventConfig:
        return KafkaEventConfig(headers=headers)

    @asynccontextmanager
    async def unwritable(self, route: EventRoute) -> AsyncIterator[None]:
        self._limit(route, 1)
        yield
        self._limit(route, 1_000_000)

    def _limit(self, route: EventRoute, size: int) -> None:
        admin = AdminClient({"bootstrap.servers": self.url.removeprefix("kafka://")})
        entry = ConfigEntry("max.message.bytes", str(size), incremental_operation=AlterConfigOpType.SET)
        resource = ConfigResource(ConfigResource.Type.TOPIC, route.address, incremental_configs=[entry])
        for result in admin.incremental_alter_configs([resource]).values():
            result.result()

    def server(self) -> str:
        return f"Apache Kafka {brokers.kafka_version(self.url) or 'of unknown version'}"
