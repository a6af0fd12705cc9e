"""The same small world as in test_stress, with handlers of batches and of single events that settle by themselves."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import pytest

from dispytch import Event, EventBase, EventDispatcher, EventEmitter
from dispytch.ack import AckBeforeProcessing, ManualAck
from dispytch.errors import BrokerUnreachableError, EmitManyError
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryProducer
from dispytch.memory.broker import FaultPoint
from dispytch.middleware import Deduplicate, FixedDelay, MemoryStore, Retry
from dispytch.testing import Faults
from tests.helpers import InstantClock

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore")]

GROUPS = ("a", "a", "a", "b", "b")
HANDLERS = {
    "bulk": ("bulk",),
    "wide": ("wide",),
    "mixed": ("single", "many"),
    "both": ("one", "two"),
    "picky": ("picky",),
    "first": ("first",),
    "manual": ("manual",),
    "once": ("once",),
}
KINDS = tuple(HANDLERS)
CHAOS = 0.8
"""Seconds of coming and going."""
POISON = 11
"""Every so manieth event of the kinds ``picky`` and ``manual`` is rejected."""
POINTS: tuple[FaultPoint, ...] = ("settle", "disconnect", "dead_letter", "unreachable", "duplicate", "lose_reply")

FuncT = TypeVar("FuncT", bound=Callable[..., Any])


class Item(EventBase):
    __topic__ = "batches.{kind}"
    __key__ = "{key}"
    kind: str
    n: int
    key: str | None = None


class Ledger:
    """What was confirmed, and what every handler of every group did with it."""

    def __init__(self) -> None:
        self.confirmed: dict[int, Item] = {}
        self.done: Counter[tuple[str, str, int]] = Counter()
        self.wrong: list[str] = []
        self._lock = threading.Lock()
        self._running: set[tuple[Any, ...]] = set()
        self._last: dict[tuple[Any, ...], int] = defaultdict(lambda: -1)
        self._begun: set[tuple[Any, ...]] = set()

    @contextmanager
    def handling(self, life: int | str, group: str, handler: str, items: Sequence[Item]) -> Iterator[None]:
        """A call of a handler: no other call has events of the same keys meanwhile, and they begin in order."""
        lanes = {(life, handler, item.key) for item in items if item.key is not None}
        with self._lock:
            if busy := lanes & self._running:
                self.wrong.append(f"{handler} of {group} has events of one key in two calls: {busy}")
            self._running |= lanes
            for item in items:
                lane = (life, handler, item.key)
                if item.key is None or (lane, item.n) in self._begun:
                    continue
                self._begun.add((lane, item.n))
                if item.n < self._last[lane]:
                    self.wrong.append(f"{handler} of {group} began {item.n} after {self._last[lane]}: {item.key}")
                self._last[lane] = item.n
        try:
            yield
        finally:
            with self._lock:
                self._running -= lanes

    def handled(self, group: str, handler: str, *items: Item) -> None:
        with self._lock:
            self.done.update((group, handler, item.n) for item in items)


class World:
    def __init__(self, seed: int, calm: bool) -> None:
        self.random = random.Random(seed)
        self.calm = calm
        self.faults = Faults(seed)
        self.broker = MemoryBroker(InstantClock(), self.faults)
        self.ledger = Ledger()
        self.stores = {group: MemoryStore(3600) for group in GROUPS}
        self.lives = count()
        self.over = False
        self.faults.sometimes("lose_reply", 0.02)
        if not calm:
            for point, chance in zip(POINTS, (0.1, 0.02, 0.3, 0.02, 0.01), strict=False):
                self.faults.sometimes(point, chance)

    def dispatcher(self, group: str, concurrency: int, kinds: tuple[str, ...]) -> EventDispatcher:
        dispatcher = EventDispatcher(
            MemoryConsumer(self.broker, group), concurrency=concurrency, max_deliveries=3, drain_timeout=10
        )
        number = next(self.lives)
        life = group if self.calm else number  # gracefully, a key moves from member to member in order
        chance = random.Random(number)
        ledger = self.ledger

        def on(kind: str, **options: Any) -> Callable[[FuncT], FuncT]:
            return dispatcher.handler(topic=f"batches.{kind}", **options) if kind in kinds else lambda func: func

        async def handle(handler: str, items: Sequence[Item], life: int | str = life) -> None:
            with ledger.handling(life, group, handler, items):
                await anyio.sleep(chance.random() * 0.003)
                ledger.handled(group, handler, *items)

        @on("bulk", batch=7, batch_wait=0.01)
        async def bulk(items: list[Item]) -> None:
            await handle("bulk", items)

        @on("wide", batch=5, batch_wait=0.005, concurrency=3)
        async def wide(items: list[Item]) -> None:
            await handle("wide", items)

        @on("mixed", concurrency=2)
        async def single(item: Item) -> None:
            await handle("single", [item])

        @on("mixed", batch=6, batch_wait=0.005)
        async def many(items: list[Item]) -> None:
            await handle("many", items)

        @on("both", batch=4, batch_wait=0)
        async def one(items: list[Item]) -> None:
            await handle("one", items)

        @on("both", batch=30, batch_wait=0.02, middlewares=[Retry(FixedDelay(1, delay_sec=0.001))])
        def two(items: list[Item]) -> None:
            with ledger.handling(life, group, "two", items):
                ledger.handled(group, "two", *items)

        @on("picky", batch=9, batch_wait=0.005)
        async def picky(events: list[Event[Item]]) -> None:
            rest: list[Item] = []
            for event in events:
                if event.body.n % POISON == 0:
                    event.reject("poison")
                elif event.meta.attempt == 1 and chance.random() < 0.2:
                    event.nack(0.001)
                elif chance.random() < 0.3:
                    event.ack()
                    ledger.handled(group, "picky", event.body)
                else:
                    rest.append(event.body)
            await anyio.sleep(chance.random() * 0.003)
            if chance.random() < 0.1 and all(event.meta.attempt == 1 for event in events):
                raise OSError("not now")
            ledger.handled(group, "picky", *rest)

        @on("first", batch=5, batch_wait=0.01, ack_policy=AckBeforeProcessing())
        async def first(items: list[Item]) -> None:
            await handle("first", items, number)  # the broker may give the next of a key to others meanwhile

        @on("manual", ack_policy=ManualAck())
        def manual(event: Event[Item]) -> None:
            with ledger.handling(number, group, "manual", [event.body]):
                if event.body.n % POISON == 0:
                    return event.reject("poison")
                if event.meta.attempt == 1 and chance.random() < 0.3:
                    return None  # without a word, which is a failure
                thread = threading.Thread(target=event.ack)
                thread.start()
                thread.join()
                return ledger.handled(group, "manual", event.body)

        @on("once", middlewares=[Deduplicate(self.stores[group])])
        async def once(item: Item) -> None:
            await handle("once", [item])

        return dispatcher

    async def emit(self) -> None:
        numbers = count()
        async with EventEmitter(MemoryProducer(self.broker)) as emitter:
            while not self.over:
                items = [
                    Item(kind=self.random.choice(KINDS), n=n, key=self.random.choice([None, *"abcdef"]))
                    for n, _ in zip(numbers, range(self.random.randint(1, 60)), strict=False)
                ]
                try:
                    results: Any = await emitter.emit_many(items)
                except EmitManyError as error:
                    results = error.results
                for item, result in zip(items, results, strict=True):
                    if result is not None and not isinstance(result, Exception):
                        self.ledger.confirmed[item.n] = item
                await anyio.sleep(self.random.random() * 0.03)

    async def member(self, group: str, choices: random.Random) -> None:
        """One program after another, each with an end of its own."""
        while not self.over:
            kinds = KINDS if choices.random() < 0.6 else tuple(choices.sample(KINDS, 4))
            dispatcher = self.dispatcher(group, choices.randint(1, 12), kinds)
            crashes = not self.calm and choices.random() < 0.4
            seconds = choices.random() * 0.2
            try:
                if crashes:
                    with anyio.move_on_after(seconds):
                        await dispatcher.start()
                else:
                    async with dispatcher.lifespan():
                        await anyio.sleep(seconds)
            except BrokerUnreachableError:
                pass
            health = dispatcher.health()
            assert health.unsettled >= 0
            await anyio.sleep(choices.random() * 0.03)

    async def run(self) -> None:
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.emit)
                for number, group in enumerate(GROUPS):
                    tasks.start_soon(self.member, group, random.Random(f"{number} {self.random.random()}"))
                await anyio.sleep(CHAOS)
                while len(self.ledger.confirmed) <= 200:  # noqa: ASYNC110 - on a machine that is busy it takes longer
                    await anyio.sleep(0.01)
                self.over = True
        for point in POINTS:
            self.faults.sometimes(point, 0)
        for group in dict.fromkeys(GROUPS):
            with anyio.fail_after(20):
                async with self.dispatcher(group, 3, KINDS).lifespan() as last:
                    await last.idle()
                    health = last.health()
                    assert (health.unsettled, health.in_flight, health.queued) == (0, 0, 0)

    def check(self) -> None:
        ledger = self.ledger
        assert ledger.wrong == []
        letters = Counter(
            (record.dead_letter.group, int(json.loads(record.payload or b"")["n"]))
            for record in self.broker.dead_letters
            if record.dead_letter
        )
        assert len(ledger.confirmed) > 200
        for group in dict.fromkeys(GROUPS):
            for n, item in ledger.confirmed.items():
                for handler in HANDLERS[item.kind]:
                    self.check_one(group, handler, item, ledger.done[group, handler, n], letters[group, n])
        for kept in self.broker._groups.values():
            assert not kept.members
            for cursor in kept.cursors.values():
                assert not cursor.waiting, cursor.topic.name
                assert not cursor.tracker.pending
                assert not cursor.failures

    def check_one(self, group: str, handler: str, item: Item, times: int, letters: int) -> None:
        poisoned = item.kind in ("picky", "manual") and item.n % POISON == 0
        what = f"{handler} of {group} had {item} {times} times, dead letters: {letters}"
        if item.kind == "once":
            assert times == 1 or not self.calm, what
        if item.kind != "first":
            assert times or letters, what
        if self.calm and item.kind == "both":  # a stop may come between the two
            assert (times >= 1, letters) == (True, 0), what
        elif self.calm:
            assert (times, letters) == ((0, 1) if poisoned else (1, 0)), what
        else:
            assert letters or not poisoned, what


@pytest.mark.parametrize("seed", [1])
async def test_nothing_is_lost_whatever_goes_wrong(seed: int) -> None:
    world = World(seed, calm=False)
    await world.run()
    world.check()
    assert sum(world.faults.taken.values()) > 10


async def test_graceful_stops_repeat_nothing() -> None:
    world = World(2, calm=True)
    await world.run()
    world.check()
