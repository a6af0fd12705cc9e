"""Mistakes are told where they are made: which handler, which parameter, and what to write instead."""

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, cast

import pytest

from dispytch import (
    Dependency,
    Event,
    EventBase,
    EventDispatcher,
    EventEmitter,
    EventRoute,
    EventSubscription,
    HandlerGroup,
    Router,
    SubscriptionParam,
    producer_from_url,
)
from dispytch.ack import AckAfterProcessing, AckBeforeProcessing
from dispytch.errors import ConfigurationError, RegistrationError
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryEventSubscription, MemoryProducer
from dispytch.middleware import AsyncLock, ExceptionInterceptor, ExponentialBackoffWithFullJitter, Retry, Timeout
from dispytch.serialization import BareEnvelope, JSONDeserializer, JSONSerializer
from dispytch.sync import EventDispatcher as BlockingDispatcher
from dispytch.sync import EventEmitter as BlockingEmitter
from tests.helpers import dispatcher_on, run

if TYPE_CHECKING:
    from decimal import Decimal as Unknown


class Sent(EventBase):
    __topic__ = "sent.{number}"
    number: int = 1


class Service: ...


def register(func: Any, *args: Any, **options: Any) -> str:
    """The error of a registration on a router."""
    if not args:
        options.setdefault("topic", "sent.{number}")
    with pytest.raises(RegistrationError) as caught:
        Router().handler(*args, **options)(func)
    return str(caught.value)


# --- parameters


async def unannotated(event) -> None: ...  # type: ignore[no-untyped-def]  # the mistake under test


async def unfillable(event: Event[Any], service: Service) -> None: ...


async def positional_only(event: Event[Any], /) -> None: ...


async def captured_by_nothing(order_id: Annotated[int, SubscriptionParam()]) -> None: ...


async def captured_by_nothing_as_default(order_id: int = SubscriptionParam()) -> None: ...


async def unreadable(event: "Event[Unknown]") -> None: ...


async def misspelt(event: "Evnt[Any]") -> None: ...  # type: ignore[name-defined]  # noqa: F821 - the mistake under test


async def optional_event(event: Event[Any] | None) -> None: ...


async def two_markers(x: Annotated[int, SubscriptionParam(), Dependency(Service)]) -> None: ...


async def dependency_not_called(service: Annotated[Service, Dependency]) -> None: ...


async def dependency_not_called_as_default(service: Any = Dependency) -> None: ...


async def segment_not_called(number: Annotated[int, SubscriptionParam]) -> None: ...


async def no_schema(event: Event[Service]) -> None: ...


async def no_segment(number: Annotated[Service, SubscriptionParam()]) -> None: ...


@pytest.mark.parametrize(
    ("func", "parameter", "advice"),
    [
        (unannotated, "event", "annotate it with Event[...]"),
        (unfillable, "service", "Annotated[..., Dependency(...)]"),
        (positional_only, "event", "remove the '/'"),
        (captured_by_nothing, "order_id", "write {order_id} in the pattern"),
        (captured_by_nothing_as_default, "order_id", "write {order_id} in the pattern"),
        (unreadable, "event", "not under TYPE_CHECKING alone"),
        (misspelt, "event", "Evnt"),
        (optional_event, "event", "annotate it with Event[...]"),
        (two_markers, "x", "keep one"),
        (dependency_not_called, "service", "write Dependency(provider)"),
        (dependency_not_called_as_default, "service", "write Dependency(provider)"),
        (segment_not_called, "number", "write SubscriptionParam()"),
        (no_schema, "event", "Service"),
        (no_segment, "number", "Service"),
    ],
)
def test_a_parameter_that_cannot_be_filled(func: Callable[..., Any], parameter: str, advice: str) -> None:
    error = register(func)
    assert f"tests.test_registration_errors.{func.__name__}" in error
    assert repr(parameter) in error
    assert advice in error


