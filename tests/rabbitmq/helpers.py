"""What the tests of the RabbitMQ transport share."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pika

from dispytch._core.patterns import Pattern
from dispytch.abc import Delivery, EventRoute, EventSubscription, Message, Outcome, Settlement, Subscription
from dispytch.rabbitmq import RabbitMQConsumer, RabbitMQEventRoute, RabbitMQEventSubscription
from tests.support import unique


@contextmanager
def channel_to(url: str) -> Iterator[Any]:
    """A plain channel, for looking at the broker and for doing what Dispytch would not."""
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        yield connection.channel()


def publish(url: str, exchange: str, key: str, *bodies: bytes, properties: Any = None) -> None:
    with channel_to(url) as channel:
        for body in bodies:
            channel.basic_publish(exchange, key, body, properties)


def count(url: str, queue: str) -> int:
    """How many messages are ready in a queue."""
    with channel_to(url) as channel:
        found: int = channel.queue_declare(queue, passive=True).method.message_count
        return found


def drain(url: str, queue: str) -> list[tuple[Any, Any, bytes]]:
    with channel_to(url) as channel:
        found = []
        while (got := channel.basic_get(queue, auto_ack=True))[0] is not None:
            found.append(got)
        return found


def exists(url: str, *, queue: str | None = None, exchange: str | None = None) -> bool:
    with channel_to(url) as channel:
        try:
            if queue is not None:
                channel.queue_declare(queue, passive=True)
            if exchange is not None:
                channel.exchange_declare(exchange, passive=True)
        except pika.exceptions.ChannelClosedByBroker:
            return False
        return True


def message(key: str, payload: bytes = b"{}", *, exchange: str | None = None, id: str | None = None) -> Message:
    return Message(id or unique("id"), RabbitMQEventRoute(key, exchange), payload)


def subscribe(
    consumer: RabbitMQConsumer, declared: EventSubscription | EventRoute, *letters: EventRoute
) -> Subscription:
    own = consumer.subscription_for(declared)
    assert isinstance(own, RabbitMQEventSubscription)
    return Subscription(Pattern.parse(own.pattern, own.delimiter), own, letters)


def ack(*deliveries: Delivery) -> list[Settlement]:
    return [Settlement(delivery, Outcome.ACK) for delivery in deliveries]


def handed_over(sender: Any) -> int:
    """How many events a producer's client was given of which the broker has said nothing yet."""
    outlets = [outlet for name in ("_aio", "_outlet") if (outlet := getattr(sender, name, None)) is not None]
    return sum(batch.unconfirmed for outlet in outlets for batch in tuple(outlet._under_way))


def is_trio(anyio_backend: tuple[str, Any]) -> bool:
    return anyio_backend[0] == "trio"


earlier_threads: set[threading.Thread] = set()
"""Those that ran before the test began."""


def our_threads() -> list[str]:
    """The threads of RabbitMQ that the test has."""
    running = set(threading.enumerate()) - earlier_threads
    return [thread.name for thread in running if thread.name.startswith("dispytch rabbitmq")]


class Names:
    """An exchange and a queue of a test's own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.exchange = unique("exchange")
        self.queue = unique("queue")
        self.more: list[str] = []

    def another_queue(self) -> str:
        self.more.append(name := unique("queue"))
        return name

    def bind(self, key: str = "#", queue: str | None = None, arguments: Mapping[str, Any] | None = None) -> None:
        """Makes the exchange, and a queue that is bound to it."""
        with channel_to(self.url) as channel:
            channel.exchange_declare(self.exchange, "topic", durable=True)
            channel.queue_declare(queue or self.queue, durable=True, arguments=arguments)
            channel.queue_bind(queue or self.queue, self.exchange, key)

    def delete(self) -> None:
        with channel_to(self.url) as channel:
            for queue in (self.queue, *self.more):
                channel.queue_delete(queue)
                channel.queue_delete(f"{queue}.dead")
            channel.exchange_delete(self.exchange)
