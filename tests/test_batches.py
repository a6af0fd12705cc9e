"""Handlers of batches: which events come together, when, and what becomes of each."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Annotated, Any

import anyio
import pytest
from pydantic import BaseModel

from dispytch import (
    Dependency,
    Event,
    EventBase,
    EventDispatcher,
    EventHandlerContext,
    Middleware,
    NextCall,
    Redeliver,
    Router,
    SubscriptionParam,
)
from dispytch._runtime.batches import Collector
from dispytch.abc import Delivery
from dispytch.ack import AckBeforeProcessing, ManualAck
from dispytch.errors import RegistrationError
from dispytch.memory import MemoryBroker, MemoryConsumer
from dispytch.middleware import AsyncLock, ExceptionInterceptor, Filter, FixedDelay, Retry, Timeout
from dispytch.testing import TestClock
from tests.helpers import InstantClock, dispatcher_on, emit, errors, handle, publish, run, until

pytestmark = pytest.mark.anyio


class Click(EventBase):
    __topic__ = "clicks"
    __key__ = "{key}"
    n: int
    key: str | None = None


def clicks(count: int, keys: int = 0) -> list[Click]:
    return [Click(n=n, key=str(n % keys) if keys else None) for n in range(count)]


def numbers(events: Sequence[Event[Click]]) -> list[int]:
    return [event.body.n for event in events]


async def test_full_batches_come_at_once_and_the_rest_after_the_wait() -> None:
    clock = TestClock()
    broker = MemoryBroker(clock)
    dispatcher = dispatcher_on(broker)
    batches: list[list[int]] = []

    @dispatcher.handler(Click, batch=3, batch_wait=5.0)
    async def bulk(events: list[Event[Click]]) -> None:
        batches.append(numbers(events))

    await emit(broker, *clicks(8))
    async with dispatcher.lifespan():
        await until(lambda: len(batches) == 2 and clock.sleepers == 1)
        assert batches == [[0, 1, 2], [3, 4, 5]]
        clock.advance(4.9)
        await anyio.wait_all_tasks_blocked()
        assert len(batches) == 2
        clock.advance(0.2)
        await until(lambda: len(batches) == 3)
        await dispatcher.idle()
        assert dispatcher.health().handled == 8
    assert batches[2] == [6, 7]


async def test_the_wait_is_that_of_the_first_event() -> None:
    clock = TestClock()
    broker = MemoryBroker(clock)
    dispatcher = dispatcher_on(broker)
    batches: list[list[int]] = []

    @dispatcher.handler(Click, batch=100, batch_wait=10.0)
    async def bulk(events: list[Event[Click]]) -> None:
        batches.append(numbers(events))

    async with dispatcher.lifespan():
        await emit(broker, Click(n=1))
        await until(lambda: clock.sleepers == 1)
        clock.advance(9)
        await emit(broker, Click(n=2))
        await until(lambda: dispatcher.health().queued == 2)
        clock.advance(1)
        await until(lambda: batches)
        await emit(broker, Click(n=3))
        await until(lambda: clock.sleepers == 1)
        clock.advance(9)
        await anyio.wait_all_tasks_blocked()
        assert batches == [[1, 2]]
        clock.advance(1)
        await until(lambda: len(batches) == 2)


async def test_order_is_kept_and_keys_come_together(broker: MemoryBroker) -> None:
    """One batch at a time: what comes meanwhile waits for the next, in the order of the source, whatever its keys."""
    dispatcher = dispatcher_on(broker)
    batches: list[list[int]] = []
    running = 0

    @dispatcher.handler(Click, batch=10, batch_wait=0.01)
    async def bulk(events: list[Event[Click]]) -> None:
        nonlocal running
        running += 1
        assert running == 1
        await anyio.sleep(0.001)
        batches.append(numbers(events))
        running -= 1

    await handle(dispatcher, *clicks(95, keys=3))
    assert [n for batch in batches for n in batch] == list(range(95))
    assert max(map(len, batches)) == 10
    assert len(batches) <= 12


async def test_a_batch_may_be_larger_than_the_window(broker: MemoryBroker) -> None:
    dispatcher = dispatcher_on(broker, concurrency=2)
    sizes: list[int] = []

    @dispatcher.handler(Click, batch=500, batch_wait=30)
    async def bulk(events: list[Event[Click]]) -> None:
        sizes.append(len(events))

    await handle(dispatcher, *clicks(1000))
    assert sizes == [500, 500]


async def test_several_batches_at_once_share_no_key(broker: MemoryBroker) -> None:
    dispatcher = dispatcher_on(broker)
    busy: set[str] = set()
    most = together = 0
    handled: dict[str, list[int]] = {}

    @dispatcher.handler(Click, batch=5, batch_wait=0.005, concurrency=3)
    async def bulk(events: list[Event[Click]]) -> None:
        nonlocal most, together
        keys = {str(event.body.key) for event in events}
        assert not keys & busy
        busy.update(keys)
        together += 1
        most = max(most, together)
        await anyio.sleep(0.002)
        for event in events:
            handled.setdefault(str(event.body.key), []).append(event.body.n)
        together -= 1
        busy.difference_update(keys)

    await handle(dispatcher, *clicks(200, keys=20))
    assert most > 1
    assert handled == {str(key): list(range(key, 200, 20)) for key in range(20)}


async def test_what_waits_for_a_busy_key_costs_nothing(broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    dispatcher = dispatcher_on(broker)
    handled: list[list[int]] = []
    looks: list[int] = []
    take = Collector.take

    def counting(self: Collector) -> Any:
        looks.append(len(handled))
        return take(self)

    monkeypatch.setattr(Collector, "take", counting)

    @dispatcher.handler(Click, batch=2, batch_wait=0, concurrency=2)
    async def store(events: list[Event[Click]]) -> None:
        handled.append(numbers(events))
        await anyio.sleep(0.05)

    await handle(dispatcher, *clicks(5, keys=1))
    assert handled == [[0, 1], [2, 3], [4]]
    assert len(looks) < 20


async def test_health_counts_the_events_that_wait(broker: MemoryBroker) -> None:
    dispatcher = dispatcher_on(broker)
    gate = anyio.Event()

    @dispatcher.handler(Click, batch=2, batch_wait=0)
    async def store(events: list[Event[Click]]) -> None:
        await gate.wait()

    await emit(broker, *clicks(5))
    async with dispatcher.lifespan():
        await until(lambda: dispatcher.health().in_flight == 2)
        assert (dispatcher.health().queued, dispatcher.health().unsettled) == (3, 5)
        gate.set()
        await dispatcher.idle()
        assert dispatcher.health().queued == 0


async def test_a_failed_batch_is_tried_again_whole_then_dead_lettered() -> None:
    clock = InstantClock()
    broker = MemoryBroker(clock)
    dispatcher = dispatcher_on(broker, max_deliveries=3)
    tries: list[tuple[list[int], list[int]]] = []

    @dispatcher.handler(Click, batch=4, batch_wait=0)
    async def bulk(events: list[Event[Click]]) -> None:
        tries.append((numbers(events), [event.meta.attempt for event in events]))
        if events[0].body.n == 0:
            raise OSError("the first batch")

    await handle(dispatcher, *clicks(8))
    assert tries == [
        ([0, 1, 2, 3], [1] * 4),
        ([0, 1, 2, 3], [2] * 4),
        ([0, 1, 2, 3], [3] * 4),
        ([4, 5, 6, 7], [1] * 4),
    ]
    assert errors(broker) == ["OSError: the first batch"] * 4
    assert [letter.dead_letter.attempts for letter in broker.dead_letters if letter.dead_letter] == [3] * 4


@pytest.mark.parametrize("raises", [False, True])
async def test_settled_items_stand_and_the_rest_follow_the_function(raises: bool) -> None:
    broker = MemoryBroker(InstantClock())
    dispatcher = dispatcher_on(broker, max_deliveries=2)
    tries: list[list[int]] = []

    @dispatcher.handler(Click, batch=4, batch_wait=0)
    async def bulk(events: list[Event[Click]]) -> None:
        tries.append(numbers(events))
        for event in events:
            if event.body.n == 0:
                event.ack()
            elif event.body.n == 1:
                event.reject("not this one")
            elif event.body.n == 2 and event.meta.attempt == 1:
                event.nack()
        if raises:
            raise OSError("the rest")

    await handle(dispatcher, *clicks(4))
    if raises:
        assert tries == [[0, 1, 2, 3], [2, 3]]
        assert errors(broker) == ["Reject: not this one", "OSError: the rest", "OSError: the rest"]
    else:
        assert tries == [[0, 1, 2, 3], [2]]
        assert errors(broker) == ["Reject: not this one"]


async def test_items_are_acknowledged_while_the_batch_goes_on(broker: MemoryBroker) -> None:
    dispatcher = dispatcher_on(broker)
    over = anyio.Event()

    @dispatcher.handler(Click, batch=4, batch_wait=0)
    async def bulk(events: list[Event[Click]]) -> None:
        for event in events[:3]:
            event.ack()
        await over.wait()

    await emit(broker, *clicks(4))
    async with dispatcher.lifespan():
        await until(lambda: dispatcher.health().unsettled == 1)
        assert dispatcher.health().in_flight == 4
        over.set()
        await dispatcher.idle()


async def test_what_is_settled_is_not_given_to_retry_again(broker: MemoryBroker) -> None:
    dispatcher = dispatcher_on(broker)
    tries: list[list[int]] = []

    @dispatcher.handler(Click, batch=3, batch_wait=0, middlewares=[Retry(FixedDelay(retries=3, delay_sec=0))])
    async def bulk(events: list[Event[Click]]) -> None:
        tries.append(numbers(events))
        events[0].ack()
        raise OSError("the others")

    await handle(dispatcher, *clicks(3))
    assert tries == [[0, 1, 2], [1, 2], [2]]
    assert broker.dead_letters == []


async def test_manual_ack_asks_for_a_word_on_each() -> None:
    broker = MemoryBroker(InstantClock())
    dispatcher = dispatcher_on(broker, max_deliveries=2, default_ack_policy=ManualAck())
    tries: list[list[int]] = []

    @dispatcher.handler(Click, batch=3, batch_wait=0)
    async def bulk(events: list[Event[Click]]) -> None:
        tries.append(numbers(events))
        events[0].ack()

    await handle(dispatcher, *clicks(3))
    assert tries == [[0, 1, 2], [1, 2]]
    (error,) = errors(broker)
    assert "returned without settling" in error


async def test_what_cannot_be_decoded_is_dead_lettered_alone(broker: MemoryBroker) -> None:
    dispatcher = dispatcher_on(broker, max_deliveries=5)
    batches: list[list[int]] = []

    @dispatcher.handler(topic="clicks", batch=4, batch_wait=0)
    async def bulk(events: list[Event[Click]]) -> None:
        batches.append(numbers(events))

    for payload in (b'{"n": 1}', b'{"n": "x"}', b"not json", b'{"n": 4}'):
        publish(broker, "clicks", payload)
    await run(dispatcher)
    assert batches == [[1, 4]]
    assert [letter.payload for letter in broker.dead_letters] == [b'{"n": "x"}', b"not json"]


async def test_a_batch_of_what_cannot_be_decoded_calls_nobody(broker: MemoryBroker) -> None:
    dispatcher = dispatcher_on(broker)
    calls: list[int] = []

    @dispatcher.handler(topic="clicks", batch=2, batch_wait=0)
    async def bulk(events: list[Event[Click]]) -> None:
        calls.append(len(events))

    publish(broker, "clicks", b"[]")
    publish(broker, "clicks", b"{}")
    await run(dispatcher)
    assert calls == []
    assert len(broker.dead_letters) == 2


async def test_middleware_runs_once_per_batch(broker: MemoryBroker) -> None:
    seen: list[Any] = []

    class Watch(Middleware):
        async def dispatch(self, ctx: EventHandlerContext, call_next: NextCall) -> Any:
            seen.append([data["n"] for data in ctx.events])
            seen.append([one.meta.key for one in ctx.contexts])
            ctx.state["seen"] = True
            result = await call_next(ctx)
            seen.append(result)
            return result

    dispatcher = dispatcher_on(broker, middlewares=[Watch(), AsyncLock()])
    router = Router(middlewares=[Timeout(10), ExceptionInterceptor({OSError: lambda ctx, error: "mended"})])

    @router.handler(Click, batch=3, batch_wait=0)
    async def bulk(events: list[Event[Click]]) -> str:
        if events[0].body.n:
            raise OSError
        return "done"

    dispatcher.add_router(router)
    await handle(dispatcher, *clicks(6, keys=2))
    assert seen == [[0, 1, 2], ["0", "1", "0"], "done", [3, 4, 5], ["1", "0", "1"], "mended"]
    assert broker.dead_letters == []


async def test_a_middleware_that_does_not_go_on_drops_the_batch(broker: MemoryBroker) -> None:
    class Drop(Middleware):
        async def dispatch(self, ctx: EventHandlerContext, call_next: NextCall) -> Any: ...

    dispatcher = dispatcher_on(broker, middlewares=[Drop()])
    dispatcher.handler(Click, batch=3, batch_wait=0)(_bulk)
    await handle(dispatcher, *clicks(3))
    assert broker.dead_letters == []
    assert await _left(broker) == []


@pytest.mark.parametrize("name", ["event", "meta", "message", "event_route"])
async def test_what_only_single_events_have_says_where_it_is(name: str, broker: MemoryBroker) -> None:
    class Asks(Middleware):
        async def dispatch(self, ctx: EventHandlerContext, call_next: NextCall) -> Any:
            getattr(ctx, name)

    dispatcher = dispatcher_on(broker, middlewares=[Asks()])
    dispatcher.handler(Click, batch=1)(_bulk)
    await handle(dispatcher, Click(n=1))
    (error,) = errors(broker)
    assert f"has no ctx.{name} of its own; use ctx." in error


async def test_single_handlers_have_events_and_contexts_too(broker: MemoryBroker) -> None:
    seen: list[Any] = []

    class Watch(Middleware):
        async def dispatch(self, ctx: EventHandlerContext, call_next: NextCall) -> Any:
            seen.append([data["n"] for data in ctx.events])
            seen.append([one is ctx for one in ctx.contexts])
            return await call_next(ctx)

    dispatcher = dispatcher_on(broker, middlewares=[Watch()])

    @dispatcher.handler(Click)
    async def single(event: Event[Click]) -> None: ...

    await handle(dispatcher, Click(n=7))
    assert seen == [[7], [True]]


async def test_plain_functions_with_dependencies_and_bodies_alone(broker: MemoryBroker) -> None:
    dispatcher = dispatcher_on(broker)
    made: list[int] = []
    handled: list[Any] = []

    def store(events: Sequence[Event[Click]]) -> str:
        made.append(len(events))
        return "store"

    @dispatcher.handler(Click, batch=3, batch_wait=0)
    def bulk(events: list[Click], store: Annotated[str, Dependency(store)]) -> None:
        handled.append((threading.current_thread() is not threading.main_thread(), [one.n for one in events], store))

    await handle(dispatcher, *clicks(6))
    assert made == [3, 3]
    assert handled == [(True, [0, 1, 2], "store"), (True, [3, 4, 5], "store")]


async def test_a_batch_handler_beside_a_single_one(broker: MemoryBroker) -> None:
    """An event is acknowledged when both are done with it, and the next of its key waits for both."""
    dispatcher = dispatcher_on(broker)
    log: list[str] = []

    @dispatcher.handler(Click)
    async def single(event: Event[Click]) -> None:
        log.append(f"single {event.body.n}")

    @dispatcher.handler(Click, batch=10, batch_wait=0.01)
    async def bulk(events: list[Event[Click]]) -> None:
        log.append(f"bulk {numbers(events)}")

    await handle(dispatcher, Click(n=1, key="k"), Click(n=2, key="k"), Click(n=3))
    assert log.index("single 1") < log.index("single 2")
    assert log.index("bulk [1, 3]") < log.index("single 2") < log.index("bulk [2]")


async def test_batches_of_several_handlers_can_fill_up_side_by_side(broker: MemoryBroker) -> None:
    """What is held has room for all of them, or each would wait in vain for what is not asked for."""
    dispatcher = dispatcher_on(broker, concurrency=1)
    sizes: list[int] = []

    async def store(events: list[Event[Click]]) -> None:
        sizes.append(len(events))

    for kind in "abcde":
        dispatcher.handler(topic="clicks", event=kind, batch=20, batch_wait=600, concurrency=1)(store)
    for _ in range(40):
        for kind in "abcde":
            headers = [("ce_specversion", b"1.0"), ("ce_id", b"1"), ("ce_source", b"/"), ("ce_type", kind.encode())]
            publish(broker, "clicks", b'{"n": 1}', headers)
    await run(dispatcher)
    assert sizes == [20] * 10


async def test_no_worker_waits_with_an_event_for_its_batch(broker: MemoryBroker) -> None:
    """Else there would be none left to run the batch, once as many events waited as there are workers."""
    dispatcher = dispatcher_on(broker, concurrency=2)
    single: list[int] = []
    bulk: list[int] = []

    @dispatcher.handler(Click)
    async def one_by_one(event: Event[Click]) -> None:
        single.append(event.body.n)

    @dispatcher.handler(Click, batch=5, batch_wait=600)
    async def many(events: list[Event[Click]]) -> None:
        bulk.extend(numbers(events))

    await handle(dispatcher, *clicks(10))
    assert sorted(single) == sorted(bulk) == list(range(10))
    assert dispatcher.health().in_flight == 0


async def test_what_waits_for_a_batch_takes_no_room_at_other_handlers(broker: MemoryBroker) -> None:
    dispatcher = dispatcher_on(broker)
    single: list[int] = []
    bulk: list[int] = []

    @dispatcher.handler(Click, concurrency=1)
    async def one_by_one(event: Event[Click]) -> None:
        single.append(event.body.n)

    @dispatcher.handler(Click, batch=5, batch_wait=600)
    async def many(events: list[Event[Click]]) -> None:
        bulk.extend(numbers(events))

    await handle(dispatcher, *clicks(5))
    assert single == bulk == list(range(5))


async def test_the_next_of_a_key_does_not_wait_for_the_back_off_of_others_of_a_batch(broker: MemoryBroker) -> None:
    dispatcher = dispatcher_on(broker, max_deliveries=3)
    singles: list[int] = []
    go = anyio.Event()

    @dispatcher.handler(Click, batch=2, batch_wait=60.0)
    async def bulk(events: list[Event[Click]]) -> None:
        await go.wait()
        for event in events:
            if event.body.n == 1:
                event.nack(delay=60.0)

    @dispatcher.handler(Click)
    async def single(event: Event[Click]) -> None:
        singles.append(event.body.n)

    await emit(broker, *clicks(4, keys=2))
    async with dispatcher.lifespan():
        await anyio.wait_all_tasks_blocked()
        assert singles == [0, 1]
        go.set()
        await until(lambda: singles == [0, 1, 2])  # and not 3, which is of the key of the one that failed


async def test_a_type_that_has_batches_only_beside_single_events_of_another(broker: MemoryBroker) -> None:
    dispatcher = dispatcher_on(broker, concurrency=1)
    log: list[Any] = []

    @dispatcher.handler(topic="clicks", event="Other")
    async def other(event: Event) -> None:
        log.append("other")

    @dispatcher.handler(Click, batch=5, batch_wait=0.01)
    async def many(events: list[Event[Click]]) -> None:
        log.append(numbers(events))

    await handle(dispatcher, *clicks(2), Click(n=7, key="k"), Click(n=8, key="k"))
    assert log == [[0, 1, 7], [8]]


async def test_two_batch_handlers_each_get_all(broker: MemoryBroker) -> None:
    dispatcher = dispatcher_on(broker, max_deliveries=1)
    one: list[int] = []
    two: list[int] = []

    @dispatcher.handler(Click, batch=5, batch_wait=0.01)
    async def first(events: list[Event[Click]]) -> None:
        one.extend(numbers(events))

    @dispatcher.handler(Click, batch=3, batch_wait=0.01)
    async def second(events: list[Event[Click]]) -> None:
        two.extend(numbers(events))
        raise OSError("the second only")

    await handle(dispatcher, *clicks(7))
    assert one == two == list(range(7))
    assert len(broker.dead_letters) == 7
    assert dispatcher.health().in_flight == 0


class Fickle(MemoryConsumer):
    """A consumer whose events become somebody else's."""

    is_lost = False

    def is_stale(self, delivery: Delivery) -> bool:
        return self.is_lost


