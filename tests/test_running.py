"""Dispatchers in tests: run in one line on an in-process broker, whatever they were made for."""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import AsyncIterator
from typing import Annotated, Any, NoReturn

import anyio
import pytest

from dispytch import (
    Dependency,
    Event,
    EventBase,
    EventDispatcher,
    EventEmitter,
    HandlerGroup,
    Redeliver,
    Reject,
    Router,
    sync,
)
from dispytch.ack import ManualAck
from dispytch.errors import ConfigurationError, DecodeError, DeliveryError, RegistrationError
from dispytch.kafka import KafkaConsumer, KafkaEventRoute, KafkaEventSubscription, KafkaProducer
from dispytch.memory import MemoryBroker, MemoryConsumer
from dispytch.middleware import Filter, Retry
from dispytch.middleware.retry import FixedDelay
from dispytch.rabbitmq import RabbitMQConsumer, RabbitMQEventRoute, RabbitMQEventSubscription
from dispytch.redis import RedisConsumer, RedisEventSubscription, RedisStreamConsumer
from dispytch.serialization import ClassicEnvelope, MessagePackDeserializer
from dispytch.testing import (
    BlockingRecordingEmitter,
    BlockingRunning,
    RecordingEmitter,
    Running,
    TestClock,
    overriding,
    running,
    running_in_thread,
)
from tests.support import blocking_until, until


class Ordered(EventBase):
    __topic__ = "orders"
    __key__ = "{n}"
    n: int


class Shipped(EventBase):
    __topic__ = "shipments"
    n: int


class Parcels:
    """A service that production reaches over the network."""

    def pack(self, n: int) -> str:
        raise AssertionError("the real one")


class FakeParcels(Parcels):
    def __init__(self) -> None:
        self.packed: list[int] = []

    def pack(self, n: int) -> str:
        self.packed.append(n)
        return f"parcel {n}"


async def get_emitter() -> AsyncIterator[EventEmitter]:
    async with EventEmitter(KafkaProducer("kafka.invalid:9092")) as emitter:
        yield emitter


def shop() -> EventDispatcher:
    """An app as it is in production: it knows its broker, its services and its emitter."""
    dispatcher = EventDispatcher(KafkaConsumer("kafka.invalid:9092", group_id="shop"))

    @dispatcher.handler(Ordered)
    async def ship(
        event: Event[Ordered],
        parcels: Annotated[Parcels, Dependency(Parcels)],
        emitter: Annotated[EventEmitter, Dependency(get_emitter, scope="app")],
    ) -> None:
        parcels.pack(event.body.n)
        await emitter.emit(Shipped(n=event.body.n))

    @dispatcher.handler(Shipped)
    def note(event: Event[Shipped]) -> None: ...

    return dispatcher


def failing(times: int, error: Exception, **options: Any) -> tuple[Router, list[int]]:
    """A handler that fails so many times at each event, and the attempts that it sees."""
    router = Router()
    attempts: list[int] = []

    @router.handler(Ordered, **options)
    async def handle(event: Event[Ordered]) -> None:
        attempts.append(event.meta.attempt)
        if event.meta.attempt <= times:
            raise error

    return router, attempts


def names(running: Running | BlockingRunning) -> list[str]:
    return [one.handler.rpartition(".")[2] for one in running.handled]


@pytest.mark.anyio
async def test_an_app_of_a_broker_runs_without_it_with_other_services(caplog: pytest.LogCaptureFixture) -> None:
    dispatcher, broker, parcels = shop(), MemoryBroker(), FakeParcels()
    emitter = RecordingEmitter(broker=broker)
    overrides = {Parcels: lambda: parcels, get_emitter: lambda: emitter}
    real = dispatcher.consumers
    with caplog.at_level(logging.WARNING):
        async with running(dispatcher, broker, dependency_overrides=overrides) as app:
            receipt = await app.emit(Ordered(n=1), id="first")
            assert receipt.id == "first"
            await app.idle()
            assert parcels.packed == [1]
            assert names(app) == ["ship", "note"]
            assert app.handled[0].meta.id == "first"
            assert app.dispatcher is dispatcher
            await app.emit(Ordered(n=2))
        assert parcels.packed == [1, 2]
    emitter.assert_emitted(Shipped, times=2)
    assert emitter.emissions[0].headers["ce_correlationid"] == "first"
    assert not app.failed
    assert not app.dead_letters
    assert not caplog.messages
    assert dispatcher.consumers is real
    assert not dispatcher.dependency_overrides
    assert not dispatcher.middlewares


