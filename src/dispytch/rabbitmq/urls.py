"""``amqp://`` and ``amqps://``."""

from __future__ import annotations

from dispytch.errors import ConfigurationError
from dispytch.rabbitmq.consumer import RabbitMQConsumer, RabbitMQObserver
from dispytch.rabbitmq.diagnosis import diagnose
from dispytch.rabbitmq.producer import RabbitMQProducer

__all__ = ["consumer_from_url", "diagnose", "observer_from_url", "producer_from_url"]


def producer_from_url(url: str) -> RabbitMQProducer:
    """A producer for the exchange ``dispytch``."""
    return RabbitMQProducer(url)


def consumer_from_url(url: str, group_id: str) -> RabbitMQConsumer:
    """A consumer whose queue has the name of the group."""
    return RabbitMQConsumer(url, queue=group_id)


def observer_from_url(url: str, name: str, from_start: bool) -> RabbitMQObserver:
    """A consumer with a queue of its own."""
    if from_start:
        raise ConfigurationError(
            "RabbitMQ gives a queue what is published after it was bound, and nothing from before; leave out the start"
        )
    return RabbitMQObserver(url, queue=name)
