"""Emitters that note what they emit, and say in a test that fails what was emitted instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

import anyio.lowlevel

from dispytch._core.emitting import MessageFactory
from dispytch._core.events import EventBase
from dispytch._runtime.emitter import EventEmitter
from dispytch.abc import EmitHook, EventConfig, EventRoute, Message, ProducerBase, Receipt, Serializer
from dispytch.errors import ConfigurationError, DispytchError, EmitRejectedError
from dispytch.memory import BlockingMemoryProducer, MemoryBroker, MemoryProducer
from dispytch.serialization import Envelope
from dispytch.sync import EventEmitter as BlockingEventEmitter

__all__ = ["BlockingRecordingEmitter", "Emission", "RecordingEmitter", "Recordings"]

EventT = TypeVar("EventT", bound=EventBase)

_MOST_SHOWN = 20
_LONGEST_SHOWN = 300


@dataclass(frozen=True, slots=True)
class Emission:
    """An event as it was emitted.

    Attributes:
        event: The event, the object itself.
        id: Its id.
        topic: Where it went: the topic, channel, stream or routing key, with the template filled in.
        key: Its ordering key; ``None`` without a ``__key__``.
        headers: Its headers, those of the envelope among them; read-only.
        config: The options of its ``__backend_config__``, with templates filled in.
        payload: The bytes of its body, or of all of it where the envelope has no headers.
    """

    event: EventBase
    id: str
    topic: str
    key: str | None
    headers: Mapping[str, str]
    config: EventConfig | None
    payload: bytes | None

    def __str__(self) -> str:
        text = repr(self.event)
        if len(text) > _LONGEST_SHOWN:
            text = f"{text[:_LONGEST_SHOWN]}..."
        return f"{text} to {self.topic}"


class Recordings:
    """What was emitted, and assertions about it.

    Attributes:
        emissions: All that was emitted, in order, with topic, key and headers.
    """

    emissions: list[Emission]

    def emitted(self, kind: type[EventT]) -> list[EventT]:
        """The events of a class and of those derived from it, in the order in which they were emitted."""
        return [one.event for one in self.emissions if isinstance(one.event, kind)]

    def assert_emitted(
        self,
        kind: type[EventT],
        /,
        *,
        times: int | None = None,
        where: Callable[[EventT], object] | None = None,
        **fields: Any,
    ) -> list[EventT]:
        """Asserts that events of a class were emitted, and returns them.

        Args:
            kind: The event class; those derived from it count too.
            times: How many there are to be; with ``None`` at least one.
            where: Counts only events for which this is true.
            fields: Counts only events whose fields have these values.

        Raises:
            AssertionError: there were none, or not as many; it tells what was emitted instead.
            TypeError: the class has no such field, or is none.
        """
        __tracebackhide__ = True
        _check(kind, fields)
        found = [event for event in self.emitted(kind) if _matches(event, where, fields)]
        if found if times is None else len(found) == times:
            return found
        raise AssertionError(
            f"{_wanted(kind, where, fields)} {_count(len(found), times)}. {self._instead(kind, fields)}"
        )

    def assert_not_emitted(
        self, kind: type[EventT], /, *, where: Callable[[EventT], object] | None = None, **fields: Any
    ) -> None:
        """Asserts that no such event was emitted; see `assert_emitted`."""
        __tracebackhide__ = True
        self.assert_emitted(kind, times=0, where=where, **fields)

    def clear(self) -> None:
        """Forgets what was emitted so far."""
        self.emissions.clear()

    def _instead(self, kind: type[EventBase], fields: Mapping[str, Any]) -> str:
        emissions = list(self.emissions)
        if not emissions:
            return "Nothing was emitted."
        lines = [f"  {one}{_differences(one.event, kind, fields)}" for one in emissions[:_MOST_SHOWN]]
        if len(emissions) > _MOST_SHOWN:
            lines.append(f"  ... and {len(emissions) - _MOST_SHOWN} more")
        return "\n".join([f"What was emitted ({len(emissions)}):", *lines])


class RecordingEmitter(Recordings, EventEmitter):
    """An emitter for tests, in the place of a `dispytch.EventEmitter`: no broker gets its events, and it notes them.

    Events are checked and serialized like those of the real emitter, so a bad one fails here too.

    Args:
        like: The producer in whose place it is: its rules on routes, options, names and sizes hold, and it is never
            connected. Without one, routes and options of every transport are taken.
        broker: The in-process broker that gets the events, for the handlers that listen there, and whose faults are the
            emitter's; by default one of its own.
        serializer: The codec of the bodies; JSON by default.
        envelope: How id, type and time travel with a body; CloudEvents by default.
        source: What emits, as CloudEvents has it.
        timeout: Seconds; there is nothing to wait for, but it must be one that the real emitter takes.
        hooks: What looks on at every emit.

    Raises:
        ConfigurationError: an option is wrong.
    """

    def __init__(
        self,
        *,
        like: ProducerBase | None = None,
        broker: MemoryBroker | None = None,
        serializer: Serializer | None = None,
        envelope: Envelope | None = None,
        source: str = "dispytch",
        timeout: float | None = 30.0,
        hooks: Sequence[EmitHook] = (),
    ) -> None:
        producer = _Recorder(like, broker)
        super().__init__(producer, serializer, envelope=envelope, source=source, timeout=timeout, hooks=hooks)
        self.emissions: list[Emission] = producer.emissions
        self._factory = _NotingFactory(self._factory)


class BlockingRecordingEmitter(Recordings, BlockingEventEmitter):
    """An emitter for tests, in the place of a `dispytch.sync.EventEmitter`; any number of threads may share it.

    Like the real one it refuses to be called where an event loop runs.

    Args:
        like: The producer in whose place it is; see `RecordingEmitter`.
        broker: The in-process broker that gets the events; by default one of its own.
        serializer: The codec of the bodies; JSON by default.
        envelope: How id, type and time travel with a body; CloudEvents by default.
        source: What emits, as CloudEvents has it.
        timeout: Seconds; there is nothing to wait for, but it must be one that the real emitter takes.
        hooks: What looks on at every emit.

    Raises:
        ConfigurationError: an option is wrong.
    """

    def __init__(
        self,
        *,
        like: ProducerBase | None = None,
        broker: MemoryBroker | None = None,
        serializer: Serializer | None = None,
        envelope: Envelope | None = None,
        source: str = "dispytch",
        timeout: float | None = 30.0,
        hooks: Sequence[EmitHook] = (),
    ) -> None:
        producer = _Recorder(like, broker)
        super().__init__(producer, serializer, envelope=envelope, source=source, timeout=timeout, hooks=hooks)
        self.emissions: list[Emission] = producer.emissions
        self._factory = _NotingFactory(self._factory)


# --- how an event comes to be noted


class _Noted(Message):
    """A message that knows its event."""

    __slots__ = ("event",)

    def __init__(self, event: EventBase, message: Message) -> None:
        super().__init__(message.id, message.route, message.payload, message.headers, message.key, message.config)
        self.event: EventBase = event


class _NotingFactory(MessageFactory):
    """Makes the messages that another factory makes, each with its event."""

    def __init__(self, factory: MessageFactory) -> None:
        self._made_by = factory

    def make(self, event: EventBase, id: str | None = None, headers: Mapping[str, str] | None = None) -> Message:
        return _Noted(event, self._made_by.make(event, id, headers))

    def make_many(self, events: Sequence[EventBase], headers: Mapping[str, str] | None = None) -> list[Message]:
        made = self._made_by.make_many(events, headers)
        return [_Noted(event, message) for event, message in zip(events, made, strict=True)]

    def destination(self, event: EventBase) -> str:
        return self._made_by.destination(event)


class _Recorder(MemoryProducer):
    """Takes and refuses what the producer does in whose place it is; without one, takes routes of any transport."""

    def __init__(self, like: ProducerBase | None, broker: MemoryBroker | None) -> None:
        if like is not None and not isinstance(like, ProducerBase):
            raise ConfigurationError(
                "like= is the producer in whose place the emitter is, such as KafkaProducer(...), not "
                f"{type(like).__name__}"
            )
        super().__init__(MemoryBroker() if broker is None else broker)
        self._like = like
        self.emissions: list[Emission] = []

    def route_for(self, topic: str) -> EventRoute:
        return super().route_for(topic) if self._like is None else self._like.route_for(topic)

    def destination(self, route: EventRoute) -> str:
        return route.address if self._like is None else self._like.destination(route)

    def accepts(self, route: EventRoute, config: EventConfig | None) -> str | None:
        return None if self._like is None else self._like.accepts(route, config)

    def check(self, message: Message) -> None:
        if self._like is not None:
            self._like.check(message)
        super().check(message)

    def publish(self, messages: Sequence[Message]) -> Sequence[Receipt | DispytchError]:
        """Publishes messages, and notes those that the broker has got."""
        outcomes = self.broker.publish(messages)
        for message, outcome in zip(messages, outcomes, strict=True):
            if isinstance(message, _Noted) and not isinstance(outcome, EmitRejectedError):
                self.emissions.append(_emission(message))
        return outcomes

    async def send(self, messages: Sequence[Message], timeout: float | None) -> Sequence[Receipt | DispytchError]:
        outcomes = self.publish(messages)
        await anyio.lowlevel.cancel_shielded_checkpoint()  # they are published: too late to be cancelled
        return outcomes

    def blocking(self) -> BlockingMemoryProducer:
        return _BlockingRecorder(self)


class _BlockingRecorder(BlockingMemoryProducer):
    """The same for blocking code."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__(recorder.broker)
        self._recorder = recorder

    def route_for(self, topic: str) -> EventRoute:
        return self._recorder.route_for(topic)

    def destination(self, route: EventRoute) -> str:
        return self._recorder.destination(route)

    def accepts(self, route: EventRoute, config: EventConfig | None) -> str | None:
        return self._recorder.accepts(route, config)

    def check(self, message: Message) -> None:
        self._recorder.check(message)

    def send(self, messages: Sequence[Message], timeout: float | None) -> Sequence[Receipt | DispytchError]:
        return self._recorder.publish(messages)


