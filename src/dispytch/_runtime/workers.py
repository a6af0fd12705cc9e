"""The workers: they call the handlers, and see each event through to its outcome.

A fixed set of workers pops the lanes, and each sees an event through: its handlers, their back-offs, its outcome. So a
worker is what an event in flight holds, and their number is the bound. A worker that finds more to do wakes one other
before it calls a handler; if that handler never waits, the other finds nothing left, if it does, the work spreads.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Mapping, Sequence
from contextvars import Context, copy_context
from typing import Any

import anyio
import anyio.lowlevel

from dispytch._bridge import Suspended, begin, finish, was_cancelled
from dispytch._core.context import EventHandlerContext
from dispytch._core.deadletters import dead_letter_headers, error_text, utc_text
from dispytch._core.envelope import CURRENT, Opened
from dispytch._core.lanes import Lanes, Limit
from dispytch._core.messages import DeadLetter, Message, Outcome, Settlement
from dispytch._core.redelivery import decide
from dispytch._runtime.ids import new_id
from dispytch._runtime.links import Link
from dispytch._runtime.wiring import Bound, Match, Route
from dispytch.abc import Delivery, EventRoute
from dispytch.errors import DecodeError, DeliveryError

__all__ = ["Counts", "Work", "Workers", "make_dead_letter"]

logger = logging.getLogger("dispytch")

_NO_FAILURES: Mapping[str, int] = {}
_SLICE = 0.005
"""Seconds that a worker may go on without letting others of the loop run."""
_MOST_IN_SLICE = 64


class Counts:
    """What has happened so far."""

    __slots__ = ("dead_lettered", "failed", "handled", "not_addressed", "redelivered", "skipped_null", "unhandled")

    def __init__(self) -> None:
        self.handled = 0
        self.failed = 0
        self.redelivered = 0
        self.dead_lettered = 0
        self.unhandled = 0
        self.skipped_null = 0
        self.not_addressed = 0


class Work:
    """A delivery with the handlers that it is for."""

    __slots__ = ("failures", "lane", "limits", "link", "opened", "route", "started")

    def __init__(self, link: Link, opened: Opened, route: Route, lane: tuple[Any, ...] | None) -> None:
        self.link: Link = link
        self.opened: Opened = opened
        self.route: Route = route
        self.lane: tuple[Any, ...] | None = lane
        self.limits: Sequence[Limit] = route.limits
        self.failures: dict[str, int] | None = None
        self.started = 0.0

    def settle(self, outcome: Outcome, letters: Sequence[Message] = ()) -> None:
        """Tells the consumer what became of it."""
        if self.route.ack_first and outcome is not Outcome.DEAD_LETTER:
            self.link.let_go(1)  # acknowledged before it was handled
            return
        self.link.settle(Settlement(self.opened.delivery, outcome, letters, self.failures or _NO_FAILURES))


class _Verdict:
    """What became of an event at one handler: done with (perhaps with a dead letter), or to be handed back."""

    __slots__ = ("dead_letter", "released")

    def __init__(self, dead_letter: Message | None = None, released: bool = False) -> None:
        self.dead_letter: Message | None = dead_letter
        self.released: bool = released


_DONE = _Verdict()
_RELEASED = _Verdict(released=True)


class Workers:
    """The lanes, and the workers that pop them.

    Args:
        concurrency: The number of workers.
        max_deliveries: After how many failed deliveries an event is given up.
        counts: Where to count what happens.
    """

    def __init__(self, concurrency: int, max_deliveries: int, counts: Counts) -> None:
        self.concurrency: int = concurrency
        self.max_deliveries: int = max_deliveries
        self.counts: Counts = counts
        self.lanes: Lanes[Work] = Lanes()
        self.running: dict[int, Work] = {}
        self.stopping = False
        self.drained = anyio.Event()
        """Set when, after a stop was asked for, nothing is left to do."""
        self._idlers: list[anyio.Event] = []
        self._waking = False
        self._winding_up = False

    def wake(self) -> None:
        """Wakes a worker, if there is something to do and none is awake for it."""
        if self._idlers and not self._waking and self.lanes.ready:
            self._waking = True
            self._idlers.pop().set()

    def wind_up(self) -> None:
        """Has `drained` set as soon as nothing runs and nothing waits."""
        self.stopping = self._winding_up = True
        if not self.running and not len(self.lanes):
            self.drained.set()
        self.wake()

    async def work(self) -> None:
        """One worker, until it is cancelled."""
        lanes, running = self.lanes, self.running
        pop, done = lanes.pop, lanes.done
        clock = time.perf_counter
        count, slice_end = 0, clock() + _SLICE
        while True:
            work = pop()
            if work is None:
                if self._winding_up and not running and not len(lanes):
                    self.drained.set()
                await self._idle()
                count, slice_end = 0, clock() + _SLICE
                continue
            if self._idlers and not self._waking and lanes.ready:
                self.wake()
            if self.stopping and not work.route.ack_first:
                work.settle(Outcome.RELEASE)  # one of its key may have been handed back before it
                done(work)
                continue
            if (
                (is_stale := work.link.is_stale) is not None
                and not work.route.ack_first
                and is_stale(work.opened.delivery)
            ):
                work.link.let_go(1)
                done(work)
                continue
            work.started = clock()
            running[id(work)] = work
            try:
                matches = work.route.matches
                if len(matches) > 1:
                    await self._deliver_to_all(work, matches)
                else:
                    bound, params = matches[0]
                    # The steps of `_try`, without its coroutine for a handler that does not wait.
                    ctx = self._context(work, bound, params)
                    context = copy_context()
                    error: BaseException | None = None
                    try:
                        suspended = context.run(_begin, bound, ctx, work.opened)
                    except StopIteration:
                        pass
                    except Exception as raised:
                        error = raised
                    except anyio.get_cancelled_exc_class() as cancelled:
                        error = await _from_inside(cancelled)
                    else:
                        error = await _rest(context, suspended)
                    if error is None:
                        self.counts.handled += 1
                        work.settle(Outcome.ACK)
                    else:
                        self._conclude(work, [await self._persist(work, bound, params, ctx, error)])
                        del error
            except BaseException:
                self.stopping = True  # so that none of its key overtakes it
                work.settle(Outcome.RELEASE)  # cancelled is not handled
                raise
            finally:
                del running[id(work)]
                done(work)
            count += 1
            if count >= _MOST_IN_SLICE or clock() >= slice_end:
                await anyio.lowlevel.checkpoint()
                count, slice_end = 0, clock() + _SLICE

    async def _idle(self) -> None:
        event = anyio.Event()
        self._idlers.append(event)
        try:
            await event.wait()
        finally:
            self._waking = False
            if not event.is_set():
                self._idlers.remove(event)

    async def _deliver_to_all(self, work: Work, matches: Sequence[Match]) -> None:
        verdicts = [_RELEASED] * len(matches)

        async def deliver(number: int, bound: Bound, params: Mapping[str, str]) -> None:
            verdicts[number] = await self._deliver(work, bound, params)

        async with anyio.create_task_group() as group:
            for number, (bound, params) in enumerate(matches):
                group.start_soon(deliver, number, bound, params)
        self._conclude(work, verdicts)

    def _conclude(self, work: Work, verdicts: Sequence[_Verdict]) -> None:
        if any(verdict.released for verdict in verdicts):
            if work.route.ack_first:
                logger.error(
                    "Event %s from %s was acknowledged before it was handled, and a stop cut its next try off.",
                    work.opened.id,
                    work.opened.delivery.source,
                )
            work.settle(Outcome.RELEASE)
            return
        letters = [verdict.dead_letter for verdict in verdicts if verdict.dead_letter is not None]
        self.counts.dead_lettered += len(letters)
        self.counts.handled += 1
        work.settle(Outcome.DEAD_LETTER if letters else Outcome.ACK, letters)

    # --- one handler

    def _context(
        self, work: Work, bound: Bound, params: Mapping[str, str], tries: int | None = None
    ) -> EventHandlerContext:
        if tries is None:
            failures = work.opened.delivery.failures
            tries = failures.get(bound.key, 0) if failures else 0
        return EventHandlerContext(
            work.opened, bound.name, params, tries, bound.pattern.delimiter, work.link.pause, bound.identity
        )

    async def _deliver(self, work: Work, bound: Bound, params: Mapping[str, str]) -> _Verdict:
        """Has one handler handle an event, again and again until it succeeds or is given up."""
        ctx = self._context(work, bound, params)
        error = await _try(bound, ctx, work.opened)
        return _DONE if error is None else await self._persist(work, bound, params, ctx, error)

    async def _persist(
        self, work: Work, bound: Bound, params: Mapping[str, str], ctx: EventHandlerContext, error: BaseException
    ) -> _Verdict:
        """After a failed try: others, until one succeeds, or it is the end, or the event goes back to the broker."""
        opened, link = work.opened, work.link
        if work.failures is None:
            work.failures = dict(opened.delivery.failures)
        while True:
            failed = work.failures[bound.key] = work.failures.get(bound.key, 0) + 1
            tries = max(failed, ctx.failures)
            self.counts.failed += 1
            if ctx.cut_short and not bound.ack_first:
                return _RELEASED
            jitter = random.random()  # noqa: S311 - no secret
            decision = decide(error, failed, self.max_deliveries, bound.ack_first, jitter)
            if decision.delay is None:
                return self._give_up(work, bound, error, tries)
            if self.stopping:
                return _RELEASED
            logger.warning(
                "Handler %s failed on event %s from %s (attempt %d); next try in %.3g s.",
                bound.name,
                opened.id,
                opened.delivery.source,
                tries,
                decision.delay,
                exc_info=error,
            )
            if not await link.pause(decision.delay):
                return _RELEASED
            self.counts.redelivered += 1
            ctx = self._context(work, bound, params, tries)
            again = await _try(bound, ctx, opened)
            if again is None:
                return _DONE
            error = again

    def _give_up(self, work: Work, bound: Bound, error: BaseException, tries: int) -> _Verdict:
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
            **details,
        )
        if route is None:
            return _DONE
        group = work.link.consumer.group_id
        return _Verdict(make_dead_letter(opened.delivery, route, error, bound.key, tries, group=group))


def make_dead_letter(
    delivery: Delivery,
    route: EventRoute,
    error: BaseException,
    handler: str | None = None,
    tries: int = 0,
    *,
    group: str,
) -> Message:
    """The message that a dead-letter destination gets: the original, and what is known of its failure."""
    letter = DeadLetter(
        error_text(error), handler, tries, delivery.source, delivery.position, utc_text(time.time()), group
    )
    return Message(new_id(), route, delivery.payload, dead_letter_headers(delivery, letter), delivery.key)


# Errors are returned, and looked at outside of any except clause: otherwise each would have the one before it as its
# context, and a chain of them would grow with every try.


async def _try(bound: Bound, ctx: EventHandlerContext, opened: Opened) -> BaseException | None:
    """One call of a handler with its middleware, in a context of its own; returns what it raised."""
    context = copy_context()
    try:
        suspended = context.run(_begin, bound, ctx, opened)
    except StopIteration:
        return None
    except Exception as error:
        return error
    except anyio.get_cancelled_exc_class() as cancelled:
        return await _from_inside(cancelled)
    return await _rest(context, suspended)


async def _rest(context: Context, suspended: Suspended) -> BaseException | None:
    """The rest of a call that had to wait; returns what it raised."""
    try:
        await finish(context, suspended)
    except Exception as error:
        return error
    except anyio.get_cancelled_exc_class() as cancelled:
        return await _from_inside(cancelled)
    return None


async def _from_inside(cancelled: BaseException) -> BaseException:
    """The failure that a cancellation means which a client library let escape; raises it if it was for this task."""
    if await was_cancelled():
        raise cancelled
    failure = DeliveryError("the handler was cancelled from inside, by a library that it calls")
    failure.__cause__ = cancelled
    return failure


def _begin(bound: Bound, ctx: EventHandlerContext, opened: Opened) -> Suspended:
    CURRENT.set(opened)
    return begin(bound.call, ctx)
