"""The transport for Apache Kafka."""

from dispytch.kafka.consumer import KafkaConsumer
from dispytch.kafka.producer import BlockingKafkaProducer, KafkaProducer
from dispytch.kafka.routes import KafkaEventConfig, KafkaEventRoute, KafkaEventSubscription

__all__ = [
    "BlockingKafkaProducer",
    "KafkaConsumer",
    "KafkaEventConfig",
    "KafkaEventRoute",
    "KafkaEventSubscription",
    "KafkaProducer",
]
