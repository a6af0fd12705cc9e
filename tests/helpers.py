"""What tests of behaviour have in common: programs on a memory broker, run until all is handled."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import anyio.lowlevel

from dispytch import EventBase, EventDispatcher, EventEmitter
from dispytch.abc import Headers, Message, Serializer
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryEventRoute, MemoryProducer, Record
from dispytch.serialization import Envelope
from tests.support import PATIENCE


class InstantClock:
    """A clock whose sleeps take no time; it notes how long they would have been."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def time(self) -> float:
        return time.time()

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await anyio.lowlevel.checkpoint()


def dispatcher_on(broker: MemoryBroker, *, group_id: str = "default", **options: Any) -> EventDispatcher:
    """A dispatcher of the broker's events that gives up at the first failure, unless the test says otherwise."""
    return EventDispatcher(MemoryConsumer(broker, group_id), **{"max_deliveries": 1, **options})


async def emit(
    broker: MemoryBroker, *events: EventBase, serializer: Serializer | None = None, envelope: Envelope | None = None
) -> None:
    async with EventEmitter(MemoryProducer(broker), serializer, envelope=envelope) as emitter:
        await emitter.emit_many(events)


def publish(
    broker: MemoryBroker, topic: str, payload: bytes | None, headers: Headers = (), key: bytes | None = None
) -> None:
    """What a foreign program writes: bytes, and whatever headers it likes."""
    broker.publish([Message("raw", MemoryEventRoute(topic), payload, headers, key)])


async def run(dispatcher: EventDispatcher) -> None:
    """Runs the dispatcher until everything there is has been handled."""
    with anyio.fail_after(PATIENCE):
        async with dispatcher.lifespan():
            await dispatcher.idle()


async def handle(dispatcher: EventDispatcher, *events: EventBase) -> None:
    """Emits the events to the dispatcher's broker, and runs it until they have been handled."""
    (consumer,) = dispatcher.consumers
    assert isinstance(consumer, MemoryConsumer)
    await emit(consumer.broker, *events)
    await run(dispatcher)


async def until(condition: Callable[[], object]) -> None:
    """Waits for a condition that other tasks or threads bring about."""
    with anyio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110 - what is waited for knows nothing of this task
            await anyio.sleep(0.001)


def errors(broker: MemoryBroker) -> Sequence[str]:
    """What the dead letters of a broker say."""
    return [letter.dead_letter.error for letter in broker.dead_letters if letter.dead_letter is not None]


def headers_of(record: Record) -> dict[str, str]:
    return {name: value.decode() for name, value in record.headers}
