"""A small HTTP server for probes and metrics, on asyncio, uvloop and trio."""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import ByteStream, SocketAttribute, TaskGroup

from dispytch.errors import ConfigurationError
from dispytch.health.background import Background
from dispytch.health.reports import POLL_TIMEOUT, Answer, Report, Source
from dispytch.health.sources import DispatcherSource, HasHealth, page_of

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

__all__ = ["HealthServer", "serve_health"]

logger: logging.Logger = logging.getLogger("dispytch")

_MOST_CONNECTIONS = 32
_ANSWER_TIME = 10.0
"""Seconds that an answer may take to be made."""
_BREATH = 1.0
"""Seconds after which connections are taken again, if taking one has failed."""
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


class HealthServer(Background):
    """Answers ``/livez``, ``/readyz`` and ``/metrics`` while it is entered: ``async with HealthServer(...):``.

    Use `serve_health`, which makes one of dispatchers.

    Args:
        source: Whom it asks.
        host: The address that it listens at: an IP address of either kind, or a name.
        port: The port; 0 for a free one, see `port`.
        path: A Unix socket in the place of both.
        max_connections: How many clients may be connected at once; a further one takes the place of the one that
            has been silent for longest.

    Attributes:
        port: Where it listens, once it does.
    """

    def __init__(
        self,
        source: Source,
        host: str = "127.0.0.1",
        port: int = 8080,
        *,
        path: str | None = None,
        max_connections: int = _MOST_CONNECTIONS,
    ) -> None:
        if not (isinstance(port, int) and 0 <= port <= 65535):
            raise ConfigurationError(f"a port is a number from 0 to 65535, not {port!r}")
        if max_connections < 1:
            raise ConfigurationError(f"max_connections must be at least 1, not {max_connections}")
        from dispytch.health.http import Conversation  # which needs h11, and what else is here does not

        self._conversation = Conversation
        self._source = source
        self._host = host
        self._path = path
        self._most = max_connections
        self._open: dict[anyio.CancelScope, None] = {}
        """The connections, the one that has been silent for longest first."""
        self.port: int = port

    @property
    def url(self) -> str:
        """Its address, such as ``"http://127.0.0.1:8080"``."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self.port}"

    async def _begin(self, group: TaskGroup) -> None:
        listener = await self._listen()
        if self._path is None:
            self.port = listener.extra(SocketAttribute.local_port)  # noqa: S610 - not Django's
            logger.info("Health is told at %s.", self.url)
        group.start_soon(self._serve, listener, group, name="dispytch health server")

    async def _listen(self) -> Any:
        try:
            if self._path is not None:
                return await anyio.create_unix_listener(self._path, mode=0o600)
            return await anyio.create_tcp_listener(local_host=self._host, local_port=self.port)
        except OSError as error:
            raise _refusal(self._path or f"{self._host}, port {self.port}", error) from error

    async def _serve(self, listener: Any, group: TaskGroup) -> None:
        async with listener:
            while True:
                try:
                    await listener.serve(self._attend, group)
                except* OSError as errors:  # too many open files, say, which is no reason to end the service
                    logger.error("Health could not take a connection: %s", errors.exceptions[0])
                await anyio.sleep(_BREATH)

    async def _attend(self, stream: ByteStream) -> None:
        if len(self._open) >= self._most:
            # Whoever keeps connections open without a word must not keep probes out.
            oldest = next(iter(self._open))
            oldest.cancel()
            del self._open[oldest]
        async with stream:
            with anyio.CancelScope() as scope:
                self._open[scope] = None
                try:
                    await self._converse(stream, lambda: self._note(scope))
                except (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, OSError):
                    pass  # the client has gone, or was too slow; nobody waits for an answer
                except Exception:  # it would end the service otherwise
                    logger.exception("A connection that asked for health failed.")
                finally:
                    self._open.pop(scope, None)

    async def _converse(self, stream: ByteStream, note: Callable[[], None]) -> None:
        async def answer(method: bytes, target: bytes) -> Answer:
            note()
            return await self._answer(method, target)

        await self._conversation(stream, answer).hold()

    def _note(self, scope: anyio.CancelScope) -> None:
        """Puts a connection behind all others, which have been silent for longer."""
        if scope in self._open:
            del self._open[scope]
            self._open[scope] = None

    async def _answer(self, method: bytes, target: bytes) -> Answer:
        path = target.partition(b"?")[0].rstrip(b"/") or b"/"
        make = self._pages.get(path)
        if make is None:
            known = ", ".join(name.decode() for name in self._pages)
            return Answer(HTTPStatus.NOT_FOUND, f"There are {known}.\n".encode())
        if method not in (b"GET", b"HEAD"):
            return Answer(HTTPStatus.METHOD_NOT_ALLOWED, b"Use GET or HEAD.\n", headers={"allow": "GET, HEAD"})
        try:
            with anyio.fail_after(_ANSWER_TIME):
                return await make()
        except Exception:  # a collector of the user's own, say: the other pages go on, and so does the service
            logger.exception("The page %s could not be made.", path.decode("ascii", "replace"))
            return Answer(HTTPStatus.INTERNAL_SERVER_ERROR, b"This failed; the log of the service says why.\n")

    @property
    def _pages(self) -> Mapping[bytes, Callable[[], Awaitable[Answer]]]:
        return {b"/livez": self._live, b"/readyz": self._ready, b"/metrics": self._metrics}

    async def _live(self) -> Answer:
        return _told(await self._source.live())

    async def _ready(self) -> Answer:
        return _told(await self._source.ready())

    async def _metrics(self) -> Answer:
        page = await self._source.metrics()
        if page is None:
            return Answer(HTTPStatus.NOT_FOUND, b'There are no metrics: pip install "dispytch[metrics]".\n')
        return Answer(HTTPStatus.OK, page, _PROMETHEUS)


def serve_health(
    *dispatchers: HasHealth,
    host: str = "127.0.0.1",
    port: int = 8080,
    poll_timeout: float = POLL_TIMEOUT,
    registry: CollectorRegistry | None = None,
    max_connections: int = _MOST_CONNECTIONS,
) -> HealthServer:
    """A server that tells how dispatchers are doing, for probes and for Prometheus.

    Around a lifespan, ``async with serve_health(dispatcher, port=8080), dispatcher.lifespan():``, or as a dispatcher's
    ``on_lifespan=lambda dispatcher: serve_health(dispatcher, port=8080)``. Either way it answers from before the start
    until after the drain.

    Args:
        dispatchers: Those of this event loop; one of `dispytch.sync` may be in its own.
        host: Where it listens; ``"0.0.0.0"`` or ``"::"`` for everybody who can reach the machine.
        port: The port; 0 for a free one, which the server's `port` tells.
        poll_timeout: Seconds without a poll after which a consumer that could poll counts as stuck, for ``/livez``.
        registry: What ``/metrics`` shows beside the dispatchers; by default prometheus-client's own.
        max_connections: How many clients may be connected at once; a further one takes the place of the one that
            has been silent for longest.

    Raises:
        ConfigurationError: an option is wrong, or (when it is entered) nothing can listen there.
        MissingExtraError: h11 is not installed.
    """
    source = DispatcherSource(dispatchers, poll_timeout)
    source.page = page_of(dispatchers, registry)
    return HealthServer(source, host, port, max_connections=max_connections)


def _told(report: Report) -> Answer:
    body = json.dumps(report.as_json()).encode() + b"\n"
    status = HTTPStatus.OK if report.ok else HTTPStatus.SERVICE_UNAVAILABLE
    return Answer(status, body, "application/json")


def _refusal(where: str, error: OSError) -> ConfigurationError:
    if error.errno == errno.EADDRINUSE:
        return ConfigurationError(f"health cannot be told at {where}: it is in use; choose another port, or 0 for any")
    if error.errno == errno.EACCES:
        return ConfigurationError(f"health cannot be told at {where}: that is not allowed; ports from 1024 on are")
    return ConfigurationError(f"health cannot be told at {where}: {error}; give an address of this machine")
