"""Transports with one mistake each, to show that the suite can fail. `test_suite.py` runs it; pytest does not."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count
from typing import ClassVar

import anyio
import anyio.lowlevel
import pytest

from dispytch.abc import (
    Consumer,
    Delivery,
    EventConfig,
    EventRoute,
    Features,
    Message,
    Outcome,
    Producer,
    Receipt,
    Settlement,
    Subscription,
)
from dispytch.errors import DispytchError
from dispytch.memory import BlockingMemoryProducer, MemoryBroker, MemoryConsumer, MemoryEventConfig, MemoryProducer
from dispytch.testing import Faults, TransportSuite
from dispytch.testing.conformance.rows import Column
from dispytch.testing.conformance.suite import TABLE

Failures = Sequence[tuple[Settlement, DispytchError]]


class Faulty(TransportSuite):
    """The in-process transport, with clients to be replaced."""

    producer_type: ClassVar[type[MemoryProducer]] = MemoryProducer
    consumer_type: ClassVar[type[MemoryConsumer]] = MemoryConsumer
    columns: ClassVar[Sequence[Column]] = ("asyncio",)
    patience = 0.7

    @pytest.fixture(autouse=True)
    def broker(self) -> None:
        self.faults = Faults()
        self.memory = MemoryBroker(faults=self.faults)

    def producer(self) -> Producer:
        return self.producer_type(self.memory)

    def consumer(self, group_id: str) -> Consumer:
        return self.consumer_type(self.memory, group_id)

    def headers(self, headers: Mapping[str, str | bytes]) -> EventConfig:
        return MemoryEventConfig(headers=headers)

    @asynccontextmanager
    async def unwritable(self, route: EventRoute) -> AsyncIterator[None]:
        self.faults.sometimes("dead_letter", 1.0)
        yield
        self.faults.sometimes("dead_letter", 0.0)


def only(*names: str) -> Sequence[str]:
    """The rows to leave out, if these are to run."""
    return [row.name for row in TABLE if row.name not in names]


class Hasty(MemoryConsumer):
    """Acknowledges what it receives, at once."""

    async def receive(self, limit: int) -> Sequence[Delivery]:
        deliveries = await super().receive(limit)
        await super().settle([Settlement(delivery, Outcome.ACK) for delivery in deliveries])
        return deliveries


class TestAcknowledgesEarly(Faulty):
    consumer_type = Hasty
    leaves_out = only("publish subscribe", "cancel", "commit gap", "fail then succeed", "drain timeout")


class Slow(MemoryConsumer):
    """Takes its time to stop."""

    async def stop(self) -> None:
        await anyio.sleep(0.25)
        await super().stop()


class TestStopsSlowly(Faulty):
    consumer_type = Slow
    leaves_out = only("publish subscribe", "prompt stop")


class Forgetful(MemoryConsumer):
    """Forgets what it had taken when it is cancelled."""

    async def receive(self, limit: int) -> Sequence[Delivery]:
        deliveries = await super().receive(min(limit, 100))
        try:
            await anyio.sleep(0.01)  # this is where a stop finds it
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await super().settle([Settlement(delivery, Outcome.ACK) for delivery in deliveries])
            raise
        return deliveries


class TestLosesOnCancel(Faulty):
    consumer_type = Forgetful
    patience = 2.0
    leaves_out = only("redeliver on error", "close and reopen")


class Keeping(MemoryConsumer):
    """Acknowledges what it is asked to hand back."""

    async def settle(self, settlements: Sequence[Settlement]) -> Failures:
        return await super().settle([Settlement(settlement.delivery, Outcome.ACK) for settlement in settlements])


class TestHandsNothingBack(Faulty):
    consumer_type = Keeping
    leaves_out = only("redeliver on error", "cancel", "dead letter")


class Backwards(MemoryConsumer):
    """Gives the newest first."""

    async def receive(self, limit: int) -> Sequence[Delivery]:
        return [*reversed(await super().receive(limit))]


class TestOutOfOrder(Faulty):
    consumer_type = Backwards
    leaves_out = only("publish subscribe", "order per key", "no settle no next")


class Greedy(MemoryConsumer):
    """Gives all that there is."""

    async def receive(self, limit: int) -> Sequence[Delivery]:
        return await super().receive(1_000_000)


class TestIgnoresTheLimit(Faulty):
    consumer_type = Greedy
    leaves_out = only("publish subscribe", "backpressure")


class TestOneGroup(Faulty):
    leaves_out = only("many at once", "two groups")

    def consumer(self, group_id: str) -> Consumer:
        return MemoryConsumer(self.memory, "all of them")


class Closing(MemoryConsumer):
    """Ends its whole group when it stops."""

    ended: ClassVar[set[str]] = set()

    async def receive(self, limit: int) -> Sequence[Delivery]:
        if self.group_id in self.ended:
            await anyio.sleep_forever()
        return await super().receive(limit)

    async def stop(self) -> None:
        self.ended.add(self.group_id)
        await super().stop()


class TestEndsItsGroup(Faulty):
    consumer_type = Closing
    leaves_out = only("two groups", "concurrent close")


class Idle(MemoryConsumer):
    """Handles nothing of its share, if it is the first of several in its group."""

    members: ClassVar[dict[str, list[MemoryConsumer]]] = {}

    async def start(self, subscriptions: Sequence[Subscription] = ()) -> None:
        self.members.setdefault(self.group_id, []).append(self)
        await super().start(subscriptions)

    async def receive(self, limit: int) -> Sequence[Delivery]:
        deliveries = await super().receive(limit)
        if self is self.members[self.group_id][0] and len(self.members[self.group_id]) > 1:
            await anyio.sleep_forever()
        return deliveries


class TestIdleMembers(Faulty):
    consumer_type = Idle
    leaves_out = only("two groups", "many at once")


class Lockstep(MemoryConsumer):
    """Gives nothing before all that it has given is settled."""

    given = 0

    async def receive(self, limit: int) -> Sequence[Delivery]:
        while self.given:  # noqa: ASYNC110
            await anyio.sleep(0.001)
        deliveries = await super().receive(limit)
        self.given = len(deliveries)
        return deliveries

    async def settle(self, settlements: Sequence[Settlement]) -> Failures:
        self.given -= len(settlements)
        return await super().settle(settlements)


class TestWaitsForAll(Faulty):
    consumer_type = Lockstep
    leaves_out = only("publish subscribe", "same key two topics and null keys")


class Impatient(MemoryConsumer):
    """Gives again what has not been settled within 20 ms."""

    def __init__(self, broker: MemoryBroker, group_id: str) -> None:
        super().__init__(broker, group_id)
        self.given: dict[str | None, Delivery] = {}

    async def receive(self, limit: int) -> Sequence[Delivery]:
        deliveries: Sequence[Delivery] = [*self.given.values()]
        with anyio.move_on_after(0.02 if deliveries else None):
            deliveries = await super().receive(limit)
        self.given.update((delivery.position, delivery) for delivery in deliveries)
        return deliveries

    async def settle(self, settlements: Sequence[Settlement]) -> Failures:
        for settlement in settlements:
            self.given.pop(settlement.delivery.position, None)
        return await super().settle(settlements)


class TestGivesAgain(Faulty):
    consumer_type = Impatient
    leaves_out = only("publish subscribe", "redeliver on error")


class Generous(MemoryConsumer):
    """Writes dead letters twice."""

    async def settle(self, settlements: Sequence[Settlement]) -> Failures:
        return await super().settle(
            [
                Settlement(one.delivery, one.outcome, [*one.dead_letters, *one.dead_letters], one.failures)
                for one in settlements
            ]
        )


class TestTwoLetters(Faulty):
    consumer_type = Generous
    leaves_out = only("redeliver on error", "dead letter")


class Careless(MemoryConsumer):
    """Takes a dead letter that was not written for written."""

    async def settle(self, settlements: Sequence[Settlement]) -> Failures:
        failures = await super().settle(settlements)
        return await super().settle([Settlement(settlement.delivery, Outcome.ACK) for settlement, _ in failures])


class TestUnwrittenLetter(Faulty):
    consumer_type = Careless
    leaves_out = only("dead letter", "dead letter unwritable")


class Lying(MemoryProducer):
    """Confirms every message, and sends most of them."""

    numbers: ClassVar[Iterator[int]] = count()

    async def send(self, messages: Sequence[Message], timeout: float | None) -> Sequence[Receipt | DispytchError]:
        sent = [message for message in messages if next(self.numbers) % 7]
        await super().send(sent, timeout)
        return [Receipt(message.id, message.route.address) for message in messages]


class TestConfirmsTooMuch(Faulty):
    producer_type = Lying
    leaves_out = only("emitter close", "publish subscribe")


class Twice(MemoryProducer):
    """Sends every message twice."""

    async def send(self, messages: Sequence[Message], timeout: float | None) -> Sequence[Receipt | DispytchError]:
        await super().send(messages, timeout)
        return await super().send(messages, timeout)


class TestSendsTwice(Faulty):
    producer_type = Twice
    leaves_out = only("many topics", "templated topics", "two groups", "drain")


class BlockingMuddle(BlockingMemoryProducer):
    """Keeps what a thread sends where other threads put theirs."""

    messages: Sequence[Message] = ()

    def send(self, messages: Sequence[Message], timeout: float | None) -> Sequence[Receipt | DispytchError]:
        self.messages = messages
        time.sleep(0.0001)
        return super().send(self.messages, timeout)


class Muddle(MemoryProducer):
    def blocking(self) -> BlockingMemoryProducer:
        return BlockingMuddle(self.broker)


class TestNotThreadSafe(Faulty):
    producer_type = Muddle
    columns = ("blocking",)
    leaves_out = only("publish subscribe", "blocking facade")


class Bare(MemoryProducer):
    """Sends the headers of the envelope only."""

    async def send(self, messages: Sequence[Message], timeout: float | None) -> Sequence[Receipt | DispytchError]:
        for message in messages:
            message.headers = [header for header in message.headers if header[0].startswith("ce_")]
        return await super().send(messages, timeout)


class TestLosesHeaders(Faulty):
    producer_type = Bare
    leaves_out = only("publish subscribe", "many topics")


# --- no mistakes: a broker like RabbitMQ, which keeps events for groups that it knows

KNOWN_GROUPS = replace(Features(), old_messages=False)


class Late(MemoryConsumer):
    features = KNOWN_GROUPS

    def __init__(self, broker: MemoryBroker, group_id: str) -> None:
        super().__init__(broker, group_id, start_from="latest")


class Silent(MemoryProducer):
    features = KNOWN_GROUPS


class TestKnownGroups(Faulty):
    features = KNOWN_GROUPS
    producer_type = Silent
    consumer_type = Late
    patience = 10.0  # and one mistake: the emitter of what nobody gets is not told


class TestUndeclared(Faulty):
    """Does not say what its clients can do."""

    features = replace(Features(), patterns=False)
    leaves_out = only("publish subscribe")
