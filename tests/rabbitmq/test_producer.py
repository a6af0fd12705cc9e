"""Emitting to a real RabbitMQ, through each driver, on every loop."""

from __future__ import annotations

import time
from typing import Any

import anyio
import pytest

from dispytch import EventBase, EventEmitter
from dispytch.abc import Receipt
from dispytch.errors import (
    BrokerUnreachableError,
    ConfigurationError,
    EmitError,
    EmitRejectedError,
    EmitTimeoutError,
    EmitUnreachableError,
    UnconfirmedError,
)
from dispytch.rabbitmq import RabbitMQEventConfig, RabbitMQEventRoute, RabbitMQProducer
from dispytch.rabbitmq.producer import Driver
from tests.faults.proxy import Proxy, proxy_to
from tests.rabbitmq.helpers import Names, channel_to, count, drain, exists, handed_over, is_trio, message, our_threads
from tests.support import PATIENCE, closed_port, unique, until

pytestmark = pytest.mark.anyio


def producer(url: str, names: Names, driver: Driver | None = None, **options: Any) -> RabbitMQProducer:
    return RabbitMQProducer(url, names.exchange, driver=driver, **options)


async def test_a_confirmed_event_is_in_the_queue(names: Names, driver: Driver | None) -> None:
    class Paid(EventBase):
        __topic__ = "orders.{order}.paid"
        __key__ = "{order}"
        order: str

    names.bind()
    async with EventEmitter(producer(names.url, names, driver)) as emitter:
        receipt = await emitter.emit(Paid(order="42"), id="the-id")
    assert receipt == Receipt("the-id", f"{names.exchange}/orders.42.paid")
    ((method, properties, body),) = drain(names.url, names.queue)
    assert body == b'{"order":"42"}'
    assert (method.exchange, method.routing_key) == (names.exchange, "orders.42.paid")
    assert (properties.message_id, properties.delivery_mode) == ("the-id", 2)
    assert properties.content_type == "application/json"
    assert properties.headers["ce-type"] == "Paid"
    assert properties.headers["ce-id"] == "the-id"
    assert properties.headers["ce-partitionkey"] == "42"


async def test_properties_of_amqp(names: Names, driver: Driver | None) -> None:
    class Ask(EventBase):
        __topic__ = "ask"
        __backend_config__ = RabbitMQEventConfig(
            headers={"x-tenant": "{who}", "raw": b"\xff\x00"},
            priority=7,
            expiration=60,
            delivery_mode=1,
            correlation_id="{who}-1",
            reply_to="answers",
            content_type="text/plain",
            content_encoding="utf-8",
            type="question",
            user_id="guest",
            app_id="tests",
        )
        who: str

    names.bind()
    async with EventEmitter(producer(names.url, names, driver)) as emitter:
        await emitter.emit(Ask(who="me"))
    ((_, properties, _),) = drain(names.url, names.queue)
    assert properties.priority == 7
    assert properties.expiration == "60000"
    assert properties.delivery_mode == 1
    assert (properties.correlation_id, properties.reply_to) == ("me-1", "answers")
    assert (properties.content_type, properties.content_encoding) == ("text/plain", "utf-8")
    assert (properties.type, properties.user_id, properties.app_id) == ("question", "guest", "tests")
    assert properties.headers["raw"] == b"\xff\x00"


async def test_the_exchange_is_a_durable_topic_exchange(names: Names, driver: Driver | None) -> None:
    sender = producer(names.url, names, driver)
    (outcome,) = await sender.send([message("nobody.listens")], 10)
    await sender.stop()
    assert isinstance(outcome, EmitRejectedError)
    with channel_to(names.url) as channel:
        channel.exchange_declare(names.exchange, "topic", durable=True)  # refused if it were another


