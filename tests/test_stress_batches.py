"""The same as in test_stress, with handlers of batches and of single events that settle by themselves."""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping, Sequence
from typing import ClassVar

import anyio
import pytest

from dispytch import Event, EventDispatcher
from dispytch.ack import AckBeforeProcessing, ManualAck
from dispytch.middleware import Deduplicate, FixedDelay, MemoryStore, Retry
from tests.stress import POISON, Item, World

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore")]


class Batches(World):
    groups = ("a", "a", "a", "b", "b")
    handlers: ClassVar[Mapping[str, Sequence[str]]] = {
        "bulk": ("bulk",),
        "wide": ("wide",),
        "mixed": ("single", "many"),
        "both": ("one", "two"),
        "picky": ("picky",),
        "first": ("first",),
        "manual": ("manual",),
        "once": ("once",),
    }
    seconds = 0.8
    at_once = 60
    some = 4
    last_concurrency = 3

    def __init__(self, seed: int, calm: bool) -> None:
        super().__init__(seed, calm)
        self.stores = {group: MemoryStore(3600) for group in self.groups}

    def register(self, dispatcher: EventDispatcher, group: str, number: int, kinds: Sequence[str]) -> None:
        life = self.life(group, number)
        chance = random.Random(number)
        ledger = self.ledger

        async def handle(handler: str, items: Sequence[Item], life: int | str = life) -> None:
            with ledger.handling(life, group, handler, *items):
                await anyio.sleep(chance.random() * 0.003)
                ledger.handled(group, handler, *items)

        @self.on(dispatcher, kinds, "bulk", batch=7, batch_wait=0.01)
        async def bulk(items: list[Item]) -> None:
            await handle("bulk", items)

        @self.on(dispatcher, kinds, "wide", batch=5, batch_wait=0.005, concurrency=3)
        async def wide(items: list[Item]) -> None:
            await handle("wide", items)

        @self.on(dispatcher, kinds, "mixed", concurrency=2)
        async def single(item: Item) -> None:
            await handle("single", [item])

        @self.on(dispatcher, kinds, "mixed", batch=6, batch_wait=0.005)
        async def many(items: list[Item]) -> None:
            await handle("many", items)

        @self.on(dispatcher, kinds, "both", batch=4, batch_wait=0)
        async def one(items: list[Item]) -> None:
            await handle("one", items)

        @self.on(
            dispatcher, kinds, "both", batch=30, batch_wait=0.02, middlewares=[Retry(FixedDelay(1, delay_sec=0.001))]
        )
        def two(items: list[Item]) -> None:
            with ledger.handling(life, group, "two", *items):
                ledger.handled(group, "two", *items)

        @self.on(dispatcher, kinds, "picky", batch=9, batch_wait=0.005)
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

        @self.on(dispatcher, kinds, "first", batch=5, batch_wait=0.01, ack_policy=AckBeforeProcessing())
        async def first(items: list[Item]) -> None:
            await handle("first", items, number)  # the broker may give the next of a key to others meanwhile

        @self.on(dispatcher, kinds, "manual", ack_policy=ManualAck())
        def manual(event: Event[Item]) -> None:
            with ledger.handling(number, group, "manual", event.body):
                if event.body.n % POISON == 0:
                    return event.reject("poison")
                if event.meta.attempt == 1 and chance.random() < 0.3:
                    return None  # without a word, which is a failure
                thread = threading.Thread(target=event.ack)
                thread.start()
                thread.join()
                return ledger.handled(group, "manual", event.body)

        @self.on(dispatcher, kinds, "once", middlewares=[Deduplicate(self.stores[group])])
        async def once(item: Item) -> None:
            await handle("once", [item])

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
    world = Batches(seed, calm=False)
    await world.run()
    world.check()
    assert sum(world.faults.taken.values()) > 10


async def test_graceful_stops_repeat_nothing() -> None:
    world = Batches(2, calm=True)
    await world.run()
    world.check()
