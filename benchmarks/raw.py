"""The clients by themselves, in the fastest way that each documents: the floor that the library is measured against.

``consume`` validates the body and acknowledges in batches, ``emit`` sends prepared bytes and waits for all
confirmations; both return seconds. They take turns with the library on the same broker and on the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import anyio
from pydantic import TypeAdapter

from benchmarks.bodies import OrderBody

Headers = Sequence[tuple[str, bytes]]
validate: Callable[[bytes], OrderBody] = TypeAdapter(OrderBody).validate_json


class Count:
    """Notes when the first and the last of ``total`` events were handled."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.seen: set[int] = set()
        self.begin = 0.0

    def add(self, number: int) -> bool:
        """Whether it was the last one."""
        if not self.seen:
            self.begin = time.perf_counter()
        self.seen.add(number)
        return len(self.seen) == self.total

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.begin


def _bootstrap(url: str) -> str:
    return url.partition("://")[2].rstrip("/")


# --- Kafka


def kafka_consume(url: str, topic: str, group: str, total: int) -> float:
    from confluent_kafka import Consumer

    consumer = Consumer(
        {
            "bootstrap.servers": _bootstrap(url),
            "group.id": group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "fetch.queue.backoff.ms": 10,
        }
    )
    consumer.subscribe([topic])
    count = Count(total)
    is_last = False
    while not is_last:
        first = consumer.poll(0.1)
        if first is None:
            continue
        for message in (first, *consumer.consume(499, 0)):
            is_last = count.add(validate(message.value() or b"").order_id)
        consumer.commit(asynchronous=False)
    seconds = count.seconds
    consumer.close()
    return seconds


def kafka_emit(url: str, topic: str, messages: Sequence[tuple[bytes, Headers]]) -> float:
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": _bootstrap(url), "enable.idempotence": True, "linger.ms": 5})
    producer.list_topics(topic, timeout=10)
    confirmed = 0

    def on_delivery(error: Any, _: Any) -> None:
        nonlocal confirmed
        if error is not None:
            raise RuntimeError(str(error))
        confirmed += 1

    begin = time.perf_counter()
    for payload, headers in messages:
        while True:
            try:
                producer.produce(topic, payload, headers=list(headers), on_delivery=on_delivery)
                break
            except BufferError:
                producer.poll(0.01)
        producer.poll(0)
    producer.flush()
    seconds = time.perf_counter() - begin
    if confirmed != len(messages):
        raise RuntimeError(f"{confirmed} of {len(messages)} were confirmed")
    return seconds


# --- RabbitMQ


def rabbitmq_consume(url: str, topic: str, group: str, total: int) -> float:
    import pika

    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.basic_qos(prefetch_count=500)
    count = Count(total)
    seconds = 0.0

    def on_message(channel: Any, method: Any, properties: Any, payload: bytes) -> None:
        nonlocal seconds
        is_last = count.add(validate(payload).order_id)
        if is_last or method.delivery_tag % 250 == 0:
            channel.basic_ack(method.delivery_tag, multiple=True)
        if is_last:
            seconds = count.seconds
            channel.stop_consuming()

    channel.basic_consume(group, on_message)
    channel.start_consuming()
    connection.close()
    return seconds


def rabbitmq_emit(url: str, topic: str, messages: Sequence[tuple[bytes, Headers]]) -> float:
    import pika

    channel: Any = None
    begin = seconds = 0.0
    total = len(messages)

    def on_confirm(frame: Any) -> None:
        nonlocal seconds
        if frame.method.delivery_tag == total:
            seconds = time.perf_counter() - begin
            connection.close()

    def publish(_: Any) -> None:
        nonlocal begin
        begin = time.perf_counter()
        for payload, headers in messages:
            properties = pika.BasicProperties(headers=dict(headers), delivery_mode=2)
            channel.basic_publish("dispytch", topic, payload, properties, mandatory=True)

    def on_channel(opened: Any) -> None:
        nonlocal channel
        channel = opened
        channel.confirm_delivery(on_confirm, callback=publish)

    connection = pika.SelectConnection(
        pika.URLParameters(url),
        on_open_callback=lambda connection: connection.channel(on_open_callback=on_channel),
        on_close_callback=lambda connection, _: connection.ioloop.stop(),
    )
    connection.ioloop.start()
    return seconds


# --- Redis


def streams_consume(url: str, topic: str, group: str, total: int) -> float:
    import redis.asyncio

    async def main() -> float:
        client: Any = redis.asyncio.Redis.from_url(_redis(url))
        count = Count(total)
        is_last = False
        while not is_last:
            for _, entries in await client.xreadgroup(group, "raw", {topic: ">"}, count=100, block=1000):
                for _, fields in entries:
                    is_last = count.add(validate(fields[b"data"]).order_id)
                await client.xack(topic, group, *(entry for entry, _ in entries))
        seconds = count.seconds
        await client.aclose()
        return seconds

    return anyio.run(main)


def streams_emit(url: str, topic: str, messages: Sequence[tuple[bytes, Headers]]) -> float:
    return _redis_pipeline(
        url,
        messages,
        lambda pipe, payload, headers: pipe.xadd(topic, {"data": payload, **dict(headers)}),
    )


def pubsub_consume(url: str, topic: str, group: str, total: int, fill: Callable[[], None]) -> float:
    import redis

    client = redis.Redis.from_url(_redis(url))
    pubsub: Any = client.pubsub()  # type: ignore[no-untyped-call]  # redis leaves it so
    pubsub.subscribe(topic)
    pubsub.parse_response()
    fill()
    count = Count(total)
    while not count.add(validate(_data_of(pubsub.parse_response()[2])).order_id):
        pass
    seconds = count.seconds
    client.close()
    return seconds


def _data_of(structured: bytes) -> bytes:
    # The envelope is the payload here, so a raw client has to take it apart as well.
    import json

    return json.dumps(json.loads(structured)["data"]).encode()


def pubsub_emit(url: str, topic: str, messages: Sequence[tuple[bytes, Headers]]) -> float:
    return _redis_pipeline(url, messages, lambda pipe, payload, headers: pipe.publish(topic, payload))


def _redis_pipeline(
    url: str, messages: Sequence[tuple[bytes, Headers]], add: Callable[[Any, bytes, Headers], object]
) -> float:
    import redis

    client = redis.Redis.from_url(_redis(url))
    client.ping()
    begin = time.perf_counter()
    for first in range(0, len(messages), 1000):
        pipe = client.pipeline(transaction=False)
        for payload, headers in messages[first : first + 1000]:
            add(pipe, payload, headers)
        pipe.execute()
    seconds = time.perf_counter() - begin
    client.close()
    return seconds


def _redis(url: str) -> str:
    return urlsplit(url)._replace(scheme="redis").geturl()
