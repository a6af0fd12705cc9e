"""A small world of random programs on the in-process broker, with a ledger of what must never be lost or mixed up.

Members of a few groups come, go, crash and lose their connections while events flow; at the end one calm dispatcher of
each group handles the rest. Seeds make the choices the same in every run, not the interleavings.
"""

from __future__ import annotations

import json
import random
import threading
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, ClassVar, TypeVar

import anyio

from dispytch import EventBase, EventDispatcher, EventEmitter
from dispytch.errors import BrokerUnreachableError, EmitManyError
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryProducer
from dispytch.memory.broker import FaultPoint
from dispytch.testing import Faults
from tests.helpers import InstantClock
from tests.support import PATIENCE

__all__ = ["POISON", "Item", "Ledger", "World"]

POISON = 11
"""Every so manieth event of some kinds never succeeds."""
_ENOUGH = 200
"""More events than these must be confirmed before the coming and going ends."""
_CHANCES: Mapping[FaultPoint, float] = {
    "settle": 0.1,
    "disconnect": 0.02,
    "dead_letter": 0.3,
    "unreachable": 0.02,
    "duplicate": 0.01,
}

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
        self._lock = threading.Lock()
        self._running: set[tuple[Any, ...]] = set()
        self._last: dict[tuple[Any, ...], int] = defaultdict(lambda: -1)
        self._handled: dict[tuple[Any, ...], int] = defaultdict(lambda: -1)
        self._begun: set[tuple[Any, ...]] = set()

    @contextmanager
    def handling(self, life: int | str, group: str, handler: str, *items: Item) -> Iterator[None]:
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
        """A handler has succeeded with events."""
        with self._lock:
            self.done.update((group, handler, item.n) for item in items)

    def handled_in_order(self, life: int | str, group: str, handler: str, item: Item) -> None:
        """The same for one that never comes after a later one of its key, but for its repetitions."""
        lane = (life, handler, item.key)
        with self._lock:
            if item.key is not None and not self.done[group, handler, item.n]:
                if item.n < self._handled[lane]:
                    self.wrong.append(f"{handler} of {group} handled {item.n} after {self._handled[lane]}: {item.key}")
                self._handled[lane] = item.n
            self.done[group, handler, item.n] += 1


class World(ABC):
    """Emitters and members of groups.

    Args:
        seed: Decides on the choices.
        calm: Whether nothing fails, and nobody crashes.
    """

    groups: ClassVar[Sequence[str]]
    """One of each member."""
    handlers: ClassVar[Mapping[str, Sequence[str]]]
    """The names of the handlers of each kind of event."""
    seconds: ClassVar[float]
    """Of coming and going, at least."""
    at_once: ClassVar[int]
    """How many events are emitted at once, at most."""
    some: ClassVar[int]
    """How many kinds a member handles that does not handle all."""
    last_concurrency: ClassVar[int]
    """Of the dispatchers at the end."""

    def __init__(self, seed: int, calm: bool) -> None:
        self.random = random.Random(seed)
        self.calm = calm
        self.faults = Faults(seed)
        self.broker = MemoryBroker(InstantClock(), self.faults)
        self.ledger = Ledger()
        self.over = False
        self._lives = count()
        self.faults.sometimes("lose_reply", 0.02)
        if not calm:
            for point, chance in _CHANCES.items():
                self.faults.sometimes(point, chance)

    @abstractmethod
    def register(self, dispatcher: EventDispatcher, group: str, number: int, kinds: Sequence[str]) -> None:
        """Adds the handlers of these kinds.

        Args:
            number: Of the dispatcher, among all that there have been.
        """

    @abstractmethod
    def check_one(self, group: str, handler: str, item: Item, times: int, letters: int) -> None:
        """What must be true of an event and one of its handlers.

        Args:
            times: How often the handler has succeeded with it.
            letters: How many dead letters the group has of it.
        """

    def life(self, group: str, number: int) -> int | str:
        """Within what the events of a key come in order: gracefully, a key moves from member to member in order."""
        return group if self.calm else number

    @staticmethod
    def on(dispatcher: EventDispatcher, kinds: Sequence[str], kind: str, **options: Any) -> Callable[[FuncT], FuncT]:
        """Registers a handler if the kind is one of these."""
        return dispatcher.handler(topic=f"stress.{kind}", **options) if kind in kinds else lambda func: func

    def dispatcher(self, group: str, concurrency: int, kinds: Sequence[str]) -> EventDispatcher:
        consumer = MemoryConsumer(self.broker, group)
        dispatcher = EventDispatcher(consumer, concurrency=concurrency, max_deliveries=3, drain_timeout=10)
        self.register(dispatcher, group, next(self._lives), kinds)
        return dispatcher

    async def emit(self) -> None:
        numbers, kinds = count(), [*self.handlers]
        async with EventEmitter(MemoryProducer(self.broker)) as emitter:
            while not self.over:
                items = [
                    Item(kind=self.random.choice(kinds), n=n, key=self.random.choice([None, *"abcdef"]))
                    for n, _ in zip(numbers, range(self.random.randint(1, self.at_once)), strict=False)
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
            kinds = [*self.handlers]
            if choices.random() >= 0.6:
                kinds = choices.sample(kinds, self.some)
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
            assert dispatcher.health().unsettled >= 0
            await anyio.sleep(choices.random() * 0.03)

    async def run(self) -> None:
        """Lets it live, and then settles what is left."""
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.emit)
                for number, group in enumerate(self.groups):
                    tasks.start_soon(self.member, group, random.Random(f"{number} {self.random.random()}"))
                await anyio.sleep(self.seconds)
                while len(self.ledger.confirmed) <= _ENOUGH:  # noqa: ASYNC110 - on a busy machine it takes longer
                    await anyio.sleep(0.01)
                self.over = True
        points: tuple[FaultPoint, ...] = ("lose_reply", *_CHANCES)
        for point in points:
            self.faults.sometimes(point, 0)
        for group in dict.fromkeys(self.groups):
            with anyio.fail_after(PATIENCE):
                async with self.dispatcher(group, self.last_concurrency, [*self.handlers]).lifespan() as last:
                    await last.idle()
                    health = last.health()
                    assert (health.unsettled, health.in_flight, health.queued) == (0, 0, 0)

    def check(self) -> None:
        """Fails unless every confirmed event is where it belongs, and the broker holds on to nothing."""
        ledger = self.ledger
        assert ledger.wrong == []
        letters = Counter(
            (record.dead_letter.group, int(json.loads(record.payload or b"")["n"]))
            for record in self.broker.dead_letters
            if record.dead_letter
        )
        assert len(ledger.confirmed) > _ENOUGH
        for group in dict.fromkeys(self.groups):
            for n, item in ledger.confirmed.items():
                for handler in self.handlers[item.kind]:
                    self.check_one(group, handler, item, ledger.done[group, handler, n], letters[group, n])
        for kept in self.broker._groups.values():
            assert not kept.members
            assert not kept._moving
            assert not kept._in_hand
            for cursor in kept.cursors.values():
                assert not cursor.waiting, cursor.topic.name
                assert not cursor.tracker.pending
                assert not cursor.failures
