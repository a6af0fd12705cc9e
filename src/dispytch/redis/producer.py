"""The producers of Redis Pub/Sub."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, ClassVar

import anyio.lowlevel

from dispytch._bridge import running_backend
from dispytch.abc import BlockingProducer, EventConfig, EventRoute, Features, Message, Producer, ProducerBase, Receipt
from dispytch.errors import ConfigurationError, DispytchError, EmitRejectedError
from dispytch.redis.batches import Batch
from dispytch.redis.blocking import BlockingDriver
from dispytch.redis.loops import AsyncioDriver, LoopDriver, ThreadDriver
from dispytch.redis.routes import RedisEventConfig, RedisEventRoute
from dispytch.redis.source import Source, import_redis, is_asyncio

__all__ = ["FEATURES", "BlockingRedisProducer", "RedisProducer"]

FEATURES = Features(headers=False, acknowledges=False, consumer_groups=False, persistent=False, old_messages=False)

_LARGEST = 512 * 1024 * 1024
"""Bytes: the server breaks off at longer arguments (``proto-max-bulk-len``)."""

_LOOP: anyio.lowlevel.RunVar[object] = anyio.lowlevel.RunVar("dispytch_redis_loop")


def _current_loop() -> object:
    """Something that stands for the running loop."""
    try:
        return _LOOP.get()
    except LookupError:
        _LOOP.set(loop := object())
        return loop


def _source(client: Any, asked_by: str) -> Source:
    if isinstance(client, Source):
        return client
    if isinstance(client, str):
        return Source.from_url(client)
    redis = import_redis()
    if is_asyncio(client) and isinstance(client, sys.modules["redis.asyncio"].Redis):
        return Source.from_pool(client.connection_pool, "asyncio")
    if isinstance(client, redis.Redis):
        return Source.from_pool(client.connection_pool, "blocking")
    raise ConfigurationError(
        f"{asked_by} takes a URL such as 'redis://localhost:6379/0', a redis.asyncio.Redis or a redis.Redis, not "
        f"{type(client).__name__}"
    )


class _Sender(ProducerBase):
    transport: ClassVar[str] = "redis"
    features = FEATURES
    route_type: ClassVar[type[EventRoute]] = RedisEventRoute
    config_type: ClassVar[type[EventConfig]] = RedisEventConfig

    def __init__(self, redis: Any) -> None:
        self._source = _source(redis, type(self).__name__)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} for {self._source.address}>"

    def route_for(self, topic: str) -> EventRoute:
        return RedisEventRoute(topic)

    def check(self, message: Message) -> None:
        channel = message.route.address
        if not channel:
            raise EmitRejectedError("the channel is empty; give the event a topic")
        try:
            channel.encode()
        except UnicodeEncodeError:
            raise EmitRejectedError("the channel's name holds half a surrogate pair; give proper text") from None
        if message.payload is None:
            raise EmitRejectedError(f"the message for {channel} is null, which Redis cannot send")
        if max(len(message.payload), len(channel)) > _LARGEST:
            raise EmitRejectedError(
                f"the message for {channel[:200]} is larger than 512 MiB, the most that Redis takes"
            )


class RedisProducer(_Sender, Producer):
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

    def __init__(self, redis: Any) -> None:
        super().__init__(redis)
        self._driver: LoopDriver | None = None
        self._loop: object = None

    async def start(self) -> None:
        await self._here().start()

    async def send(self, messages: Sequence[Message], timeout: float | None) -> Sequence[Receipt | DispytchError]:
        batch = Batch(messages, self._source.address, timeout)
        if messages:
            await self._here().send(batch, timeout)
        else:
            await anyio.lowlevel.checkpoint()
        return batch.outcomes()

    async def stop(self) -> None:
        if self._driver is not None and self._loop is _current_loop():
            await self._driver.stop()
        else:
            await anyio.lowlevel.checkpoint()

    def blocking(self) -> BlockingRedisProducer:
        return BlockingRedisProducer(self._source)

    def _here(self) -> LoopDriver:
        """The driver of the running loop."""
        loop = _current_loop()
        if self._driver is None or self._loop is not loop:
            is_trio = running_backend() == "trio"
            if is_trio and self._source.world == "asyncio":
                raise ConfigurationError(
                    "a redis.asyncio.Redis works under asyncio only, and this is trio; give RedisProducer a URL or a "
                    "redis.Redis"
                )
            use_threads = is_trio or self._source.world == "blocking"
            self._driver = ThreadDriver(self._source) if use_threads else AsyncioDriver(self._source)
            self._loop = loop
        return self._driver


class BlockingRedisProducer(_Sender, BlockingProducer):
    """Publishes to channels of Redis Pub/Sub from blocking code.

    Args:
        redis: A URL or a ``redis.Redis``; see `RedisProducer`.

    Raises:
        ConfigurationError: the URL is wrong, or the client is an asyncio one.
        MissingExtraError: redis is not installed.
    """

    def __init__(self, redis: Any) -> None:
        super().__init__(redis)
        if self._source.world == "asyncio":
            raise ConfigurationError(
                "a redis.asyncio.Redis needs an asyncio event loop, and blocking code has none; give RedisProducer a "
                "URL or a redis.Redis"
            )
        self._driver = BlockingDriver(self._source)

    def start(self) -> None:
        self._driver.start()

    def send(self, messages: Sequence[Message], timeout: float | None) -> Sequence[Receipt | DispytchError]:
        batch = Batch(messages, self._source.address, timeout)
        if messages:
            self._driver.send(batch, timeout)
        return batch.outcomes()

    def stop(self) -> None:
        self._driver.stop()

    def abandon(self) -> None:
        self._driver.abandon()
