"""Emitters and dispatchers on a real RabbitMQ."""

from __future__ import annotations

import logging
import struct
from collections import Counter
from contextlib import suppress
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pika
import pytest

from dispytch import Event, EventBase, EventDispatcher, EventEmitter, consumer_from_url, producer_from_url
from dispytch.errors import EmitRejectedError
from dispytch.rabbitmq import (
    RabbitMQConsumer,
    RabbitMQEventSubscription,
    RabbitMQProducer,
)
from dispytch.rabbitmq.producer import Driver
from tests.faults.proxy import proxy_to
from tests.rabbitmq.helpers import Names, channel_to, count, drain, publish
from tests.support import unique, until

pytestmark = pytest.mark.anyio


class Paid(EventBase):
    __topic__ = "orders.{order}.paid"
    __key__ = "{order}"
    order: str
    number: int = 0


def dispatcher_of(
    names: Names, driver: Driver | None = None, url: str | None = None, queue: str | None = None, **options: Any
) -> EventDispatcher:
    consumer = RabbitMQConsumer(
        url or names.url, queue=queue or names.queue, exchange=names.exchange, driver=driver, **options.pop("own", {})
    )
    return EventDispatcher(consumer, **options)


def emitter_of(names: Names, driver: Driver | None = None, url: str | None = None) -> EventEmitter:
    return EventEmitter(RabbitMQProducer(url or names.url, names.exchange, driver=driver))


async def test_there_and_back(names: Names, driver: Driver | None) -> None:
    seen: list[Event[Paid]] = []
    dispatcher = dispatcher_of(names, driver)

    @dispatcher.handler(Paid)
    async def on_paid(event: Event[Paid]) -> None:
        seen.append(event)

    async with dispatcher.lifespan(), emitter_of(names, driver) as emitter:
        await emitter.emit(Paid(order="42"), id="the-id")
        await until(lambda: seen)
    meta = seen[0].meta
    assert seen[0].body == Paid(order="42")
    assert (meta.id, meta.type, meta.topic, meta.key) == ("the-id", "Paid", "orders.42.paid", "42")
    assert meta.params == {"order": "42"}
    assert meta.headers["content-type"] == "application/json"
    assert count(names.url, names.queue) == 0


async def test_a_first_start_and_its_stop_are_silent(
    names: Names, driver: Driver | None, caplog: pytest.LogCaptureFixture
) -> None:
    dispatcher = dispatcher_of(names, driver)

    @dispatcher.handler(Paid)
    async def on_paid(event: Event[Paid]) -> None: ...

    async with dispatcher.lifespan(), emitter_of(names, driver) as emitter:
        await emitter.emit(Paid(order="1"))
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_two_groups_get_all_and_one_group_shares(names: Names, driver: Driver | None) -> None:
    seen: Counter[tuple[str, int]] = Counter()
    other = names.another_queue()
    dispatchers = [dispatcher_of(names, driver, queue=queue) for queue in (names.queue, other, other)]
    for dispatcher, group in zip(dispatchers, ("a", "b", "b"), strict=True):

        @dispatcher.handler(Paid)
        async def on_paid(event: Event[Paid], group: str = group) -> None:
            seen[group, event.body.number] += 1

    async with (
        dispatchers[0].lifespan(),
        dispatchers[1].lifespan(),
        dispatchers[2].lifespan(),
        emitter_of(names, driver) as emitter,
    ):
        await emitter.emit_many([Paid(order="1", number=number) for number in range(50)])
        await until(lambda: len(seen) == 100)
    assert set(seen.values()) == {1}


async def test_a_handler_sees_its_queue_only(names: Names, driver: Driver | None) -> None:
    seen: list[str] = []
    other = names.another_queue()
    dispatcher = dispatcher_of(names, driver)

    @dispatcher.handler(topic="orders.*.paid")
    async def portable(event: Event[Paid]) -> None:
        seen.append("own")

    @dispatcher.handler(RabbitMQEventSubscription(queue=other, routing_key="orders.#"))
    async def typed(event: Event[Paid]) -> None:
        seen.append("other")

    async with dispatcher.lifespan(), emitter_of(names, driver) as emitter:
        await emitter.emit(Paid(order="1"))
        await until(lambda: len(seen) == 2)
        await dispatcher.idle()
    assert sorted(seen) == ["other", "own"]