def test_a_provider_s_parameter_is_named_with_its_provider_and_the_handler() -> None:
    def get_service(url: str) -> Service:
        return Service()

    async def handler(service: Annotated[Service, Dependency(get_service)]) -> None: ...

    error = register(handler)
    assert "get_service" in error
    assert "'url'" in error
    assert "handler" in error
    assert "'service'" in error


def test_a_provider_s_segment_must_be_captured_too() -> None:
    def get_tenant(tenant: Annotated[str, SubscriptionParam()]) -> str:
        return tenant

    async def handler(tenant: Annotated[str, Dependency(get_tenant)]) -> None: ...

    error = register(handler)
    assert "'tenant'" in error
    assert "captures number" in error


def test_an_event_class_without_a_placeholder_captures_nothing() -> None:
    class Plain(EventBase):
        __topic__ = "plain"

    error = register(captured_by_nothing, Plain)
    assert "captures nothing" in error


# --- dependencies


def chicken(egg: Annotated[str, Dependency(lambda: None)]) -> str:
    return egg


def egg(chicken: Annotated[str, Dependency(chicken)]) -> str:
    return chicken


chicken.__annotations__["egg"] = Annotated[str, Dependency(egg)]


@pytest.mark.parametrize("scope", ["event", "app"])
def test_a_cycle_is_drawn(scope: Any) -> None:
    async def handler(service: Annotated[str, Dependency(chicken, scope=scope)]) -> None: ...

    error = register(handler)
    assert "handler" in error
    assert "'service'" in error
    assert "chicken -> tests.test_registration_errors.egg -> tests.test_registration_errors.chicken" in error
    assert "break it" in error


@pytest.mark.parametrize("provider", [Service(), None, "get_service"])
def test_a_dependency_must_be_callable(provider: Any) -> None:
    with pytest.raises(RegistrationError, match="pass the provider without calling it"):
        Dependency(provider)


def test_a_dependency_must_be_hashable() -> None:
    @dataclass
    class Provider:
        def __call__(self) -> int:
            return 1

    with pytest.raises(RegistrationError, match=r"Provider.*hash"):
        Dependency(Provider())


def test_a_dependency_has_one_of_two_scopes() -> None:
    with pytest.raises(RegistrationError, match="'event' or 'app'"):
        Dependency(Service, scope="request")  # type: ignore[arg-type]  # the mistake under test


def of_event(event: Event[Any]) -> str:
    return event.meta.id


def of_body(body: Sent) -> int:
    return body.number


def of_segment(number: Annotated[int, SubscriptionParam()]) -> int:
    return number


def of_another(of: Annotated[Any, Dependency(of_event)]) -> Any:
    return of


@pytest.mark.parametrize("provider", [of_event, of_body, of_segment, of_another])
def test_an_application_s_dependency_cannot_depend_on_an_event(provider: Callable[..., Any]) -> None:
    async def handler(service: Annotated[Any, Dependency(provider, scope="app")]) -> None: ...

    error = register(handler)
    assert "scope='app'" in error
    assert "use scope='event'" in error
    assert "handler" in error
    assert "'service'" in error


# --- functions and middleware


def generator(event: Event[Any]) -> Iterator[int]:
    yield 1


async def async_generator(event: Event[Any]) -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize("func", [generator, async_generator])
def test_a_handler_does_not_yield(func: Callable[..., Any]) -> None:
    error = register(func)
    assert func.__name__ in error
    assert "only dependencies may yield" in error


@pytest.mark.parametrize("func", [None, 5, "handler"])
def test_a_handler_is_callable(func: Any) -> None:
    assert "must be callable" in register(func)


async def fine(event: Event[Any]) -> None: ...


def plain(event: Event[Any]) -> None: ...


@pytest.mark.parametrize("middleware", [lambda ctx: True, AsyncLock, object()])
def test_what_is_no_middleware(middleware: Any) -> None:
    error = register(fine, topic="t", middlewares=[middleware])
    assert "fine" in error
    assert "not a middleware instance" in error
    with pytest.raises(RegistrationError, match=r"Router.*not a middleware"):
        Router(middlewares=[middleware])
    with pytest.raises(RegistrationError, match=r"EventDispatcher.*not a middleware"):
        dispatcher_on(MemoryBroker(), middlewares=[middleware])


