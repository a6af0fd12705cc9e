"""Handlers: which events reach which, what they are called with, where they run, and how many at once."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial, wraps
from typing import TYPE_CHECKING, Annotated, Any, Literal

import anyio
import anyio.lowlevel
import pytest
from pydantic import BaseModel
from typing_extensions import TypedDict

from dispytch import (
    Dependency,
    Event,
    EventBase,
    EventDispatcher,
    EventEmitter,
    EventSubscription,
    HandlerGroup,
    Router,
    SubscriptionParam,
)
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryEventRoute, MemoryEventSubscription, MemoryProducer
from tests import elsewhere
from tests.helpers import dispatcher_on, emit, errors, handle, publish, run, until

if TYPE_CHECKING:
    from decimal import Decimal as OnlyForTypeCheckers


class Order(BaseModel):
    number: int


class Paid(EventBase):
    __topic__ = "order.{number}.paid"
    __key__ = "{number}"
    number: int = 1


class Sent(EventBase):
    __topic__ = "orders"
    __key__ = "{key}"
    number: int = 1
    key: str | None = None


@dataclass
class OrderData:
    number: int


class OrderDict(TypedDict):
    number: int


# --- which events reach which handlers


@pytest.mark.anyio
async def test_a_handler_gets_the_events_of_its_topic_and_type(
    broker: MemoryBroker, dispatcher: EventDispatcher
) -> None:
    seen: list[tuple[str, str]] = []

    def register(name: str, *args: Any, **options: Any) -> None:
        async def note(event: Event) -> None:
            seen.append((name, event.meta.topic))

        dispatcher.handler(*args, **options)(note)

    register("class", Paid)
    register("topic", topic="order.{n}.paid")
    register("typed", topic="order.{n}.paid", event="Paid")
    register("other type", topic="order.{n}.paid", event="Lost")
    register("literal", topic="order.1.paid")
    register("star", topic="order.*.paid")
    register("many", topic="order.#")
    register("all", EventSubscription())
    register("narrowed", EventSubscription("order.#"), event="Paid")
    register("route", MemoryEventSubscription("order.1.paid", "Paid"))
    register("too short", topic="order.*")
    register("other separator", topic="order:*:paid")
    register("prefix", topic="order.1.pai")
    await handle(dispatcher, Paid(number=1))
    assert sorted(name for name, _ in seen) == sorted(
        ["class", "topic", "typed", "literal", "star", "many", "all", "narrowed", "route"]
    )
    assert dispatcher.health().state == "stopped"


@pytest.mark.anyio
async def test_an_event_without_a_type_reaches_only_handlers_without_one(
    broker: MemoryBroker, dispatcher: EventDispatcher
) -> None:
    seen: list[str] = []

    @dispatcher.handler(topic="orders", event="Sent")
    async def typed(event: Event[Order]) -> None:
        seen.append("typed")

    @dispatcher.handler(Sent)
    async def by_class(event: Event[Order]) -> None:
        seen.append("class")

    @dispatcher.handler(topic="orders")
    async def untyped(event: Event[Order]) -> None:
        assert event.meta.type is None
        seen.append("untyped")

    publish(broker, "orders", b'{"number": 1}')
    await run(dispatcher)
    assert errors(broker) == []
    assert seen == ["untyped"]


@pytest.mark.anyio
async def test_every_matching_handler_runs_at_the_same_time(broker: MemoryBroker) -> None:
    # given two handlers of which each waits for the other, and room for one event at a time
    dispatcher = dispatcher_on(broker, concurrency=1)
    first, second = anyio.Event(), anyio.Event()

    @dispatcher.handler(Sent)
    async def one() -> None:
        first.set()
        await second.wait()

    @dispatcher.handler(topic="orders")
    async def two() -> None:
        second.set()
        await first.wait()

    # when an event comes for both, then both finish
    await handle(dispatcher, Sent())
    assert first.is_set()
    assert second.is_set()


@pytest.mark.anyio
async def test_one_handler_s_failure_does_not_touch_the_other(
    broker: MemoryBroker, dispatcher: EventDispatcher
) -> None:
    seen: list[int] = []

    @dispatcher.handler(Sent)
    async def fails() -> None:
        raise OSError("broken")

    @dispatcher.handler(Sent)
    async def succeeds(event: Sent) -> None:
        await anyio.lowlevel.checkpoint()
        seen.append(event.number)

    await handle(dispatcher, Sent(number=7))
    assert seen == [7]
    assert errors(broker) == ["OSError: broken"]
    letter = broker.dead_letters[0].dead_letter
    assert letter is not None
    assert letter.handler is not None
    assert letter.handler.endswith("fails")


@pytest.mark.anyio
async def test_handlers_come_from_routers_groups_and_the_dispatcher(broker: MemoryBroker) -> None:
    dispatcher = dispatcher_on(broker)
    router, group = Router(), HandlerGroup(default_topic="orders", default_event="Sent")
    dispatcher.add_router(router)
    dispatcher.add_router(router)  # twice is once
    dispatcher.add_handler_group(group)
    seen: list[str] = []

    @router.handler(Sent)
    async def by_router() -> None:
        seen.append("router")

    @group.handler()
    async def by_group() -> None:
        seen.append("group")

    @group.handler(event="Other")
    async def by_group_other() -> None:
        seen.append("group, other")

    @group.handler("elsewhere")
    async def by_group_elsewhere() -> None:
        seen.append("group, elsewhere")

    @dispatcher.handler(Sent)
    async def own() -> None:
        seen.append("own")

    await handle(dispatcher, Sent())
    assert sorted(seen) == ["group", "own", "router"]


@pytest.mark.anyio
async def test_consumer_narrows(broker: MemoryBroker) -> None:
    other_broker = MemoryBroker()
    first, second = MemoryConsumer(broker), MemoryConsumer(other_broker)
    dispatcher = EventDispatcher(first, second)
    seen: list[str] = []

    @dispatcher.handler(Sent)
    async def both(event: Sent) -> None:
        seen.append(f"both {event.number}")

    @dispatcher.handler(Sent, consumer=second)
    async def one(event: Sent) -> None:
        seen.append(f"second {event.number}")

    await emit(broker, Sent(number=1))
    await emit(other_broker, Sent(number=2))
    await run(dispatcher)
    assert sorted(seen) == ["both 1", "both 2", "second 2"]


def test_decorators_return_the_function_unchanged(broker: MemoryBroker, dispatcher: EventDispatcher) -> None:
    async def handler(event: Event[Order]) -> str:
        return f"number {event.body.number}"

    registries: list[Any] = [dispatcher, Router(), HandlerGroup()]
    for registry in registries:
        assert registry.handler(topic="orders")(handler) is handler


# --- what handlers are called with


async def call(
    handler: Callable[..., Any],
    payload: bytes = b'{"number": 7}',
    topic: str = "orders",
    subscription: str | None = None,
    key: bytes | None = None,
) -> list[str]:
    """Calls a handler once with a payload; returns the errors of the dead letters."""
    broker = MemoryBroker()
    dispatcher = dispatcher_on(broker)
    dispatcher.handler(topic=subscription or topic)(handler)
    publish(broker, topic, payload, key=key)
    await run(dispatcher)
    return list(errors(broker))


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (Event[Order], Order(number=7)),
        (Event[OrderData], OrderData(7)),
        (Event[OrderDict], {"number": 7}),
        (Event[dict[str, int]], {"number": 7}),
        (Event[Any], {"number": 7}),
        (Event, {"number": 7}),
        (Event[Order | None], Order(number=7)),
        (Annotated[Event[Order], "a note"], Order(number=7)),
    ],
    ids=str,
)
async def test_bodies_of_any_type(annotation: Any, expected: Any) -> None:
    seen: list[Any] = []

    async def handler(event: Any) -> None:
        seen.append(event.body)

    handler.__annotations__["event"] = annotation
    assert await call(handler) == []
    assert seen == [expected]
    assert type(seen[0]) is type(expected)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("annotation", "payload", "expected"),
    [
        (Event[list[Order]], b'[{"number": 1}]', [Order(number=1)]),
        (Event[list[OrderDict]], b'[{"number": 1}]', [{"number": 1}]),
        (Event[int], b"5", 5),
        (Event[str], b'"text"', "text"),
        (Event[Any], b"[1, 2]", [1, 2]),
        (Event[Literal["a", "b"]], b'"b"', "b"),
        (Event[Order | list[int]], b"[1]", [1]),
        (Event[None], b"null", None),
    ],
    ids=str,
)
async def test_payloads_that_are_no_objects(annotation: Any, payload: bytes, expected: Any) -> None:
    seen: list[Any] = []

    async def handler(event: Any) -> None:
        seen.append(event.body)

    handler.__annotations__["event"] = annotation
    assert await call(handler, payload) == []
    assert seen == [expected]


@pytest.mark.anyio
async def test_a_bare_event_needs_an_object() -> None:
    async def handler(event: Event) -> None:
        raise AssertionError("not to be reached")

    (error,) = await call(handler, b"[1]")
    assert error.startswith("DecodeError")


@pytest.mark.anyio
async def test_an_eventbase_parameter_receives_the_body_itself(dispatcher: EventDispatcher) -> None:
    seen: list[Any] = []

    @dispatcher.handler(Paid)
    async def on_paid(paid: Paid, same: Paid, event: Event[Paid], noted: Annotated[Paid, "a note"]) -> None:
        assert isinstance(paid, Paid)
        assert paid is same is noted
        assert event.body == paid
        seen.append(paid)

    await handle(dispatcher, Paid(number=5))
    assert seen == [Paid(number=5)]


@pytest.mark.anyio
@pytest.mark.parametrize("payload", [b"", b"{", b"nonsense", b"\xff\xfe{", b'{"number": "x"}', b"[]", b"[" * 200_000])
async def test_what_does_not_fit_is_dead_lettered_at_once(payload: bytes) -> None:
    broker = MemoryBroker()
    dispatcher = dispatcher_on(broker, max_deliveries=5)

    @dispatcher.handler(topic="orders")
    async def handler(event: Event[Order]) -> None:
        raise AssertionError("not to be reached")

    publish(broker, "orders", payload, [("tenant", b"acme")], key=b"k")
    await run(dispatcher)
    (letter,) = broker.dead_letters
    assert letter.payload == payload
    assert letter.key == b"k"
    assert ("tenant", b"acme") in letter.headers
    assert letter.dead_letter is not None
    assert letter.dead_letter.attempts == 1
    assert letter.dead_letter.error.startswith("DecodeError")


@pytest.mark.anyio
async def test_the_error_names_places_not_values() -> None:
    async def handler(event: Event[Order]) -> None: ...

    (error,) = await call(handler, b'{"number": "hunter2"}')
    assert "Order" in error
    assert "number: " in error
    assert "hunter2" not in error


@pytest.mark.anyio
async def test_captured_segments_are_validated(broker: MemoryBroker, dispatcher: EventDispatcher) -> None:
    seen: list[Any] = []

    @dispatcher.handler(topic="order.{number}.{kind}")
    async def handler(
        number: Annotated[int, SubscriptionParam(gt=0)],
        what: Annotated[Literal["paid", "sent"], SubscriptionParam(alias="kind")],
        event: Event[Order],
        kind: str = SubscriptionParam(max_length=4),
    ) -> None:
        assert dict(event.meta.params) == {"number": str(number), "kind": kind}
        seen.append((number, what, kind))

    for topic in ("order.5.paid", "order.x.paid", "order.0.paid", "order.6.lost", "order.hunter2.sent"):
        publish(broker, topic, b'{"number": 1}')
    await run(dispatcher)
    assert seen == [(5, "paid", "paid")]
    assert len(errors(broker)) == 4
    assert all(error.startswith("DecodeError") for error in errors(broker))
    assert all(letter.dead_letter is not None and letter.dead_letter.attempts == 1 for letter in broker.dead_letters)
    assert any("'number'" in error and "handler" in error for error in errors(broker))
    assert not any("hunter2" in error for error in errors(broker))


@pytest.mark.anyio
async def test_captured_segments_of_an_event_class() -> None:
    broker = MemoryBroker()
    dispatcher = dispatcher_on(broker)
    seen: list[int] = []

    @dispatcher.handler(Paid)
    async def on_paid(number: Annotated[int, SubscriptionParam()]) -> None:
        seen.append(number)

    await handle(dispatcher, Paid(number=31))
    assert seen == [31]


@pytest.mark.anyio
async def test_an_own_delimiter_divides_patterns(broker: MemoryBroker) -> None:
    dispatcher = dispatcher_on(broker, route_delimiter="-")
    router = Router()
    dispatcher.add_router(router)
    seen: list[tuple[str, str, tuple[str, ...]]] = []

    @router.handler(topic="order-{number}-paid")
    async def on_paid(number: Annotated[str, SubscriptionParam()], event: Event[Any]) -> None:
        seen.append(("dispatcher's", number, ()))

    class Slashed(EventBase):
        __route__ = MemoryEventRoute("order/{number}", delimiter="/")
        number: str

    @router.handler(Slashed)
    async def on_slashed(number: Annotated[str, SubscriptionParam()]) -> None:
        seen.append(("route's", number, ()))

    publish(broker, "order-a.b-paid", b"{}")
    await handle(dispatcher, Slashed(number="a-b.c"))
    assert sorted(seen) == [("dispatcher's", "a.b", ()), ("route's", "a-b.c", ())]


@pytest.mark.anyio
async def test_defaults_are_left_alone() -> None:
    seen: list[Any] = []

    async def handler(event: Event[Order], limit: int = 5, *args: Any, flag: bool = False, **rest: Any) -> None:
        seen.append((event.body.number, limit, args, flag, rest))

    assert await call(handler) == []
    assert seen == [(7, 5, (), False, {})]


# --- annotations that are strings, as all in this module are


@pytest.mark.anyio
async def test_annotations_from_a_closure_and_the_decorating_frame(dispatcher: EventDispatcher) -> None:
    class Local(BaseModel):
        number: int

    class Other(BaseModel):
        number: int

    def service() -> str:
        return "the service"

    seen: list[Any] = []

    @dispatcher.handler(topic="orders")
    async def from_frame(event: Event[Local], used: Annotated[str, Dependency(service)]) -> None:
        seen.append((type(event.body), used))

    @dispatcher.handler(topic="orders")
    async def from_closure(event: Event[Other]) -> None:
        _ = Other  # makes it a variable of the closure
        seen.append(type(event.body))

    await handle(dispatcher, Sent())
    assert Counter(map(str, seen)) == Counter(map(str, [(Local, "the service"), Other]))


@pytest.mark.anyio
async def test_a_function_of_another_module_means_that_module_s_names(dispatcher: EventDispatcher) -> None:
    Order = int  # noqa: F841 - another thing of that name, in the frame that registers
    Settings = str  # noqa: F841
    elsewhere.seen.clear()
    dispatcher.handler(topic="orders")(elsewhere.on_order)
    await handle(dispatcher, Sent(number=3))
    assert elsewhere.seen == [(elsewhere.Order(number=3), elsewhere.Settings("default"))]


@pytest.mark.anyio
async def test_a_default_excuses_an_annotation_that_cannot_be_read() -> None:
    async def handler(event: Event[Order], price: OnlyForTypeCheckers | None = None) -> None: ...

    assert await call(handler) == []


# --- what can be a handler


class Service:
    def __init__(self) -> None:
        self.seen: list[int] = []

    async def method(self, event: Event[Order]) -> None:
        self.seen.append(event.body.number)

    def plain_method(self, event: Event[Order]) -> None:
        self.seen.append(event.body.number)

    @classmethod
    async def class_method(cls, event: Event[Order]) -> None:
        CLASS_SEEN.append(event.body.number)

    @staticmethod
    async def static_method(event: Event[Order]) -> None:
        CLASS_SEEN.append(event.body.number)

    async def __call__(self, event: Event[Order]) -> None:
        self.seen.append(event.body.number)


class PlainCallable(Service):
    def __call__(self, event: Event[Order]) -> None:  # type: ignore[override]  # a plain one
        self.seen.append(event.body.number)


CLASS_SEEN: list[int] = []


class Process:
    """A class as a handler: an instance is made for each event."""

    def __init__(self, event: Event[Order]) -> None:
        CLASS_SEEN.append(event.body.number)


@dataclass
class ProcessData:
    event: Event[Order]

    def __post_init__(self) -> None:
        CLASS_SEEN.append(self.event.body.number)


async def with_more(prefix: str, event: Event[Order], suffix: str) -> None:
    CLASS_SEEN.append(event.body.number)
    assert (prefix, suffix) == ("a", "b")


def decorated(func: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(func)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await func(*args, **kwargs)

    return wrapper


def decorated_by_name(func: Callable[..., Any]) -> Callable[..., Any]:
    """The signature is that of what it wraps, though it takes nothing by place itself."""

    @wraps(func)
    async def wrapper(**kwargs: Any) -> Any:
        return await func(**kwargs)

    return wrapper


@decorated_by_name
async def under_a_decorator_by_name(event: Event[Order]) -> None:
    CLASS_SEEN.append(event.body.number)


@decorated
async def under_a_decorator(event: Event[Order]) -> None:
    CLASS_SEEN.append(event.body.number)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "make",
    [
        lambda service: service.method,
        lambda service: service.plain_method,
        lambda service: service,
        lambda service: partial(service.method),
        lambda service: partial(service),
        lambda service: Service.class_method,
        lambda service: Service.static_method,
        lambda service: Service.__dict__["static_method"],
        lambda service: PlainCallable.__call__.__get__(service),
        lambda service: partial(with_more, "a", suffix="b"),
        lambda service: partial(partial(with_more, suffix="b"), "a"),
        lambda service: Process,
        lambda service: ProcessData,
        lambda service: under_a_decorator,
        lambda service: under_a_decorator_by_name,
    ],
    ids=[
        "method",
        "plain method",
        "callable object",
        "partial of a method",
        "partial of a callable object",
        "class method",
        "static method",
        "static method before it is bound",
        "bound by hand",
        "partial",
        "partial of a partial",
        "class",
        "dataclass",
        "decorated",
        "decorated, by name only",
    ],
)
async def test_any_callable_can_be_a_handler(make: Callable[[Service], Any]) -> None:
    service = Service()
    CLASS_SEEN.clear()
    assert await call(make(service)) == []
    assert service.seen + CLASS_SEEN == [7]


@pytest.mark.anyio
async def test_what_a_partial_binds_is_not_filled_again() -> None:
    seen: list[Any] = []

    def get_service() -> str:
        raise AssertionError("not to be called")

    async def handler(event: Event[Order], service: Annotated[str, Dependency(get_service)]) -> None:
        seen.append(service)

    handler.__annotations__["service"] = Annotated[str, Dependency(get_service)]
    assert await call(partial(handler, service="bound")) == []
    assert seen == ["bound"]


# --- plain functions


number_var: ContextVar[str] = ContextVar("number_var", default="unset")


@pytest.mark.anyio
async def test_def_handlers_run_in_worker_threads_with_the_context(dispatcher: EventDispatcher) -> None:
    seen: list[Any] = []
    here = threading.get_ident()

    @dispatcher.handler(Sent)
    def on_sent(event: Event[Sent]) -> None:
        seen.append((threading.get_ident() != here, number_var.get()))
        number_var.set("changed")

    number_var.set("outside")
    await handle(dispatcher, Sent(), Sent())
    assert seen == [(True, "outside")] * 2
    assert number_var.get() == "outside"


@pytest.mark.anyio
async def test_as_many_threads_as_concurrency(broker: MemoryBroker) -> None:
    dispatcher = dispatcher_on(broker, concurrency=60)
    barrier = threading.Barrier(60, timeout=10)  # more than the default of a loop's own threads

    @dispatcher.handler(Sent)
    def on_sent() -> None:
        barrier.wait()

    await handle(dispatcher, *(Sent() for _ in range(60)))
    assert errors(broker) == []


@pytest.mark.anyio
async def test_a_coroutine_out_of_a_plain_function_is_a_failure_not_a_success() -> None:
    async def inner() -> None:
        raise AssertionError("not to be reached")

    def handler(event: Event[Order]) -> Any:
        return inner()

    (error,) = await call(handler)
    assert "TypeError" in error
    assert "async def" in error


@pytest.mark.anyio
async def test_failures_of_def_handlers_arrive_as_they_were_raised() -> None:
    def handler(event: Event[Order]) -> None:
        raise LookupError("not there")

    assert await call(handler) == ["LookupError: not there"]


# --- null payloads, and events that nobody takes


@pytest.mark.anyio
async def test_null_reaches_those_who_take_none_and_is_skipped_otherwise(broker: MemoryBroker) -> None:
    dispatcher = dispatcher_on(broker)
    seen: list[Any] = []

    @dispatcher.handler(topic="compacted")
    async def takes_none(event: Event[Order | None]) -> None:
        seen.append((event.body, event.meta.key))

    @dispatcher.handler(topic="compacted")
    async def takes_orders(event: Event[Order]) -> None:
        raise AssertionError("not to be reached")

    @dispatcher.handler(topic="other")
    async def bare(event: Event) -> None:
        raise AssertionError("not to be reached")

    publish(broker, "compacted", None, key=b"k")
    publish(broker, "other", None)
    async with dispatcher.lifespan():
        await dispatcher.idle()
        assert dispatcher.health().skipped_null == 1
        assert dispatcher.health().unhandled == 0
    assert seen == [(None, "k")]
    assert errors(broker) == []


@pytest.mark.anyio
async def test_what_nobody_takes_is_acknowledged_and_counted(broker: MemoryBroker) -> None:
    dispatcher = dispatcher_on(broker)

    @dispatcher.handler(topic="orders", event="Other")
    async def on_other() -> None:
        raise AssertionError("not to be reached")

    await emit(broker, Sent(), Sent())
    async with dispatcher.lifespan():
        await dispatcher.idle()
        assert dispatcher.health().unhandled == 2
        assert dispatcher.health().handled == 0
    assert broker.dead_letters == []
    # and it does not come again
    async with dispatcher.lifespan():
        await dispatcher.idle()
        assert dispatcher.health().unhandled == 0


@pytest.mark.anyio
async def test_what_nobody_takes_can_be_dead_lettered(broker: MemoryBroker) -> None:
    dispatcher = dispatcher_on(broker, on_unhandled="dead_letter")

    @dispatcher.handler(topic="orders", event="Other")
    async def on_other() -> None:
        raise AssertionError("not to be reached")

    await handle(dispatcher, Sent())
    (letter,) = broker.dead_letters
    assert letter.topic == "orders.default.dead"
    assert letter.dead_letter is not None
    assert "'Sent'" in letter.dead_letter.error
    assert letter.dead_letter.handler is None


# --- how many at once, and in which order


class Gauge:
    """How many are inside at once."""

    def __init__(self) -> None:
        self.inside = 0
        self.most = 0
        self.entered = 0

    async def __aenter__(self) -> None:
        self.inside += 1
        self.entered += 1
        self.most = max(self.most, self.inside)
        for _ in range(5):  # others would come in now
            await anyio.lowlevel.checkpoint()

    async def __aexit__(self, *details: Any) -> None:
        self.inside -= 1


@pytest.mark.anyio
async def test_concurrency_bounds_the_events_in_flight(broker: MemoryBroker) -> None:
    dispatcher = dispatcher_on(broker, concurrency=7)
    gauge = Gauge()

    @dispatcher.handler(Sent)
    async def on_sent() -> None:
        async with gauge:
            assert dispatcher.health().in_flight <= 7

    await handle(dispatcher, *(Sent(number=number) for number in range(50)))
    assert errors(broker) == []
    assert (gauge.most, gauge.entered) == (7, 50)


@pytest.mark.anyio
async def test_a_handler_can_be_bounded_on_its_own(broker: MemoryBroker) -> None:
    dispatcher = dispatcher_on(broker, concurrency=20)
    narrow, wide = Gauge(), Gauge()

    @dispatcher.handler(Sent, concurrency=3)
    async def on_sent() -> None:
        async with narrow:
            pass

    @dispatcher.handler(topic="others")
    async def on_other(event: Event[Any]) -> None:
        async with wide:
            pass

    for _ in range(30):
        publish(broker, "others", b"{}")
    await handle(dispatcher, *(Sent(number=number) for number in range(30)))
    assert (narrow.most, narrow.entered) == (3, 30)
    assert wide.entered == 30
    assert wide.most > 3


async def overtaking(broker: MemoryBroker, keys: list[str | None], **options: Any) -> list[tuple[str | None, int]]:
    """The first event waits until the others are done or cannot start; the order in which they were done."""
    dispatcher = dispatcher_on(broker, **options)
    done: list[tuple[str | None, int]] = []
    release = anyio.Event()

    @dispatcher.handler(Sent)
    async def on_sent(event: Sent) -> None:
        if event.number == 0:
            await release.wait()
        done.append((event.key, event.number))

    await emit(broker, *(Sent(number=number, key=key) for number, key in enumerate(keys)))
    with anyio.fail_after(10):
        async with dispatcher.lifespan():
            expected = -1
            while len(done) != expected:  # until nothing more happens
                expected = len(done)
                for _ in range(50):
                    await anyio.lowlevel.checkpoint()
            release.set()
            await dispatcher.idle()
    return done


@pytest.mark.anyio
async def test_events_of_a_key_wait_for_each_other(broker: MemoryBroker) -> None:
    done = await overtaking(broker, ["a", "b", "a", None, "b", "a"])
    assert [item for item in done if item[0] == "a"] == [("a", 0), ("a", 2), ("a", 5)]
    assert [item for item in done if item[0] == "b"] == [("b", 1), ("b", 4)]
    assert set(done[:3]) == {("b", 1), (None, 3), ("b", 4)}  # none of them waits for "a"


@pytest.mark.anyio
async def test_events_without_a_key_do_not_wait(broker: MemoryBroker) -> None:
    done = await overtaking(broker, [None, None, None])
    assert sorted(done[:2], key=str) == [(None, 1), (None, 2)]
    assert done[2] == (None, 0)


@pytest.mark.anyio
async def test_without_ordering_nothing_waits(broker: MemoryBroker) -> None:
    done = await overtaking(broker, ["a", "a", "a"], ordering="none")
    assert done[-1] == ("a", 0)
    assert sorted(done[:2]) == [("a", 1), ("a", 2)]


@pytest.mark.anyio
async def test_a_partition_is_handled_in_order(broker: MemoryBroker) -> None:
    done = await overtaking(broker, ["a", "b", None, "c"], ordering="partition")
    assert done == [("a", 0), ("b", 1), (None, 2), ("c", 3)]


@pytest.mark.anyio
async def test_a_key_waits_through_the_retries_of_its_first_event(broker: MemoryBroker) -> None:
    dispatcher = dispatcher_on(broker, max_deliveries=3)
    order: list[tuple[int, int]] = []

    @dispatcher.handler(Sent)
    async def on_sent(event: Event[Sent]) -> None:
        order.append((event.body.number, event.meta.attempt))
        if event.body.number == 0 and event.meta.attempt < 3:
            raise OSError

    await handle(dispatcher, *(Sent(number=number, key="a") for number in range(3)))
    assert order == [(0, 1), (0, 2), (0, 3), (1, 1), (2, 1)]


# --- dead letters are no ordinary topics


@pytest.mark.anyio
async def test_wildcards_never_match_a_dead_letter_topic(broker: MemoryBroker) -> None:
    dispatcher = dispatcher_on(broker)
    other_group = dispatcher_on(broker, group_id="audit")
    seen: list[tuple[str, str]] = []

    @dispatcher.handler(Sent)
    async def fails(event: Sent) -> None:
        raise OSError("broken")

    @dispatcher.handler(topic="#")
    async def everything(event: Event[Any]) -> None:
        seen.append(("everything", event.meta.topic))

    @dispatcher.handler(topic="orders.default.dead")
    async def by_name(event: Event[Any]) -> None:
        assert event.meta.dead_letter is not None
        assert event.meta.dead_letter.error == "OSError: broken"
        assert event.meta.dead_letter.source == "orders"
        seen.append(("by name", event.meta.topic))

    for topic in ("#", "orders.*.dead", "{a}.{b}.dead"):

        @other_group.handler(topic=topic)
        async def audit(event: Event[Any]) -> None:
            seen.append(("audit", event.meta.topic))

    await handle(dispatcher, Sent())
    await run(other_group)
    assert sorted(seen) == [("audit", "orders"), ("by name", "orders.default.dead"), ("everything", "orders")]


# --- plain calls, as in a unit test


@pytest.mark.anyio
async def test_handlers_can_be_called_by_hand(dispatcher: EventDispatcher) -> None:
    @dispatcher.handler(Sent)
    async def double(event: Event[Sent]) -> int:
        return event.body.number * 2

    assert await double(Event(Sent(number=4))) == 8


@pytest.mark.anyio
async def test_an_event_emitted_by_a_handler_is_handled_in_turn(broker: MemoryBroker) -> None:
    dispatcher = dispatcher_on(broker)
    emitter = EventEmitter(MemoryProducer(broker))
    done = anyio.Event()

    @dispatcher.handler(Sent)
    async def on_sent(event: Sent) -> None:
        await emitter.emit(Paid(number=event.number))

    @dispatcher.handler(Paid)
    async def on_paid(event: Paid) -> None:
        assert event.number == 9
        done.set()

    await handle(dispatcher, Sent(number=9))
    await until(done.is_set)


@pytest.mark.anyio
async def test_handlers_of_the_same_name_have_failures_of_their_own() -> None:
    broker = MemoryBroker()
    dispatcher = EventDispatcher(MemoryConsumer(broker), max_deliveries=3)
    attempts: list[list[int]] = [[], []]
    for number in range(2):

        async def handle(event: Event[Any], number: int = number) -> None:
            attempts[number].append(event.meta.attempt)
            if len(attempts[number]) < 3:
                raise OSError("twice each")

        dispatcher.handler(topic="same.name")(handle)

    class Same(EventBase):
        __topic__ = "same.name"

    async with EventEmitter(MemoryProducer(broker)) as emitter, dispatcher.lifespan():
        await emitter.emit(Same())
        await dispatcher.idle()
    assert attempts == [[1, 2, 3], [1, 2, 3]]
    assert not broker.dead_letters
