"""Spans of emits and of handlers: joined across every transport, and what is in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import anyio
import anyio.to_thread
import pytest
from opentelemetry import baggage, trace
from opentelemetry import context as contexts
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

from dispytch import (
    Event,
    EventBase,
    EventDispatcher,
    EventEmitter,
    EventHandlerContext,
    EventSubscription,
    Reject,
    consumer_from_url,
    producer_from_url,
    sync,
)
from dispytch.abc import Consumer, EmitCall, EmitHook, Producer
from dispytch.errors import ConfigurationError, EmitManyError, EmitRejectedError, EmitTimeoutError
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryProducer
from dispytch.serialization import BareEnvelope, ClassicEnvelope, CloudEventsEnvelope, Envelope
from dispytch.telemetry import OpenTelemetryHook, OpenTelemetryMiddleware
from dispytch.testing import Faults
from tests.helpers import dispatcher_on, headers_of, publish, run, until
from tests.support import unique
from tests.test_examples import LOOPS, url_of
from tests.test_examples import run as run_program

pytestmark = pytest.mark.anyio


class Telemetry:
    """An SDK that keeps everything, and what stands on it."""

    def __init__(self, **options: Any) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(**options)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader])
        self.tracer = self.provider.get_tracer("test")
        self.hook = OpenTelemetryHook(tracer_provider=self.provider, meter_provider=self.meters)

    def middleware(self, **options: Any) -> OpenTelemetryMiddleware:
        return OpenTelemetryMiddleware(tracer_provider=self.provider, meter_provider=self.meters, **options)

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        return self.exporter.get_finished_spans()

    def of_kind(self, kind: SpanKind) -> list[ReadableSpan]:
        return [span for span in self.spans if span.kind is kind]

    def points(self, name: str) -> list[Any]:
        data = self.reader.get_metrics_data()
        assert data is not None
        return [
            point
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


@pytest.fixture(autouse=True)
def detaches(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What is attached is detached in the same context, which OpenTelemetry only logs."""
    yield
    assert "detach" not in caplog.text


class Order(EventBase):
    __topic__ = "orders"
    number: int = 0


class Templated(EventBase):
    __topic__ = "shops.{shop}.orders"
    shop: str


# --- every transport

TRANSPORTS = ["memory", "kafka", "rabbitmq", "rabbitmq/aio-pika", "redis+stream", "redis"]
SYSTEMS = {"memory": "memory", "kafka": "kafka", "rabbitmq": "rabbitmq"}


def ends(transport: str, request: pytest.FixtureRequest) -> tuple[Producer, Consumer]:
    """A producer and a consumer that nobody else shares anything with."""
    if transport == "memory":
        broker = MemoryBroker()
        return MemoryProducer(broker), MemoryConsumer(broker)
    name, _, driver = transport.partition("/")
    url = url_of(name, request)
    group = unique("traced")
    if driver:
        from dispytch.rabbitmq import RabbitMQConsumer, RabbitMQProducer

        return RabbitMQProducer(url, driver="aio-pika"), RabbitMQConsumer(url, queue=group, driver="aio-pika")
    return producer_from_url(url), consumer_from_url(url, group_id=group)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_one_trace_across_the_broker(
    transport: str, telemetry: Telemetry, request: pytest.FixtureRequest, anyio_backend_name: str
) -> None:
    """From an emit of a loop, one of blocking code and one of many, each to its handler."""
    if "/" in transport and anyio_backend_name == "trio":
        pytest.skip("aio-pika is for asyncio")
    topic = unique("orders")

    class Placed(EventBase):
        __topic__ = topic
        number: int

    producer, consumer = ends(transport, request)
    dispatcher = EventDispatcher(consumer, middlewares=[telemetry.middleware(correlation="parent")])
    handled: dict[int, int] = {}

    @dispatcher.handler(Placed)
    async def handle(event: Event[Placed]) -> None:
        handled[event.body.number] = trace.get_current_span().get_span_context().span_id

    def emit_from_blocking_code() -> None:
        with sync.EventEmitter(producer, hooks=[telemetry.hook]) as emitter:
            emitter.emit(Placed(number=1))

    with anyio.fail_after(60):
        async with dispatcher.lifespan(), EventEmitter(producer, hooks=[telemetry.hook]) as emitter:
            with telemetry.tracer.start_as_current_span("all of it") as whole:
                await emitter.emit(Placed(number=0))
                await anyio.to_thread.run_sync(emit_from_blocking_code)
                await emitter.emit_many([Placed(number=2), Placed(number=3)])
            await until(lambda: len(handled) == 4)
    assert {span.context.trace_id for span in telemetry.spans} == {whole.get_span_context().trace_id}
    sent, processed = telemetry.of_kind(SpanKind.PRODUCER), telemetry.of_kind(SpanKind.CONSUMER)
    where = f"dispytch:{topic}" if transport.startswith("rabbitmq") else topic
    assert [span.name for span in sent] == [f"send {where}"] * 3
    ids = {span.context.span_id: span for span in processed}
    of_number = {number: ids[span_id] for number, span_id in handled.items()}  # the handler's own, and all of them
    parents = [of_number[number].parent for number in range(4)]
    assert [parent.span_id if parent else None for parent in parents] == [
        sent[0].context.span_id,
        sent[1].context.span_id,
        sent[2].context.span_id,
        sent[2].context.span_id,
    ]
    if transport.startswith("rabbitmq"):
        where = f"dispytch:{topic}:{consumer.group_id}"
    assert {span.name for span in processed} == {f"process {where}"}
    attributes = dict(of_number[0].attributes or {})
    assert attributes["messaging.system"] == SYSTEMS.get(transport.partition("/")[0], "redis")
    assert attributes["messaging.destination.name"] == where
    assert attributes["messaging.consumer.group.name"] == consumer.group_id
    assert attributes["messaging.message.id"] == dict(sent[0].attributes or {})["messaging.message.id"]
    if transport == "kafka":
        place = ("messaging.destination.partition.id", "messaging.kafka.offset")
        assert all(attributes[name] == dict(sent[0].attributes or {})[name] for name in place)
    if transport.startswith("rabbitmq"):
        assert attributes["messaging.rabbitmq.destination.routing_key"] == topic


