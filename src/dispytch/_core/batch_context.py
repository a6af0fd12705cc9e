"""What middleware sees of a batch: its events, and one call for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from dispytch._core.bodies import BodyType
from dispytch._core.context import EventHandlerContext, HandlerInfo, Pause
from dispytch._core.events import Event, Meta
from dispytch._core.messages import Delivery
from dispytch.errors import ConfigurationError

__all__ = ["BatchContext"]


class BatchContext(EventHandlerContext):
    """A batch on its way to a handler, as middleware sees it: once for all of its events.

    What only a single event has (`event`, `event_id`, `event_route`, `attribute`, `destination`, `message`, `meta`) is
    asked of each of `contexts`.
    """

    __slots__ = ("_bodies", "_parts", "_pause")

    def __init__(
        self,
        handler: HandlerInfo,
        parts: Sequence[EventHandlerContext],
        pause: Pause,
        bodies: dict[BodyType, list[Any]],
    ) -> None:
        self._parts = parts
        self._pause = pause
        # Read already, to see whether they can be; whatever tries again has bodies of its own.
        self._bodies = bodies
        self._state = None
        self._handler = handler
        self.params = MappingProxyType({})
        self.failures = max((part.failures for part in parts), default=0)
        self.cut_short = False
        self.has_failed = False

    @property
    def event(self) -> Mapping[str, Any]:
        raise self._has_many("event", "events")

    @property
    def events(self) -> Sequence[Mapping[str, Any]]:
        return [part.event for part in self._parts]

    @property
    def contexts(self) -> Sequence[EventHandlerContext]:
        return self._parts

    @property
    def event_route(self) -> tuple[str, ...]:
        raise self._has_many("event_route", "contexts[...].event_route")

    @property
    def message(self) -> Delivery:
        raise self._has_many("message", "contexts[...].message")

    @property
    def meta(self) -> Meta:
        raise self._has_many("meta", "contexts[...].meta")

    @property
    def destination(self) -> str:
        raise self._has_many("destination", "contexts[...].destination")

    @property
    def event_id(self) -> str:
        raise self._has_many("event_id", "contexts[...].event_id")

    def attribute(self, name: str) -> str | None:
        raise self._has_many("attribute()", "contexts[...].attribute()")

    @property
    def log_fields(self) -> dict[str, object]:
        return {
            "topic": self.pattern,
            "handler": self.handler,
            "group": self.group,
            "attempt": self.failures,
            "events": len(self._parts),
        }

    def _has_many(self, name: str, instead: str) -> ConfigurationError:
        return ConfigurationError(
            f"the batch of handler {self.handler} has no ctx.{name} of its own; use ctx.{instead}"
        )

    def read(self, body: BodyType, is_wrapped: bool) -> list[Any]:
        """The events that the handler has not settled yet, or their bodies alone.

        Raises:
            DecodeError: one cannot be read.
        """
        unsettled = [part for part in self._parts if not part.has_word]
        values = self._bodies.pop(body, None)
        if values is None:
            values = [body.read(part._opened) for part in unsettled]
        if not is_wrapped:
            return values
        return [Event(value, part) for value, part in zip(values, unsettled, strict=True)]  # type: ignore[arg-type]  # it makes the meta

    async def back_off(self, seconds: float) -> bool:
        waited = await self._pause(seconds) and not all(part._in_flight.is_stale for part in self._parts)
        self.cut_short = not waited
        return waited

    async def pause(self, seconds: float) -> bool:
        return await self._pause(seconds)

    @property
    def has_word(self) -> bool:
        return all(part.has_word for part in self._parts)

    @property
    def is_acked(self) -> bool:
        return all(part.is_acked for part in self._parts)

    def conclude(self, error: BaseException | None, is_manual: bool) -> BaseException | None:
        # What is said of single events is looked at when the call is over.
        return None if self.has_word else error

    def failed(self) -> None:
        self.failures += 1
        self.has_failed = True
        for part in self._parts:
            part.has_failed = True
            if not part.has_word:
                part.failures += 1

    def __repr__(self) -> str:
        return f"<BatchContext of {self.handler}, {len(self._parts)} events>"
