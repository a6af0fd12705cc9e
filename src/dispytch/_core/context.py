"""What middleware sees, and the contract of a middleware."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

from dispytch._core.deadletters import read_dead_letter
from dispytch._core.envelope import Opened
from dispytch._core.events import Meta
from dispytch._core.messages import Delivery
from dispytch._core.patterns import Pattern, segments
from dispytch._core.settling import ACKED, Said, conclude
from dispytch.errors import DecodeError

__all__ = ["EventHandlerContext", "InFlight", "Middleware", "NextCall", "Pause"]


class Pause(Protocol):
    """Waits some seconds; False if the dispatcher stops meanwhile."""

    async def __call__(self, seconds: float) -> bool: ...


class InFlight(Protocol):
    """An event that is being handled, as far as its contexts need it."""

    @property
    def pause(self) -> Pause:
        """Waits before another try."""

    @property
    def is_stale(self) -> bool:
        """It has become somebody else's, so there is to be no other try here."""

    def acknowledge(self) -> None:
        """Its only handler is done with it, though it may go on: it can be acknowledged. In any thread."""


class ConsumerInfo(Protocol):
    """A consumer, as far as contexts need it."""

    @property
    def transport(self) -> str: ...

    @property
    def group_id(self) -> str: ...

    def destination(self, delivery: Delivery) -> str: ...


class HandlerInfo(Protocol):
    """A handler, as far as its contexts need it."""

    @property
    def consumer(self) -> ConsumerInfo: ...

    @property
    def pattern(self) -> Pattern: ...

    @property
    def name(self) -> str: ...

    @property
    def identity(self) -> str: ...

    @property
    def delimiter(self) -> str | None: ...