async def test_unroutable_is_an_error_unless_it_may_be(names: Names, driver: Driver | None) -> None:
    names.bind("known.#")
    sender = producer(names.url, names, driver)
    given = [message("known.1"), message("unknown"), message("known.2"), message("", exchange="")]
    given[3] = message(unique("no-queue"), exchange="")
    outcomes = await sender.send(given, 10)
    assert [type(outcome) for outcome in outcomes] == [Receipt, EmitRejectedError, Receipt, EmitRejectedError]
    assert "no queue is bound" in str(outcomes[1])
    await sender.stop()
    lenient = producer(names.url, names, driver, mandatory=False)
    assert isinstance((await lenient.send([message("unknown")], 10))[0], Receipt)
    await lenient.stop()
    assert count(names.url, names.queue) == 2


async def test_one_id_twice_gets_each_its_own_outcome(names: Names, driver: Driver | None) -> None:
    names.bind("known")
    sender = producer(names.url, names, driver)
    given = [message("unknown" if number % 3 == 0 else "known", id="same") for number in range(12)]
    outcomes = await sender.send(given, 10)
    await sender.stop()
    assert [isinstance(outcome, Receipt) for outcome in outcomes] == [number % 3 != 0 for number in range(12)]


async def test_one_id_in_several_tasks(names: Names, driver: Driver | None) -> None:
    names.bind("known")
    sender = producer(names.url, names, driver)
    assert isinstance((await sender.send([message("known")], 10))[0], Receipt)
    outcomes: list[tuple[str, object]] = []

    async def emit(key: str) -> None:
        outcomes.append((key, (await sender.send([message(key, id="same")], 10))[0]))

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(emit, "known")
            group.start_soon(emit, "unknown")
    await sender.stop()
    assert len(outcomes) == 10
    assert all(isinstance(outcome, Receipt) is (key == "known") for key, outcome in outcomes)


async def test_many_are_pipelined_and_stay_in_order(names: Names, driver: Driver | None) -> None:
    names.bind()
    outcomes: list[object] = []
    with proxy_to(names.url) as proxy:
        sender = producer(proxy.url, names, driver)
        outcomes.extend(await sender.send([message("k", b"0")], PATIENCE))

        async def emit() -> None:
            outcomes.extend(await sender.send([message("k", b"%d" % number) for number in range(1, 3000)], PATIENCE))

        async with anyio.create_task_group() as group:
            proxy.frozen = True
            group.start_soon(emit)
            await until(lambda: handed_over(sender) > 100)  # though nothing is confirmed
            proxy.frozen = False
        await sender.stop()
    assert all(isinstance(outcome, Receipt) for outcome in outcomes)
    assert [body for _, _, body in drain(names.url, names.queue)] == [b"%d" % number for number in range(3000)]


async def test_many_tasks_at_once(names: Names, driver: Driver | None) -> None:
    names.bind()
    sender = producer(names.url, names, driver)
    receipts: list[object] = []

    async def emit(number: int) -> None:
        receipts.extend(await sender.send([message("k", b"%d" % number)], 30))

    async with anyio.create_task_group() as group:
        for number in range(200):
            group.start_soon(emit, number)
    await sender.stop()
    assert {int(body) for _, _, body in drain(names.url, names.queue)} == set(range(200))
    assert all(isinstance(receipt, Receipt) for receipt in receipts)


async def test_a_full_queue_refuses(names: Names, driver: Driver | None) -> None:
    names.bind(arguments={"x-max-length": 2, "x-overflow": "reject-publish"})
    sender = producer(names.url, names, driver)
    outcomes = await sender.send([message("k") for _ in range(10)], 10)
    await sender.stop()
    refused = [outcome for outcome in outcomes if isinstance(outcome, EmitRejectedError)]
    assert refused
    assert "nack" in str(refused[0])
    assert len(refused) == 10 - count(names.url, names.queue)


async def test_a_route_names_its_own_exchange(names: Names, driver: Driver | None) -> None:
    names.bind()
    sender = RabbitMQProducer(names.url, unique("other"), driver=driver)
    outcomes = await sender.send([message("k", exchange=names.exchange), message(names.queue, exchange="")], 10)
    await sender.stop()
    assert [outcome.route for outcome in outcomes if isinstance(outcome, Receipt)] == [
        f"{names.exchange}/k",
        names.queue,
    ]
    assert not exists(names.url, exchange=sender.exchange)


