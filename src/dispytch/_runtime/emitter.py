"""The emitter for event loops."""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from dispytch._core.codec import JSONSerializer, Serializer
from dispytch._core.emitting import MessageFactory, several
from dispytch._core.envelope import CloudEventsEnvelope, Envelope
from dispytch._core.events import EventBase
from dispytch._core.hooks import EmitCall, EmitHook
from dispytch._core.messages import Message, Receipt
from dispytch._runtime.ids import new_ids
from dispytch._runtime.urls import no_client
from dispytch.abc import BlockingProducer, Producer, ProducerBase
from dispytch.errors import ConfigurationError, DispytchError, EmitManyError, EmitRejectedError, EmitTimeoutError

__all__ = ["EmitterBase", "EventEmitter"]

CallbackT = TypeVar("CallbackT", bound=Callable[[Any], Any])


class Hooked(ExitStack):
    """What hooks have around a call. They cannot swallow its error: nobody would know that it failed."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Literal[False]:
        super().__exit__(kind, error, traceback)
        return False


class EmitterBase:
    """What the emitters of both worlds have in common: how messages are made, and how outcomes are told."""

    def __init__(
        self,
        producer: ProducerBase,
        serializer: Serializer | None,
        envelope: Envelope | None,
        source: str,
        timeout: float | None,
        hooks: Sequence[EmitHook],
    ) -> None:
        if timeout is not None and timeout <= 0:
            raise ConfigurationError(f"timeout is in seconds and must be positive, or None to wait for ever: {timeout}")
        if not source:
            raise ConfigurationError("source names what emits, and CloudEvents requires it: give a non-empty string")
        if serializer is not None and not isinstance(serializer, Serializer):
            raise ConfigurationError(f"{serializer!r} is no serializer; give an instance such as JSONSerializer()")
        if envelope is not None and not isinstance(envelope, Envelope):
            raise ConfigurationError(f"{envelope!r} is no envelope; give an instance such as CloudEventsEnvelope()")
        self.timeout: float | None = timeout
        self.serializer: Serializer = JSONSerializer() if serializer is None else serializer
        self.envelope: Envelope = CloudEventsEnvelope() if envelope is None else envelope
        self._factory = MessageFactory(
            producer,
            self.serializer,
            self.envelope,
            source,
            time.time,
            new_ids,
        )
        if isinstance(hooks, EmitHook):
            raise ConfigurationError(f"hooks takes a list, also of one: hooks=[{type(hooks).__name__}(...)]")
        for one in hooks:
            if not isinstance(one, EmitHook):
                hint = "; write it with parentheses" if isinstance(one, type) else ""
                raise ConfigurationError(f"{one!r} is no EmitHook instance{hint}")
        self._transport, self._name_of = producer.transport, producer.destination
        self._hooks: tuple[EmitHook, ...] = tuple(hooks)
        self._on_timeout: Callable[[Any], Any] | None = None
        self._closed = False

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise EmitRejectedError("the emitter is closed, so the event did not go; start() opens it again")

    def _hooked(
        self, events: Sequence[EventBase], is_many: bool, id: str | None = None, made: Sequence[Message] | None = None
    ) -> tuple[EmitCall, Hooked]:
        """A call with its messages, and what has the hooks look on while it is entered.

        Args:
            made: The messages, if they are made already; they get what hooks add where they have headers.
        """
        destinations = [self._factory.destination(event) for event in events]
        call = EmitCall(events, is_many, self._transport, destinations, self._name_of)
        with Hooked() as stack:
            for hook in self._hooks:
                if (around := hook.around(call)) is not None:
                    stack.enter_context(around)
            if made is not None:
                call.messages = self._factory.with_headers(made, call.headers)
            elif is_many:
                call.messages = self._factory.make_many(events, call.headers)
            else:
                call.messages = [self._factory.make(events[0], id, call.headers)]
            return call, stack.pop_all()

    def _all_confirmed(self, results: list[Receipt | DispytchError | None]) -> list[Receipt | None]:
        """The results without an error among them, or EmitManyError."""
        confirmed = [result for result in results if not isinstance(result, DispytchError)]
        if len(confirmed) == len(results):
            return confirmed
        first = next(result for result in results if isinstance(result, DispytchError))
        raise EmitManyError(
            f"{len(results) - len(confirmed)} of {len(results)} events were not confirmed (see .results): {first}",
            results,
        )


class EventEmitter(EmitterBase):
    """Emits events from an event loop.

    Args:
        producer: Where they go.
        serializer: The codec of the bodies; JSON by default.
        envelope: How id, type and time travel with a body; CloudEvents by default.
        source: What emits, as CloudEvents has it: the service's name or a URI.
        timeout: Seconds for connecting, sending and confirming of each call; ``None`` waits for ever.
        hooks: What looks on at every emit, such as telemetry, the outermost first.

    Raises:
        ConfigurationError: the producer is for blocking code, or an option is wrong.
    """

    def __init__(
        self,
        producer: Producer,
        serializer: Serializer | None = None,
        *,
        envelope: Envelope | None = None,
        source: str = "dispytch",
        timeout: float | None = 30.0,
        hooks: Sequence[EmitHook] = (),
    ) -> None:
        if isinstance(producer, BlockingProducer):
            raise ConfigurationError(
                f"{type(producer).__name__} is for blocking code; use dispytch.sync.EventEmitter, or an async producer"
            )
        if not isinstance(producer, Producer):
            raise ConfigurationError(no_client(producer, "producer"))
        super().__init__(producer, serializer, envelope, source, timeout, hooks)
        self.producer: Producer = producer

    def on_timeout(self, callback: CallbackT) -> CallbackT:
        """A decorator: registers what is called with the event in place of raising EmitTimeoutError; sync or async."""
        self._on_timeout = callback
        return callback

    async def emit(self, event: EventBase, *, id: str | None = None) -> Receipt | None:
        """Emits an event and waits until the broker has confirmed it.

        Args:
            event: An instance of an `EventBase` class.
            id: The event's id, kept by the object for further emits; by default it has one, or one is made.

        Returns:
            The broker's receipt; ``None`` if the time ran out and an `on_timeout` callback took the event.

        Raises:
            ConfigurationError: its class cannot go to this producer.
            EmitRejectedError: it did not go.
            EmitTimeoutError: it may have gone.
        """
        self._refuse_if_closed()
        if self._hooks:
            call, hooked = self._hooked([event], False, id)
            with hooked:
                call.outcomes = await self.producer.send(call.messages, self.timeout)
            (outcome,) = call.outcomes
        else:
            (outcome,) = await self.producer.send([self._factory.make(event, id)], self.timeout)
        if isinstance(outcome, Receipt):
            return outcome
        if isinstance(outcome, EmitTimeoutError) and self._on_timeout is not None:
            await _call(self._on_timeout, event)
            return None
        raise outcome

    async def emit_many(self, events: Iterable[EventBase]) -> list[Receipt | None]:
        """Emits events in order, pipelined; every one is checked and serialized before the first one goes.

        Returns:
            The receipts, aligned with the events; ``None`` for each that an `on_timeout` callback took.

        Raises:
            ConfigurationError, EmitRejectedError: one cannot be emitted; nothing was sent.
            EmitManyError: some were not confirmed; its ``results`` say which.
        """
        self._refuse_if_closed()
        given = several(events)
        if not given:
            return []
        results: list[Receipt | DispytchError | None]
        if self._hooks:
            call, hooked = self._hooked(given, True)
            with hooked:
                call.outcomes = await self.producer.send(call.messages, self.timeout)
            results = list(call.outcomes)
        else:
            results = list(await self.producer.send(self._factory.make_many(given), self.timeout))
        if self._on_timeout is not None:
            for number, result in enumerate(results):
                if isinstance(result, EmitTimeoutError):
                    await _call(self._on_timeout, given[number])
                    results[number] = None
        return self._all_confirmed(results)

    async def start(self) -> None:
        """Connects; otherwise the first `emit` does. Idempotent, and opens it again after `close`."""
        self._closed = False
        await self.producer.start()

    async def close(self) -> None:
        """Flushes and disconnects. Idempotent; from now on events are refused.

        Raises:
            UnconfirmedError: events are left without a confirmation, with their count.
        """
        self._closed = True
        await self.producer.stop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


async def _call(callback: Callable[[Any], Any], event: EventBase) -> None:
    result = callback(event)
    if inspect.isawaitable(result):
        awaitable: Awaitable[Any] = result
        await awaitable
