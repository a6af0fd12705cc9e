"""The transport for RabbitMQ."""

from dispytch.rabbitmq.consumer import RabbitMQConsumer
from dispytch.rabbitmq.producer import BlockingRabbitMQProducer, RabbitMQProducer
from dispytch.rabbitmq.routes import RabbitMQEventConfig, RabbitMQEventRoute, RabbitMQEventSubscription

__all__ = [
    "BlockingRabbitMQProducer",
    "RabbitMQConsumer",
    "RabbitMQEventConfig",
    "RabbitMQEventRoute",
    "RabbitMQEventSubscription",
    "RabbitMQProducer",
]
