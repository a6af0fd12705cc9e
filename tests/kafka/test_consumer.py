"""Receiving and settling: what is committed, and when; groups and rebalances; patterns; topics; the end."""

from __future__ import annotations

import logging
import time
from typing import Any

import anyio
import pytest

from dispytch.abc import Delivery, Outcome, Settlement
from dispytch.errors import BrokerError, BrokerUnreachableError, ConfigurationError
from dispytch.kafka import KafkaConsumer, KafkaEventRoute, KafkaEventSubscription
from dispytch.kafka.addresses import expression
from dispytch.memory import MemoryEventRoute
from tests.kafka.helpers import (
    Cluster,
    acknowledged,
    admin_module,
    confluent,
    kafka_threads,
    message,
    receive,
    subscription,
    unique,
    until,
)
from tests.support import PATIENCE, closed_port

anyio_mark = pytest.mark.anyio
one_loop = pytest.mark.parametrize("anyio_backend", [pytest.param(("asyncio", {}), id="asyncio")], scope="module")


def consumer_of(cluster: Cluster, group: str | None = None, **options: Any) -> KafkaConsumer:
    # The other members learn of a new one by their next heartbeat.
    options["config"] = {"heartbeat.interval.ms": 100, **options.get("config", {})}
    return KafkaConsumer(cluster.servers, group_id=group or unique("group"), **options)


def offsets(deliveries: list[Delivery]) -> list[int]:
    return [int((delivery.position or "").partition(":")[2]) for delivery in deliveries]


async def sees_commit(cluster: Cluster, group: str, topic: str, offset: int | None) -> None:
    await until(lambda: cluster.committed(group, topic) == offset)


# --- what a delivery is


@anyio_mark
async def test_what_is_delivered(cluster: Cluster) -> None:
    topic = unique()
    cluster.create(topic, partitions=2)
    headers = [("a", b"1"), ("größe", b"\xff"), ("a", None), ("empty", b"")]
    cluster.produce(topic, b"x", key=b"k", partition=1, headers=headers, timestamp=1_700_000_000_000)
    cluster.produce(topic, None, partition=1)
    consumer = consumer_of(cluster)
    await consumer.start([subscription(topic)])
    first, second = await receive(consumer, 2)
    await consumer.stop()
    assert (first.source, first.payload, first.key, first.partition) == (topic, b"x", b"k", 1)
    assert (first.position, first.timestamp_ms) == ("1:0", 1_700_000_000_000)
    assert list(first.headers) == [("a", b"1"), ("größe", b"\xff"), ("a", b""), ("empty", b"")]
    assert (second.payload, second.key, second.position, list(second.headers)) == (None, None, "1:1", [])
    assert abs(second.timestamp_ms / 1000 - time.time()) < 30


@anyio_mark
async def test_a_cancelled_receive_loses_nothing(cluster: Cluster) -> None:
    topic = unique()
    cluster.create(topic)
    consumer = consumer_of(cluster)
    await consumer.start([subscription(topic)])
    cluster.produce(topic, *(b"%d" % number for number in range(300)))
    found: list[Delivery] = []
    while len(found) < 300:
        with anyio.move_on_after(0.0005):
            found += await consumer.receive(7)
    assert offsets(found) == list(range(300))
    await consumer.stop()


@anyio_mark
async def test_starting_again_changes_nothing_and_stopping_twice_neither(cluster: Cluster) -> None:
    topic = unique()
    consumer = consumer_of(cluster)
    await consumer.start()
    await consumer.start([subscription(topic)])
    reader = consumer._reader
    await consumer.start([subscription(topic)])
    await consumer.start()
    assert consumer._reader is reader
    cluster.produce(topic, b"x")
    await receive(consumer, 1)
    await consumer.stop()
    await consumer.stop()
    assert kafka_threads() == []
    with pytest.raises(ConfigurationError, match="start"):
        await consumer.receive(1)


# --- commits


