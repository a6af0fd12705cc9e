"""Emitting and handling through a real server, on every loop."""

from __future__ import annotations

import logging
from typing import Annotated, Any

import anyio
import pytest
from pydantic import BaseModel

from dispytch import (
    Event,
    EventBase,
    EventDispatcher,
    EventEmitter,
    SubscriptionParam,
    consumer_from_url,
    producer_from_url,
)
from dispytch.ack import AckAfterProcessing
from dispytch.errors import ConfigurationError, EmitRejectedError, RegistrationError
from dispytch.redis import (
    RedisConsumer,
    RedisEventConfig,
    RedisEventRoute,
    RedisEventSubscription,
    RedisProducer,
)
from tests.redis.helpers import client_of, unique, until

pytestmark = pytest.mark.anyio


class Body(BaseModel):
    order: str
    amount: int = 0


def event_class(topic: str) -> Any:
    class Paid(EventBase):
        __topic__ = topic
        __event_type__ = "paid"
        __key__ = "{order}"
        order: str
        amount: int = 0

    return Paid


async def test_emit_and_handle(redis_url: str) -> None:
    topic = unique()
    paid = event_class(topic)
    handled: list[Any] = []
    dispatcher = EventDispatcher(RedisConsumer(redis_url))

    @dispatcher.handler(paid)
    async def handle(event: Event[dict[str, Any]]) -> None:
        handled.append((event.body, event.meta.id, event.meta.type, event.meta.topic, event.meta.key))

    async with dispatcher.lifespan(), EventEmitter(RedisProducer(redis_url)) as emitter:
        receipt = await emitter.emit(paid(order="ä1", amount=3))
        assert receipt is not None
        assert (receipt.route, receipt.receivers) == (topic, 1)
        await until(lambda: handled)
    assert handled == [({"order": "ä1", "amount": 3}, receipt.id, "paid", topic, "ä1")]


async def test_many_arrive_in_order(redis_url: str) -> None:
    topic = unique()
    paid = event_class(topic)
    handled: list[int] = []
    dispatcher = EventDispatcher(consumer_from_url(redis_url, "group"), concurrency=1)

    @dispatcher.handler(topic=topic)
    async def handle(event: Event[Any]) -> None:
        handled.append(event.body["amount"])

    async with dispatcher.lifespan(), EventEmitter(producer_from_url(redis_url)) as emitter:
        receipts = await emitter.emit_many(paid(order="1", amount=number) for number in range(2500))
        assert [receipt.receivers for receipt in receipts if receipt] == [1] * 2500
        await until(lambda: len(handled) == 2500)
    assert handled == list(range(2500))


async def test_nobody_listens(redis_url: str) -> None:
    async with EventEmitter(RedisProducer(redis_url)) as emitter:
        receipt = await emitter.emit(event_class(unique())(order="1"))
    assert receipt is not None
    assert receipt.receivers == 0


async def test_every_consumer_gets_everything(redis_url: str) -> None:
    topic = unique()
    handled: list[int] = []
    dispatchers = [EventDispatcher(RedisConsumer(redis_url)) for _ in range(2)]

    async def handle(event: Event[Any]) -> None:
        handled.append(1)

    for dispatcher in dispatchers:
        dispatcher.handler(topic=topic)(handle)
    async with dispatchers[0].lifespan(), dispatchers[1].lifespan(), EventEmitter(RedisProducer(redis_url)) as emitter:
        receipt = await emitter.emit(event_class(topic)(order="1"))
        assert receipt is not None
        assert receipt.receivers == 2
        await until(lambda: len(handled) == 2)


async def test_templates_capture(redis_url: str) -> None:
    prefix = unique()
    paid = event_class(prefix + ".{order}.paid")
    handled: list[tuple[str, int]] = []
    dispatcher = EventDispatcher(RedisConsumer(redis_url))

    @dispatcher.handler(RedisEventSubscription(prefix + ".{order}.paid"))
    async def handle(event: Event[Any], order: Annotated[int, SubscriptionParam()]) -> None:
        handled.append((event.meta.topic, order))

    async with dispatcher.lifespan(), EventEmitter(RedisProducer(redis_url)) as emitter:
        await emitter.emit(paid(order="7"))
        await until(lambda: handled)
        with pytest.raises(EmitRejectedError, match="order"):
            await emitter.emit(paid(order="7.8"))
    assert handled == [(f"{prefix}.7.paid", 7)]


async def test_routes_of_their_own_delimiter(redis_url: str) -> None:
    prefix = unique().replace("-", "_")
    handled: list[str] = []

    class Moved(EventBase):
        __route__ = RedisEventRoute(prefix + "|{name}|moved", delimiter="|")
        name: str

    dispatcher = EventDispatcher(RedisConsumer(redis_url))

    @dispatcher.handler(Moved)
    async def handle(name: Annotated[str, SubscriptionParam()]) -> None:
        handled.append(name)

    async with dispatcher.lifespan(), EventEmitter(RedisProducer(redis_url)) as emitter:
        await emitter.emit(Moved(name="a.b:c"))
        await until(lambda: handled)
    assert handled == ["a.b:c"]


