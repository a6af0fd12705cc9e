"""A transport in one of four columns: asyncio, uvloop, trio, and the blocking facade seen from asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Protocol

import anyio.to_thread

from dispytch import EventBase, EventDispatcher, EventEmitter
from dispytch import sync as blocking
from dispytch.abc import Consumer, Features, Producer, Receipt
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryProducer

AnyDispatcher = EventDispatcher | blocking.EventDispatcher


class Emitter(Protocol):
    async def emit(self, event: EventBase) -> Receipt | None: ...

    async def emit_many(self, events: Iterable[EventBase]) -> list[Receipt | None]: ...

    async def close(self) -> None: ...


class _ThreadEmitter:
    """The blocking emitter, for a test in an event loop: every call in a worker thread."""

    def __init__(self, emitter: blocking.EventEmitter) -> None:
        self._emitter = emitter

    async def emit(self, event: EventBase) -> Receipt | None:
        return await anyio.to_thread.run_sync(self._emitter.emit, event)

    async def emit_many(self, events: Iterable[EventBase]) -> list[Receipt | None]:
        return await anyio.to_thread.run_sync(self._emitter.emit_many, events)

    async def close(self) -> None:
        await anyio.to_thread.run_sync(self._emitter.close)


class Rig:
    """Makes emitters and dispatchers of one transport and one column."""

    def __init__(
        self,
        name: str,
        column: str,
        features: Features,
        producer: Callable[[], Producer],
        consumer: Callable[[str], Consumer],
        config: Callable[[dict[str, str | bytes]], Any],
    ) -> None:
        self.name = name
        self.column = column
        self.features = features
        self.producer = producer
        self.consumer = consumer
        self.config = config
        self.broker: MemoryBroker | None = None

    @property
    def is_blocking(self) -> bool:
        return self.column == "blocking"

    @asynccontextmanager
    async def emitter(self, **options: Any) -> AsyncIterator[Emitter]:
        if not self.is_blocking:
            async with EventEmitter(self.producer(), **options) as emitter:
                yield emitter
            return
        inner = blocking.EventEmitter(self.producer(), **options)
        emitter_in_thread = _ThreadEmitter(inner)
        try:
            yield emitter_in_thread
        finally:
            await emitter_in_thread.close()

    def dispatcher(self, group: str = "group", **options: Any) -> AnyDispatcher:
        kind = blocking.EventDispatcher if self.is_blocking else EventDispatcher
        return kind(self.consumer(group), **options)

    @asynccontextmanager
    async def running(self, *dispatchers: AnyDispatcher) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for dispatcher in dispatchers:
                if isinstance(dispatcher, EventDispatcher):
                    await stack.enter_async_context(dispatcher.lifespan())
                else:
                    await anyio.to_thread.run_sync(dispatcher.start)
                    stack.push_async_callback(anyio.to_thread.run_sync, dispatcher.stop)
            yield


def memory_rig(column: str) -> Rig:
    from dispytch.memory import MemoryEventConfig

    broker = MemoryBroker()
    rig = Rig(
        "memory",
        column,
        MemoryConsumer.features,
        lambda: MemoryProducer(broker),
        lambda group: MemoryConsumer(broker, group),
        lambda headers: MemoryEventConfig(headers=headers),
    )
    rig.broker = broker
    return rig


def redis_rig(column: str, url: str) -> Rig:
    from dispytch.redis import RedisConsumer, RedisEventConfig, RedisProducer

    return Rig(
        "redis",
        column,
        RedisConsumer.features,
        lambda: RedisProducer(url),
        lambda group: RedisConsumer(url),
        lambda headers: RedisEventConfig(headers=headers),
    )