async def test_a_dead_letter_without_a_queue_holds_up_nothing_else(names: Names, driver: Driver | None) -> None:
    seen: list[int] = []
    dead = f"{names.queue}.dead"
    dispatcher = dispatcher_of(names, driver, max_deliveries=1, concurrency=10)

    @dispatcher.handler(Paid)
    async def on_paid(event: Event[Paid]) -> None:
        if not event.body.number:
            raise ValueError("no money")
        seen.append(event.body.number)

    async with dispatcher.lifespan(), emitter_of(names, driver) as emitter:
        with channel_to(names.url) as channel:
            channel.queue_delete(dead)
        await emitter.emit(Paid(order="bad", number=0))
        with anyio.fail_after(5):  # it would take minutes, if each batch waited for the next try
            await emitter.emit_many([Paid(order="good", number=number) for number in range(1, 501)])
            await until(lambda: len(seen) == 500)
        assert seen == list(range(1, 501))
        with channel_to(names.url) as channel:
            channel.queue_declare(dead, durable=True)
        await until(lambda: count(names.url, dead) == 1)
    assert count(names.url, names.queue) == 0


async def test_failures_end_in_the_dead_letter_queue_which_can_be_read(names: Names, driver: Driver | None) -> None:
    seen: list[Any] = []
    dead = f"{names.queue}.dead"
    failing = dispatcher_of(names, driver, max_deliveries=2)

    @failing.handler(Paid)
    async def on_paid(event: Event[Paid]) -> None:
        raise ValueError("no money")

    async with failing.lifespan(), emitter_of(names, driver) as emitter:
        await emitter.emit(Paid(order="1", number=7), id="bad")
        await until(lambda: count(names.url, dead) == 1)
    reader = dispatcher_of(names, driver, queue=names.another_queue())

    @reader.handler(RabbitMQEventSubscription("", routing_key=dead))
    async def on_dead(event: Event[Paid]) -> None:
        seen.append((event.body.number, event.meta))

    async with reader.lifespan():
        await until(lambda: seen)
    number, meta = seen[0]
    assert (number, meta.id, meta.key) == (7, "bad", "1")
    assert meta.dead_letter.error == "ValueError: no money"
    assert meta.dead_letter.attempts == 2
    assert meta.dead_letter.source == "orders.1.paid"
    assert count(names.url, dead) == count(names.url, names.queue) == 0


