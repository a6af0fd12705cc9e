"""What is measured, as steps that every contender takes alike: emit, wait, sleep.

A plan's steps are a generator that reads the clock between them; a contender carries each out before it asks for the
next. So each contender only has to know how to emit and to receive.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import anyio
import anyio.to_thread

PATIENCE = 120.0
"""Seconds after which a contender that has not handled everything has lost something."""
BATCH = 1000
"""How many events one call emits, where several are emitted at once."""
TICK = 0.01
"""Seconds between two such calls where a given load is offered."""
LOADED_FOR = 5.0
"""Seconds for which such a load is offered at most."""
Message = tuple[bytes, Sequence[tuple[str, bytes]]]


class Sink(Protocol):
    """What handlers report to."""

    def add(self, number: int) -> bool:
        """Notes that an event was handled; whether what was waited for has come."""

    def missing(self) -> int:
        """How many events have not come."""


class Count:
    """Notes when the first and the last of ``total`` events were handled."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.seen: set[int] = set()
        self.begin = self.end = 0.0

    def add(self, number: int) -> bool:
        if not self.seen:
            self.begin = time.perf_counter()
        self.seen.add(number)
        if len(self.seen) < self.total:
            return False
        if not self.end:
            self.end = time.perf_counter()
        return True

    def missing(self) -> int:
        return len(set(range(self.total)) - self.seen)

    def check(self) -> None:
        """Raises unless exactly the expected events came."""
        if self.seen != set(range(self.total)):
            raise RuntimeError(f"{self.missing()} of {self.total} events did not arrive")


class Arrivals:
    """Notes for every event how long it took from when it was emitted, or due, until its handler was called."""

    def __init__(self) -> None:
        self.sent: dict[int, float] = {}
        self.took: dict[int, float] = {}
        self.target = 0

    def add(self, number: int) -> bool:
        self.took.setdefault(number, time.perf_counter() - self.sent[number])
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

    def wait(self) -> bool:
        return self._event.wait(PATIENCE)


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
                if not plan.done.wait():
                    raise _lost(plan)
                plan.done.clear()


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
                event = anyio.Event()
                plan.done.wake_with(event.set)
                with anyio.move_on_after(PATIENCE):
                    if not plan.done.is_set():
                        await event.wait()
                if not plan.done.is_set():
                    raise _lost(plan)
                plan.done.clear()


def _lost(plan: Plan) -> RuntimeError:
    return RuntimeError(f"{plan.sink.missing()} events did not arrive within {PATIENCE:.0f} s")


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


def through(total: int, found: dict[str, float]) -> Iterator[Step]:
    """Emits while what was emitted is handled."""
    begin = time.perf_counter()
    yield from chunks(total)
    yield Wait()
    found["rate"] = total / (time.perf_counter() - begin)


def latency(arrivals: Arrivals, total: int, found: dict[str, float]) -> Iterator[Step]:
    """One event after the other; then at half of the rate at which this contender can emit and handle.

    Under load an event counts from when it was due, so that a contender that falls behind shows it.
    """
    warm, single = max(1, total // 20), max(1, total // 10)

    def batch(numbers: range, due: float) -> EmitMany:
        arrivals.sent.update(dict.fromkeys(numbers, due))
        return EmitMany(numbers)

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
        yield batch(range(some, min(some + BATCH, stop)), time.perf_counter())
    yield Wait()
    load = (stop - first) / (time.perf_counter() - begin) / 2

    total = min(total, stop + max(int(load * LOADED_FOR), 1))
    first, arrivals.target = stop, total
    begin, ticks = time.perf_counter(), 0
    while first < total:
        due = begin + ticks * TICK
        if (early := due - time.perf_counter()) > 0:
            yield Sleep(early)
        ticks += 1
        next_first = min(stop + max(int(load * ticks * TICK), ticks), total)
        yield batch(range(first, next_first), due)
        first = next_first
    yield Wait()
    found["load"] = load
    for name, numbers in (("alone", alone), ("loaded", range(stop, total))):
        times = sorted(arrivals.took[number] for number in numbers)
        for share in (50, 99, 99.9):
            found[f"{name}_p{share}"] = times[min(int(len(times) * share / 100), len(times) - 1)] * 1e6