def test_a_middleware_class_needs_its_parentheses() -> None:
    assert "parentheses" in register(fine, topic="t", middlewares=[AsyncLock])


def test_one_middleware_is_a_list_of_one() -> None:
    assert "middlewares=[AsyncLock" in register(fine, topic="t", middlewares=AsyncLock())


def test_a_timeout_cannot_work_on_a_plain_function() -> None:
    error = register(plain, topic="t", middlewares=[Timeout(1)])
    assert "plain" in error
    assert "Timeout" in error
    assert "make it async" in error


ANY: Any = lambda value: value  # noqa: E731 - hides a mistake under test from type checkers


@pytest.mark.parametrize(
    "make",
    [
        lambda: Timeout(0),
        lambda: AsyncLock(concurrency_limit=0),
        lambda: Retry(ANY(3)),
        lambda: Retry(ANY(ExponentialBackoffWithFullJitter)),
        lambda: ExponentialBackoffWithFullJitter(retries=-1),
        lambda: ExponentialBackoffWithFullJitter(base_delay_sec=-1),
        lambda: ExponentialBackoffWithFullJitter(retry_on=ANY(OSError)),
        lambda: ExponentialBackoffWithFullJitter(retry_on=ANY(["OSError"])),
        lambda: ExceptionInterceptor(ANY({"OSError": print})),
        lambda: ExceptionInterceptor(ANY({KeyboardInterrupt: print})),
    ],
)
def test_middleware_checks_what_it_is_given(make: Callable[[], Any]) -> None:
    with pytest.raises(ConfigurationError):
        make()


# --- subscriptions


@pytest.mark.parametrize(
    ("topic", "advice"),
    [
        ("", "'#' for every address"),
        ("a.{b", "do not pair up"),
        ("a.b}", "do not pair up"),
        ("a.{}", "write '{name}'"),
        ("a.{b c}", "write '{b_c}'"),
        ("{a}.{a}", "name each placeholder differently"),
    ],
)
@pytest.mark.parametrize("registry", ["router", "group", "dispatcher"])
def test_a_bad_pattern(registry: str, topic: str, advice: str) -> None:
    registries: dict[str, Any] = {
        "router": Router(),
        "group": HandlerGroup(),
        "dispatcher": dispatcher_on(MemoryBroker()),
    }
    with pytest.raises(RegistrationError) as caught:
        registries[registry].handler(topic=topic)(fine)
    assert "fine" in str(caught.value)
    assert advice in str(caught.value)


@pytest.mark.anyio
@pytest.mark.parametrize("topic", ["order-{id}", "a.b*", "x#"])
async def test_a_pattern_that_depends_on_the_delimiter_fails_when_that_is_known(topic: str) -> None:
    async def handler(event: Event[Any]) -> None: ...

    dispatcher = dispatcher_on(MemoryBroker())
    with pytest.raises(RegistrationError, match=r"handler.*only a part of the segment"):
        dispatcher.handler(topic=topic)(handler)
    router = Router()
    router.handler(topic=topic)(handler)
    dispatcher.add_router(router)
    with pytest.raises(RegistrationError, match=r"handler.*only a part of the segment"):
        await dispatcher.start()


def test_a_handler_says_what_it_handles() -> None:
    with pytest.raises(RegistrationError, match=r"fine: say what it handles"):
        Router().handler()(fine)
    assert "for a topic write topic='orders'" in register(fine, "orders")
    assert "neither a subscription nor an event class" in register(fine, Service)
    assert "not both" in register(fine, Sent, topic="orders")
    with pytest.raises(RegistrationError, match="no topic"):
        HandlerGroup().handler()(fine)


@pytest.mark.parametrize("registry", [Router(), HandlerGroup(default_topic="t"), dispatcher_on(MemoryBroker())])
def test_the_decorator_needs_its_parentheses(registry: Any) -> None:
    with pytest.raises(RegistrationError, match=r"fine.*with parentheses"):
        registry.handler(fine)