@pytest.mark.parametrize("poison", [struct.pack(">cQ", b"T", 2**63 - 1), struct.pack(">cQ", b"T", 253_402_300_800)])
async def test_headers_that_the_client_cannot_read(
    names: Names, poison: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead, seen = f"{names.queue}.dead", []
    dispatcher = dispatcher_of(names)

    @dispatcher.handler(topic="k")
    async def on_any(event: Event[int]) -> None:
        seen.append(event.body)

    def encode(pieces: list[bytes], value: object) -> int:
        pieces.append(poison)
        return len(poison)

    async with dispatcher.lifespan():
        odd = pika.BasicProperties(content_type="application/json", headers={"h": 1}, message_id="odd")
        with channel_to(names.url) as channel, monkeypatch.context() as patch:
            patch.setattr("pika.data.encode_value", encode)
            channel.basic_publish(names.exchange, "k", b"1", odd)
        publish(names.url, names.exchange, "k", b"2")
        await until(lambda: seen == [2])
        await until(lambda: count(names.url, dead) == 1)
    ((_, properties, body),) = drain(names.url, dead)
    assert body == b"1"
    assert properties.headers["dispytch-dead-position"] == "odd"


async def test_a_dead_letter_topic(names: Names, driver: Driver | None) -> None:
    topic = names.another_queue()
    dispatcher = dispatcher_of(names, driver, max_deliveries=1, dead_letter=topic)

    @dispatcher.handler(topic="#")
    async def everything(event: Event[Paid]) -> None:
        raise ValueError

    async with dispatcher.lifespan():
        publish(names.url, names.exchange, "k", b"{]")
        await until(lambda: count(names.url, topic) == 1)
        await until(lambda: not dispatcher.health().in_flight)
    ((method, _, body),) = drain(names.url, topic)
    assert (method.exchange, method.routing_key, body) == (names.exchange, topic, b"{]")


async def test_one_key_stays_in_order(names: Names, driver: Driver | None) -> None:
    seen: dict[str, list[int]] = {}
    dispatcher = dispatcher_of(names, driver, concurrency=10)

    @dispatcher.handler(Paid)
    async def on_paid(event: Event[Paid]) -> None:
        if event.body.number % 50 == 0 and event.meta.attempt == 1:
            raise ValueError
        await anyio.lowlevel.checkpoint()
        seen.setdefault(event.body.order, []).append(event.body.number)

    async with dispatcher.lifespan(), emitter_of(names, driver) as emitter:
        await emitter.emit_many([Paid(order=str(number % 16), number=number) for number in range(400)])
        await until(lambda: sum(map(len, seen.values())) == 400)
    assert all(numbers == sorted(numbers) for numbers in seen.values())


async def test_what_waits_here_when_the_connection_breaks_is_not_handled(names: Names, driver: Driver | None) -> None:
    """The broker delivers it again, and once is enough."""
    gate = anyio.Event()
    seen: Counter[int] = Counter()
    with proxy_to(names.url) as proxy:
        dispatcher = dispatcher_of(names, driver, proxy.url, concurrency=1, own={"prefetch": 10})

        @dispatcher.handler(Paid)
        async def on_paid(event: Event[Paid]) -> None:
            await gate.wait()
            seen[event.body.number] += 1

        async with dispatcher.lifespan(), emitter_of(names, driver) as emitter:
            await emitter.emit_many([Paid(order=str(n), number=n) for n in range(10)])
            await until(lambda: dispatcher.health().queued == 9)
            proxy.cut()
            await until(lambda: not dispatcher.health().connected)
            gate.set()
            await until(lambda: len(seen) == 10)
            await until(lambda: dispatcher.health().connected and count(names.url, names.queue) == 0)
            await dispatcher.idle()
    assert seen == Counter(dict.fromkeys(range(10), 1)) | Counter({0: 2})


async def test_nothing_is_lost_when_the_connection_breaks(
    names: Names, driver: Driver | None, caplog: pytest.LogCaptureFixture
) -> None:
    seen: Counter[int] = Counter()
    with proxy_to(names.url) as proxy:
        dispatcher = dispatcher_of(names, driver, proxy.url)

        @dispatcher.handler(Paid)
        async def on_paid(event: Event[Paid]) -> None:
            await anyio.sleep(0.001)
            seen[event.body.number] += 1

        def some_of(cut: int) -> bool:
            return len(seen) > cut * 300 + 50

        async with dispatcher.lifespan(), emitter_of(names, driver) as emitter:
            for cut in range(3):
                await emitter.emit_many([Paid(order=str(n), number=cut * 300 + n) for n in range(300)])
                await until(partial(some_of, cut))
                proxy.cut()
            await until(lambda: len(seen) == 900)
            await until(lambda: dispatcher.health().connected and count(names.url, names.queue) == 0)
            await dispatcher.idle()  # what came twice is handled too
        assert proxy.accepted >= 3
    assert "lost its connection" in caplog.text


async def test_a_queue_deleted_under_the_dispatcher(names: Names, driver: Driver | None) -> None:
    seen: list[int] = []
    dispatcher = dispatcher_of(names, driver)

    @dispatcher.handler(Paid)
    async def on_paid(event: Event[Paid]) -> None:
        seen.append(event.body.number)

    async with dispatcher.lifespan(), emitter_of(names, driver) as emitter:
        with channel_to(names.url) as channel:
            channel.queue_delete(names.queue)
        with anyio.fail_after(10):
            while not seen:
                with suppress(EmitRejectedError):  # until it is there again
                    await emitter.emit(Paid(order="1", number=5))
                await anyio.sleep(0.05)
    assert 5 in seen


async def test_what_is_not_handled_at_a_stop_comes_again(names: Names, driver: Driver | None) -> None:
    dispatcher = dispatcher_of(names, driver, concurrency=2, drain_timeout=0.1)
    began: list[int] = []

    @dispatcher.handler(Paid)
    async def on_paid(event: Event[Paid]) -> None:
        began.append(event.body.number)
        if event.body.number:
            await anyio.sleep_forever()

    async with emitter_of(names, driver) as emitter, dispatcher.lifespan():
        await emitter.emit_many([Paid(order=str(number), number=number) for number in range(10)])
        await until(lambda: len(began) == 3)
    assert count(names.url, names.queue) == 9


async def test_urls(rabbitmq_url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "dispytch")
    queue, topic = unique("queue"), unique("topic")
    seen: list[int] = []

    class Ping(EventBase):
        __topic__ = topic
        number: int

    dispatcher = EventDispatcher(consumer_from_url(rabbitmq_url, queue))

    @dispatcher.handler(Ping)
    def on_ping(event: Event[Ping]) -> None:
        seen.append(event.body.number)

    async with dispatcher.lifespan(), EventEmitter(producer_from_url(rabbitmq_url)) as emitter:
        receipt = await emitter.emit(Ping(number=1))
        await until(lambda: seen == [1])
    assert receipt is not None
    assert receipt.route == f"dispytch/{topic}"
    with channel_to(rabbitmq_url) as channel:
        channel.queue_delete(queue)
        channel.queue_delete(f"{queue}.dead")
