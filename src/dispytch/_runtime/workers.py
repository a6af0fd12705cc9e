"""The workers: they call the handlers, and see each event through to its outcome.

A fixed set of workers pops the lanes, and each sees an event through: its handlers, their back-offs, its outcome. So a
worker is what an event in flight holds, and their number is the bound. A worker that finds more to do wakes one other
before it calls a handler; if that handler never waits, the other finds nothing left, if it does, the work spreads.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextvars import copy_context
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel

from dispytch._core.context import EventHandlerContext
from dispytch._core.lanes import Lanes
from dispytch._core.messages import Outcome
from dispytch._runtime.batches import Collector, Part, handle_batch
from dispytch._runtime.invoke import concluded
from dispytch._runtime.trials import Trials, from_inside, rest_of_try
from dispytch._runtime.wiring import Bound, Wired
from dispytch._runtime.works import RELEASED, Verdict, Work

__all__ = ["Workers"]

logger = logging.getLogger("dispytch")

_SLICE = 0.005
"""Seconds that a worker may go on without letting others of the loop run."""
_MOST_IN_SLICE = 64


class Workers:
    """The lanes, the collectors of batches, and the workers that pop the lanes.

    Args:
        trials: What is made of failures.
        wired: The consumers with their handlers.
    """

    def __init__(self, trials: Trials, wired: Iterable[Wired]) -> None:
        self.trials: Trials = trials
        self.lanes: Lanes[Work | Collector] = Lanes()
        self.waiting: dict[Work, None] = {}
        """The events in flight whose handlers wait for something, the oldest first."""
        self._at_hand: Work | None = None
        """The event whose handler is being called, until it waits or returns."""
        self.drained = anyio.Event()
        """Set when, after a stop was asked for, nothing is left to do."""
        self._collectors: dict[Bound, Collector] = {
            bound: Collector(bound, one.consumer.clock, self._push)
            for one in wired
            for bound in one.bound
            if bound.batching is not None
        }
        self._idlers: list[anyio.Event] = []
        self._waking = False
        self._winding_up = False
        self._kept: set[Work] = set()

    # --- what is to be done

    def add(self, work: Work) -> None:
        """Takes an event; `wake` has it handled."""
        if not work.route.is_batched:
            self.lanes.push(work)
        else:
            self._gather(_Gathering(self, work), can_wait=not work.route.ack_first)

    def _gather(self, gathering: _Gathering, *, can_wait: bool) -> None:
        """Has the handlers of batches that an event is for take it when their next batches are due."""
        work = gathering.work
        for number, (bound, params) in enumerate(work.route.matches):
            if bound.batching is not None:
                report = partial(gathering.report, number)
                self._collectors[bound].add(Part(work, params, report, can_wait=can_wait))

    def _push(self, collector: Collector) -> None:
        self.lanes.push(collector)
        self.wake()

    def wake(self) -> None:
        """Wakes a worker, if there is something to do and none is awake for it."""
        if self._idlers and not self._waking and self.lanes.ready:
            self._waking = True
            self._idlers.pop().set()

    @property
    def running(self) -> list[Work]:
        """The events in flight, the oldest first."""
        return [*self.waiting] if self._at_hand is None else [*self.waiting, self._at_hand]

    @property
    def queued(self) -> int:
        """How many events wait for their turn."""
        # A collector that is due is in the lanes itself, and is no event.
        return len(self.lanes) + sum(len(one) - one.is_due for one in self._collectors.values())

    def timers(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        """What has to run as long as events are fed, so that batches fall due."""
        return [collector.keep_time for collector in self._collectors.values()]

    # --- the end

    def wind_up(self) -> None:
        """Has what waits handed back, and `drained` set as soon as nothing runs and nothing waits."""
        self.trials.stopping = self._winding_up = True
        waiting = self.lanes.drain()
        # What is acknowledged already cannot be handed back: it is handled within the drain time, or lost.
        self._kept = self._overtaken(
            [item for item in waiting if isinstance(item, Work)]
            + [part.work for collector in self._collectors.values() for part in collector.waiting]
        )
        for item in waiting:
            if isinstance(item, Collector) or self._may_begin(item):
                self.lanes.push(item)
            else:
                item.settle(Outcome.RELEASE)
        for collector in self._collectors.values():
            for part in collector.wind_up(self._kept):
                if not part.work.started:
                    part.work.settle(Outcome.RELEASE)  # at once, since a verdict would count as that of a try
                part.report(RELEASED)
        self._look_whether_drained()
        self.wake()

    def _overtaken(self, waiting: Sequence[Work]) -> set[Work]:
        """Those that would have others come again if they were handed back; see `Consumer.overtaken`."""
        found: set[Work] = set()
        for link in {work.link for work in waiting}:
            ours = {id(work.opened.delivery): work for work in waiting if work.link is link}
            begun = [work.opened.delivery for work in self.running if work.link is link]
            overtaken = link.overtaken([work.opened.delivery for work in ours.values()], begun)
            found.update(ours[id(delivery)] for delivery in overtaken)
        return found

    def _may_begin(self, work: Work) -> bool:
        """Whether an event may still be handled at a stop."""
        if work.route.ack_first:
            return True
        # One of its key may have been handed back before it; and it comes again then, handled or not.
        return work in self._kept and work.partition not in self.trials.cut

    def give_up(self) -> int:
        """Has all that waits handed back; returns how many events could not be, and are lost."""
        self.trials.stopping = True
        lost = 0
        for item in self.lanes.drain():
            if isinstance(item, Work):
                lost += item.route.ack_first
                item.settle(Outcome.RELEASE)
        for collector in self._collectors.values():
            for part in collector.give_up():
                lost += part.work.route.ack_first and not part.work.is_settled
                part.work.settle(Outcome.RELEASE)
        return lost

    def _look_whether_drained(self) -> None:
        if self._winding_up and not self.waiting and not self.queued:
            self.drained.set()

    # --- one worker

    async def work(self) -> None:
        """One worker, until it is cancelled."""
        lanes, waiting, trials = self.lanes, self.waiting, self.trials
        pop, done, counts = lanes.pop, lanes.done, trials.counts
        clock = time.perf_counter
        count, slice_end = 0, clock() + _SLICE
        while True:
            # Between the call for a stop and the winding up, which decides what of this may begin, none does.
            work = None if trials.stopping and not self._winding_up else pop()
            if work is None:
                self._look_whether_drained()
                await self._idle()
                count, slice_end = 0, clock() + _SLICE
                continue
            if self._idlers and not self._waking and lanes.ready:
                self.wake()
            if type(work) is Collector:
                try:
                    await self._handle_batch(work)
                finally:
                    done(work)
                continue
            assert type(work) is Work  # noqa: S101 - there is nothing else
            ask = work.link.is_stale
            if (trials.stopping and not self._may_begin(work)) or (
                ask is not None and ask(work.delivery) and work.is_stale
            ):
                self._pass_over(work)
                done(work)
                continue
            is_through = True
            self._at_hand = work
            try:
                sole = work.route.sole
                if sole is None:
                    self._wait_for(work)
                    is_through = await self._deliver_to_all(work)
                else:
                    # The steps of `Trials.deliver`, without its coroutine for a handler that does not wait.
                    bound, params = sole
                    opened = work.opened
                    failures = work.failures
                    tries = failures.get(bound.key, 0) if failures else 0
                    ctx = EventHandlerContext(opened, bound, params, tries, work)
                    context = copy_context()
                    error: BaseException | None = None
                    try:
                        suspended = context.run(bound.begin, ctx, opened)
                    except Exception as raised:
                        error = raised
                    except anyio.get_cancelled_exc_class() as cancelled:
                        self._wait_for(work)
                        error = await from_inside(cancelled)
                    else:
                        if suspended is not None:
                            self._wait_for(work)
                            error = await rest_of_try(context, suspended)
                    if ctx.said is not None or bound.must_settle:
                        error = concluded(ctx, error, bound.must_settle)
                    if error is None:
                        counts.handled += 1
                        work.settle(Outcome.ACK)
                    else:
                        self._wait_for(work)
                        trials.conclude(work, [await trials.persist(work, bound, params, ctx, error)])
                        del error
            except BaseException:
                trials.stopping = True  # so that none of its key overtakes it
                trials.cut.add(work.partition)
                work.settle(Outcome.RELEASE)  # cancelled is not handled
                raise
            finally:
                self._at_hand = None
                if is_through:
                    if work.started:
                        del waiting[work]
                    if work.lane is not None or work.limits:
                        done(work)
            count += 1
            if count >= _MOST_IN_SLICE or clock() >= slice_end:
                await anyio.lowlevel.checkpoint()
                count, slice_end = 0, clock() + _SLICE

    def _wait_for(self, work: Work) -> None:
        """Notes that an event's handler waits for something, or that it is to be tried again."""
        self._at_hand = None
        if not work.started:
            work.started = time.perf_counter()
            self.waiting[work] = None

    def _pass_over(self, work: Work) -> None:
        """An event that is not to be handled here."""
        if work.is_stale:
            work.forget()
        else:
            self.trials.cut.add(work.partition)
            work.settle(Outcome.RELEASE)

    async def _idle(self) -> None:
        event = anyio.Event()
        self._idlers.append(event)
        try:
            await event.wait()
        finally:
            self._waking = False
            if not event.is_set():
                self._idlers.remove(event)

    async def _deliver_to_all(self, work: Work) -> bool:
        """Has several handlers handle an event; False if it waits for a batch, with which the rest of it is done.

        No worker waits with it: all of them might, and none be left to run the batch.
        """
        gathering = _Gathering(self, work)

        async def deliver(number: int, bound: Bound, params: Mapping[str, str]) -> None:
            gathering.report(number, await self.trials.deliver(work, bound, params))

        self._gather(gathering, can_wait=False)
        async with anyio.create_task_group() as group:
            for number, (bound, params) in enumerate(work.route.matches):
                if bound.batching is None:
                    group.start_soon(deliver, number, bound, params)
        if not gathering.is_complete:
            gathering.has_lane = True
            self.lanes.free_limits(work)  # which are those of the handlers that are through
            work.limits = ()
        return gathering.is_complete

    async def _handle_batch(self, collector: Collector) -> None:
        parts = collector.take()
        batch: list[Part] = []
        for part in parts:
            work = part.work
            if self.trials.stopping and part.can_wait and not self._may_begin(work):
                part.report(RELEASED)
            elif work.is_stale:
                work.forget()
                part.report(RELEASED)
            else:
                self._wait_for(work)
                batch.append(part)
        try:
            if batch:
                await handle_batch(self.trials, collector.bound, batch)
        except BaseException:
            self.trials.stopping = True  # so that none of their keys overtakes them
            self.trials.cut.update(part.work.partition for part in batch)
            for part in batch:
                part.report(RELEASED)  # cancelled is not handled
            raise
        finally:
            collector.done(parts)
        await anyio.lowlevel.checkpoint()


class _Gathering:
    """The verdicts of the handlers that an event is for.

    Attributes:
        work: The event.
        has_lane: No worker is at the event any more, so the last verdict lets the next one of its lane run.
    """

    __slots__ = ("_left", "_verdicts", "_workers", "has_lane", "work")

    def __init__(self, workers: Workers, work: Work) -> None:
        self.work: Work = work
        self.has_lane: bool = False
        self._workers = workers
        self._verdicts: list[Verdict | None] = [None] * len(work.route.matches)
        self._left = len(self._verdicts)

    @property
    def is_complete(self) -> bool:
        return not self._left

    def report(self, number: int, verdict: Verdict) -> None:
        if self._verdicts[number] is not None:
            return
        self._verdicts[number] = verdict
        self._left -= 1
        if self._left:
            return
        workers = self._workers
        workers.trials.conclude(self.work, [found for found in self._verdicts if found is not None])
        if self.has_lane or self.work.route.is_batched:
            workers.waiting.pop(self.work, None)
        if self.has_lane:
            workers.lanes.done(self.work)
            workers.wake()  # the worker at the batch may be at others of it for long