async def test_glob_characters_are_only_themselves(redis_url: str) -> None:
    prefix = unique()
    handled: list[str] = []
    dispatcher = EventDispatcher(RedisConsumer(redis_url))

    @dispatcher.handler(topic=prefix + "[ab]?.{name}")
    async def handle(event: Event[Any]) -> None:
        handled.append(event.meta.topic)

    async with dispatcher.lifespan():
        with client_of(redis_url) as client:
            assert client.publish(f"{prefix}a?.1", "{}") == 0
            assert client.publish(f"{prefix}[ab]x.1", "{}") == 0
            assert client.publish(f"{prefix}[ab]?.1", "{}") == 1
        await until(lambda: handled)
    assert handled == [f"{prefix}[ab]?.1"]


async def test_what_is_delivered_too_much_reaches_no_handler(redis_url: str) -> None:
    prefix = unique()
    handled: list[str] = []
    dispatcher = EventDispatcher(RedisConsumer(redis_url))

    @dispatcher.handler(topic=prefix + ".{name}")
    async def handle(event: Event[Any]) -> None:
        handled.append(event.meta.topic)

    async with dispatcher.lifespan():
        with client_of(redis_url) as client:
            client.publish(f"{prefix}.a.b", "{}")
            client.publish(f"{prefix}.c", "{}")
        await until(lambda: handled)
        assert dispatcher.health().unhandled == 0
    assert handled == [f"{prefix}.c"]


async def test_overlapping_subscriptions_deliver_once(redis_url: str) -> None:
    prefix = unique()
    patterns = ["a.*.c", "a.b.*", "{x}.b.c", "a.b.c", "a.b.d", "q"]
    handled: list[tuple[str, str]] = []
    dispatcher = EventDispatcher(RedisConsumer(redis_url))

    def register(pattern: str) -> None:
        @dispatcher.handler(topic=f"{prefix}.{pattern}")
        async def handle(event: Event[Any]) -> None:
            handled.append((pattern, event.meta.topic.removeprefix(f"{prefix}.")))

    for pattern in patterns:
        register(pattern)
    expected = {
        "a.b.c": ["a.*.c", "a.b.*", "{x}.b.c", "a.b.c"],
        "a.b.d": ["a.b.*", "a.b.d"],
        "a.x.c": ["a.*.c"],
        "q": ["q"],
    }
    async with dispatcher.lifespan():
        with client_of(redis_url) as client:
            for _ in range(3):
                for channel in expected:
                    client.publish(f"{prefix}.{channel}", "{}")
        wanted = sorted((pattern, channel) for channel, fits in expected.items() for pattern in fits) * 3
        await until(lambda: len(handled) >= len(wanted))
        await dispatcher.idle()
        assert dispatcher.health().handled == 3 * len(expected)
    assert sorted(handled) == sorted(wanted)


async def test_headers_travel_in_the_envelope(redis_url: str) -> None:
    topic = unique()
    handled: list[Any] = []

    class Paid(EventBase):
        __route__ = RedisEventRoute(topic)
        __backend_config__ = RedisEventConfig(headers={"tenant": "{who}", "fixed": "ä"})
        who: str

    dispatcher = EventDispatcher(RedisConsumer(redis_url))

    @dispatcher.handler(RedisEventSubscription(topic))
    async def handle(event: Event[Any]) -> None:
        handled.append(dict(event.meta.headers))

    async with dispatcher.lifespan(), EventEmitter(RedisProducer(redis_url)) as emitter:
        await emitter.emit(Paid(who="me"))
        await until(lambda: handled)
    assert handled[0]["fixed"] == "ä"
    assert "tenant" in handled[0]


