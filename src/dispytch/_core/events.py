"""Event classes, and the event object that a handler receives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar, get_args, get_origin
from uuid import uuid4

from pydantic import BaseModel, ConfigDict

from dispytch._core.messages import DeadLetter, Headers
from dispytch._core.patterns import Pattern
from dispytch._core.routes import EventConfig, EventRoute, PortableRoute, Template, route_templates
from dispytch._core.settling import ACKED, Said, nacked, rejected
from dispytch.errors import ConfigurationError

__all__ = ["Declaration", "Event", "EventBase", "Meta", "declaration"]

if TYPE_CHECKING:
    import typing_extensions

    # Bare Event has a dict, for type checkers too; in typing itself a TypeVar has no default before Python 3.13.
    T_co = typing_extensions.TypeVar("T_co", covariant=True, default=dict[str, Any])
else:
    T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Declaration:
    """What an event class says of itself, checked when the class was defined."""

    type: str
    route: EventRoute | None
    key: Template | None
    config: EventConfig | None


class EventBase(BaseModel):
    """The base of event classes: a pydantic model that says where its instances go.

    Attributes:
        __topic__: A portable address that works on every transport; may be a template, ``"tenant.{tenant_id}.users"``.
        __route__: A route of one transport instead. A class has one or the other; the nearest in its ancestry wins.
        __event_type__: The event's type; the class's own name by default, not inherited.
        __key__: A template for the ordering and partitioning key.
        __backend_config__: Options of one transport.

    Raises:
        ConfigurationError: when a class is defined with a declaration that cannot work.
    """

    __slots__ = ("_dispytch_id",)

    __topic__: ClassVar[str | None] = None
    __route__: ClassVar[EventRoute | None] = None
    __event_type__: ClassVar[str] = ""
    __key__: ClassVar[str | None] = None
    __backend_config__: ClassVar[EventConfig | None] = None
    __dispytch__: ClassVar[Declaration]

    # JSON has no NaN or infinity; as strings they pass every JSON parser, and pydantic reads them back as floats.
    model_config: ClassVar[ConfigDict] = ConfigDict(ser_json_inf_nan="strings")

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        cls.__dispytch__ = _declare(cls)


def declaration(kind: type[EventBase]) -> Declaration:
    """What an event class declares; ``EventBase`` itself declares nothing."""
    return kind.__dispytch__ if "__dispytch__" in kind.__dict__ else Declaration(kind.__name__, None, None, None)


def _declare(cls: type[EventBase]) -> Declaration:
    owner = f"event class {cls.__module__}.{cls.__qualname__}"
    own = cls.__dict__
    if own.get("__topic__") is not None and own.get("__route__") is not None:
        raise ConfigurationError(f"{owner} declares both __topic__ and __route__; keep one of them")
    route = _route(cls, owner)
    if route is not None:
        for template in route_templates(route, owner).values():
            _check_paths(cls, template, owner)
    key_text = _declared(cls, "__key__", str, owner)
    key = None
    if key_text is not None:
        key = Template(key_text, owner)
        _check_paths(cls, key, owner)
    config = _declared(cls, "__backend_config__", EventConfig, owner)
    if config is not None:
        for template in route_templates(config, owner).values():
            _check_paths(cls, template, owner)
    return Declaration(_event_type(cls, owner), route, key, config)


def _route(cls: type[EventBase], owner: str) -> EventRoute | None:
    for base in cls.__mro__:
        topic, route = base.__dict__.get("__topic__"), base.__dict__.get("__route__")
        if topic is not None:
            if not isinstance(topic, str) or not topic:
                raise ConfigurationError(f"{owner}: __topic__ must be a non-empty string, not {topic!r}")
            try:
                pattern = Pattern.parse(topic)
            except ConfigurationError as error:
                raise ConfigurationError(f"{owner}: {error}") from None
            if (not pattern.is_literal and not pattern.names) or "*" in topic or "#" in topic:
                raise ConfigurationError(f"{owner}: __topic__ {topic!r} holds a wildcard; an event goes to one topic")
            return PortableRoute(topic)
        if route is not None:
            if not isinstance(route, EventRoute):
                raise ConfigurationError(
                    f"{owner}: __route__ must be a route such as RedisEventRoute(...), not {type(route).__name__}; "
                    "for a plain string use __topic__"
                )
            return route
    return None


def _declared(cls: type[EventBase], name: str, kind: type[Any], owner: str) -> Any:
    value = getattr(cls, name, None)
    if value is not None and not isinstance(value, kind):
        raise ConfigurationError(f"{owner}: {name} must be {kind.__name__}, not {type(value).__name__}")
    return value


def _event_type(cls: type[EventBase], owner: str) -> str:
    origin = cls.__pydantic_generic_metadata__["origin"]
    if origin is not None and issubclass(origin, EventBase):
        return declaration(origin).type
    name = cls.__dict__.get("__event_type__", cls.__name__)
    if not isinstance(name, str) or not name:
        raise ConfigurationError(f"{owner}: __event_type__ must be a non-empty string, not {name!r}")
    return name


def _check_paths(cls: type[EventBase], template: Template, owner: str) -> None:
    for path in template.paths:
        model: Any = cls
        for name in path.split("."):
            if not (isinstance(model, type) and issubclass(model, BaseModel)):
                break  # not a plain model from here on: looked up when an event is emitted
            if name in model.model_fields:
                model = model.model_fields[name].annotation
            elif name in model.model_computed_fields or isinstance(getattr(model, name, None), property):
                break
            elif model.model_config.get("extra") == "allow":
                break  # may be among what it takes beside its fields
            else:
                known = ", ".join(model.model_fields) or "none"
                raise ConfigurationError(
                    f"{owner}: {template.source!r} needs the field {path!r}, but {model.__qualname__} has no {name!r} "
                    f"(its fields: {known})"
                )


class Meta:
    """What is known of an event beside its body.

    Attributes:
        id: The event's id: the emitter's, or the broker's position if the message came without.
        type: The event's type; ``None`` if the message came without.
        topic: The topic, channel, stream or routing key that it came by.
        timestamp: When it was emitted, aware, UTC; if the message does not say, when the broker or the consumer did.
        headers: The message's headers as strings, read-only; the last one wins where a name repeats.
        raw_headers: The headers as received.
        key: The ordering key as text.
        params: The segments that the subscription captured, by name.
        attempt: 1 + the failures known for this handler and event.
        dead_letter: What failed, if this is a dead letter.
        message: The raw message.
    """

    __slots__ = (
        "attempt",
        "dead_letter",
        "headers",
        "id",
        "key",
        "message",
        "params",
        "raw_headers",
        "timestamp",
        "topic",
        "type",
    )

    def __init__(
        self,
        *,
        id: str | None = None,
        type: str | None = None,
        topic: str = "",
        timestamp: datetime | None = None,
        raw_headers: Headers = (),
        key: str | None = None,
        params: Mapping[str, str] | None = None,
        attempt: int = 1,
        dead_letter: DeadLetter | None = None,
        message: Any = None,
    ) -> None:
        self.id: str = str(uuid4()) if id is None else id
        self.type: str | None = type
        self.topic: str = topic
        self.timestamp: datetime = datetime.now(UTC) if timestamp is None else timestamp
        self.raw_headers: Headers = tuple(raw_headers)
        self.headers: Mapping[str, str] = MappingProxyType(
            {name: value.decode("utf-8", "replace") for name, value in self.raw_headers}
        )
        self.key: str | None = key
        self.params: Mapping[str, str] = MappingProxyType(dict(params or {}))
        self.attempt: int = attempt
        self.dead_letter: DeadLetter | None = dead_letter
        self.message: Any = message

    def __repr__(self) -> str:
        return f"Meta(id={self.id!r}, type={self.type!r}, topic={self.topic!r}, attempt={self.attempt})"

    def __getstate__(self) -> dict[str, Any]:
        state = {name: getattr(self, name) for name in self.__slots__ if name != "headers"}
        state["params"] = dict(self.params)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        Meta.__init__(self, **state)


class _Context(Protocol):
    """What made an event: it knows its meta, and takes what the handler says of it."""

    def make_meta(self) -> Meta: ...

    def say(self, said: Said) -> None: ...


class Event(Generic[T_co]):
    """An event as a handler receives it: a validated body, and what came with it.

    Every other attribute is read from the body if the body has it, else from `meta`: ``event.user`` is
    ``event.body.user``. For a body that is a mapping, its keys are the attributes. Type checkers see `body` and `meta`
    only. Handlers under test can be called with ``Event(body)``, which is settled without any effect, as is a copy.
    """

    __slots__ = ("_meta", "_origin", "body")

    body: T_co

    def __init__(self, body: T_co, meta: Meta | None = None) -> None:
        self.body: T_co = body
        self._origin: Meta | _Context | None = meta
        self._meta: Meta

    @property
    def meta(self) -> Meta:
        """The event's id, type, topic, headers and the like."""
        try:
            return self._meta
        except AttributeError:
            # Most handlers never look, so it is made when the first one does.
            origin = self._origin
            self._meta = Meta() if origin is None else origin if isinstance(origin, Meta) else origin.make_meta()
            return self._meta

    def ack(self) -> None:
        """Settles the event: handled. What the handler does afterwards changes nothing, not even if it fails.

        A plain call, from any thread; the acknowledgement goes with the dispatcher's next batch, once all handlers of
        the event are done with it. What a handler says first of an event counts, the rest is ignored.
        """
        self._say(ACKED)

    def nack(self, delay: float | None = None) -> None:
        """Settles the event: a failure of this handler, to be tried again once it has returned. See `ack`.

        Args:
            delay: Seconds until then; with ``None`` the usual back-off.

        Raises:
            ConfigurationError: the delay is no number of seconds.
        """
        self._say(nacked(delay))

    def reject(self, reason: str | None = None) -> None:
        """Settles the event: this handler will never be able to handle it, so it is dead-lettered. See `ack`.

        Args:
            reason: What the dead letter says.
        """
        self._say(rejected(reason))

    def _say(self, said: Said) -> None:
        origin = self._origin
        if origin is not None and not isinstance(origin, Meta):
            origin.say(said)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__") or name in Event.__slots__:  # a slot gets here while it is empty
                raise AttributeError(f"Event has no attribute {name!r}")
            body = self.body
            if isinstance(body, Mapping):
                if name in body:
                    return body[name]
            else:
                try:
                    return getattr(body, name)
                except AttributeError:
                    pass
            if name in Meta.__slots__:
                return getattr(self.meta, name)
            raise AttributeError(f"neither the event's body ({type(body).__name__}) nor its meta has {name!r}")

    def __repr__(self) -> str:
        return f"Event({type(self.body).__name__}, {self.meta!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Event) and self.body == other.body and self.meta.id == other.meta.id

    def __hash__(self) -> int:
        return hash(self.meta.id)

    def __reduce__(self) -> tuple[Any, ...]:
        return Event, (self.body, self.meta)


def event_argument(annotation: Any) -> tuple[bool, Any]:
    """Whether an annotation is ``Event`` or ``Event[T]``, and its ``T`` (a dict for none given)."""
    if annotation is Event:
        return True, dict[str, Any]
    if get_origin(annotation) is Event:
        (argument,) = get_args(annotation)
        return True, dict[str, Any] if argument is Ellipsis else argument
    return False, None