def test_the_same_in_blocking_tests() -> None:
    parcels, emitter = FakeParcels(), RecordingEmitter()
    overrides = {Parcels: lambda: parcels, get_emitter: lambda: emitter}
    with running_in_thread(shop(), dependency_overrides=overrides) as app:
        assert app.emit(Ordered(n=1)).route == "orders"
        app.idle()
        assert parcels.packed == [1]
        app.emit(Ordered(n=2))
    assert parcels.packed == [1, 2]
    emitter.assert_emitted(Shipped, times=2)
    assert names(app) == ["ship", "ship"]


@pytest.mark.parametrize("options", [{}, {"backend": "trio"}, {"use_uvloop": True}])
def test_blocking_apps_run_in_blocking_tests(options: Any) -> None:
    broker = MemoryBroker(TestClock())
    emitter = BlockingRecordingEmitter(broker=broker)
    dispatcher = sync.EventDispatcher(KafkaConsumer("kafka.invalid:9092", group_id="shop"), **options)
    seen: list[int] = []

    @dispatcher.handler(Ordered)
    def ship(event: Event[Ordered]) -> None:
        if event.meta.attempt == 1:
            raise OSError("not yet")
        emitter.emit(Shipped(n=event.body.n))

    @dispatcher.handler(topic="{what}", event="Shipped")
    async def note(event: Event[Shipped]) -> None:
        seen.append(event.body.n)

    with running_in_thread(dispatcher, broker) as app:
        emitter.emit(Ordered(n=1))
        app.idle()
        assert seen == [1]
        assert [type(one.error) for one in app.failed] == [OSError]
    with running_in_thread(dispatcher, broker) as app:
        app.publish("elsewhere", b'{"n": 3}', headers={"ce_specversion": "1.0", "ce_id": "3", "ce_type": "Shipped"})
        app.idle()
    assert seen == [1, 3]


@pytest.mark.anyio
async def test_back_offs_take_no_time(anyio_backend: Any) -> None:
    router, attempts = failing(4, OSError("not yet"), middlewares=[Retry(FixedDelay(1, [OSError], 3600))])
    started = anyio.current_time()
    async with running(router) as app:
        await app.emit(Ordered(n=1))
        await app.idle()
        assert attempts == [1, 2, 3, 4, 5]
        assert [one.meta.attempt for one in app.tries] == [1, 3, 5]
    assert anyio.current_time() - started < 60
    assert names(app) == ["handle"]
    assert not app.dead_letters


@pytest.mark.anyio
async def test_the_test_may_move_the_time_itself() -> None:
    router, attempts = failing(1, Redeliver("not yet", delay=60))
    clock = TestClock()
    async with running(router, MemoryBroker(clock)) as app:
        await app.emit(Ordered(n=1))
        await until(lambda: clock.sleepers)
        clock.advance(59)
        await anyio.wait_all_tasks_blocked()
        assert attempts == [1]
        clock.advance(1)
        await app.dispatcher.idle()
        assert attempts == [1, 2]


