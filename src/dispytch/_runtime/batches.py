"""Handlers of batches: collecting events for one, and having it handle them."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from dispytch._core.batch_context import BatchContext
from dispytch._core.context import EventHandlerContext
from dispytch._core.lanes import Limit
from dispytch._runtime.links import Signal
from dispytch._runtime.trials import Trials, try_once
from dispytch._runtime.wiring import Bound
from dispytch._runtime.works import DONE, RELEASED, Verdict, Work
from dispytch.abc import Clock
from dispytch.errors import DecodeError

__all__ = ["Collector", "Part", "handle_batch"]

logger = logging.getLogger("dispytch")


class Part:
    """An event that waits for a handler of batches.

    Args:
        report: Takes what becomes of it at this handler; called once.
        can_wait: It may be handed back to the broker as long as it waits.
    """

    __slots__ = ("can_wait", "params", "report", "since", "tries", "work")

    def __init__(
        self, work: Work, params: Mapping[str, str], report: Callable[[Verdict], None], *, can_wait: bool
    ) -> None:
        self.work: Work = work
        self.params: Mapping[str, str] = params
        self.report: Callable[[Verdict], None] = report
        self.can_wait: bool = can_wait
        self.since = 0.0
        self.tries: int | None = None


class Collector:
    """What waits for one handler of batches, in the order of the source.

    When a batch is due it puts itself into the lanes; the worker that pops it there takes what waits by then.

    Args:
        bound: The handler.
        clock: The time that it waits by.
        push: Puts it into the lanes.
    """

    lane = None

    def __init__(self, bound: Bound, clock: Clock, push: Callable[[Collector], None]) -> None:
        batching = bound.batching
        assert batching is not None  # noqa: S101 - made for handlers of batches only
        self.bound: Bound = bound
        self.limits: Sequence[Limit] = bound.limits
        self.size: int = batching.size
        self.wait: float = batching.wait
        self._clock = clock
        self._push = push
        self.waiting: deque[Part] = deque()
        self.is_due = False
        """It is in the lanes."""
        self._is_last = False
        """Nothing more comes, so there is nothing to wait for."""
        self._begun = Signal()
        # With several batches at once, the lanes of the events that are in one.
        self._busy: set[tuple[Any, ...]] | None = set() if bound.limits[0].capacity > 1 else None

    def __len__(self) -> int:
        return len(self.waiting)

    def add(self, part: Part) -> None:
        """Takes an event."""
        part.since = self._clock.time()
        self.waiting.append(part)
        self._look()

    def take(self) -> list[Part]:
        """The next batch: up to ``size`` events, of no lane that another batch is busy with."""
        self.is_due = False
        taken: list[Part] = []
        waiting = self.waiting
        if self._busy is None:
            taken = [waiting.popleft() for _ in range(min(self.size, len(waiting)))]
        else:
            passed_by: list[Part] = []
            blocked = set(self._busy)
            while waiting and len(taken) < self.size:
                part = waiting.popleft()
                lane = part.work.lane
                if lane in blocked:
                    passed_by.append(part)
                    continue
                if lane is not None:
                    self._busy.add(lane)
                taken.append(part)
            waiting.extendleft(reversed(passed_by))
        if taken:
            self._look()
        return taken

    def done(self, parts: Sequence[Part]) -> None:
        """Those of a batch are through, so that others of their lanes may follow."""
        if self._busy is not None:
            self._busy.difference_update(part.work.lane for part in parts if part.work.lane is not None)
        if parts:  # or what waits is of lanes that other batches are busy with: these will look
            self._look()

    def wind_up(self, kept: Collection[Work]) -> list[Part]:
        """Nothing more comes: what cannot be handed back, or should not, is due now; returns the others."""
        self._is_last = True
        left = [part for part in self.waiting if part.can_wait and part.work not in kept]
        self.waiting = deque(part for part in self.waiting if not part.can_wait or part.work in kept)
        self._look()
        return left

    def give_up(self) -> list[Part]:
        """Removes and returns all that waits."""
        self.is_due = False
        left = [*self.waiting]
        self.waiting.clear()
        return left

    def _look(self) -> None:
        if self.waiting and not self.is_due:
            if len(self.waiting) >= self.size or self._is_last:
                self._fall_due()
            else:
                self._begun.set()

    def _fall_due(self) -> None:
        self.is_due = True
        self._push(self)

    async def keep_time(self) -> None:
        """Has a batch fall due when its first event has waited long enough; until it is cancelled."""
        while True:
            await self._begun.wait()
            while self.waiting and not self.is_due:
                waited = self._clock.time() - self.waiting[0].since
                if not 0 <= waited < self.wait:  # below 0 the clock was set back
                    self._fall_due()
                    break
                await self._clock.sleep(self.wait - waited)


async def handle_batch(trials: Trials, bound: Bound, parts: Sequence[Part]) -> None:
    """Has a handler handle a batch, again and again until each event succeeds, is given up or handed back."""
    left = list(parts)
    while left:
        contexts = [trials.context(part.work, bound, part.params, part.tries) for part in left]
        bodies, left, contexts = _read(trials, bound, left, contexts)
        if not left:
            return
        ctx = BatchContext(bound, contexts, left[0].work.pause, bodies)
        error = await try_once(bound, ctx, None)
        again: list[Part] = []
        delay = 0.0
        cause: BaseException | None = None
        for part, one in zip(left, contexts, strict=True):
            failure = one.conclude(error, bound.is_manual)
            if failure is None:
                part.report(DONE)
                continue
            judged = trials.judge(part.work, bound, one, failure, ctx.cut_short)
            if isinstance(judged, Verdict):
                part.report(judged)
                continue
            part.tries = one.failures
            again.append(part)
            delay, cause = max(delay, judged), failure
        if again:
            logger.warning(
                "Handler %s failed on %d of a batch of %d events, the first of them %s from %s; next try in %.3g s.",
                bound.name,
                len(again),
                len(left),
                again[0].work.opened.id,
                again[0].work.opened.delivery.source,
                delay,
                exc_info=cause,
                extra={**again[0].work.log_fields, "handler": bound.name, "events": len(again)},
            )
            if not await again[0].work.pause(delay):
                for part in again:
                    part.report(RELEASED)
                return
        left = []
        for part in again:
            if part.work.is_stale:
                part.work.forget()
                part.report(RELEASED)
            elif part.work.is_settled:
                part.report(DONE)  # by a word that came after the handler had failed
            else:
                left.append(part)
        trials.counts.redelivered += len(left)


def _read(
    trials: Trials, bound: Bound, parts: list[Part], contexts: list[EventHandlerContext]
) -> tuple[dict[Any, list[Any]], list[Part], list[EventHandlerContext]]:
    """Reads the bodies; what cannot be read is given up alone."""
    bodies: dict[Any, list[Any]] = {need.body: [] for need in bound.needs}
    readable: list[Part] = []
    kept: list[EventHandlerContext] = []
    for part, ctx in zip(parts, contexts, strict=True):
        try:
            found = [(body, body.read(part.work.opened)) for body in bodies]
        except DecodeError as error:
            judged = trials.judge(part.work, bound, ctx, error, cut_short=False)
            assert isinstance(judged, Verdict)  # noqa: S101 - decoding errors are permanent
            part.report(judged)
            continue
        for body, value in found:
            bodies[body].append(value)
        readable.append(part)
        kept.append(ctx)
    return bodies, readable, kept
