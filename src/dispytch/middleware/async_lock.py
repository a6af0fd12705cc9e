"""Bounding how many events of a kind are handled at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import Any

import anyio

from dispytch._core.context import EventHandlerContext, Middleware, NextCall
from dispytch.errors import ConfigurationError
from dispytch.middleware._calls import call

__all__ = ["AsyncLock"]


class _Gate:
    __slots__ = ("semaphore", "users")

    def __init__(self, limit: int) -> None:
        self.semaphore = anyio.Semaphore(limit)
        self.users = 0


class AsyncLock(Middleware):
    """Lets at most ``concurrency_limit`` events with the same key through at once, in this process.

    One instance that is given to several handlers bounds them together. Keys that nobody uses are forgotten.

    Args:
        key_extractor: From the context to the key; sync or async. Without it all events have one key.
        concurrency_limit: How many at once; 1 makes it a lock.
    """

    def __init__(
        self,
        key_extractor: Callable[[EventHandlerContext], Hashable | Awaitable[Hashable]] | None = None,
        concurrency_limit: int = 1,
    ) -> None:
        if concurrency_limit < 1:
            raise ConfigurationError(f"concurrency_limit must be at least 1, not {concurrency_limit}")
        self.key_extractor: Callable[[EventHandlerContext], Hashable | Awaitable[Hashable]] | None = key_extractor
        self.concurrency_limit: int = concurrency_limit
        self._gates: dict[Hashable, _Gate] = {}

    async def dispatch(self, ctx: EventHandlerContext, call_next: NextCall) -> Any:
        key = None if self.key_extractor is None else await call(self.key_extractor, ctx)
        gate = self._gates.get(key)
        if gate is None:
            gate = self._gates[key] = _Gate(self.concurrency_limit)
        gate.users += 1
        try:
            async with gate.semaphore:
                return await call_next(ctx)
        finally:
            gate.users -= 1
            if not gate.users:
                del self._gates[key]
