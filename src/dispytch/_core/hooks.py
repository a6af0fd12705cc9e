"""What looks on while events are emitted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from dispytch._core.events import EventBase
from dispytch._core.messages import Message, Receipt
from dispytch._core.routes import EventRoute
from dispytch.errors import DispytchError

__all__ = ["EmitCall", "EmitHook"]


class EmitCall:
    """One call of ``emit`` or ``emit_many``, as hooks see it.

    Attributes:
        events: The events.
        is_many: Whether it is an ``emit_many``.
        transport: The transport's name, such as ``"kafka"``.
        destinations: Where each event class of it goes, by telemetry's name for it, in the order of the events;
            templates are not filled in, so there are few different ones.
        headers: What is to travel with all the events; see `EmitHook`.
        messages: What is sent, aligned with the events; empty until they are made.
        outcomes: What became of each; empty until that is known, and if the call failed as a whole.
    """

    __slots__ = ("_name_of", "destinations", "events", "headers", "is_many", "messages", "outcomes", "transport")

    def __init__(
        self,
        events: Sequence[EventBase],
        is_many: bool,
        transport: str,
        destinations: Sequence[str],
        name_of: Callable[[EventRoute], str],
    ) -> None:
        self.events: Sequence[EventBase] = events
        self.is_many: bool = is_many
        self.transport: str = transport
        self.destinations: Sequence[str] = destinations
        self._name_of = name_of
        self.headers: dict[str, str] = {}
        self.messages: Sequence[Message] = ()
        self.outcomes: Sequence[Receipt | DispytchError] = ()

    def destination_of(self, message: Message) -> str:
        """Where a message goes, by telemetry's name for it, templates filled in."""
        return self._name_of(message.route)

    def __repr__(self) -> str:
        return f"<EmitCall of {len(self.events)} events to {', '.join(dict.fromkeys(self.destinations))}>"


class EmitHook(ABC):
    """Looks on while emitters emit: ``EventEmitter(producer, hooks=[...])``, those of blocking code too.

    One instance may serve any number of emitters, tasks and threads.
    """

    @abstractmethod
    def around(self, call: EmitCall) -> AbstractContextManager[Any] | None:
        """A plain context manager around an emit, the first hook outermost; ``None`` to leave it alone.

        It is entered before the messages are made: what it puts into ``call.headers`` travels with each of them, as
        a header where the transport has some, else within the envelope, in the place of what is there by that name.
        ``traceparent`` and ``tracestate`` are attributes of CloudEvents too. When it is exited, ``call.outcomes``
        tells what became of each event, unless the call has failed as a whole: then that error is seen. It cannot be
        swallowed.
        """
