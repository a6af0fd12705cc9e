"""The dispatcher: what users register handlers on, start and stop."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from types import TracebackType
from typing import Any, Literal

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup, TaskStatus

from dispytch._bridge import in_event_loop
from dispytch._core.ack import AckPolicy
from dispytch._core.context import Middleware
from dispytch._core.envelope import CloudEventsEnvelope, Envelope
from dispytch._core.events import EventBase, declaration
from dispytch._core.handlers import DeadLetterTarget, Handler, Registry, Router
from dispytch._core.patterns import segments
from dispytch._core.routes import PortableRoute
from dispytch._runtime.groups import HandlerGroup
from dispytch._runtime.health import Health, State, health_of
from dispytch._runtime.session import Session, Tuning
from dispytch._runtime.threads import Threads
from dispytch._runtime.urls import no_client
from dispytch._runtime.wiring import Options, Wired, wire
from dispytch.abc import Consumer, Deserializer, EventRoute, EventSubscription
from dispytch.errors import ConfigurationError, MissingExtraError
from dispytch.serialization import JSONDeserializer

__all__ = ["EventDispatcher", "EventListener", "Lifespan"]

logger = logging.getLogger("dispytch")

Lifespan = Callable[["EventDispatcher"], AbstractAsyncContextManager[Any]]


class EventDispatcher(Registry):
    """Receives from consumers, and calls the handlers that are registered on it or on its routers.

    Args:
        consumers: Where events come from.
        deserializer: The codec of the bodies; JSON by default.
        route_delimiter: What separates segments of topics; by default any of ``.``, ``:`` and ``/``.
        middlewares: Middleware around every handler, the outermost first.
        default_ack_policy: When events are acknowledged; by default the strongest that each transport has.
        concurrency: How many events may be handled at once, over all consumers.
        ordering: ``"key"``: one event of a key at a time, in order; ``"partition"``: one of a partition; ``"none"``.
        max_deliveries: After how many failed deliveries an event is given up.
        dead_letter: Where events that are given up go: a topic or a route, ``None`` to log and acknowledge; by default
            a topic of their own, named after the source and the group.
        drain_timeout: Seconds that a stop gives to the events in flight.
        on_lifespan: A function from the dispatcher to an async context manager that is entered before anything else
            starts, and exited last.
        on_unhandled: What becomes of events that no handler takes: ``"ack"`` or ``"dead_letter"``.
        dependency_overrides: Providers to call in place of others; may be changed until the start.
        envelope: How events are wrapped; by default CloudEvents, which takes foreign bare payloads too.

    Raises:
        ConfigurationError: an option is wrong.
    """

    def __init__(
        self,
        *consumers: Consumer,
        deserializer: Deserializer | None = None,
        route_delimiter: str | None = None,
        middlewares: Sequence[Middleware] = (),
        default_ack_policy: AckPolicy | None = None,
        concurrency: int = 100,
        ordering: Literal["key", "partition", "none"] = "key",
        max_deliveries: int = 5,
        dead_letter: DeadLetterTarget = ...,
        drain_timeout: float = 30.0,
        on_lifespan: Lifespan | None = None,
        on_unhandled: Literal["ack", "dead_letter"] = "ack",
        dependency_overrides: Mapping[Callable[..., Any], Callable[..., Any]] | None = None,
        envelope: Envelope | None = None,
    ) -> None:
        super().__init__(middlewares)
        if not consumers:
            raise ConfigurationError("a dispatcher needs at least one consumer: EventDispatcher(consumer)")
        for consumer in consumers:
            if not isinstance(consumer, Consumer):
                raise ConfigurationError(no_client(consumer, "consumer"))
        if concurrency < 1:
            raise ConfigurationError(f"concurrency must be at least 1, not {concurrency}")
        if max_deliveries < 1:
            raise ConfigurationError(f"max_deliveries must be at least 1, not {max_deliveries}")
        if drain_timeout < 0:
            raise ConfigurationError(f"drain_timeout is in seconds and cannot be negative: {drain_timeout}")
        if default_ack_policy is not None and not isinstance(default_ack_policy, AckPolicy):
            raise ConfigurationError(
                f"default_ack_policy must be a policy such as AckAfterProcessing(), not {default_ack_policy!r}"
            )
        if ordering not in ("key", "partition", "none"):
            raise ConfigurationError(f"ordering={ordering!r}: choose 'key', 'partition' or 'none'")
        if on_unhandled not in ("ack", "dead_letter"):
            raise ConfigurationError(f"on_unhandled={on_unhandled!r}: choose 'ack' or 'dead_letter'")
        if deserializer is not None and not isinstance(deserializer, Deserializer):
            raise ConfigurationError(
                f"{deserializer!r} is no deserializer; give an instance such as JSONDeserializer()"
            )
        if envelope is not None and not isinstance(envelope, Envelope):
            raise ConfigurationError(f"{envelope!r} is no envelope; give an instance such as CloudEventsEnvelope()")
        segments("", route_delimiter)  # refuses a delimiter that cannot be one
        self.consumers = consumers
        self.dependency_overrides: dict[Callable[..., Any], Callable[..., Any]] = dict(dependency_overrides or {})
        self._deserializer = JSONDeserializer() if deserializer is None else deserializer
        self._envelope = CloudEventsEnvelope() if envelope is None else envelope
        self._delimiter = self._pattern_delimiter = route_delimiter
        self._default_ack_policy = default_ack_policy
        self._ack_policies: dict[EventSubscription | EventRoute, AckPolicy] = {}
        self._dead_letter = dead_letter
        self._on_lifespan = on_lifespan
        self._tuning = Tuning(concurrency, ordering, max_deliveries, drain_timeout, on_unhandled == "dead_letter")
        self._registries: list[Registry | HandlerGroup] = []
        self._session: Session | None = None
        self._state: State = "stopped"
        self._ended: anyio.Event | None = None
        self._stop_early = False

    def _outer(self) -> tuple[Middleware, ...]:
        return ()  # the dispatcher's own middleware is around all handlers, those of routers too

    def _is_running(self) -> bool:
        return self._state != "stopped"

    def add_router(self, router: Router) -> None:
        """Takes the handlers of a router, those registered on it later included, until the start."""
        if not isinstance(router, Router):
            raise ConfigurationError(f"add_router() takes a Router, not {type(router).__name__}")
        self.add_registry(router)

    def add_handler_group(self, group: HandlerGroup) -> None:
        """Takes the handlers of a group, like `add_router`."""
        if not isinstance(group, HandlerGroup):
            raise ConfigurationError(f"add_handler_group() takes a HandlerGroup, not {type(group).__name__}")
        self.add_registry(group)

    def add_registry(self, registry: Registry | HandlerGroup) -> None:
        """Takes the handlers of anything that collects them."""
        if self._is_running():
            raise ConfigurationError("the dispatcher is started; add routers before")
        if registry not in self._registries:
            self._registries.append(registry)

    def set_ack_policy(self, subscription: EventSubscription | type[EventBase], policy: AckPolicy) -> None:
        """Sets the policy of the handlers with a subscription, unless their decorator gives one."""
        if not isinstance(policy, AckPolicy):
            raise ConfigurationError(f"{policy!r} is no ack policy; give one such as AckAfterProcessing()")
        if isinstance(subscription, EventSubscription):
            self._ack_policies[subscription] = policy
            return
        route = declaration(subscription).route
        if route is None:
            raise ConfigurationError(f"event class {subscription.__qualname__} has no __topic__ or __route__")
        self._ack_policies[EventSubscription(route.topic) if isinstance(route, PortableRoute) else route] = policy

    def health(self) -> Health:
        """How it is doing, from its own progress; a plain call that asks no broker."""
        return health_of(self._session, self._state)

    async def start(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Consumes until stopped, inside a running event loop. Installs no signal handlers.

        Use it as ``await task_group.start(dispatcher.start)`` to go on when it is ready, or `lifespan`.

        Raises:
            ConfigurationError: something is declared wrong; nothing was consumed.
            BrokerUnreachableError: a broker could not be reached at the start.
            BrokerError: a broker refused what trying again does not mend.
        """
        if self._state != "stopped":
            raise ConfigurationError("the dispatcher is started already; a second one needs consumers of its own")
        self._state = "starting"
        self._ended = anyio.Event()
        self._stop_early = False
        try:
            await self._start(task_status)
        except BaseExceptionGroup as group:
            raise _sole(group) from None
        finally:
            self._state = "stopped"
            self._session = None
            self._ended.set()

    def wiring(self) -> Sequence[Wired]:
        """What a start would run: the consumers with their handlers, all checked; for documents and tools.

        Raises:
            ConfigurationError: something is declared wrong.
        """
        handlers, options = self._declared()
        return wire(handlers, self.consumers, options)[0]

    def _declared(self) -> tuple[list[Handler], Options]:
        """What `wire` makes a run of: the handlers, those of routers too, and what goes for all of them."""
        handlers: list[Handler] = [*self.handlers]
        for registry in self._registries:
            handlers += registry.handlers
        options = Options(
            self._deserializer,
            self._envelope,
            self._delimiter,
            self.middlewares,
            self._default_ack_policy,
            self._ack_policies,
            self._dead_letter,
            self.dependency_overrides,
        )
        return handlers, options

    async def _start(self, task_status: TaskStatus[None]) -> None:
        handlers, options = self._declared()
        wired, scope, finish = wire(handlers, self.consumers, options)
        async with AsyncExitStack() as stack:
            if self._on_lifespan is not None:
                await stack.enter_async_context(self._on_lifespan(self))
            values = await stack.enter_async_context(scope)
            threads = Threads(self._tuning.concurrency)
            finish(values, threads)
            await stack.enter_async_context(threads.open())
            session = self._session = Session(wired, self._tuning)
            if self._stop_early:
                session.request_stop()
            await session.run(_Ready(self, task_status))

    async def stop(self) -> None:
        """Stops it: nothing more is fetched, what is in flight finishes within the drain time. Returns when it has.

        A handler calls `request_stop` instead: this would wait for the handler itself.
        """
        ended = self._ended
        self.request_stop()
        if ended is not None:
            await ended.wait()

    def request_stop(self) -> None:
        """Begins a stop without waiting for it; also from handlers. In the thread of the event loop."""
        self._stop_early = True
        if self._session is not None:
            self._session.request_stop()

    async def idle(self) -> None:
        """Waits until nothing is in flight, and no broker that can tell has anything left for it."""
        while self._state == "starting" or (  # noqa: ASYNC110 - brokers have no event for it
            self._session is not None and not self._session.is_idle
        ):
            await anyio.sleep(0.002)
        await anyio.lowlevel.checkpoint()

    def lifespan(self) -> AbstractAsyncContextManager[EventDispatcher]:
        """``async with dispatcher.lifespan():`` is ready on entry, and has drained on exit.

        A fatal error cancels what is inside, and is raised at the exit.
        """
        return _Lifespan(self)

    def run(self, backend: Literal["asyncio", "trio"] = "asyncio", *, use_uvloop: bool = False) -> None:
        """Runs in an event loop of its own until a signal comes; for scripts and ``main()``.

        The first SIGINT or SIGTERM drains, the second one cancels. Previous signal handlers are restored.

        Args:
            backend: The event loop.
            use_uvloop: Runs asyncio on uvloop.

        Raises:
            MissingExtraError: the backend is not installed.
            ConfigurationError: an event loop runs already in this thread.
        """
        if in_event_loop():
            raise ConfigurationError(
                "run() starts an event loop, and one runs here already; use 'await start()' or lifespan()"
            )
        options = loop_options(backend, use_uvloop)
        in_main = threading.current_thread() is threading.main_thread()
        previous = {number: signal.getsignal(number) for number in _SIGNALS} if in_main else {}
        try:
            anyio.run(self._run_until_signal, in_main, backend=backend, backend_options=options)
        except BaseExceptionGroup as group:
            raise _sole(group) from None
        finally:
            for number, handler in previous.items():
                if handler is not None:
                    signal.signal(number, handler)

    async def _run_until_signal(self, in_main: bool) -> None:
        async with anyio.create_task_group() as group:
            if in_main:
                await group.start(self._watch_signals, group.cancel_scope)
            await self.start()
            group.cancel_scope.cancel()

    async def _watch_signals(
        self, scope: anyio.CancelScope, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        with anyio.open_signal_receiver(*_SIGNALS) as signals:
            task_status.started()
            async for number in signals:
                if not self._stop_early:
                    logger.info("%s: draining; once more cancels.", signal.Signals(number).name)
                    self.request_stop()
                else:
                    logger.warning("%s again: cancelling what is in flight.", signal.Signals(number).name)
                    scope.cancel()


class EventListener(EventDispatcher):
    """The dispatcher under its earlier name."""

    async def listen(self) -> None:
        """The same as `start`."""
        await self.start()


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Ready(TaskStatus[None]):
    """Notes that the dispatcher runs, and tells whoever waits for it."""

    def __init__(self, dispatcher: EventDispatcher, outer: TaskStatus[None]) -> None:
        self._dispatcher = dispatcher
        self._outer = outer

    def started(self, value: None = None) -> None:
        self._dispatcher._state = "running"
        logger.info("The dispatcher is ready; it consumes by %s.", ", ".join(map(repr, self._dispatcher.consumers)))
        self._outer.started()


class _Lifespan(AbstractAsyncContextManager["EventDispatcher"]):
    def __init__(self, dispatcher: EventDispatcher) -> None:
        self._dispatcher = dispatcher
        self._group: TaskGroup

    async def __aenter__(self) -> EventDispatcher:
        self._group = anyio.create_task_group()
        await self._group.__aenter__()
        try:
            await self._group.start(self._dispatcher.start)
        except BaseException as error:
            try:
                await self._group.__aexit__(type(error), error, error.__traceback__)
            except BaseExceptionGroup as group:
                raise _sole(group) from None
            raise
        return self._dispatcher

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        self._dispatcher.request_stop()
        try:
            return await self._group.__aexit__(None, None, None) if error is None else await self._close(error)
        except BaseExceptionGroup as group:
            raise _sole(group) from None

    async def _close(self, error: BaseException) -> bool | None:
        # The block failed: the dispatcher still drains, and the block's error goes on. A cancellation of the task group
        # itself means that the dispatcher failed: then the group's own exit raises that error.
        if isinstance(error, anyio.get_cancelled_exc_class()):
            return await self._group.__aexit__(type(error), error, error.__traceback__)
        await self._group.__aexit__(None, None, None)
        return None


def loop_options(backend: str, use_uvloop: bool) -> dict[str, Any]:
    """anyio's options for a backend.

    Raises:
        ConfigurationError: there is no such backend, or no such combination.
        MissingExtraError: it is not installed.
    """
    if backend == "trio":
        if use_uvloop:
            raise ConfigurationError("uvloop is a loop of asyncio; leave out use_uvloop, or choose backend='asyncio'")
        _need("trio")
        return {}
    if backend != "asyncio":
        hint = "; uvloop is backend='asyncio' with use_uvloop=True" if backend == "uvloop" else ""
        raise ConfigurationError(f"backend={backend!r}: choose 'asyncio' or 'trio'{hint}")
    if use_uvloop:
        _need("uvloop")
        return {"use_uvloop": True}
    return {}


def _need(package: str) -> None:
    try:
        __import__(package)
    except ImportError as error:
        raise MissingExtraError(f'{package} is not installed: pip install "dispytch[{package}]"') from error


def _sole(group: BaseExceptionGroup[Any]) -> BaseException:
    """The one error in a group of one, else the group: task groups are no concern of who called."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