async def test_an_exchange_that_is_there_is_kept(
    names: Names, driver: Driver | None, caplog: pytest.LogCaptureFixture
) -> None:
    with channel_to(names.url) as channel:
        channel.exchange_declare(names.exchange, "fanout")
        channel.queue_declare(names.queue)
        channel.queue_bind(names.queue, names.exchange)
    sender = producer(names.url, names, driver)
    (outcome,) = await sender.send([message("whatever")], 10)
    await sender.stop()
    assert isinstance(outcome, Receipt)
    assert "it is kept" in caplog.text


async def test_an_exchange_deleted_meanwhile_is_made_again(names: Names, driver: Driver | None) -> None:
    names.bind()
    sender = producer(names.url, names, driver)
    assert isinstance((await sender.send([message("k")], 10))[0], Receipt)
    with channel_to(names.url) as channel:
        channel.exchange_delete(names.exchange)
    (outcome,) = await sender.send([message("k")], 10)
    assert isinstance(outcome, EmitRejectedError)
    assert "no exchange" in str(outcome)
    names.bind()
    (outcome,) = await sender.send([message("k")], 10)
    await sender.stop()
    assert isinstance(outcome, Receipt)


async def test_what_one_event_is_refused_for_says_nothing_of_others(names: Names, driver: Driver | None) -> None:
    names.bind()
    gone = unique("gone")
    sender = producer(names.url, names, driver)
    with channel_to(names.url) as channel:
        channel.exchange_declare(gone, "topic", durable=True)
        channel.queue_bind(names.queue, gone, "#")
    known = await sender.send([message("k"), message("k", exchange=gone)], 10)
    assert [type(outcome) for outcome in known] == [Receipt, Receipt]
    with channel_to(names.url) as channel:
        channel.exchange_delete(gone)
    outcomes: dict[bytes, object] = {}

    async def emit(body: bytes, exchange: str) -> None:
        (outcomes[body],) = await sender.send([message("k", body, exchange=exchange)], 10)

    async with anyio.create_task_group() as group:
        group.start_soon(emit, b"before", names.exchange)
        group.start_soon(emit, b"missing", gone)
        group.start_soon(emit, b"after", names.exchange)
    await sender.stop()
    arrived = {body for _, _, body in drain(names.url, names.queue)}
    assert "no exchange" in str(outcomes[b"missing"])
    assert isinstance(outcomes.pop(b"missing"), EmitRejectedError)
    for body, outcome in outcomes.items():
        # Each may be confirmed by chance, and else is in doubt: "before" has arrived, though the channel was closed.
        assert isinstance(outcome, Receipt | EmitTimeoutError)
        assert body in arrived or isinstance(outcome, EmitTimeoutError)


async def test_what_is_larger_than_the_broker_takes_is_refused(names: Names) -> None:
    names.bind()
    sender = producer(names.url, names)
    large = message("k", bytes(135_000_000))
    assert isinstance((await sender.send([large], 30))[0], EmitError)
    (outcome,) = await sender.send([message("k")], 10)
    await sender.stop()
    assert isinstance(outcome, Receipt)


async def test_a_connection_that_breaks_is_made_anew(names: Names, driver: Driver | None) -> None:
    names.bind()
    with proxy_to(names.url) as proxy:
        sender = producer(proxy.url, names, driver)
        for _ in range(3):
            await emit_again(sender, proxy)
            proxy.cut()
        await sender.stop()
    assert proxy.accepted >= 3


async def emit_again(sender: RabbitMQProducer, proxy: Proxy) -> None:
    """A connection that was cut may be noticed only by the first event that goes by it."""
    with anyio.fail_after(10):
        while True:
            (outcome,) = await sender.send([message("k")], 5)
            if isinstance(outcome, Receipt):
                return
            assert isinstance(outcome, EmitTimeoutError | EmitUnreachableError)


