"""The producers of Redis Pub/Sub."""

from __future__ import annotations

from typing import Any, ClassVar

from dispytch.abc import EventConfig, EventRoute, Features, Message, Receipt
from dispytch.errors import EmitRejectedError
from dispytch.redis.batches import Command
from dispytch.redis.routes import RedisEventConfig, RedisEventRoute
from dispytch.redis.senders import BlockingSender, LoopSender, Sender
from dispytch.redis.source import import_redis

__all__ = ["FEATURES", "BlockingRedisProducer", "RedisProducer"]

FEATURES = Features(headers=False, acknowledges=False, consumer_groups=False, persistent=False, old_messages=False)


def _pack(message: Message) -> bytes:
    channel, payload = message.route.address.encode(), message.payload or b""
    return b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(channel), channel, len(payload), payload)


def _receipt(message: Message, reply: Any) -> Receipt:
    if not isinstance(reply, int):
        raise import_redis().exceptions.InvalidResponse("the reply to PUBLISH is not a number")
    return Receipt(message.id, message.route.address, receivers=reply)


class _PubSubSender(Sender):
    transport: ClassVar[str] = "redis"
    features = FEATURES
    route_type: ClassVar[type[EventRoute]] = RedisEventRoute
    config_type: ClassVar[type[EventConfig]] = RedisEventConfig
    command: ClassVar[Command] = Command(_pack, _receipt)

    def route_for(self, topic: str) -> EventRoute:
        return RedisEventRoute(topic)

    def check(self, message: Message) -> None:
        channel = message.route.address
        self._check_address(channel, "channel")
        if message.payload is None:
            raise EmitRejectedError(f"the message for {channel} is null, which Redis cannot send")
        self._check_size(channel, len(message.payload))


class RedisProducer(_PubSubSender, LoopSender):
    """Publishes to channels of Redis Pub/Sub, from an event loop, or by `blocking` from blocking code.

    A receipt's ``receivers`` is how many subscriptions the event reached: 0 means that nobody got it.

    Args:
        redis: ``redis://user:password@host:6379/0``, or ``rediss://`` for TLS with verification; options such as
            ``?ssl_ca_certs=/path`` are those of redis-py. Or a ready-made client, ``redis.asyncio.Redis`` (on asyncio
            only) or ``redis.Redis`` (anywhere): connections are made by its options, save those about retries,
            decoding and time-outs, and its own connections are left alone.

    Raises:
        ConfigurationError: the URL or one of its options is wrong.
        MissingExtraError: redis is not installed.
    """

    def blocking(self) -> BlockingRedisProducer:
        return BlockingRedisProducer(self._source)


class BlockingRedisProducer(_PubSubSender, BlockingSender):
    """Publishes to channels of Redis Pub/Sub from blocking code.

    Args:
        redis: A URL or a ``redis.Redis``; see `RedisProducer`.

    Raises:
        ConfigurationError: the URL is wrong, or the client is an asyncio one.
        MissingExtraError: redis is not installed.
    """
