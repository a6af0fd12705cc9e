"""Each transport with a raw client beside it, which publishes what Dispytch would not, and looks at dead letters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import pika
import redis

from dispytch.abc import Consumer, Message
from dispytch.kafka import KafkaConsumer
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryEventRoute
from dispytch.rabbitmq import RabbitMQConsumer
from dispytch.redis import RedisConsumer, RedisStreamConsumer
from tests.fuzz.rows import Bad
from tests.kafka import wire
from tests.kafka.helpers import Cluster, confluent
from tests.support import unique

__all__ = ["RIGS", "AioPikaRig", "Letter", "Rig"]

_LARGEST = 4 * 1024 * 1024


class Letter(NamedTuple):
    """A dead letter as it lies at the broker."""

    payload: bytes | None
    headers: dict[bytes, bytes]


class Rig(ABC):
    """One topic of a transport.

    Args:
        url: The address of the broker.
    """

    title: ClassVar[str]
    broker: ClassVar[str | None] = None
    """Which broker it needs."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.topic = unique("bad")
        self.group = unique("group")
        self.dead = f"{self.topic}.{self.group}.dead"

    def can(self, bad: Bad) -> bool:
        """Whether the transport takes this one."""
        return not bad.only or self.title in bad.only

    @abstractmethod
    def consumer(self) -> Consumer: ...

    def watch(self) -> None:  # noqa: B027 - most can look later
        """Called when the consumer is ready."""

    @abstractmethod
    def publish(self, bad: Bad) -> None:
        """Publishes by the raw client."""

    @abstractmethod
    def letters(self) -> list[Letter]:
        """The dead letters that were written since it was last asked."""

    def close(self) -> None:  # noqa: B027 - some have nothing to close
        """Closes the raw client."""


class MemoryRig(Rig):
    title = "memory"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.memory = MemoryBroker()
        self._seen = 0

    def consumer(self) -> Consumer:
        return MemoryConsumer(self.memory, self.group)

    def publish(self, bad: Bad) -> None:
        headers = [(name.decode("utf-8", "surrogateescape"), value) for name, value in bad.headers]
        self.memory.publish([Message("raw", MemoryEventRoute(self.topic), bad.payload, headers)])

    def letters(self) -> list[Letter]:
        new = self.memory.dead_letters[self._seen :]
        self._seen += len(new)
        return [
            Letter(record.payload, {name.encode("utf-8", "surrogateescape"): value for name, value in record.headers})
            for record in new
        ]


class KafkaRig(Rig):
    title = "Kafka"
    broker = "kafka"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.cluster = Cluster(url)
        self.cluster.create(self.topic, max_message_bytes=str(_LARGEST), message_timestamp_after_max_ms=str(2**63 - 1))
        self._producer = confluent.Producer(
            {"bootstrap.servers": self.cluster.servers, "linger.ms": 0, "message.max.bytes": _LARGEST}
        )
        self._reader: Any = None

    def consumer(self) -> Consumer:
        return KafkaConsumer(self.cluster.servers, group_id=self.group, config={"fetch.wait.max.ms": 10})

    def watch(self) -> None:
        self._reader = confluent.Consumer({"bootstrap.servers": self.cluster.servers, "group.id": unique("look")})
        self._reader.assign([confluent.TopicPartition(self.dead, 0, 0)])

    def publish(self, bad: Bad) -> None:
        if all(name.isascii() and name.decode().isprintable() for name, _ in bad.headers):
            more = {} if bad.timestamp is None else {"timestamp": bad.timestamp}
            headers = [(name.decode(), value) for name, value in bad.headers]
            errors: list[Any] = []
            self._producer.produce(
                self.topic, bad.payload, headers=headers, on_delivery=lambda error, _: errors.append(error), **more
            )
            assert self._producer.flush(10) == 0
            assert errors == [None]
        else:
            assert bad.payload is not None
            wire.produce(self.cluster.servers, self.topic, bad.payload, bad.headers)

    def letters(self) -> list[Letter]:
        found = self._reader.consume(100, 0.01)
        return [Letter(one.value(), {name.encode(): value for name, value in one.headers() or ()}) for one in found]

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self.cluster.admin.delete_topics([self.topic, self.dead])


