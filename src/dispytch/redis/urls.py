"""``redis://`` and ``rediss://``."""

from __future__ import annotations

from dispytch.redis.consumer import RedisConsumer
from dispytch.redis.producer import RedisProducer

__all__ = ["consumer_from_url", "producer_from_url"]


def producer_from_url(url: str) -> RedisProducer:
    """A producer for Redis Pub/Sub."""
    return RedisProducer(url)


def consumer_from_url(url: str, group_id: str) -> RedisConsumer:
    """A consumer of Redis Pub/Sub, where every consumer gets everything: the group is a name for dead letters only."""
    consumer = RedisConsumer(url)
    consumer.group_id = group_id
    return consumer
