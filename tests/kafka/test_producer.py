"""Sending: receipts, options, what is refused, time-outs, many at once, and ready-made clients."""

from __future__ import annotations

import re
import time
from typing import Any

import anyio
import pytest

from dispytch import EventBase, EventEmitter
from dispytch.abc import Message, Receipt
from dispytch.errors import (
    BrokerUnreachableError,
    ConfigurationError,
    EmitRejectedError,
    EmitTimeoutError,
    EmitUnreachableError,
    UnconfirmedError,
)
from dispytch.kafka import KafkaEventConfig, KafkaEventRoute, KafkaProducer
from tests.kafka.helpers import Cluster, confluent, kafka_threads, message, unique, until
from tests.support import closed_port

anyio_mark = pytest.mark.anyio


@anyio_mark
async def test_what_arrives_and_what_the_receipt_says(cluster: Cluster) -> None:
    topic = unique()
    cluster.create(topic, partitions=3)

    class Made(EventBase):
        __route__ = KafkaEventRoute(topic)
        __backend_config__ = KafkaEventConfig(
            partition_key="key-{name}",
            partition=2,
            timestamp_ms="{at}",
            headers={"größe": "weiß-{name}", "raw": b"\xff"},
        )
        __key__ = "not this"
        name: str
        at: int

    async with EventEmitter(KafkaProducer(cluster.servers)) as emitter:
        first = await emitter.emit(Made(name="ä", at=1_700_000_000_000))
        second = await emitter.emit(Made(name="b", at=1_700_000_000_001))
    assert first is not None
    assert second is not None
    assert (first.route, first.partition, first.offset) == (topic, 2, 0)
    assert (second.partition, second.offset) == (2, 1)
    found, _ = cluster.read(topic, 2)
    headers = dict(found.headers())
    assert found.key() == "key-ä".encode()
    assert found.timestamp() == (1, 1_700_000_000_000)
    assert headers["größe"] == "weiß-{name}".encode()
    assert headers["raw"] == b"\xff"
    assert headers["ce_id"] == first.id.encode()
    assert kafka_threads() == []


@anyio_mark
async def test_key_and_null(cluster: Cluster) -> None:
    topic = unique()
    async with EventEmitter(KafkaProducer(cluster.servers)) as emitter:
        outcomes = await emitter.producer.send([message(topic, None, b"k"), message(topic, b"x")], 10)
    assert [type(outcome) for outcome in outcomes] == [Receipt, Receipt]
    assert [(found.key(), found.value()) for found in cluster.read(topic, 2)] == [(b"k", None), (None, b"x")]


@pytest.mark.parametrize("topic", ["", ".", "..", "a b", "größe", "a/b", "a:b", "x" * 250])
def test_names_that_kafka_does_not_take(topic: str) -> None:
    with pytest.raises(EmitRejectedError, match="topic"):
        KafkaProducer("localhost").check(message(topic))


@pytest.mark.parametrize("topic", ["x", "a.b_c-D9", "x" * 249, "..."])
def test_names_that_kafka_takes(topic: str) -> None:
    KafkaProducer("localhost").check(message(topic))


@pytest.mark.parametrize(
    "config",
    [
        KafkaEventConfig(partition=-1),
        KafkaEventConfig(partition="x"),
        KafkaEventConfig(timestamp_ms="²"),
        KafkaEventConfig(timestamp_ms="9" * 5000),
        KafkaEventConfig(timestamp_ms=2**63),
        KafkaEventConfig(partition=2**31),
    ],
)
def test_options_that_kafka_does_not_take(config: KafkaEventConfig) -> None:
    with pytest.raises(EmitRejectedError):
        KafkaProducer("localhost").check(message("x", config=config))


def test_size_is_checked_before_anything_is_sent() -> None:
    KafkaProducer("localhost").check(message("x", b"x" * 999_000))
    with pytest.raises(EmitRejectedError, match=r"message\.max\.bytes"):
        KafkaProducer("localhost").check(message("x", b"x" * 1_000_000))
    KafkaProducer("localhost", {"message.max.bytes": 2_000_000}).check(message("x", b"x" * 1_900_000))


@anyio_mark
async def test_each_message_has_its_own_outcome(cluster: Cluster) -> None:
    good, small = unique(), unique()
    cluster.create(good)
    cluster.create(small, max_message_bytes="1000")
    producer = KafkaProducer(cluster.servers)
    outcomes = await producer.send(
        [
            message(good),
            message(small, b"x" * 5000),
            message(good, config=KafkaEventConfig(partition=7)),
            Message("id", KafkaEventRoute(good), b"x", [("half\ud800", b"")]),
            message("no such name!"),
            message(good),
        ],
        20,
    )
    await producer.stop()
    assert isinstance(outcomes[0], Receipt)
    assert isinstance(outcomes[5], Receipt)
    for number, text in ((1, "max.message.bytes"), (2, "partition"), (3, "header"), (4, "no such name!")):
        outcome = outcomes[number]
        assert isinstance(outcome, EmitRejectedError), outcome
        assert text in str(outcome)


