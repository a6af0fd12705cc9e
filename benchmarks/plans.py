"""What is measured, as steps that every contender takes alike: emit, wait, sleep.

A plan's steps are a generator that reads the clock between them; a contender carries each out before it asks for the
next. So each contender only has to know how to emit and to receive.
"""

from __future__ import annotations

import gc
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Protocol

import anyio
import anyio.to_thread

PATIENCE = 120.0
"""Seconds, and a thousandth more for each event, after which what has not been handled must be lost."""
BATCH = 1000
"""How many events one call emits, where several are emitted at once."""
TICK = 0.002
"""Seconds between two such calls where a given load is offered; a contender that is slower sends more with each."""
LOADED_FOR = 5.0
"""Seconds for which such a load is offered at most."""
Message = tuple[bytes, Sequence[tuple[str, bytes]]]


class Sink(Protocol):
    """What handlers report to."""

    def add(self, number: int) -> bool:
        """Notes that an event was handled; whether what was waited for has come."""

    def is_done(self) -> bool:
        """Whether it has what is waited for."""

    def missing(self) -> int:
        """How many events have not come."""


class Count:
    """Notes when the first and the last of ``total`` events were handled, in 4 bytes each; from any thread."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.begin = self.end = 0.0
        self._order = array("I")

    def add(self, number: int) -> bool:
        order = self._order
        if not order:
            self.begin = time.perf_counter()
        order.append(number)
        if len(order) < self.total:
            return False
        now = time.perf_counter()
        if self.missing():  # some came twice
            return False
        self.end = self.end or now
        return True

    def is_done(self) -> bool:
        return self.end > 0

    def missing(self) -> int:
        seen = bytearray(self.total)
        for number in self._order:
            seen[number] = 1
        return self.total - sum(seen)

    def check(self) -> None:
        """Raises unless exactly the expected events came."""
        if missing := self.missing():
            raise RuntimeError(f"{missing} of {self.total} events did not arrive")


class Arrivals:
    """Notes for every event how long it took from when it was emitted, or due, until its handler was called."""

    def __init__(self) -> None:
        self.sent: dict[int, float] = {}
        self.took: dict[int, float] = {}
        self.target = 0

    def add(self, number: int) -> bool:
        self.took.setdefault(number, time.perf_counter() - self.sent[number])
        return self.is_done()

    def is_done(self) -> bool:
        return len(self.took) >= self.target

    def missing(self) -> int:
        return self.target - len(self.took)


@dataclass(frozen=True)
class Emit:
    """Emit one event, and wait for its confirmation."""

    number: int


@dataclass(frozen=True)
class EmitMany:
    """Emit several events as the contender does it fastest, and wait for all confirmations."""

    numbers: range


@dataclass(frozen=True)
class Sleep:
    seconds: float


@dataclass(frozen=True)
class Wait:
    """Wait until the sink has what it waits for."""


@dataclass(frozen=True)
class Fill:
    """Have another process publish."""


Step = Emit | EmitMany | Sleep | Wait | Fill


@dataclass
class Plan:
    """One measurement.

    Attributes:
        group: The group to consume as; ``None`` where nothing is consumed.
        emits: Whether events are emitted.
        total: How many events there are, numbered from 0.
        steps: What to do, once the consumer is ready.
        messages: The events as they are sent, for the raw clients.
        fill: Has another process publish all events.
        done: Set when the sink may have what it waits for, or when the receiver has failed.
        errors: Why it has.
        prefill: Emit all events in this process before the consumer starts: in memory nothing else would do.
    """

    transport: str
    url: str
    topic: str
    group: str | None
    emits: bool
    total: int
    sink: Sink
    steps: Iterator[Step]
    messages: Sequence[Message] = ()
    fill: Callable[[], object] = lambda: None
    prefill: bool = False
    done: Done = field(default_factory=lambda: Done())
    errors: list[BaseException] = field(default_factory=list)

    @property
    def patience(self) -> float:
        return PATIENCE + self.total / 1000

    def check(self) -> None:
        """Raises what ended the receiver, if anything did."""
        if self.errors:
            raise self.errors[0]

    def took(self, number: int) -> None:
        """What a handler does."""
        if self.sink.add(number):
            self.done.set()


class Done:
    """Set by handlers in any thread, and waited for by the thread or the loop that takes the steps."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._wake: Callable[[], object] = self._event.set

    def wake_with(self, wake: Callable[[], object]) -> None:
        self._wake = wake

    def set(self) -> None:
        self._event.set()
        self._wake()

    def clear(self) -> None:
        self._event.clear()

    def is_set(self) -> bool:
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        return self._event.wait(seconds)


