"""What an application receives and sends, one entry for each handler on each consumer and for each event class."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import TypeAdapter

from dispytch._core.envelope import CloudEventsEnvelope
from dispytch._core.events import EventBase, declaration
from dispytch._core.params import ParamNeed, unwrapped
from dispytch._core.patterns import Pattern
from dispytch._core.routes import PortableRoute
from dispytch.abc import Consumer, Envelope, EventRoute, Features
from dispytch.asyncapi.bindings import received_extras, received_place, sent_place
from dispytch.asyncapi.schemas import Mode, Schema
from dispytch.errors import ConfigurationError

if TYPE_CHECKING:
    from dispytch._runtime.emitter import EventEmitter
    from dispytch._runtime.wiring import Bound, Wired
    from dispytch.sync import EventEmitter as BlockingEmitter

    Emitter = EventEmitter | BlockingEmitter

__all__ = ["Body", "Place", "Traffic", "Wire", "received", "sent"]

_JSON = "application/json"
_MODULES = re.compile(r"\b[^\W\d]\w*\.(?=[^\W\d])")


@dataclass(frozen=True)
class Wire:
    """How messages travel.

    Attributes:
        transport: Its name; ``None`` if it is not known.
        content_type: The media type of the bodies; ``None`` if it cannot be told.
    """

    transport: str | None
    features: Features
    envelope: Envelope
    content_type: str | None


@dataclass(frozen=True)
class Place:
    """What beside the address tells one channel from another: on RabbitMQ an exchange, or a queue by itself."""

    exchange: str | None = None
    queue: str | None = None


@dataclass(frozen=True)
class Body:
    """A type that a body is read as, or written from."""

    annotation: Any
    adapter: TypeAdapter[Any]
    mode: Mode

    @property
    def label(self) -> str:
        return _label(self.annotation)


@dataclass
class Traffic:
    """One handler on one consumer, or one event class that is emitted.

    Attributes:
        name: For its identifier.
        event: The type of the events; ``None`` for any.
        kind: The event class, where it is known.
        extras: What AsyncAPI has no word for.
    """

    action: Literal["receive", "send"]
    wire: Wire
    pattern: Pattern
    place: Place
    name: str
    title: str
    doc: str
    tags: tuple[str, ...]
    event: str | None
    bodies: Sequence[Body]
    kind: type[EventBase] | None
    params: Sequence[ParamNeed] = ()
    bindings: Schema = field(default_factory=dict)
    extras: Schema = field(default_factory=dict)

    @property
    def summary(self) -> str | None:
        return self.doc.split("\n\n", 1)[0].replace("\n", " ").strip() or None

    @property
    def description(self) -> str | None:
        return self.doc.partition("\n\n")[2].strip() or None


# --- receiving


def received(wiring: Iterable[Wired]) -> Iterator[Traffic]:
    """What the handlers of a dispatcher receive."""
    for one in wiring:
        consumer = one.consumer
        wire = Wire(consumer.transport, consumer.features, one.envelope, one.deserializer.content_type)
        for bound in one.bound:
            yield _received(bound, consumer, wire)


def _received(bound: Bound, consumer: Consumer, wire: Wire) -> Traffic:
    handler = bound.handler
    bodies = [Body(need.body.annotation, need.body.adapter, "validation") for need in bound.needs]
    kinds = [body.annotation for body in bodies if _is_event_class(body.annotation)]
    exchange, queue, address = received_place(bound.declared, handler.subscription, consumer)
    pattern = bound.pattern if address is None else Pattern.parse(address, bound.delimiter)
    bindings, extras = received_extras(bound, consumer)
    return Traffic(
        action="receive",
        wire=wire,
        pattern=pattern,
        place=Place(exchange, queue),
        name=handler.name,
        title=handler.name.rpartition(".")[2],
        doc=_doc(handler.func),
        tags=handler.tags,
        event=bound.event,
        bodies=bodies,
        kind=next(iter(kinds), None),
        params=[need for _, need in handler.plan.params],
        bindings=bindings,
        extras=extras,
    )


def _is_event_class(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, EventBase)


def _doc(func: Callable[..., Any]) -> str:
    func = unwrapped(func)
    if not inspect.isclass(func) and not inspect.isroutine(func):
        func = type(func)
    return inspect.getdoc(func) or ""


# --- sending


def sent(emits: Iterable[type[EventBase]], emitter: Emitter | None, wiring: Sequence[Wired]) -> Iterator[Traffic]:
    """What event classes are sent as: by an emitter, or else on the transports of a dispatcher's consumers.

    Raises:
        ConfigurationError: a class is none, or has nowhere to go.
    """
    for kind in dict.fromkeys(_checked(emits)):
        ways = list(_ways(kind, emitter, wiring))
        if not ways:
            used = ", ".join(dict.fromkeys(type(one.consumer).__name__ for one in wiring))
            raise ConfigurationError(
                f"event class {kind.__qualname__} is for another transport than the dispatcher's consumers ({used}); "
                "give emitter=, the emitter that it is emitted by"
            )
        for wire, place, route in dict.fromkeys(ways):
            yield _sent(kind, wire, place, route)


def _checked(emits: Iterable[type[EventBase]]) -> Iterator[type[EventBase]]:
    if isinstance(emits, type):
        raise ConfigurationError(f"emits= takes a list of event classes, also of one: emits=[{emits.__name__}]")
    for kind in emits:
        if not _is_event_class(kind):
            raise ConfigurationError(f"emits= takes event classes, derived from EventBase, not {kind!r}")
        if declaration(kind).route is None:
            raise ConfigurationError(
                f"event class {kind.__qualname__} has neither __topic__ nor __route__, so it is not emitted; leave it "
                "out, or declare one"
            )
        yield kind


def _ways(
    kind: type[EventBase], emitter: Emitter | None, wiring: Sequence[Wired]
) -> Iterator[tuple[Wire, Place, EventRoute]]:
    declared = declaration(kind)
    route = declared.route
    assert route is not None  # noqa: S101 - see `_checked`
    if emitter is not None:
        producer = emitter.producer
        if isinstance(route, PortableRoute):
            route = producer.route_for(route.topic)
        if (problem := producer.accepts(route, declared.config)) is not None:
            raise ConfigurationError(f"event class {kind.__qualname__}: {problem}")
        wire = Wire(producer.transport, producer.features, emitter.envelope, emitter.serializer.content_type)
        yield wire, Place(*sent_place(route, producer)), route
    elif not wiring:
        yield Wire(None, Features(), CloudEventsEnvelope(), _JSON), Place(), route
    else:
        for one in wiring:
            consumer = one.consumer
            if not isinstance(route, PortableRoute) and not _is_of(route, consumer):
                continue
            wire = Wire(
                consumer.transport,
                consumer.features,
                one.envelope,
                one.deserializer.content_type or _JSON,
            )
            yield wire, Place(*sent_place(route, consumer)), route


def _is_of(route: EventRoute, consumer: Consumer) -> bool:
    try:
        return consumer.subscription_for(route) is not None
    except ConfigurationError:  # it can be emitted, and not consumed, such as a template of Redis Streams
        return True


def _sent(kind: type[EventBase], wire: Wire, place: Place, route: EventRoute) -> Traffic:
    declared = declaration(kind)
    return Traffic(
        action="send",
        wire=wire,
        pattern=Pattern.parse(route.address, route.delimiter),
        place=place,
        name=f"send.{declared.type}",
        title=declared.type,
        doc=inspect.cleandoc(kind.__doc__ or ""),
        tags=(),
        event=declared.type,
        bodies=[Body(kind, TypeAdapter(kind), "serialization")],
        kind=kind,
    )


# --- labels


def _label(annotation: Any) -> str:
    """A short name of a type, for people."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _label(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return " or ".join(_label(one) for one in get_args(annotation) if one is not NoneType)
    if origin is None and isinstance(annotation, type):
        return annotation.__name__
    return _MODULES.sub("", str(annotation))