@pytest.mark.parametrize(
    ("transport", "loop"),
    [
        *(("memory", loop) for loop in LOOPS),
        ("kafka", "asyncio"),
        ("rabbitmq", "trio"),
        ("redis+stream", "uvloop"),
        ("redis", "trio"),
    ],
)
def test_the_example_prints_one_trace(transport: str, loop: str, request: pytest.FixtureRequest) -> None:
    url = "memory://traced" if transport == "memory" else url_of(transport, request)
    lines = run_program("-m", "examples.tracing", "--url", url, "--loop", loop).splitlines()
    assert [line.partition(":")[0].strip() for line in lines[1:]] == [
        "- POST /orders (INTERNAL)",
        f"- send {'dispytch' if transport == 'rabbitmq' else 'traced-orders (PRODUCER)'}",
        f"- process {'dispytch' if transport == 'rabbitmq' else 'traced-orders (CONSUMER)'}",
        f"- send {'dispytch' if transport == 'rabbitmq' else 'traced-shipments (PRODUCER)'}",
        f"- process {'dispytch' if transport == 'rabbitmq' else 'traced-shipments (CONSUMER)'}",
        "- tell the customer (INTERNAL)",
    ]
    assert [line.index("-") for line in lines[1:]] == [0, 2, 4, 6, 8, 10]


# --- how they are joined


async def test_a_link_by_default(broker: MemoryBroker, telemetry: Telemetry) -> None:
    dispatcher = dispatcher_on(broker, middlewares=[telemetry.middleware()])
    carried: list[object] = []

    @dispatcher.handler(Order)
    async def handle(event: Event[Order]) -> None:
        carried.append(baggage.get_baggage("tenant"))

    token = contexts.attach(baggage.set_baggage("tenant", "t1"))
    async with EventEmitter(MemoryProducer(broker), hooks=[telemetry.hook]) as emitter:
        await emitter.emit(Order())
    contexts.detach(token)
    with telemetry.tracer.start_as_current_span("where the dispatcher was started"):
        await run(dispatcher)
    (sent,), (processed,) = telemetry.of_kind(SpanKind.PRODUCER), telemetry.of_kind(SpanKind.CONSUMER)
    assert processed.parent is None
    assert processed.context.trace_id != sent.context.trace_id
    assert [link.context.span_id for link in processed.links] == [sent.context.span_id]
    assert carried == ["t1"]