@anyio_mark
async def test_a_missing_topic_is_created(cluster: Cluster) -> None:
    topics = [unique() for _ in range(6)]
    producer = KafkaProducer(cluster.servers)
    outcomes = await producer.send([message(topic) for topic in topics], 20)
    assert {outcome.route for outcome in outcomes if isinstance(outcome, Receipt)} == set(topics)
    await producer.stop()


@anyio_mark
async def test_a_topic_that_cannot_be_used(cluster: Cluster, listeners: dict[str, str]) -> None:
    topic, secret = unique(), unique()
    cluster.create(secret)
    producer = KafkaProducer(f"kafka://bob:bob%27s%20secret@{listeners['SASL_PLAINTEXT']}")
    with (
        cluster.allowing("bob", "TOPIC", topic, "DESCRIBE"),
        cluster.allowing("bob", "TOPIC", secret, "DESCRIBE"),
        cluster.allowing("alice", "BROKER", "kafka-cluster", "CREATE", "IDEMPOTENT_WRITE"),
    ):
        (outcome,) = await producer.send([message(topic)], 20)
        assert isinstance(outcome, EmitRejectedError)
        assert f"the topic {topic}" in str(outcome)
        assert "Create if it does not exist" in str(outcome)
        (outcome,) = await producer.send([message(secret)], 20)
        assert isinstance(outcome, EmitRejectedError)
        assert "allow the user to write" in str(outcome)
    (outcome,) = await producer.send([message(secret)], 20)
    assert isinstance(outcome, Receipt)
    await producer.stop()


@anyio_mark
async def test_many_keep_their_order(cluster: Cluster) -> None:
    topic = unique()
    producer = KafkaProducer(cluster.servers, {"queue.buffering.max.messages": 1000})
    outcomes = await producer.send([message(topic, b"%d" % number) for number in range(5000)], 20)
    assert [outcome.offset for outcome in outcomes if isinstance(outcome, Receipt)] == list(range(5000))
    assert [found.value() for found in cluster.read(topic, 5000)] == [b"%d" % number for number in range(5000)]
    await producer.stop()