async def test_what_becomes_stale_while_it_waits_for_two_batches_is_let_go_once(broker: MemoryBroker) -> None:
    consumer = Fickle(broker)
    dispatcher = EventDispatcher(consumer)
    handled: list[int] = []

    @dispatcher.handler(Click, batch=5, batch_wait=0.05)
    async def first(events: list[Event[Click]]) -> None:
        handled.extend(numbers(events))

    @dispatcher.handler(Click, batch=5, batch_wait=0.05)
    async def second(events: list[Event[Click]]) -> None:
        handled.extend(numbers(events))

    await emit(broker, *clicks(3))
    async with dispatcher.lifespan():
        await until(lambda: dispatcher.health().unsettled == 3)
        consumer.is_lost = True
        await until(lambda: dispatcher.health().unsettled <= 0 and not dispatcher.health().queued)
        assert dispatcher.health().unsettled == 0
    assert handled == []


@pytest.mark.parametrize("batch", [None, 2])
async def test_what_becomes_stale_in_a_back_off_is_not_tried_again(batch: int | None) -> None:
    clock = TestClock()
    consumer = Fickle(MemoryBroker(clock))
    dispatcher = EventDispatcher(consumer)
    tries: list[int] = []

    async def fail(events: list[Event[Click]]) -> None:
        tries.extend(numbers(events))
        raise Redeliver(delay=10)

    async def fail_single(event: Event[Click]) -> None:
        await fail([event])

    if batch:
        dispatcher.handler(Click, batch=batch, batch_wait=0)(fail)
    else:
        dispatcher.handler(Click)(fail_single)
    await emit(consumer.broker, *clicks(2))
    async with dispatcher.lifespan():
        await until(lambda: dispatcher.health().failed == 2 and clock.sleepers == (1 if batch else 2))
        consumer.is_lost = True
        clock.advance(11)
        await until(lambda: dispatcher.health().in_flight == 0)
        assert dispatcher.health().unsettled == 0
    assert tries == [0, 1]


