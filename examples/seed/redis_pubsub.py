"""The dispatcher's page, Redis: a ready-made ``pubsub`` of ``redis.asyncio``.

Such a client belongs to asyncio: under trio the dispatcher refuses it, and says what to use instead.
"""

from __future__ import annotations

import asyncio
import os

import anyio
from loops import run
from pydantic import BaseModel
from redis.asyncio import Redis

from dispytch import Event, EventBase, EventDispatcher, EventEmitter
from dispytch.errors import ConfigurationError
from dispytch.redis import RedisConsumer, RedisEventSubscription, RedisProducer

URL = os.environ.get("REDIS_URL", "redis://localhost:6379")


class SystemAlert(BaseModel):
    level: str
    message: str


class AlertRaised(EventBase):
    __topic__ = "system.alerts"
    level: str
    message: str


async def main() -> None:
    redis = Redis.from_url(URL)
    pubsub = redis.pubsub()
    if running_on_asyncio():
        await pubsub.subscribe("system.alerts")

    consumer = RedisConsumer(pubsub)
    dispatcher = EventDispatcher(consumer)
    handled = anyio.Event()

    @dispatcher.handler(RedisEventSubscription(channel="system.alerts"))
    async def handle_alert(event: Event[SystemAlert]) -> None:
        print(f"[{event.body.level.upper()}] {event.body.message}")
        handled.set()

    try:
        async with dispatcher.lifespan(), EventEmitter(RedisProducer(URL)) as emitter:
            await emitter.emit(AlertRaised(level="info", message="all is well"))
            await handled.wait()
    except ConfigurationError as error:
        print(f"refused: {error}")
    finally:
        if running_on_asyncio():  # a client that was handed in is its owner's to close
            await pubsub.aclose()
            await redis.aclose()


def running_on_asyncio() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


if __name__ == "__main__":
    run(main)