async def test_no_answer_in_time_means_that_it_may_have_gone(names: Names, driver: Driver | None) -> None:
    names.bind()
    with proxy_to(names.url) as proxy:
        sender = producer(proxy.url, names, driver)
        await sender.send([message("k")], 10)
        proxy.frozen = True
        started = time.monotonic()
        (outcome,) = await sender.send([message("k")], 0.3)
        assert isinstance(outcome, EmitTimeoutError)
        assert "may have gone" in str(outcome)
        assert time.monotonic() - started < 2
        proxy.frozen = False
        await sender.stop()


async def test_little_is_in_doubt_when_nobody_answers(names: Names, driver: Driver | None) -> None:
    names.bind()
    with proxy_to(names.url) as proxy:
        sender = producer(proxy.url, names, driver)
        await sender.send([message("k")], 10)
        proxy.frozen = True
        outcomes = await sender.send([message("k") for _ in range(5000)], 0.6)
        kinds = [type(outcome) for outcome in outcomes]
        in_doubt = kinds.count(EmitTimeoutError)
        assert 0 < in_doubt <= 2000
        assert kinds == [EmitTimeoutError] * in_doubt + [EmitUnreachableError] * (5000 - in_doubt)
        proxy.frozen = False
        await sender.stop()
    assert count(names.url, names.queue) <= in_doubt + 1


async def test_a_connection_lost_before_the_confirmation(names: Names, driver: Driver | None) -> None:
    names.bind()
    with proxy_to(names.url) as proxy:
        sender = producer(proxy.url, names, driver)
        await sender.send([message("k")], 10)
        proxy.frozen = True
        found: list[object] = []

        async def emit() -> None:
            found.extend(await sender.send([message("k", b"%d" % number) for number in range(3)], 20))

        async with anyio.create_task_group() as group:
            group.start_soon(emit)
            await until(lambda: handed_over(sender) == 3)
            proxy.cut()
        assert [type(outcome) for outcome in found] == [EmitTimeoutError] * 3
        proxy.frozen = False
        await sender.stop()


async def test_nobody_there(names: Names, driver: Driver | None) -> None:
    sender = RabbitMQProducer(f"amqp://127.0.0.1:{closed_port()}", driver=driver)
    for _ in range(2):
        (outcome,) = await sender.send([message("k")], 5)
        assert isinstance(outcome, EmitUnreachableError)
    with pytest.raises(BrokerUnreachableError, match="cannot connect"):
        await sender.start()
    await sender.stop()


async def test_a_server_that_says_nothing(names: Names, driver: Driver | None) -> None:
    with proxy_to(names.url) as proxy:
        proxy.frozen = True
        sender = producer(proxy.url, names, driver)
        started = time.monotonic()
        (outcome,) = await sender.send([message("k")], 0.3)
        assert isinstance(outcome, EmitUnreachableError)
        assert time.monotonic() - started < 2
        proxy.frozen = False
        await sender.stop()