class RabbitMQRig(Rig):
    title = "RabbitMQ"
    broker = "rabbitmq"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.exchange = unique("exchange")
        self.dead = f"{self.group}.dead"
        self._connection = pika.BlockingConnection(pika.URLParameters(url))
        self._channel = self._connection.channel()

    def consumer(self) -> Consumer:
        return RabbitMQConsumer(self.url, queue=self.group, exchange=self.exchange)

    def publish(self, bad: Bad) -> None:
        headers = {name: value for name, value in bad.headers if name != b"content-type"}
        content_type = dict(bad.headers).get(b"content-type", b"").decode() or None
        properties = pika.BasicProperties(headers=headers, timestamp=bad.timestamp, content_type=content_type)
        self._channel.basic_publish(self.exchange, self.topic, bad.payload, properties)

    def letters(self) -> list[Letter]:
        found = []
        while (got := self._channel.basic_get(self.dead, auto_ack=True))[0] is not None:
            headers = {
                name.encode("utf-8", "surrogatepass"): value.encode() if isinstance(value, str) else value
                for name, value in (got[1].headers or {}).items()
            }
            found.append(Letter(got[2], headers))
        return found

    def close(self) -> None:
        channel = self._connection.channel()
        channel.queue_delete(self.group)
        channel.queue_delete(self.dead)
        channel.exchange_delete(self.exchange)
        self._connection.close()


class AioPikaRig(RabbitMQRig):
    """The other driver, on asyncio."""

    def can(self, bad: Bad) -> bool:
        # aio-pika breaks off the connection at properties that it cannot read, and again when they come once more.
        return super().can(bad) and bad.timestamp is None and b"\xff\xfe" not in dict(bad.headers)

    def consumer(self) -> Consumer:
        return RabbitMQConsumer(self.url, queue=self.group, exchange=self.exchange, driver="aio-pika")


class StreamsRig(Rig):
    title = "Redis Streams"
    broker = "redis"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._client = redis.Redis.from_url(url)
        self._last = "-"

    def consumer(self) -> Consumer:
        return RedisStreamConsumer(self.url, group_id=self.group)

    def publish(self, bad: Bad) -> None:
        fields: dict[Any, Any] = dict(bad.headers)
        if bad.payload is not None:
            fields[b"data"] = bad.payload
        self._client.xadd(self.topic, fields)

    def letters(self) -> list[Letter]:
        found: Any = self._client.xrange(self.dead, self._last)
        if found:
            self._last = "(" + found[-1][0].decode()
        return [Letter(fields.pop(b"data", None), fields) for _, fields in found]

    def close(self) -> None:
        self._client.delete(self.topic, self.dead)
        self._client.close()


class PubSubRig(Rig):
    title = "Redis Pub/Sub"
    broker = "redis"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        client: Any = redis.Redis.from_url(url)
        self._client = client
        self._watching: Any = client.pubsub(ignore_subscribe_messages=True)
        self._watching.subscribe(self.dead)

    def consumer(self) -> Consumer:
        return RedisConsumer(self.url)

    def publish(self, bad: Bad) -> None:
        assert bad.payload is not None
        assert self._client.publish(self.topic, bad.payload) == 1

    def letters(self) -> list[Letter]:
        found = []
        while (got := self._watching.get_message(timeout=0.01)) is not None:
            found.append(Letter(got["data"], {}))
        return found

    def close(self) -> None:
        self._watching.close()
        self._client.close()


RIGS: Sequence[type[Rig]] = (MemoryRig, KafkaRig, RabbitMQRig, StreamsRig, PubSubRig)
