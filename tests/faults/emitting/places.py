"""Brokers behind a proxy, that may be killed, with raw clients that tell what lies there."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, ClassVar

import redis

from tests import brokers
from tests.brokers import _process
from tests.faults.proxy import Proxy
from tests.kafka.helpers import Cluster, confluent
from tests.rabbitmq.helpers import channel_to
from tests.support import PATIENCE, blocking_until, closed_port, unique

__all__ = ["PLACES", "KafkaPlace", "Place", "RabbitMQPlace", "RedisPlace"]


class Place(ABC):
    """A broker of the tests' own.

    Args:
        folder: Where it keeps what it has.
    """

    name: ClassVar[str]

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running = ExitStack()
        self._port = closed_port()
        self.server, target = self._server()
        self.url: str = self.server.url(self._port)
        """Past the proxy."""
        self.proxy = Proxy(self.server.url(target)) if self._proxy is None else self._proxy
        self.pid = 0
        self.start()

    _proxy: Proxy | None = None

    @abstractmethod
    def _server(self) -> tuple[Any, int]:
        """The server, and the port that the proxy leads to."""

    def start(self) -> None:
        """Starts it, with what it had."""
        started = self._running.enter_context(brokers.started(self.server, self._folder, self._port))
        assert started.pid is not None
        self.pid = started.pid

    def kill(self) -> None:
        """Ends it by SIGKILL."""
        os.killpg(self.pid, signal.SIGKILL)
        blocking_until(lambda: _process.birth(self.pid) is None)
        self._running.close()

    def close(self) -> None:
        self.proxy.close()
        self._running.close()

    def mend(self) -> None:
        """Whatever a test has left of the proxy, it works again."""
        self.proxy.frozen = self.proxy.drops_replies = self.proxy.refuses = False
        self.proxy.cut()

    @abstractmethod
    def topic(self) -> str:
        """A topic that keeps what is emitted to it."""

    @abstractmethod
    def found(self, topic: str) -> Counter[int]:
        """The numbers that lie there, and how often."""

    def producer_url(self, url: str) -> str:
        """The address for a producer, with options that have it notice dead connections soon."""
        return url


class RedisPlace(Place):
    """Redis Streams, on a server that syncs each write."""

    name = "redis"

    def _server(self) -> tuple[Any, int]:
        return brokers.Redis(persistent=True), self._port

    def producer_url(self, url: str) -> str:
        return url.replace("redis://", "redis+stream://")

    def topic(self) -> str:
        return unique("stream")

    def found(self, topic: str) -> Counter[int]:
        with redis.Redis.from_url(self.url) as client:
            entries: Any = client.xrange(topic)
        return _numbers(fields[b"data"] for _, fields in entries)


class PubSubPlace(RedisPlace):
    """Redis Pub/Sub, with somebody who listens from the start."""

    name = "pubsub"

    def __init__(self, folder: Path) -> None:
        self._got: dict[str, list[bytes]] = {}
        self._threads: list[tuple[Any, threading.Thread]] = []
        super().__init__(folder)

    def producer_url(self, url: str) -> str:
        return url

    def topic(self) -> str:
        topic = unique("channel")
        client: Any = redis.Redis.from_url(self.url)
        watching: Any = client.pubsub(ignore_subscribe_messages=True)
        watching.subscribe(topic)
        blocking_until(lambda: client.pubsub_numsub(topic)[0][1] == 1)
        got = self._got[topic] = []

        def listen() -> None:
            with suppress(redis.RedisError, OSError, ValueError, AttributeError):  # closed at the end
                for message in watching.listen():
                    got.append(message["data"])

        thread = threading.Thread(target=listen, name="listener", daemon=True)
        thread.start()
        self._threads.append((client, thread))
        return topic

    def found(self, topic: str) -> Counter[int]:
        # What is published now comes after all that was published before.
        marker = unique("marker").encode()
        with redis.Redis.from_url(self.url) as client:
            client.publish(topic, marker)
        blocking_until(lambda: marker in self._got[topic])
        return _numbers(data for data in self._got[topic] if data.startswith(b"{"))

    def close(self) -> None:
        super().close()
        for client, thread in self._threads:
            thread.join(5)
            client.close()


class RabbitMQPlace(Place):
    """RabbitMQ, with durable queues."""

    name = "rabbitmq"

    def _server(self) -> tuple[Any, int]:
        return brokers.RabbitMQ(), self._port

    def producer_url(self, url: str) -> str:
        return f"{url}?heartbeat=1"

    def topic(self) -> str:
        topic = unique("queue")
        with channel_to(self.url) as channel:
            channel.exchange_declare("dispytch", "topic", durable=True)
            channel.queue_declare(topic, durable=True)
            channel.queue_bind(topic, "dispytch", topic)
        return topic

    def found(self, topic: str) -> Counter[int]:
        bodies: list[bytes] = []
        with channel_to(self.url) as channel:  # what is not acknowledged is put back at the end
            while (got := channel.basic_get(topic))[0] is not None:
                bodies.append(got[2])
        return _numbers(bodies)

    def limit_memory(self, value: str) -> None:
        """Has the broker take that much memory for too much, such as ``1MB`` or ``1GB``."""
        environment = Path(f"/proc/{self.pid}/environ").read_bytes().decode().split("\0")
        known = dict(pair.split("=", 1) for pair in environment if "=" in pair)
        port = re.search(r"-erl_epmd_port (\d+)", known["RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS"])
        assert port is not None
        program = Path(str(brokers.RabbitMQ().find())).with_name("rabbitmqctl")
        subprocess.run(
            [
                *(str(program), "-n", known["RABBITMQ_NODENAME"]),
                *("set_vm_memory_high_watermark", "absolute", value),
            ],
            env={**known, "RABBITMQ_CTL_ERL_ARGS": f"-start_epmd false -erl_epmd_port {port[1]} -dist_listen false"},
            check=True,
            capture_output=True,
            timeout=PATIENCE,
        )


class KafkaPlace(Place):
    """Kafka, one of whose listeners sends its clients to the proxy."""

    name = "kafka"

    def _server(self) -> tuple[Any, int]:
        listens = closed_port()
        self._proxy = Proxy(brokers.Kafka().url(listens))
        return brokers.Kafka((listens, self._proxy.port)), listens

    def topic(self) -> str:
        topic = unique("topic")
        Cluster(self.url).create(topic)
        return topic

    def found(self, topic: str) -> Counter[int]:
        cluster = Cluster(self.url)
        consumer = confluent.Consumer({"bootstrap.servers": cluster.servers, "group.id": "look"})
        try:
            _, end = consumer.get_watermark_offsets(confluent.TopicPartition(topic, 0), timeout=PATIENCE)
        finally:
            consumer.close()
        return _numbers(message.value() for message in cluster.read(topic, end)) if end else Counter()


PLACES: Mapping[str, Callable[[Path], Place]] = {
    "kafka": KafkaPlace,
    "rabbitmq": RabbitMQPlace,
    "redis": RedisPlace,
    "pubsub": PubSubPlace,
}


def _numbers(payloads: Any) -> Counter[int]:
    """The numbers of events, also where their envelope is in the payload."""
    found: Counter[int] = Counter()
    for payload in payloads:
        document = json.loads(payload)
        found[document.get("data", document)["number"]] += 1
    return found
