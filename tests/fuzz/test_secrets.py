"""A password that is given in any form turns up in no repr, no error and no line of the log."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from dispytch import Event, EventBase, EventDispatcher, EventEmitter, consumer_from_url, producer_from_url
from dispytch import sync as blocking
from dispytch.errors import ConfigurationError, DispytchError
from dispytch.kafka import BlockingKafkaProducer, KafkaConsumer, KafkaProducer
from dispytch.memory import MemoryBroker
from dispytch.rabbitmq import BlockingRabbitMQProducer, RabbitMQConsumer, RabbitMQProducer
from dispytch.redis import BlockingRedisProducer, RedisConsumer, RedisProducer, RedisStreamConsumer, RedisStreamProducer
from tests.helpers import dispatcher_on, errors, publish, run
from tests.support import CANARY, closed_port, texts

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", [("asyncio", {})], ids=["asyncio"])]

NOWHERE = f"127.0.0.1:{closed_port()}"
URLS = [
    f"kafka://user:{CANARY}@{NOWHERE}",
    f"kafka+ssl://user:{CANARY}@{NOWHERE}?sasl.mechanism=SCRAM-SHA-256",
    f"kafka://{NOWHERE}?sasl.username=user&sasl.password={CANARY}&sasl.mechanism=PLAIN",
    f"amqp://user:{CANARY}@{NOWHERE}/",
    f"amqps://user:{CANARY}@{NOWHERE}/vhost",
    f"redis://user:{CANARY}@{NOWHERE}/0",
    f"redis://:{CANARY}@{NOWHERE}/0",
    f"redis://{NOWHERE}/0?password={CANARY}",
    f"rediss://user:{CANARY}@{NOWHERE}/0",
    f"redis+stream://user:{CANARY}@{NOWHERE}/0",
    f"rediss+stream://:{CANARY}@{NOWHERE}/0",
]


class Paid(EventBase):
    __topic__ = "orders"
    amount: int = 1


def shown(*things: Any) -> str:
    """What a person sees who prints or logs these."""
    return "".join(f"{thing!r}{thing!s}{[thing]}" for thing in things)


@pytest.mark.parametrize("url", URLS, ids=range(len(URLS)))
async def test_where_nobody_listens(
    url: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispytch.kafka.trouble._PATIENCE", 0.2)
    caplog.set_level("DEBUG")
    seen = ""
    producer, consumer = producer_from_url(url), consumer_from_url(url, "group")
    emitter = EventEmitter(producer, timeout=1)
    in_thread = blocking.EventEmitter(producer_from_url(url), timeout=1)
    dispatcher = EventDispatcher(consumer)

    @dispatcher.handler(topic="orders")
    async def handle(event: Event[Paid]) -> None: ...

    seen += shown(producer, consumer, emitter, dispatcher, in_thread, in_thread.producer, dispatcher.health())
    for attempt in (emitter.start, lambda: emitter.emit(Paid()), lambda: emitter.emit_many([Paid(), Paid()])):
        with pytest.raises(DispytchError) as raised:
            await attempt()
        seen += texts(raised.value)
    for call in (in_thread.start, lambda: in_thread.emit(Paid())):
        with pytest.raises(DispytchError) as raised:
            await anyio.to_thread.run_sync(call)
        seen += texts(raised.value)
    with pytest.raises(DispytchError) as raised:
        await dispatcher.start()
    seen += texts(raised.value) + shown(emitter, dispatcher, in_thread)
    await emitter.close()
    await anyio.to_thread.run_sync(in_thread.close)
    out, err = capfd.readouterr()
    assert CANARY not in seen
    assert CANARY not in caplog.text
    assert CANARY not in out + err


WRONG: list[Callable[[], object]] = [
    lambda: producer_from_url(f"nonsense://user:{CANARY}@host"),
    lambda: consumer_from_url(f"nonsense://user:{CANARY}@host", "group"),
    lambda: producer_from_url(f"user:{CANARY}@host"),
    lambda: producer_from_url(f"user:{CANARY}@host://"),
    lambda: producer_from_url(CANARY),
    lambda: EventEmitter(f"amqp://user:{CANARY}@host"),  # type: ignore[arg-type]  # the mistake
    lambda: blocking.EventEmitter(f"amqp://user:{CANARY}@host"),  # type: ignore[arg-type]  # the mistake
    lambda: EventDispatcher(f"kafka://user:{CANARY}@host"),  # type: ignore[arg-type]  # the mistake
    lambda: EventEmitter({"password": CANARY}),  # type: ignore[arg-type]  # the mistake
    lambda: EventDispatcher({"password": CANARY}),  # type: ignore[arg-type]  # the mistake
    lambda: KafkaProducer({"sasl.password": CANARY}),
    lambda: KafkaProducer("host", {"sasl.password": CANARY, "no.such.setting": CANARY}),
    lambda: KafkaConsumer(f"user:{CANARY}@host", group_id="group"),
    lambda: BlockingKafkaProducer([CANARY]),
    lambda: RabbitMQProducer(f"http://user:{CANARY}@host"),
    lambda: RabbitMQProducer({"url": CANARY}),
    lambda: RabbitMQConsumer(f"amqp://user:{CANARY}@host:port", queue="queue"),
    lambda: BlockingRabbitMQProducer({"url": CANARY}),
    lambda: RedisProducer(f"http://user:{CANARY}@host"),
    lambda: RedisProducer({"password": CANARY}),
    lambda: BlockingRedisProducer([CANARY]),
    lambda: RedisConsumer({"password": CANARY}),
    lambda: RedisStreamProducer(f"redis+stream://user:{CANARY}@host:port"),
    lambda: RedisStreamConsumer({"password": CANARY}, group_id="group"),
]


@pytest.mark.parametrize("make", WRONG, ids=range(len(WRONG)))
async def test_what_is_wrong_is_refused_without_a_secret(make: Callable[[], object]) -> None:
    with pytest.raises(ConfigurationError) as raised:
        make()
    assert CANARY not in texts(raised.value)


async def test_no_payload_in_what_is_shown_of_an_event_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    broker = MemoryBroker()
    dispatcher = dispatcher_on(broker)
    shown_there: list[str] = []

    @dispatcher.handler(topic="orders")
    async def handle(event: Event[Paid]) -> None:
        shown_there.append(shown(event.meta, event.meta.message, copy.copy(event.meta)))

    publish(broker, "orders", b'{"amount": 1}', [("authorization", CANARY.encode())], CANARY.encode())
    publish(broker, "orders", b'{"amount": "%b"}' % CANARY.encode(), [("authorization", CANARY.encode())])
    publish(broker, "orders", b"%b" % CANARY.encode())
    publish(broker, "orders", b'{"%b": ' % CANARY.encode())
    publish(broker, "orders", b'{"amount": [{"%b": 1}]}' % CANARY.encode())
    await run(dispatcher)
    assert len(errors(broker)) == 4
    assert CANARY not in "".join(errors(broker))
    assert CANARY not in caplog.text
    assert CANARY not in "".join(shown_there).replace(f"key='{CANARY}'", "")
