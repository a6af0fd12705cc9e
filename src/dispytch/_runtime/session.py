"""One run of a dispatcher: feeders receive, workers call the handlers, and links send the outcomes."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import anyio
from anyio.abc import TaskStatus

from dispytch._core.context import Pause
from dispytch._core.envelope import Opened
from dispytch._core.messages import Outcome, Settlement
from dispytch._core.redelivery import MOST_DELIVERIES
from dispytch._runtime.links import SETTLE_TIMEOUT, Link
from dispytch._runtime.trials import Trials
from dispytch._runtime.wiring import Route, Wired
from dispytch._runtime.workers import Workers
from dispytch._runtime.works import Counts, Work, make_dead_letter
from dispytch.abc import Delivery
from dispytch.errors import BrokerUnreachableError, DecodeError, DeliveryError, DispytchError

__all__ = ["Session", "Tuning"]

logger = logging.getLogger("dispytch")

_LONGEST_RECONNECT_DELAY = 15.0


@dataclass(frozen=True, slots=True)
class Tuning:
    """The dispatcher's options that matter while it runs."""

    concurrency: int
    ordering: str
    max_deliveries: int
    drain_timeout: float
    dead_letter_unhandled: bool


class Session:
    """One run, from the first connection to the last settlement.

    Args:
        wired: The consumers with their handlers.
        tuning: The dispatcher's options.
    """

    def __init__(self, wired: Sequence[Wired], tuning: Tuning) -> None:
        self.tuning: Tuning = tuning
        self.counts = Counts()
        self._trials = Trials(tuning.max_deliveries, self.counts)
        self._workers = Workers(self._trials, wired)
        self._stop = anyio.Event()
        self.links = [Link(one, tuning.concurrency, self._pauser(one.consumer.clock.sleep)) for one in wired]

    # --- what others ask

    def request_stop(self) -> None:
        """Begins the drain. In the loop's own thread."""
        self._trials.stopping = True
        self._stop.set()

    @property
    def stopping(self) -> bool:
        return self._trials.stopping

    @property
    def in_flight(self) -> int:
        return len(self._workers.running)

    @property
    def queued(self) -> int:
        return self._workers.queued

    @property
    def oldest_in_flight(self) -> float | None:
        """For how many seconds the oldest event in flight has been handled."""
        running = self._workers.running
        if not running:
            return None
        return time.perf_counter() - running[0].started if running[0].started else 0.0

    @property
    def is_idle(self) -> bool:
        """Whether nothing is held or being handled, and nothing is known to wait at a broker."""
        return not self._workers.running and all(
            not link.held and not link.outbox and not link.consumer.backlog() for link in self.links
        )

    # --- the run

    async def run(self, task_status: TaskStatus[None]) -> None:
        """Connects, consumes until a stop is requested, drains, disconnects."""
        try:
            for link in self.links:
                await link.consumer.start(link.wired.subscriptions)
            await self._serve(task_status)
        finally:
            for link in self.links:
                with anyio.CancelScope(shield=True, deadline=anyio.current_time() + SETTLE_TIMEOUT):
                    try:
                        await link.consumer.stop()
                    except DispytchError as error:
                        logger.warning("%s did not stop cleanly: %s", link.name, error)

    async def _serve(self, task_status: TaskStatus[None]) -> None:
        try:
            async with anyio.create_task_group() as settlers:
                for link in self.links:
                    settlers.start_soon(link.settle_for_ever, name=f"dispytch settler {link.name}")
                async with anyio.create_task_group() as workers:
                    for number in range(self.tuning.concurrency):
                        workers.start_soon(self._workers.work, name=f"dispytch worker {number}")
                    async with anyio.create_task_group() as feeders:
                        for link in self.links:
                            feeders.start_soon(self._feed, link, name=f"dispytch feeder {link.name}")
                        for keep_time in self._workers.timers():
                            feeders.start_soon(keep_time, name="dispytch batch timer")
                        task_status.started()
                        await self._stop.wait()
                        feeders.cancel_scope.cancel()
                    await self._drain()
                    workers.cancel_scope.cancel()
                settlers.cancel_scope.cancel()
        finally:
            if lost := self._workers.give_up():
                logger.error("%d events that were acknowledged before handling were not handled before the stop.", lost)
            for link in self.links:
                await link.flush()

    async def _drain(self) -> None:
        self._workers.wind_up()
        with anyio.move_on_after(self.tuning.drain_timeout):
            await self._workers.drained.wait()
        if self._workers.running:
            stuck = ", ".join(
                f"{bound.name} (event {work.opened.id})"
                for work in self._workers.running[:5]
                for bound, _ in work.route.matches
            )
            logger.error(
                "%d events were not finished within the drain time of %g s; they are handed back where the broker can "
                "take them: %s. Threads of plain functions go on until they return.",
                len(self._workers.running),
                self.tuning.drain_timeout,
                stuck,
            )

    # --- feeding

    async def _feed(self, link: Link) -> None:
        receive, sort, push = link.consumer.receive, self._sort, self._workers.lanes.push
        while True:
            try:
                deliveries = await receive(link.window - link.held)
            except BrokerUnreachableError as error:
                await self._reconnect(link, error)
                continue
            link.held += len(deliveries)
            first: list[Work] = []
            for delivery in deliveries:
                work = sort(link, delivery)
                if work is None:
                    continue
                if work.is_acknowledged and link.consumer.features.acknowledges:
                    first.append(work)
                elif work.route.sole is not None:
                    push(work)
                else:
                    self._workers.add(work)
            if first:
                link.rest()
                await self._acknowledge_first(link, first)
                link.resume()
            self._workers.wake()
            if link.held >= link.window:
                link.rest()
                while link.held >= link.window:
                    await link.room.wait()
                link.resume()

    async def _acknowledge_first(self, link: Link, first: Sequence[Work]) -> None:
        pending = [Settlement(work.opened.delivery, Outcome.ACK) for work in first]
        delay = 0.05
        try:
            while pending:
                # What is acknowledged must reach the lanes, even if a stop comes meanwhile.
                failed = await link.send(pending)
                pending = [settlement for settlement, _ in failed]
                if pending:
                    logger.warning("%s could not acknowledge %d events: %s", link.name, len(pending), failed[0][1])
                    if not await link.pause(delay):
                        return
                    delay = min(delay * 2, 5.0)
            while (error := await link.flush_consumer()) is not None:
                logger.warning("%s could not make sure that events are acknowledged: %s", link.name, error)
                # Where the connection is lost, none of them can be acknowledged any more: they are handled, and may
                # come again.
                if isinstance(error, BrokerUnreachableError) or not await link.pause(delay):
                    return
                delay = min(delay * 2, 5.0)
        finally:
            # Those never acknowledged are never handled: the broker delivers them again.
            unknown = {id(settlement.delivery) for settlement in pending}
            for work in first:
                if id(work.opened.delivery) not in unknown:
                    self._workers.add(work)

    async def _reconnect(self, link: Link, error: DispytchError) -> None:
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
                link.resume()
                logger.info("%s is connected again.", link.name)
                return

    def _sort(self, link: Link, delivery: Delivery) -> Work | None:
        """The delivery as work; ``None`` if it is settled already, since no handler will see it."""
        wired = link.wired
        payload = delivery.payload
        try:
            if payload is not None and len(payload) > link.consumer.max_payload_bytes:
                raise DecodeError(
                    f"the payload of {len(payload)} bytes is larger than max_payload_bytes "
                    f"({link.consumer.max_payload_bytes})"
                )
            if delivery.unreadable is not None:
                raise DecodeError(delivery.unreadable)
            if delivery.deliveries >= MOST_DELIVERIES:
                raise DeliveryError(
                    f"it was delivered {delivery.deliveries} times and never settled: its handling seems to end the "
                    "process"
                )
            opened = wired.open(delivery)
        except (DecodeError, DeliveryError) as error:
            self._refuse(link, delivery, error)
            return None
        except Exception as error:  # an envelope that is not ours: its mistake costs this message, not the dispatcher
            self._refuse(link, delivery, DecodeError(f"its envelope cannot be opened ({type(error).__name__})"))
            return None
        route = wired.routes.get((delivery.source, delivery.scope, opened.type))
        if route is None:
            route = wired.route(delivery.source, delivery.scope, opened.type)
        if opened.replay_for is not None:
            target = opened.replay_for.decode("utf-8", "replace")
            try:
                addressed = wired.addressed(route, target, delivery.scope)
            except DeliveryError as error:
                self._return_replay(link, delivery, target, error)
                return None
            if addressed is None:
                self.counts.not_addressed += 1
                link.settle(Settlement(delivery, Outcome.ACK))
                return None
            route = addressed
        if opened.data is None and route.matches:
            route = Route([match for match in route.matches if match[0].accepts_null], route.is_batched)
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
        return Work(link, opened, route, lane)

    def _refuse(self, link: Link, delivery: Delivery, error: DispytchError) -> None:
        """What no handler may see is dead-lettered once for each destination of the handlers that it may be for."""
        matches = link.wired.matches(delivery.source, delivery.scope)
        if not matches:
            self._set_aside(link, delivery, None)
            return
        self.counts.failed += 1
        routes = dict.fromkeys(bound.dead_letter for bound, _ in matches if bound.dead_letter is not None)
        logger.error(
            "A message from %s (%s) cannot be handled, and is %s: %s",
            delivery.source,
            delivery.position or "no position",
            "dead-lettered" if routes else "dropped",
            error,
            extra={"topic": delivery.source, "position": delivery.position, "group": link.consumer.group_id},
        )
        group = link.consumer.group_id
        letters = [make_dead_letter(delivery, route, error, group=group) for route in routes]
        self.counts.dead_lettered += len(letters)
        link.settle(Settlement(delivery, Outcome.DEAD_LETTER if letters else Outcome.ACK, letters))

    def _set_aside(self, link: Link, delivery: Delivery, opened: Opened | None) -> None:
        self.counts.unhandled += 1
        if self.tuning.dead_letter_unhandled:
            kind = None if opened is None else opened.type
            error = DeliveryError(f"no handler takes events of type {kind!r} from {delivery.source}")
            self._dead_letter_unhandled(link, delivery, error)
        else:
            link.settle(Settlement(delivery, Outcome.ACK))

    def _return_replay(self, link: Link, delivery: Delivery, target: str, error: DeliveryError) -> None:
        """A replayed event whose handler is not there any more goes back to where it came from."""
        self.counts.unhandled += 1
        fields = {"topic": delivery.source, "handler": target, "group": link.consumer.group_id}
        logger.error("An event from %s finds no handler: %s", delivery.source, error, extra=fields)
        self._dead_letter_unhandled(link, delivery, error, target.rpartition("/")[2])

    def _dead_letter_unhandled(
        self, link: Link, delivery: Delivery, error: DeliveryError, handler: str | None = None
    ) -> None:
        """Dead-letters what no handler gets, to the first destination that there is; without one it is acknowledged."""
        matches = link.wired.matches(delivery.source, delivery.scope) or [(bound, {}) for bound in link.wired.bound]
        route = next((bound.dead_letter for bound, _ in matches if bound.dead_letter is not None), None)
        if route is None:
            link.settle(Settlement(delivery, Outcome.ACK))
            return
        self.counts.dead_lettered += 1
        letter = make_dead_letter(delivery, route, error, handler, group=link.consumer.group_id)
        link.settle(Settlement(delivery, Outcome.DEAD_LETTER, [letter]))

    # --- waiting

    def _pauser(self, sleep: Callable[[float], Awaitable[None]]) -> Pause:
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
