"""What the producers of Pub/Sub and of Streams have in common: where they send to, and who does the sending."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import anyio.lowlevel

from dispytch._bridge import running_backend
from dispytch.abc import BlockingProducer, Message, Producer, ProducerBase, Receipt
from dispytch.errors import ConfigurationError, DispytchError, EmitRejectedError
from dispytch.redis.batches import Batch, Command
from dispytch.redis.blocking import BlockingDriver
from dispytch.redis.loops import AsyncioDriver, LoopDriver, SocketDriver, ThreadDriver
from dispytch.redis.source import Source, import_redis, is_asyncio

__all__ = ["LARGEST", "BlockingSender", "LoopSender", "Sender", "current_loop", "source_of"]

LARGEST = 512 * 1024 * 1024
"""Bytes: the server breaks off at longer arguments (``proto-max-bulk-len``)."""

_LOOP: anyio.lowlevel.RunVar[object] = anyio.lowlevel.RunVar("dispytch_redis_loop")


def current_loop() -> object:
    """Something that stands for the running loop."""
    try:
        return _LOOP.get()
    except LookupError:
        _LOOP.set(loop := object())
        return loop


def source_of(client: Any, asked_by: str) -> Source:
    """Where a URL or a ready-made client leads.

    Raises:
        ConfigurationError: it is neither, or the URL is wrong.
    """
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


class Sender(ProducerBase):
    """A producer of either world."""

    command: ClassVar[Command]
    """How a message is sent."""

    def __init__(self, redis: Any) -> None:
        self._source = self._source_of(redis)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} for {self._source.address}>"

    def _source_of(self, redis: Any) -> Source:
        return source_of(redis, type(self).__name__)

    def _check_address(self, address: str, kind: str) -> None:
        if not address:
            raise EmitRejectedError(f"the {kind} is empty; give the event a topic")
        try:
            address.encode()
        except UnicodeEncodeError:
            raise EmitRejectedError(f"the {kind}'s name holds half a surrogate pair; give proper text") from None

    def _check_size(self, address: str, largest: int) -> None:
        """Refuses a message whose largest part has so many bytes, where that is too much."""
        if largest > LARGEST or len(address) > LARGEST:
            raise EmitRejectedError(
                f"the message for {address[:200]} is larger than 512 MiB, the most that Redis takes"
            )


class LoopSender(Sender, Producer):
    """A producer for event loops; it may be used in one after the other."""

    def __init__(self, redis: Any) -> None:
        super().__init__(redis)
        self._driver: LoopDriver | None = None
        self._loop: object = None

    async def start(self) -> None:
        await self._here().start()

    async def send(self, messages: Sequence[Message], timeout: float | None) -> Sequence[Receipt | DispytchError]:
        batch = Batch(messages, self.command, self._source.address, timeout)
        if messages:
            await self._here().send(batch, timeout)
        else:
            await anyio.lowlevel.checkpoint()
        return batch.outcomes()

    async def stop(self) -> None:
        if self._driver is not None and self._loop is current_loop():
            await self._driver.stop()
        else:
            await anyio.lowlevel.checkpoint()

    @abstractmethod
    def blocking(self) -> BlockingProducer: ...

    def _here(self) -> LoopDriver:
        """The driver of the running loop."""
        loop = current_loop()
        if self._driver is None or self._loop is not loop:
            is_trio = running_backend() == "trio"
            if is_trio and self._source.world == "asyncio":
                raise ConfigurationError(
                    "a redis.asyncio.Redis works under asyncio only, and this is trio; give "
                    f"{type(self).__name__} a URL or a redis.Redis"
                )
            if self._source.world == "blocking":
                self._driver = ThreadDriver(self._source)
            else:
                self._driver = SocketDriver(self._source) if is_trio else AsyncioDriver(self._source)
            self._loop = loop
        return self._driver


class BlockingSender(Sender, BlockingProducer):
    """A producer for blocking code."""

    def __init__(self, redis: Any) -> None:
        super().__init__(redis)
        if self._source.world == "asyncio":
            name = type(self).__name__.removeprefix("Blocking")
            raise ConfigurationError(
                f"a redis.asyncio.Redis needs an asyncio event loop, and blocking code has none; give {name} a URL or "
                "a redis.Redis"
            )
        self._driver = BlockingDriver(self._source)

    def start(self) -> None:
        self._driver.start()

    def send(self, messages: Sequence[Message], timeout: float | None) -> Sequence[Receipt | DispytchError]:
        batch = Batch(messages, self.command, self._source.address, timeout)
        if messages:
            self._driver.send(batch, timeout)
        return batch.outcomes()

    def stop(self) -> None:
        self._driver.stop()

    def abandon(self) -> None:
        self._driver.abandon()
