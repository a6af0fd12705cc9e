"""Dropping events that a handler does not want."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

from dispytch._core.context import EventHandlerContext, Middleware, NextCall
from dispytch.middleware._calls import call

__all__ = ["Filter"]


class Filter(Middleware):
    """Lets an event through if the predicate is true of its context; otherwise it is handled, without the handler.

    Args:
        predicate: From the context to a truth value; sync or async. What it raises is the handler's failure.

    On handlers of batches it is refused: which of the events it lets through could not be told.
    """

    takes_batches: ClassVar[bool] = False

    def __init__(self, predicate: Callable[[EventHandlerContext], bool | Awaitable[bool]]) -> None:
        self.predicate: Callable[[EventHandlerContext], bool | Awaitable[bool]] = predicate

    async def dispatch(self, ctx: EventHandlerContext, call_next: NextCall) -> Any:
        if await call(self.predicate, ctx):
            return await call_next(ctx)
        return None
