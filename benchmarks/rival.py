"""FastStream, another library of this kind, on asyncio: with the best settings that it has for at-least-once delivery.

On Kafka it takes one message at a time unless it may acknowledge first. On Redis it has a format of its own, so there
its own publisher writes what it reads; the body is the same.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Annotated, Any
from urllib.parse import urlsplit

import anyio

from benchmarks.bodies import OrderBody, body, get_rate
from benchmarks.plans import Plan, take_steps_async

SETTINGS = {
    "memory": "TestRedisBroker, publish one by one",
    "kafka": "confluent, AckPolicy.ACK (which allows one worker), publish_batch",
    "rabbitmq": "prefetch 500, AckPolicy.NACK_ON_ERROR, publish gathered, persistent",
    "streams": "max_workers=100, max_records=500, AckPolicy.NACK_ON_ERROR, publish in a pipeline",
    "pubsub": "max_workers=100, publish in a pipeline",
}
OWN_FORMAT = ("streams", "pubsub")
"""Transports on which it reads a format of its own."""


def can(transport: str, measure: str) -> bool:
    """Whether it has what a measure needs: in memory it only has a broker for tests."""
    return transport != "memory" or measure == "through"


def run(plan: Plan) -> None:
    """Takes a plan's steps on asyncio."""
    anyio.run(_run, plan)


async def _run(plan: Plan) -> None:
    broker = _broker(plan.transport, plan.url)
    if plan.group is not None:

        async def handle(order: OrderBody, rate: Annotated[float, _depends()]) -> None:
            plan.took(order.order_id)

        # Annotations are text here, and the library resolves them among a module's names.
        handle.__annotations__ = {"order": OrderBody, "rate": Annotated[float, _depends()], "return": None}
        _subscriber(plan.transport, broker, plan.topic, plan.group)(handle)
    destination = _destination(plan.transport, plan.topic)

    async def one(number: int) -> None:
        await broker.publish(body(number), **destination)

    async def gathered(numbers: range) -> None:
        async with anyio.create_task_group() as tasks:
            for number in numbers:
                tasks.start_soon(one, number)

    async def in_batch(numbers: range) -> None:
        await broker.publish_batch(*map(body, numbers), topic=plan.topic)

    async def one_by_one(numbers: range) -> None:
        for number in numbers:
            await one(number)

    async with AsyncExitStack() as stack:
        if plan.transport == "memory":
            from faststream.redis import TestRedisBroker

            await stack.enter_async_context(TestRedisBroker(broker))
        else:
            await stack.enter_async_context(broker)
            await broker.start()
        if plan.transport in OWN_FORMAT:
            import redis.asyncio

            client: Any = redis.asyncio.Redis.from_url(_redis(plan.url))
            stack.push_async_callback(client.aclose)

            async def in_pipeline(numbers: range) -> None:
                pipe = client.pipeline(transaction=False)
                for number in numbers:
                    await broker.publish(body(number), **destination, pipeline=pipe)
                await pipe.execute()

            many: Any = in_pipeline
        else:
            many = {"kafka": in_batch, "rabbitmq": gathered, "memory": one_by_one}[plan.transport]
        await take_steps_async(plan, one, many)


def _depends() -> Any:
    from faststream import Depends

    return Depends(get_rate)


def _redis(url: str) -> str:
    return urlsplit(url)._replace(scheme="redis").geturl()


def _broker(transport: str, url: str) -> Any:
    if transport == "kafka":
        from faststream.confluent import KafkaBroker

        return KafkaBroker(url.partition("://")[2].rstrip("/"), logger=None)
    if transport == "rabbitmq":
        from faststream.rabbit import Channel, RabbitBroker

        return RabbitBroker(url, default_channel=Channel(prefetch_count=500), logger=None)
    from faststream.redis import RedisBroker

    quiet: Any = None  # as on the other brokers, whose types allow it
    return RedisBroker("redis://localhost" if transport == "memory" else _redis(url), logger=quiet)


def _subscriber(transport: str, broker: Any, topic: str, group: str) -> Any:
    from faststream import AckPolicy

    if transport == "kafka":
        return broker.subscriber(topic, group_id=group, auto_offset_reset="earliest", ack_policy=AckPolicy.ACK)
    if transport == "rabbitmq":
        from faststream.rabbit import RabbitQueue

        return broker.subscriber(RabbitQueue(group, declare=False), ack_policy=AckPolicy.NACK_ON_ERROR)
    if transport == "streams":
        from faststream.redis import StreamSub

        stream: Any = StreamSub(topic, group=group, consumer="rival", max_records=500, declare=False)
        return broker.subscriber(stream=stream, max_workers=100, ack_policy=AckPolicy.NACK_ON_ERROR)
    return broker.subscriber(topic, **({} if transport == "memory" else {"max_workers": 100}))


def _destination(transport: str, topic: str) -> dict[str, Any]:
    if transport == "rabbitmq":
        from faststream.rabbit import ExchangeType, RabbitExchange

        exchange = RabbitExchange("dispytch", ExchangeType.TOPIC, durable=True, declare=False)
        return {"exchange": exchange, "routing_key": topic, "persist": True}
    return {{"kafka": "topic", "streams": "stream"}.get(transport, "channel"): topic}
