"""From an event to a message: route, key, options, envelope and bytes, compiled once for each class."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from pydantic import BaseModel

from dispytch._core.codec import Serializer
from dispytch._core.deadletters import own_header
from dispytch._core.envelope import CURRENT, TRAVELLING, Envelope, Opened
from dispytch._core.events import EventBase, declaration
from dispytch._core.messages import Features, Headers, Message
from dispytch._core.routes import EventConfig, EventRoute, PortableRoute, Template, compile_config, compile_route
from dispytch._core.sealing import Seal, Sealing
from dispytch.errors import ConfigurationError, DispytchError, EmitRejectedError

__all__ = ["MessageFactory", "several"]

_NO_HEADERS: Headers = ()
_LONGEST_HEADER_NAME = 128
_LARGEST_HEADERS = 64 * 1024
"""Bytes, for names and values of one event class: what every transport can carry."""
_LONGEST_TRAVELLING = 1024
_LONGEST_ADDED = 8192
"""Characters of a header that a hook adds: the most that W3C's baggage may have."""

# The slot itself: pydantic's own attribute access looks in many places first, for every event.
_slot: Any = EventBase.__dict__["_dispytch_id"]
_get_id, _set_id = _slot.__get__, _slot.__set__


class Target(Protocol):
    """What the factory asks of a producer."""

    features: Features

    def route_for(self, topic: str) -> EventRoute: ...
    def destination(self, route: EventRoute) -> str: ...
    def accepts(self, route: EventRoute, config: EventConfig | None) -> str | None: ...
    def check(self, message: Message) -> None: ...


class _Plan(NamedTuple):
    route: EventRoute
    fill_route: Callable[[Any], EventRoute] | None
    config: EventConfig | None
    fill_config: Callable[[Any], EventConfig] | None
    key: Template | None
    seal: Seal


class MessageFactory:
    """Makes messages for one producer. Thread-safe: plans are made at most a few times over, then shared."""

    def __init__(
        self,
        producer: Target,
        serializer: Serializer,
        envelope: Envelope,
        source: str,
        now: Callable[[], float],
        new_ids: Callable[[int], list[str]],
    ) -> None:
        self._producer = producer
        self._serializer = serializer
        self._envelope = envelope
        self._source = source
        self._now = now
        self._new_ids = new_ids
        self._plans: dict[type[EventBase], _Plan] = {}

    def make(self, event: EventBase, id: str | None = None, headers: Mapping[str, str] | None = None) -> Message:
        """The message of an event, ready to be sent.

        Args:
            id: The event's id from now on; by default the one that this object was given when it was last emitted.
            headers: What hooks want to travel with it.

        Raises:
            ConfigurationError: the event's class cannot go to this producer.
            EmitRejectedError: this event cannot: a value does not fit its route, or it cannot be serialized.
        """
        if id is not None:
            if not id:
                raise EmitRejectedError("emit(id='') is no id; leave it out, or give a non-empty string")
            if not _is_text(id):
                raise EmitRejectedError("emit(id=...) holds half a surrogate pair; give proper text")
        return self._make_all([event], id, headers)[0]

    def make_many(self, events: Sequence[EventBase], headers: Mapping[str, str] | None = None) -> list[Message]:
        """The messages of several events, which are emitted at the same time; if one cannot be made, none is."""
        return self._make_all(events, None, headers)

    def with_headers(self, messages: Sequence[Message], headers: Mapping[str, str]) -> Sequence[Message]:
        """Messages that are made already, with what hooks want to travel with them, where the transport has headers."""
        if not headers or not self._producer.features.headers:
            return messages
        _, added = _with_added((), headers, True)
        return [
            Message(one.id, one.route, one.payload, _replaced(one.headers, added), one.key, one.config)
            for one in messages
        ]

    def destination(self, event: EventBase) -> str:
        """Where an event goes, by telemetry's name for it, templates not filled in.

        Raises:
            ConfigurationError: the event's class cannot go to this producer.
        """
        kind = type(event)
        plan = self._plans.get(kind)
        if plan is None:
            plan = self._plans[kind] = self._compile(kind, event)
        return self._producer.destination(plan.route)

    def _make_all(
        self, events: Sequence[EventBase], own_id: str | None, added: Mapping[str, str] | None
    ) -> list[Message]:
        ids = self._new_ids(len(events)) if own_id is None else [own_id]
        now = self._now()
        current = CURRENT.get(None)
        travelling: Sequence[tuple[str, str]] = () if current is None else _travelling(current)
        added_headers = _NO_HEADERS
        if added:
            travelling, added_headers = _with_added(travelling, added, self._producer.features.headers)
        plans, check = self._plans, self._producer.check
        messages: list[Message] = []
        for event, id in zip(events, ids, strict=True):
            kind = type(event)
            plan = plans.get(kind)
            if plan is None:
                plan = plans[kind] = self._compile(kind, event)
            if own_id is None:
                try:
                    id = _get_id(event)
                except AttributeError:
                    _set_id(event, id)
            else:
                _set_id(event, id)
            route, fill_route, config, fill_config, key_template, seal = plan
            if fill_route is not None:
                route = fill_route(event)
            if fill_config is not None:
                config = fill_config(event)
            own = _NO_HEADERS if config is None else _own_headers(config, kind)
            if added and not self._producer.features.headers:
                own = _replaced(own, added_headers)
            try:
                text = None if key_template is None else key_template.fill(event)
                key = None if text is None else text.encode()
                headers, payload = seal(id, now, key, event, travelling, own)
            except DispytchError:
                raise
            except Exception as error:
                raise EmitRejectedError(
                    # What the error says may quote the event: that is left to the cause.
                    f"{kind.__qualname__} cannot be written by {type(self._serializer).__name__} "
                    f"({type(error).__name__})"
                ) from error
            if added and self._producer.features.headers:
                headers = _replaced(headers, added_headers)
            message = Message(id, route, payload, headers, key, config)
            check(message)
            messages.append(message)
        return messages

    def _compile(self, kind: type[EventBase], event: object) -> _Plan:
        if isinstance(event, type) and issubclass(event, EventBase):
            raise ConfigurationError(
                f"only instances of EventBase classes can be emitted, and {event.__qualname__} is the class itself; "
                f"emit {event.__qualname__}(...)"
            )
        if not isinstance(event, EventBase):
            raise ConfigurationError(
                f"only instances of EventBase classes can be emitted, not {kind.__qualname__}; derive it from "
                "EventBase and give it a __topic__"
            )
        owner = f"event class {kind.__module__}.{kind.__qualname__}"
        declared = declaration(kind)
        route = declared.route
        if route is None:
            raise ConfigurationError(
                f"{owner} has neither __topic__ nor __route__, so it has nowhere to go; declare one"
            )
        if isinstance(route, PortableRoute):
            route = self._producer.route_for(route.topic)
        if (problem := self._producer.accepts(route, declared.config)) is not None:
            raise ConfigurationError(f"{owner}: {problem}")
        sealing = Sealing(declared.type, self._source, self._serializer, self._producer.features)
        return _Plan(
            route,
            compile_route(route, owner),
            declared.config,
            compile_config(declared.config, owner),
            declared.key,
            self._envelope.sealer(sealing),
        )


