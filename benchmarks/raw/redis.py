"""redis-py by itself, with hiredis."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, ClassVar
from urllib.parse import urlsplit

import anyio

from benchmarks.bodies import validate, validate_structured
from benchmarks.plans import Message

_PIPELINE = 1000


class _Redis:
    def __init__(self, url: str, topic: str) -> None:
        import redis

        self._url = urlsplit(url)._replace(scheme="redis").geturl()
        self._topic = topic
        self._client: Any = redis.Redis.from_url(self._url)
        self._stopping = threading.Event()

    def _add(self, client: Any, message: Message) -> None:
        raise NotImplementedError

    def one(self, message: Message) -> None:
        self._add(self._client, message)

    def many(self, messages: Sequence[Message]) -> None:
        for first in range(0, len(messages), _PIPELINE):
            pipe = self._client.pipeline(transaction=False)
            for message in messages[first : first + _PIPELINE]:
                self._add(pipe, message)
            pipe.execute()

    def close(self) -> None:
        self._client.close()


class Streams(_Redis):
    consuming: ClassVar[str] = "redis.asyncio with hiredis, XREADGROUP COUNT 500, one XACK per read"
    emitting: ClassVar[str] = f"redis-py with hiredis; many: XADD in pipelines of {_PIPELINE}"

    def _add(self, client: Any, message: Message) -> None:
        client.xadd(self._topic, {**dict(message[1]), "data": message[0]})

    def receive(self, group: str, took: Callable[[int], object], ready: Callable[[], None]) -> None:
        anyio.run(self._receive, group, took, ready)

    async def _receive(self, group: str, took: Callable[[int], object], ready: Callable[[], None]) -> None:
        import redis.asyncio

        topic = self._topic
        client: Any = redis.asyncio.Redis.from_url(self._url)
        ready()
        while not self._stopping.is_set():
            for _, entries in await client.xreadgroup(group, "raw", {topic: ">"}, count=500, block=100):
                for _, fields in entries:
                    took(validate(fields[b"data"]).order_id)
                await client.xack(topic, group, *(entry for entry, _ in entries))
        await client.aclose()

    def stop(self) -> None:
        self._stopping.set()


class Pubsub(_Redis):
    consuming: ClassVar[str] = "redis-py with hiredis, SUBSCRIBE, parse_response in a loop"
    emitting: ClassVar[str] = f"redis-py with hiredis; many: PUBLISH in pipelines of {_PIPELINE}"

    def _add(self, client: Any, message: Message) -> None:
        client.publish(self._topic, message[0])

    def receive(self, group: str, took: Callable[[int], object], ready: Callable[[], None]) -> None:
        pubsub: Any = self._client.pubsub()
        pubsub.subscribe(self._topic)
        pubsub.parse_response()
        ready()
        while payload := pubsub.parse_response()[2]:
            took(validate_structured(payload).data.order_id)
        pubsub.close()

    def stop(self) -> None:
        self._client.publish(self._topic, b"")
