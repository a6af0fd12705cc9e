"""The dispatcher for blocking programs: it runs in an event loop in a thread of its own."""

from __future__ import annotations

import atexit
import logging
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self

import anyio
from anyio.abc import TaskStatus

from dispytch._bridge import Loop, in_event_loop
from dispytch._core.ack import AckPolicy
from dispytch._core.envelope import Envelope
from dispytch._core.events import EventBase
from dispytch._core.handlers import DeadLetterTarget, Registry, Router
from dispytch._runtime.dispatcher import EventDispatcher as AsyncDispatcher
from dispytch._runtime.dispatcher import Lifespan, loop_options
from dispytch._runtime.groups import HandlerGroup
from dispytch._runtime.health import Health
from dispytch._runtime.wiring import Wired
from dispytch.abc import Consumer, Deserializer, EventSubscription, Middleware
from dispytch.errors import ConfigurationError

__all__ = ["EventDispatcher"]

logger: logging.Logger = logging.getLogger("dispytch")


class EventDispatcher(Registry):
    """Receives from consumers and calls handlers, beside a blocking program.

    Handlers may be plain functions, which run in worker threads, or async ones, which run in the background thread's
    event loop. All parameters but these are those of `dispytch.EventDispatcher`.

    Args:
        backend: The event loop of the background thread.
        use_uvloop: Runs asyncio on uvloop.

    Raises:
        ConfigurationError: an option is wrong.
        MissingExtraError: the backend is not installed.
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
        backend: Literal["asyncio", "trio"] = "asyncio",
        use_uvloop: bool = False,
    ) -> None:
        super().__init__()  # the middleware is the inner dispatcher's
        self._inner = AsyncDispatcher(
            *consumers,
            deserializer=deserializer,
            route_delimiter=route_delimiter,
            middlewares=middlewares,
            default_ack_policy=default_ack_policy,
            concurrency=concurrency,
            ordering=ordering,
            max_deliveries=max_deliveries,
            dead_letter=dead_letter,
            drain_timeout=drain_timeout,
            on_lifespan=on_lifespan,
            on_unhandled=on_unhandled,
            dependency_overrides=dependency_overrides,
            envelope=envelope,
        )
        self._backend = backend
        self._options = loop_options(backend, use_uvloop)
        self._inner.add_registry(self)
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._loop: Loop | None = None
        self._error: BaseException | None = None

    @property
    def dependency_overrides(self) -> dict[Callable[..., Any], Callable[..., Any]]:
        """Providers to call in place of others; may be changed until the start."""
        return self._inner.dependency_overrides

    def _is_running(self) -> bool:
        return self._inner._is_running()

    def add_router(self, router: Router) -> None:
        """Takes the handlers of a router, those registered on it later included, until the start."""
        self._inner.add_router(router)

    def add_handler_group(self, group: HandlerGroup) -> None:
        """Takes the handlers of a group, like `add_router`."""
        self._inner.add_handler_group(group)

    def set_ack_policy(self, subscription: EventSubscription | type[EventBase], policy: AckPolicy) -> None:
        """Sets the policy of the handlers with a subscription, unless their decorator gives one."""
        self._inner.set_ack_policy(subscription, policy)

    def health(self) -> Health:
        """How it is doing, from its own progress; a plain call that asks no broker."""
        return self._inner.health()

    def responds(self, timeout: float = 1.0) -> bool:
        """Whether its event loop turns; True where it has none, since it is not started or has ended.

        Args:
            timeout: Seconds to wait for a turn.
        """
        turned = threading.Event()
        if self._thread is None or self._loop is None or not self._loop.post(turned.set):
            return True
        return turned.wait(timeout) or not self._thread.is_alive()

    def wiring(self) -> Sequence[Wired]:
        """What a start would run; see `dispytch.EventDispatcher.wiring`."""
        return self._inner.wiring()

    def start(self) -> None:
        """Starts it, and returns when it consumes.

        Raises:
            ConfigurationError, BrokerUnreachableError, BrokerError: see `dispytch.EventDispatcher.start`.
        """
        if in_event_loop():
            raise ConfigurationError(
                "dispytch.sync blocks, and an event loop runs in this thread; use dispytch.EventDispatcher"
            )
        if self._thread is not None and self._thread.is_alive():
            raise ConfigurationError("the dispatcher is started already; a second one needs consumers of its own")
        self._error = None
        self._ready.clear()
        self._thread = threading.Thread(target=self._run, name="dispytch dispatcher", daemon=True)
        _started.add(self)
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            self._thread.join()  # so that it can be started again
        self._raise_error()

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until it ends, by `stop` or by an error, which is raised here.

        Args:
            timeout: Seconds; ``None`` waits for ever.

        Returns:
            Whether it has ended.
        """
        if self._thread is None:
            return True
        self._thread.join(timeout)
        self._raise_error()
        return not self._thread.is_alive()

    def stop(self) -> None:
        """Stops it: nothing more is fetched, what is in flight finishes within the drain time. Returns when it has.

        Not from a handler, which it would wait for.

        Raises:
            Exception: what it had ended by before, if that was not raised yet.
        """
        if self._loop is not None:
            self._loop.post(self._inner.request_stop)
        self.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            anyio.run(self._serve, backend=self._backend, backend_options=self._options)
        except BaseException as error:
            self._error = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = Loop()
        await self._inner.start(task_status=_Ready(self._ready))

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error


class _Ready(TaskStatus[None]):
    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def started(self, value: None = None) -> None:
        self._event.set()


_started: weakref.WeakSet[EventDispatcher] = weakref.WeakSet()


def _stop_all() -> None:
    # The threads are daemons, so that a program that forgets to stop them can end; but it ends with a drain.
    for dispatcher in list(_started):
        try:
            dispatcher.stop()
        except Exception:  # what ended it, which nobody asked for: the others drain all the same
            logger.exception("A dispatcher had ended before the exit.")


atexit.register(_stop_all)