@pytest.mark.parametrize("batch", [None, 2])
async def test_what_becomes_stale_in_a_back_off_of_retry_is_not_tried_again(batch: int | None) -> None:
    clock = TestClock()
    consumer = Fickle(MemoryBroker(clock))
    dispatcher = EventDispatcher(consumer, middlewares=[Retry(FixedDelay(3, delay_sec=10))])
    tries: list[int] = []

    async def fail(events: list[Event[Click]]) -> None:
        tries.extend(numbers(events))
        raise OSError

    async def fail_single(event: Event[Click]) -> None:
        await fail([event])

    if batch:
        dispatcher.handler(Click, batch=batch, batch_wait=0)(fail)
    else:
        dispatcher.handler(Click)(fail_single)
    await emit(consumer.broker, *clicks(2))
    async with dispatcher.lifespan():
        await until(lambda: len(tries) == 2 and clock.sleepers == (1 if batch else 2))
        consumer.is_lost = True
        clock.advance(11)
        await until(lambda: not dispatcher.health().in_flight)
        assert dispatcher.health().unsettled == 0
    assert sorted(tries) == [0, 1]
    assert consumer.broker.dead_letters == []


async def test_a_stop_hands_back_what_waits_and_finishes_what_runs() -> None:
    clock = TestClock()  # never advanced
    broker = MemoryBroker(clock)
    gate = anyio.Event()
    batches: list[list[int]] = []

    def dispatcher() -> EventDispatcher:
        made = EventDispatcher(MemoryConsumer(broker))

        @made.handler(Click, batch=3, batch_wait=1000)
        async def bulk(events: list[Event[Click]]) -> None:
            batches.append(numbers(events))
            await gate.wait()

        return made

    await emit(broker, *clicks(5))
    first = dispatcher()
    async with first.lifespan():
        await until(lambda: batches and first.health().queued == 2)
        first.request_stop()
        await anyio.wait_all_tasks_blocked()
        gate.set()
    assert batches == [[0, 1, 2]]
    assert await _left(broker) == [3, 4]


