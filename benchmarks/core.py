"""What one thing more costs, on the memory transport: a dependency, a middleware, other routes, waiting, the start.

Both sides of each difference run in one process and take turns, so that a busy machine slows both.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import anyio

from benchmarks import ours
from benchmarks.bodies import OrderBody, order_event
from benchmarks.plans import PATIENCE, Count, chunks
from dispytch import Dependency, Event, EventDispatcher, EventEmitter, Middleware
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryProducer

MEASURES = {
    "sleep": "handler that sleeps 5 ms at concurrency 100: share of 20,000/s",
    "dependency": "one more dependency: us per event",
    "middleware": "one more middleware: us per event",
    "routes": "1,000 other routes: time per event, as a ratio",
    "routes-alone": "1,000 other routes, one event after the other: time per event, as a ratio",
    "import": "import of all names of dispytch, beyond pydantic and anyio: ms",
    "import-model": "the same where a model of pydantic was made before, which loads the rest of it: ms",
    "start": "from the start of Python to the first event handled, in memory: ms",
}
ON_LOOPS = tuple(name for name in MEASURES if not name.startswith("import"))
"""What is measured on each loop."""
_CONCURRENCY = 100
_SLEEP = 0.005
_TURNS = 5
_SEVERAL = 5
"""How many dependencies, or middlewares, the more expensive side has."""

TOPIC = "orders"
Took = Callable[[int], object]
Register = Callable[[EventDispatcher, Took], None]


class Pass(Middleware):
    """Middleware that only calls what is inside it."""

    async def dispatch(self, ctx: Any, call_next: Any) -> Any:
        return await call_next(ctx)


def provider(number: int) -> Callable[[], int]:
    """A provider of its own."""
    return lambda: number


def handler_with(dependencies: int, took: Took) -> Callable[..., Any]:
    """A handler with so many dependencies, which reports each event."""
    namespace: dict[str, Any] = {"Event": Event, "OrderBody": OrderBody, "took": took}
    arguments = ""
    for index in range(dependencies):
        namespace[f"Value{index}"] = Annotated[int, Dependency(provider(index))]
        arguments += f", value{index}: Value{index}"
    text = f"async def handle(event: Event[OrderBody]{arguments}): took(event.body.order_id)"
    exec(text, namespace)  # noqa: S102 - the text above
    handler: Callable[..., Any] = namespace["handle"]
    return handler


async def seconds_of(register: Register, events: list[Any], concurrency: int = _CONCURRENCY) -> float:
    """Seconds from when a dispatcher with all events before it is ready until all are handled."""
    broker = MemoryBroker()
    dispatcher = EventDispatcher(MemoryConsumer(broker), concurrency=concurrency)
    count, done = Count(len(events)), anyio.Event()

    def took(number: int) -> None:
        if count.add(number):
            done.set()

    register(dispatcher, took)
    async with EventEmitter(MemoryProducer(broker)) as emitter:
        for step in chunks(len(events)):
            await emitter.emit_many(events[step.numbers.start : step.numbers.stop])
    async with dispatcher.lifespan():
        begin = time.perf_counter()
        with anyio.fail_after(PATIENCE):
            await done.wait()
        count.check()
        return count.end - min(begin, count.begin)


async def seconds_alone(register: Register, events: list[Any]) -> float:
    """Seconds for events of which each is emitted when the one before has been handled."""
    broker = MemoryBroker()
    dispatcher = EventDispatcher(MemoryConsumer(broker))
    handled = anyio.Event()
    register(dispatcher, lambda _: handled.set())
    async with EventEmitter(MemoryProducer(broker)) as emitter, dispatcher.lifespan():
        begin = time.perf_counter()
        with anyio.fail_after(PATIENCE):
            for event in events:
                handled = anyio.Event()
                await emitter.emit(event)
                await handled.wait()
        return time.perf_counter() - begin


def job(what: str, loop: str, total: int) -> dict[str, Any]:
    """One of the `MEASURES`."""
    if what == "import":
        return {"value": _milliseconds_of(_IMPORT.format(before=""))}
    if what == "import-model":
        return {"value": _milliseconds_of(_IMPORT.format(before="class Any(BaseModel): number: int"))}
    if what == "start":
        on_loop = {"trio": ["trio"], "uvloop": ["asyncio", "uvloop"]}.get(loop, [loop])
        return {"value": _milliseconds_of(_START, *on_loop)}
    value: float = ours.run_on(loop, _measure, what, total)
    return {"value": value}


def _plain(dispatcher: EventDispatcher, took: Took) -> None:
    dispatcher.handler(topic=TOPIC)(handler_with(0, took))


def _dependencies(dispatcher: EventDispatcher, took: Took) -> None:
    dispatcher.handler(topic=TOPIC)(handler_with(_SEVERAL, took))


def _middlewares(dispatcher: EventDispatcher, took: Took) -> None:
    dispatcher.handler(topic=TOPIC, middlewares=[Pass() for _ in range(_SEVERAL)])(handler_with(0, took))


def _routes(dispatcher: EventDispatcher, took: Took) -> None:
    _plain(dispatcher, took)
    add_routes(dispatcher, 1000)


def add_routes(dispatcher: EventDispatcher, number: int) -> None:
    """Handlers of other topics."""

    async def handle(event: Event[OrderBody]) -> None: ...

    for index in range(number):
        dispatcher.handler(topic=f"others.{index}")(handle)


def _sleeping(dispatcher: EventDispatcher, took: Took) -> None:
    @dispatcher.handler(topic=TOPIC)
    async def handle(event: Event[OrderBody]) -> None:
        await anyio.sleep(_SLEEP)
        took(event.body.order_id)


async def _measure(what: str, total: int) -> float:
    make = order_event(TOPIC)
    events = [make(number) for number in range(total)]
    if what == "sleep":
        return total / await seconds_of(_sleeping, events) / (_CONCURRENCY / _SLEEP)
    more = {"dependency": _dependencies, "middleware": _middlewares}.get(what, _routes)
    if what == "routes-alone":
        events = events[: max(total // 10, 1)]
    times: dict[Register, list[float]] = {_plain: [], more: []}
    for _ in range(_TURNS):
        for register, found in times.items():
            found.append(await (seconds_alone if what == "routes-alone" else seconds_of)(register, events))
    if what.startswith("routes"):
        return statistics.median(times[more]) / statistics.median(times[_plain])
    return (statistics.median(times[more]) - statistics.median(times[_plain])) / total / _SEVERAL * 1e6


_IMPORT = """
import time, anyio
from pydantic import BaseModel, TypeAdapter
{before}
begin = time.perf_counter()
from dispytch import *
print(time.perf_counter() - begin)
"""
_START = """
import anyio, sys, time
from dispytch import Event, EventBase, EventDispatcher, EventEmitter
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryProducer

class Order(EventBase):
    __topic__ = "orders"
    number: int

broker = MemoryBroker()
dispatcher = EventDispatcher(MemoryConsumer(broker))

@dispatcher.handler(Order)
async def handle(event: Event[Order]):
    print(time.time() - float(sys.argv[1]))

async def main():
    async with dispatcher.lifespan(), EventEmitter(MemoryProducer(broker)) as emitter:
        await emitter.emit(Order(number=1))
        await dispatcher.idle()

anyio.run(main, backend=sys.argv[2], backend_options={"use_uvloop": True} if sys.argv[3:] else {})
"""


def _milliseconds_of(program: str, *arguments: str) -> float:
    """What a program prints, in seconds, in a process of its own; the median, its modules being compiled already."""
    found: list[float] = []
    with TemporaryDirectory() as folder:
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        variables["PYTHONPYCACHEPREFIX"] = folder
        for _ in range(_TURNS + 1):
            command = [sys.executable, "-c", program, str(time.time()), *arguments]
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=variables)  # noqa: S603 - our own
            found.append(float(done.stdout))
    return statistics.median(found[1:]) * 1e3
