"""``redis://`` and ``rediss://`` for Pub/Sub, ``redis+stream://`` and ``rediss+stream://`` for Streams."""

from __future__ import annotations

from dispytch.errors import ConfigurationError
from dispytch.redis.consumer import RedisConsumer
from dispytch.redis.diagnosis import diagnose
from dispytch.redis.producer import RedisProducer
from dispytch.redis.streams.consumer import RedisStreamConsumer
from dispytch.redis.streams.observer import RedisStreamObserver
from dispytch.redis.streams.producer import RedisStreamProducer

__all__ = ["consumer_from_url", "diagnose", "observer_from_url", "producer_from_url"]


def _is_stream(url: str) -> bool:
    return url.startswith(("redis+stream://", "rediss+stream://"))


def producer_from_url(url: str) -> RedisProducer | RedisStreamProducer:
    """A producer for Redis Pub/Sub, or for Redis Streams."""
    return RedisStreamProducer(url) if _is_stream(url) else RedisProducer(url)


def consumer_from_url(url: str, group_id: str) -> RedisConsumer | RedisStreamConsumer:
    """A consumer of a group on Redis Streams; or one of Redis Pub/Sub, where every consumer gets everything, and the
    group is a name for dead letters only.
    """
    if _is_stream(url):
        return RedisStreamConsumer(url, group_id=group_id)
    consumer = RedisConsumer(url)
    consumer.group_id = group_id
    return consumer


def observer_from_url(url: str, name: str, from_start: bool) -> RedisConsumer | RedisStreamObserver:
    """On Streams a reader without a group; on Pub/Sub a consumer, since there everybody gets everything."""
    if _is_stream(url):
        return RedisStreamObserver(url, from_start=from_start)
    if from_start:
        raise ConfigurationError(
            "Redis Pub/Sub keeps nothing, so there is only what comes next; leave out the start, or use Redis Streams"
        )
    return RedisConsumer(url)