async def test_a_stop_past_its_deadline_hands_the_batch_back(broker: MemoryBroker) -> None:
    dispatcher = dispatcher_on(broker, drain_timeout=0.02)

    @dispatcher.handler(Click, batch=3, batch_wait=1000)
    async def bulk(events: list[Event[Click]]) -> None:
        events[0].ack()
        await anyio.sleep_forever()

    await emit(broker, *clicks(5))
    async with dispatcher.lifespan():
        await until(lambda: dispatcher.health().in_flight == 3 and dispatcher.health().unsettled == 4)
    assert await _left(broker) == [1, 2, 3, 4]


async def test_acknowledged_first_what_waits_is_handled_at_the_stop() -> None:
    clock = TestClock()  # never advanced
    broker = MemoryBroker(clock)
    dispatcher = EventDispatcher(MemoryConsumer(broker), default_ack_policy=AckBeforeProcessing())
    batches: list[list[int]] = []

    @dispatcher.handler(Click, batch=100, batch_wait=1000)
    async def bulk(events: list[Event[Click]]) -> None:
        batches.append(numbers(events))

    await emit(broker, *clicks(5))
    async with dispatcher.lifespan():
        await until(lambda: dispatcher.health().queued == 5)
    assert batches == [[0, 1, 2, 3, 4]]
    assert await _left(broker) == []