def several(events: Iterable[EventBase]) -> list[EventBase]:
    """The events of an ``emit_many``; a single one could be iterated too, but over its fields."""
    if isinstance(events, BaseModel):
        raise ConfigurationError(f"emit_many() takes a list of events, not {type(events).__qualname__}; use emit()")
    return list(events)


def _travelling(current: Opened) -> list[tuple[str, str]]:
    # What came from elsewhere may be anything: it must not make the broker refuse what is emitted because of it.
    found = [(name, value) for name in TRAVELLING if (value := current.attribute(name)) is not None and _can_go(value)]
    if not any(name == "correlationid" for name, _ in found) and _can_go(current.id):
        found.append(("correlationid", current.id))
    return found


def _with_added(
    travelling: Sequence[tuple[str, str]], added: Mapping[str, str], has_headers: bool
) -> tuple[Sequence[tuple[str, str]], Headers]:
    """What travels as attributes of the envelope, with what hooks have added, and what of that travels as headers."""
    kept = {name: value for name, value in added.items() if _can_travel(name, value)}
    attributes = [(name, value) for name, value in kept.items() if name in TRAVELLING]
    others = [pair for pair in travelling if pair[0] not in kept]
    if "traceparent" in kept:  # the state of another trace must not go with it
        others = [pair for pair in others if pair[0] != "tracestate"]
    headers = [(name, value.encode()) for name, value in kept.items() if has_headers or name not in TRAVELLING]
    return [*others, *attributes], headers


def _can_travel(name: str, value: str) -> bool:
    return (
        0 < len(name) <= _LONGEST_HEADER_NAME
        and name.isascii()
        and name.isprintable()
        and not own_header(name)
        and len(value) <= _LONGEST_ADDED
        and value.isascii()
        and value.isprintable()
    )


def _replaced(headers: Headers, added: Headers) -> Headers:
    """Headers, with others in the place of those of their names."""
    names = {name for name, _ in added}
    return (*(pair for pair in headers if pair[0].lower() not in names), *added)


def _can_go(value: str) -> bool:
    return len(value) <= _LONGEST_TRAVELLING and value.isprintable()


def _own_headers(config: EventConfig, kind: type[EventBase]) -> Headers:
    headers = getattr(config, "headers", None)
    if not headers:
        return _NO_HEADERS
    found: list[tuple[str, bytes]] = []
    size = 0
    for name, value in headers.items():
        length = len(name) if name.isascii() else len(name.encode("utf-8", "replace"))
        if not name.isprintable() or not 0 < length <= _LONGEST_HEADER_NAME:
            raise EmitRejectedError(
                f"{kind.__qualname__}: the header {name[:50]!r} cannot be sent: names are printable and have 1 to "
                f"{_LONGEST_HEADER_NAME} bytes"
            )
        if own_header(name):
            raise EmitRejectedError(
                f"{kind.__qualname__}: the header {name[:50]!r} is one that only Dispytch writes; name it differently"
            )
        if not isinstance(value, bytes):
            if not _is_text(text := str(value)):
                raise EmitRejectedError(
                    f"{kind.__qualname__}: the value of the header {name!r} holds half a surrogate pair; give proper "
                    "text, or bytes"
                )
            value = text.encode()
        size += length + len(value)
        found.append((name, value))
    if size > _LARGEST_HEADERS:
        raise EmitRejectedError(
            f"{kind.__qualname__} has {size} bytes of headers, and {_LARGEST_HEADERS} are the most that is sent; put "
            "what is large into the body"
        )
    return found


def _is_text(text: str) -> bool:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return False
    return True
