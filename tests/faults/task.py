"""What a worker process is to do, and the event that it handles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from dispytch import EventBase
from dispytch.abc import Consumer, Producer

__all__ = ["HEAD", "Job", "Mutation", "Task", "Transport", "producer_for"]

Transport = Literal["kafka", "rabbitmq", "redis"]
Mutation = Literal["acknowledge-early", "commit-past-gap", "forget-letters", "no-drain"]

HEAD = "head"
"""The key of the events whose handler takes `Task.head` seconds."""


class Job(EventBase):
    """One event of a run."""

    __topic__ = "{topic}"
    __key__ = "{key}"
    topic: str
    key: str
    sequence: int

    @property
    def name(self) -> str:
        """What the ledgers call it."""
        return f"{self.key}.{self.sequence}"


@dataclass(frozen=True)
class Task:
    """One worker's orders.

    Attributes:
        transport: The kind of broker at ``url``.
        group: The consumer group; on RabbitMQ the queue.
        folder: Where the ledger and the log go.
        loop: ``"asyncio"``, ``"uvloop"`` or ``"trio"``.
        ack_first: Whether events are acknowledged before they are handled.
        seed: Decides how long each event takes, and which fail.
        shortest, longest: Seconds that a handler takes, at least and at most.
        failing: The share of the events whose handler always raises.
        head: Seconds for events whose key is `HEAD`.
        blocks: Whether the handler of such an event blocks the loop, instead of waiting.
        stay: Seconds after which it leaves the group and joins again at once; 0 to stay.
        options: Further ones of the transport's consumer.
        mutation: The mistake to make, as a proof that it would be found.
    """

    transport: Transport
    url: str
    group: str
    topic: str
    folder: str
    loop: str = "asyncio"
    concurrency: int = 100
    ack_first: bool = False
    seed: int = 0
    shortest: float = 0.01
    longest: float = 0.1
    failing: float = 0.0
    head: float = 0.0
    blocks: bool = False
    stay: float = 0.0
    max_deliveries: int = 1
    drain_timeout: float = 30.0
    options: Mapping[str, Any] = field(default_factory=dict)
    mutation: Mutation | None = None

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Orders from a command line."""
        return cls(**json.loads(text))

    def consumer(self) -> Consumer:
        """A new consumer of the transport."""
        if self.transport == "kafka":
            from dispytch.kafka import KafkaConsumer

            return KafkaConsumer(self.url, group_id=self.group, **self.options)
        if self.transport == "rabbitmq":
            from dispytch.rabbitmq import RabbitMQConsumer

            return RabbitMQConsumer(self.url, queue=self.group, **self.options)
        from dispytch.redis import RedisStreamConsumer

        return RedisStreamConsumer(self.url, group_id=self.group, **self.options)


def producer_for(transport: Transport, url: str) -> Producer:
    """A new producer of the transport."""
    if transport == "kafka":
        from dispytch.kafka import KafkaProducer

        return KafkaProducer(url)
    if transport == "rabbitmq":
        from dispytch.rabbitmq import RabbitMQProducer

        return RabbitMQProducer(url)
    from dispytch.redis import RedisStreamProducer

    return RedisStreamProducer(url)
