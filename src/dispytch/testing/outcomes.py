"""What comes of the events of a dispatcher that runs in a test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from dispytch._core.batch_context import BatchContext
from dispytch._core.context import EventHandlerContext, Middleware, NextCall
from dispytch._core.events import EventBase, Meta
from dispytch._core.settling import conclude
from dispytch._runtime.dispatcher import EventDispatcher
from dispytch.errors import DeliveryError
from dispytch.memory import MemoryBroker, Record
from dispytch.testing.recording import RecordingEmitter

__all__ = ["Notes", "Outcomes", "Try"]


@dataclass(frozen=True, slots=True)
class Try:
    """One call of a handler with one event, its middleware included.

    Attributes:
        handler: The handler's qualified name, such as ``"shop.orders.ship"``.
        meta: The event's id, type, topic, headers, attempt and the like, as they were when the call began.
        error: What the handler or its middleware raised, or said by ``nack()`` or ``reject()``; ``None`` for a success.
    """

    handler: str
    meta: Meta
    error: BaseException | None


class Outcomes:
    """What has come of the events of a dispatcher that runs in a test.

    Attributes:
        broker: The in-process broker that it consumes from.
        dispatcher: The dispatcher.
    """

    def __init__(
        self, dispatcher: EventDispatcher, broker: MemoryBroker, notes: Notes, emitter: RecordingEmitter
    ) -> None:
        self.dispatcher: EventDispatcher = dispatcher
        self.broker: MemoryBroker = broker
        self._notes = notes
        self._emitter = emitter

    @property
    def tries(self) -> list[Try]:
        """Every call of a handler that has ended, in that order."""
        return self._notes.tries

    @property
    def handled(self) -> list[Try]:
        """The tries that succeeded; one that middleware ended without calling the handler is among them."""
        return [one for one in self.tries if one.error is None]

    @property
    def failed(self) -> list[Try]:
        """The tries that failed, those among them that were followed by another."""
        return [one for one in self.tries if one.error is not None]

    @property
    def dead_letters(self) -> list[Record]:
        """What the broker's dead-letter topics keep."""
        return self.broker.dead_letters

    @property
    def unhandled(self) -> list[EventBase]:
        """The events given to ``emit`` that no handler was called with."""
        called = {one.meta.id for one in self.tries}
        return [one.event for one in self._emitter.emissions if one.id not in called]

    def __repr__(self) -> str:
        text = f"{len(self.handled)} tries succeeded, {len(self.failed)} failed"
        if unhandled := self.unhandled:
            text += f"; no handler was called with {', '.join({type(one).__name__: None for one in unhandled})}"
        return f"<{type(self).__name__}: {text}>"


class Notes(Middleware):
    """Around all other middleware: notes how every try has ended.

    Args:
        broker: The broker of the dispatcher.
        groups: The consumer groups of the dispatcher.
    """

    def __init__(self, broker: MemoryBroker, groups: Sequence[str]) -> None:
        self.tries: list[Try] = []
        self._broker = broker
        self._groups = groups
        self._last: dict[_Place, Try] = {}
        self._told = {_place(record) for record in broker.dead_letters}

    async def dispatch(self, ctx: EventHandlerContext, call_next: NextCall) -> Any:
        metas = [one.make_meta() for one in ctx.contexts]  # now, since a failure counts at once
        try:
            result = await call_next(ctx)
        except Exception as error:
            self._note(ctx, metas, error)
            raise
        self._note(ctx, metas, None)
        return result

    def _note(self, ctx: EventHandlerContext, metas: Sequence[Meta], error: BaseException | None) -> None:
        for one, meta in zip(ctx.contexts, metas, strict=True):
            # What was said of single events of a batch stands, however the call has ended.
            outcome = conclude(one.said, error, is_manual=False) if isinstance(ctx, BatchContext) else error
            ended = Try(ctx.handler, meta, outcome)
            self.tries.append(ended)
            self._last[ctx.identity, one.message.position] = ended

    def new_failures(self) -> list[Exception]:
        """By what events were given up since it was last asked. Only while none is being handled."""
        failures: list[Exception] = []
        for place, last in self._last.items():
            if isinstance(last.error, Exception) and place not in self._told:
                self._told.add(place)
                last.error.add_note(
                    f"{last.handler} gave up the event {last.meta.type} ({last.meta.id}) from {last.meta.topic}."
                )
                failures.append(last.error.with_traceback(_from_the_outside(last.error.__traceback__)))
        for record in self._broker.dead_letters:  # of events that no handler could be called with
            letter = record.dead_letter
            if letter is not None and letter.group in self._groups and (place := _place(record)) not in self._told:
                self._told.add(place)
                failures.append(DeliveryError(f"an event from {letter.source} was dead-lettered: {letter.error}"))
        return failures


def _from_the_outside(traceback: TracebackType | None) -> TracebackType | None:
    """A traceback without the frames of Dispytch at its beginning; all of it, if there are no others."""
    outside = traceback
    while outside is not None and outside.tb_frame.f_globals.get("__name__", "").startswith("dispytch."):
        outside = outside.tb_next
    return outside or traceback


_Place = tuple[str, str | None]
"""A handler's identity, and the position of an event."""


def _place(record: Record) -> _Place:
    letter = record.dead_letter
    return ("", None) if letter is None else (f"{letter.group}/{letter.handler}", letter.position)