@anyio_mark
async def test_only_the_contiguous_prefix_is_committed(cluster: Cluster) -> None:
    topic, group = unique(), unique("group")
    cluster.create(topic)
    cluster.produce(topic, *[b"x"] * 1000)
    consumer = consumer_of(cluster, group)
    await consumer.start([subscription(topic)])
    deliveries = await receive(consumer, 1000)
    await consumer.settle(acknowledged(deliveries[1:]))
    await consumer.stop()
    assert cluster.committed(group, topic) is None
    again = consumer_of(cluster, group)
    await again.start([subscription(topic)])
    deliveries = await receive(again, 1000)
    assert offsets(deliveries) == list(range(1000))
    await again.settle(acknowledged(deliveries[:10] + deliveries[20:]))
    await sees_commit(cluster, group, topic, 10)  # while it runs
    await again.settle(acknowledged(deliveries[10:20]))
    await again.stop()
    assert cluster.committed(group, topic) == 1000


@one_loop
@anyio_mark
async def test_gaps_in_the_offsets_do_not_stall_commits(cluster: Cluster) -> None:
    topic, group = unique(), unique("group")
    cluster.create(topic)
    client = confluent.Producer({"bootstrap.servers": cluster.servers, "transactional.id": unique("transaction")})
    client.init_transactions(20)
    for value, commits in ((b"1", True), (b"lost", False), (b"2", True)):
        client.begin_transaction()
        client.produce(topic, value)
        client.flush(20)
        (client.commit_transaction if commits else client.abort_transaction)(20)
    cluster.produce(topic, None, b"3")
    cluster.delete_records(topic, 1)  # what is before it is gone, as after its retention
    consumer = consumer_of(cluster, group)
    await consumer.start([subscription(topic)])
    deliveries = await receive(consumer, 3, settle=True)
    assert [delivery.payload for delivery in deliveries] == [b"2", None, b"3"]
    await consumer.stop()
    assert cluster.committed(group, topic) == offsets(deliveries)[-1] + 1


@one_loop
@anyio_mark
async def test_a_compacted_topic(cluster: Cluster) -> None:
    topic, group = unique(), unique("group")
    cluster.create(
        topic, cleanup_policy="compact", segment_ms="100", min_cleanable_dirty_ratio="0.01", delete_retention_ms="1"
    )

    def is_compacted() -> bool:
        cluster.produce(topic, b"roll", key=b"last")  # the active segment is left alone
        return bool(cluster.read(topic, 1)[0].offset())

    cluster.produce(topic, *[b"x"] * 50, key=b"k")
    await until(is_compacted)
    consumer = consumer_of(cluster, group)
    await consumer.start([subscription(topic)])
    deliveries = await receive(consumer, 1, settle=True)
    assert offsets(deliveries)[0] > 0
    await consumer.stop()
    assert cluster.committed(group, topic) == offsets(deliveries)[0] + 1


@anyio_mark
async def test_what_is_handed_back_comes_again(cluster: Cluster) -> None:
    topic, group = unique(), unique("group")
    cluster.create(topic)
    cluster.produce(topic, b"0", b"1", b"2")
    consumer = consumer_of(cluster, group)
    await consumer.start([subscription(topic)])
    deliveries = await receive(consumer, 3)
    outcomes = [Outcome.ACK, Outcome.RELEASE, Outcome.ACK]
    settlements = [
        Settlement(delivery, outcome, failures={"h": 2}) for delivery, outcome in zip(deliveries, outcomes, strict=True)
    ]
    assert await consumer.settle(settlements) == []
    (again,) = await receive(consumer, 1)
    assert (again.payload, again.failures) == (b"1", {"h": 2})
    await sees_commit(cluster, group, topic, 1)
    await consumer.settle(acknowledged([again]))
    await consumer.settle(acknowledged([again]))
    await consumer.stop()
    assert cluster.committed(group, topic) == 3


