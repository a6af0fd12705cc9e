"""Traces and metrics by OpenTelemetry's API: spans of emits and of handlers, joined across the broker.

Needs ``opentelemetry-api`` alone; whoever configures an SDK gets the data, and without one next to nothing is done.
Names are those of the messaging conventions, 1.44: spans ``send {destination}`` and ``process {destination}``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

from dispytch._core.context import EventHandlerContext, Middleware, NextCall
from dispytch.abc import EmitCall, EmitHook, Receipt
from dispytch.errors import ConfigurationError, MissingExtraError

try:
    from opentelemetry import context as contexts
    from opentelemetry import metrics, propagate, trace
    from opentelemetry.context import Context
    from opentelemetry.propagators.textmap import Getter, Setter
except ImportError as _missing:
    raise MissingExtraError('opentelemetry-api is not installed: pip install "dispytch[otel]"') from _missing

__all__ = ["OpenTelemetryHook", "OpenTelemetryMiddleware"]

_NAME = "dispytch"
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""Seconds, as the conventions advise."""

_SYSTEM = "messaging.system"
_OPERATION = "messaging.operation.name"
_OPERATION_TYPE = "messaging.operation.type"
_DESTINATION = "messaging.destination.name"
_TEMPLATE = "messaging.destination.template"
_PARTITION = "messaging.destination.partition.id"
_GROUP = "messaging.consumer.group.name"
_MESSAGE_ID = "messaging.message.id"
_BODY_SIZE = "messaging.message.body.size"
_BATCH_COUNT = "messaging.batch.message_count"
_KAFKA_OFFSET = "messaging.kafka.offset"
_ROUTING_KEY = "messaging.rabbitmq.destination.routing_key"
_ERROR = "error.type"
_FUNCTION = "code.function.name"
_ATTEMPT = "dispytch.attempt"

Attributes = dict[str, str | int]


class _Headers(Getter[EventHandlerContext]):
    """The headers of an event: the transport's own, or else the attributes of its envelope."""

    def get(self, carrier: EventHandlerContext, key: str) -> list[str] | None:
        value = carrier.attribute(key)
        return None if value is None else [value]

    def keys(self, carrier: EventHandlerContext) -> list[str]:
        return [name for name, _ in carrier.message.headers]


class _Replacing(Setter[dict[str, str]]):
    """Headers that are to travel: a name comes once, however it is written."""

    def set(self, carrier: dict[str, str], key: str, value: str) -> None:
        carrier[key.lower()] = value


_GETTER, _SETTER = _Headers(), _Replacing()


class _Telemetry:
    """A tracer and instruments, as soon as somebody has configured an SDK to give them.

    Args:
        tracer_provider, meter_provider: By default the global ones, also if they are set later.
    """

    def __init__(
        self, tracer_provider: trace.TracerProvider | None, meter_provider: metrics.MeterProvider | None
    ) -> None:
        self._tracer_provider = tracer_provider
        self._meter_provider = meter_provider
        self._tracer: trace.Tracer | None = None
        self._meter: metrics.Meter | None = None

    def tracer(self) -> trace.Tracer | None:
        """``None`` as long as spans would go nowhere."""
        if self._tracer is None:
            provider = self._tracer_provider or trace.get_tracer_provider()
            if _does_something(provider):
                self._tracer = provider.get_tracer(_NAME)
        return self._tracer

    def meter(self) -> metrics.Meter | None:
        """``None`` as long as measurements would go nowhere."""
        if self._meter is None:
            provider = self._meter_provider or metrics.get_meter_provider()
            if _does_something(provider):
                self._meter = provider.get_meter(_NAME)
        return self._meter


def _does_something(provider: object) -> bool:
    # Those of the API stand in for what is not configured (yet), and do nothing.
    return not type(provider).__module__.startswith(("opentelemetry.trace", "opentelemetry.metrics"))


class _Instruments:
    """A histogram of durations and a counter of messages."""

    def __init__(self, meter: metrics.Meter, duration: tuple[str, str], count: tuple[str, str]) -> None:
        name, text = duration
        self._duration = meter.create_histogram(
            name, unit="s", description=text, explicit_bucket_boundaries_advisory=_BUCKETS
        )
        name, text = count
        self._count = meter.create_counter(name, unit="{message}", description=text)

    def note(self, seconds: float, count: int, attributes: Mapping[str, str | int]) -> None:
        self._duration.record(seconds, attributes)
        self._count.add(count, attributes)


