"""The library as its documentation shows it: a dispatcher with a trivial handler, an emitter, on every loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack
from typing import Annotated, Any

import anyio

from benchmarks.bodies import OrderBody, get_rate, order_event
from benchmarks.plans import BATCH, Message, Plan, chunks, leave_alone, take_steps, take_steps_async
from dispytch import Dependency, Event, EventDispatcher, EventEmitter, consumer_from_url, producer_from_url
from dispytch import sync as blocking
from dispytch.memory import MemoryBroker, MemoryProducer

LOOPS = ("asyncio", "uvloop", "trio", "blocking")
SETTINGS = f"the defaults (concurrency 100), one dependency, at least once, emit_many of {BATCH}"
TIMEOUT = 120


def messages_of(url: str, topic: str, numbers: range) -> Iterator[Message]:
    """The bytes and headers that the emitter would send, for the raw clients."""
    producer = MemoryProducer(MemoryBroker()) if url.startswith("memory") else producer_from_url(url)
    make, factory = order_event(topic), EventEmitter(producer)._factory
    for number in numbers:
        message = factory.make(make(number))
        yield message.payload or b"", message.headers


def run_on(loop: str, main: Any, *args: Any) -> Any:
    """Runs a coroutine function on a loop, by its name."""
    return anyio.run(
        main,
        *args,
        backend="trio" if loop == "trio" else "asyncio",
        backend_options={"use_uvloop": True} if loop == "uvloop" else {},
    )


def declare(url: str, topic: str, group: str) -> None:
    """Makes topic, queue and group, so that what is emitted from now on waits for the group."""

    async def main() -> None:
        dispatcher = EventDispatcher(consumer_from_url(url, group))

        @dispatcher.handler(topic=topic)
        async def handle(event: Event[OrderBody]) -> None: ...

        async with dispatcher.lifespan():
            pass

    anyio.run(main)


def run(plan: Plan, loop: str) -> None:
    """Takes a plan's steps on a loop; ``blocking`` is `dispytch.sync`, with a ``def`` handler in worker threads."""
    make = order_event(plan.topic)
    events = [make(number) for number in range(plan.total)] if plan.emits or plan.prefill else []
    leave_alone()
    if plan.prefill:
        with blocking.EventEmitter(producer_from_url(plan.url)) as emitter:
            for step in chunks(plan.total):
                emitter.emit_many(events[step.numbers.start : step.numbers.stop])
    if loop == "blocking":
        _run_blocking(plan, events)
    else:
        run_on(loop, _run, plan, events)


async def _run(plan: Plan, events: list[Any]) -> None:
    async with AsyncExitStack() as stack:
        if plan.group is not None:
            dispatcher = EventDispatcher(consumer_from_url(plan.url, plan.group))

            @dispatcher.handler(topic=plan.topic)
            async def handle(event: Event[OrderBody], rate: Annotated[float, Dependency(get_rate)]) -> None:
                plan.took(event.body.order_id)

            await stack.enter_async_context(dispatcher.lifespan())
        emitter = EventEmitter(producer_from_url(plan.url), timeout=TIMEOUT)
        if plan.emits:
            await stack.enter_async_context(emitter)
        await take_steps_async(
            plan,
            lambda number: emitter.emit(events[number]),
            lambda numbers: emitter.emit_many(events[numbers.start : numbers.stop]),
        )


def _run_blocking(plan: Plan, events: list[Any]) -> None:
    with ExitStack() as stack:
        if plan.group is not None:
            dispatcher = blocking.EventDispatcher(consumer_from_url(plan.url, plan.group))

            @dispatcher.handler(topic=plan.topic)
            def handle(event: Event[OrderBody], rate: Annotated[float, Dependency(get_rate)]) -> None:
                plan.took(event.body.order_id)

            stack.enter_context(dispatcher)
        emitter = blocking.EventEmitter(producer_from_url(plan.url), timeout=TIMEOUT)
        if plan.emits:
            stack.enter_context(emitter)
        take_steps(
            plan,
            lambda number: emitter.emit(events[number]),
            lambda numbers: emitter.emit_many(events[numbers.start : numbers.stop]),
        )
