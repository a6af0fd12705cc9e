"""The dispatcher's page, a listener on RabbitMQ: a ready-made queue of aio-pika, declared and bound by its owner.

Such a client belongs to asyncio: under trio the dispatcher refuses it, and says what to use instead.
"""

from __future__ import annotations

import asyncio
import os

import aio_pika
import anyio
from loops import run
from pydantic import BaseModel

from dispytch import Event, EventBase, EventEmitter, EventListener
from dispytch.errors import ConfigurationError
from dispytch.rabbitmq import (
    RabbitMQConsumer,
    RabbitMQEventRoute,
    RabbitMQEventSubscription,
    RabbitMQProducer,
)

URL = os.environ.get("RABBITMQ_URL", "amqp://guest:guest@localhost:5672")


class Notification(BaseModel):
    text: str


class UserNotified(EventBase):
    __route__ = RabbitMQEventRoute(exchange="notifications", routing_key="user.notified")
    text: str


async def main() -> None:
    connection = await aio_pika.connect(URL)
    channel = await connection.channel()
    exchange = await channel.declare_exchange("notifications", aio_pika.ExchangeType.DIRECT, durable=True)
    queue = await channel.declare_queue("notifications", durable=True)
    await channel.declare_queue("notifications.dead", durable=True)  # for what cannot be handled
    await queue.bind(exchange, routing_key="user.notified")

    listener = EventListener(RabbitMQConsumer(queue))
    handled = anyio.Event()

    @listener.handler(RabbitMQEventSubscription(queue="notifications", routing_key="user.notified"))
    async def handle_notification(event: Event[Notification]) -> None:
        print(f"Notified: {event.body.text}")
        handled.set()

    async with connection, anyio.create_task_group() as group:
        group.start_soon(listener.listen)
        async with EventEmitter(RabbitMQProducer(URL)) as emitter:
            await emitter.emit(UserNotified(text="all is well"))
        await handled.wait()
        await listener.stop()


async def refused() -> None:
    """What the same program gets to read under trio, where aio-pika cannot run."""
    try:
        async with EventEmitter(RabbitMQProducer(URL, driver="aio-pika")) as emitter:
            await emitter.emit(UserNotified(text="never"))
    except ConfigurationError as error:
        print(f"refused: {error}")


def running_on_asyncio() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


if __name__ == "__main__":
    run(lambda: main() if running_on_asyncio() else refused())
