"""`dispytch tail`: shows what comes, and takes nothing from those whose it is."""

from __future__ import annotations

import json
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest

from dispytch import Event, EventBase, consumer_from_url, producer_from_url
from dispytch._core.patterns import Pattern
from dispytch._runtime.urls import observer_from_url
from dispytch.abc import EventSubscription, Message, Subscription
from dispytch.errors import ConfigurationError
from dispytch.redis.streams.observer import RedisStreamObserver
from dispytch.sync import EventDispatcher as BlockingDispatcher
from dispytch.sync import EventEmitter
from tests.cli.support import run, running
from tests.kafka.helpers import Cluster
from tests.support import CANARY, blocking_until, closed_port, unique
from tests.test_examples import BROKERS, url_of


class Noted(EventBase):
    __topic__ = "{shop}"
    shop: str
    number: int


class Other(EventBase):
    __topic__ = "{shop}"
    shop: str


@pytest.mark.parametrize("broker", BROKERS)
def test_everybody_else_gets_the_events_too(tmp_path: Path, broker: str, request: pytest.FixtureRequest) -> None:
    url = url_of(broker, request)
    topic, handled = unique("watched"), []
    dispatcher = BlockingDispatcher(consumer_from_url(url, topic))

    @dispatcher.handler(topic=topic, event="Noted")
    def handle(event: Event) -> None:
        handled.append(event.body["number"])

    @dispatcher.handler(topic=topic, event="Other")
    def handle_other() -> None: ...

    with ExitStack() as stack:
        stack.enter_context(dispatcher)
        emitter = stack.enter_context(EventEmitter(producer_from_url(url)))
        emitter.emit(Noted(shop=topic, number=0))
        one = stack.enter_context(running(tmp_path, "tail", url, topic, "--json", "--event", "Noted"))
        one.until_said("Ctrl-C ends")
        emitter.emit_many([Noted(shop=topic, number=1), Other(shop=topic), Noted(shop=topic, number=2)])
        one.until_said('"body": {', times=2)
        one.signal(signal.SIGINT)
        assert one.code() == 130
        shown = [json.loads(line) for line in one.said.splitlines() if line.startswith("{")]
        assert [facts["body"]["number"] for facts in shown] == [1, 2]
        assert {facts["type"] for facts in shown} == {"Noted"}
        assert {facts["topic"] for facts in shown} == {topic}
        blocking_until(lambda: sorted(handled) == [0, 1, 2])


def test_nothing_is_left_at_kafka(tmp_path: Path, kafka_url: str) -> None:
    cluster, topic = Cluster(kafka_url), unique("watched")
    cluster.create(topic)
    with running(tmp_path, "tail", kafka_url, topic) as one:
        one.until_said("Ctrl-C ends")
        assert [name for name in groups(cluster) if name.startswith("dispytch-tail-")]
        one.signal(signal.SIGTERM)
        assert one.code() == 143
    assert not [name for name in groups(cluster) if name.startswith("dispytch-tail-")]


def groups(cluster: Cluster) -> list[str]:
    return [found.group_id for found in cluster.admin.list_consumer_groups().result(30).valid]


def test_patterns_and_a_limit(tmp_path: Path, rabbitmq_url: str) -> None:
    prefix = unique("shops")
    with running(tmp_path, "tail", rabbitmq_url, f"{prefix}.*.orders", "--limit", "1") as one:
        one.until_said("Ctrl-C ends")
        with EventEmitter(producer_from_url(rabbitmq_url)) as emitter:
            emitter.emit(_order_of(prefix)(shop="oslo", text="a\x1b[31mred\x9b"))
        assert one.code() == 0
        lines = one.said.splitlines()
        assert f"Order {prefix}.oslo.orders id=" in lines[1]
        assert lines[2] == r'  {"shop": "oslo", "text": "a\u001b[31mred\x9b"}'  # nothing that a terminal obeys


def _order_of(prefix: str) -> type[Any]:
    class Order(EventBase):
        __topic__ = f"{prefix}.{{shop}}.orders"
        shop: str
        text: str

    return Order