@anyio_mark
async def test_one_crossing_for_many_reports(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    from dispytch._bridge import Loop

    posts: list[Any] = []
    post = Loop.post

    def noting(self: Loop, call: Any) -> bool:
        posts.append(call)
        return post(self, call)

    monkeypatch.setattr(Loop, "post", noting)
    topic = unique()
    producer = KafkaProducer(cluster.servers)
    await producer.send([message(topic)], 20)
    posts.clear()
    async with anyio.create_task_group() as group:
        group.start_soon(producer.send, [message(topic) for _ in range(2000)], 20)
    assert len(posts) == 1
    posts.clear()
    async with anyio.create_task_group() as group:
        for _ in range(500):
            group.start_soon(producer.send, [message(topic)], 20)
    assert len(posts) < 400
    await producer.stop()


@anyio_mark
@pytest.mark.parametrize("where", ["refused", "unknown"])
async def test_unreachable(where: str) -> None:
    address = f"127.0.0.1:{closed_port()}" if where == "refused" else "no-such-host.invalid:9092"
    producer = KafkaProducer(address)
    began = time.monotonic()
    first, second = await producer.send([message("x"), message("x")], 1)
    assert isinstance(first, EmitUnreachableError)
    assert isinstance(second, EmitUnreachableError)
    assert ("refused" if where == "refused" else "resolve") in str(first)
    assert address in str(first)
    if where == "refused":
        with pytest.raises(BrokerUnreachableError, match="refused"):
            await producer.start()
    await producer.stop()
    assert time.monotonic() - began < 8
    assert kafka_threads() == []


@anyio_mark
async def test_a_half_open_connection_is_a_timeout(cluster: Cluster) -> None:
    topic = unique()
    producer = KafkaProducer(cluster.servers)
    await producer.send([message(topic)], 20)
    sender = producer._sender
    assert sender is not None
    client, sender._client = sender._client, _Silent(sender._client)
    began = time.monotonic()
    (outcome,) = await producer.send([message(topic)], 0.3)
    assert 0.25 < time.monotonic() - began < 3
    assert type(outcome) is EmitTimeoutError
    assert "may have gone" in str(outcome)
    sender._client = client
    await producer.stop()  # of whom it was told that the outcome is unknown, no close complains


class _Silent:
    """A client that takes everything, and hears nothing of it."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def produce(self, *args: Any, **options: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


@anyio_mark
async def test_a_stop_tells_what_is_unconfirmed(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dispytch.kafka.producer.FLUSH_TIMEOUT", 0.2)
    topic = unique()
    producer = KafkaProducer(cluster.servers)
    await producer.send([message(topic)], 20)
    sender = producer._sender
    assert sender is not None
    sender._client = _Silent(sender._client)
    outcomes: list[Any] = []

    async def send() -> None:
        outcomes.extend(await producer.send([message(topic), message(topic)], 20))

    async with anyio.create_task_group() as group:
        group.start_soon(send)
        await until(lambda: sender._open)
        with pytest.raises(UnconfirmedError) as raised:
            await producer.stop()
    assert raised.value.count == 2
    assert [type(outcome) for outcome in outcomes] == [EmitTimeoutError, EmitTimeoutError]


@anyio_mark
async def test_a_stop_flushes(cluster: Cluster) -> None:
    topic = unique()
    producer = KafkaProducer(cluster.servers, {"linger.ms": 300})
    await producer.send([message(topic)], 20)
    outcomes: list[Any] = []

    async def send() -> None:
        outcomes.extend(await producer.send([message(topic)], 20))

    async with anyio.create_task_group() as group:
        group.start_soon(send)
        await until(lambda: producer._sender is not None and producer._sender._open)
        await producer.stop()
    assert isinstance(outcomes[0], Receipt)
    (outcome,) = await producer.send([message(topic)], 20)  # and it opens again
    assert isinstance(outcome, Receipt)
    await producer.stop()
    await producer.stop()


@anyio_mark
async def test_a_cancelled_send_leaves_the_producer_usable(cluster: Cluster) -> None:
    topic = unique()
    producer = KafkaProducer(cluster.servers, {"linger.ms": 100})
    await producer.send([message(topic)], 20)
    with anyio.move_on_after(0.01) as scope:
        await producer.send([message(topic)], 20)
    assert scope.cancelled_caught
    (outcome,) = await producer.send([message(topic)], 20)
    assert isinstance(outcome, Receipt)
    await producer.stop()


@anyio_mark
async def test_messages_live_as_long_as_somebody_waits(cluster: Cluster) -> None:
    topic = unique()
    producer = KafkaProducer(cluster.servers)
    await producer.start()
    for timeout, expected in ((5, 5), (3, 5), (20, 20), (None, None), (1, None)):
        (outcome,) = await producer.send([message(topic)], timeout)
        assert isinstance(outcome, Receipt)
        assert producer._sender is not None
        assert producer._sender.message_timeout == expected
    await producer.stop()
    await until(lambda: not kafka_threads())


@anyio_mark
async def test_ready_made(cluster: Cluster) -> None:
    topic = unique()
    client = confluent.Producer({"bootstrap.servers": cluster.servers})
    async with EventEmitter(KafkaProducer(client)) as emitter:
        (outcome,) = await emitter.producer.send([message(topic)], 20)
        assert isinstance(outcome, Receipt)
    client.produce(topic, b"still usable")
    assert client.flush(20) == 0
    producer = KafkaProducer(client).blocking()
    assert isinstance(producer.send([message(topic)], 20)[0], Receipt)
    producer.stop()


def test_ready_made_of_the_wrong_kind() -> None:
    for wrong in (confluent.SerializingProducer({}), 5, b"localhost", None):
        with pytest.raises(ConfigurationError):
            KafkaProducer(wrong)
    with pytest.raises(ConfigurationError, match="config="):
        KafkaProducer(confluent.Producer({}), {"linger.ms": 5})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("acks", 1),
        ("acks", "0"),
        ("request.required.acks", 1),
        ("enable.idempotence", False),
        ("transactional.id", "x"),
        ("bootstrap.servers", "x"),
        ("error_cb", print),
        ("delivery.report.only.error", True),
        ("no.such.setting", 1),
        ("enable.gapless.guarantee", "soon"),
        ("max.in.flight", 50),
        ("security.protocol", "SASL"),
    ],
)
def test_settings_that_are_refused(name: Any, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(name)):
        KafkaProducer("localhost", {name: value})


def test_settings_that_say_what_holds_anyway() -> None:
    KafkaProducer("localhost", {"acks": "all", "enable.idempotence": True, "linger.ms": 5, "compression.type": "gzip"})
    KafkaProducer("localhost", {"acks": -1, "enable.idempotence": "true"})
