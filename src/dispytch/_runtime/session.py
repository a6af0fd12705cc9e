"""One run of a dispatcher: deliveries come in by feeders, workers call the handlers, settlers send the outcomes.

A fixed set of workers pops the lanes, and each sees an event through: its handlers, their back-offs, its outcome. So a
worker is what an event in flight holds, and their number is the bound. A worker that finds more to do wakes one other
before it calls a handler; if that handler never waits, the other finds nothing left, if it does, the work spreads.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.lowlevel
from anyio.abc import TaskStatus

from dispytch._bridge import in_context
from dispytch._core.context import EventHandlerContext, Pause
from dispytch._core.deadletters import dead_letter_headers, error_text, utc_text
from dispytch._core.envelope import CURRENT, Opened
from dispytch._core.lanes import Lanes, Limit
from dispytch._core.messages import DeadLetter, Message, Outcome, Settlement
from dispytch._core.redelivery import decide
from dispytch._runtime.ids import new_id
from dispytch._runtime.wiring import Bound, Match, Route, Wired
from dispytch.abc import Delivery, EventRoute
from dispytch.errors import BrokerUnreachableError, DecodeError, DeliveryError, DispytchError

__all__ = ["Counts", "Session", "Tuning"]

logger = logging.getLogger("dispytch")

_SLICE = 0.005
"""Seconds that a worker may go on without letting others of the loop run."""
_MOST_IN_SLICE = 64
_SETTLE_TIMEOUT = 10.0
"""Seconds that one round of settling may take before it is tried again."""
_LONGEST_RECONNECT_DELAY = 15.0


@dataclass(frozen=True, slots=True)
class Tuning:
    """The dispatcher's options that matter while it runs."""

    concurrency: int
    ordering: str
    max_deliveries: int
    drain_timeout: float
    dead_letter_unhandled: bool


@dataclass(slots=True)
class Counts:
    """What has happened so far."""

    handled: int = 0
    failed: int = 0
    redelivered: int = 0
    dead_lettered: int = 0
    unhandled: int = 0
    skipped_null: int = 0


class _Work:
    """A delivery with the handlers that it is for."""

    __slots__ = ("failures", "lane", "limits", "link", "opened", "route", "started")

    def __init__(self, link: _Link, opened: Opened, route: Route, lane: tuple[Any, ...] | None) -> None:
        self.link = link
        self.opened = opened
        self.route = route
        self.lane = lane
        self.limits: Sequence[Limit] = route.limits
        self.failures: dict[str, int] | None = None
        self.started = 0.0


class _Verdict:
    """What became of an event at one handler: done with (perhaps with a dead letter), or to be handed back."""

    __slots__ = ("dead_letter", "released")

    def __init__(self, dead_letter: Message | None = None, released: bool = False) -> None:
        self.dead_letter = dead_letter
        self.released = released


_DONE = _Verdict()
_RELEASED = _Verdict(released=True)


class _Signal:
    """Wakes one waiting task of the same loop; signals that come before it waits are one."""

    __slots__ = ("_event", "_set")

    def __init__(self) -> None:
        self._event = anyio.Event()
        self._set = False

    def set(self) -> None:
        if not self._set:
            self._set = True
            self._event.set()

    async def wait(self) -> None:
        if not self._set:
            await self._event.wait()
        self._event = anyio.Event()
        self._set = False


class _Link:
    """A consumer at work: what it has given, and what is to be told to it."""

    def __init__(self, wired: Wired, session: Session) -> None:
        self.wired = wired
        self.consumer = wired.consumer
        self.name = type(wired.consumer).__name__
        prefetch = self.consumer.prefetch
        self.window = session.tuning.concurrency + (session.tuning.concurrency if prefetch is None else prefetch)
        self.held = 0
        """Deliveries received and not settled."""
        self.outbox: list[Settlement] = []
        self.to_settle = _Signal()
        self.room = _Signal()
        self.connected = True
        self.last_received: float | None = None
        self.pause = session.pauser(self.consumer.clock.sleep)

    def settle(self, settlement: Settlement) -> None:
        self.outbox.append(settlement)
        self.to_settle.set()

    def let_go(self, count: int) -> None:
        self.held -= count
        if self.held <= self.window // 2:
            self.room.set()