@pytest.mark.parametrize("correlation", ["link", "parent"])
async def test_a_batch_has_links_to_all(broker: MemoryBroker, telemetry: Telemetry, correlation: str) -> None:
    dispatcher = dispatcher_on(broker, middlewares=[telemetry.middleware(correlation=correlation)])
    dispatcher.handler(Order, batch=3, batch_wait=0.01)(_take)
    async with EventEmitter(MemoryProducer(broker), hooks=[telemetry.hook]) as emitter:
        for number in range(2):
            await emitter.emit(Order(number=number))
    async with EventEmitter(MemoryProducer(broker)) as silent:
        await silent.emit(Order())  # from somebody who traces nothing
    await run(dispatcher)
    sent, (processed,) = telemetry.of_kind(SpanKind.PRODUCER), telemetry.of_kind(SpanKind.CONSUMER)
    assert processed.name == "process orders"
    assert processed.parent is None
    assert [link.context.span_id for link in processed.links] == [span.context.span_id for span in sent]
    assert (processed.attributes or {})["messaging.batch.message_count"] == 3
    (count,) = telemetry.points("messaging.client.consumed.messages")
    assert count.value == 3


async def _take(events: list[Event[Order]]) -> None: ...


async def test_what_a_handler_emits_goes_on_with_its_span(broker: MemoryBroker, telemetry: Telemetry) -> None:
    """It replaces the trace of the event that is handled, which travels on where nothing is traced."""
    dispatcher = dispatcher_on(broker, middlewares=[telemetry.middleware(correlation="parent")])

    @dispatcher.handler(topic="orders")
    async def handle(event: Event) -> None:
        async with EventEmitter(MemoryProducer(broker), hooks=[telemetry.hook]) as emitter:
            await emitter.emit(Templated(shop="oslo"))

    publish(broker, "orders", b'{"number": 1}', [("traceparent", f"00-{7:032x}-{8:016x}-01".encode())])
    await run(dispatcher)
    (processed,) = telemetry.of_kind(SpanKind.CONSUMER)
    (sent,) = telemetry.of_kind(SpanKind.PRODUCER)
    assert (processed.context.trace_id, processed.parent and processed.parent.span_id) == (7, 8)
    assert sent.parent is not None
    assert sent.parent.span_id == processed.context.span_id
    assert sent.name == "send shops.{shop}.orders"
    attributes = dict(sent.attributes or {})
    assert attributes["messaging.destination.template"] == "shops.{shop}.orders"
    assert attributes["messaging.destination.name"] == "shops.oslo.orders"
    (record,) = broker.records("shops.oslo.orders")
    expected = f"00-{7:032x}-{sent.context.span_id:016x}-01"
    assert [value for name, value in record.headers if name.endswith("traceparent")] == [expected.encode()] * 2
    assert headers_of(record)["ce_traceparent"] == headers_of(record)["traceparent"] == expected


@pytest.mark.parametrize("kind", [CloudEventsEnvelope, BareEnvelope, ClassicEnvelope])
async def test_each_envelope_carries_it_once(broker: MemoryBroker, telemetry: Telemetry, kind: type[Envelope]) -> None:
    envelope = kind()
    dispatcher = dispatcher_on(broker, middlewares=[telemetry.middleware(correlation="parent")], envelope=envelope)
    names: list[str] = []

    @dispatcher.handler(topic="orders")
    async def handle(event: Event) -> None:
        names.extend(name for name, _ in event.meta.raw_headers)

    class OwnTrace(EventBase):
        __topic__ = "orders"

    async with EventEmitter(MemoryProducer(broker), envelope=envelope, hooks=[telemetry.hook, Adding()]) as emitter:
        await emitter.emit(OwnTrace())
    await run(dispatcher)
    (sent,), (processed,) = telemetry.of_kind(SpanKind.PRODUCER), telemetry.of_kind(SpanKind.CONSUMER)
    assert processed.parent is not None
    assert processed.parent.span_id == sent.context.span_id
    assert names.count("traceparent") == names.count("x-added") == 1


class Adding(EmitHook):
    """Adds what travels, and what cannot."""

    @contextmanager
    def around(self, call: EmitCall) -> Any:
        call.headers.update(
            {"x-added": "yes", "ce_id": "forged", "dispytch-dead-error": "forged", "x\n": "y", "y": "\n"}
        )
        yield


async def test_the_transports_own_header_wins(broker: MemoryBroker, telemetry: Telemetry) -> None:
    """CloudEvents' attribute may be older: what forwards a message writes the header."""
    dispatcher = dispatcher_on(broker, middlewares=[telemetry.middleware(correlation="parent")])
    dispatcher.handler(topic="orders")(lambda: None)
    headers = [
        ("ce_specversion", b"1.0"),
        ("ce_id", b"1"),
        ("ce_type", b"t"),
        ("ce_source", b"s"),
        ("ce_traceparent", f"00-{1:032x}-{2:016x}-01".encode()),
        ("traceparent", f"00-{1:032x}-{3:016x}-01".encode()),
    ]
    publish(broker, "orders", b"{}", headers)
    publish(broker, "orders", b"{}", headers[:-1])
    publish(broker, "orders", b"{}", [("traceparent", b"00-nonsense")])
    await run(dispatcher)
    parents = {span.parent and span.parent.span_id for span in telemetry.of_kind(SpanKind.CONSUMER)}
    assert parents == {3, 2, None}


