"""A consumer at work: what it has given, what is to be told to it, and the telling."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Sequence

import anyio

from dispytch._bridge import Loop
from dispytch._core.context import Pause
from dispytch._core.messages import Outcome, Settlement
from dispytch._runtime.wiring import Wired
from dispytch.abc import Consumer, Delivery
from dispytch.errors import BrokerError, BrokerUnreachableError, DeliveryError, DispytchError

__all__ = ["SETTLE_TIMEOUT", "Link", "Signal"]

logger = logging.getLogger("dispytch")

SETTLE_TIMEOUT = 10.0
"""Seconds that one round of settling may take before it is tried again."""
_SHORTEST_DELAY, _LONGEST_DELAY = 0.05, 5.0


class Signal:
    """Wakes one waiting task of the same loop; signals that come before it waits are one."""

    __slots__ = ("_event", "is_set")

    def __init__(self) -> None:
        self._event = anyio.Event()
        self.is_set: bool = False

    def set(self) -> None:
        if not self.is_set:
            self.is_set = True
            self._event.set()

    async def wait(self) -> None:
        if not self.is_set:
            await self._event.wait()
        self._event = anyio.Event()
        self.is_set = False


class Link:
    """A consumer with its handlers, and the outcomes that wait to be sent to it.

    Args:
        concurrency: How many events the dispatcher handles at once; that, or what fills the batches of all handlers,
            and the consumer's prefetch are how many are held.
        pause: Waits by the consumer's clock, and returns False at once when the dispatcher stops.
    """

    def __init__(self, wired: Wired, concurrency: int, pause: Pause) -> None:
        self.wired: Wired = wired
        self.consumer = wired.consumer
        self.name = type(wired.consumer).__name__
        can_tell = type(self.consumer).is_stale is not Consumer.is_stale
        self.is_stale: Callable[[Delivery], bool] | None = self.consumer.is_stale if can_tell else None
        """See `Consumer.is_stale`; ``None`` where it is never so, which saves asking."""
        prefetch = self.consumer.prefetch
        batches = sum(one.batching.size * one.limits[0].capacity for one in wired.bound if one.batching is not None)
        running = max(concurrency, batches)
        self.window = self.consumer.window = running + (running if prefetch is None else prefetch)
        self.pause: Pause = pause
        self.held = 0
        """Deliveries received and not settled."""
        self.outbox: list[Settlement] = []
        self.room = Signal()
        self.connected = True
        self.rests = False
        """Nothing is asked of the consumer, as it should be: it is full, or what it gave is acknowledged first."""
        self.asked_since = time.monotonic()
        """When it was last begun to ask again after a rest."""
        self._loop = Loop()
        self._to_settle = Signal()
        self._later: list[Settlement] = []
        self._later_at = 0.0
        self._on_the_way: list[Settlement] = []
        """Taken from the outbox, and being sent."""

    def settle(self, settlement: Settlement) -> None:
        """Has an outcome sent with the next batch."""
        self.outbox.append(settlement)
        if not self._to_settle.is_set:
            self._to_settle.set()

    def rest(self) -> None:
        """Nothing is asked of the consumer until `resume`."""
        self.rests = True

    def resume(self) -> None:
        """It is asked again from now on."""
        self.rests = False
        self.asked_since = time.monotonic()

    def overtaken(self, waiting: Sequence[Delivery], begun: Sequence[Delivery]) -> Sequence[Delivery]:
        """See `Consumer.overtaken`."""
        outcomes = (*self._on_the_way, *self.outbox, *self._later)
        unsettled = [one.delivery for one in outcomes if one.outcome is not Outcome.RELEASE]
        return self.consumer.overtaken(waiting, [*begun, *unsettled])

    def in_loop(self, callback: Callable[[], object]) -> None:
        """Calls in the loop: at once, or soon, if this is another thread."""
        if self._loop.is_here:
            callback()
        else:
            self._loop.post(callback)

    def let_go(self, count: int) -> None:
        """Notes that deliveries are settled, and wakes the feeder when there is room for a good batch."""
        self.held -= count
        if self.held <= self.window // 2:
            self.room.set()

    async def settle_for_ever(self) -> None:
        """Sends outcomes as they come, in batches."""
        delay = letter_delay = _SHORTEST_DELAY
        while True:
            with anyio.CancelScope(deadline=self._later_at if self._later else math.inf):
                await self._to_settle.wait()
            if self._later and anyio.current_time() >= self._later_at:
                again, self._later = self._later, []
                self.outbox += again
            while self.outbox:
                had_later = bool(self._later)
                if await self._settle_batch():
                    delay = _SHORTEST_DELAY
                else:
                    await anyio.sleep(_jittered(delay))
                    delay = min(delay * 2, _LONGEST_DELAY)
                if not self._later:
                    letter_delay = _SHORTEST_DELAY
                elif not had_later:
                    self._later_at = anyio.current_time() + _jittered(letter_delay)
                    letter_delay = min(letter_delay * 2, _LONGEST_DELAY)

    async def flush(self) -> None:
        """Sends what is left at the end."""
        tries = 0
        while (self.outbox or self._later) and tries < 3:
            tries += 1
            self.outbox += self._later
            self._later = []
            await self._settle_batch()
        if left := len(self.outbox) + len(self._later):
            logger.error(
                "%d events of %s could not be settled before the stop; the broker will deliver them again.",
                left,
                self.name,
            )

    async def send(self, batch: Sequence[Settlement]) -> Sequence[tuple[Settlement, DispytchError]]:
        """Sends outcomes; returns those that failed."""
        try:
            # Cut off half-way, nobody would know what was acknowledged, so a stop waits for it, but not for ever.
            with anyio.CancelScope(shield=True, deadline=anyio.current_time() + SETTLE_TIMEOUT):
                return await self.consumer.settle(batch)
            error: DispytchError = DeliveryError(f"settling took over {SETTLE_TIMEOUT:g} s")
        except BrokerUnreachableError as unreachable:
            error = unreachable
        return [(settlement, error) for settlement in batch]

    async def flush_consumer(self) -> DispytchError | None:
        """Waits until what was sent has reached the broker; why it may not have."""
        try:
            with anyio.CancelScope(shield=True, deadline=anyio.current_time() + SETTLE_TIMEOUT):
                await self.consumer.flush()
                return None
            return DeliveryError(f"it took over {SETTLE_TIMEOUT:g} s")
        except BrokerError as error:
            return error

    async def _settle_batch(self) -> bool:
        """Settles what is in the outbox; False if that has to wait a little."""
        batch, self.outbox = self.outbox, []
        self._on_the_way = batch
        try:
            failed = await self.send(batch)
        except BaseException:
            self.outbox[:0] = batch
            raise
        finally:
            self._on_the_way = []
        self.let_go(len(batch) - len(failed))
        if not failed:
            return True
        again = [settlement for settlement, _ in failed]
        # A dead letter that cannot be written holds up nothing but itself.
        self._later += [settlement for settlement in again if settlement.dead_letters]
        self.outbox[:0] = others = [settlement for settlement in again if not settlement.dead_letters]
        logger.warning("%s could not settle %d events, and tries again: %s", self.name, len(failed), failed[0][1])
        return not others


def _jittered(delay: float) -> float:
    return delay * (0.5 + random.random() / 2)  # noqa: S311 - no secret