class EventHandlerContext:
    """One event on its way to one handler, as middleware sees it.

    Attributes:
        params: The segments that the subscription captured, by name.
        failures: How often this handler has failed on this event so far.
        cut_short: Whether a back-off came to nothing, since the dispatcher stops or the event has become somebody
            else's meanwhile, so that the failure is not the last word.
        has_failed: Whether a try has failed with this context; False where middleware alone has.
        said: What the handler has said of the event, if anything.
    """

    __slots__ = (
        "_event",
        "_handler",
        "_in_flight",
        "_meta",
        "_opened",
        "_state",
        "cut_short",
        "failures",
        "has_failed",
        "params",
        "said",
    )

    def __init__(
        self,
        opened: Opened,
        handler: HandlerInfo,
        params: Mapping[str, str],
        failures: int,
        in_flight: InFlight,
    ) -> None:
        self._opened = opened
        self._handler = handler
        self.params: Mapping[str, str] = params
        self.failures: int = failures
        self.cut_short: bool = False
        self.has_failed: bool = False
        self._in_flight = in_flight
        self.said: Said | None = None
        self._meta: Meta | None = None
        self._event: Mapping[str, Any] | None = None
        self._state: dict[Any, Any] | None = None

    @property
    def handler(self) -> str:
        """The handler's qualified name."""
        return self._handler.name

    @property
    def identity(self) -> str:
        """What tells the handler from all others.

        Its consumer group, a slash, and its name, numbered where several of one consumer have the same.
        """
        return self._handler.identity

    @property
    def pattern(self) -> str:
        """The topic that the handler listens to, or the pattern of topics."""
        return self._handler.pattern.source

    @property
    def transport(self) -> str:
        """The name of the transport that the event came by, such as ``"kafka"``."""
        return self._handler.consumer.transport

    @property
    def group(self) -> str:
        """The consumer group that handles it."""
        return self._handler.consumer.group_id

    @property
    def destination(self) -> str:
        """Where the event came from, as telemetry names it; see `dispytch.abc.Consumer.destination`."""
        return self._handler.consumer.destination(self._opened.delivery)

    @property
    def event_id(self) -> str:
        """The event's id; cheaper than `meta`."""
        return self._opened.id

    def attribute(self, name: str) -> str | None:
        """A header, or else an attribute of the envelope, by name; cheaper than `meta`.

        The transport's own header wins over an attribute of the same name.
        """
        for header, raw in self._opened.delivery.headers:
            if header == name:
                return raw.decode("utf-8", "replace")
        return self._opened.attribute(name)

    @property
    def log_fields(self) -> dict[str, object]:
        """What log records about it have as ``extra``."""
        return {
            "topic": self._opened.delivery.source,
            "event_id": self._opened.id,
            "handler": self.handler,
            "group": self.group,
            "attempt": self.failures,
        }

    @property
    def event(self) -> Mapping[str, Any]:
        """The event's data as a read-only mapping, decoded when first asked for; not validated.

        Raises:
            DecodeError: it cannot be decoded, or is no mapping.
        """
        if self._event is None:
            data = self._opened.decoded()
            if not isinstance(data, dict):
                raise DecodeError(f"ctx.event needs an object as the event's data, but it is {type(data).__name__}")
            self._event = MappingProxyType(data)
        return self._event

    @property
    def events(self) -> Sequence[Mapping[str, Any]]:
        """The data of the events: of the one, or of all of a batch. See `event`."""
        return (self.event,)

    @property
    def contexts(self) -> Sequence[EventHandlerContext]:
        """The contexts of the events: this one, or one for each event of a batch."""
        return (self,)

    @property
    def event_route(self) -> tuple[str, ...]:
        """The segments of the address that the event came by."""
        return segments(self._opened.delivery.source, self._handler.delimiter)

    @property
    def message(self) -> Delivery:
        """The raw message."""
        return self._opened.delivery

    @property
    def meta(self) -> Meta:
        """The event's id, type, topic, headers and the like."""
        meta = self._meta
        if meta is None or meta.attempt != self.failures + 1:
            meta = self._meta = self.make_meta()
        return meta

    @property
    def state(self) -> dict[Any, Any]:
        """A dict for what middleware wants to hand on during this delivery."""
        if self._state is None:
            self._state = {}
        return self._state

    async def back_off(self, seconds: float) -> bool:
        """Waits before another try.

        Returns:
            False if there is to be no other try, and the failure should be raised: the dispatcher is stopping, which
            ends the wait at once, or the event has become somebody else's meanwhile.
        """
        waited = await self._in_flight.pause(seconds) and not self._in_flight.is_stale
        self.cut_short = not waited
        return waited

    async def pause(self, seconds: float) -> bool:
        """Waits for something else than another try; False if the dispatcher stops, which ends the wait at once."""
        return await self._in_flight.pause(seconds)

    def make_meta(self) -> Meta:
        opened = self._opened
        delivery = opened.delivery
        key = None
        if opened.key is not None:
            key = opened.key.decode("utf-8", "backslashreplace")
        return Meta(
            id=opened.id,
            type=opened.type,
            topic=delivery.source,
            timestamp=opened.timestamp,
            raw_headers=opened.headers,
            key=key,
            params=self.params,
            attempt=self.failures + 1,
            dead_letter=read_dead_letter(delivery.headers),
            message=delivery,
        )

    def say(self, said: Said) -> None:
        """Takes what the handler says of the event; only the first counts. In any thread."""
        if self.said is None:
            self.said = said
            if said == ACKED:
                self._in_flight.acknowledge()

    @property
    def has_word(self) -> bool:
        """Whether the handler has settled the event."""
        return self.said is not None

    @property
    def is_acked(self) -> bool:
        """Whether the handler has said that it is done with the event, be it that it failed or was cut off later."""
        return self.said == ACKED

    def conclude(self, error: BaseException | None, is_manual: bool) -> BaseException | None:
        """How a try has ended, see `dispytch._core.settling.conclude`. An acknowledgement stands from now on."""
        said = self.said
        if said is not None and said != ACKED:
            self.said = None
        return conclude(said, error, is_manual)

    def failed(self) -> None:
        """Counts a try that failed."""
        self.failures += 1
        self.has_failed = True

    def __repr__(self) -> str:
        return f"<EventHandlerContext of {self.handler}, event {self._opened.id}>"


NextCall = Callable[[EventHandlerContext], Awaitable[Any]]
"""Goes on to the next middleware, or to the handler; returns what the handler returned."""


class Middleware(ABC):
    """Wraps the handlers it is given to. One instance serves all events, concurrently."""

    takes_batches: ClassVar[bool] = True
    """Whether it can wrap a handler of batches; one that decides on single events cannot, and is refused there."""
    cancels: ClassVar[bool] = False
    """Whether it cancels what it wraps. A thread cannot be cancelled, so such a middleware is refused on a ``def``
    handler, and skipped for those where it is given to a router or a dispatcher."""

    @abstractmethod
    async def dispatch(self, ctx: EventHandlerContext, call_next: NextCall) -> Any:
        """Does what it is for, and calls ``call_next(ctx)`` once, several times, or not at all.

        Not calling it drops the event for this handler, as handled. What is raised counts as the handler's failure.
        """
