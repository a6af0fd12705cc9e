"""What is held of a partition when it goes to another member, and when it comes back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import anyio
import pytest

from dispytch import Event, EventDispatcher
from dispytch.abc import Delivery
from dispytch.kafka import KafkaConsumer
from dispytch.kafka.commits import Commits
from dispytch.kafka.failures import packed, unpacked
from dispytch.kafka.partitions import Partition
from tests.kafka.helpers import Cluster, acknowledged, receive, subscription, unique, until

anyio_mark = pytest.mark.anyio
one_loop = pytest.mark.parametrize("anyio_backend", [pytest.param(("asyncio", {}), id="asyncio")], scope="module")
strategies = pytest.mark.parametrize("strategy", ["cooperative-sticky", "range"])


def member(cluster: Cluster, group: str, strategy: str = "cooperative-sticky", **options: object) -> KafkaConsumer:
    config = {"heartbeat.interval.ms": 100, "partition.assignment.strategy": strategy}
    return KafkaConsumer(cluster.servers, group_id=group, config=config, **options)  # type: ignore[arg-type]


def assigned(consumer: KafkaConsumer) -> set[int]:
    return set() if consumer._reader is None else {number for _, number in consumer._reader._assignment.partitions}


@one_loop
@anyio_mark
@strategies
async def test_what_is_buffered_of_a_lost_partition_is_dropped(cluster: Cluster, strategy: str) -> None:
    topic, group = unique(), unique("group")
    cluster.create(topic, partitions=2)
    for number in (0, 1):
        cluster.produce(topic, *[b"x"] * 100, partition=number)
    first, second = member(cluster, group, strategy), member(cluster, group, strategy)
    await first.start([subscription(topic)])
    assert first._reader is not None
    await until(lambda: first._reader is not None and first._reader.queued == 200)
    taken = await receive(first, 10)
    await second.start([subscription(topic)])
    await until(lambda: len(assigned(first)) == 1 and len(assigned(second)) == 1)
    await first.settle([])
    rest: list[Delivery] = []
    with anyio.move_on_after(1.0):
        while True:
            rest += await first.receive(50)
    assert {one.partition for one in rest} <= assigned(first)
    theirs = await receive(second, 100)
    assert {one.partition for one in theirs} == assigned(second)
    ours = [one for one in [*taken, *rest] if one.partition in assigned(first)]
    assert {one.position for one in ours} == {f"{one.partition}:{n}" for one in ours for n in range(100)}
    await first.stop()
    await second.stop()


@one_loop
@anyio_mark
@strategies
async def test_a_paused_partition_that_comes_back_is_read_on(cluster: Cluster, strategy: str) -> None:
    topic, group = unique(), unique("group")
    cluster.create(topic, partitions=2)
    for number in (0, 1):
        cluster.produce(topic, *[b"x"] * 500, partition=number)
    first, second = (member(cluster, group, strategy, max_uncommitted=50) for _ in range(2))
    await first.start([subscription(topic)])
    held = await receive(first, 100)
    assert first._reader is not None
    await until(lambda: first._reader is not None and len(first._reader._assignment._full) == 2)
    await second.start([subscription(topic)])
    await until(lambda: len(assigned(first)) == 1 and len(assigned(second)) == 1)
    await second.stop()
    await until(lambda: len(assigned(first)) == 2)
    seen: set[str | None] = set()
    await first.settle(acknowledged(held))
    seen.update(one.position for one in held)
    with anyio.fail_after(20):
        while len(seen) < 1000:
            found = list(await first.receive(50))
            seen.update(one.position for one in found)
            await first.settle(acknowledged(found))
    await first.stop()
    assert [cluster.committed(group, topic, number) for number in (0, 1)] == [500, 500]


@one_loop
@anyio_mark
async def test_what_waits_in_the_dispatcher_of_a_lost_partition_is_not_handled(cluster: Cluster) -> None:
    topic, group = unique(), unique("group")
    cluster.create(topic, partitions=2)
    for number in (0, 1):
        cluster.produce(topic, *[b"{}"] * 10, partition=number)
    first, second = member(cluster, group), member(cluster, group)
    dispatcher = EventDispatcher(first, concurrency=10, ordering="partition")
    gate = anyio.Event()
    started: list[str] = []

    @dispatcher.handler(topic=topic)
    async def handle(event: Event[Any]) -> None:
        started.append(event.meta.id)
        await gate.wait()

    async with dispatcher.lifespan():
        await until(lambda: dispatcher.health().queued == 18)
        assert len(started) == 2
        await second.start([subscription(topic)])
        await until(lambda: len(assigned(first)) == 1 and len(assigned(second)) == 1)
        theirs = await receive(second, 10, settle=True)
        gate.set()
        await until(lambda: dispatcher.health().in_flight == 0 and dispatcher.health().queued == 0)
        assert {one.partition for one in theirs} == assigned(second)
        given = {f"{next(iter(assigned(second)))}:{n}" for n in range(10)}
        assert not given & set(started[2:])
        cluster.produce(topic, b"{}", partition=next(iter(assigned(first))))
        total = len(started)
        await until(lambda: len(started) == total + 1)
    await second.stop()


@one_loop
@anyio_mark
async def test_failure_counts_outlast_the_process(cluster: Cluster) -> None:
    """They go with the committed offset, so that an event that fails is given up though the service restarts."""
    topic, group = unique(), unique("group")
    cluster.create(topic)
    cluster.produce(topic, *[b"{}"] * 5)
    attempts: dict[str, list[int]] = {}

    def service(drain_timeout: float = 5.0) -> EventDispatcher:
        dispatcher = EventDispatcher(member(cluster, group), max_deliveries=4, drain_timeout=drain_timeout)

        @dispatcher.handler(topic=topic)
        async def handle(event: Event[Any]) -> None:
            tries = attempts.setdefault(str(event.meta.message.position), [])
            tries.append(event.meta.attempt)
            if event.meta.message.position == "0:2":
                event.nack(
                    delay=60 if len(tries) in (2, 3) else 0
                )  # the stop comes during the second and third back-off

        return dispatcher

    for tries in (2, 3):
        async with service().lifespan():
            await until(lambda tries=tries: len(attempts.get("0:2", ())) == tries and len(attempts) == 5)  # type: ignore[misc]  # called at once
    async with (last := service()).lifespan():
        await until(lambda: len(attempts["0:2"]) == 4 and last.health().unsettled == 0)
    assert attempts["0:2"] == [1, 2, 3, 4]
    assert cluster.committed(group, topic, 0) == 5
    assert len(cluster.read(f"{topic}.{group}.dead", 1)) == 1


class _Answers:
    """A confluent consumer, as far as commits go."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        self._meanwhile = meanwhile
        self.metadata: list[str | None] = []

    def commit(self, offsets: list[Any], asynchronous: bool) -> list[Any]:
        self.metadata += [one.metadata for one in offsets]
        self._meanwhile()
        return []


