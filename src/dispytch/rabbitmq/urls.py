"""``amqp://`` and ``amqps://``."""

from __future__ import annotations

from dispytch.rabbitmq.consumer import RabbitMQConsumer
from dispytch.rabbitmq.producer import RabbitMQProducer

__all__ = ["consumer_from_url", "producer_from_url"]


def producer_from_url(url: str) -> RabbitMQProducer:
    """A producer for the exchange ``dispytch``."""
    return RabbitMQProducer(url)


def consumer_from_url(url: str, group_id: str) -> RabbitMQConsumer:
    """A consumer whose queue has the name of the group."""
    return RabbitMQConsumer(url, queue=group_id)
