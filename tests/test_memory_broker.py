"""The in-process broker: what a real one does with topics, groups, keys, retention and names."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any, cast

import anyio
import pytest

from dispytch import Event, EventBase, EventDispatcher, EventEmitter, consumer_from_url, producer_from_url
from dispytch.errors import ConfigurationError
from dispytch.memory import (
    MemoryBroker,
    MemoryConsumer,
    MemoryEventRoute,
    MemoryEventSubscription,
    MemoryProducer,
)
from dispytch.testing import TestClock
from tests.support import unique, until

pytestmark = pytest.mark.anyio


class Tick(EventBase):
    __topic__ = "ticks"
    __key__ = "{key}"
    n: int
    key: str | None = None


async def consume(broker: MemoryBroker, group: str, **options: Any) -> list[int]:
    """What a new dispatcher of a group gets."""
    seen: list[int] = []
    dispatcher = EventDispatcher(MemoryConsumer(broker, group, **options))

    @dispatcher.handler(Tick)
    async def handle(event: Event[Tick]) -> None:
        seen.append(event.body.n)

    async with dispatcher.lifespan():
        await dispatcher.idle()
    return seen


async def test_a_group_goes_on_where_it_was_and_a_new_one_begins_at_the_start() -> None:
    broker = MemoryBroker()
    async with EventEmitter(MemoryProducer(broker)) as emitter:
        await emitter.emit_many([Tick(n=n) for n in range(3)])
        assert await consume(broker, "a") == [0, 1, 2]
        await emitter.emit(Tick(n=3))
        assert await consume(broker, "a") == [3]
        assert await consume(broker, "b") == [0, 1, 2, 3]
        assert await consume(broker, "c", start_from="latest") == []
        await emitter.emit(Tick(n=4))
        assert await consume(broker, "c", start_from="latest") == [4]


async def test_what_every_group_has_acknowledged_is_trimmed_and_nothing_else() -> None:
    broker = MemoryBroker(retention=10)
    async with EventEmitter(MemoryProducer(broker)) as emitter:
        await emitter.emit_many([Tick(n=n) for n in range(100)])
        assert len(broker.records("ticks")) == 100
        assert len(await consume(broker, "a")) == 100
        kept = broker.records("ticks")
        assert 10 <= len(kept) <= 20
        assert kept[-1].offset == 99
        await emitter.emit_many([Tick(n=n) for n in range(100, 200)])
        assert await consume(broker, "b") == [*range(kept[0].offset, 200)]
        assert await consume(broker, "a") == [*range(100, 200)]


async def test_members_of_a_group_share_and_a_key_stays_where_it_is_in_hand() -> None:
    """Two consumers of one group: every event once, and no two of a key at the same time, even as one joins late."""
    broker = MemoryBroker()
    running: Counter[str] = Counter()
    seen: dict[str, list[int]] = {}
    per_dispatcher: Counter[int] = Counter()
    overlaps: list[str] = []

    def make(number: int) -> EventDispatcher:
        dispatcher = EventDispatcher(MemoryConsumer(broker), concurrency=5)

        @dispatcher.handler(Tick)
        async def handle(event: Event[Tick]) -> None:
            key = event.body.key or ""
            running[key] += 1
            if running[key] > 1:
                overlaps.append(key)
            await anyio.sleep(0.001)
            seen.setdefault(key, []).append(event.body.n)
            per_dispatcher[number] += 1
            running[key] -= 1

        return dispatcher

    async with EventEmitter(MemoryProducer(broker)) as emitter:
        await emitter.emit_many([Tick(n=n, key=f"k{n % 7}") for n in range(700)])
        async with make(1).lifespan():
            await until(lambda: per_dispatcher[1] >= 20)
            async with make(2).lifespan():
                await until(lambda: per_dispatcher[2] >= 20)
            await until(lambda: sum(per_dispatcher.values()) == 700)
    assert not overlaps
    assert seen == {f"k{k}": list(range(k, 700, 7)) for k in range(7)}


async def test_wildcards_see_new_topics_but_never_dead_letters() -> None:
    broker = MemoryBroker()
    dispatcher = EventDispatcher(MemoryConsumer(broker), max_deliveries=1)
    seen: list[str] = []

    @dispatcher.handler(MemoryEventSubscription())
    async def everything(event: Event[Any]) -> None:
        seen.append(event.meta.topic)
        if event.meta.topic == "bad":
            raise OSError("no")

    class Elsewhere(EventBase):
        __route__ = MemoryEventRoute("{where}")
        where: str

    async with EventEmitter(MemoryProducer(broker)) as emitter, dispatcher.lifespan():
        for where in ("a", "bad", "b"):
            await emitter.emit(Elsewhere(where=where))
            await dispatcher.idle()
    assert seen == ["a", "bad", "b"]
    (letter,) = broker.dead_letters
    assert letter.topic == "default.dead"


async def test_wildcards_see_topics_that_others_were_the_first_to_name() -> None:
    broker = MemoryBroker()
    everything = EventDispatcher(MemoryConsumer(broker, "everything"))
    seen: list[int] = []

    @everything.handler(topic="*", event="Tick")
    async def handle(event: Event[Tick]) -> None:
        seen.append(event.body.n)

    async with everything.lifespan(), EventEmitter(MemoryProducer(broker)) as emitter:
        assert await consume(broker, "by name") == []
        await emitter.emit(Tick(n=1))
        await everything.idle()
    assert seen == [1]


async def test_a_dead_letter_topic_is_read_by_who_names_it() -> None:
    broker = MemoryBroker()
    failing = EventDispatcher(MemoryConsumer(broker), max_deliveries=2, dead_letter="graveyard")
    reading = EventDispatcher(MemoryConsumer(broker, "reader"))
    found: list[Event[Tick]] = []

    @failing.handler(Tick)
    async def fail(event: Event[Tick]) -> None:
        raise OSError("no")

    @reading.handler(topic="graveyard")
    async def read(event: Event[Tick]) -> None:
        found.append(event)

    async with EventEmitter(MemoryProducer(broker)) as emitter, failing.lifespan(), reading.lifespan():
        receipt = await emitter.emit(Tick(n=1, key="k"))
        await until(lambda: found)
    (event,) = found
    assert receipt is not None
    assert (event.meta.id, event.meta.type, event.meta.key, event.body.n) == (receipt.id, "Tick", "k", 1)
    letter = event.meta.dead_letter
    assert letter is not None
    assert (letter.source, letter.position, letter.attempts) == ("ticks", "ticks/0", 2)
    assert letter.handler is not None
    assert letter.handler.endswith("fail")


async def test_timestamps_go_by_the_clock() -> None:
    clock = TestClock(now=1_700_000_000.5)
    broker = MemoryBroker(clock)
    dispatcher = EventDispatcher(MemoryConsumer(broker))
    times: list[int] = []

    @dispatcher.handler(Tick)
    async def handle(event: Event[Tick]) -> None:
        times.append(event.meta.message.timestamp_ms)

    async with EventEmitter(MemoryProducer(broker)) as emitter, dispatcher.lifespan():
        await emitter.emit(Tick(n=1))
        await dispatcher.idle()
    assert times == [1_700_000_000_500]


async def test_brokers_by_url_are_told_apart_by_name() -> None:
    name = unique("broker")
    broker = MemoryBroker.named(name)
    async with EventEmitter(producer_from_url(f"memory://{name}")) as emitter:
        await emitter.emit(Tick(n=1))
    assert len(broker.records("ticks")) == 1
    assert not MemoryBroker.named(unique("broker")).records("ticks")
    consumer = consumer_from_url(f"memory://{name}", group_id="g")
    assert isinstance(consumer, MemoryConsumer)
    assert (consumer.broker, consumer.group_id) == (broker, "g")


@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (lambda: producer_from_url("memory://"), "memory://name"),
        (lambda: consumer_from_url("carrier-pigeon://coop"), "known are: amqp, amqps, kafka"),
        (lambda: producer_from_url("localhost"), "begins with its scheme"),
        (lambda: MemoryProducer(cast("Any", "memory://x")), "producer_from_url"),
        (lambda: MemoryConsumer(cast("Any", "memory://x")), "consumer_from_url"),
        (lambda: MemoryConsumer(MemoryBroker(), start_from=cast("Any", "middle")), "'earliest' or 'latest'"),
    ],
)
async def test_mistakes_say_what_to_do(make: Any, hint: str) -> None:
    with pytest.raises(ConfigurationError, match=hint):
        make()


async def test_threads_emit_while_a_dispatcher_consumes() -> None:
    from dispytch import sync

    broker = MemoryBroker()
    dispatcher = EventDispatcher(MemoryConsumer(broker))
    seen: Counter[int] = Counter()

    @dispatcher.handler(Tick)
    async def handle(event: Event[Tick]) -> None:
        seen[event.body.n] += 1

    emitter = sync.EventEmitter(MemoryProducer(broker))

    def emit(first: int) -> None:
        for n in range(first, first + 200):
            emitter.emit(Tick(n=n))

    async with dispatcher.lifespan():
        threads = [threading.Thread(target=emit, args=(number * 200,)) for number in range(8)]
        for thread in threads:
            thread.start()
        await until(lambda: len(seen) == 1600)
        for thread in threads:
            thread.join()
    assert set(seen.values()) == {1}