async def test_bad_messages_are_logged_and_passed_over(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    topic = unique()
    handled: list[str] = []
    dispatcher = EventDispatcher(RedisConsumer(redis_url, max_payload_bytes=1000))

    @dispatcher.handler(topic=topic)
    async def handle(event: Event[Body]) -> None:
        handled.append(event.body.order)

    with caplog.at_level(logging.ERROR, "dispytch"):
        async with dispatcher.lifespan():
            with client_of(redis_url) as client:
                for payload in (b"{not json", b"\xff\xfe", b'{"amount": "secret"}', b"", b'"' + b"x" * 2000 + b'"'):
                    client.publish(topic, payload)
                client.publish(topic, b'{"order": "good"}')
            await until(lambda: handled)
            await dispatcher.idle()
    assert handled == ["good"]
    records = [record.getMessage() for record in caplog.records]
    assert len(records) == 5
    assert all(topic in record and "secret" not in record for record in records)


async def test_a_channel_that_is_no_text(redis_url: str) -> None:
    prefix = unique()
    handled: list[str] = []
    dispatcher = EventDispatcher(RedisConsumer(redis_url))

    @dispatcher.handler(topic=prefix + ".{name}")
    async def handle(event: Event[Any]) -> None:
        handled.append(event.meta.topic)

    async with dispatcher.lifespan():
        with client_of(redis_url) as client:
            client.publish(prefix.encode() + b".\xff", b"{}")
        await until(lambda: handled)
    assert handled == [prefix + r".\xff"]


async def test_no_more_than_at_most_once(redis_url: str) -> None:
    dispatcher = EventDispatcher(RedisConsumer(redis_url))

    @dispatcher.handler(topic=unique(), ack_policy=AckAfterProcessing())
    async def handle(event: Event[Any]) -> None: ...

    with pytest.raises(RegistrationError, match="acknowledge"):
        await dispatcher.start()


async def test_failures_are_dropped_unless_dead_letters_are_asked_for(redis_url: str) -> None:
    topic, dead = unique(), unique("dead")
    tries: list[int] = []
    letters: list[bytes] = []
    dispatcher = EventDispatcher(RedisConsumer(redis_url))

    @dispatcher.handler(topic=topic, dead_letter=dead)
    async def fail(event: Event[Any]) -> None:
        tries.append(1)
        raise ValueError("no")

    @dispatcher.handler(topic=topic)
    async def fail_too(event: Event[Any]) -> None:
        raise ValueError("no")

    @dispatcher.handler(topic=unique() + ".#", dead_letter=dead)
    async def other(event: Event[Any]) -> None: ...

    @dispatcher.handler(RedisEventSubscription())
    async def everything(event: Event[Any]) -> None:
        if event.meta.topic == dead:
            raise AssertionError("wildcards bring no dead letters")

    with client_of(redis_url) as client, client.pubsub() as watching:
        watching.subscribe(dead)
        async with dispatcher.lifespan():
            client.publish(topic, b'{"n": 1}')

            def letter() -> bool:
                found = watching.get_message()
                if found and found["type"] == "message":
                    letters.append(found["data"])
                return bool(letters)

            await until(letter)
            await dispatcher.idle()
            assert dispatcher.health().dead_lettered == 1
        assert watching.get_message() is None
    assert letters == [b'{"n": 1}']


async def test_a_dead_letter_that_cannot_be_written_is_tried_again(
    redis_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic, dead = unique(), unique("dead")
    consumer = RedisConsumer(redis_url)
    dispatcher = EventDispatcher(consumer)
    send, sent = consumer._letters.send, 0

    async def fail_once(*given: Any) -> Any:
        nonlocal sent
        sent += 1
        return [EmitRejectedError("not now")] if sent == 1 else await send(*given)

    monkeypatch.setattr(consumer._letters, "send", fail_once)

    @dispatcher.handler(topic=topic, dead_letter=RedisEventRoute(dead))
    async def fail(event: Event[Any]) -> None:
        raise ValueError("no")

    async with dispatcher.lifespan():
        with client_of(redis_url) as client:
            client.publish(topic, b"{}")
        await until(lambda: sent == 2)
        await dispatcher.idle()
    assert "not now" in caplog.text


@pytest.mark.parametrize("channel", ["", "\ud800"])
async def test_names_are_checked_before_anything_is_sent(redis_url: str, channel: str) -> None:
    dispatcher = EventDispatcher(RedisConsumer(redis_url))

    async def handle(event: Event[Any]) -> None: ...

    async def start() -> None:
        dispatcher.handler(RedisEventSubscription(channel))(handle)
        await dispatcher.start()

    with pytest.raises(ConfigurationError):
        await start()


async def test_a_big_event(redis_url: str) -> None:
    topic = unique()
    paid = event_class(topic)
    handled: list[int] = []
    dispatcher = EventDispatcher(RedisConsumer(redis_url, max_payload_bytes=20_000_000))

    @dispatcher.handler(topic=topic)
    async def handle(event: Event[Body]) -> None:
        handled.append(len(event.body.order))

    async with dispatcher.lifespan(), EventEmitter(RedisProducer(redis_url)) as emitter:
        await emitter.emit_many([paid(order="x" * size) for size in (5_000_000, 10, 3_000_000)])
        await until(lambda: len(handled) == 3)
    assert sorted(handled) == [10, 3_000_000, 5_000_000]


async def test_blocking_handlers(redis_url: str) -> None:
    topic = unique()
    handled: list[int] = []
    dispatcher = EventDispatcher(RedisConsumer(redis_url))

    @dispatcher.handler(topic=topic)
    def handle(event: Event[Any]) -> None:
        handled.append(1)

    async with dispatcher.lifespan(), EventEmitter(RedisProducer(redis_url)) as emitter:
        async with anyio.create_task_group() as group:
            for _ in range(100):
                group.start_soon(emitter.emit, event_class(topic)(order="1"))
        await until(lambda: len(handled) == 100)