@one_loop
@anyio_mark
async def test_dead_letters_are_written_before_their_source_is_done(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispytch.kafka.consumer._LETTER_TIMEOUT", 2.0)
    topic, group = unique(), unique("group")
    dead = f"{topic}.dead"
    cluster.create(topic)
    cluster.produce(topic, b"0", b"1", key=b"k")
    consumer = consumer_of(cluster, group)
    await consumer.start([subscription(topic, dead=[dead])])
    assert cluster.exists(dead)
    first, second = await receive(consumer, 2)
    settlements = [
        Settlement(first, Outcome.DEAD_LETTER, [message("no such topic!", b"0")]),
        Settlement(second, Outcome.DEAD_LETTER, [message(dead, b"1", b"k"), message(dead, None)]),
    ]
    failed = await consumer.settle(settlements)
    assert [settlement for settlement, _ in failed] == settlements[:1]
    assert [(found.value(), found.key()) for found in cluster.read(dead, 2)] == [(b"1", b"k"), (None, None)]
    await consumer.stop()
    assert cluster.committed(group, topic) is None


@one_loop
@anyio_mark
async def test_what_was_acknowledged_first_is_dead_lettered_also_after_its_partition_is_lost(cluster: Cluster) -> None:
    topic, other, group = unique(), unique(), unique("group")
    dead = f"{topic}.dead"
    for name in (topic, other, dead):
        cluster.create(name)
    cluster.produce(topic, b"first", b"after")
    consumer = consumer_of(cluster, group)
    await consumer.start([subscription(topic, dead=[dead])])
    deliveries = await receive(consumer, 2)
    assert await consumer.settle(acknowledged(deliveries[:1])) == []
    await consumer.start([subscription(other)])
    assert all(map(consumer.is_stale, deliveries))
    settlements = [
        Settlement(delivery, Outcome.DEAD_LETTER, [message(dead, delivery.payload)], is_acknowledged=is_acknowledged)
        for delivery, is_acknowledged in zip(deliveries, (True, False), strict=True)
    ]
    assert await consumer.settle(settlements) == []
    await consumer.settle([Settlement(deliveries[0], Outcome.DEAD_LETTER, [message(dead, b"end")], {}, True)])
    assert [found.value() for found in cluster.read(dead, 2)] == [b"first", b"end"]
    await consumer.stop()
    assert cluster.committed(group, topic) == 1


# --- groups


@anyio_mark
async def test_a_new_group_begins_at_the_start_or_with_what_comes_next(cluster: Cluster) -> None:
    topic, group = unique(), unique("group")
    cluster.create(topic)
    cluster.produce(topic, b"old")
    earliest = consumer_of(cluster)
    latest = consumer_of(cluster, group, start_from="latest")
    await earliest.start([subscription(topic)])
    await latest.start([subscription(topic)])
    cluster.produce(topic, b"new")
    assert [delivery.payload for delivery in await receive(earliest, 2)] == [b"old", b"new"]
    assert [delivery.payload for delivery in await receive(latest, 1)] == [b"new"]
    await earliest.stop()
    await latest.stop()  # nothing is settled; yet the next one begins where this one began
    cluster.produce(topic, b"newer")
    latest = consumer_of(cluster, group, start_from="latest")
    await latest.start([subscription(topic)])
    assert [delivery.payload for delivery in await receive(latest, 2)] == [b"new", b"newer"]
    await latest.stop()


@one_loop
@anyio_mark
@pytest.mark.parametrize("strategy", ["cooperative-sticky", "range"])
async def test_a_revoked_partition_is_committed_and_fenced(cluster: Cluster, strategy: str) -> None:
    topic, group = unique(), unique("group")
    cluster.create(topic, partitions=2)
    config = {"partition.assignment.strategy": strategy}
    for number in (0, 1):
        cluster.produce(topic, *[b"x"] * 10, partition=number)
    first, second = (consumer_of(cluster, group, config=config) for _ in range(2))
    await first.start([subscription(topic)])
    deliveries = await receive(first, 20)
    await first.settle(acknowledged([one for one in deliveries if one.position in ("0:0", "1:0")]))
    await second.start([subscription(topic)])
    await until(lambda: first._reader is not None and len(first._reader._assignment.partitions) == 1)
    given = 1 - next(iter(first._reader._assignment.partitions))[1] if first._reader is not None else 0
    await until(lambda: cluster.committed(group, topic, given) == 1)
    await first.settle(acknowledged([one for one in deliveries if one.partition == given]))  # too late
    assert sorted(one.position or "" for one in await receive(second, 9)) == sorted(
        f"{given}:{n}" for n in range(1, 10)
    )
    await first.stop()
    await second.stop()
    assert cluster.committed(group, topic, given) == 1


@one_loop
@anyio_mark
async def test_nothing_is_lost_while_members_come_and_go(cluster: Cluster) -> None:
    topic, group = unique(), unique("group")
    cluster.create(topic, partitions=4)
    total = 2000
    seen: set[bytes | None] = set()

    async def consume(consumer: KafkaConsumer) -> None:
        while True:
            deliveries = list(await consumer.receive(20))
            seen.update(delivery.payload for delivery in deliveries)
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.002)
                await consumer.settle(acknowledged(deliveries))

    steady = consumer_of(cluster, group)
    await steady.start([subscription(topic)])
    async with anyio.create_task_group() as everybody:
        everybody.start_soon(consume, steady)
        for turn in range(5):
            values = [b"%d" % number for number in range(turn * total // 5, (turn + 1) * total // 5)]
            for part in range(4):
                cluster.produce(topic, *values[part::4], partition=part)
            passing = consumer_of(cluster, group)
            await passing.start([subscription(topic)])
            async with anyio.create_task_group() as guests:
                guests.start_soon(consume, passing)
                await anyio.sleep(0.5)
                guests.cancel_scope.cancel()
            await passing.stop()
        await until(lambda: len(seen) == total)
        everybody.cancel_scope.cancel()
    await steady.stop()
    assert sum(cluster.committed(group, topic, number) or 0 for number in range(4)) == total


@one_loop
@anyio_mark
async def test_a_long_handler_does_not_cost_the_membership(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    """Longer than max.poll.interval.ms, with the local buffer full, so that partitions are paused too."""
    topic, group = unique(), unique("group")
    cluster.create(topic)
    cluster.produce(topic, *[b"x" * 100] * 4000)
    consumer = consumer_of(cluster, group, config={"max.poll.interval.ms": 3000, "session.timeout.ms": 3000})
    await consumer.start([subscription(topic)])
    deliveries = await receive(consumer, 10)
    assert consumer._reader is not None
    await until(lambda: consumer._reader is not None and consumer._reader._assignment.is_paused)
    held = consumer._reader.queued
    assert held <= 2000
    await anyio.sleep(4.5)
    assert consumer._reader.queued == held
    assert cluster.members(group) == 1
    await consumer.settle(acknowledged(deliveries))
    deliveries += await receive(consumer, 3990, settle=True)
    assert offsets(deliveries) == list(range(4000))
    await consumer.stop()
    assert cluster.committed(group, topic) == 4000
    assert "lost" not in caplog.text


@one_loop
@anyio_mark
async def test_a_partition_pauses_behind_its_oldest_unfinished_event(cluster: Cluster) -> None:
    topic, group = unique(), unique("group")
    cluster.create(topic, partitions=2)
    for number in (0, 1):
        cluster.produce(topic, *[b"%d" % number] * 500, partition=number)
    consumer = consumer_of(cluster, group, max_uncommitted=200)
    await consumer.start([subscription(topic)])
    blocked: Delivery | None = None
    counts = [0, 0]
    with anyio.move_on_after(PATIENCE):
        while counts[1] < 500 or counts[0] < 200:  # whichever partition comes first
            for delivery in await consumer.receive(10):
                counts[delivery.partition or 0] += 1
                if delivery.partition == 0 and blocked is None:
                    blocked = delivery
                else:
                    await consumer.settle(acknowledged([delivery]))
    assert counts[1] == 500
    assert 200 <= counts[0] <= 450
    assert blocked is not None
    await consumer.settle(acknowledged([blocked]))
    while counts[0] < 500:
        deliveries = await receive(consumer, 1, settle=True)
        counts[0] += len(deliveries)
    await consumer.stop()
    assert [cluster.committed(group, topic, number) for number in (0, 1)] == [500, 500]


@anyio_mark
async def test_stopping_is_prompt(cluster: Cluster) -> None:
    topic = unique()
    cluster.create(topic)
    cluster.produce(topic, b"x")
    consumer = consumer_of(cluster)
    await consumer.start([subscription(topic)])
    await receive(consumer, 1, settle=True)
    took: list[float] = []
    while len(took) < 5 and not any(seconds < 0.2 for seconds in took):
        await consumer.start([subscription(topic)])
        assert consumer._reader is not None
        await until(lambda: consumer._reader is not None and consumer._reader._assignment.partitions)
        began = time.monotonic()
        await consumer.stop()
        took.append(time.monotonic() - began)
    assert min(took) < 0.2, took
    assert kafka_threads() == []


# --- subscriptions


@pytest.mark.parametrize(
    ("pattern", "delimiter", "expected"),
    [
        ("#", None, "^(.*)?$"),
        ("a.{x}.b", None, "^a[.][^.]*[.]b$"),
        ("*.b", None, "^[^.]*[.]b$"),
        ("a.#", None, "^a([.].*)?$"),
        ("#.b", None, "^(.*[.])?b$"),
        ("a.#.b", None, "^a([.].*)?[.]b$"),
        ("a_{x}", "_", "^a_[^_]*$"),
        ("a--*", "--", "^a--.*$"),
    ],
)
def test_expressions(pattern: str, delimiter: str | None, expected: str) -> None:
    assert expression(subscription(pattern, delimiter).pattern) == expected


@one_loop
@anyio_mark
async def test_patterns_and_a_topic_that_comes_later(cluster: Cluster) -> None:
    base, group = unique("base"), unique("group")
    wanted = [f"{base}.{tenant}.orders" for tenant in ("a", "b-c")]
    others = [f"{base}.orders", f"{base}.a.b.orders", f"{base}.a.orders.x", f"x{base}.a.orders", f"{base}.a.dead"]
    dead = f"{base}.letters.orders"
    cluster.create(*wanted, *others)
    for name in (*wanted, *others):
        cluster.produce(name, name.encode())
    consumer = consumer_of(cluster, group, config={"topic.metadata.refresh.interval.ms": 500})
    plain = f"{base}.a.dead"
    await consumer.start([subscription(f"{base}.{{tenant}}.orders", dead=[dead]), subscription(plain)])
    cluster.produce(dead, b"a letter")
    found = await receive(consumer, 3, settle=True)
    assert sorted(delivery.source for delivery in found) == sorted([*wanted, plain])
    later = f"{base}.later.orders"
    cluster.create(later)
    cluster.produce(later, b"late")
    assert [delivery.source for delivery in await receive(consumer, 1)] == [later]
    await consumer.stop()


@one_loop
@anyio_mark
async def test_a_pattern_that_no_topic_fits_yet_is_no_warning(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dispytch")
    base = unique("base")
    consumer = consumer_of(cluster, config={"topic.metadata.refresh.interval.ms": 300})
    await consumer.start([subscription(f"{base}.*")])
    await until(lambda: "not available" in caplog.text)
    assert {record.levelname for record in caplog.records if base in record.getMessage()} == {"INFO"}
    await consumer.stop()


@one_loop
@anyio_mark
async def test_a_topic_that_comes_later_is_read_from_its_start_by_latest_too(cluster: Cluster) -> None:
    base = unique("base")
    cluster.create(f"{base}.one")
    config = {"topic.metadata.refresh.interval.ms": 500}
    consumer = consumer_of(cluster, start_from="latest", config=config)
    await consumer.start([subscription(f"{base}.*")])
    cluster.create(f"{base}.two")
    cluster.produce(f"{base}.two", b"first")
    assert [delivery.payload for delivery in await receive(consumer, 1)] == [b"first"]
    await consumer.stop()


@one_loop
@anyio_mark
async def test_what_comes_while_there_is_no_connection_is_not_skipped_by_latest(cluster: Cluster) -> None:
    topic = unique()
    cluster.create(topic)
    cluster.produce(topic, b"old")
    consumer = consumer_of(cluster, start_from="latest")
    await consumer.start([subscription(topic)])
    await consumer._close()  # as it is when the connection is lost
    cluster.admin.create_partitions([admin_module.NewPartitions(topic, 2)])[topic].result(20)
    await until(lambda: cluster.partitions(topic) == 2)
    cluster.produce(topic, b"0", partition=0)
    cluster.produce(topic, b"1", partition=1)
    await consumer.start([subscription(topic)])
    assert sorted(str(delivery.payload) for delivery in await receive(consumer, 2)) == ["b'0'", "b'1'"]
    await consumer.stop()


@one_loop
@anyio_mark
async def test_partitions_that_are_added(cluster: Cluster) -> None:
    topic = unique()
    cluster.create(topic)
    consumer = consumer_of(cluster, config={"topic.metadata.refresh.interval.ms": 300})
    await consumer.start([subscription(topic)])
    cluster.admin.create_partitions([admin_module.NewPartitions(topic, 3)])[topic].result(20)
    await until(lambda: cluster.partitions(topic) == 3)
    cluster.produce(topic, b"x", partition=2)
    assert [delivery.position for delivery in await receive(consumer, 1)] == ["2:0"]
    await consumer.stop()


@one_loop
@anyio_mark
async def test_a_topic_that_is_deleted_and_made_again(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    topic, group = unique(), unique("group")
    cluster.create(topic)
    cluster.produce(topic, *[b"old"] * 5)
    consumer = consumer_of(cluster, group, config={"topic.metadata.refresh.interval.ms": 300})
    await consumer.start([subscription(topic)])
    assert len(await receive(consumer, 5, settle=True)) == 5
    cluster.admin.delete_topics([topic])[topic].result(20)
    await until(lambda: not cluster.exists(topic))
    await until(lambda: topic in caplog.text)
    cluster.create(topic)
    cluster.produce(topic, b"new", b"newer")
    found = await receive(consumer, 2, settle=True)
    assert [(delivery.position, delivery.payload) for delivery in found] == [("0:0", b"new"), ("0:1", b"newer")]
    await consumer.stop()
    assert cluster.committed(group, topic) == 2


@pytest.mark.parametrize("topic", ["a b", "größe", "a/{x}", "a:b", ".", "x" * 250])
def test_subscriptions_that_cannot_be(topic: str) -> None:
    consumer = KafkaConsumer("localhost", group_id="g")
    for declared in (KafkaEventSubscription(topic), KafkaEventRoute(topic)):
        with pytest.raises(ConfigurationError, match="no event can come"):
            consumer.subscription_for(declared)


def test_subscriptions_of_others() -> None:
    consumer = KafkaConsumer("localhost", group_id="g")
    assert consumer.subscription_for(MemoryEventRoute("x")) is None
    assert consumer.subscription_for(KafkaEventSubscription("x.*")) == KafkaEventSubscription("x.*")
    assert KafkaEventSubscription().pattern == "#"
    with pytest.raises(ConfigurationError, match="dead-letter topic"):
        consumer.dead_letter_route("a b")


@one_loop
@anyio_mark
async def test_topics_are_created_or_missed_in_words(cluster: Cluster, listeners: dict[str, str]) -> None:
    topic, dead, third = unique(), unique("dead"), unique()
    with pytest.raises(ConfigurationError, match=f"--create --topic {topic}.*declare=False"):
        await consumer_of(cluster, declare=False).start([subscription(topic, dead=[dead])])
    assert not cluster.exists(topic)
    consumer = consumer_of(cluster)
    await consumer.start([subscription(topic, dead=[dead])])
    assert cluster.exists(topic)
    assert cluster.exists(dead)
    await consumer.stop()
    consumer = consumer_of(cluster, declare=False)
    await consumer.start([subscription(topic, dead=[dead])])
    await consumer.stop()
    restricted = KafkaConsumer(f"kafka://bob:bob%27s%20secret@{listeners['SASL_PLAINTEXT']}", group_id=unique("group"))
    with (
        cluster.allowing("bob", "TOPIC", third, "DESCRIBE"),
        cluster.allowing("alice", "BROKER", "kafka-cluster", "CREATE"),
        pytest.raises(ConfigurationError, match=f"cannot be created: .*--create --topic {third}"),
    ):
        await restricted.start([subscription(third)])
    with (
        cluster.allowing("bob", "TOPIC", topic, "DESCRIBE"),
        pytest.raises(BrokerError, match="allow the user to read"),
        anyio.fail_after(20),
    ):
        await restricted.start([subscription(topic)])
        await restricted.receive(1)
    await restricted.stop()
    assert kafka_threads() == []


@one_loop
@anyio_mark
async def test_a_group_that_is_not_for_the_user(cluster: Cluster, listeners: dict[str, str]) -> None:
    topic, group = unique(), unique("group")
    cluster.create(topic)
    consumer = KafkaConsumer(f"kafka://bob:bob%27s%20secret@{listeners['SASL_PLAINTEXT']}", group_id=group)
    with (
        cluster.allowing("alice", "GROUP", group, "READ"),
        pytest.raises(BrokerError, match=f"refused the group '{group}'.*allow the user to read"),
        anyio.fail_after(10),
    ):
        await consumer.start([subscription(topic)])
        await consumer.receive(1)
    began = time.monotonic()
    await consumer.stop()
    assert time.monotonic() - began < 2
    assert kafka_threads() == []


# --- trouble


@anyio_mark
async def test_a_header_whose_name_is_not_utf8(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    topic = unique()
    cluster.create(topic)
    _produce_raw_header(cluster, topic, b"\xff\xfe")
    cluster.produce(topic, b"next")
    consumer = consumer_of(cluster)
    await consumer.start([subscription(topic)])
    first, second = await receive(consumer, 2)
    assert (first.payload, list(first.headers), second.payload) == (b"raw", [], b"next")
    assert first.unreadable is not None
    assert "not UTF-8" in caplog.text
    await consumer.stop()


def _produce_raw_header(cluster: Cluster, topic: str, name: bytes) -> None:
    """A record batch by hand, since the client takes names that are text only."""
    from tests.kafka.wire import produce

    produce(cluster.servers, topic, b"raw", [(name, b"value")])


@one_loop
@anyio_mark
async def test_unreachable(cluster: Cluster) -> None:
    port = closed_port()
    consumer = KafkaConsumer(f"127.0.0.1:{port}", group_id="g")
    began = time.monotonic()
    with pytest.raises(BrokerUnreachableError, match=f"127.0.0.1:{port}.*refused"):
        await consumer.start([subscription("x")])
    assert time.monotonic() - began < 6
    await consumer.stop()
    assert kafka_threads() == []


@pytest.mark.parametrize(
    "name", ["group.id", "enable.auto.commit", "enable.auto.offset.store", "auto.offset.reset", "error_cb", "on_commit"]
)
def test_settings_that_are_ours(name: str) -> None:
    with pytest.raises(ConfigurationError, match="not for you to choose"):
        KafkaConsumer("localhost", group_id="g", config={name: "x"})


def test_arguments_that_are_refused() -> None:
    client = confluent.Consumer({"group.id": "g"})
    with pytest.raises(ConfigurationError, match="no ready-made confluent Consumer"):
        KafkaConsumer(client, group_id="g")
    client.close()
    wrongs: list[dict[str, Any]] = [
        {"group_id": ""},
        {"group_id": "g", "start_from": "end"},
        {"group_id": "g", "max_uncommitted": 0},
        {"group_id": "g", "config": {"no.such.setting": 1}},
        {"group_id": "g", "config": {"session.timeout.ms": "soon"}},
        {"group_id": "g", "config": [1]},
    ]
    for wrong in wrongs:
        with pytest.raises(ConfigurationError):
            KafkaConsumer("localhost", **wrong)
    with pytest.raises(ConfigurationError):
        consumer: Any = KafkaConsumer
        consumer(5, group_id="g")


def test_settings_that_are_the_users() -> None:
    KafkaConsumer("localhost", group_id="g", config={"session.timeout.ms": 6000, "fetch.min.bytes": 10})
