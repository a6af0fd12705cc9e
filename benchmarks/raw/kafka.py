"""confluent-kafka by itself."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from benchmarks.bodies import validate
from benchmarks.plans import Message


class Kafka:
    consuming: ClassVar[str] = (
        "poll(0.1), consume(499, 0), one commit per batch without waiting for it; fetch.queue.backoff.ms=10"
    )
    emitting: ClassVar[str] = "produce with delivery reports, then flush; enable.idempotence, linger.ms=5, acks=all"

    def __init__(self, url: str, topic: str) -> None:
        self._servers = url.partition("://")[2].rstrip("/")
        self._topic = topic
        self._producer: Any = None
        self._confirmed = 0
        self._stopping = threading.Event()

    def _sender(self) -> Any:
        if self._producer is None:
            from confluent_kafka import Producer

            self._producer = Producer(
                {"bootstrap.servers": self._servers, "enable.idempotence": True, "linger.ms": 5, "acks": "all"}
            )
            self._producer.list_topics(self._topic, timeout=10)
        return self._producer

    def _on_delivery(self, error: Any, _: Any) -> None:
        if error is not None:
            raise RuntimeError(str(error))
        self._confirmed += 1

    def one(self, message: Message) -> None:
        self.many([message])

    def many(self, messages: Sequence[Message]) -> None:
        producer, before = self._sender(), self._confirmed
        for payload, headers in messages:
            while True:
                try:
                    producer.produce(self._topic, payload, headers=list(headers), on_delivery=self._on_delivery)
                    break
                except BufferError:
                    producer.poll(0.01)
            producer.poll(0)
        producer.flush()
        if self._confirmed - before != len(messages):
            raise RuntimeError(f"{self._confirmed - before} of {len(messages)} were confirmed")

    def receive(self, group: str, took: Callable[[int], object], ready: Callable[[], None]) -> None:
        from confluent_kafka import Consumer

        consumer = Consumer(
            {
                "bootstrap.servers": self._servers,
                "group.id": group,
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "fetch.queue.backoff.ms": 10,
            }
        )
        consumer.subscribe([self._topic])
        ready()
        while not self._stopping.is_set():
            first = consumer.poll(0.1)
            if first is None:
                continue
            for message in (first, *consumer.consume(499, 0)):
                took(validate(message.value() or b"").order_id)
            consumer.commit(asynchronous=True)
        consumer.close()

    def stop(self) -> None:
        self._stopping.set()

    def close(self) -> None: ...