def leave_alone() -> None:
    """Has the garbage collector leave alone what there is, imported modules above all, as `dispytch run` does."""
    gc.collect()
    gc.freeze()


def take_steps(plan: Plan, one: Callable[[int], object], many: Callable[[range], object]) -> None:
    """Takes a plan's steps in this thread."""
    for step in plan.steps:
        match step:
            case Emit(number):
                one(number)
            case EmitMany(numbers):
                many(numbers)
            case Sleep(seconds):
                time.sleep(seconds)
            case Fill():
                plan.fill()
            case Wait():
                while not plan.sink.is_done():
                    if not plan.done.wait(plan.patience):
                        raise _lost(plan)
                    plan.done.clear()
                    plan.check()


async def take_steps_async(plan: Plan, one: Callable[[int], Any], many: Callable[[range], Any]) -> None:
    """Takes a plan's steps in this loop, in which the handlers run too."""
    for step in plan.steps:
        match step:
            case Emit(number):
                await one(number)
            case EmitMany(numbers):
                await many(numbers)
            case Sleep(seconds):
                await anyio.sleep(seconds)
            case Fill():
                await anyio.to_thread.run_sync(plan.fill)
            case Wait():
                while not plan.sink.is_done():
                    event = anyio.Event()
                    plan.done.wake_with(event.set)
                    with anyio.move_on_after(plan.patience):
                        if not plan.done.is_set():
                            await event.wait()
                    if not plan.done.is_set():
                        raise _lost(plan)
                    plan.done.clear()
                    plan.check()


def _lost(plan: Plan) -> RuntimeError:
    return RuntimeError(f"{plan.sink.missing()} events did not arrive within {plan.patience:.0f} s")


def chunks(total: int, first: int = 0) -> Iterator[EmitMany]:
    """All events from ``first`` on, in batches."""
    return (EmitMany(range(begin, min(begin + BATCH, total))) for begin in range(first, total, BATCH))


# --- plans' steps; each puts its figures into ``found``


def consuming() -> Iterator[Step]:
    yield Fill()
    yield Wait()


def emitting(total: int, single: bool, found: dict[str, float]) -> Iterator[Step]:
    """The first event opens the connection, and is not measured."""
    yield Emit(0)
    begin = time.perf_counter()
    if single:
        for number in range(1, total):
            yield Emit(number)
    else:
        yield from chunks(total, 1)
    found["rate"] = (total - 1) / (time.perf_counter() - begin)


def through(count: Count, found: dict[str, float]) -> Iterator[Step]:
    """Emits while what was emitted is handled."""
    begin = time.perf_counter()
    yield from chunks(count.total)
    yield Wait()
    found["rate"] = count.total / (count.end - begin)


def latency(arrivals: Arrivals, total: int, found: dict[str, float]) -> Iterator[Step]:
    """One event after the other; then at half of the rate at which this contender can emit and handle.

    Under load an event counts from when it was due, so that a contender that falls behind shows it.
    """
    warm, single = max(1, total // 20), max(1, total // 10)

    def one_by_one(numbers: range) -> Iterator[Step]:
        for number in numbers:
            arrivals.target = len(arrivals.took) + 1
            arrivals.sent[number] = time.perf_counter()
            yield Emit(number)
            yield Wait()

    yield from one_by_one(range(warm))
    alone = range(warm, warm + single)
    yield from one_by_one(alone)

    first = alone.stop
    stop = first + (total - first) // 2
    arrivals.target = stop
    begin = time.perf_counter()
    for some in range(first, stop, BATCH):
        numbers = range(some, min(some + BATCH, stop))
        arrivals.sent.update(dict.fromkeys(numbers, time.perf_counter()))
        yield EmitMany(numbers)
    yield Wait()
    load = (stop - first) / (time.perf_counter() - begin) / 2

    total = min(total, stop + max(int(load * LOADED_FOR), 1))
    first, arrivals.target = stop, total
    begin, a_tick = time.perf_counter(), load * TICK
    while first < total:
        ticks = int((time.perf_counter() - begin) / TICK)
        if (after := min(stop + int(a_tick * ticks), total)) > first:
            numbers = range(first, after)
            arrivals.sent.update((number, begin + TICK * ceil((number + 1 - stop) / a_tick)) for number in numbers)
            yield EmitMany(numbers)
            first = after
        else:
            yield Sleep(max(begin + (ticks + 1) * TICK - time.perf_counter(), 0))
    yield Wait()
    found["load"] = load
    for name, numbers in (("alone", alone), ("loaded", range(stop, total))):
        times = sorted(arrivals.took[number] for number in numbers)
        for share in (50, 99, 99.9):
            found[f"{name}_p{share}"] = times[min(int(len(times) * share / 100), len(times) - 1)] * 1e6