def _emission(message: _Noted) -> Emission:
    return Emission(
        message.event,
        message.id,
        message.route.address,
        None if message.key is None else message.key.decode(),
        MappingProxyType({name: value.decode("utf-8", "replace") for name, value in message.headers}),
        message.config,
        message.payload,
    )


# --- which events are meant, and what is said if they are not there


def _check(kind: type[EventBase], fields: Mapping[str, Any]) -> None:
    if not (isinstance(kind, type) and issubclass(kind, EventBase)):
        raise TypeError(
            f"give the class of the event, not {kind!r}; values of its fields are given by name: "
            "assert_emitted(OrderShipped, order_id=1)"
        )
    if kind.model_config.get("extra") == "allow":
        return
    for name in fields:
        if name not in kind.model_fields and not hasattr(kind, name) and name not in kind.model_computed_fields:
            known = ", ".join(kind.model_fields) or "none"
            raise TypeError(f"{kind.__qualname__} has no field {name!r} (its fields: {known}); for more use where=")


def _matches(event: EventT, where: Callable[[EventT], object] | None, fields: Mapping[str, Any]) -> bool:
    return all(_value(event, name) == value for name, value in fields.items()) and (where is None or bool(where(event)))


def _value(event: EventBase, name: str) -> Any:
    return getattr(event, name, _ABSENT)


class _Absent:
    def __repr__(self) -> str:
        return "absent"


_ABSENT = _Absent()


def _wanted(kind: type[EventBase], where: Callable[..., object] | None, fields: Mapping[str, Any]) -> str:
    conditions = [f"{name}={value!r}" for name, value in fields.items()]
    if where is not None:
        name = getattr(where, "__name__", "<lambda>")
        conditions.append("where=..." if name == "<lambda>" else f"{name}()")
    return f"{kind.__qualname__} with {', '.join(conditions)}" if conditions else kind.__qualname__


def _count(found: int, wanted: int | None) -> str:
    if wanted is None or (wanted == 1 and not found):
        return "was not emitted"
    return f"was emitted {_times(found)}" + (f", not {_times(wanted)}" if wanted else "")


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _differences(event: EventBase, kind: type[EventBase], fields: Mapping[str, Any]) -> str:
    """Of an event of the right class, in which of the fields it is another one."""
    if not isinstance(event, kind):
        return ""
    found = [
        f"{name} is {value!r}, not {wanted!r}"
        for name, wanted in fields.items()
        if (value := _value(event, name)) != wanted
    ]
    return f" -- {'; '.join(found)}" if found else ""