@pytest.mark.parametrize("broker", ["kafka", "redis+stream"])
def test_from_the_start(tmp_path: Path, broker: str, request: pytest.FixtureRequest) -> None:
    url, topic = url_of(broker, request), unique("watched")
    with EventEmitter(producer_from_url(url)) as emitter:
        emitter.emit_many([Noted(shop=topic, number=number) for number in range(3)])
    done = run(tmp_path, "tail", url, topic, "--from-start", "--limit", "3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"number": ') == 3


def test_what_is_not_json_is_shown_as_bytes(tmp_path: Path, kafka_url: str) -> None:
    topic = unique("watched")
    cluster = Cluster(kafka_url)
    cluster.create(topic)
    cluster.produce(topic, b"\xff\x1b", None)
    done = run(tmp_path, "tail", kafka_url, topic, "--from-start", "--limit", "2")
    assert r"not JSON: b'\xff\x1b'" in done.stdout
    assert "no type" in done.stdout
    assert done.stdout.endswith("null\n")


@pytest.mark.parametrize(
    ("scheme", "topic", "options", "code", "text"),
    [
        ("redis+stream", "orders.*", [], 2, "is a pattern, and Redis Streams have none"),
        ("redis", "orders", ["--from-start"], 2, "Redis Pub/Sub keeps nothing"),
        ("amqp", "orders", ["--from-start"], 2, "RabbitMQ gives a queue what is published after"),
        ("memory", "orders", [], 2, "memory:// is within one process"),
        ("nats", "orders", [], 2, "no transport has the URL scheme 'nats'"),
    ],
)
def test_what_cannot_be_done_is_said(
    tmp_path: Path, scheme: str, topic: str, options: list[str], code: int, text: str
) -> None:
    done = run(tmp_path, "tail", f"{scheme}://ada:{CANARY}@127.0.0.1:{closed_port()}", topic, *options)
    assert done.returncode == code, done.stderr
    assert text in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert CANARY not in done.stderr


def test_a_topic_that_is_missing(tmp_path: Path, kafka_url: str) -> None:
    topic = unique("missing")
    done = run(tmp_path, "tail", kafka_url, topic)
    assert done.returncode == 2
    assert topic in done.stderr
    assert f"--create --topic {topic}`; or check its name" in done.stderr
    assert "declare" not in done.stderr
    assert not Cluster(kafka_url).exists(topic)


@pytest.fixture(params=["redis", "redis+stream", "rabbitmq", "kafka"])
def url(request: pytest.FixtureRequest) -> str:
    return url_of(request.param, request)


@pytest.mark.anyio
async def test_an_observer_on_every_loop(url: str) -> None:
    topic = unique("watched")
    producer = producer_from_url(url)
    if url.startswith("kafka"):
        Cluster(url).create(topic)
    observer = observer_from_url(url, unique("observer"))
    subscription = Subscription(Pattern.parse(topic), EventSubscription(topic))
    declared = observer.subscription_for(EventSubscription(topic))
    assert isinstance(declared, EventSubscription)
    subscription = Subscription(Pattern.parse(topic), declared)
    await observer.start([subscription])
    try:
        with anyio.move_on_after(0.1):  # cancelled reads lose nothing
            await observer.receive(10)
        await producer.send([Message(str(n), producer.route_for(topic), b"%d" % n) for n in range(3)], 20)
        found: list[bytes | None] = []
        with anyio.fail_after(30):
            while len(found) < 3:
                found += [delivery.payload for delivery in await observer.receive(10)]
        assert found == [b"0", b"1", b"2"]
    finally:
        await observer.stop()
        await producer.stop()


@pytest.mark.anyio
async def test_an_observer_of_streams_goes_on_where_it_was(redis_url: str) -> None:
    topic = unique("watched")
    producer = producer_from_url(redis_url.replace("redis://", "redis+stream://", 1))
    observer = RedisStreamObserver(redis_url, from_start=False)
    with pytest.raises(ConfigurationError, match="not started"):
        await observer.receive(1)
    declared = observer.subscription_for(EventSubscription(topic))
    assert isinstance(declared, EventSubscription)
    await observer.start([Subscription(Pattern.parse(topic), declared)])
    try:
        await producer.send([Message("1", producer.route_for(topic), b"1")], 20)
        assert [delivery.payload for delivery in await observer.receive(10)] == [b"1"]
        await producer.send([Message("2", producer.route_for(topic), b"2")], 20)
        await observer.start()  # as after a connection that was lost
        assert [delivery.payload for delivery in await observer.receive(10)] == [b"2"]
    finally:
        await observer.stop()
        await producer.stop()


def test_a_plug_in_may_have_no_observer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("dispytch.memory.urls.observer_from_url")
    with pytest.raises(ConfigurationError, match=r"memory:// cannot do this: its module defines no observer_from_url"):
        observer_from_url("memory://app", "observer")
