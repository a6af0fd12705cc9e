"""The dispatcher's page, a listener on Kafka: a dependency reads the event, the consumer is started by hand."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Annotated

import anyio
from loops import run
from pydantic import BaseModel

from dispytch import Dependency, Event, EventBase, EventEmitter, EventListener
from dispytch.kafka import KafkaConsumer, KafkaEventSubscription, KafkaProducer
from dispytch.middleware import Filter

SERVERS = os.environ.get("KAFKA_SERVERS", "localhost:9092")


class MyEventBody(BaseModel):
    action: str
    value: int


class UserLoggedIn(EventBase):
    __topic__ = "user_events"
    __event_type__ = "user_logged_in"
    action: str
    value: int


async def parse_value(event: Event[MyEventBody]) -> AsyncIterator[int]:
    yield event.body.value


async def main() -> None:
    consumer = KafkaConsumer(SERVERS, group_id="listener_group")
    await consumer.start()
    listener = EventListener(consumer)
    handled = anyio.Event()

    @listener.handler(
        KafkaEventSubscription(topic="user_events"), middlewares=[Filter(lambda ctx: ctx.event["action"] == "login")]
    )
    async def handle_login(value: Annotated[int, Dependency(parse_value)]) -> None:
        print(f"Login action with value: {value}")
        handled.set()

    async with anyio.create_task_group() as group:
        group.start_soon(listener.listen)
        async with EventEmitter(KafkaProducer(SERVERS)) as emitter:
            await emitter.emit(UserLoggedIn(action="logout", value=1))
            await emitter.emit(UserLoggedIn(action="login", value=2))
        await handled.wait()
        await listener.stop()


if __name__ == "__main__":
    run(main)