def test_a_topic_and_a_type_are_strings() -> None:
    error = register(fine, topic=Sent)
    assert "fine: topic= is a string" in error
    assert "Sent" in error
    assert "fine: event= is the name of a type" in register(fine, topic="t", event=Sent)


def test_an_event_class_without_a_route_cannot_be_listened_to() -> None:
    class Nowhere(EventBase): ...

    assert "Nowhere has no __topic__" in register(fine, Nowhere)


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"concurrency": 0}, "at least 1"),
        ({"ack_policy": AckAfterProcessing}, "AckAfterProcessing()"),
        ({"ack_policy": "after"}, "AckAfterProcessing()"),
    ],
)
def test_options_of_a_handler(options: dict[str, Any], advice: str) -> None:
    error = register(fine, topic="t", **options)
    assert "fine" in error
    assert advice in error


# --- what only the dispatcher as a whole can tell, before anything starts


class OtherSubscription(EventSubscription):
    transport: ClassVar[str | None] = "other"


class OtherRoute(EventRoute):
    delimiter = None
    address = "t"


async def start(dispatcher: EventDispatcher) -> str:
    with pytest.raises(ConfigurationError) as caught:
        await dispatcher.start()
    assert dispatcher.health().state == "stopped"
    return str(caught.value)


@pytest.mark.anyio
async def test_a_subscription_that_no_consumer_can_serve() -> None:
    dispatcher = dispatcher_on(MemoryBroker())
    dispatcher.handler(topic="t")(fine)
    dispatcher.handler(OtherSubscription("t"))(fine)
    error = await start(dispatcher)
    assert "fine" in error
    assert "no consumer of the dispatcher (MemoryConsumer) can serve" in error
    assert "use topic=" in error


@pytest.mark.anyio
async def test_the_only_handler_is_for_another_transport() -> None:
    dispatcher = dispatcher_on(MemoryBroker())
    dispatcher.handler(OtherSubscription("t"))(fine)
    assert "fine: no consumer of the dispatcher (MemoryConsumer) can serve" in await start(dispatcher)


@pytest.mark.anyio
async def test_a_handler_that_comes_after_the_start() -> None:
    dispatcher, router = dispatcher_on(MemoryBroker()), Router()
    dispatcher.handler(topic="t")(fine)
    async with dispatcher.lifespan():
        with pytest.raises(RegistrationError, match=r"fine comes too late"):
            dispatcher.handler(topic="u")(fine)
        with pytest.raises(ConfigurationError, match="add routers before"):
            dispatcher.add_router(router)
    dispatcher.handler(topic="u")(fine)
    dispatcher.add_router(router)


def test_a_handler_that_comes_after_the_start_in_blocking_code() -> None:
    dispatcher = BlockingDispatcher(MemoryConsumer(MemoryBroker()))
    dispatcher.handler(topic="t")(fine)
    with dispatcher, pytest.raises(RegistrationError, match=r"fine comes too late"):
        dispatcher.handler(topic="u")(fine)


@pytest.mark.anyio
async def test_a_consumer_that_is_not_the_dispatcher_s() -> None:
    dispatcher = dispatcher_on(MemoryBroker())
    dispatcher.handler(topic="t", consumer=MemoryConsumer(MemoryBroker()))(fine)
    assert "its consumer= is not one of the dispatcher's consumers" in await start(dispatcher)


@pytest.mark.anyio
async def test_a_dispatcher_without_handlers() -> None:
    assert "no handler is registered" in await start(dispatcher_on(MemoryBroker()))


