"""Plain handlers in worker threads: what they may call, and what a stop leaves."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

from dispytch import Event, EventBase, EventDispatcher, EventEmitter
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryProducer
from tests.helpers import dispatcher_on, handle

pytestmark = pytest.mark.anyio


class Tick(EventBase):
    __topic__ = "ticks"
    n: int


class Echo(EventBase):
    __topic__ = "echoes"
    n: int


async def test_a_plain_handler_may_call_into_the_loop() -> None:
    broker = MemoryBroker()
    dispatcher, emitter = EventDispatcher(MemoryConsumer(broker)), EventEmitter(MemoryProducer(broker))
    echoes: list[int] = []

    @dispatcher.handler(Tick)
    def handle(event: Event[Tick]) -> None:
        anyio.from_thread.run(emitter.emit, Echo(n=event.body.n))

    @dispatcher.handler(Echo)
    async def collect(event: Event[Echo]) -> None:
        echoes.append(event.body.n)

    async with dispatcher.lifespan():
        await emitter.emit_many([Tick(n=n) for n in range(50)])
        await dispatcher.idle()
    assert sorted(echoes) == list(range(50))


async def test_threads_are_as_many_as_are_needed_at_once() -> None:
    broker = MemoryBroker()
    dispatcher = EventDispatcher(MemoryConsumer(broker), concurrency=8)
    together, names = threading.Barrier(3), set[str]()

    @dispatcher.handler(Tick)
    def handle(event: Event[Tick]) -> None:
        names.add(threading.current_thread().name + str(threading.get_ident()))
        together.wait(10)

    async with dispatcher.lifespan(), EventEmitter(MemoryProducer(broker)) as emitter:
        for _ in range(5):
            await emitter.emit_many([Tick(n=n) for n in range(3)])
            await dispatcher.idle()
    assert len(names) == 3
    assert dispatcher.health().failed == 0


async def test_what_waits_for_a_thread_at_the_end_of_the_drain_is_not_begun() -> None:
    broker = MemoryBroker()
    dispatcher = EventDispatcher(MemoryConsumer(broker), concurrency=1, drain_timeout=0.1)
    begun, go_on, begins = list[str](), threading.Event(), anyio.Event()

    def hang(event: Event[Tick]) -> None:
        begun.append(threading.current_thread().name)
        if len(begun) == 1:
            anyio.from_thread.run_sync(begins.set)
            go_on.wait(10)

    def other(event: Event[Tick]) -> None:
        hang(event)

    dispatcher.handler(Tick)(hang)
    dispatcher.handler(Tick)(other)
    async with EventEmitter(MemoryProducer(broker)) as emitter:
        await emitter.emit(Tick(n=1))
    async with dispatcher.lifespan():
        await begins.wait()
    go_on.set()
    assert len(begun) == 1  # the event comes again, to both, with the next start
    async with dispatcher.lifespan():
        await dispatcher.idle()
    assert len(begun) == 3


@pytest.mark.parametrize("there", [0, 1, 2])
async def test_without_a_thread_left_those_that_are_there_make_the_calls_or_they_fail(
    monkeypatch: pytest.MonkeyPatch, there: int
) -> None:
    broker = MemoryBroker()
    dispatcher = dispatcher_on(broker, concurrency=4)
    seen, left = list[int](), there
    run_sync = anyio.to_thread.run_sync

    async def run_in_one_of_few(func: Callable[[], Any], **options: Any) -> Any:
        nonlocal left
        if not left:
            raise RuntimeError("can't start new thread")
        left -= 1
        return await run_sync(func, **options)

    @dispatcher.handler(Tick)
    def note(event: Event[Tick]) -> None:
        seen.append(event.body.n)

    monkeypatch.setattr(anyio.to_thread, "run_sync", run_in_one_of_few)
    await handle(dispatcher, *[Tick(n=n) for n in range(5)])
    assert sorted(seen) == (list(range(5)) if there else [])
    assert len(broker.dead_letters) == (0 if there else 5)
