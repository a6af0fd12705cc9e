"""What a stop hands back where acknowledgements take effect in order, as those of Kafka do."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import pytest

from dispytch import Event, EventBase, EventDispatcher, Redeliver
from dispytch.abc import Delivery, Settlement
from dispytch.errors import DispytchError
from dispytch.memory import MemoryBroker, MemoryConsumer
from tests.helpers import emit, until

pytestmark = pytest.mark.anyio


class Click(EventBase):
    __topic__ = "clicks"
    __key__ = "{key}"
    n: int
    key: str


def clicks(keys: str) -> list[Click]:
    return [Click(n=n, key=key) for n, key in enumerate(keys)]


def offset(delivery: Delivery) -> int:
    assert delivery.position is not None
    return int(delivery.position.rpartition("/")[2])


class InOrder(MemoryConsumer):
    """A consumer that asks for what others behind it have overtaken."""

    furthest = -1
    begun: Sequence[int] | None = None

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self.may_settle = anyio.Event()

    def overtaken(self, waiting: Sequence[Delivery], begun: Sequence[Delivery]) -> Sequence[Delivery]:
        self.begun = [offset(delivery) for delivery in begun]
        furthest = max(self.furthest, *self.begun)
        return [delivery for delivery in waiting if offset(delivery) < furthest]

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[tuple[Settlement, DispytchError]]:
        await self.may_settle.wait()
        failed = await super().settle(settlements)
        self.furthest = max(self.furthest, *(offset(one.delivery) for one in settlements))
        return failed


@pytest.mark.parametrize("fails", [False, True])
async def test_what_waits_for_a_batch_is_handled_before_what_has_overtaken_it(
    broker: MemoryBroker, fails: bool
) -> None:
    consumer = InOrder(broker)
    consumer.may_settle.set()
    dispatcher = EventDispatcher(consumer)
    gate = anyio.Event()
    batches: list[list[int]] = []

    @dispatcher.handler(Click, batch=2, batch_wait=0.01, concurrency=2)
    async def bulk(events: list[Event[Click]]) -> None:
        batches.append([event.body.n for event in events])
        if batches[-1][0] == 0:
            await gate.wait()
            if fails:
                raise Redeliver

    await emit(broker, *clicks("abacda"))
    async with dispatcher.lifespan():
        await until(lambda: len(batches) == 2 and consumer.furthest == 4)
        dispatcher.request_stop()
        await until(lambda: consumer.begun is not None)
        gate.set()
    # 2 lies before 3 and 4, which are handled; 5 behind all of them. If 0 comes again, then so does 2, after it.
    assert batches == [[0, 1], [3, 4]] + ([] if fails else [[2]])


async def test_what_is_being_acknowledged_has_overtaken_what_waits(broker: MemoryBroker) -> None:
    consumer = InOrder(broker)
    dispatcher = EventDispatcher(consumer)
    gate = anyio.Event()
    handled: list[int] = []

    @dispatcher.handler(Click)
    async def single(event: Event[Click]) -> None:
        if event.body.n == 0:
            await gate.wait()
        handled.append(event.body.n)

    await emit(broker, *clicks("aab"))
    async with dispatcher.lifespan():
        await until(lambda: handled == [2] and dispatcher.health().queued == 1)
        await anyio.wait_all_tasks_blocked()  # by now the acknowledgement of 2 is on its way
        dispatcher.request_stop()
        await until(lambda: consumer.begun is not None)
        gate.set()
        consumer.may_settle.set()
    assert consumer.begun == [0, 2]
    assert handled == [2, 0, 1]