@pytest.mark.anyio
async def test_a_consumer_without_handlers() -> None:
    first, second = MemoryConsumer(MemoryBroker()), MemoryConsumer(MemoryBroker())
    dispatcher = EventDispatcher(first, second)
    dispatcher.handler(topic="t", consumer=first)(fine)
    assert "no handler is for the consumer MemoryConsumer; leave it out" in await start(dispatcher)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("first", "second"),
    [("orders.new", "orders.new"), ("orders.*", "orders.{x}"), ("orders.new", "#"), ("orders.#", "orders.*.x")],
)
async def test_overlapping_subscriptions_acknowledge_at_the_same_time(first: str, second: str) -> None:
    async def one(event: Event[Any]) -> None: ...

    async def two(event: Event[Any]) -> None: ...

    dispatcher = dispatcher_on(MemoryBroker())
    dispatcher.handler(topic=first)(one)
    dispatcher.handler(topic=second, ack_policy=AckBeforeProcessing())(two)
    error = await start(dispatcher)
    assert "one" in error
    assert "two" in error
    assert "give both the same ack_policy" in error


@pytest.mark.anyio
async def test_subscriptions_that_do_not_overlap_may_differ() -> None:
    dispatcher = dispatcher_on(MemoryBroker())
    dispatcher.handler(topic="orders.new")(fine)
    dispatcher.handler(topic="orders.old", ack_policy=AckBeforeProcessing())(fine)
    await run(dispatcher)


@pytest.mark.anyio
async def test_a_dead_letter_destination_that_the_transport_cannot_write() -> None:
    dispatcher = dispatcher_on(MemoryBroker())
    dispatcher.handler(topic="t", dead_letter=OtherRoute())(fine)
    assert "cannot write dead letters to" in await start(dispatcher)


@pytest.mark.anyio
async def test_an_override_is_checked_when_it_is_known() -> None:
    def get() -> int:
        return 1

    def other(order_id: Annotated[int, SubscriptionParam()]) -> int:
        return order_id

    async def handler(number: Annotated[int, Dependency(get)]) -> None: ...

    dispatcher = dispatcher_on(MemoryBroker(), dependency_overrides={get: other})
    dispatcher.handler(topic="t")(handler)
    error = await start(dispatcher)
    assert "handler" in error
    assert "'order_id'" in error


# --- dispatchers and emitters


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"concurrency": 0}, "at least 1"),
        ({"max_deliveries": 0}, "at least 1"),
        ({"drain_timeout": -1}, "cannot be negative"),
        ({"ordering": "topic"}, "'key', 'partition' or 'none'"),
        ({"on_unhandled": "drop"}, "'ack' or 'dead_letter'"),
        ({"route_delimiter": ""}, "at least one character"),
        ({"route_delimiter": "*"}, "none of"),
        ({"default_ack_policy": "after"}, "AckAfterProcessing()"),
        ({"default_ack_policy": AckAfterProcessing}, "AckAfterProcessing()"),
        ({"deserializer": JSONDeserializer}, "JSONDeserializer()"),
        ({"envelope": BareEnvelope}, "CloudEventsEnvelope()"),
    ],
)
def test_options_of_a_dispatcher(options: dict[str, Any], advice: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        dispatcher_on(MemoryBroker(), **options)
    assert advice in str(caught.value)


def test_uvloop_is_no_backend() -> None:
    dispatcher = dispatcher_on(MemoryBroker())
    with pytest.raises(ConfigurationError, match="use_uvloop=True"):
        dispatcher.run(backend="uvloop")  # type: ignore[arg-type]  # the mistake under test


def test_a_dispatcher_needs_consumers() -> None:
    broker = MemoryBroker()
    wrong: list[Any] = [(), (broker,), (MemoryProducer(broker),), (MemoryConsumer,)]
    for consumers in wrong:
        with pytest.raises(ConfigurationError):
            EventDispatcher(*consumers)
    with pytest.raises(ConfigurationError, match="MemoryBroker"):
        MemoryConsumer("memory://x")  # type: ignore[arg-type]  # the mistake under test
    with pytest.raises(ConfigurationError, match="start_from"):
        MemoryConsumer(broker, start_from="yesterday")  # type: ignore[arg-type]  # the mistake under test


def test_what_is_given_in_the_place_of_a_client() -> None:
    consumer: Any = MemoryConsumer(MemoryBroker())
    password: Any = "redis://:secret@localhost"
    with pytest.raises(ConfigurationError, match="one by one"):
        EventDispatcher([consumer])  # type: ignore[arg-type]  # the mistake under test
    with pytest.raises(ConfigurationError, match=r"consumer_from_url\(url\)") as caught:
        EventDispatcher(password)
    assert "secret" not in str(caught.value)
    for kind in (EventEmitter, BlockingEmitter):
        with pytest.raises(ConfigurationError, match=r"producer_from_url\(url\)") as caught:
            kind(password)
        assert "secret" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="begins with its scheme") as caught:
        producer_from_url("secret@localhost:6379")
    assert "secret" not in str(caught.value)