# --- what is in them


async def test_failures(broker: MemoryBroker, telemetry: Telemetry) -> None:
    dispatcher = dispatcher_on(broker, middlewares=[telemetry.middleware()], max_deliveries=2)

    @dispatcher.handler(Order)
    async def handle(event: Event[Order]) -> None:
        if event.meta.attempt == 2:
            raise Reject("no use")
        raise ValueError("once")

    async with EventEmitter(MemoryProducer(broker), hooks=[telemetry.hook]) as emitter:
        await emitter.emit(Order())
    await run(dispatcher)
    processed = telemetry.of_kind(SpanKind.CONSUMER)
    assert [(span.attributes or {})["error.type"] for span in processed] == ["ValueError", "Reject"]
    assert [(span.attributes or {})["dispytch.attempt"] for span in processed] == [1, 2]
    assert {span.status.status_code for span in processed} == {StatusCode.ERROR}
    assert processed[0].events[0].name == "exception"
    points = telemetry.points("messaging.process.duration")
    assert {point.attributes["error.type"]: point.count for point in points} == {"ValueError": 1, "Reject": 1}
    assert {point.attributes["messaging.destination.name"] for point in points} == {"orders"}
    assert points[0].explicit_bounds[0] == 0.005


async def test_a_handler_that_is_cut_off(broker: MemoryBroker, telemetry: Telemetry) -> None:
    dispatcher = dispatcher_on(broker, middlewares=[telemetry.middleware()], drain_timeout=0)
    began = anyio.Event()

    @dispatcher.handler(Order)
    async def handle(event: Event[Order]) -> None:
        began.set()
        await anyio.sleep_forever()

    async with EventEmitter(MemoryProducer(broker)) as emitter:
        await emitter.emit(Order())
    async with dispatcher.lifespan():
        await began.wait()
    (processed,) = telemetry.of_kind(SpanKind.CONSUMER)
    assert "Cancelled" in str((processed.attributes or {})["error.type"])
    assert not processed.events  # it is no error of the program


async def test_emits_that_fail(telemetry: Telemetry) -> None:
    faults = Faults()
    broker = MemoryBroker(faults=faults)
    async with EventEmitter(MemoryProducer(broker), hooks=[telemetry.hook], timeout=0.2) as emitter:
        faults.fail("reject")
        with pytest.raises(EmitRejectedError):
            await emitter.emit(Order())
        faults.fail("lose_reply")
        with pytest.raises(EmitTimeoutError):
            await emitter.emit(Order())
        faults.fail("reject")
        with pytest.raises(EmitManyError):
            await emitter.emit_many([Order(), Order()])
        with pytest.raises(EmitRejectedError):  # before anything is sent
            await emitter.emit(Templated(shop="a.b"))
        with anyio.move_on_after(0):
            await emitter.emit(Order())
    sent = telemetry.of_kind(SpanKind.PRODUCER)
    errors = [str((span.attributes or {}).get("error.type")) for span in sent]
    assert errors[:4] == ["EmitRejectedError", "EmitTimeoutError", "EmitRejectedError", "EmitRejectedError"]
    assert sum(point.value for point in telemetry.points("messaging.client.sent.messages")) == 6
    assert all(not trace.get_current_span().get_span_context().is_valid for _ in sent)  # all are detached


async def test_a_span_that_is_not_sampled_is_carried_all_the_same(broker: MemoryBroker) -> None:
    telemetry = Telemetry(sampler=ALWAYS_OFF)
    async with EventEmitter(MemoryProducer(broker), hooks=[telemetry.hook]) as emitter:
        await emitter.emit(Order())
    flags = int(headers_of(broker.records("orders")[0])["traceparent"].rpartition("-")[2], 16)
    assert not flags & trace.TraceFlags.SAMPLED
    assert not telemetry.spans


