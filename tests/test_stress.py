"""Random programs whose handlers have one event each: nothing is lost, mixed up, or repeated without a reason."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import ClassVar

import anyio
import anyio.lowlevel
import pytest

from dispytch import Event, EventDispatcher
from tests.stress import POISON, Item, World

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore")]


class Singles(World):
    groups = ("a", "a", "a", "b", "b", "c")
    handlers: ClassVar[Mapping[str, Sequence[str]]] = {
        "inline": ("inline",),
        "slow": ("slow",),
        "limited": ("limited",),
        "pair": ("left", "right"),
        "blocking": ("blocking",),
        "failing": ("failing",),
    }
    seconds = 1.2
    at_once = 40
    some = 3
    last_concurrency = 50

    def register(self, dispatcher: EventDispatcher, group: str, number: int, kinds: Sequence[str]) -> None:
        life = self.life(group, number)
        chance = random.Random(number)

        @contextmanager
        def handling(handler: str, event: Event[Item]) -> Iterator[None]:
            with self.ledger.handling(life, group, handler, event.body):
                yield
                self.ledger.handled_in_order(life, group, handler, event.body)

        @self.on(dispatcher, kinds, "inline")
        async def inline(event: Event[Item]) -> None:
            with handling("inline", event):
                pass

        @self.on(dispatcher, kinds, "slow")
        async def slow(event: Event[Item]) -> None:
            with handling("slow", event):
                await anyio.sleep(chance.random() * 0.005)

        @self.on(dispatcher, kinds, "limited", concurrency=2)
        async def limited(event: Event[Item]) -> None:
            with handling("limited", event):
                await anyio.sleep(chance.random() * 0.002)

        @self.on(dispatcher, kinds, "pair", concurrency=3)
        async def left(event: Event[Item]) -> None:
            with handling("left", event):
                await anyio.lowlevel.checkpoint()

        @self.on(dispatcher, kinds, "pair", concurrency=2)
        async def right(event: Event[Item]) -> None:
            with handling("right", event):
                await anyio.sleep(chance.random() * 0.002)

        @self.on(dispatcher, kinds, "blocking")
        def blocking(event: Event[Item]) -> None:
            with handling("blocking", event):
                time.sleep(0.0005)

        @self.on(dispatcher, kinds, "failing")
        async def failing(event: Event[Item]) -> None:
            with handling("failing", event):
                if chance.random() < 0.5:
                    await anyio.lowlevel.checkpoint()
                if event.body.n % POISON == 0:
                    raise ValueError("never")
                if event.meta.attempt == 1 and chance.random() < 0.3:
                    raise OSError("not now")

    def check_one(self, group: str, handler: str, item: Item, times: int, letters: int) -> None:
        poisoned = item.kind == "failing" and item.n % POISON == 0
        assert times or letters, f"{handler} of {group} lost {item}"
        if self.calm:
            assert (times, letters) == ((0, 1) if poisoned else (1, 0)), f"{handler}: {item}"


@pytest.mark.parametrize("seed", [1, 2])
async def test_nothing_is_lost_whatever_goes_wrong(seed: int) -> None:
    world = Singles(seed, calm=False)
    await world.run()
    world.check()
    assert sum(world.faults.taken.values()) > 10


async def test_graceful_stops_repeat_nothing() -> None:
    world = Singles(3, calm=True)
    await world.run()
    world.check()
