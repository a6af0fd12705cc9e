"""Interleavings and faults in which an event, an order or a worker could get lost."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Sequence

import anyio
import anyio.lowlevel
import pytest

from dispytch import Event, EventBase, EventDispatcher
from dispytch.abc import Delivery, Settlement
from dispytch.ack import AckBeforeProcessing
from dispytch.errors import BrokerError, BrokerUnreachableError, DeliveryError, DispytchError
from dispytch.memory import MemoryBroker, MemoryConsumer
from dispytch.testing import TestClock
from tests.helpers import dispatcher_on, emit
from tests.support import PATIENCE, until

pytestmark = pytest.mark.anyio


class Tick(EventBase):
    __topic__ = "ticks"
    __key__ = "{key}"
    n: int
    key: str | None = None


class Tock(EventBase):
    __topic__ = "tocks"
    n: int


async def test_a_member_that_joins_with_other_topics_leaves_no_entry_behind() -> None:
    # An entry whose key is in hand elsewhere waits; a new member has all that wait handed out anew.
    broker = MemoryBroker()
    gate = anyio.Event()
    seen: list[int] = []

    def member() -> EventDispatcher:
        dispatcher = EventDispatcher(MemoryConsumer(broker))

        @dispatcher.handler(Tick)
        async def handle(event: Event[Tick]) -> None:
            if event.body.n < 4:
                await gate.wait()
            seen.append(event.body.n)

        return dispatcher

    newcomer = EventDispatcher(MemoryConsumer(broker))

    @newcomer.handler(Tock)
    async def other(event: Event[Tock]) -> None: ...

    first = member()
    async with first.lifespan():
        await emit(broker, *[Tick(n=n, key=str(n)) for n in range(4)])
        await until(lambda: first.health().in_flight == 4)
        async with member().lifespan():
            await emit(broker, *[Tick(n=n + 4, key=str(n)) for n in range(4)])
            await anyio.wait_all_tasks_blocked()
            async with newcomer.lifespan():
                await anyio.wait_all_tasks_blocked()
                gate.set()
                with anyio.fail_after(PATIENCE):
                    await until(lambda: len(seen) == 8)


class _SlowToLeave(MemoryConsumer):
    """Its receiving takes a while to be cancelled, as where a thread polls."""

    async def receive(self, limit: int) -> Sequence[Delivery]:
        try:
            return await super().receive(limit)
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.02)
            raise


async def test_a_stop_does_not_let_the_next_of_a_key_overtake_one_in_back_off() -> None:
    clock = TestClock()  # never advanced
    broker = MemoryBroker(clock)
    dispatcher = EventDispatcher(_SlowToLeave(broker))
    handled: list[int] = []
    tries: list[int] = []

    @dispatcher.handler(Tick)
    async def handle(event: Event[Tick]) -> None:
        tries.append(event.body.n)
        if len(tries) == 1:
            raise OSError("the first time")
        handled.append(event.body.n)

    await emit(broker, Tick(n=1, key="k"), Tick(n=2, key="k"))
    async with dispatcher.lifespan():
        await until(lambda: clock.sleepers == 1)
    async with dispatcher.lifespan():
        await dispatcher.idle()
    assert handled == [1, 2]


class _SlowToSettle(MemoryConsumer):
    """Each settling waits for the test, and may fail: wholly, or for every other outcome."""

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self.gate = anyio.Event()
        self.settling = 0
        self.fail_odd = False
        self.unreachable = 0

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[tuple[Settlement, DispytchError]]:
        self.settling += 1
        await self.gate.wait()
        if self.unreachable:
            self.unreachable -= 1
            raise BrokerUnreachableError("broken off")
        if not self.fail_odd:
            return await super().settle(settlements)
        failed = [(one, DeliveryError("not this one")) for one in settlements[1::2]]
        return [*await super().settle(settlements[::2]), *failed]


async def test_what_was_acknowledged_first_is_handled_when_a_stop_comes_meanwhile() -> None:
    broker = MemoryBroker()
    consumer = _SlowToSettle(broker)
    dispatcher = EventDispatcher(consumer)
    gate = anyio.Event()
    seen: list[int] = []

    @dispatcher.handler(Tick)
    async def slow(event: Event[Tick]) -> None:
        await gate.wait()

    @dispatcher.handler(Tock, ack_policy=AckBeforeProcessing())
    async def first(event: Event[Tock]) -> None:
        await anyio.sleep(0.01)
        seen.append(event.body.n)

    async with dispatcher.lifespan():
        await emit(broker, Tick(n=1))
        await until(lambda: dispatcher.health().in_flight == 1)
        await emit(broker, Tock(n=2))
        await until(lambda: consumer.settling == 1)
        dispatcher.request_stop()
        await anyio.wait_all_tasks_blocked()
        gate.set()  # now nothing runs, and nothing is queued
        await anyio.wait_all_tasks_blocked()
        consumer.gate.set()
    assert seen == [2]


async def test_a_stop_handles_those_of_a_batch_that_were_acknowledged_first() -> None:
    broker = MemoryBroker()
    consumer = _SlowToSettle(broker)
    consumer.gate.set()
    consumer.fail_odd = True
    dispatcher = EventDispatcher(consumer)
    seen: list[int] = []

    @dispatcher.handler(Tock, ack_policy=AckBeforeProcessing())
    async def first(event: Event[Tock]) -> None:
        seen.append(event.body.n)

    await emit(broker, Tock(n=0), Tock(n=1))
    async with dispatcher.lifespan():
        await until(lambda: consumer.settling)
        await anyio.wait_all_tasks_blocked()
    consumer.fail_odd = False
    async with dispatcher.lifespan():
        await dispatcher.idle()
    assert seen == [0, 1]


async def test_a_connection_that_breaks_off_while_acknowledging_first_is_no_end() -> None:
    broker = MemoryBroker()
    consumer = _SlowToSettle(broker)
    consumer.gate.set()
    consumer.unreachable = 1
    dispatcher = EventDispatcher(consumer)
    seen: list[int] = []

    @dispatcher.handler(Tock, ack_policy=AckBeforeProcessing())
    async def first(event: Event[Tock]) -> None:
        seen.append(event.body.n)

    await emit(broker, Tock(n=0))
    async with dispatcher.lifespan():
        await until(lambda: seen)
    assert seen == [0]


class _SlowToFlush(MemoryConsumer):
    def __init__(self, broker: MemoryBroker, *errors: BrokerError) -> None:
        super().__init__(broker)
        self.errors = list(errors)
        self.flushes = 0

    async def flush(self) -> None:
        await super().flush()
        self.flushes += 1
        if self.errors:
            raise self.errors.pop(0)


@pytest.mark.parametrize(
    ("errors", "flushes"),
    [
        ([], 1),
        ([BrokerError("not now"), BrokerError("nor now")], 3),
        ([BrokerUnreachableError("broken off"), BrokerError("never asked for")], 1),
    ],
)
async def test_acknowledge_first_waits_for_the_flush(errors: list[BrokerError], flushes: int) -> None:
    broker = MemoryBroker()
    consumer = _SlowToFlush(broker, *errors)
    dispatcher = EventDispatcher(consumer)
    seen: list[int] = []

    @dispatcher.handler(Tock, ack_policy=AckBeforeProcessing())
    async def first(event: Event[Tock]) -> None:
        seen.append(consumer.flushes)

    await emit(broker, Tock(n=0), Tock(n=1))
    async with dispatcher.lifespan():
        await until(lambda: len(seen) == 2)
    assert seen == [flushes] * 2


class _Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


async def test_an_error_without_a_text_costs_its_event_and_not_the_dispatcher() -> None:
    broker = MemoryBroker()
    dispatcher = dispatcher_on(broker)

    @dispatcher.handler(Tock)
    async def handle(event: Event[Tock]) -> None:
        raise _Unspeakable

    await emit(broker, Tock(n=0))
    async with dispatcher.lifespan():
        await until(lambda: broker.dead_letters)
    (record,) = broker.dead_letters
    assert record.dead_letter is not None
    assert "_Unspeakable" in record.dead_letter.error


# Only asyncio's cancellation can be raised by anybody.
@pytest.mark.parametrize(
    "anyio_backend", [("asyncio", {"debug": False}), ("asyncio", {"use_uvloop": True})], ids=["asyncio", "uvloop"]
)
@pytest.mark.parametrize("waits_first", [False, True])
@pytest.mark.parametrize("handlers", [1, 2])
@pytest.mark.parametrize("of_its_own", [False, True])
async def test_a_handler_that_is_cancelled_from_inside_costs_no_worker(
    waits_first: bool, handlers: int, of_its_own: bool
) -> None:
    broker = MemoryBroker()
    dispatcher = dispatcher_on(broker, concurrency=1, max_deliveries=2)
    calls: list[int] = []

    async def handle(event: Event[Tock]) -> None:
        calls.append(event.body.n)
        if waits_first:
            await anyio.lowlevel.checkpoint()
        if of_its_own:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await anyio.sleep(0.01)
        raise asyncio.CancelledError

    dispatcher.handler(Tock)(handle)
    if handlers == 2:

        @dispatcher.handler(Tock)
        async def other(event: Event[Tock]) -> None: ...

    await emit(broker, Tock(n=0), Tock(n=1))
    async with dispatcher.lifespan():
        with anyio.fail_after(PATIENCE):
            await until(lambda: len(broker.dead_letters) == 2)
    assert sorted(calls) == [0, 0, 1, 1]


def test_an_error_of_one_dispatcher_does_not_keep_others_from_draining_at_the_exit() -> None:
    code = """