async def test_a_back_off_that_a_stop_meets_hands_back_with_the_count() -> None:
    clock = TestClock()  # never advanced
    broker = MemoryBroker(clock)
    attempts: list[list[int]] = []

    def dispatcher() -> EventDispatcher:
        made = EventDispatcher(MemoryConsumer(broker))

        @made.handler(Click, batch=2, batch_wait=1000)
        async def bulk(events: list[Event[Click]]) -> None:
            attempts.append([event.meta.attempt for event in events])
            if len(attempts) == 1:
                raise OSError("once")

        return made

    await emit(broker, *clicks(2))
    async with dispatcher().lifespan():
        await until(lambda: attempts and clock.sleepers == 1)
    await run(dispatcher())
    assert attempts == [[1, 1], [2, 2]]


async def test_null_messages_reach_batches_that_take_them(broker: MemoryBroker) -> None:
    class Value(BaseModel):
        n: int

    dispatcher = dispatcher_on(broker)
    seen: list[Any] = []

    @dispatcher.handler(topic="values", batch=2, batch_wait=0)
    async def bulk(events: list[Event[Value | None]]) -> None:
        seen.extend(event.body for event in events)

    publish(broker, "values", None)
    publish(broker, "values", b'{"n": 1}')
    await run(dispatcher)
    assert seen == [None, Value(n=1)]