@pytest.mark.anyio
async def test_the_time_moves_from_sleeper_to_sleeper() -> None:
    clock, woken = TestClock(0), list[float]()

    async def sleep(seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append(clock.time())

    assert not clock.advance_to_next()
    async with anyio.create_task_group() as group:
        for seconds in (5, 2, 5):
            group.start_soon(sleep, seconds)
        await until(lambda: clock.sleepers == 3)
        assert clock.advance_to_next()
        await until(lambda: woken == [2])
        assert clock.advance_to_next()
    assert woken == [2, 5, 5]


@pytest.mark.anyio
async def test_batches_need_not_be_waited_for() -> None:
    router = Router()
    batches: list[list[int]] = []

    @router.handler(Ordered, batch=100, batch_wait=3600)
    async def handle(events: list[Event[Ordered]]) -> None:
        batches.append([event.body.n for event in events])
        if len(batches) == 1:
            events[0].ack()
            events[1].reject("never")
            raise OSError("not yet")

    async with running(router, raise_failures=False) as app:
        for n in range(3):
            await app.emit(Ordered(n=n))
        await app.idle()
    assert batches == [[0, 1, 2], [2]]
    assert [type(one.error) for one in app.tries] == [type(None), Reject, OSError, type(None)]
    assert len(app.dead_letters) == 1


@pytest.mark.anyio
async def test_a_handler_that_gives_up_fails_the_test() -> None:
    error = ValueError("a mistake")
    router, attempts = failing(99, error)
    with pytest.raises(ValueError, match="a mistake") as failed:
        async with running(router) as app:
            await app.emit(Ordered(n=1))
    assert failed.value is error
    assert attempts == [1, 2, 3, 4, 5]
    assert "handle gave up the event Ordered" in failed.value.__notes__[0]
    assert app.dead_letters[0].dead_letter is not None

    router, _ = failing(99, error, dead_letter=None)
    async with running(router) as app:
        await app.emit(Ordered(n=1))
        with pytest.raises(ValueError, match="a mistake"):
            await app.idle()
        await app.idle()  # each is raised once
        await app.emit(Ordered(n=2))
        await app.emit(Ordered(n=3))
        with pytest.raises(ExceptionGroup, match="2 events were given up"):
            await app.idle()


@pytest.mark.anyio
async def test_failures_can_be_looked_at_instead() -> None:
    router, _ = failing(99, Reject("never"))
    broker = MemoryBroker()
    async with running(router, broker, raise_failures=False) as app:
        await app.emit(Ordered(n=1))
    (failed,) = app.failed
    assert isinstance(failed.error, Reject)
    assert failed.meta.topic == "orders"
    assert not app.handled
    (letter,) = app.dead_letters
    assert (letter.topic, letter.key) == ("orders.default.dead", b"1")
    async with running(router, broker):  # what an earlier run has left is no failure of this one
        pass


@pytest.mark.anyio
async def test_what_reaches_no_handler_fails_the_test_too() -> None:
    router, _ = failing(0, ValueError())
    with pytest.raises(DeliveryError, match=r"from orders was dead-lettered: DecodeError"):
        async with running(router) as app:
            await app.publish("orders", b"{}", headers={"ce_specversion": "1.0"})  # no id
    with pytest.raises(DecodeError):
        async with running(router) as app:
            await app.publish(
                "orders", b'{"n": "x"}', key="k", headers={"ce_specversion": "1.0", "ce_id": b"1", "ce_type": "Ordered"}
            )
    assert not app.handled


@pytest.mark.anyio
async def test_a_handler_that_hangs_is_told() -> None:
    dispatcher = EventDispatcher(MemoryConsumer(MemoryBroker()), concurrency=1)
    forever = anyio.Event()

    @dispatcher.handler(Ordered)
    async def wait(event: Event[Ordered]) -> None:
        await forever.wait()

    async with running(dispatcher, timeout=1) as app:
        await app.emit(Ordered(n=1))
        await app.emit(Ordered(n=2))
        await until(lambda: app.dispatcher.health().unsettled == 2)
        with pytest.raises(
            TimeoutError, match=r"not idle after 1 s: 1 events are being handled, the oldest for .*, 1 wait"
        ):
            await app.idle()
        forever.set()


@pytest.mark.anyio
async def test_a_test_that_fails_does_not_wait_for_handlers() -> None:
    dispatcher = EventDispatcher(MemoryConsumer(MemoryBroker()))
    begun = anyio.Event()

    @dispatcher.handler(Ordered)
    async def wait(event: Event[Ordered]) -> None:
        begun.set()
        await anyio.sleep_forever()

    started = anyio.current_time()
    with pytest.raises(AssertionError, match="of the test"):
        async with running(dispatcher) as app:
            await app.emit(Ordered(n=1))
            await begun.wait()
            raise AssertionError("of the test")
    assert anyio.current_time() - started < 20  # of a drain time of 30
    assert not app.tries


@pytest.mark.anyio
async def test_outcomes_are_those_after_middleware() -> None:
    router = Router(middlewares=[Filter(lambda ctx: ctx.event["n"] > 1)])
    seen: list[int] = []

    @router.handler(Ordered, ack_policy=ManualAck())
    async def handle(event: Event[Ordered]) -> None:
        seen.append(event.body.n)
        if event.body.n == 2:
            event.ack()
            raise ValueError("after it was settled")
        if event.body.n == 3 and event.meta.attempt == 1:
            event.nack(delay=1)
        else:
            event.ack()

    async with running(router) as app:
        for n in (1, 2, 3):
            await app.emit(Ordered(n=n))
            await app.idle()
    assert seen == [2, 3, 3]
    assert [type(one.error) for one in app.tries] == [type(None), type(None), Redeliver, type(None)]


@pytest.mark.anyio
async def test_events_that_no_handler_takes_are_told() -> None:
    async with running(router_of(_ignore)) as app:
        await app.emit(Ordered(n=1))
        await app.idle()
        assert repr(app) == "<Running: 1 tries succeeded, 0 failed>"
        await app.emit(Shipped(n=1))  # to a topic of no handler
    assert app.unhandled == [Shipped(n=1)]
    assert repr(app) == "<Running: 1 tries succeeded, 0 failed; no handler was called with Shipped>"


@pytest.mark.anyio
async def test_subscriptions_of_every_transport_are_served() -> None:
    seen: list[str] = []
    kafka = KafkaConsumer("kafka.invalid:9092", group_id="a")
    rabbit = RabbitMQConsumer("amqp://rabbit.invalid", queue="b")
    streams = RedisStreamConsumer("redis://redis.invalid", group_id="c")
    pubsub = RedisConsumer("redis://redis.invalid")
    dispatcher = EventDispatcher(kafka, rabbit, streams, pubsub)

    class OnKafka(EventBase):
        __route__ = KafkaEventRoute(topic="on.kafka")

    class OnRabbit(EventBase):
        __route__ = RabbitMQEventRoute(routing_key="on.rabbit", exchange="things")

    def note(name: str) -> Any:
        async def handle(event: Event[Any]) -> None:
            seen.append(name)

        return handle

    group = HandlerGroup(default_topic="portable")
    dispatcher.add_handler_group(group)
    group.handler()(note("portable"))
    dispatcher.handler(OnKafka)(note("kafka"))
    dispatcher.handler(KafkaEventSubscription(topic="on.{broker}"))(note("kafka pattern"))
    dispatcher.handler(RabbitMQEventSubscription(exchange="things", queue="q", routing_key="on.*"))(note("rabbit"))
    dispatcher.handler(RedisEventSubscription(channel="on.pubsub"))(note("pubsub"))
    dispatcher.handler(topic="only", consumer=streams)(note("one consumer"))
    handlers = list(dispatcher.handlers)
    async with running(dispatcher) as app:
        for event in (OnKafka(), OnRabbit()):
            await app.emit(event)
            await app.idle()
            seen.sort()
        assert seen == ["kafka", "kafka pattern", "kafka pattern", "rabbit", "rabbit"]
        seen.clear()
        for topic in ("on.pubsub", "only", "portable"):
            await app.publish(topic, b"{}")
            await app.idle()
    assert sorted(seen) == [
        "kafka pattern",
        "one consumer",
        "portable",
        "portable",
        "portable",
        "portable",
        "pubsub",
        "rabbit",
    ]
    assert dispatcher.handlers == handlers
    assert dispatcher.consumers == (kafka, rabbit, streams, pubsub)


@pytest.mark.anyio
async def test_what_the_broker_would_refuse_is_refused_here() -> None:
    dispatcher = EventDispatcher(RedisStreamConsumer("redis://redis.invalid", group_id="a"))

    @dispatcher.handler(topic="{any}.orders")
    async def handle(event: Event) -> None: ...

    with pytest.raises(RegistrationError, match="Redis Streams have none"):
        async with running(dispatcher):
            raise AssertionError("not reached")
    assert isinstance(dispatcher.consumers[0], RedisStreamConsumer)


@pytest.mark.anyio
async def test_at_most_once_stays_that() -> None:
    dispatcher = EventDispatcher(RedisConsumer("redis://redis.invalid"))
    seen: list[int] = []

    @dispatcher.handler(Ordered)
    async def handle(event: Event[Ordered]) -> None:
        seen.append(event.body.n)
        raise ValueError("lost")

    broker = MemoryBroker()
    async with running(dispatcher, broker, raise_failures=False) as app:
        await app.emit(Ordered(n=1))
    async with running(dispatcher, broker, raise_failures=False) as app:
        await app.emit(Ordered(n=2))
    assert seen == [1, 2]
    assert not app.dead_letters


@pytest.mark.anyio
async def test_codec_and_envelope_are_the_dispatcher_s() -> None:
    dispatcher = EventDispatcher(
        MemoryConsumer(MemoryBroker()), deserializer=MessagePackDeserializer(), envelope=ClassicEnvelope()
    )
    seen: list[int] = []

    @dispatcher.handler(Ordered)
    async def handle(event: Event[Ordered]) -> None:
        seen.append(event.body.n)

    async with running(dispatcher) as app:
        await app.emit(Ordered(n=1))
    assert seen == [1]


@pytest.mark.anyio
async def test_a_dispatcher_that_ends_with_an_error_ends_the_test_with_it() -> None:
    def broken(dispatcher: EventDispatcher) -> NoReturn:
        raise ZeroDivisionError

    dispatcher = EventDispatcher(MemoryConsumer(MemoryBroker()), on_lifespan=broken)
    dispatcher.handler(Ordered)(_ignore)
    with pytest.raises(ZeroDivisionError):
        async with running(dispatcher):
            raise AssertionError("not reached")
    assert dispatcher.health().state == "stopped"
    async with running(router_of(_ignore)) as app:
        app.dispatcher.request_stop()  # as a handler may
        await app.idle()


def router_of(handler: Any) -> Router:
    router = Router()
    router.handler(Ordered)(handler)
    return router


async def _ignore(event: Event[Ordered]) -> None: ...


@pytest.mark.anyio
async def test_refused_where_it_cannot_work() -> None:
    dispatcher = EventDispatcher(MemoryConsumer(MemoryBroker()))
    dispatcher.handler(Ordered)(_ignore)
    async with running(dispatcher):
        with pytest.raises(ConfigurationError, match="is started"):
            async with running(dispatcher):
                raise AssertionError("not reached")
        with pytest.raises(ConfigurationError, match="overriding"), overriding(dispatcher, {}):
            raise AssertionError("not reached")
    with pytest.raises(ConfigurationError, match=r"async with running\(...\)"), running_in_thread(dispatcher):
        raise AssertionError("not reached")
    with pytest.raises(ConfigurationError, match="takes a dispatcher"):
        async with running(MemoryBroker()):  # type: ignore[arg-type]
            raise AssertionError("not reached")


@pytest.mark.anyio
async def test_several_apps_on_one_broker() -> None:
    broker = MemoryBroker()
    emitter = RecordingEmitter(broker=broker)
    packing, seen = Router(), list[int]()

    @packing.handler(Ordered)
    async def pack(event: Event[Ordered]) -> None:
        await emitter.emit(Shipped(n=event.body.n))

    noting = EventDispatcher(MemoryConsumer(MemoryBroker(), group_id="noting"))

    @noting.handler(Shipped)
    async def note(event: Event[Shipped]) -> None:
        seen.append(event.body.n)

    async with running(noting, broker), running(packing, broker) as app:
        await app.emit(Ordered(n=1))
    assert seen == [1]


def test_overrides_are_restored() -> None:
    def real() -> int:
        return 1

    def other() -> int:
        return 2

    for kind in (EventDispatcher, sync.EventDispatcher):
        dispatcher = kind(MemoryConsumer(MemoryBroker()), dependency_overrides={real: other})
        overrides = dispatcher.dependency_overrides
        with pytest.raises(ZeroDivisionError), overriding(dispatcher, {real: real, other: real}):
            assert overrides == {real: real, other: real}
            raise ZeroDivisionError
        assert dispatcher.dependency_overrides is overrides
        assert overrides == {real: other}


def test_threads_may_look_while_it_runs() -> None:
    """A test of a blocking program may emit and look on from any thread."""
    router, attempts = failing(0, ValueError())
    with running_in_thread(router, backend="trio") as app:
        threads = [threading.Thread(target=app.emit, args=(Ordered(n=n),)) for n in range(8)]
        for thread in threads:
            thread.start()
        blocking_until(lambda: len(app.handled) == 8)
        for thread in threads:
            thread.join()
    assert attempts == [1] * 8


def test_a_failure_in_the_thread_fails_a_blocking_test() -> None:
    router, _ = failing(99, ValueError("a mistake"))
    with pytest.raises(ValueError, match="a mistake"), running_in_thread(router) as app:
        app.emit(Ordered(n=1))
    with pytest.raises(AssertionError, match="of the test"), running_in_thread(router):
        raise AssertionError("of the test")


def test_both_forms_have_the_same_names_and_parameters() -> None:
    def parameters(function: Any) -> list[tuple[str, Any, Any]]:
        return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]

    for name in ("emit", "publish", "idle"):
        assert parameters(getattr(Running, name)) == parameters(getattr(BlockingRunning, name)), name
    ours = parameters(running_in_thread)
    assert ours[: len(parameters(running))] == parameters(running)
    assert [name for name, _, _ in ours[len(parameters(running)) :]] == ["backend", "use_uvloop"]
