"""Emitting and handling through a real Kafka, by emitter and dispatcher; and a broker that goes away."""

from __future__ import annotations

import logging
import sys
import time
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import anyio
import anyio.to_thread
import pytest
from pydantic import BaseModel

from dispytch import Event, EventBase, EventDispatcher, EventEmitter, Redeliver, SubscriptionParam
from dispytch.ack import AckBeforeProcessing
from dispytch.kafka import KafkaConsumer, KafkaEventRoute, KafkaEventSubscription, KafkaProducer
from tests import brokers
from tests.kafka.helpers import Cluster, collecting, kafka_threads, unique, until
from tests.kafka.wire import produce
from tests.support import at_best

pytestmark = pytest.mark.anyio
one_loop = pytest.mark.parametrize("anyio_backend", [pytest.param(("trio", {}), id="trio")], scope="module")


class Body(BaseModel):
    n: int


def event_class(topic: str) -> Any:
    class Counted(EventBase):
        __topic__ = topic
        __event_type__ = "counted"
        __key__ = "k{n}"
        n: int

    return Counted


async def test_emit_and_handle(cluster: Cluster) -> None:
    topic = unique()
    counted = event_class(topic)
    handled: list[Any] = []
    dispatcher = EventDispatcher(KafkaConsumer(cluster.servers, group_id=unique("group")))

    @dispatcher.handler(KafkaEventSubscription(topic), event="counted")
    async def handle(event: Event[Body]) -> None:
        handled.append((event.body.n, event.meta.id, event.meta.type, event.meta.topic, event.meta.key))

    async with dispatcher.lifespan(), EventEmitter(KafkaProducer(cluster.servers)) as emitter:
        receipt = await emitter.emit(counted(n=1))
        await until(lambda: handled)
    assert receipt is not None
    assert handled == [(1, receipt.id, "counted", topic, "k1")]
    assert kafka_threads() == []


async def test_failures_come_again_and_end_as_dead_letters(cluster: Cluster) -> None:
    topic, group = unique(), unique("group")
    counted = event_class(topic)
    attempts: list[int] = []
    dispatcher = EventDispatcher(KafkaConsumer(cluster.servers, group_id=group), max_deliveries=3)

    @dispatcher.handler(topic=topic)
    async def handle(event: Event[Body]) -> None:
        if event.body.n == 1:
            attempts.append(event.meta.attempt)
            raise Redeliver(delay=0.01)

    async with EventEmitter(KafkaProducer(cluster.servers)) as emitter, dispatcher.lifespan():
        receipts = await emitter.emit_many([counted(n=number) for number in range(3)])
        await until(lambda: len(attempts) == 3)
        (letter,) = await anyio.to_thread.run_sync(cluster.read, f"{topic}.{group}.dead", 1)
    assert attempts == [1, 2, 3]
    headers = {name: value.decode() for name, value in letter.headers()}
    assert letter.key() == b"k1"
    assert letter.value() == b'{"n":1}'
    assert receipts[1] is not None
    assert headers["ce_id"] == receipts[1].id
    assert (headers["dispytch-dead-source"], headers["dispytch-dead-position"]) == (topic, "0:1")
    assert cluster.committed(group, topic) == 3


@one_loop
async def test_what_cannot_be_read_is_a_dead_letter(cluster: Cluster) -> None:
    topic, group = unique(), unique("group")
    cluster.create(topic)
    produce(cluster.servers, topic, b'{"n": 1}', [(b"\xff", b"x")])
    cluster.produce(topic, b'{"n": 2}')
    dispatcher, handled = collecting(KafkaConsumer(cluster.servers, group_id=group), topic)
    async with dispatcher.lifespan():
        await until(lambda: handled == [2])
        (letter,) = await anyio.to_thread.run_sync(cluster.read, f"{topic}.{group}.dead", 1)
    assert letter.value() == b'{"n": 1}'
    assert b"not UTF-8" in dict(letter.headers())["dispytch-dead-error"]
    assert cluster.committed(group, topic) == 2


@one_loop
async def test_templates_capture(cluster: Cluster) -> None:
    base = unique("tenant")
    captured: list[Any] = []

    class Seen(EventBase):
        __route__ = KafkaEventRoute(base + "-{tenant}-seen", delimiter="-")
        tenant: str

    cluster.create(f"{base}-a.b-seen")
    config = {"topic.metadata.refresh.interval.ms": 500}
    consumer = KafkaConsumer(cluster.servers, group_id=unique("group"), config=config)
    dispatcher = EventDispatcher(consumer, route_delimiter="-")

    @dispatcher.handler(topic=base + "-{tenant}-seen")
    async def handle(tenant: Annotated[str, SubscriptionParam()], event: Event[Any]) -> None:
        captured.append(tenant)

    async with dispatcher.lifespan(), EventEmitter(KafkaProducer(cluster.servers)) as emitter:
        await emitter.emit_many([Seen(tenant="a.b"), Seen(tenant="later")])
        await until(lambda: len(captured) == 2)
    assert sorted(captured) == ["a.b", "later"]


