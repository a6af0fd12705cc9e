"""A small world of random programs on the in-process broker, with a ledger of what must never be lost or mixed up.

Members of three groups come, go, crash and lose their connections while events flow; at the end one calm dispatcher of
each group handles the rest. Seeds make the choices the same in every run, not the interleavings.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import pytest

from dispytch import Event, EventBase, EventDispatcher, EventEmitter
from dispytch.errors import BrokerUnreachableError, EmitManyError
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryProducer
from dispytch.memory.broker import FaultPoint
from dispytch.testing import Faults
from tests.helpers import InstantClock

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore")]

GROUPS = ("a", "a", "a", "b", "b", "c")
KINDS = ("inline", "slow", "limited", "pair", "blocking", "failing")
HANDLERS = {"inline": ("inline",), "slow": ("slow",), "limited": ("limited",), "pair": ("left", "right")} | {
    "blocking": ("blocking",),
    "failing": ("failing",),
}
CHAOS = 1.2
"""Seconds of coming and going."""
POISON = 11
"""Every so manieth event of the kind ``failing`` always fails."""


FuncT = TypeVar("FuncT", bound=Callable[..., Any])


class Item(EventBase):
    __topic__ = "stress.{kind}"
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
        self._running: set[tuple[Any, ...]] = set()
        self._last: dict[tuple[Any, ...], int] = defaultdict(lambda: -1)
        self._handled: dict[tuple[Any, ...], int] = defaultdict(lambda: -1)
        self._begun: set[tuple[Any, ...]] = set()

    @contextmanager
    def handling(self, life: int | str, group: str, handler: str, item: Item) -> Iterator[None]:
        lane = (life, handler, item.key)
        if item.key is not None:
            if lane in self._running:
                self.wrong.append(f"{handler} of {group} has two events of key {item.key} at once: {item.n}")
            self._running.add(lane)
            if (lane, item.n) not in self._begun:
                self._begun.add((lane, item.n))
                if item.n < self._last[lane]:
                    self.wrong.append(f"{handler} of {group} began {item.n} after {self._last[lane]}, key {item.key}")
                self._last[lane] = item.n
        try:
            yield
            if item.key is not None and not self.done[group, handler, item.n]:
                if item.n < self._handled[lane]:
                    self.wrong.append(f"{handler} of {group} handled {item.n} after {self._handled[lane]}: {item.key}")
                self._handled[lane] = item.n
            self.done[group, handler, item.n] += 1
        finally:
            self._running.discard(lane)


class World:
    def __init__(self, seed: int, calm: bool) -> None:
        self.random = random.Random(seed)
        self.calm = calm
        self.faults = Faults(seed)
        self.broker = MemoryBroker(InstantClock(), self.faults)
        self.ledger = Ledger()
        self.lives = count()
        self.over = False
        self.faults.sometimes("lose_reply", 0.02)
        if not calm:
            self.faults.sometimes("settle", 0.1)
            self.faults.sometimes("disconnect", 0.02)
            self.faults.sometimes("dead_letter", 0.3)
            self.faults.sometimes("unreachable", 0.02)
            self.faults.sometimes("duplicate", 0.01)

    def dispatcher(self, group: str, concurrency: int, kinds: tuple[str, ...]) -> EventDispatcher:
        dispatcher = EventDispatcher(
            MemoryConsumer(self.broker, group), concurrency=concurrency, max_deliveries=3, drain_timeout=10
        )
        number = next(self.lives)
        life = group if self.calm else number  # gracefully, a key moves from member to member in order
        chance = random.Random(number)

        def on(kind: str, **options: Any) -> Callable[[FuncT], FuncT]:
            return dispatcher.handler(topic=f"stress.{kind}", **options) if kind in kinds else lambda func: func

        def handling(handler: str, event: Event[Item]) -> Any:
            return self.ledger.handling(life, group, handler, event.body)

        @on("inline")
        async def inline(event: Event[Item]) -> None:
            with handling("inline", event):
                pass

        @on("slow")
        async def slow(event: Event[Item]) -> None:
            with handling("slow", event):
                await anyio.sleep(chance.random() * 0.005)

        @on("limited", concurrency=2)
        async def limited(event: Event[Item]) -> None:
            with handling("limited", event):
                await anyio.sleep(chance.random() * 0.002)

        @on("pair", concurrency=3)
        async def left(event: Event[Item]) -> None:
            with handling("left", event):
                await anyio.lowlevel.checkpoint()

        @on("pair", concurrency=2)
        async def right(event: Event[Item]) -> None:
            with handling("right", event):
                await anyio.sleep(chance.random() * 0.002)

        @on("blocking")
        def blocking(event: Event[Item]) -> None:
            with handling("blocking", event):
                time.sleep(0.0005)

        @on("failing")
        async def failing(event: Event[Item]) -> None:
            with handling("failing", event):
                if chance.random() < 0.5:
                    await anyio.lowlevel.checkpoint()
                if event.body.n % POISON == 0:
                    raise ValueError("never")
                if event.meta.attempt == 1 and chance.random() < 0.3:
                    raise OSError("not now")

        return dispatcher

    async def emit(self) -> None:
        numbers = count()
        async with EventEmitter(MemoryProducer(self.broker)) as emitter:
            while not self.over:
                items = [
                    Item(kind=self.random.choice(KINDS), n=n, key=self.random.choice([None, *"abcdef"]))
                    for n, _ in zip(numbers, range(self.random.randint(1, 40)), strict=False)
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
            kinds = KINDS if choices.random() < 0.6 else tuple(choices.sample(KINDS, 3))
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
            await anyio.sleep(choices.random() * 0.03)

    async def run(self) -> None:
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.emit)
                for number, group in enumerate(GROUPS):
                    choices = random.Random(f"{number} {self.random.random()}")
                    tasks.start_soon(self.member, group, choices)
                await anyio.sleep(CHAOS)
                while len(self.ledger.confirmed) <= 200:  # noqa: ASYNC110 - on a machine that is busy it takes longer
                    await anyio.sleep(0.01)
                self.over = True
        points: tuple[FaultPoint, ...] = (
            "settle",
            "disconnect",
            "dead_letter",
            "unreachable",
            "duplicate",
            "lose_reply",
        )
        for point in points:
            self.faults.sometimes(point, 0)
        for group in dict.fromkeys(GROUPS):
            with anyio.fail_after(20):
                async with self.dispatcher(group, 50, KINDS).lifespan() as last:
                    await last.idle()

    def check(self) -> None:
        ledger = self.ledger
        assert ledger.wrong == []
        letters = Counter(
            (record.topic.split(".")[2], int(json.loads(record.payload or b"")["n"]))
            for record in self.broker.dead_letters
        )
        assert len(ledger.confirmed) > 200
        for group in dict.fromkeys(GROUPS):
            for n, item in ledger.confirmed.items():
                for handler in HANDLERS[item.kind]:
                    times = ledger.done[group, handler, n]
                    poisoned = item.kind == "failing" and n % POISON == 0
                    assert times or letters[group, n], f"{handler} of {group} lost {item}"
                    if self.calm:
                        assert (times, letters[group, n]) == ((0, 1) if poisoned else (1, 0)), f"{handler}: {item}"
        for kept in self.broker._groups.values():
            assert not kept.members
            assert not kept._moving
            assert not kept._in_hand
            for cursor in kept.cursors.values():
                assert not cursor.waiting, cursor.topic.name
                assert not cursor.tracker.pending
                assert not cursor.failures


@pytest.mark.parametrize("seed", [1, 2])
async def test_nothing_is_lost_whatever_goes_wrong(seed: int) -> None:
    world = World(seed, calm=False)
    await world.run()
    world.check()
    assert sum(world.faults.taken.values()) > 10


async def test_graceful_stops_repeat_nothing() -> None:
    world = World(3, calm=True)
    await world.run()
    world.check()
