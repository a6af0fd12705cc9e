"""The producers of Redis Streams."""

from __future__ import annotations

from typing import Any, ClassVar

from dispytch.abc import EventConfig, EventRoute, Features, Message
from dispytch.errors import EmitRejectedError
from dispytch.redis.batches import Command
from dispytch.redis.senders import BlockingSender, LoopSender, Sender, source_of
from dispytch.redis.source import Source
from dispytch.redis.streams.entries import DATA, XADD
from dispytch.redis.streams.routes import TRANSPORT, RedisStreamEventConfig, RedisStreamEventRoute

__all__ = ["FEATURES", "BlockingRedisStreamProducer", "RedisStreamProducer", "stream_source"]

FEATURES = Features(header_prefix="ce_", patterns=False)


def stream_source(redis: Any, asked_by: str) -> Source:
    """The same as for Pub/Sub, with the URL schemes of Streams as well."""
    if isinstance(redis, str):
        for scheme in ("redis", "rediss"):
            if redis.startswith(f"{scheme}+stream://"):
                redis = scheme + redis.removeprefix(f"{scheme}+stream")
    return source_of(redis, asked_by)


class _StreamSender(Sender):
    transport: ClassVar[str] = TRANSPORT
    features = FEATURES
    route_type: ClassVar[type[EventRoute]] = RedisStreamEventRoute
    config_type: ClassVar[type[EventConfig]] = RedisStreamEventConfig
    command: ClassVar[Command] = XADD

    def _source_of(self, redis: Any) -> Source:
        return stream_source(redis, type(self).__name__)

    def route_for(self, topic: str) -> EventRoute:
        return RedisStreamEventRoute(topic)

    def check(self, message: Message) -> None:
        stream = message.route.address
        self._check_address(stream, "stream")
        largest = max(len(message.payload or b""), len(message.key or b""))
        for name, value in message.headers:
            if name == DATA:
                raise EmitRejectedError(
                    f"a header of the event for {stream} is named {DATA!r}, which is the field of the payload; name it "
                    "differently"
                )
            if len(value) > largest:
                largest = len(value)
        if message.payload is None and not message.headers and message.key is None:
            raise EmitRejectedError(f"the message for {stream} is null and has no headers, which makes no entry")
        self._check_size(stream, largest)


class RedisStreamProducer(_StreamSender, LoopSender):
    """Adds to Redis Streams, from an event loop, or by `blocking` from blocking code.

    Confirmed is what the server has answered XADD for: a receipt's ``offset`` is the entry's id. Nothing is tried
    twice.

    Args:
        redis: A URL or a ready-made client, see `RedisProducer`; ``redis+stream://`` and ``rediss+stream://`` are
            taken for ``redis://`` and ``rediss://``.

    Raises:
        ConfigurationError: the URL or one of its options is wrong.
        MissingExtraError: redis is not installed.
    """

    def blocking(self) -> BlockingRedisStreamProducer:
        return BlockingRedisStreamProducer(self._source)


class BlockingRedisStreamProducer(_StreamSender, BlockingSender):
    """Adds to Redis Streams from blocking code.

    Args:
        redis: A URL or a ``redis.Redis``; see `RedisStreamProducer`.

    Raises:
        ConfigurationError: the URL is wrong, or the client is an asyncio one.
        MissingExtraError: redis is not installed.
    """
