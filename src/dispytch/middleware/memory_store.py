"""What has been handled, remembered in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import anyio.lowlevel

from dispytch._core.deduplication import Claim, Store
from dispytch.errors import ConfigurationError

__all__ = ["MemoryStore"]


class MemoryStore(Store):
    """Remembers in this process: for tests, and where one process handles all events of a group.

    What has expired is forgotten as others are added, so it holds no more than what was handled in ``ttl`` seconds.

    Args:
        ttl: Seconds for which an event that was handled is remembered.
        clock: Tells the time in seconds, from any beginning.

    Raises:
        ConfigurationError: ``ttl`` is not positive.
    """

    def __init__(self, ttl: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        if not (isinstance(ttl, int | float) and ttl > 0):
            raise ConfigurationError(f"ttl={ttl!r}: give the seconds for which events are remembered")
        self.ttl: float = ttl
        self._clock = clock
        self._lock = threading.Lock()
        # Both in the order in which they expire, as long as claims are made with one claim_ttl.
        self._done: dict[str, float] = {}
        self._claims: dict[str, tuple[str, float]] = {}

    def __len__(self) -> int:
        """How many events it holds, those that are being handled included."""
        return len(self._done) + len(self._claims)

    async def claim(self, key: str, token: str, claim_ttl: float) -> Claim:
        await anyio.lowlevel.checkpoint()
        with self._lock:
            now = self._clock()
            self._forget(now)
            if self._done.get(key, now) > now:
                return Claim.DONE
            owner, expires = self._claims.get(key, (token, now))
            if owner != token and expires > now:
                return Claim.BUSY
            self._claims.pop(key, None)  # so that it goes to the end
            self._claims[key] = (token, now + claim_ttl)
            return Claim.GRANTED

    async def complete(self, key: str) -> None:
        await anyio.lowlevel.cancel_shielded_checkpoint()
        with self._lock:
            now = self._clock()
            self._forget(now)
            self._claims.pop(key, None)
            self._done.pop(key, None)
            self._done[key] = now + self.ttl

    async def release(self, key: str, token: str) -> None:
        await anyio.lowlevel.cancel_shielded_checkpoint()
        with self._lock:
            if self._claims.get(key, (None, 0.0))[0] == token:
                del self._claims[key]

    def _forget(self, now: float) -> None:
        while self._done and self._done[key := next(iter(self._done))] <= now:
            del self._done[key]
        while self._claims and self._claims[key := next(iter(self._claims))][1] <= now:
            del self._claims[key]
