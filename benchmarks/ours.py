"""The library as its documentation shows it: a dispatcher with a trivial handler, an emitter, on every loop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import anyio
import anyio.to_thread

from benchmarks.bodies import OrderBody, order_event
from benchmarks.raw import Count, Headers
from dispytch import Event, EventDispatcher, EventEmitter, consumer_from_url, producer_from_url
from dispytch import sync as blocking

_BATCH = 1000


def messages_of(url: str, topic: str, count: int) -> list[tuple[bytes, Headers]]:
    """The bytes and headers that the emitter would send, for the raw clients."""
    factory = EventEmitter(producer_from_url(url))._factory
    make = order_event(topic)
    return [(message.payload or b"", message.headers) for message in map(factory.make, map(make, range(count)))]


def run_on(loop: str, main: Callable[..., Any], *args: Any) -> Any:
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


def consume(loop: str, url: str, topic: str, group: str, total: int, fill: Callable[[], None]) -> float:
    """Seconds from the first to the last handled event."""
    count = Count(total)
    done = threading.Event()
    seconds: list[float] = []

    async def handle(event: Event[OrderBody]) -> None:
        if count.add(event.body.order_id):
            seconds.append(count.seconds)
            done.set()

    if loop == "blocking":
        background = blocking.EventDispatcher(consumer_from_url(url, group))
        background.handler(topic=topic)(handle)
        with background:
            fill()
            done.wait()
        return seconds[0]

    async def main() -> None:
        dispatcher = EventDispatcher(consumer_from_url(url, group))
        dispatcher.handler(topic=topic)(handle)
        async with dispatcher.lifespan():
            await anyio.to_thread.run_sync(fill)
            while not done.is_set():  # noqa: ASYNC110 - costs nothing against what is measured
                await anyio.sleep(0.02)

    run_on(loop, main)
    return seconds[0]


def emit_many(loop: str, url: str, topic: str, total: int) -> float:
    """Seconds for ``total`` events in batches, each confirmed."""
    make = order_event(topic)
    events = [make(number) for number in range(total)]
    if loop == "blocking":
        with blocking.EventEmitter(producer_from_url(url), timeout=120) as emitter_of_thread:
            emitter_of_thread.emit(make(0))
            begin = time.perf_counter()
            for first in range(0, total, _BATCH):
                emitter_of_thread.emit_many(events[first : first + _BATCH])
            return time.perf_counter() - begin

    async def main() -> float:
        async with EventEmitter(producer_from_url(url), timeout=120) as emitter:
            await emitter.emit(make(0))
            begin = time.perf_counter()
            for first in range(0, total, _BATCH):
                await emitter.emit_many(events[first : first + _BATCH])
            return time.perf_counter() - begin

    seconds: float = run_on(loop, main)
    return seconds
