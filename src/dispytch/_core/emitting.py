"""From an event to a message: route, key, options, envelope and bytes, compiled once for each class."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

from pydantic import BaseModel

from dispytch._core.codec import Serializer
from dispytch._core.envelope import CURRENT, TRAVELLING, Envelope, Opened, Seal, Sealing
from dispytch._core.events import EventBase, declaration
from dispytch._core.messages import Features, Headers, Message
from dispytch._core.routes import EventConfig, EventRoute, PortableRoute, Template, compile_config, compile_route
from dispytch.errors import ConfigurationError, DispytchError, EmitRejectedError

__all__ = ["MessageFactory", "several"]

_NO_HEADERS: Headers = ()

# The slot itself: pydantic's own attribute access looks in many places first, for every event.
_slot: Any = EventBase.__dict__["_dispytch_id"]
_get_id, _set_id = _slot.__get__, _slot.__set__


class Target(Protocol):
    """What the factory asks of a producer."""

    features: Features

    def route_for(self, topic: str) -> EventRoute: ...
    def accepts(self, route: EventRoute, config: EventConfig | None) -> str | None: ...
    def check(self, message: Message) -> None: ...


class _Plan(NamedTuple):
    route: Callable[[Any], EventRoute]
    config: Callable[[Any], EventConfig | None]
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
        new_id: Callable[[], str],
    ) -> None:
        self._producer = producer
        self._serializer = serializer
        self._envelope = envelope
        self._source = source
        self._now = now
        self._new_id = new_id
        self._plans: dict[type[EventBase], _Plan] = {}

    def make(self, event: EventBase, id: str | None = None) -> Message:
        """The message of an event, ready to be sent.

        Args:
            id: The event's id from now on; by default the one that this object was given when it was last emitted.

        Raises:
            ConfigurationError: the event's class cannot go to this producer.
            EmitRejectedError: this event cannot: a value does not fit its route, or it cannot be serialized.
        """
        kind = type(event)
        plan = self._plans.get(kind)
        if plan is None:
            plan = self._plans[kind] = self._compile(kind, event)
        if id is None:
            try:
                id = _get_id(event)
            except AttributeError:
                id = self._new_id()
                _set_id(event, id)
        elif not id:
            raise EmitRejectedError("emit(id='') is no id; leave it out, or give a non-empty string")
        else:
            _set_id(event, id)
        route = plan.route(event)
        config = plan.config(event)
        current = CURRENT.get(None)
        try:
            key = None if plan.key is None or (text := plan.key.fill(event)) is None else text.encode()
            headers, payload = plan.seal(
                id,
                self._now(),
                key,
                event,
                () if current is None else _travelling(current),
                _NO_HEADERS if config is None else _own_headers(config),
            )
        except DispytchError:
            raise
        except Exception as error:
            raise EmitRejectedError(
                # What the error says may quote the event: that is left to the cause.
                f"{kind.__qualname__} cannot be written by {type(self._serializer).__name__} ({type(error).__name__})"
            ) from error
        message = Message(id, route, payload, headers, key, config)
        self._producer.check(message)
        return message

    def make_many(self, events: Iterable[EventBase]) -> list[Message]:
        """The messages of several events; if one cannot be made, none is."""
        make = self.make
        return [make(event) for event in events]

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
            compile_route(route, owner),
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
    found = [(name, value) for name in TRAVELLING if (value := current.attribute(name)) is not None]
    if not any(name == "correlationid" for name, _ in found):
        found.append(("correlationid", current.id))
    return found


def _own_headers(config: EventConfig) -> Headers:
    headers = getattr(config, "headers", None)
    if not headers:
        return _NO_HEADERS
    return [(name, value if isinstance(value, bytes) else str(value).encode()) for name, value in headers.items()]
