"""Dispatchers of this process as what a server asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeGuard

import anyio
import anyio.to_thread

from dispytch._runtime.health import Health
from dispytch.errors import ConfigurationError, MissingExtraError
from dispytch.health.reports import Report, liveness, readiness

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

__all__ = ["DispatcherSource", "HasHealth", "Page", "page_of"]

_TURN = 2.0
"""Seconds in which a loop that turns runs what is posted to it."""

Page = Callable[[], bytes]


class HasHealth(Protocol):
    """A dispatcher of either world."""

    def health(self) -> Health: ...


class _Elsewhere(HasHealth, Protocol):
    """A dispatcher whose loop is another one than the server's: that of `dispytch.sync`."""

    def responds(self, timeout: float) -> bool: ...


class DispatcherSource:
    """Dispatchers as what a server asks.

    Args:
        dispatchers: Those of the server's own loop, and those of `dispytch.sync`.
        poll_timeout: See `liveness`.

    Attributes:
        page: What makes the page of metrics, if there is one.
    """

    def __init__(self, dispatchers: Sequence[HasHealth], poll_timeout: float) -> None:
        if not dispatchers:
            raise ConfigurationError("there is no dispatcher to tell the health of: serve_health(dispatcher)")
        for one in dispatchers:
            if not callable(getattr(one, "health", None)):
                raise ConfigurationError(f"{one!r} is no dispatcher: it has no health()")
        if poll_timeout <= 0:
            raise ConfigurationError(f"poll_timeout is in seconds and must be positive, not {poll_timeout}")
        self._dispatchers = dispatchers
        self._poll_timeout = poll_timeout
        self.page: Page | None = None

    async def live(self) -> Report:
        # That this runs shows that the server's own loop turns.
        report = liveness(self._healths(), self._poll_timeout)
        for one in self._dispatchers:
            if _is_elsewhere(one) and not await anyio.to_thread.run_sync(one.responds, _TURN):
                return Report([*report.reasons, f"the dispatcher's event loop did not turn for {_TURN:g} s"])
        return report

    async def ready(self) -> Report:
        return readiness(self._healths())

    async def metrics(self) -> bytes | None:
        return None if self.page is None else self.page()

    def _healths(self) -> list[Health]:
        return [one.health() for one in self._dispatchers]


def page_of(
    dispatchers: Sequence[HasHealth], registry: CollectorRegistry | None, *, all_processes: bool = True
) -> Page | None:
    """What makes the page of metrics; ``None`` where prometheus-client is not installed.

    The dispatchers are among what the registry collects from then on. For the rest see `dispytch.metrics.exposition`.
    """
    try:
        from dispytch.metrics import exposition, watch
    except MissingExtraError:
        return None
    for one in dispatchers:
        watch(one, registry=registry)
    return lambda: exposition(registry, all_processes=all_processes)


def _is_elsewhere(dispatcher: HasHealth) -> TypeGuard[_Elsewhere]:
    return hasattr(dispatcher, "responds")