# --- mistakes


def _bulk(events: list[Event[Click]]) -> None: ...


def _single(event: Event[Click]) -> None: ...


def _none() -> None: ...


def _with_segment(events: list[Event[Click]], shop: Annotated[str, SubscriptionParam()]) -> None: ...


def _provider(event: Event[Click]) -> str:
    return ""


def _with_single_provider(events: list[Event[Click]], made: Annotated[str, Dependency(_provider)]) -> None: ...


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (_bulk, {}, r"takes a list of events, which only handlers of batches get; give the handler batch="),
        (_single, {"batch": 3}, r"parameter 'event' takes one event, but .* annotate it with list\[Event\[...\]\]"),
        (_none, {"batch": 3}, r"has batch= and takes no events"),
        (_with_segment, {"batch": 3}, r"'shop' wants a segment of one event's route.*event.meta.params"),
        (_with_single_provider, {"batch": 3}, r"_provider .*parameter 'event' takes one event"),
        (_bulk, {"batch": 0}, r"batch= is the most events of one call, at least 1, not 0"),
        (_bulk, {"batch": "3"}, r"not '3'"),
        (_bulk, {"batch": True}, r"not True"),
        (_bulk, {"batch": 3, "concurrency": "2"}, r"concurrency must be at least 1, not '2'"),
        (_bulk, {"batch_wait": 2.0}, r"batch_wait= is for handlers of batches; give batch= too"),
        (_bulk, {"batch": 3, "batch_wait": "1"}, r"batch_wait= is in seconds"),
        (_bulk, {"batch": 3, "batch_wait": -1}, r"batch_wait= is in seconds"),
        (_bulk, {"batch": 3, "batch_wait": float("nan")}, r"batch_wait= is in seconds"),
        (_bulk, {"batch": 3, "middlewares": [Filter(lambda ctx: True)]}, r"Filter decides on single events"),
    ],
)
def test_mistakes_are_refused_at_registration(function: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RegistrationError, match=message):
        Router().handler(topic="shop.{shop}.clicks", **options)(function)


def test_a_filter_of_the_router_is_refused_too() -> None:
    with pytest.raises(RegistrationError, match=r"gets batches, and Filter decides on single events"):
        Router(middlewares=[Filter(lambda ctx: True)]).handler(Click, batch=2)(_bulk)


async def test_a_filter_of_the_dispatcher_is_refused_at_the_start(broker: MemoryBroker) -> None:
    dispatcher = dispatcher_on(broker, middlewares=[Filter(lambda ctx: True)])
    dispatcher.handler(Click, batch=2)(_bulk)
    with pytest.raises(RegistrationError, match=r"_bulk gets batches, and Filter decides on single events"):
        await run(dispatcher)


async def _left(broker: MemoryBroker) -> list[int]:
    """What the next dispatcher of the group gets."""
    found: list[int] = []
    dispatcher = dispatcher_on(broker)

    @dispatcher.handler(Click)
    async def single(event: Event[Click]) -> None:
        found.append(event.body.n)

    await run(dispatcher)
    return found
