"""The conformance table: what every transport keeps, in every column. Rows are named as in the table of the docs."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import closing
from typing import Annotated, Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from dispytch import Event, EventBase, SubscriptionParam
from dispytch import sync as blocking
from dispytch.abc import Receipt
from dispytch.errors import DispytchError
from dispytch.testing import Faults
from tests.conformance.rig import Rig
from tests.support import unique, until

pytestmark = pytest.mark.anyio


def numbered(topic: str, config: Any = None) -> type[Any]:
    class Numbered(EventBase):
        __topic__ = topic
        __key__ = "{key}"
        __backend_config__ = config

        n: int
        key: str | None = None

    return Numbered


async def test_publish_subscribe(rig: Rig) -> None:
    kind = numbered(unique("rows"), rig.config({"tenant": "acme", "x-Odd_Name": b"\xc3\xa9"}))
    seen: list[tuple[int, str, str | None, str, str]] = []
    dispatcher = rig.dispatcher()

    @dispatcher.handler(kind)
    async def handle(event: Event[Any]) -> None:
        headers = event.meta.headers
        seen.append((event.body["n"], event.meta.id, event.meta.key, headers["tenant"], headers["x-Odd_Name"]))

    async with rig.running(dispatcher), rig.emitter() as emitter:
        receipts = [await emitter.emit(kind(n=n, key=f"k{n % 3}")) for n in range(100)]
        await until(lambda: len(seen) == 100)

    assert all(receipts)
    assert sorted(seen) == [(n, receipts[n].id, f"k{n % 3}", "acme", "é") for n in range(100)]  # type: ignore[union-attr]


async def test_many_at_once(memory: Rig) -> None:
    kind = numbered(unique("rows"))
    seen: Counter[int] = Counter()
    dispatchers = [memory.dispatcher() for _ in range(10)]

    async def handle(event: Event[Any]) -> None:
        seen[event.body["n"]] += 1

    for dispatcher in dispatchers:
        dispatcher.handler(kind)(handle)

    async def emit(first: int) -> None:
        async with memory.emitter() as emitter:
            for n in range(first, first + 10):
                await emitter.emit(kind(n=n))

    async with memory.running(*dispatchers), anyio.create_task_group() as emitting:
        for number in range(10):
            emitting.start_soon(emit, number * 10)
        await until(lambda: len(seen) == 100)
    assert seen == Counter(range(100))


async def test_many_topics(rig: Rig) -> None:
    name = unique("rows")
    seen: dict[int, list[int]] = {topic: [] for topic in range(20)}
    dispatcher = rig.dispatcher()
    kinds = {topic: numbered(f"{name}.{topic}") for topic in seen}
    for topic, kind in kinds.items():

        def handle(event: Event[Any], topic: int = topic) -> None:
            seen[topic].append(event.body["n"])

        dispatcher.handler(kind)(handle)
    async with rig.running(dispatcher), rig.emitter() as emitter:
        await emitter.emit_many([kinds[topic](n=topic * 100 + n) for n in range(10) for topic in seen])
        await until(lambda: sum(map(len, seen.values())) == 200)
    assert {topic: sorted(found) for topic, found in seen.items()} == {
        topic: [topic * 100 + n for n in range(10)] for topic in seen
    }


async def test_templated_topics(rig: Rig) -> None:
    name = unique("rows")
    seen: list[tuple[int, int]] = []
    dispatcher = rig.dispatcher()

    class Placed(EventBase):
        __topic__ = name + ".{shop}.orders"
        shop: int
        n: int

    @dispatcher.handler(topic=name + ".{shop}.orders")
    async def handle(event: Event[Any], shop: Annotated[int, SubscriptionParam()]) -> None:
        seen.append((shop, event.body["n"]))

    async with rig.running(dispatcher), rig.emitter() as emitter:
        await emitter.emit_many([Placed(shop=n % 3, n=n) for n in range(9)])
        await until(lambda: len(seen) == 9)
    assert sorted(seen) == sorted((n % 3, n) for n in range(9))


async def test_redeliver_on_error(memory: Rig) -> None:
    kind = numbered(unique("rows"))
    attempts: dict[int, list[int]] = {}
    dispatcher = memory.dispatcher()

    @dispatcher.handler(kind)
    async def handle(event: Event[Any]) -> None:
        tries = attempts.setdefault(event.body["n"], [])
        tries.append(event.meta.attempt)
        if event.body["n"] < 2 and len(tries) < 3:
            raise OSError("the first two fail")

    async with memory.running(dispatcher), memory.emitter() as emitter:
        await emitter.emit_many([kind(n=n) for n in range(20)])
        await until(lambda: len(attempts) == 20 and len(attempts[0]) == len(attempts[1]) == 3)
        await until(lambda: dispatcher.health().unsettled == 0)
    assert attempts == {n: [1, 2, 3] if n < 2 else [1] for n in range(20)}


async def test_no_settle_no_next(memory: Rig) -> None:
    kind = numbered(unique("rows"))
    log: list[str] = []
    dispatcher = memory.dispatcher(concurrency=1)

    @dispatcher.handler(kind)
    async def handle(event: Event[Any]) -> None:
        log.append(f"{event.body['n']} begins")
        if event.body["n"] == 0 and event.meta.attempt == 1:
            raise OSError("not settled yet")
        await anyio.sleep(0.01)
        log.append(f"{event.body['n']} ends")

    async with memory.running(dispatcher), memory.emitter() as emitter:
        await emitter.emit_many([kind(n=n) for n in range(2)])
        await until(lambda: log[-1:] == ["1 ends"])
    assert log == ["0 begins", "0 begins", "0 ends", "1 begins", "1 ends"]


async def test_many_errors(memory: Rig) -> None:
    kind = numbered(unique("rows"))
    failures = Counter({0: 100, 1: 100, 2: 100})
    seen: list[set[int]] = [set(), set(), set()]
    dispatcher = memory.dispatcher(max_deliveries=200)
    for number in range(3):

        async def handle(event: Event[Any], number: int = number) -> None:
            if failures[number] > 0:
                failures[number] -= 1
                raise OSError("one of many")
            seen[number].add(event.body["n"])

        dispatcher.handler(kind)(handle)
    async with memory.running(dispatcher), memory.emitter() as emitter:
        await emitter.emit_many([kind(n=n) for n in range(100)])
        await until(lambda: all(len(found) == 100 for found in seen))


async def test_order_per_key(memory: Rig) -> None:
    kind = numbered(unique("rows"))
    seen: dict[str, list[int]] = {}
    running: Counter[str] = Counter()
    failed: set[int] = set()
    overlaps: list[str] = []
    dispatcher = memory.dispatcher(concurrency=10)

    @dispatcher.handler(kind)
    async def handle(event: Event[Any]) -> None:
        n, key = event.body["n"], event.body["key"]
        running[key] += 1
        if running[key] > 1:
            overlaps.append(key)
        try:
            await anyio.lowlevel.checkpoint()
            if n % 97 == 0 and n not in failed:
                failed.add(n)
                raise OSError("once")
            seen.setdefault(key, []).append(n)
        finally:
            running[key] -= 1

    async with memory.running(dispatcher), memory.emitter() as emitter:
        await emitter.emit_many([kind(n=n, key=f"k{n % 16}") for n in range(1000)])
        await until(lambda: sum(map(len, seen.values())) == 1000)
    assert not overlaps
    assert failed
    assert seen == {f"k{k}": list(range(k, 1000, 16)) for k in range(16)}


async def test_emitter_close(rig: Rig) -> None:
    """20 emitters are closed amid 10,000 events: what was confirmed is there, the rest was raised."""
    kind = numbered(unique("rows"))
    seen: set[int] = set()
    confirmed: set[int] = set()
    told = Counter[str]()
    dispatcher = rig.dispatcher()

    @dispatcher.handler(kind)
    async def handle(event: Event[Any]) -> None:
        seen.add(event.body["n"])

    async def emit(emitter: Any, first: int) -> None:
        for start in range(first, first + 500, 50):
            events = [kind(n=n) for n in range(start, start + 50)]
            try:
                receipts = await emitter.emit_many(events)
            except DispytchError:
                told["raised"] += 50
                continue
            told["confirmed"] += 50
            confirmed.update(event.n for event, receipt in zip(events, receipts, strict=True) if receipt)

    async with rig.running(dispatcher):
        async with anyio.create_task_group() as emitting:
            for number in range(20):
                async with rig.emitter() as emitter:
                    emitting.start_soon(emit, emitter, number * 500)
                    await until(lambda first=number * 500: first in confirmed or told["raised"])  # type: ignore[misc]
        await until(lambda: confirmed <= seen)
    assert sum(told.values()) == 10_000
    assert len(confirmed) == told["confirmed"]


async def test_cancel(memory: Rig) -> None:
    kind = numbered(unique("rows"))
    seen: set[int] = set()
    started = threading.Event()
    hanging = memory.dispatcher(drain_timeout=0.05)

    @hanging.handler(kind)
    async def hang(event: Event[Any]) -> None:
        started.set()
        await anyio.sleep_forever()

    finishing = memory.dispatcher()

    @finishing.handler(kind)
    async def finish(event: Event[Any]) -> None:
        seen.add(event.body["n"])

    async with memory.emitter() as emitter:
        await emitter.emit_many([kind(n=n) for n in range(20)])
        async with memory.running(hanging):
            await until(started.is_set)
        async with memory.running(finishing):
            await until(lambda: len(seen) == 20)


async def test_two_groups(memory: Rig) -> None:
    kind = numbered(unique("rows"))
    seen: dict[str, list[int]] = {"one": [], "two": []}
    dispatchers = []
    for group in seen:
        dispatcher = memory.dispatcher(group)

        def handle(event: Event[Any], group: str = group) -> None:
            seen[group].append(event.body["n"])

        dispatcher.handler(kind)(handle)
        dispatchers.append(dispatcher)
    async with memory.running(*dispatchers), memory.emitter() as emitter:
        await emitter.emit_many([kind(n=n) for n in range(50)])
        await until(lambda: all(len(found) == 50 for found in seen.values()))
    assert {group: sorted(found) for group, found in seen.items()} == {group: list(range(50)) for group in seen}


async def test_fail_then_succeed(memory: Rig) -> None:
    kind = numbered(unique("rows"))
    first_run: Counter[int] = Counter()
    second_run: list[tuple[int, int]] = []
    failing = memory.dispatcher(drain_timeout=0.05)

    @failing.handler(kind)
    async def fail_on_one(event: Event[Any]) -> None:
        first_run[event.body["n"]] += 1
        if event.body["n"] == 1:
            raise OSError("not this one")

    async with memory.emitter() as emitter:
        async with memory.running(failing):
            await emitter.emit_many([kind(n=1), kind(n=2)])
            await until(lambda: first_run[1] and first_run[2])
        again = memory.dispatcher()

        @again.handler(kind)
        async def handle(event: Event[Any]) -> None:
            second_run.append((event.body["n"], event.meta.attempt))

        async with memory.running(again):
            await until(lambda: second_run)
            await until(lambda: again.health().unsettled == 0)
    assert [n for n, _ in second_run] == [1]


async def test_same_key_two_topics_and_null_keys(memory: Rig) -> None:
    name = unique("rows")
    one, two = numbered(name + ".one"), numbered(name + ".two")
    seen: Counter[str] = Counter()
    gate = threading.Event()
    dispatcher = memory.dispatcher(concurrency=10)

    @dispatcher.handler(one)
    async def handle_one(event: Event[Any]) -> None:
        # The first of the key in topic one waits: the same key in topic two, and events without a key, go on.
        while event.body["n"] == 0 and not gate.is_set():  # noqa: ASYNC110 - set from the test's own loop
            await anyio.sleep(0.005)
        seen["one"] += 1

    @dispatcher.handler(two)
    async def handle_two(event: Event[Any]) -> None:
        seen["two"] += 1

    async with memory.running(dispatcher), memory.emitter() as emitter:
        await emitter.emit(one(n=0, key="k"))
        await emitter.emit_many([two(n=n, key="k" if n % 2 else None) for n in range(1000)])
        await until(lambda: seen["two"] == 1000)
        assert seen["one"] == 0
        gate.set()
        await until(lambda: seen["one"] == 1)


async def test_backpressure(memory: Rig) -> None:
    kind = numbered(unique("rows"))
    gate = threading.Event()
    handled: Counter[str] = Counter()
    dispatcher = memory.dispatcher(concurrency=10)

    @dispatcher.handler(kind)
    async def handle(event: Event[Any]) -> None:
        while not gate.is_set():  # noqa: ASYNC110 - set from the test's own loop
            await anyio.sleep(0.005)
        handled["n"] += 1

    async with memory.emitter() as emitter:
        await emitter.emit_many([kind(n=n) for n in range(10_000)])
        async with memory.running(dispatcher):
            await until(lambda: dispatcher.health().in_flight == 10)
            most = 0
            for _ in range(20):
                most = max(most, dispatcher.health().unsettled)
                await anyio.sleep(0.005)
            assert most <= 20
            assert dispatcher.health().in_flight == 10
            gate.set()
            while handled["n"] < 10_000:
                assert dispatcher.health().unsettled <= 20
                await anyio.sleep(0.005)


async def test_dead_letter(memory: Rig) -> None:
    topic = unique("rows")
    kind = numbered(topic)
    tries: Counter[int] = Counter()
    dispatcher = memory.dispatcher(max_deliveries=3)

    @dispatcher.handler(kind)
    async def handle(event: Event[Any]) -> None:
        tries[event.body["n"]] += 1
        if event.body["n"] == 1:
            raise OSError("never this one")

    assert memory.broker is not None
    async with memory.running(dispatcher), memory.emitter() as emitter:
        await emitter.emit_many([kind(n=n, key="k") for n in range(3)])
        await until(lambda: tries[2] and dispatcher.health().unsettled == 0)
    (letter,) = memory.broker.dead_letters
    assert tries == {0: 1, 1: 3, 2: 1}
    assert letter.topic == f"{topic}.group.dead"
    assert (letter.key, letter.payload) == (b"k", b'{"n":1,"key":"k"}')
    assert letter.dead_letter is not None
    assert (letter.dead_letter.attempts, letter.dead_letter.source) == (3, topic)
    assert letter.dead_letter.error == "OSError: never this one"


async def test_dead_letter_that_cannot_be_written(memory: Rig) -> None:
    """The source stays unacknowledged until the dead letter is there."""
    kind = numbered(unique("rows"))
    faults = Faults()
    assert memory.broker is not None
    memory.broker.faults = faults
    faults.sometimes("dead_letter", 1.0)
    dispatcher = memory.dispatcher(max_deliveries=1)

    @dispatcher.handler(kind)
    async def handle(event: Event[Any]) -> None:
        raise OSError("always")

    async with memory.running(dispatcher), memory.emitter() as emitter:
        await emitter.emit(kind(n=1))
        await until(lambda: faults.taken["dead_letter"] >= 2)
        assert dispatcher.health().unsettled == 1
        assert not memory.broker.dead_letters
        faults.sometimes("dead_letter", 0.0)
        await until(lambda: dispatcher.health().unsettled == 0)
    assert len(memory.broker.dead_letters) == 1


async def test_drain(memory: Rig) -> None:
    """Stopped with 50 in flight: all finish, and none is seen again after a restart."""
    kind = numbered(unique("rows"))
    begun: Counter[int] = Counter()
    ended: Counter[int] = Counter()

    async def handle(event: Event[Any]) -> None:
        begun[event.body["n"]] += 1
        await until(lambda: first.health().state != "running")  # none ends before the stop,
        await anyio.sleep(0.1)  # nor at once: the drain has something to wait for
        ended[event.body["n"]] += 1

    first, second = memory.dispatcher(concurrency=50), memory.dispatcher(concurrency=50)
    for dispatcher in (first, second):
        dispatcher.handler(kind)(handle)
    async with memory.emitter() as emitter:
        await emitter.emit_many([kind(n=n) for n in range(80)])
        async with memory.running(first):
            await until(lambda: len(begun) == 50)
        assert ended == begun == Counter(range(50))
        async with memory.running(second):
            await until(lambda: len(ended) == 80)
    assert ended == begun == Counter(range(80))


async def test_drain_timeout(memory: Rig) -> None:
    kind = numbered(unique("rows"))
    begun: Counter[int] = Counter()
    again: Counter[int] = Counter()
    slow, quick = memory.dispatcher(drain_timeout=0.05), memory.dispatcher()

    @slow.handler(kind)
    async def hang(event: Event[Any]) -> None:
        begun[event.body["n"]] += 1
        await anyio.sleep_forever()

    @quick.handler(kind)
    async def handle(event: Event[Any]) -> None:
        again[event.body["n"]] += 1

    async with memory.emitter() as emitter:
        await emitter.emit_many([kind(n=n) for n in range(10)])
        async with memory.running(slow):
            await until(lambda: len(begun) == 10)
        async with memory.running(quick):
            await until(lambda: len(again) == 10)
    assert again == Counter(range(10))


async def test_unroutable(pubsub: Rig) -> None:
    """The receipt tells how many got the event: nobody is no error on Pub/Sub."""
    rig = pubsub
    async with rig.emitter() as emitter:
        receipt = await emitter.emit(numbered(unique("rows"))(n=1))
    assert receipt is not None
    assert receipt.receivers == 0


@pytest.mark.parametrize("column", ["blocking"], indirect=True)
async def test_blocking_facade(rig: Rig) -> None:
    """32 threads share one emitter, and 32,000 events arrive, each once."""
    kind = numbered(unique("rows"))
    seen: Counter[int] = Counter()
    receipts: list[Receipt | None] = []
    dispatcher = rig.dispatcher(concurrency=1000)

    @dispatcher.handler(kind)
    async def handle(event: Event[Any]) -> None:
        seen[event.body["n"]] += 1

    def emit(first: int) -> None:
        receipts.extend([emitter.emit(kind(n=n)) for n in range(first, first + 1000)])

    async with rig.running(dispatcher):
        with closing(blocking.EventEmitter(rig.producer())) as emitter:
            threads = [threading.Thread(target=emit, args=(number * 1000,)) for number in range(32)]
            for thread in threads:
                thread.start()
            for thread in threads:
                await anyio.to_thread.run_sync(thread.join)
        assert len(receipts) == len({receipt.id for receipt in receipts if receipt}) == 32_000
        await until(lambda: len(seen) == 32_000)
    assert set(seen.values()) == {1}
