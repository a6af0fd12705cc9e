"""Database connections in workers: closed when they are too old or broken, as Django does it around a request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from asgiref.sync import sync_to_async
from django.db import close_old_connections

from dispytch import EventDispatcher
from dispytch._bridge import running_backend
from dispytch._core.handlers import Handler
from dispytch._core.params import signature_for_wrapper

__all__ = ["guard"]


def guard(dispatcher: EventDispatcher) -> None:
    """Has old database connections closed before and after each call of a handler, where its queries run.

    Plain handlers and their plain dependencies run in one thread, which has connections of its own. The queries of
    asynchronous handlers run in the thread of ``sync_to_async``, on asyncio; trio has none of it.
    """
    for registry in (dispatcher, *dispatcher._registries):
        registry.handlers[:] = map(_guarded, registry.handlers)


def _guarded(handler: Handler) -> Handler:
    if hasattr(handler.func, _MARK):
        return handler
    func: Any = handler.func
    around = _around_async(func) if handler.plan.is_async else _around(func)
    around.__signature__ = signature_for_wrapper(func, handler.frame)
    setattr(around, _MARK, func)
    return replace(handler, func=around)


_MARK = "_dispytch_guards"


def _around(func: Any) -> Any:
    def guarded(**arguments: Any) -> Any:
        close_old_connections()
        try:
            return func(**arguments)
        finally:
            close_old_connections()

    return guarded


def _around_async(func: Any) -> Any:
    async def guarded(**arguments: Any) -> Any:
        if running_backend() == "trio":
            return await func(**arguments)
        await _close()
        try:
            return await func(**arguments)
        finally:
            await _close()

    return guarded


_close: Callable[[], Awaitable[None]] = sync_to_async(close_old_connections)
