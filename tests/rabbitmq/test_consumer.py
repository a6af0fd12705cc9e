"""Receiving from a real RabbitMQ, through each driver, on every loop."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pika
import pytest

from dispytch.abc import Delivery, EventSubscription, Message, Outcome, Settlement, Subscription
from dispytch.errors import BrokerError, BrokerUnreachableError, ConfigurationError
from dispytch.rabbitmq import RabbitMQConsumer, RabbitMQEventRoute, RabbitMQEventSubscription
from dispytch.rabbitmq.producer import Driver
from tests.faults.proxy import proxy_to
from tests.rabbitmq.helpers import (
    Names,
    ack,
    channel_to,
    count,
    drain,
    exists,
    is_trio,
    our_threads,
    publish,
    subscribe,
)
from tests.support import PATIENCE, at_best, closed_port, unique, until

pytestmark = pytest.mark.anyio


def consumer_of(names: Names, driver: Driver | None = None, url: str | None = None, **options: Any) -> RabbitMQConsumer:
    return RabbitMQConsumer(
        url or names.url, **{"queue": names.queue, "exchange": names.exchange, "driver": driver, **options}
    )


@asynccontextmanager
async def started(consumer: RabbitMQConsumer, *subscriptions: Subscription) -> AsyncIterator[RabbitMQConsumer]:
    await consumer.start(subscriptions or [subscribe(consumer, EventSubscription("#"))])
    try:
        yield consumer
    finally:
        await consumer.stop()


async def receive(consumer: RabbitMQConsumer, number: int, limit: int = 1000) -> list[Delivery]:
    found: list[Delivery] = []
    with anyio.fail_after(PATIENCE):
        while len(found) < number:
            found += await consumer.receive(min(limit, number - len(found)))
    return found


async def receive_nothing(consumer: RabbitMQConsumer) -> None:
    with anyio.move_on_after(0.15):
        raise AssertionError(await consumer.receive(10))


def bodies(deliveries: Sequence[Delivery]) -> list[bytes | None]:
    return [delivery.payload for delivery in deliveries]


class TestTopology:
    async def test_declares_what_the_subscriptions_need(self, names: Names, driver: Driver | None) -> None:
        consumer = consumer_of(names, driver)
        letter = consumer.default_dead_letter(subscribe(consumer, EventSubscription("a.{x}")))
        assert letter == RabbitMQEventRoute(f"{names.queue}.dead", "")
        async with started(consumer, subscribe(consumer, EventSubscription("a.{x}"), letter)):
            publish(names.url, names.exchange, "a.1", b"yes")
            publish(names.url, names.exchange, "b.1", b"no")
            publish(names.url, names.exchange, "a.2", b"yes too")
            assert bodies(await receive(consumer, 2)) == [b"yes", b"yes too"]
            with channel_to(names.url) as channel:  # refused if they were others
                channel.exchange_declare(names.exchange, "topic", durable=True)
                channel.queue_declare(names.queue, durable=True)
                channel.queue_declare(f"{names.queue}.dead", durable=True)

    async def test_what_differs_is_kept_with_a_warning(
        self, names: Names, driver: Driver | None, caplog: pytest.LogCaptureFixture
    ) -> None:
        with channel_to(names.url) as channel:
            channel.queue_declare(names.queue, durable=False, arguments={"x-max-length": 10})
        consumer = consumer_of(names, driver)
        async with started(consumer):
            publish(names.url, names.exchange, "k", b"1")
            assert bodies(await receive(consumer, 1)) == [b"1"]
        assert f"the queue {names.queue!r} with other properties" in caplog.text

    async def test_quorum_queue(self, names: Names, driver: Driver | None) -> None:
        consumer = consumer_of(names, driver, queue_type="quorum")
        async with started(consumer):
            publish(names.url, names.exchange, "k", b"1")
            (first,) = await receive(consumer, 1)
            await consumer.settle([Settlement(first, Outcome.RELEASE)])
            (second,) = await receive(consumer, 1)
            assert (first.deliveries, second.deliveries) == (0, 1)
            await consumer.settle(ack(second))
        with (
            pytest.raises(pika.exceptions.ChannelClosedByBroker, match="x-queue-type"),
            channel_to(names.url) as channel,
        ):
            channel.queue_declare(names.queue, durable=True)

    async def test_without_declare_what_is_missing_is_an_error(self, names: Names, driver: Driver | None) -> None:
        consumer = consumer_of(names, driver, declare=False)
        for declare in (lambda channel: None, lambda channel: channel.exchange_declare(names.exchange, "topic")):
            with channel_to(names.url) as channel:
                declare(channel)
            with pytest.raises(BrokerError, match="declare it, or allow declare=True") as caught:
                await consumer.start([subscribe(consumer, EventSubscription("k"))])
            assert not isinstance(caught.value, BrokerUnreachableError)
        assert not exists(names.url, queue=names.queue)
        await consumer.stop()

    async def test_without_declare_it_still_binds(self, names: Names, driver: Driver | None) -> None:
        names.bind("unrelated")
        consumer = consumer_of(names, driver, declare=False)
        async with started(consumer, subscribe(consumer, EventSubscription("k"))):
            publish(names.url, names.exchange, "k", b"1")
            assert bodies(await receive(consumer, 1)) == [b"1"]

    async def test_overlapping_patterns_deliver_once(self, names: Names, driver: Driver | None) -> None:
        consumer = consumer_of(names, driver)
        wanted = [subscribe(consumer, EventSubscription(topic)) for topic in ("a.*", "a.#", "a.b", "#")]
        async with started(consumer, *wanted):
            publish(names.url, names.exchange, "a.b", b"1")
            assert bodies(await receive(consumer, 1)) == [b"1"]
            await receive_nothing(consumer)

    async def test_several_queues_and_exchanges_on_one_connection(self, names: Names, driver: Driver | None) -> None:
        other = names.another_queue()
        consumer = consumer_of(names, driver)
        own = subscribe(consumer, EventSubscription("k"))
        typed = subscribe(consumer, RabbitMQEventSubscription(queue=other, routing_key="k"))
        async with started(consumer, own, typed):
            publish(names.url, names.exchange, "k", b"1")
            deliveries = await receive(consumer, 2)
            by_queue = {delivery.scope.queue: delivery for delivery in deliveries}  # type: ignore[attr-defined]
            assert by_queue.keys() == {names.queue, other}
            for subscription, queue in ((own, names.queue), (typed, other)):
                declared = subscription.declared
                assert isinstance(declared, EventSubscription)
                assert [name for name, one in by_queue.items() if declared.takes(one.scope)] == [queue]
            await consumer.settle(ack(*deliveries))
        assert count(names.url, names.queue) == count(names.url, other) == 0

    async def test_a_queue_alone_is_consumed_as_it_is_bound(self, names: Names, driver: Driver | None) -> None:
        other = names.another_queue()
        names.bind("only.this", other)
        consumer = consumer_of(names, driver)
        async with started(consumer, subscribe(consumer, RabbitMQEventSubscription(queue=other))):
            publish(names.url, names.exchange, "not.this", b"no")
            publish(names.url, names.exchange, "only.this", b"yes")
            assert bodies(await receive(consumer, 1)) == [b"yes"]
        assert not exists(names.url, queue=names.queue)

    async def test_the_default_exchange_reads_a_queue_directly(self, names: Names, driver: Driver | None) -> None:
        other = names.another_queue()
        consumer = consumer_of(names, driver)
        async with started(consumer, subscribe(consumer, RabbitMQEventRoute(other, ""))):
            publish(names.url, "", other, b"1")
            (delivery,) = await receive(consumer, 1)
            assert (delivery.source, delivery.scope) == (other, ("", other))
            await consumer.settle(ack(delivery))

    async def test_a_dead_letter_topic_is_routable(self, names: Names, driver: Driver | None) -> None:
        consumer = consumer_of(names, driver)
        letter = consumer.dead_letter_route(topic := names.another_queue())
        assert letter is not None
        async with started(consumer, subscribe(consumer, EventSubscription("k"), letter)):
            publish(names.url, names.exchange, topic, b"a letter")
            await until(lambda: count(names.url, topic) == 1)

    @pytest.mark.parametrize(
        ("declared", "problem"),
        [
            (RabbitMQEventSubscription("", routing_key="a.*"), "no patterns"),
            (RabbitMQEventSubscription("", "q", "other"), "bound to the default exchange"),
            (RabbitMQEventSubscription(""), "bound to the default exchange"),
            (RabbitMQEventRoute("k", "tenant-{x}"), "template"),
            (EventSubscription("k" * 256), "256 bytes"),
            (RabbitMQEventSubscription("e" * 256, routing_key="k"), "256 bytes"),
            (RabbitMQEventSubscription(queue="q" * 256), "256 bytes"),
        ],
    )
    async def test_what_the_broker_cannot_serve(self, declared: Any, problem: str) -> None:
        consumer = RabbitMQConsumer("amqp://127.0.0.1:1", queue="q")
        with pytest.raises(ConfigurationError, match=problem):
            consumer.subscription_for(declared)


class TestAcknowledging:
    async def test_acknowledged_is_gone_and_the_rest_comes_again(self, names: Names, driver: Driver | None) -> None:
        consumer = consumer_of(names, driver)
        async with started(consumer):
            publish(names.url, names.exchange, "k", *(b"%d" % number for number in range(6)))
            deliveries = await receive(consumer, 6)
            await consumer.settle(ack(deliveries[1], deliveries[4]))
            await consumer.settle(ack(deliveries[0]))
            await consumer.settle(ack(deliveries[0]))  # twice, which must not reach the broker
            await consumer.settle([Settlement(deliveries[2], Outcome.RELEASE)])
            assert bodies(await receive(consumer, 1)) == [b"2"]
        assert sorted(body for _, _, body in drain(names.url, names.queue)) == [b"2", b"3", b"5"]

    async def test_one_slow_event_stalls_nothing(self, names: Names, driver: Driver | None) -> None:
        consumer = consumer_of(names, driver, prefetch=500)
        async with started(consumer):
            publish(names.url, names.exchange, "k", *(b"%d" % number for number in range(2001)))
            slow, *others = await receive(consumer, 400)
            await consumer.settle(ack(*others))
            while len(others) < 2000:
                more = await receive(consumer, min(400, 2000 - len(others)))
                await consumer.settle(ack(*more))
                others += more
            assert slow.payload == b"0"
            await consumer.settle(ack(slow))
        assert count(names.url, names.queue) == 0

    async def test_no_more_than_the_prefetch_is_held(self, names: Names, driver: Driver | None) -> None:
        consumer = consumer_of(names, driver, prefetch=10)
        async with started(consumer):
            publish(names.url, names.exchange, "k", *[b"x"] * 50)
            deliveries = await receive(consumer, 10)
            assert count(names.url, names.queue) == 40
            await receive_nothing(consumer)
            await consumer.settle(ack(*deliveries[:4]))
            assert len(await receive(consumer, 4)) == 4

    async def test_the_window_is_the_default_prefetch(self, names: Names, driver: Driver | None) -> None:
        consumer = consumer_of(names, driver)
        consumer.window = 7
        async with started(consumer):
            publish(names.url, names.exchange, "k", *[b"x"] * 20)
            await receive(consumer, 7)
            await receive_nothing(consumer)

    async def test_a_dead_letter_is_confirmed_first(self, names: Names, driver: Driver | None) -> None:
        consumer = consumer_of(names, driver)
        route = RabbitMQEventRoute(f"{names.queue}.dead", "")
        async with started(consumer, subscribe(consumer, EventSubscription("k"), route)):
            publish(names.url, names.exchange, "k", b"bad")
            (delivery,) = await receive(consumer, 1)
            letter = Message("1", route, b"bad", [("dispytch-dead-error", b"E"), ("big", b"x" * 70_000)])
            assert await consumer.settle([Settlement(delivery, Outcome.DEAD_LETTER, [letter])]) == []
        ((_, properties, body),) = drain(names.url, f"{names.queue}.dead")
        assert body == b"bad"
        # What would break the connection is left out, and the exchange that it came by is told.
        assert properties.headers == {"dispytch-dead-error": "E", "dispytch-dead-scope": names.exchange}
        assert properties.delivery_mode == 2
        assert count(names.url, names.queue) == 0

    async def test_what_was_acknowledged_first_is_dead_lettered_also_after_its_channel(
        self, names: Names, driver: Driver | None
    ) -> None:
        consumer = consumer_of(names, driver)
        route = RabbitMQEventRoute(f"{names.queue}.dead", "")
        wanted = [subscribe(consumer, EventSubscription(key), route) for key in ("k", "more")]
        async with started(consumer, wanted[0]):
            publish(names.url, names.exchange, "k", b"first", b"after")
            deliveries = await receive(consumer, 2)
            await consumer.settle(ack(deliveries[0]))
            await consumer.start(wanted)  # on another channel
            (again,) = await receive(consumer, 1)
            letters = [Message(unique("id"), route, delivery.payload) for delivery in deliveries]
            settlements = [
                Settlement(delivery, Outcome.DEAD_LETTER, [letter], is_acknowledged=delivery is deliveries[0])
                for delivery, letter in zip(deliveries, letters, strict=True)
            ]
            assert await consumer.settle(settlements) == []
            publish(names.url, names.exchange, "k", b"next")
            await receive(consumer, 1)
        assert again.payload == b"after"
        assert [body for _, _, body in drain(names.url, f"{names.queue}.dead")] == [b"first"]
        assert [body for _, _, body in drain(names.url, names.queue)] == [b"after", b"next"]

    async def test_a_dead_letter_that_cannot_be_written(self, names: Names, driver: Driver | None) -> None:
        consumer = consumer_of(names, driver)
        async with started(consumer):
            publish(names.url, names.exchange, "k", b"bad")
            (delivery,) = await receive(consumer, 1)
            letter = Message("1", RabbitMQEventRoute(unique("nowhere"), ""), b"bad")
            settlement = Settlement(delivery, Outcome.DEAD_LETTER, [letter])
            ((failed, error),) = await consumer.settle([settlement])
            assert failed is settlement
            assert "no queue is bound" in str(error)
        assert count(names.url, names.queue) == 1

    async def test_cancelled_receive_loses_nothing(self, names: Names, driver: Driver | None) -> None:
        consumer = consumer_of(names, driver, prefetch=300)
        found: list[Delivery] = []
        async with started(consumer):
            publish(names.url, names.exchange, "k", *(b"%d" % number for number in range(300)))
            with anyio.fail_after(20):
                while len(found) < 300:
                    with anyio.move_on_after(0.0005):
                        found += await consumer.receive(3)
        assert bodies(found) == [b"%d" % number for number in range(300)]


class TestForeignMessages:
    async def test_headers_of_every_kind(self, names: Names, driver: Driver | None) -> None:
        consumer = consumer_of(names, driver)
        headers = {
            "text": "ü",
            "bytes": b"\xff",
            "number": 7,
            "yes": True,
            "nothing": None,
            "nested": {"a": [1, "b"]},
            "x-death": [{"count": 1}],
        }
        properties = pika.BasicProperties(
            headers=headers, content_type="text/plain", timestamp=1_700_000_000, message_id="m-1", reply_to="back"
        )
        async with started(consumer):
            publish(names.url, names.exchange, "k", b"", properties=properties)
            (delivery,) = await receive(consumer, 1)
        found = dict(delivery.headers)
        assert found["text"] == "ü".encode()
        assert (found["bytes"], found["number"], found["yes"], found["nothing"]) == (b"\xff", b"7", b"true", b"")
        assert found["nested"] == b'{"a": [1, "b"]}'
        assert (found["content-type"], found["reply-to"]) == (b"text/plain", b"back")
        assert delivery.timestamp_ms == 1_700_000_000_000
        assert (delivery.position, delivery.key, delivery.payload) == ("m-1", None, b"")

    async def test_nothing_but_a_body(self, names: Names, driver: Driver | None) -> None:
        consumer = consumer_of(names, driver)
        async with started(consumer):
            publish(names.url, names.exchange, "k", b"1")
            (delivery,) = await receive(consumer, 1)
        assert delivery.headers == []
        assert abs(delivery.timestamp_ms / 1000 - time.time()) < 60
        assert delivery.position is None


class TestFaults:
    async def test_a_lost_connection_is_told_and_its_tokens_are_stale(
        self, names: Names, driver: Driver | None
    ) -> None:
        with proxy_to(names.url) as proxy:
            consumer = consumer_of(names, driver, proxy.url, prefetch=4)
            wanted = [subscribe(consumer, EventSubscription("#"))]
            async with started(consumer, *wanted):
                publish(names.url, names.exchange, "k", *(b"%d" % number for number in range(4)))
                old = await receive(consumer, 2)
                await until(lambda: consumer.backlog() == 2)
                proxy.cut()
                await until(lambda: consumer.backlog() is None)
                with anyio.fail_after(10), pytest.raises(BrokerUnreachableError):
                    await consumer.receive(1)
                await consumer.start(wanted)
                new = await receive(consumer, 4)
                assert bodies(new) == [b"0", b"1", b"2", b"3"]
                assert await consumer.settle(ack(*old)) == []  # ignored: their tags are those of new ones
                await consumer.settle(ack(new[3]))
            assert count(names.url, names.queue) == 3

    async def test_a_queue_deleted_meanwhile_is_made_again(self, names: Names, driver: Driver | None) -> None:
        consumer = consumer_of(names, driver)
        wanted = [subscribe(consumer, EventSubscription("#"))]
        async with started(consumer, *wanted):
            with channel_to(names.url) as channel:
                channel.queue_delete(names.queue)
            with anyio.fail_after(10), pytest.raises(BrokerUnreachableError, match="deleted"):
                await consumer.receive(1)
            await consumer.start(wanted)
            publish(names.url, names.exchange, "k", b"1")
            assert bodies(await receive(consumer, 1)) == [b"1"]

    async def test_a_queue_deleted_without_declare_ends_it(self, names: Names, driver: Driver | None) -> None:
        names.bind()
        consumer = consumer_of(names, driver, declare=False)
        wanted = [subscribe(consumer, EventSubscription("#"))]
        async with started(consumer, *wanted):
            with channel_to(names.url) as channel:
                channel.queue_delete(names.queue)
            with anyio.fail_after(10), pytest.raises(BrokerUnreachableError, match="deleted"):
                await consumer.receive(1)
            with pytest.raises(BrokerError, match="there is no queue") as caught:
                await consumer.start(wanted)
            assert not isinstance(caught.value, BrokerUnreachableError)

    async def test_nobody_there(self, names: Names, driver: Driver | None) -> None:
        consumer = consumer_of(names, driver, f"amqp://127.0.0.1:{closed_port()}")
        with pytest.raises(BrokerUnreachableError, match="cannot connect"):
            await consumer.start([subscribe(consumer, EventSubscription("#"))])
        await consumer.stop()

    async def test_stops_at_once(self, names: Names, driver: Driver | None) -> None:
        consumer = consumer_of(names, driver)

        async def stop() -> float:
            async with anyio.create_task_group() as group:
                async with started(consumer):
                    group.start_soon(consumer.receive, 1)
                    await anyio.sleep(0.05)
                    began = time.monotonic()
                took = time.monotonic() - began
                group.cancel_scope.cancel()
            return took

        await at_best(1, stop)  # 0.2 on a machine with nothing else to do
        await consumer.stop()
        assert not our_threads()

    async def test_start_twice_and_again(self, names: Names, driver: Driver | None) -> None:
        consumer = consumer_of(names, driver)
        wanted = [subscribe(consumer, EventSubscription("#"))]
        for _ in range(2):
            async with started(consumer, *wanted):
                await consumer.start(wanted)
                publish(names.url, names.exchange, "k", b"1")
                (delivery,) = await receive(consumer, 1)
                await consumer.settle(ack(delivery))
        assert count(names.url, names.queue) == 0

    async def test_before_the_start(self) -> None:
        consumer = RabbitMQConsumer("amqp://127.0.0.1:1", queue="q")
        with pytest.raises(ConfigurationError, match="not started"):
            await consumer.receive(1)
        await consumer.stop()


class TestReadyMade:
    async def test_queues_of_aio_pika(self, names: Names, anyio_backend: tuple[str, Any]) -> None:
        import aio_pika

        names.bind()
        names.bind(queue=f"{names.queue}.dead", key="dead")
        if is_trio(anyio_backend):
            return
        connection = await aio_pika.connect(names.url)
        async with connection:
            channel = await connection.channel()
            consumer = RabbitMQConsumer(await channel.get_queue(names.queue))
            assert consumer.group_id == names.queue
            subscription = subscribe(consumer, EventSubscription("k"))
            async with started(consumer, subscription):
                publish(names.url, names.exchange, "k", b"1", b"2", b"3", b"4")
                deliveries = await receive(consumer, 4)
                letter = consumer.default_dead_letter(subscription)
                assert letter is not None
                await consumer.settle(ack(*deliveries[:2]))
                dead = Settlement(deliveries[2], Outcome.DEAD_LETTER, [Message("1", letter, b"3")])
                assert await consumer.settle([dead]) == []
            assert not channel.is_closed
        assert [body for _, _, body in drain(names.url, names.queue)] == [b"4"]
        assert [body for _, _, body in drain(names.url, f"{names.queue}.dead")] == [b"3"]

    async def test_no_tag_is_settled_twice(self, names: Names, anyio_backend: tuple[str, Any]) -> None:
        import aio_pika

        names.bind()
        if is_trio(anyio_backend):
            return
        async with await aio_pika.connect(names.url) as connection:
            channel = await connection.channel()
            consumer = RabbitMQConsumer(await channel.get_queue(names.queue))
            async with started(consumer):
                publish(names.url, names.exchange, "k", b"1", b"2", b"3")
                deliveries = await receive(consumer, 3)
                await consumer.settle(ack(deliveries[0]))
                await consumer.settle(ack(*deliveries[:2]))  # the broker closes a channel that acknowledges twice
                await receive_nothing(consumer)
        assert [body for _, _, body in drain(names.url, names.queue)] == [b"3"]

    async def test_a_dead_connection_does_not_hold_up_the_stop(
        self, names: Names, anyio_backend: tuple[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import aio_pika

        monkeypatch.setattr("dispytch.rabbitmq.aio_intake._CLOSE_TIMEOUT", 0.2)
        names.bind()
        if is_trio(anyio_backend):
            return
        with proxy_to(names.url) as proxy:
            connection = await aio_pika.connect(proxy.url)
            consumer = RabbitMQConsumer(await (await connection.channel()).get_queue(names.queue))
            with anyio.fail_after(PATIENCE):
                async with started(consumer):
                    proxy.frozen = True
            proxy.frozen = False
            await connection.close()

    async def test_need_a_place_for_dead_letters(self, names: Names, anyio_backend: tuple[str, Any]) -> None:
        import aio_pika

        names.bind()
        if is_trio(anyio_backend):
            return
        async with await aio_pika.connect(names.url) as connection:
            channel = await connection.channel()
            consumer = RabbitMQConsumer(await channel.get_queue(names.queue))
            letter = consumer.default_dead_letter(subscribe(consumer, EventSubscription("k")))
            assert letter is not None
            with pytest.raises(BrokerError, match=r"there is no queue '.*\.dead'"):
                await consumer.start([subscribe(consumer, EventSubscription("k"), letter)])
            await consumer.stop()
            assert not channel.is_closed

    async def test_are_refused_on_trio(self, names: Names, anyio_backend: tuple[str, Any]) -> None:
        if is_trio(anyio_backend):
            consumer = consumer_of(names, "aio-pika")
            with pytest.raises(ConfigurationError, match="under asyncio only"):
                await consumer.start([subscribe(consumer, EventSubscription("#"))])


@pytest.mark.parametrize(
    ("arguments", "options", "problem"),
    [
        ((), {}, "neither a URL nor a queue"),
        ((object(),), {}, "RabbitMQConsumer takes a URL"),
        (("amqp://h",), {}, "queue="),
        (("amqp://h", "amqp://i"), {"queue": "q"}, "one URL"),
        (("amqp://h",), {"queue": "q", "prefetch": 0}, "prefetch"),
        (("amqp://h",), {"queue": "q", "driver": "rabbit"}, "driver"),
        (("amqp://h",), {"queue": "q", "queue_type": "stream"}, "queue_type"),
        (("amqp://h",), {"queue": "q", "exchange": ""}, "default exchange"),
        (("amqp://h",), {"queue": "q" * 252}, "257 bytes"),
    ],
)
async def test_wrong_arguments(arguments: Any, options: Any, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        RabbitMQConsumer(*arguments, **options)
