"""The transport for Redis Pub/Sub."""

from dispytch.redis.consumer import RedisConsumer
from dispytch.redis.producer import BlockingRedisProducer, RedisProducer
from dispytch.redis.routes import RedisEventConfig, RedisEventRoute, RedisEventSubscription

__all__ = [
    "BlockingRedisProducer",
    "RedisConsumer",
    "RedisEventConfig",
    "RedisEventRoute",
    "RedisEventSubscription",
    "RedisProducer",
]
