"""The emitter for blocking code. No event loop is made or needed."""

from __future__ import annotations

import atexit
import inspect
import logging
import os
import weakref
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

from dispytch._bridge import in_event_loop
from dispytch._core.codec import Serializer
from dispytch._core.emitting import several
from dispytch._core.envelope import Envelope
from dispytch._core.events import EventBase
from dispytch._core.hooks import EmitHook
from dispytch._core.messages import Message, Receipt
from dispytch._runtime.emitter import CallbackT, EmitterBase
from dispytch._runtime.urls import no_client
from dispytch.abc import BlockingProducer, Producer
from dispytch.errors import ConfigurationError, DispytchError, EmitTimeoutError

__all__ = ["EventEmitter"]

logger: logging.Logger = logging.getLogger("dispytch")


class EventEmitter(EmitterBase):
    """Emits events from blocking code; any number of threads may share one.

    It survives a fork: the child connects anew. At the exit of the program it is flushed and closed.

    Args:
        producer: Where events go; the same description that the emitter for event loops takes.
        serializer: The codec of the bodies; JSON by default.
        envelope: How id, type and time travel with a body; CloudEvents by default.
        source: What emits, as CloudEvents has it: the service's name or a URI.
        timeout: Seconds for connecting, sending and confirming of each call; ``None`` waits for ever.
        hooks: What looks on at every emit, such as telemetry, the outermost first.

    Raises:
        ConfigurationError: the producer's transport has no blocking side, or an option is wrong.
    """

    def __init__(
        self,
        producer: Producer | BlockingProducer,
        serializer: Serializer | None = None,
        *,
        envelope: Envelope | None = None,
        source: str = "dispytch",
        timeout: float | None = 30.0,
        hooks: Sequence[EmitHook] = (),
    ) -> None:
        if not isinstance(producer, Producer | BlockingProducer):
            raise ConfigurationError(no_client(producer, "producer"))
        self.producer: BlockingProducer = producer.blocking() if isinstance(producer, Producer) else producer
        super().__init__(self.producer, serializer, envelope, source, timeout, hooks)
        _open.add(self)

    def on_timeout(self, callback: CallbackT) -> CallbackT:
        """A decorator: registers what is called with the event in place of raising EmitTimeoutError."""
        if inspect.iscoroutinefunction(callback):
            raise ConfigurationError("on_timeout of the blocking emitter takes a plain function, since it has no loop")
        self._on_timeout = callback
        return callback

    def emit(self, event: EventBase, *, id: str | None = None) -> Receipt | None:
        """Emits an event and waits until the broker has confirmed it.

        Args:
            event: An instance of an `EventBase` class.
            id: The event's id; by default one is made, and kept by the object for further emits.

        Returns:
            The broker's receipt; ``None`` if the time ran out and an `on_timeout` callback took the event.

        Raises:
            ConfigurationError: its class cannot go to this producer, or an event loop runs in this thread.
            EmitRejectedError: it did not go.
            EmitTimeoutError: it may have gone.
        """
        _refuse_loop()
        self._refuse_if_closed()
        if self._hooks:
            call, hooked = self._hooked([event], False, id)
            with hooked:
                call.outcomes = self.producer.send(call.messages, self.timeout)
            (outcome,) = call.outcomes
        else:
            (outcome,) = self.producer.send([self._factory.make(event, id)], self.timeout)
        if isinstance(outcome, Receipt):
            return outcome
        if isinstance(outcome, EmitTimeoutError) and self._on_timeout is not None:
            self._on_timeout(event)
            return None
        raise outcome

    def emit_many(self, events: Iterable[EventBase]) -> list[Receipt | None]:
        """Emits events in order, pipelined; every one is checked and serialized before the first one goes.

        Returns:
            The receipts, aligned with the events; ``None`` for each that an `on_timeout` callback took.

        Raises:
            ConfigurationError, EmitRejectedError: one cannot be emitted; nothing was sent.
            EmitManyError: some were not confirmed; its ``results`` say which.
        """
        given = several(events)
        if not self._hooks or not given:
            return self._send(given, self._factory.make_many(given))
        _refuse_loop()
        self._refuse_if_closed()
        return self._send_hooked(given, None)

    def _send(self, given: Sequence[EventBase], messages: Sequence[Message]) -> list[Receipt | None]:
        """Emits events whose messages are made already; see `emit_many`."""
        _refuse_loop()
        self._refuse_if_closed()
        if not messages:
            return []
        if self._hooks:
            return self._send_hooked(given, messages)
        return self._told(given, self.producer.send(messages, self.timeout))

    def _send_hooked(self, given: Sequence[EventBase], made: Sequence[Message] | None) -> list[Receipt | None]:
        call, hooked = self._hooked(given, True, made=made)
        with hooked:
            call.outcomes = self.producer.send(call.messages, self.timeout)
        return self._told(given, call.outcomes)

    def _told(self, given: Sequence[EventBase], outcomes: Sequence[Receipt | DispytchError]) -> list[Receipt | None]:
        results: list[Receipt | DispytchError | None] = list(outcomes)
        if self._on_timeout is not None:
            for number, result in enumerate(results):
                if isinstance(result, EmitTimeoutError):
                    self._on_timeout(given[number])
                    results[number] = None
        return self._all_confirmed(results)

    def start(self) -> None:
        """Connects; otherwise the first `emit` does. Idempotent, and opens it again after `close`."""
        _refuse_loop()
        self._closed = False
        self.producer.start()

    def close(self) -> None:
        """Flushes and disconnects. Idempotent; from now on events are refused.

        Raises:
            UnconfirmedError: events are left without a confirmation, with their count.
        """
        self._closed = True
        self.producer.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _refuse_loop() -> None:
    if in_event_loop():
        raise ConfigurationError(
            "dispytch.sync blocks, and an event loop runs in this thread; use dispytch.EventEmitter and await it, "
            "or call this from a worker thread"
        )


_open: weakref.WeakSet[EventEmitter] = weakref.WeakSet()


def _close_all() -> None:
    for emitter in list(_open):
        try:
            emitter.close()
        except DispytchError as error:
            logger.warning("An emitter was not closed before the exit: %s", error)


def _after_fork() -> None:
    for emitter in list(_open):
        emitter.producer.abandon()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