class OpenTelemetryMiddleware(Middleware):
    """A span and measurements around what it wraps, joined with those of the emitter.

    The event's context is a link of the span, or of all events of a batch; the span begins a trace of its own. With
    ``correlation="parent"`` the emitter's span is its parent, so that both are in one trace; a batch has links all the
    same. Baggage of the event is there in the handler.

    Args:
        correlation: ``"link"`` or ``"parent"``.
        tracer_provider: By default the global one, also if it is set later.
        meter_provider: By default the global one, also if it is set later.
    """

    def __init__(
        self,
        *,
        correlation: Literal["link", "parent"] = "link",
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
    ) -> None:
        if correlation not in ("link", "parent"):
            raise ConfigurationError(f"correlation={correlation!r}: choose 'link' or 'parent'")
        self._is_parent = correlation == "parent"
        self._telemetry = _Telemetry(tracer_provider, meter_provider)
        self._instruments: _Instruments | None = None
        self._known: dict[tuple[str, str], tuple[str, Attributes]] = {}

    async def dispatch(self, ctx: EventHandlerContext, call_next: NextCall) -> Any:
        tracer, meter = self._telemetry.tracer(), self._telemetry.meter()
        if tracer is None and meter is None:
            return await call_next(ctx)
        name, common = self._common(ctx)
        span, token = self._begin(tracer, ctx, name, common)
        failure: BaseException | None = None
        began = time.perf_counter()
        try:
            return await call_next(ctx)
        except BaseException as error:
            failure = error
            raise
        finally:
            took = time.perf_counter() - began
            if token is not None:
                contexts.detach(token)
            if span is not None:
                _end(span, failure)
            if meter is not None:
                self._note(meter, took, len(ctx.contexts), common, failure)
            del failure  # which holds this frame

    def _common(self, ctx: EventHandlerContext) -> tuple[str, Attributes]:
        """The name of a handler's spans, and the attributes that are the same for all of them."""
        key = (ctx.identity, ctx.pattern)
        found = self._known.get(key)
        if found is None:
            pattern = ctx.pattern
            common: Attributes = {
                _SYSTEM: _system(ctx.transport),
                _OPERATION: "process",
                _OPERATION_TYPE: "process",
                _GROUP: ctx.group,
            }
            # Of a pattern there may be any number of topics, so it stands for them all in names and metrics.
            if _is_template(pattern):
                common[_TEMPLATE] = pattern
            else:
                common[_DESTINATION] = pattern = ctx.contexts[0].destination
            found = self._known[key] = (f"process {pattern}", common)
        return found

    def _begin(
        self, tracer: trace.Tracer | None, ctx: EventHandlerContext, name: str, common: Attributes
    ) -> tuple[trace.Span | None, Any]:
        if tracer is None:
            return None, None
        attributes: Attributes = {**common, _FUNCTION: ctx.handler, _ATTEMPT: ctx.failures + 1}
        parts = ctx.contexts
        around = Context()  # and not what happened to be current where the dispatcher was started
        links: list[trace.Link] = []
        if len(parts) == 1 and parts[0] is ctx:
            around = propagate.extract(ctx, around, _GETTER)
            origin = trace.get_current_span(around).get_span_context()
            if not self._is_parent and origin.is_valid:
                links.append(trace.Link(origin))
                around = trace.set_span_in_context(trace.INVALID_SPAN, around)
            attributes.update(_of_message(ctx))
        else:
            attributes[_BATCH_COUNT] = len(parts)
            for part in parts:
                origin = trace.get_current_span(propagate.extract(part, Context(), _GETTER)).get_span_context()
                if origin.is_valid:
                    links.append(trace.Link(origin, {_MESSAGE_ID: part.event_id}))
        span = tracer.start_span(name, around, trace.SpanKind.CONSUMER, attributes, links)
        return span, contexts.attach(trace.set_span_in_context(span, around))

    def _note(
        self, meter: metrics.Meter, took: float, count: int, common: Attributes, failure: BaseException | None
    ) -> None:
        if self._instruments is None:
            self._instruments = _Instruments(
                meter,
                ("messaging.process.duration", "Duration of processing operation."),
                ("messaging.client.consumed.messages", "Number of messages that were delivered to the application."),
            )
        attributes = common if failure is None else {**common, _ERROR: _error_type(failure)}
        self._instruments.note(took, count, attributes)


