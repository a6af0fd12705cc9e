"""Which event a log record is about: as fields of the library's own records, and of those that handlers write.

`EventFields` is a filter for the handlers of `logging`: records that come from within the handling of an event get its
topic and id. With the middleware `LogContext` they have the handler, its group and the attempt too.
"""

from __future__ import annotations

import logging
import sys
from contextvars import ContextVar
from typing import Any

from dispytch._core.context import EventHandlerContext, Middleware, NextCall
from dispytch._core.envelope import CURRENT

__all__ = ["EventFields", "LogContext"]

_HANDLED: ContextVar[EventHandlerContext | None] = ContextVar("dispytch_handled", default=None)


class LogContext(Middleware):
    """Has `EventFields` know which handler is at work, and at which attempt; of a batch, how many events it has."""

    async def dispatch(self, ctx: EventHandlerContext, call_next: NextCall) -> Any:
        token = _HANDLED.set(ctx)
        try:
            return await call_next(ctx)
        finally:
            _HANDLED.reset(token)


class EventFields(logging.Filter):
    """Adds to log records what they are about, as attributes; it lets all of them through.

    ``topic`` and ``event_id`` in everything that a handler calls; ``handler``, ``group`` and ``attempt`` where there is
    `LogContext` around it, and ``events``, their number, in place of the id for a batch; ``trace_id`` and ``span_id``
    where OpenTelemetry has a span. What a record has already stays. The library's own records about an event have these
    without it.

    Args:
        missing: What fields have outside of events, for formats that name them; by default they are not there then.
    """

    def __init__(self, missing: str | None = None) -> None:
        super().__init__()
        self._missing = missing

    def filter(self, record: logging.LogRecord) -> bool:
        found = {**_of_event(), **_of_span()}
        if self._missing is not None:
            found = {**dict.fromkeys(_FIELDS, self._missing), **found}
        known = vars(record)
        for name, value in found.items():
            known.setdefault(name, value)
        return True


_FIELDS = ("topic", "event_id", "handler", "group", "attempt", "trace_id", "span_id")


def _of_event() -> dict[str, object]:
    ctx, opened = _HANDLED.get(), CURRENT.get(None)
    found: dict[str, object] = {}
    if ctx is not None:
        found.update(handler=ctx.handler, group=ctx.group, attempt=ctx.failures + 1)
        parts = ctx.contexts
        if len(parts) == 1 and parts[0] is ctx:
            found.update(topic=ctx.message.source, event_id=ctx.event_id)
            return found
        found.update(topic=ctx.pattern, events=len(parts))
    elif opened is not None:
        found.update(topic=opened.delivery.source, event_id=opened.id)
    return found


def _of_span() -> dict[str, object]:
    trace = sys.modules.get("opentelemetry.trace")  # if nobody has imported it, there are no spans
    if trace is None:
        return {}
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
