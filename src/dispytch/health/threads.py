"""The server for programs without an event loop: it has one of its own, in a thread."""

from __future__ import annotations

import threading
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Self

import anyio

from dispytch._bridge import Loop
from dispytch._runtime.dispatcher import EventDispatcher
from dispytch.errors import ConfigurationError
from dispytch.health.background import Background
from dispytch.health.reports import POLL_TIMEOUT
from dispytch.health.server import HealthServer, serve_health
from dispytch.health.sources import HasHealth

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

__all__ = ["BackgroundThread", "HealthThread", "serve_health_in_thread"]


class BackgroundThread:
    """Something that runs in an event loop in a thread, while it is entered.

    Args:
        what: What is entered there, one after the other. An error is raised where the thread was to be started.
    """

    def __init__(self, *what: Background) -> None:
        self._what = what
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._loop: Loop
        self._ended: anyio.Event

    def __enter__(self) -> Self:
        self._error = None
        self._ready.clear()
        self._thread = threading.Thread(target=self._run, name="dispytch health", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            self._thread.join()
            raise self._error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loop.post(lambda: self._ended.set())
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            anyio.run(self._serve)
        except BaseException as error:
            self._error = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop, self._ended = Loop(), anyio.Event()
        async with AsyncExitStack() as stack:
            for one in self._what:
                await stack.enter_async_context(one)
            self._ready.set()
            await self._ended.wait()


class HealthThread(BackgroundThread):
    """A health server in a thread, while it is entered: ``with HealthThread(server):``."""

    def __init__(self, server: HealthServer) -> None:
        super().__init__(server)
        self._server = server

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._server.port

    @property
    def url(self) -> str:
        """Its address, such as ``"http://127.0.0.1:8080"``."""
        return self._server.url


def serve_health_in_thread(
    *dispatchers: HasHealth,
    host: str = "127.0.0.1",
    port: int = 8080,
    poll_timeout: float = POLL_TIMEOUT,
    registry: CollectorRegistry | None = None,
) -> HealthThread:
    """The same as `serve_health` for blocking programs: ``with serve_health_in_thread(dispatcher, port=8080):``.

    Args:
        dispatchers: Those of `dispytch.sync`, whose event loops ``/livez`` looks at.
        host, port, poll_timeout, registry: See `serve_health`.

    Raises:
        ConfigurationError: a dispatcher is one for event loops, or as `serve_health` does.
    """
    for one in dispatchers:
        if isinstance(one, EventDispatcher):
            # It would answer from its thread, and call a loop alive that does not turn.
            raise ConfigurationError(
                "a dispytch.EventDispatcher is served in its own event loop: "
                "EventDispatcher(..., on_lifespan=lambda dispatcher: serve_health(dispatcher, port=8080))"
            )
    return HealthThread(serve_health(*dispatchers, host=host, port=port, poll_timeout=poll_timeout, registry=registry))