def test_failures_are_packed_while_the_loop_takes_none_out() -> None:
    """Only those of events that are to come; what retention has removed would else be committed for ever."""
    lock = threading.Lock()

    class Guarded(dict[int, Mapping[str, int]]):
        def __iter__(self) -> Iterator[int]:
            assert lock.locked()
            return super().__iter__()

        def items(self) -> Any:
            assert lock.locked()
            return super().items()

        def __getitem__(self, offset: int) -> Mapping[str, int]:
            assert lock.locked()
            return super().__getitem__(offset)

    partition = Partition("topic", 0, True)
    partition.failures = Guarded({3: {"gone": 1}, 7: {"h": 2}, 8: {"h": 1}})
    committed = Commits(lock).offset_of(partition, 7)
    assert unpacked(committed.metadata) == {7: {"h": 2}, 8: {"h": 1}}


def test_failures_that_come_during_a_commit_go_with_the_next() -> None:
    lock = threading.Lock()
    commits = Commits(lock)
    partition = Partition("topic", 0, True)
    partition.add([5, 6])
    partition.failed(5, {"h": 1})

    def meanwhile() -> None:
        with lock:
            partition.failed(6, {"h": 2})

    first, second = _Answers(meanwhile), _Answers(lambda: None)
    assert commits.now(first, [partition]) is None
    assert commits.now(second, [partition]) is None
    assert [unpacked(text) for text in first.metadata] == [{5: {"h": 1}}]
    assert [unpacked(text) for text in second.metadata] == [{5: {"h": 1}, 6: {"h": 2}}]

    # The same where the answer comes later.
    partition.failed(5, {"h": 3})
    commits.count(5000)
    commits._at -= 1
    assert commits.due([partition]) == {("topic", 0): 5}
    meanwhile()
    answered = commits.offset_of(partition, 5)
    commits.came_back(None, [answered], {partition.key: partition})
    assert partition.to_commit == 5


def test_failures_as_metadata() -> None:
    failures = {7: {"a.b": 3}, 9: {"a.b": 1, "c#2": 2}, 8: {}}
    assert unpacked(packed(failures)) == {7: {"a.b": 3}, 9: {"a.b": 1, "c#2": 2}}
    assert packed({}) == packed({1: {}}) == ""
    many = packed({n: {"a.handler.with.a.name": n} for n in range(1, 10_000)})
    assert len(many) <= 3_000
    assert list(unpacked(many)) == list(range(1, len(unpacked(many)) + 1))
    assert len(unpacked(many)) > 50


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "somebody else's",
        '{"dispytch-failures"',
        '{"dispytch-failures":5}',
        '{"dispytch-failures":{"x":{}}}',
        '{"dispytch-failures":{"1":5}}',
        '{"dispytch-failures":' + "[" * 100_000,
    ],
)
def test_metadata_of_others_is_left_alone(text: str | None) -> None:
    assert unpacked(text) == {}


def test_counts_that_are_none_are_left_out() -> None:
    assert unpacked('{"dispytch-failures":{"1":{"h":-1,"i":true,"j":"x","k":2,"l":99999999}}}') == {1: {"k": 2}}
