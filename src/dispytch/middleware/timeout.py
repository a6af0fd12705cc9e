"""A limit on the time that a handler takes."""

from __future__ import annotations

from typing import Any, ClassVar

import anyio

from dispytch._core.context import EventHandlerContext, Middleware, NextCall
from dispytch.errors import ConfigurationError

__all__ = ["Timeout"]


class Timeout(Middleware):
    """Cancels what it wraps after some seconds, and fails with TimeoutError.

    It works on ``async def`` handlers only: it is refused where it is given to a ``def`` handler, and left out for
    those of a router or dispatcher that has it.

    Args:
        seconds: The limit.
    """

    cancels: ClassVar[bool] = True

    def __init__(self, seconds: float) -> None:
        if seconds <= 0:
            raise ConfigurationError(f"Timeout is in seconds and must be positive: {seconds}")
        self.seconds: float = seconds

    async def dispatch(self, ctx: EventHandlerContext, call_next: NextCall) -> Any:
        with anyio.move_on_after(self.seconds) as scope:
            return await call_next(ctx)
        if scope.cancelled_caught:
            raise TimeoutError(f"handler {ctx.handler} took over {self.seconds:g} s")
        return None
