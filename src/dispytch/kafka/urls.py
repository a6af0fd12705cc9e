"""``kafka://`` and ``kafka+ssl://``."""

from __future__ import annotations

from dispytch.kafka.consumer import KafkaConsumer
from dispytch.kafka.diagnosis import diagnose
from dispytch.kafka.observer import KafkaObserver
from dispytch.kafka.producer import KafkaProducer

__all__ = ["consumer_from_url", "diagnose", "observer_from_url", "producer_from_url"]


def producer_from_url(url: str) -> KafkaProducer:
    """A producer for Kafka."""
    return KafkaProducer(url)


def consumer_from_url(url: str, group_id: str) -> KafkaConsumer:
    """A consumer of Kafka."""
    return KafkaConsumer(url, group_id=group_id)


def observer_from_url(url: str, name: str, from_start: bool) -> KafkaObserver:
    """A consumer in a group of its own."""
    return KafkaObserver(url, name, from_start)
