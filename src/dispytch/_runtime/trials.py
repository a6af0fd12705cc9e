"""Trying a handler: one call of it, what its failure means, and the tries after that."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from contextvars import Context, copy_context
from typing import Any

import anyio

from dispytch._bridge import Suspended, finish, was_cancelled
from dispytch._core.context import EventHandlerContext
from dispytch._core.envelope import Opened
from dispytch._core.messages import Outcome
from dispytch._core.redelivery import decide
from dispytch._runtime.invoke import concluded
from dispytch._runtime.wiring import Bound
from dispytch._runtime.works import DONE, RELEASED, Counts, Verdict, Work, make_dead_letter
from dispytch.errors import DecodeError, DeliveryError

__all__ = ["Trials", "from_inside", "rest_of_try", "try_once"]

logger = logging.getLogger("dispytch")


class Trials:
    """What the dispatcher makes of failures.

    Args:
        max_deliveries: After how many failed deliveries an event is given up.
        counts: Where to count what happens.

    Attributes:
        stopping: The dispatcher is to stop: no further tries.
        cut: The partitions of which a stop has handed events back, that had been tried.
    """

    def __init__(self, max_deliveries: int, counts: Counts) -> None:
        self.max_deliveries: int = max_deliveries
        self.counts: Counts = counts
        self.stopping = False
        self.cut: set[object] = set()

    def context(
        self, work: Work, bound: Bound, params: Mapping[str, str], tries: int | None = None
    ) -> EventHandlerContext:
        """What a try is called with.

        Args:
            tries: How many tries have failed; ``None`` for those that the delivery knows of.
        """
        if tries is None:
            failures = work.delivery.failures
            tries = failures.get(bound.key, 0) if failures else 0
        return EventHandlerContext(work.opened, bound, params, tries, work)

    async def deliver(self, work: Work, bound: Bound, params: Mapping[str, str]) -> Verdict:
        """Has one handler handle an event, again and again until it succeeds or is given up."""
        ctx = self.context(work, bound, params)
        error = await try_once(bound, ctx, work.opened)
        return DONE if error is None else await self.persist(work, bound, params, ctx, error)

    async def persist(
        self, work: Work, bound: Bound, params: Mapping[str, str], ctx: EventHandlerContext, error: BaseException
    ) -> Verdict:
        """After a failed try: others, until one succeeds, or it is the end, or the event goes back to the broker."""
        while True:
            judged = self.judge(work, bound, ctx, error, ctx.cut_short)
            if isinstance(judged, Verdict):
                return judged
            logger.warning(
                "Handler %s failed on event %s from %s (attempt %d); next try in %.3g s.",
                bound.name,
                work.opened.id,
                work.opened.delivery.source,
                ctx.failures,
                judged,
                exc_info=error,
                extra=_fields(work, bound, ctx.failures),
            )
            if not await work.pause(judged):
                return RELEASED
            if work.is_stale:
                work.forget()
                return RELEASED
            if work.is_settled:
                return DONE  # by a word that came after the handler had failed, from a thread or task of its own
            self.counts.redelivered += 1
            ctx = self.context(work, bound, params, ctx.failures)
            again = await try_once(bound, ctx, work.opened)
            if again is None:
                return DONE
            error = again

    def judge(
        self, work: Work, bound: Bound, ctx: EventHandlerContext, error: BaseException, cut_short: bool
    ) -> Verdict | float:
        """What a failed try means: the seconds until the next one, or the end. Counts the failure, in ``ctx`` too."""
        if cut_short and not bound.ack_first:
            if work.is_stale:
                work.forget()
            if not ctx.has_failed:
                return RELEASED  # the handler was not called: middleware has waited before it, in vain
        failed = work.failures.get(bound.key, 0) + 1
        work.failures = {**work.failures, bound.key: failed}
        ctx.failures = max(failed, ctx.failures)
        self.counts.failed += 1
        if cut_short and not bound.ack_first:
            return RELEASED
        jitter = random.random()  # noqa: S311 - no secret
        decision = decide(error, failed, self.max_deliveries, bound.ack_first, jitter)
        if decision.delay is None:
            return self._give_up(work, bound, error, ctx.failures)
        return RELEASED if self.stopping else decision.delay

    def _give_up(self, work: Work, bound: Bound, error: BaseException, tries: int) -> Verdict:
        opened = work.opened
        route = bound.dead_letter
        where = "dropped" if route is None else f"dead-lettered to {route.address}"
        details: dict[str, Any] = {} if isinstance(error, DecodeError) else {"exc_info": error}
        logger.error(
            "Handler %s failed on event %s from %s at attempt %d, so it is %s: %s",
            bound.name,
            opened.id,
            opened.delivery.source,
            tries,
            where,
            error if isinstance(error, DecodeError) else type(error).__name__,
            extra=_fields(work, bound, tries),
            **details,
        )
        if route is None:
            return DONE
        group = work.link.consumer.group_id
        return Verdict(make_dead_letter(opened.delivery, route, error, bound.key, tries, group=group))

    def conclude(self, work: Work, verdicts: Sequence[Verdict]) -> None:
        """Settles an event that all its handlers are done with."""
        if any(verdict.released for verdict in verdicts):
            if not work.is_settled:
                self.cut.add(work.partition)
            if work.route.ack_first:
                logger.error(
                    "Event %s from %s was acknowledged before it was handled, and a stop cut its next try off.",
                    work.opened.id,
                    work.opened.delivery.source,
                    extra=work.log_fields,
                )
            work.settle(Outcome.RELEASE)
            return
        letters = [verdict.dead_letter for verdict in verdicts if verdict.dead_letter is not None]
        self.counts.dead_lettered += len(letters)
        self.counts.handled += 1
        work.settle(Outcome.DEAD_LETTER if letters else Outcome.ACK, letters)


def _fields(work: Work, bound: Bound, tries: int) -> dict[str, object]:
    return {**work.log_fields, "handler": bound.name, "attempt": tries}


# Errors are returned, and looked at outside of any except clause: otherwise each would have the one before it as its
# context, and a chain of them would grow with every try.


async def try_once(bound: Bound, ctx: EventHandlerContext, opened: Opened | None) -> BaseException | None:
    """One call of a handler with its middleware, in a context of its own; returns how it failed."""
    error: BaseException | None = None
    context = copy_context()
    try:
        suspended = context.run(bound.begin, ctx, opened)
    except Exception as raised:
        error = raised
    except anyio.get_cancelled_exc_class() as cancelled:
        error = await from_inside(cancelled)
    else:
        if suspended is not None:
            error = await rest_of_try(context, suspended)
    return concluded(ctx, error, bound.must_settle)


async def rest_of_try(context: Context, suspended: Suspended) -> BaseException | None:
    """The rest of a call that had to wait; returns what it raised."""
    try:
        await finish(context, suspended)
    except Exception as error:
        return error
    except anyio.get_cancelled_exc_class() as cancelled:
        return await from_inside(cancelled)
    return None


async def from_inside(cancelled: BaseException) -> BaseException:
    """The failure that a cancellation means which a client library let escape; raises it if it was for this task."""
    if await was_cancelled():
        raise cancelled
    failure = DeliveryError("the handler was cancelled from inside, by a library that it calls")
    failure.__cause__ = cancelled
    return failure