import time
from dispytch import Event, EventBase
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryProducer
from dispytch.sync import EventDispatcher, EventEmitter

class Tock(EventBase):
    __topic__ = "tocks"
    n: int

class Broken(MemoryConsumer):
    async def receive(self, limit):
        raise RuntimeError("broken")

broker = MemoryBroker()
began: list[int] = []
dispatchers = [EventDispatcher(kind(broker, kind.__name__)) for kind in [*[Broken] * 3, MemoryConsumer, *[Broken] * 3]]
for dispatcher in dispatchers:
    @dispatcher.handler(Tock)
    def handle(event: Event[Tock]) -> None:
        began.append(event.body.n)
        while dispatchers[3].health().state == "running":  # it does not end before the exit
            time.sleep(0.001)
        time.sleep(0.1)  # nor at once: the drain has something to wait for
        print("handled", flush=True)
    try:
        dispatcher.start()
    except RuntimeError:
        pass  # a broken one may end before it is waited for
EventEmitter(MemoryProducer(broker)).emit(Tock(n=1))
while not began:  # in its thread: at the exit Python starts no more of them
    time.sleep(0.001)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout == "handled\n", done.stderr


async def test_what_its_broker_has_delivered_a_hundred_times_is_not_handled_again(broker: MemoryBroker) -> None:
    """Nobody has lived to settle it, so whoever handles it seems to die of it."""

    class Counting(MemoryConsumer):
        async def receive(self, limit: int) -> Sequence[Delivery]:
            deliveries = await super().receive(limit)
            for number, delivery in enumerate(deliveries):
                delivery.deliveries = 99 + number
            return deliveries

    dispatcher = EventDispatcher(Counting(broker))
    seen: list[int] = []

    @dispatcher.handler(Tick)
    async def handle(event: Event[Tick]) -> None:
        seen.append(event.body.n)

    await emit(broker, Tick(n=1), Tick(n=2))
    async with dispatcher.lifespan():
        await dispatcher.idle()
    assert seen == [1]
    (letter,) = broker.dead_letters
    assert letter.dead_letter is not None
    assert letter.dead_letter.error.startswith("DeliveryError: it was delivered 100 times and never settled")