async def test_without_an_sdk_next_to_nothing_is_done(broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opentelemetry.propagate.inject", _refuse)
    monkeypatch.setattr("opentelemetry.propagate.extract", _refuse)
    dispatcher = dispatcher_on(broker, middlewares=[OpenTelemetryMiddleware()])
    handled: list[int] = []
    dispatcher.handler(Order)(lambda: handled.append(1))
    async with EventEmitter(MemoryProducer(broker), hooks=[OpenTelemetryHook()]) as emitter:
        await emitter.emit(Order())
    await run(dispatcher)
    assert handled == [1]
    assert not [name for name in headers_of(broker.records("orders")[0]) if "trace" in name]


def _refuse(*args: Any, **options: Any) -> None:
    raise AssertionError("it is called")


# --- hooks


async def test_hooks_see_what_is_sent_and_what_became_of_it(broker: MemoryBroker) -> None:
    seen: list[str] = []

    class Noting(EmitHook):
        def __init__(self, name: str) -> None:
            self.name = name

        @contextmanager
        def around(self, call: EmitCall) -> Any:
            assert (call.transport, list(call.destinations)) == ("memory", ["orders"] * len(call.events))
            assert not call.messages
            seen.append(f"{self.name} begins")
            try:
                yield
            finally:
                seen.append(f"{self.name} {len(call.messages)} {len(call.outcomes)}")
                seen.extend(call.destination_of(message) for message in call.messages)

    hooks = [Noting("outer"), Noting("inner")]
    async with EventEmitter(MemoryProducer(broker), hooks=hooks) as emitter:
        receipt = await emitter.emit(Order(), id="own")
        assert receipt is not None
        assert receipt.id == "own"
        assert await emitter.emit_many([]) == []
        assert seen == ["outer begins", "inner begins", "inner 1 1", "orders", "outer 1 1", "orders"]


async def test_messages_that_were_made_before_carry_it_too(broker: MemoryBroker, telemetry: Telemetry) -> None:
    """As those of events that are emitted when a transaction of Django commits, which are made when they are given."""
    emitter = sync.EventEmitter(MemoryProducer(broker), hooks=[telemetry.hook])
    events = [Order(number=1), Order(number=2)]
    made = emitter._factory.make_many(events)
    await anyio.to_thread.run_sync(emitter._send, events, made)
    (sent,) = telemetry.of_kind(SpanKind.PRODUCER)
    for record in broker.records("orders"):
        assert headers_of(record)["traceparent"].split("-")[2] == f"{sent.context.span_id:016x}"


async def test_hooks_cannot_swallow_errors_and_may_raise_their_own(broker: MemoryBroker) -> None:
    class Swallowing(EmitHook):
        @contextmanager
        def around(self, call: EmitCall) -> Any:
            with suppress(EmitRejectedError):
                yield
            if not call.messages:
                return
            raise ValueError("of the hook")

    async with EventEmitter(MemoryProducer(broker), hooks=[Swallowing()]) as emitter:
        with pytest.raises(EmitRejectedError):
            await emitter.emit(Templated(shop="a.b"))
        with pytest.raises(EmitRejectedError):
            await emitter.emit_many([Templated(shop="a.b")])
        with pytest.raises(ValueError, match="of the hook"):
            await emitter.emit(Order())


async def test_what_is_no_hook(broker: MemoryBroker) -> None:
    producer = MemoryProducer(broker)
    with pytest.raises(ConfigurationError, match=r"hooks takes a list, also of one: hooks=\[Adding\(\.\.\.\)\]"):
        EventEmitter(producer, hooks=Adding())  # type: ignore[arg-type]  # what a user may do
    with pytest.raises(ConfigurationError, match="is no EmitHook instance; write it with parentheses"):
        sync.EventEmitter(producer, hooks=[Adding])  # type: ignore[list-item]  # what a user may do


async def test_a_context_tells_where_its_event_came_from(broker: MemoryBroker) -> None:
    seen: list[tuple[object, ...]] = []
    dispatcher = dispatcher_on(broker, group_id="g", middlewares=[])

    from dispytch import Middleware, NextCall

    class Noting(Middleware):
        async def dispatch(self, ctx: EventHandlerContext, call_next: NextCall) -> Any:
            seen.append((ctx.pattern, ctx.transport, ctx.group, ctx.destination, ctx.event_id, ctx.attribute("type")))
            return await call_next(ctx)

    dispatcher.handler(EventSubscription("shops.*.orders"), middlewares=[Noting()])(lambda: None)
    async with EventEmitter(MemoryProducer(broker)) as emitter:
        await emitter.emit(Templated(shop="oslo"), id="1")
    await run(dispatcher)
    assert seen == [("shops.*.orders", "memory", "g", "shops.oslo.orders", "1", "Templated")]