async def stopped_behind_a_gap(cluster: Cluster, *, fails: bool) -> tuple[list[Any], list[Any]]:
    """What two dispatchers handle, the first of which is stopped while events wait for another of their key."""
    topic, group = unique(), unique("group")
    cluster.create(topic)
    for key, number in ((b"a", 0), (b"a", 1), (b"b", 2), (b"a", 3)):
        cluster.produce(topic, b'{"n": %d}' % number, key=key)
    done: list[list[Any]] = []

    def one(release: anyio.Event | None) -> EventDispatcher:
        dispatcher = EventDispatcher(KafkaConsumer(cluster.servers, group_id=group), concurrency=4)
        found: list[Any] = []
        done.append(found)

        @dispatcher.handler(topic=topic)
        async def handle(event: Event[Body]) -> None:
            if release is not None and event.body.n == 0:
                await release.wait()
                if fails:
                    raise Redeliver
            found.append(event.body.n)

        return dispatcher

    release = anyio.Event()
    first = one(release)
    async with anyio.create_task_group() as tasks:
        await tasks.start(first.start)
        await until(lambda: done[0] == [2] and first.health().queued == 2)
        first.request_stop()
        await until(lambda: first.health().queued == 1)
        release.set()
    second = one(None)
    async with second.lifespan():
        await until(lambda: 3 in done[1])
    assert cluster.committed(group, topic) == 4
    return done[0], sorted(done[1])


async def test_a_drain_closes_the_gap_before_what_is_handled(cluster: Cluster) -> None:
    # 1 lies before 2, which is handled, so 2 would come again with it; 3 lies behind all that was begun.
    assert await stopped_behind_a_gap(cluster, fails=False) == ([2, 0, 1], [3])


async def test_a_drain_leaves_a_gap_that_nothing_closes(cluster: Cluster) -> None:
    # 0 comes again, and all behind it, so 1 is not handled before it.
    assert await stopped_behind_a_gap(cluster, fails=True) == ([2], [0, 1, 2, 3])


@one_loop
async def test_a_drain_hands_back_what_was_not_handled(cluster: Cluster) -> None:
    topic, group = unique(), unique("group")
    cluster.create(topic)
    cluster.produce(topic, *[b'{"n": %d}' % number for number in range(500)])
    done: list[int] = []
    dispatcher = EventDispatcher(KafkaConsumer(cluster.servers, group_id=group), concurrency=10)

    @dispatcher.handler(topic=topic)
    async def slow(event: Event[Body]) -> None:
        await anyio.sleep(0.02)
        done.append(event.body.n)

    async with dispatcher.lifespan():
        await until(lambda: len(done) >= 30)
    committed = cluster.committed(group, topic)
    assert committed is not None
    assert sorted(done)[:committed] == list(range(committed))
    again, handled = collecting(KafkaConsumer(cluster.servers, group_id=group), topic)
    async with again.lifespan():
        await until(lambda: len({*done, *handled}) == 500)
    assert len(done) + len(handled) - 500 <= 10


_KILLED = """
import os, sys
from dispytch import Event, EventDispatcher
from dispytch.ack import AckBeforeProcessing
from dispytch.kafka import KafkaConsumer

dispatcher = EventDispatcher(KafkaConsumer(sys.argv[1], group_id=sys.argv[3]), concurrency=50)

@dispatcher.handler(topic=sys.argv[2], ack_policy=AckBeforeProcessing())
async def handle(event: Event) -> None:
    os._exit(9)

dispatcher.run()
"""


@one_loop
async def test_acknowledge_first_commits_before_the_first_handler(cluster: Cluster) -> None:
    topic, group = unique(), unique("group")
    cluster.create(topic)
    cluster.produce(topic, *[b'{"n": %d}' % number for number in range(60)])
    call = [sys.executable, "-c", _KILLED, cluster.servers, topic, group]
    assert (await anyio.run_process(call, check=False)).returncode == 9
    assert cluster.committed(group, topic) == 60


@one_loop
async def test_acknowledge_first_does_not_wait_for_the_next_poll(cluster: Cluster) -> None:
    topic = unique()
    counted = event_class(topic)
    handled: list[int] = []
    dispatcher = EventDispatcher(KafkaConsumer(cluster.servers, group_id=unique("group")))

    @dispatcher.handler(topic=topic, ack_policy=AckBeforeProcessing())
    async def handle(event: Event[Body]) -> None:
        handled.append(event.body.n)

    numbers = count()
    async with dispatcher.lifespan(), EventEmitter(KafkaProducer(cluster.servers)) as emitter:

        async def ten() -> float:
            """One after the other; what takes the median."""
            took: list[float] = []
            for _ in range(10):
                await emitter.emit(counted(n=(number := next(numbers))))
                began = time.perf_counter()
                await until(lambda number=number: number in handled)  # type: ignore[misc]  # called at once
                took.append(time.perf_counter() - began)
            return sorted(took)[5]

        await at_best(0.05, ten)
    assert handled == list(range(next(numbers)))


@one_loop
async def test_a_broker_that_is_restarted(kafka_server: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    topic, group = unique(), unique("group")
    counted = event_class(topic)
    caplog.set_level(logging.WARNING, logger="dispytch")
    with brokers.started(brokers.Kafka(), tmp_path / "kafka") as broker:
        port = broker.port
        dispatcher, handled = collecting(KafkaConsumer(broker.url, group_id=group), topic)
        producer = KafkaProducer(broker.url)
        emitter = EventEmitter(producer, timeout=40)
        lifespan = dispatcher.lifespan()
        await lifespan.__aenter__()
        await emitter.emit_many([counted(n=number) for number in range(100)])
        await until(lambda: len(set(handled)) == 100)
    try:
        with brokers.started(brokers.Kafka(), tmp_path / "kafka", port):
            await emitter.emit_many([counted(n=number) for number in range(100, 200)])
            await until(lambda: len(set(handled)) == 200)
            await lifespan.__aexit__(None, None, None)
            await emitter.close()
    finally:
        await producer.stop()
    assert kafka_threads() == []
