"""One pass over a dead-letter topic: what is chosen leaves it, everything else is there for the next reader.

What becomes of a letter that was read and is to stay depends on how its broker acknowledges:

- One by one (memory, RabbitMQ, Redis Streams): it is held, unacknowledged, and handed back when the pass ends. So a
  pass ends once as many are held as the consumer can hold.
- In order (Kafka): the group's offset passes it by as soon as one behind it is acknowledged. So, before that counts, it
  is written to the topic again, confirmed, and then acknowledged, with a mark by which this pass knows it again. Where
  nothing behind it was chosen it stays where it is.

Whatever happens in between, a letter is acknowledged only after it has been written where it belongs: it may be there
twice, and is never lost.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel

from dispytch._core.deadletters import MARK
from dispytch._runtime.ids import new_id
from dispytch.abc import Consumer, Delivery, EventRoute, Message, Outcome, Settlement, Subscription
from dispytch.errors import BrokerError, BrokerUnreachableError, DispytchError

__all__ = ["InOrder", "OneByOne", "Sweep", "Tail"]

logger = logging.getLogger("dispytch")

_SHARE_WITHIN = 60.0
"""Seconds that a group may take to tell a new member what it receives."""
_MORE_WITHIN = 15.0
"""Seconds that letters may take to come whose broker is known to have more; what it holds need not all be letters."""
_SECOND_LOOK = 0.25
_STOP_TIMEOUT = 15.0
_SETTLE_TIMEOUT = 10.0
_TRIES = 4
_PAUSE = 0.05
_MOST_AT_ONCE = 500
"""Letters that are written to their topic again at once."""


class Tail(ABC):
    """What stays of a dead-letter topic during a pass.

    Args:
        mark: The pass; it is on what comes of it, whether written to the topic again or failed again once replayed.
    """

    def __init__(self, mark: bytes) -> None:
        self.mark: bytes = mark

    @property
    @abstractmethod
    def room(self) -> int:
        """How many more letters can stay; with none, the pass must end."""

    @abstractmethod
    def is_new(self, delivery: Delivery) -> bool:
        """Whether a letter comes of this pass itself, and stays. Called once for each, in the order of their coming."""

    @abstractmethod
    def keep(self, delivery: Delivery) -> None:
        """A letter is to stay."""

    async def advance(self, acknowledged: Sequence[Delivery]) -> None:
        """Letters have been acknowledged, in the order in which they came."""
        await anyio.lowlevel.checkpoint()

    def _is_marked(self, delivery: Delivery) -> bool:
        return any(name == MARK and value == self.mark for name, value in delivery.headers)


class OneByOne(Tail):
    """Holds what stays until the consumer stops.

    Args:
        most: How many can be held.
    """

    def __init__(self, mark: bytes, most: int) -> None:
        super().__init__(mark)
        self._room = most

    @property
    def room(self) -> int:
        return self._room

    def is_new(self, delivery: Delivery) -> bool:
        if not self._is_marked(delivery):
            return False
        self.keep(delivery)
        return True

    def keep(self, delivery: Delivery) -> None:
        self._room -= 1


class InOrder(Tail):
    """Writes to the topic again what others behind it have overtaken.

    Args:
        most: How many may lie behind the oldest that is not acknowledged.
        sweep: Settles for it.
        route: The dead-letter topic.
    """

    def __init__(self, mark: bytes, most: int, sweep: Sweep, route: EventRoute) -> None:
        super().__init__(mark)
        self._sweep = sweep
        self._route = route
        self._most = most
        self._numbers: dict[int, int] = {}
        self._count = 0
        self._kept: dict[Any, list[tuple[int, Delivery]]] = {}
        self._last: dict[Any, int] = {}
        self._over: set[Any] = set()

    @property
    def room(self) -> int:
        return self._most - sum(map(len, self._kept.values()))

    def is_new(self, delivery: Delivery) -> bool:
        partition = (delivery.source, delivery.partition)
        if partition in self._over:
            return True
        if self._is_marked(delivery):
            self._over.add(partition)  # what lies behind it was not there when the pass began
            return True
        self._count += 1
        self._numbers[id(delivery)] = self._count
        return False

    def keep(self, delivery: Delivery) -> None:
        partition = (delivery.source, delivery.partition)
        self._kept.setdefault(partition, []).append((self._numbers.pop(id(delivery)), delivery))

    async def advance(self, acknowledged: Sequence[Delivery]) -> None:
        for delivery in acknowledged:
            partition = (delivery.source, delivery.partition)
            number = self._numbers.pop(id(delivery))
            self._last[partition] = max(number, self._last.get(partition, 0))
        overtaken = [
            delivery
            for partition, kept in self._kept.items()
            for number, delivery in kept
            if number < self._last.get(partition, 0)
        ]
        if self.room + len(overtaken) <= self._most // 2:  # before so many wait that the broker's client stops
            overtaken = [delivery for kept in self._kept.values() for _, delivery in kept]
        for start in range(0, len(overtaken), _MOST_AT_ONCE):
            await self._move(overtaken[start : start + _MOST_AT_ONCE])
        await anyio.lowlevel.checkpoint()

    async def _move(self, deliveries: Sequence[Delivery]) -> None:
        settlements = [Settlement(one, Outcome.DEAD_LETTER, [self._again(one)]) for one in deliveries]
        failed = await self._sweep.settle(settlements)
        if failed:
            error = next(iter(failed.values()))
            logger.warning(
                "%d letters that stay could not be written to %s again, so that letters behind them may be replayed or "
                "dropped once more: %s",
                len(failed),
                self._route.address,
                error,
            )
        moved = {id(settlement.delivery) for settlement in settlements if settlement not in failed}
        for partition, kept in self._kept.items():
            self._kept[partition] = [item for item in kept if id(item[1]) not in moved]

    def _again(self, delivery: Delivery) -> Message:
        headers = [(name, value) for name, value in delivery.headers if name != MARK]
        return Message(new_id(), self._route, delivery.payload, [*headers, (MARK, self.mark)], delivery.key)


class Sweep:
    """Receives the letters of a topic, and settles them.

    Args:
        consumer: Receives from the topic; started here.
        subscription: The topic, as the consumer has it.
        idle: After how many seconds without a letter there are none left, unless the broker is known to have more.
        window: How many letters may be held.
    """

    def __init__(self, consumer: Consumer, subscription: Subscription, idle: float, window: int) -> None:
        self._consumer = consumer
        self._subscription = subscription
        self._idle = idle
        self._window = window

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Connects; on exit what was not acknowledged is handed back."""
        consumer = self._consumer
        consumer.window = self._window
        try:
            await consumer.start([self._subscription])
            yield
        finally:
            with anyio.CancelScope(shield=True, deadline=anyio.current_time() + _STOP_TIMEOUT):
                try:
                    await consumer.stop()
                except DispytchError as error:
                    logger.warning("%s did not stop cleanly: %s", type(consumer).__name__, error)

    async def next(self, limit: int) -> Sequence[Delivery]:
        """The next letters, at most ``limit``; none if there are none left.

        Raises:
            BrokerError: the connection was lost, or the group gives no share.
        """
        consumer, idle = self._consumer, self._idle
        began = anyio.current_time()
        while True:
            is_receiving = consumer.is_receiving()
            if consumer.backlog() == 0:
                await anyio.lowlevel.checkpoint()
                return ()
            with anyio.move_on_after(idle):
                return await consumer.receive(limit)
            waited = anyio.current_time() - began
            has_more = consumer.is_caught_up() is False or bool(consumer.backlog())
            if is_receiving and (not has_more or waited > _MORE_WITHIN):
                return ()
            idle = max(self._idle, _SECOND_LOOK)  # on a busy machine the time may be over before anything could come
            if waited > _SHARE_WITHIN:
                raise BrokerUnreachableError(
                    f"the group {consumer.group_id!r} has given no share of {self._subscription.pattern.source} within "
                    f"{_SHARE_WITHIN:g} s; check its other members, and the broker"
                )

    async def acknowledge(self, deliveries: Sequence[Delivery]) -> dict[int, DispytchError]:
        """Acknowledges letters; returns why it could not, by ``id`` of the delivery."""
        failed = await self.settle([Settlement(delivery, Outcome.ACK) for delivery in deliveries])
        return {id(settlement.delivery): error for settlement, error in failed.items()}

    async def settle(self, settlements: Sequence[Settlement]) -> dict[Settlement, DispytchError]:
        """Carries out settlements, also while this is being cancelled; returns those that could not be."""
        left: dict[Settlement, DispytchError] = {}
        again = settlements
        for number in range(_TRIES):
            with anyio.CancelScope(shield=True, deadline=anyio.current_time() + _SETTLE_TIMEOUT):
                error: DispytchError = BrokerUnreachableError(f"settling took over {_SETTLE_TIMEOUT:g} s")
                left = dict.fromkeys(again, error)
                try:
                    left = dict(await self._consumer.settle(again))
                except BrokerUnreachableError as unreachable:
                    left = dict.fromkeys(again, unreachable)
            if not left:
                break
            again = list(left)
            await anyio.sleep(_PAUSE * 2**number)
        return left

    async def flush(self) -> None:
        """Waits until acknowledgements have reached the broker, as far as that is known."""
        try:
            await self._consumer.flush()
        except BrokerError as error:
            logger.warning(
                "Some letters of %s were dealt with, and may be there still, since acknowledging them failed: %s",
                self._subscription.pattern.source,
                error,
            )
