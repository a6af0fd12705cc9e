"""What middleware sees, and the contract of a middleware."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

from dispytch._core.deadletters import read_dead_letter
from dispytch._core.envelope import Opened
from dispytch._core.events import Meta
from dispytch._core.messages import Delivery
from dispytch._core.patterns import segments
from dispytch.errors import DecodeError

__all__ = ["EventHandlerContext", "Middleware", "NextCall"]


class Pause(Protocol):
    """Waits some seconds; False if the dispatcher stops meanwhile."""

    async def __call__(self, seconds: float) -> bool: ...


class EventHandlerContext:
    """One event on its way to one handler, as middleware sees it.

    Attributes:
        handler: The handler's qualified name.
        identity: What tells the handler from all others: its consumer group, a slash, and its name, numbered where
            several of one consumer have the same.
        params: The segments that the subscription captured, by name.
        failures: How often this handler has failed on this event so far.
        cut_short: Whether a stop of the dispatcher ended a back-off, so that the failure is not the last word.
    """

    __slots__ = (
        "_delimiter",
        "_event",
        "_meta",
        "_opened",
        "_pause",
        "_state",
        "cut_short",
        "failures",
        "handler",
        "identity",
        "params",
    )

    def __init__(
        self,
        opened: Opened,
        handler: str,
        params: Mapping[str, str],
        failures: int,
        delimiter: str | None,
        pause: Pause,
        identity: str,
    ) -> None:
        self._opened = opened
        self.handler: str = handler
        self.identity: str = identity
        self.params: Mapping[str, str] = params
        self.failures: int = failures
        self.cut_short: bool = False
        self._delimiter = delimiter
        self._pause = pause
        self._meta: Meta | None = None
        self._event: Mapping[str, Any] | None = None
        self._state: dict[Any, Any] | None = None

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
    def event_route(self) -> tuple[str, ...]:
        """The segments of the address that the event came by."""
        return segments(self._opened.delivery.source, self._delimiter)

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
            False if the dispatcher is stopping: the wait ended at once, and the failure should be raised.
        """
        waited = await self._pause(seconds)
        self.cut_short = not waited
        return waited

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

    def __repr__(self) -> str:
        return f"<EventHandlerContext of {self.handler}, event {self._opened.id}>"


NextCall = Callable[[EventHandlerContext], Awaitable[Any]]
"""Goes on to the next middleware, or to the handler; returns what the handler returned."""


class Middleware(ABC):
    """Wraps the handlers it is given to. One instance serves all events, concurrently."""

    cancels: ClassVar[bool] = False
    """Whether it cancels what it wraps. A thread cannot be cancelled, so such a middleware is refused on a ``def``
    handler, and skipped for those where it is given to a router or a dispatcher."""

    @abstractmethod
    async def dispatch(self, ctx: EventHandlerContext, call_next: NextCall) -> Any:
        """Does what it is for, and calls ``call_next(ctx)`` once, several times, or not at all.

        Not calling it drops the event for this handler, as handled. What is raised counts as the handler's failure.
        """