class Session:
    """One run, from the first connection to the last settlement.

    Args:
        wired: The consumers with their handlers.
        tuning: The dispatcher's options.
    """

    def __init__(self, wired: Sequence[Wired], tuning: Tuning) -> None:
        self.tuning = tuning
        self.counts = Counts()
        self._lanes: Lanes[_Work] = Lanes()
        self._running: dict[int, _Work] = {}
        self._idlers: list[anyio.Event] = []
        self._waking = False
        self._stop = anyio.Event()
        self._drained = anyio.Event()
        self.stopping = False
        self.links = [_Link(one, self) for one in wired]

    # --- what others ask

    def request_stop(self) -> None:
        """Begins the drain. In the loop's own thread."""
        self._stop.set()

    @property
    def in_flight(self) -> int:
        return len(self._running)

    @property
    def queued(self) -> int:
        return len(self._lanes)

    @property
    def oldest_in_flight(self) -> float | None:
        """For how many seconds the oldest event in flight has been handled."""
        first = next(iter(self._running.values()), None)
        return None if first is None else time.monotonic() - first.started

    @property
    def is_idle(self) -> bool:
        """Whether nothing is held, and nothing is known to wait at a broker."""
        return all(not link.held and not link.outbox and not link.consumer.backlog() for link in self.links)

    # --- the run

    async def run(self, task_status: TaskStatus[None]) -> None:
        """Connects, consumes until a stop is requested, drains, disconnects."""
        try:
            for link in self.links:
                await link.consumer.start(link.wired.subscriptions)
            await self._serve(task_status)
        finally:
            for link in self.links:
                with anyio.CancelScope(shield=True, deadline=anyio.current_time() + _SETTLE_TIMEOUT):
                    try:
                        await link.consumer.stop()
                    except DispytchError as error:
                        logger.warning("%s did not stop cleanly: %s", link.name, error)

    async def _serve(self, task_status: TaskStatus[None]) -> None:
        try:
            async with anyio.create_task_group() as settlers:
                for link in self.links:
                    settlers.start_soon(self._settle_loop, link, name=f"dispytch settler {link.name}")
                async with anyio.create_task_group() as workers:
                    for number in range(self.tuning.concurrency):
                        workers.start_soon(self._work, name=f"dispytch worker {number}")
                    async with anyio.create_task_group() as feeders:
                        for link in self.links:
                            feeders.start_soon(self._feed, link, name=f"dispytch feeder {link.name}")
                        task_status.started()
                        await self._stop.wait()
                        self.stopping = True
                        feeders.cancel_scope.cancel()
                    await self._drain()
                    workers.cancel_scope.cancel()
                settlers.cancel_scope.cancel()
        finally:
            self.stopping = True
            self._release_queued(everything=True)
            await self._flush()

    async def _drain(self) -> None:
        self._release_queued(everything=False)
        if self._running or len(self._lanes):
            self._wake_one()
            with anyio.move_on_after(self.tuning.drain_timeout):
                await self._drained.wait()
        if self._running:
            stuck = ", ".join(
                f"{bound.name} (event {work.opened.id})"
                for work in list(self._running.values())[:5]
                for bound, _ in work.route.matches
            )
            logger.error(
                "%d events were not finished within the drain time of %g s; they are handed back where the broker can "
                "take them: %s. Threads of plain functions go on until they return.",
                len(self._running),
                self.tuning.drain_timeout,
                stuck,
            )

    def _release_queued(self, *, everything: bool) -> None:
        # What is acknowledged already cannot be handed back: it is handled within the drain time, or lost.
        lost = 0
        for work in self._lanes.drain():
            if not work.route.ack_first:
                self._settle(work, Outcome.RELEASE)
            elif everything:
                work.link.let_go(1)
                lost += 1
            else:
                self._lanes.push(work)
        if lost:
            logger.error("%d events that were acknowledged before handling were not handled before the stop.", lost)

    async def _flush(self) -> None:
        for link in self.links:
            tries = 0
            while link.outbox and tries < 3:
                tries += 1
                await self._settle_batch(link)
            if link.outbox:
                logger.error(
                    "%d events of %s could not be settled before the stop; the broker will deliver them again.",
                    len(link.outbox),
                    link.name,
                )

    # --- feeding

    async def _feed(self, link: _Link) -> None:
        receive = link.consumer.receive
        while True:
            try:
                deliveries = await receive(link.window - link.held)
            except BrokerUnreachableError as error:
                await self._reconnect(link, error)
                continue
            link.last_received = time.monotonic()
            link.held += len(deliveries)
            first: list[_Work] = []
            for delivery in deliveries:
                work = self._sort(link, delivery)
                if work is None:
                    continue
                if work.route.ack_first and link.consumer.features.acknowledges:
                    first.append(work)
                else:
                    self._lanes.push(work)
            if first:
                await self._acknowledge_first(link, first)
            if self._lanes.ready and self._idlers and not self._waking:
                self._wake_one()
            while link.held >= link.window:
                await link.room.wait()

    async def _acknowledge_first(self, link: _Link, first: Sequence[_Work]) -> None:
        pending = [Settlement(work.opened.delivery, Outcome.ACK) for work in first]
        delay = 0.05
        while pending:
            # What is acknowledged must reach the lanes, even if a stop comes meanwhile.
            with anyio.CancelScope(shield=True):
                failed = await link.consumer.settle(pending)
            pending = [settlement for settlement, _ in failed]
            if pending:
                logger.warning("%s could not acknowledge %d events: %s", link.name, len(pending), failed[0][1])
                if not await link.pause(delay):
                    return  # never acknowledged, never handled: the broker delivers them again
                delay = min(delay * 2, 5.0)
        for work in first:
            self._lanes.push(work)

    async def _reconnect(self, link: _Link, error: DispytchError) -> None:
        link.connected = False
        logger.warning("%s lost its connection: %s", link.name, error)
        delay = 0.1
        while True:
            if not await link.pause(delay * (0.5 + random.random() / 2)):  # noqa: S311 - no secret
                await anyio.sleep_forever()  # stopping: the feeder is about to be cancelled
            try:
                await link.consumer.start(link.wired.subscriptions)
            except BrokerUnreachableError as again:
                delay = min(delay * 2, _LONGEST_RECONNECT_DELAY)
                logger.warning("%s cannot connect, next try within %g s: %s", link.name, delay, again)
            else:
                link.connected = True
                logger.info("%s is connected again.", link.name)
                return

    def _sort(self, link: _Link, delivery: Delivery) -> _Work | None:
        """The delivery as work; ``None`` if it is settled already, since no handler will see it."""
        wired = link.wired
        payload = delivery.payload
        try:
            if payload is not None and len(payload) > link.consumer.max_payload_bytes:
                raise DecodeError(
                    f"the payload of {len(payload)} bytes is larger than max_payload_bytes "
                    f"({link.consumer.max_payload_bytes})"
                )
            opened = wired.open(delivery)
        except DecodeError as error:
            self._refuse(link, delivery, error)
            return None
        except Exception as error:  # an envelope that is not ours: its mistake costs this message, not the dispatcher
            self._refuse(link, delivery, DecodeError(f"its envelope cannot be opened ({type(error).__name__})"))
            return None
        route = wired.route(delivery.source, opened.type)
        if opened.data is None and route.matches:
            route = Route([match for match in route.matches if match[0].accepts_null])
            if not route.matches:
                self.counts.skipped_null += 1
                link.settle(Settlement(delivery, Outcome.ACK))
                return None
        if not route.matches:
            self._set_aside(link, delivery, opened)
            return None
        lane: tuple[Any, ...] | None = None
        if self.tuning.ordering == "key":
            if opened.key is not None:
                lane = (link, delivery.source, opened.key)
        elif self.tuning.ordering == "partition":
            lane = (link, delivery.source, delivery.partition)
        return _Work(link, opened, route, lane)

    def _refuse(self, link: _Link, delivery: Delivery, error: DecodeError) -> None:
        """What cannot be opened is permanent: dead-lettered once for each destination of the handlers it may be for."""
        matches = link.wired.matches(delivery.source)
        if not matches:
            self._set_aside(link, delivery, None)
            return
        self.counts.failed += 1
        routes = dict.fromkeys(bound.dead_letter for bound, _ in matches if bound.dead_letter is not None)
        logger.error(
            "A message from %s (%s) cannot be read, and is %s: %s",
            delivery.source,
            delivery.position or "no position",
            "dead-lettered" if routes else "dropped",
            error,
        )
        letters = [self._dead_letter(delivery, route, error, None, 0) for route in routes]
        self.counts.dead_lettered += len(letters)
        link.settle(Settlement(delivery, Outcome.DEAD_LETTER if letters else Outcome.ACK, letters))

    def _set_aside(self, link: _Link, delivery: Delivery, opened: Opened | None) -> None:
        self.counts.unhandled += 1
        if self.tuning.dead_letter_unhandled:
            matches = link.wired.matches(delivery.source) or [(bound, {}) for bound in link.wired.bound]
            route = next((bound.dead_letter for bound, _ in matches if bound.dead_letter is not None), None)
            if route is not None:
                kind = None if opened is None else opened.type
                error = DeliveryError(f"no handler takes events of type {kind!r} from {delivery.source}")
                self.counts.dead_lettered += 1
                letter = self._dead_letter(delivery, route, error, None, 0)
                link.settle(Settlement(delivery, Outcome.DEAD_LETTER, [letter]))
                return
        link.settle(Settlement(delivery, Outcome.ACK))

    # --- working

    async def _work(self) -> None:
        lanes, running = self._lanes, self._running
        pop, done = lanes.pop, lanes.done
        count, slice_end = 0, time.perf_counter() + _SLICE
        while True:
            work = pop()
            if work is None:
                if self.stopping and not running and not len(lanes):
                    self._drained.set()
                await self._idle()
                count, slice_end = 0, time.perf_counter() + _SLICE
                continue
            if self._idlers and not self._waking and lanes.ready:
                self._wake_one()
            work.started = time.monotonic()
            running[id(work)] = work
            matches = work.route.matches
            try:
                if len(matches) == 1:
                    bound, params = matches[0]
                    verdict = await self._deliver(work, bound, params)
                    if verdict is _DONE:
                        self.counts.handled += 1
                        self._settle(work, Outcome.ACK)
                    else:
                        self._conclude(work, [verdict])
                else:
                    await self._deliver_to_all(work, matches)
            except BaseException:
                self._settle(work, Outcome.RELEASE)  # cancelled is not handled
                raise
            finally:
                del running[id(work)]
                done(work)
            count += 1
            if count >= _MOST_IN_SLICE or time.perf_counter() >= slice_end:
                await anyio.lowlevel.checkpoint()
                count, slice_end = 0, time.perf_counter() + _SLICE

    async def _idle(self) -> None:
        event = anyio.Event()
        self._idlers.append(event)
        try:
            await event.wait()
        finally:
            self._waking = False
            if not event.is_set():
                self._idlers.remove(event)

    def _wake_one(self) -> None:
        if self._idlers:
            self._waking = True
            self._idlers.pop().set()

    async def _deliver_to_all(self, work: _Work, matches: Sequence[Match]) -> None:
        verdicts = [_RELEASED] * len(matches)

        async def deliver(number: int, bound: Bound, params: Mapping[str, str]) -> None:
            verdicts[number] = await self._deliver(work, bound, params)

        async with anyio.create_task_group() as group:
            for number, (bound, params) in enumerate(matches):
                group.start_soon(deliver, number, bound, params)
        self._conclude(work, verdicts)

    def _conclude(self, work: _Work, verdicts: Sequence[_Verdict]) -> None:
        if any(verdict.released for verdict in verdicts):
            self._settle(work, Outcome.RELEASE)
            return
        letters = [verdict.dead_letter for verdict in verdicts if verdict.dead_letter is not None]
        self.counts.dead_lettered += len(letters)
        self.counts.handled += 1
        self._settle(work, Outcome.DEAD_LETTER if letters else Outcome.ACK, letters)

    async def _deliver(self, work: _Work, bound: Bound, params: Mapping[str, str]) -> _Verdict:
        """Has one handler handle an event, again and again until it succeeds or is given up."""
        opened, link = work.opened, work.link
        failed = tries = opened.delivery.failures.get(bound.name, 0)
        while True:
            ctx = EventHandlerContext(opened, bound.name, params, tries, bound.pattern.delimiter, link.pause)
            context = copy_context()
            context.run(CURRENT.set, opened)
            error: BaseException
            try:
                await in_context(context, bound.call, ctx)
                return _DONE
            except Exception as raised:
                error = raised
            except anyio.get_cancelled_exc_class() as raised:
                if anyio.current_effective_deadline() == float("-inf"):
                    raise
                # Nobody cancelled this task: a client library let a cancellation of its own escape.
                error = DeliveryError("the handler was cancelled from inside, by a library that it calls")
                error.__cause__ = raised
            failed += 1
            tries = max(tries + 1, ctx.failures)
            self.counts.failed += 1
            if work.failures is None:
                work.failures = dict(opened.delivery.failures)
            work.failures[bound.name] = failed
            if ctx.cut_short and not bound.ack_first:
                return _RELEASED
            decision = decide(error, failed, self.tuning.max_deliveries, bound.ack_first, random.random())  # noqa: S311 - no secret
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
            del error
            if not await link.pause(decision.delay):
                return _RELEASED
            self.counts.redelivered += 1

    def _give_up(self, work: _Work, bound: Bound, error: BaseException, tries: int) -> _Verdict:
        opened = work.opened
        route = bound.dead_letter
        where = "dropped" if route is None else f"dead-lettered to {route.address}"
        details: dict[str, Any] = {} if isinstance(error, DecodeError) else {"exc_info": error}
        logger.error(
            "Handler %s failed on event %s from %s after %d attempts, so it is %s: %s",
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
        return _Verdict(self._dead_letter(opened.delivery, route, error, bound.name, tries))

    def _dead_letter(
        self, delivery: Delivery, route: EventRoute, error: BaseException, handler: str | None, tries: int
    ) -> Message:
        letter = DeadLetter(
            error_text(error), handler, tries, delivery.source, delivery.position, utc_text(time.time())
        )
        return Message(new_id(), route, delivery.payload, dead_letter_headers(delivery, letter), delivery.key)

    # --- settling

    def _settle(self, work: _Work, outcome: Outcome, letters: Sequence[Message] = ()) -> None:
        link = work.link
        if work.route.ack_first and outcome is not Outcome.DEAD_LETTER:
            link.let_go(1)  # acknowledged before it was handled
            return
        link.settle(Settlement(work.opened.delivery, outcome, letters, work.failures or {}))

    async def _settle_loop(self, link: _Link) -> None:
        delay = 0.05
        while True:
            await link.to_settle.wait()
            while link.outbox:
                if await self._settle_batch(link):
                    delay = 0.05
                else:
                    await anyio.sleep(delay * (0.5 + random.random() / 2))  # noqa: S311 - no secret
                    delay = min(delay * 2, 5.0)

    async def _settle_batch(self, link: _Link) -> bool:
        """Settles what is in the outbox; False if some of it has to be tried again."""
        batch, link.outbox = link.outbox, []
        failed: Sequence[tuple[Settlement, DispytchError]]
        try:
            # Cut off half-way, nobody would know what was acknowledged, so a stop waits for it, but not for ever.
            with anyio.CancelScope(shield=True, deadline=anyio.current_time() + _SETTLE_TIMEOUT) as scope:
                failed = await link.consumer.settle(batch)
            if scope.cancelled_caught:
                error = DeliveryError(f"settling took over {_SETTLE_TIMEOUT:g} s")
                failed = [(settlement, error) for settlement in batch]
        except BrokerUnreachableError as unreachable:
            failed = [(settlement, unreachable) for settlement in batch]
        except BaseException:
            link.outbox[:0] = batch
            raise
        link.let_go(len(batch) - len(failed))
        if not failed:
            return True
        link.outbox[:0] = [settlement for settlement, _ in failed]
        logger.warning("%s could not settle %d events, and tries again: %s", link.name, len(failed), failed[0][1])
        return False

    # --- waiting

    def pauser(self, sleep: Callable[[float], Awaitable[None]]) -> Pause:
        """A function that waits by a consumer's clock, and returns False at once when the dispatcher stops."""

        async def pause(seconds: float) -> bool:
            if self.stopping:
                return False
            async with anyio.create_task_group() as group:

                async def watch() -> None:
                    await self._stop.wait()
                    group.cancel_scope.cancel()

                group.start_soon(watch)
                await sleep(seconds)
                group.cancel_scope.cancel()
            return not self._stop.is_set()

        return pause
