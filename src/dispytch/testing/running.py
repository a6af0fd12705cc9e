"""Dispatchers in tests: run on an in-process broker, until all is handled, with a note of every try."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Literal

import anyio
import anyio.from_thread
import anyio.lowlevel
from anyio.from_thread import BlockingPortal

from dispytch._bridge import in_event_loop
from dispytch._core.events import EventBase
from dispytch._core.handlers import Router
from dispytch._runtime.dispatcher import EventDispatcher, loop_options
from dispytch._runtime.groups import HandlerGroup
from dispytch._runtime.ids import new_id
from dispytch.abc import Message, Receipt, Serializer
from dispytch.errors import ConfigurationError
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryEventRoute
from dispytch.serialization import MessagePackDeserializer, MessagePackSerializer
from dispytch.sync import EventDispatcher as BlockingEventDispatcher
from dispytch.testing.clock import TestClock
from dispytch.testing.outcomes import Notes, Outcomes
from dispytch.testing.overriding import Overrides, overriding
from dispytch.testing.recording import RecordingEmitter
from dispytch.testing.standins import in_memory

__all__ = ["App", "BlockingRunning", "Running", "running", "running_in_thread"]

App = EventDispatcher | BlockingEventDispatcher | Router | HandlerGroup
"""What can be run in a test."""


class Running(Outcomes):
    """A dispatcher that runs in a test; made by `running`.

    Attributes:
        dispatcher: The dispatcher.
        broker: The in-process broker that it consumes from.
    """

    def __init__(
        self,
        dispatcher: EventDispatcher,
        broker: MemoryBroker,
        notes: Notes,
        emitter: RecordingEmitter,
        *,
        raise_failures: bool,
        timeout: float,
    ) -> None:
        super().__init__(dispatcher, broker, notes, emitter)
        self._raise_failures = raise_failures
        self._timeout = timeout

    async def emit(self, event: EventBase, *, id: str | None = None) -> Receipt:
        """Emits an event to the dispatcher's broker; `idle` waits until it is handled.

        Raises:
            ConfigurationError, EmitRejectedError, EmitTimeoutError: see `dispytch.EventEmitter.emit`.
        """
        receipt = await self._emitter.emit(event, id=id)
        assert receipt is not None  # noqa: S101 - it has no on_timeout callback
        return receipt

    async def publish(
        self,
        topic: str,
        payload: bytes | None,
        *,
        headers: Mapping[str, str | bytes] | None = None,
        key: str | bytes | None = None,
    ) -> None:
        """Publishes a message as a foreign program would: bytes, with no envelope but what the headers say."""
        self._publish(topic, payload, headers or {}, key)
        await anyio.lowlevel.checkpoint()

    async def idle(self) -> None:
        """Waits until all events are handled, and what was emitted because of them.

        Where the broker's clock is a `TestClock`, back-offs and the waits of batches take no time: whenever nothing
        else goes on, the clock moves to their end.

        Raises:
            Exception: what a handler raised at the last try of an event that was given up; several of them as an
                ExceptionGroup. Each is raised once, and none with ``raise_failures=False``.
            TimeoutError: events are still being handled after the time-out.
        """
        __tracebackhide__ = True
        with anyio.move_on_after(self._timeout) as scope:
            async with anyio.create_task_group() as group:
                if isinstance(self.broker.clock, TestClock):
                    group.start_soon(self._pass_time, self.broker.clock)
                await self.dispatcher.idle()
                group.cancel_scope.cancel()
        if scope.cancelled_caught:
            raise TimeoutError(self._why_not_idle())
        failures = self._notes.new_failures()
        if self._raise_failures and failures:
            if len(failures) == 1:
                raise failures[0]
            raise ExceptionGroup(f"{len(failures)} events were given up", failures)

    async def _pass_time(self, clock: TestClock) -> None:
        before: tuple[int, ...] = ()
        while True:
            health = self.dispatcher.health()
            now = (health.in_flight, health.queued, health.unsettled, health.handled, health.failed, clock.sleepers)
            if now == before:
                clock.advance_to_next()
            before = now
            await anyio.sleep(0.002)

    def _publish(
        self, topic: str, payload: bytes | None, headers: Mapping[str, str | bytes], key: str | bytes | None
    ) -> None:
        raw = [(name, value.encode() if isinstance(value, str) else value) for name, value in headers.items()]
        (outcome,) = self.broker.publish(
            [Message(new_id(), MemoryEventRoute(topic), payload, raw, key.encode() if isinstance(key, str) else key)]
        )
        if not isinstance(outcome, Receipt):
            raise outcome

    def _why_not_idle(self) -> str:
        health = self.dispatcher.health()
        text = f"not idle after {self._timeout:g} s: {health.in_flight} events are being handled"
        if health.oldest_in_flight is not None:
            text += f", the oldest for {health.oldest_in_flight:.1f} s"
        if waiting := health.unsettled - health.in_flight:
            text += f", {waiting} wait for their turn"
        text += "; a handler waits for what does not come, or for longer than running(..., timeout=)"
        if self._notes.tries and (error := self._notes.tries[-1].error) is not None:
            text += f"; the last try, of {self._notes.tries[-1].handler}, failed with {error!r}"
        return text


class BlockingRunning(Outcomes):
    """A dispatcher that runs in a thread in a test; made by `running_in_thread`.

    Attributes:
        dispatcher: The dispatcher that runs in the loop of the thread.
        broker: The in-process broker that it consumes from.
    """

    def __init__(self, running: Running, portal: BlockingPortal) -> None:
        super().__init__(running.dispatcher, running.broker, running._notes, running._emitter)
        self._running = running
        self._portal = portal

    def emit(self, event: EventBase, *, id: str | None = None) -> Receipt:
        """See `Running.emit`."""

        async def emit() -> Receipt:
            return await self._running.emit(event, id=id)

        return self._portal.call(emit)

    def publish(
        self,
        topic: str,
        payload: bytes | None,
        *,
        headers: Mapping[str, str | bytes] | None = None,
        key: str | bytes | None = None,
    ) -> None:
        """See `Running.publish`."""
        self._running._publish(topic, payload, headers or {}, key)

    def idle(self) -> None:
        """See `Running.idle`."""
        __tracebackhide__ = True
        self._portal.call(self._running.idle)


@asynccontextmanager
async def running(
    app: App,
    broker: MemoryBroker | None = None,
    *,
    dependency_overrides: Overrides | None = None,
    serializer: Serializer | None = None,
    raise_failures: bool = True,
    timeout: float = 10.0,
) -> AsyncGenerator[Running, None]:
    """Runs a dispatcher on an in-process broker: ``async with running(dispatcher) as app:``.

    Whatever consumers the dispatcher was made with, none of them is started: for the length of the block, in-process
    ones stand in for them, in the same groups and for the same subscriptions. It consumes on entry. At the end of
    the block it waits as `Running.idle` does, and stops; if the block fails, it only stops.

    Args:
        app: A dispatcher that is not started, or a router or handler group alone.
        broker: The broker; by default one of its own, whose clock is a `TestClock`.
        dependency_overrides: Providers, and those to call in their place, beside the dispatcher's own.
        serializer: The codec of what `Running.emit` emits; by default JSON, or MessagePack where the dispatcher reads
            that.
        raise_failures: Whether events that were given up fail the test, by the error of their handler.
        timeout: Seconds, of real time, that `Running.idle` waits at most.

    Raises:
        ConfigurationError: the dispatcher is started already, or something is declared wrong.
    """
    __tracebackhide__ = True
    dispatcher = _dispatcher_of(app)
    broker = MemoryBroker(TestClock()) if broker is None else broker
    notes = Notes(broker, [consumer.group_id for consumer in dispatcher.consumers])
    if serializer is None and isinstance(dispatcher._deserializer, MessagePackDeserializer):
        serializer = MessagePackSerializer()
    emitter = RecordingEmitter(broker=broker, serializer=serializer, envelope=dispatcher._envelope)
    with overriding(dispatcher, dependency_overrides or {}), in_memory(dispatcher, broker, notes):
        async with dispatcher.lifespan():
            started = Running(dispatcher, broker, notes, emitter, raise_failures=raise_failures, timeout=timeout)
            yield started
            await started.idle()


@contextmanager
def running_in_thread(
    app: App,
    broker: MemoryBroker | None = None,
    *,
    dependency_overrides: Overrides | None = None,
    serializer: Serializer | None = None,
    raise_failures: bool = True,
    timeout: float = 10.0,
    backend: Literal["asyncio", "trio"] | None = None,
    use_uvloop: bool = False,
) -> Iterator[BlockingRunning]:
    """Runs a dispatcher on an in-process broker, in a thread: ``with running_in_thread(dispatcher) as app:``.

    For tests without an event loop, of dispatchers of `dispytch` and of `dispytch.sync` alike. See `running`.

    Args:
        app: A dispatcher that is not started, or a router or handler group alone.
        broker: The broker; by default one of its own, whose clock is a `TestClock`.
        dependency_overrides: Providers, and those to call in their place, beside the dispatcher's own.
        serializer: The codec of what `BlockingRunning.emit` emits; see `running`.
        raise_failures: Whether events that were given up fail the test, by the error of their handler.
        timeout: Seconds, of real time, that `BlockingRunning.idle` waits at most.
        backend: The event loop of the thread; by default that of a `dispytch.sync.EventDispatcher`, else asyncio.
        use_uvloop: Runs asyncio on uvloop.

    Raises:
        ConfigurationError: the dispatcher is started already, something is declared wrong, or an event loop runs in
            this thread.
        MissingExtraError: the backend is not installed.
    """
    __tracebackhide__ = True
    if in_event_loop():
        raise ConfigurationError(
            "running_in_thread() blocks, and an event loop runs in this thread; use 'async with running(...)'"
        )
    if backend is None and isinstance(app, BlockingEventDispatcher):
        backend, options = app._backend, app._options
    else:
        backend = backend or "asyncio"
        options = loop_options(backend, use_uvloop)
    with anyio.from_thread.start_blocking_portal(backend, options) as portal:
        context = running(
            app,
            broker,
            dependency_overrides=dependency_overrides,
            serializer=serializer,
            raise_failures=raise_failures,
            timeout=timeout,
        )
        with portal.wrap_async_context_manager(context) as started:
            yield BlockingRunning(started, portal)


def _dispatcher_of(app: App) -> EventDispatcher:
    if isinstance(app, EventDispatcher):
        return app
    if isinstance(app, BlockingEventDispatcher):
        return app._inner
    if isinstance(app, Router | HandlerGroup):
        dispatcher = EventDispatcher(MemoryConsumer(MemoryBroker()))
        dispatcher.add_registry(app)
        return dispatcher
    raise ConfigurationError(f"running() takes a dispatcher, a Router or a HandlerGroup, not {type(app).__name__}")
