"""What the tests of the Kafka transport share."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from importlib import import_module
from itertools import count
from typing import Any
from uuid import uuid4

import anyio

from dispytch import Event, EventDispatcher
from dispytch._core.patterns import Pattern
from dispytch.abc import Delivery, EventRoute, Message, Outcome, Settlement, Subscription
from dispytch.kafka import KafkaConsumer, KafkaEventConfig, KafkaEventRoute, KafkaEventSubscription
from tests.support import PATIENCE

confluent: Any = import_module("confluent_kafka")
admin_module: Any = import_module("confluent_kafka.admin")

_numbers = count()
_unheard = logging.getLogger("tests.kafka.unheard")
_unheard.disabled = True


def unique(name: str = "topic") -> str:
    return f"{name}-{uuid4().hex[:8]}-{next(_numbers)}"


async def until(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Waits for a condition."""
    with anyio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - of what happens elsewhere there is no event
            await anyio.sleep(0.005)


def blocking_until(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def message(
    topic: str, payload: bytes | None = b"{}", key: bytes | None = None, config: KafkaEventConfig | None = None
) -> Message:
    return Message(unique("id"), KafkaEventRoute(topic), payload, (), key, config)


def subscription(pattern: str, delimiter: str | None = None, dead: Sequence[str] = ()) -> Subscription:
    routes: tuple[EventRoute, ...] = tuple(KafkaEventRoute(name) for name in dead)
    return Subscription(Pattern.parse(pattern, delimiter), KafkaEventSubscription(pattern), routes)


def acknowledged(deliveries: Sequence[Delivery]) -> list[Settlement]:
    return [Settlement(delivery, Outcome.ACK) for delivery in deliveries]


async def receive(consumer: KafkaConsumer, number: int, *, settle: bool = False) -> list[Delivery]:
    """So many deliveries."""
    found: list[Delivery] = []
    with anyio.fail_after(PATIENCE):
        while len(found) < number:
            new = await consumer.receive(number - len(found))
            if settle:
                assert not await consumer.settle(acknowledged(new))
            found += new
    return found


def collecting(consumer: KafkaConsumer, topic: str, **options: Any) -> tuple[EventDispatcher, list[Any]]:
    handled: list[Any] = []
    dispatcher = EventDispatcher(consumer, **options)

    @dispatcher.handler(topic=topic)
    async def handle(event: Event[Any]) -> None:
        handled.append(event.body["n"])

    return dispatcher, handled


earlier_threads: set[threading.Thread] = set()
"""Those that there were before the test, since another one has left them."""


def kafka_threads() -> list[threading.Thread]:
    """The threads of Kafka that the test has."""
    running = set(threading.enumerate()) - earlier_threads
    return [thread for thread in running if thread.name.startswith("dispytch kafka")]


class Cluster:
    """Looks at a Kafka past Dispytch, and does to it what Dispytch would not."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.servers = url.removeprefix("kafka://").rstrip("/")
        self.admin: Any = admin_module.AdminClient({"bootstrap.servers": self.servers}, logger=_unheard)

    def create(self, *names: str, partitions: int = 1, **options: str) -> None:
        config = {name.replace("_", "."): value for name, value in options.items()}
        new = [admin_module.NewTopic(name, partitions, 1, config=config) for name in names]
        _all(self.admin.create_topics(new))
        # A broker may be asked about what it has made before it knows of it.
        blocking_until(lambda: all(self.partitions(name) == partitions for name in names))

    def partitions(self, name: str) -> int:
        topics = self.admin.list_topics(timeout=PATIENCE).topics
        return len(topics[name].partitions) if name in topics else 0

    def exists(self, name: str) -> bool:
        return self.partitions(name) > 0

    def committed(self, group: str, topic: str, partition: int = 0) -> int | None:
        """The offset that the group would begin with; ``None`` if it never committed."""
        asked = confluent.ConsumerGroupTopicPartitions(group, [confluent.TopicPartition(topic, partition)])
        (found,) = self.admin.list_consumer_group_offsets([asked])[group].result(PATIENCE).topic_partitions
        return None if found.offset < 0 else int(found.offset)

    def members(self, group: str) -> int:
        return len(self.admin.describe_consumer_groups([group])[group].result(PATIENCE).members)

    def produce(self, topic: str, *values: bytes | None, **options: Any) -> None:
        producer = confluent.Producer({"bootstrap.servers": self.servers, "linger.ms": 5})
        for value in values:
            producer.produce(topic, value, **options)
        assert producer.flush(PATIENCE) == 0

    def read(self, topic: str, number: int) -> list[Any]:
        """The first messages of a topic."""
        consumer = confluent.Consumer(
            {"bootstrap.servers": self.servers, "group.id": unique("look"), "auto.offset.reset": "earliest"}
        )
        consumer.assign([confluent.TopicPartition(topic, one, 0) for one in range(self.partitions(topic))])
        found: list[Any] = []
        try:
            blocking_until(lambda: self._more(consumer, found, number))
        finally:
            consumer.close()
        return found

    @staticmethod
    def _more(consumer: Any, found: list[Any], number: int) -> bool:
        found += consumer.consume(number - len(found), 0.1)
        return len(found) >= number

    def delete_records(self, topic: str, before: int) -> None:
        _all(self.admin.delete_records([confluent.TopicPartition(topic, 0, before)]))

    def settings(self) -> dict[str, str]:
        """The broker's own settings."""
        resource = admin_module.ConfigResource(admin_module.ConfigResource.Type.BROKER, "1")
        (found,) = self.admin.describe_configs([resource]).values()
        return {name: entry.value for name, entry in found.result(PATIENCE).items()}

    def listeners(self) -> dict[str, str]:
        return dict(listener.split("://") for listener in self.settings()["listeners"].split(","))

    @contextmanager
    def allowing(self, user: str, kind: str, name: str, *operations: str) -> Iterator[None]:
        """Of one thing, a user may do only this while it lasts."""
        what = (getattr(admin_module.ResourceType, kind), name, admin_module.ResourcePatternType.LITERAL)
        allow = admin_module.AclPermissionType.ALLOW
        who = (f"User:{user}", "*")
        rules = [(*what, *who, getattr(admin_module.AclOperation, one), allow) for one in operations]
        _all(self.admin.create_acls([admin_module.AclBinding(*rule) for rule in rules]))
        try:
            yield
        finally:
            _all(self.admin.delete_acls([admin_module.AclBindingFilter(*rule) for rule in rules]))


def _all(futures: dict[Any, Future[Any]]) -> None:
    for future in futures.values():
        future.result(PATIENCE)
