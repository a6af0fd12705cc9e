"""The dispatcher's page, setting up a listener: a dependency reads the event, the consumer is started by hand.

The page has it for Kafka and for RabbitMQ; here the in-process broker stands in for them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

import anyio
from loops import run
from pydantic import BaseModel

from dispytch import Dependency, Event, EventBase, EventEmitter, EventListener
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryEventSubscription, MemoryProducer
from dispytch.middleware import Filter


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
    broker = MemoryBroker()
    consumer = MemoryConsumer(broker, group_id="listener_group")
    await consumer.start()
    listener = EventListener(consumer)
    handled = anyio.Event()

    @listener.handler(
        MemoryEventSubscription(topic="user_events"), middlewares=[Filter(lambda ctx: ctx.event["action"] == "login")]
    )
    async def handle_login(value: Annotated[int, Dependency(parse_value)]) -> None:
        print(f"Login action with value: {value}")
        handled.set()

    async with anyio.create_task_group() as group:
        group.start_soon(listener.listen)
        async with EventEmitter(MemoryProducer(broker)) as emitter:
            await emitter.emit(UserLoggedIn(action="logout", value=1))
            await emitter.emit(UserLoggedIn(action="login", value=2))
        await handled.wait()
        await listener.stop()


if __name__ == "__main__":
    run(main)
