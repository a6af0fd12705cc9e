"""Handling certain exceptions instead of failing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dispytch._core.context import EventHandlerContext, Middleware, NextCall
from dispytch._core.redelivery import Redeliver, Reject
from dispytch.errors import ConfigurationError
from dispytch.middleware._calls import call

__all__ = ["ExceptionInterceptor"]

ExceptionHandler = Callable[[EventHandlerContext, Any], Any]


class ExceptionInterceptor(Middleware):
    """Calls a function for an exception of a class; the event is then handled, unless that function raises.

    The handler of the most specific class counts, whatever the order in which they were added. ``Redeliver`` and
    ``Reject`` steer what becomes of the event, so a handler of ``Exception`` does not get them. Nothing is intercepted
    where a stop of the dispatcher has cut the retries inside short: the event is handed back, to be tried again.

    Args:
        handlers: By exception class, functions of the context and the exception; sync or async.
    """

    def __init__(self, handlers: Mapping[type[Exception], ExceptionHandler] | None = None) -> None:
        self._handlers: dict[type[Exception], ExceptionHandler] = {}
        for kind, handler in (handlers or {}).items():
            self.add_handler(kind, handler)

    def add_handler(self, kind: type[Exception], handler: ExceptionHandler) -> None:
        """Adds the handler of a class, or replaces it."""
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            raise ConfigurationError(
                f"{kind!r} is no exception class that can be intercepted; give subclasses of Exception"
            )
        self._handlers[kind] = handler

    async def dispatch(self, ctx: EventHandlerContext, call_next: NextCall) -> Any:
        try:
            return await call_next(ctx)
        except Exception as error:
            if ctx.cut_short:
                raise
            kinds = type(error).__mro__
            if isinstance(error, Redeliver | Reject):  # decisions rather than errors: intercepted by name alone
                kinds = kinds[: kinds.index(Exception)]
            handler = next((self._handlers[kind] for kind in kinds if kind in self._handlers), None)
            if handler is None:
                raise
            return await call(handler, ctx, error)
