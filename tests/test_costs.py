"""What an event costs in calls of the library's own functions: the same on every machine, so it may fail a test.

Each number is the difference between twice as many events and as many, so that starting and stopping do not count. A
budget is about a tenth above what it was when it was set; whoever makes the library cheaper lowers it.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import anyio
import pytest

import dispytch
from dispytch import (
    Dependency,
    Event,
    EventBase,
    EventDispatcher,
    EventEmitter,
    EventHandlerContext,
    Middleware,
    NextCall,
)
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryProducer

pytestmark = pytest.mark.anyio

SOURCE = str(Path(dispytch.__file__).parent)
GENERATED = "<dispytch"
"""How the files of what was generated for a handler begin."""
EVENTS = 1000
SLACK = 0.5
"""Of a call per event: how many events a batch has depends a little on the time."""


class Order(EventBase):
    __topic__ = "orders"
    order_id: int
    customer: str


class Pass(Middleware):
    async def dispatch(self, ctx: EventHandlerContext, call_next: NextCall) -> Any:
        return await call_next(ctx)


def get_rate() -> float:
    return 1.19


Took = Callable[[int], object]
Register = Callable[[EventDispatcher, Took], None]


def plain(dispatcher: EventDispatcher, took: Took) -> None:
    @dispatcher.handler(Order)
    async def handle(event: Event[Order]) -> None:
        took(event.body.order_id)


def dependency(dispatcher: EventDispatcher, took: Took) -> None:
    @dispatcher.handler(Order)
    async def handle(event: Event[Order], rate: Annotated[float, Dependency(get_rate)]) -> None:
        took(event.body.order_id)


def middleware(dispatcher: EventDispatcher, took: Took) -> None:
    @dispatcher.handler(Order, middlewares=[Pass()])
    async def handle(event: Event[Order]) -> None:
        took(event.body.order_id)


def other_routes(dispatcher: EventDispatcher, took: Took) -> None:
    plain(dispatcher, took)

    async def other(event: Event[Order]) -> None: ...

    for number in range(300):
        dispatcher.handler(topic=f"others.{number}")(other)


@contextmanager
def counting(calls: list[str]) -> Iterator[None]:
    """Notes the calls of the library's functions in this thread; resuming a coroutine is one."""

    def profile(frame: FrameType, what: str, _: object) -> None:
        code = frame.f_code
        if what == "call" and code.co_filename.startswith((SOURCE, GENERATED)):
            calls.append(code.co_qualname)

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(before)


def orders(total: int) -> list[Order]:
    return [Order(order_id=number, customer="c") for number in range(total)]


async def emitting(total: int) -> int:
    calls: list[str] = []
    async with EventEmitter(MemoryProducer(MemoryBroker())) as emitter:
        await emitter.emit(Order(order_id=0, customer="c"))  # what is done once for each class
        events = orders(total)
        with counting(calls):
            await emitter.emit_many(events)
    return len(calls)


def handling(register: Register) -> Callable[[int], Awaitable[int]]:
    async def run(total: int) -> int:
        broker, seen, done, calls = MemoryBroker(), set[int](), anyio.Event(), list[str]()
        async with EventEmitter(MemoryProducer(broker)) as emitter:
            await emitter.emit_many(orders(total))
        dispatcher = EventDispatcher(MemoryConsumer(broker))

        def took(number: int) -> None:
            seen.add(number)
            if len(seen) == total:
                done.set()

        register(dispatcher, took)
        with counting(calls), anyio.fail_after(60):
            async with dispatcher.lifespan():
                await done.wait()
        return len(calls)

    return run


async def per_event(run: Callable[[int], Awaitable[int]]) -> float:
    return (await run(2 * EVENTS) - await run(EVENTS)) / EVENTS


async def test_emit_many() -> None:
    assert await per_event(emitting) <= 10


@pytest.mark.parametrize(("register", "budget"), [(plain, 16), (dependency, 16), (middleware, 27)])
async def test_handling(register: Register, budget: float) -> None:
    assert await per_event(handling(register)) <= budget


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # matching knows no loop, and so many handlers take time
async def test_other_routes_cost_nothing() -> None:
    without = await per_event(handling(plain))
    assert await per_event(handling(other_routes)) <= without + SLACK


async def starting(handlers: int) -> int:
    dispatcher = EventDispatcher(MemoryConsumer(MemoryBroker()))

    async def handle(event: Event[Order]) -> None: ...

    for number in range(handlers):
        dispatcher.handler(topic=f"orders.{number}")(handle)
    calls: list[str] = []
    with counting(calls):
        async with dispatcher.lifespan():
            pass
    return len(calls)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_start_takes_as_long_for_each_of_many_handlers_as_for_each_of_a_few() -> None:
    few, some, many = [await starting(number) for number in (10, 110, 410)]
    assert (many - some) / 300 <= (some - few) / 100 + SLACK
