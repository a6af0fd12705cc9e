"""The transports for Redis Pub/Sub and Redis Streams."""

from dispytch.redis.consumer import RedisConsumer
from dispytch.redis.producer import BlockingRedisProducer, RedisProducer
from dispytch.redis.routes import RedisEventConfig, RedisEventRoute, RedisEventSubscription
from dispytch.redis.store import RedisStore
from dispytch.redis.streams.consumer import RedisStreamConsumer
from dispytch.redis.streams.producer import BlockingRedisStreamProducer, RedisStreamProducer
from dispytch.redis.streams.routes import RedisStreamEventConfig, RedisStreamEventRoute, RedisStreamEventSubscription

__all__ = [
    "BlockingRedisProducer",
    "BlockingRedisStreamProducer",
    "RedisConsumer",
    "RedisEventConfig",
    "RedisEventRoute",
    "RedisEventSubscription",
    "RedisProducer",
    "RedisStore",
    "RedisStreamConsumer",
    "RedisStreamEventConfig",
    "RedisStreamEventRoute",
    "RedisStreamEventSubscription",
    "RedisStreamProducer",
]