async def test_stop_flushes_and_tells_what_is_unconfirmed(
    names: Names, driver: Driver | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispytch.rabbitmq.publisher._FLUSH_TIMEOUT", 0.3)
    monkeypatch.setattr("dispytch.rabbitmq.aio._FLUSH_TIMEOUT", 0.3)
    monkeypatch.setattr("dispytch.rabbitmq.wire._CLOSE_TIMEOUT", 0.3)
    monkeypatch.setattr("dispytch.rabbitmq.aio._CLOSE_TIMEOUT", 0.3)
    names.bind()
    with proxy_to(names.url) as proxy:
        sender = producer(proxy.url, names, driver)
        await sender.send([message("k")], 10)
        proxy.frozen = True
        found: list[object] = []

        async def emit() -> None:
            found.extend(await sender.send([message("k"), message("k")], 20))

        async with anyio.create_task_group() as group:
            group.start_soon(emit)
            await until(lambda: handed_over(sender) == 2)
            with pytest.raises(UnconfirmedError) as caught:
                await sender.stop()
            assert caught.value.count == 2
            proxy.cut()
        assert [type(outcome) for outcome in found] == [EmitTimeoutError] * 2
        proxy.frozen = False


async def test_stop_waits_for_what_is_under_way(
    names: Names, driver: Driver | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("publisher", "aio"):
        monkeypatch.setattr(f"dispytch.rabbitmq.{module}._FLUSH_TIMEOUT", PATIENCE)
    names.bind()
    sender = producer(names.url, names, driver)
    found: list[object] = []

    async def emit() -> None:
        found.extend(await sender.send([message("k") for _ in range(2000)], PATIENCE))

    async with anyio.create_task_group() as group:
        group.start_soon(emit)
        await until(lambda: our_threads() or driver == "aio-pika")
        await anyio.sleep(0.01)
        await sender.stop()
        await sender.stop()
    await sender.stop()  # the first one may have come before the batch, which then opened a connection of its own
    assert sum(isinstance(outcome, Receipt) for outcome in found) == count(names.url, names.queue)
    await until(lambda: not our_threads())


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (message("k" * 256), "255"),
        (message("ä" * 128), "256 bytes"),
        (message("k", exchange="e" * 256), "exchange's name"),
        (message("k", id="i" * 256), "id"),
        (message(""), "empty"),
        (message("\ud800"), "surrogate"),
    ],
)
async def test_names_are_checked_before_anything_is_sent(bad: Any, problem: str) -> None:
    with pytest.raises(EmitRejectedError, match=problem):
        RabbitMQProducer("amqp://127.0.0.1:1").check(bad)


@pytest.mark.parametrize(
    "headers",
    [{"h": "x" * 70_000}, {"": "1"}, {"a\0": "1"}, {"a\r\n": "1"}, {"k" * 129: "1"}, {"CC": "queue"}, {"BCC": "queue"}],
)
async def test_headers_that_would_break_the_connection(headers: dict[str, str]) -> None:
    class Odd(EventBase):
        __topic__ = "k"
        __backend_config__ = RabbitMQEventConfig(headers=headers)

    async with EventEmitter(_Unconnected("amqp://127.0.0.1:1")) as emitter:
        with pytest.raises(EmitRejectedError, match="header"):
            await emitter.emit(Odd())


class _Unconnected(RabbitMQProducer):
    async def start(self) -> None: ...


class TestReadyMade:
    async def test_exchanges_of_aio_pika(self, names: Names, anyio_backend: tuple[str, Any]) -> None:
        import aio_pika

        names.bind()
        if is_trio(anyio_backend):
            return
        connection = await aio_pika.connect(names.url)
        async with connection:
            channel = await connection.channel()
            exchange = await channel.get_exchange(names.exchange)
            sender = RabbitMQProducer([exchange])
            outcomes = await sender.send([message("k"), message("k", exchange="other")], 10)
            await sender.stop()
            assert isinstance(outcomes[0], Receipt)
            assert isinstance(outcomes[1], EmitRejectedError)
            assert not channel.is_closed
            unroutable = await sender.send([message("x")], 10)
            assert isinstance(unroutable[0], Receipt)  # bound by '#'
        assert count(names.url, names.queue) == 2

    async def test_other_things_are_refused(self) -> None:
        for given in (object(), [], [1], None):
            with pytest.raises(ConfigurationError, match="RabbitMQProducer"):
                RabbitMQProducer(given)


async def test_aio_pika_is_refused_on_trio(names: Names, anyio_backend: tuple[str, Any]) -> None:
    if is_trio(anyio_backend):
        with pytest.raises(ConfigurationError, match="under asyncio only"):
            await RabbitMQProducer(names.url, driver="aio-pika").send([message("k")], 5)


async def test_routes_by_position_and_by_name() -> None:
    assert RabbitMQEventRoute("k") == RabbitMQEventRoute(routing_key="k", exchange=None)
    assert RabbitMQEventRoute(exchange="e", routing_key="k").address == "k"