def test_a_codec_and_an_envelope_are_instances() -> None:
    producer, wrong = MemoryProducer(MemoryBroker()), cast("Any", (JSONSerializer, BareEnvelope))
    for kind in (EventEmitter, BlockingEmitter):
        with pytest.raises(ConfigurationError, match=r"JSONSerializer\(\)"):
            kind(producer, wrong[0])
        with pytest.raises(ConfigurationError, match=r"CloudEventsEnvelope\(\)"):
            kind(producer, envelope=wrong[1])


@pytest.mark.anyio
async def test_emitting_what_is_no_event() -> None:
    emitter = EventEmitter(MemoryProducer(MemoryBroker()))
    one: Any = Sent()
    with pytest.raises(ConfigurationError, match=r"Sent is the class itself; emit Sent\(...\)"):
        await emitter.emit(Sent)  # type: ignore[arg-type]  # the mistake under test
    with pytest.raises(ConfigurationError, match=r"not dict; derive it from EventBase"):
        await emitter.emit({"number": 1})  # type: ignore[arg-type]  # the mistake under test
    with pytest.raises(ConfigurationError, match=r"takes a list of events, not Sent; use emit"):
        await emitter.emit_many(one)


def test_an_emitter_of_blocking_code_takes_a_list_too() -> None:
    one: Any = Sent()
    with pytest.raises(ConfigurationError, match=r"takes a list of events, not Sent; use emit"):
        BlockingEmitter(MemoryProducer(MemoryBroker())).emit_many(one)


def test_an_emitter_needs_a_producer() -> None:
    broker = MemoryBroker()
    wrong: list[Any] = [broker, MemoryConsumer(broker), MemoryProducer, MemoryProducer(broker).blocking()]
    for producer in wrong:
        with pytest.raises(ConfigurationError):
            EventEmitter(producer)
    with pytest.raises(ConfigurationError, match="seconds"):
        EventEmitter(MemoryProducer(broker), timeout=0)


def test_adding_what_is_no_router() -> None:
    dispatcher = dispatcher_on(MemoryBroker())
    with pytest.raises(ConfigurationError, match=r"add_router.. takes a Router, not HandlerGroup"):
        dispatcher.add_router(HandlerGroup())  # type: ignore[arg-type]  # the mistake under test
    with pytest.raises(ConfigurationError, match=r"add_handler_group.. takes a HandlerGroup, not Router"):
        dispatcher.add_handler_group(Router())  # type: ignore[arg-type]  # the mistake under test


def test_setting_what_is_no_policy() -> None:
    dispatcher = dispatcher_on(MemoryBroker())
    with pytest.raises(ConfigurationError, match="no ack policy"):
        dispatcher.set_ack_policy(MemoryEventSubscription("t"), AckAfterProcessing)  # type: ignore[arg-type]  # the same

    class Nowhere(EventBase): ...

    with pytest.raises(ConfigurationError, match="Nowhere has no __topic__"):
        dispatcher.set_ack_policy(Nowhere, AckAfterProcessing())


@pytest.mark.anyio
async def test_an_ack_policy_for_a_subscription_that_nobody_has() -> None:
    dispatcher = EventDispatcher(MemoryConsumer(MemoryBroker()))

    @dispatcher.handler(topic="here")
    async def handle(event: Event[Any]) -> None: ...

    dispatcher.set_ack_policy(EventSubscription("there"), AckBeforeProcessing())
    with pytest.raises(RegistrationError, match=r"set_ack_policy\(\): no handler .*'there'"):
        await dispatcher.start()