class OpenTelemetryHook(EmitHook):
    """A span and measurements around each emit; its context travels with the events, in their headers.

    Args:
        tracer_provider: By default the global one, also if it is set later.
        meter_provider: By default the global one, also if it is set later.
    """

    def __init__(
        self,
        *,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
    ) -> None:
        self._telemetry = _Telemetry(tracer_provider, meter_provider)
        self._instruments: _Instruments | None = None

    def around(self, call: EmitCall) -> AbstractContextManager[None] | None:
        tracer, meter = self._telemetry.tracer(), self._telemetry.meter()
        return None if tracer is None and meter is None else self._around(tracer, meter, call)

    @contextmanager
    def _around(self, tracer: trace.Tracer | None, meter: metrics.Meter | None, call: EmitCall) -> Iterator[None]:
        span, token = self._begin(tracer, call)
        failure: BaseException | None = None
        began = time.perf_counter()
        try:
            yield
        except BaseException as error:
            failure = error
            raise
        finally:
            took = time.perf_counter() - began
            if failure is None:
                failure = next((one for one in call.outcomes if not isinstance(one, Receipt)), None)
            if token is not None:
                contexts.detach(token)
            if span is not None:
                if span.is_recording():
                    span.set_attributes(_of_outcome(call))
                _end(span, failure)
            if meter is not None:
                self._note(meter, call, took, failure)
            del failure  # which holds this frame

    def _begin(self, tracer: trace.Tracer | None, call: EmitCall) -> tuple[trace.Span | None, Any]:
        if tracer is None:
            return None, None
        destinations = dict.fromkeys(call.destinations)
        attributes: Attributes = {**_of_call(call), **_place(destinations)}
        if call.is_many:
            attributes[_BATCH_COUNT] = len(call.events)
        where = f" {next(iter(destinations))}" if len(destinations) == 1 else ""
        span = tracer.start_span(f"send{where}", kind=trace.SpanKind.PRODUCER, attributes=attributes)
        inside = trace.set_span_in_context(span)
        propagate.inject(call.headers, inside, _SETTER)
        return span, contexts.attach(inside)

    def _note(self, meter: metrics.Meter, call: EmitCall, took: float, failure: BaseException | None) -> None:
        if self._instruments is None:
            self._instruments = _Instruments(
                meter,
                ("messaging.client.operation.duration", "Duration of messaging operation initiated by a client."),
                ("messaging.client.sent.messages", "Number of messages producer attempted to send to the broker."),
            )
        attributes: Attributes = {**_of_call(call), **_place(dict.fromkeys(call.destinations))}
        if failure is not None:
            attributes[_ERROR] = _error_type(failure)
        self._instruments.note(took, len(call.events), attributes)


def _end(span: trace.Span, failure: BaseException | None) -> None:
    if failure is not None and span.is_recording():
        span.set_attribute(_ERROR, _error_type(failure))
        span.set_status(trace.StatusCode.ERROR, str(failure) or type(failure).__name__)
        if isinstance(failure, Exception):
            span.record_exception(failure)
    span.end()


def _error_type(error: BaseException) -> str:
    return type(error).__qualname__


def _system(transport: str) -> str:
    return "redis" if transport.startswith("redis") else transport


def _is_template(destination: str) -> bool:
    return any(sign in destination for sign in "{*#")


def _place(destinations: Mapping[str, None]) -> Attributes:
    if len(destinations) != 1:
        return {}
    (destination,) = destinations
    return {_TEMPLATE if _is_template(destination) else _DESTINATION: destination}


def _of_call(call: EmitCall) -> Attributes:
    return {_SYSTEM: _system(call.transport), _OPERATION: "send", _OPERATION_TYPE: "send"}


def _of_message(ctx: EventHandlerContext) -> Attributes:
    message = ctx.message
    found: Attributes = {_DESTINATION: ctx.destination, _MESSAGE_ID: ctx.event_id}
    if message.payload is not None:
        found[_BODY_SIZE] = len(message.payload)
    if message.partition is not None:
        found[_PARTITION] = str(message.partition)
    if ctx.transport == "rabbitmq":
        found[_ROUTING_KEY] = message.source
    elif ctx.transport == "kafka" and (offset := _offset(message.position)) is not None:
        found[_KAFKA_OFFSET] = offset
    return found


def _of_outcome(call: EmitCall) -> Attributes:
    """What is known once the messages are made and sent: of a single one, all of it."""
    found: Attributes = {}
    messages: Sequence[Any] = call.messages
    if len(messages) != 1:
        return found
    (message,) = messages
    found[_MESSAGE_ID] = message.id
    if _is_template(call.destinations[0]):
        found[_DESTINATION] = call.destination_of(message)
    if message.payload is not None:
        found[_BODY_SIZE] = len(message.payload)
    if call.transport == "rabbitmq":
        found[_ROUTING_KEY] = message.route.address
    receipt = call.outcomes[0] if call.outcomes else None
    if isinstance(receipt, Receipt):
        if receipt.partition is not None:
            found[_PARTITION] = str(receipt.partition)
        if call.transport == "kafka" and isinstance(receipt.offset, int):
            found[_KAFKA_OFFSET] = receipt.offset
    return found


def _offset(position: str | None) -> int | None:
    digits = (position or "").rpartition(":")[2]
    return int(digits) if digits.isdigit() else None
