"""Which item may run next: in order within its lane, within the limits of its handlers, and fair to all."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from itertools import count
from operator import attrgetter
from typing import Any, Generic, Protocol, TypeVar

__all__ = ["Item", "Lanes", "Limit"]

_ranks = count()
_rank = attrgetter("rank")


class Limit:
    """How many items of one handler may run at once. A limit belongs to one ``Lanes``, which alone changes it."""

    __slots__ = ("capacity", "parked", "rank", "running")

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"a limit of {capacity} lets nothing run")
        self.capacity: int = capacity
        self.rank: int = next(_ranks)
        # Slots taken, by items that run and by items that hold them while parked at a limit of a higher rank.
        self.running: int = 0
        # If any item is parked here, all slots are taken: one that is freed goes to the first of them directly.
        self.parked: deque[Any] = deque()


class Item(Protocol):
    """What can be queued; neither attribute may change before ``Lanes.done``, save after ``Lanes.free_limits``."""

    @property
    def lane(self) -> Hashable | None:
        """Items of a lane run one at a time, in order; those without one (None) run in any order."""

    @property
    def limits(self) -> Sequence[Limit]:
        """The limits that the item counts towards, if any."""


ItemT = TypeVar("ItemT", bound=Item)


class Lanes(Generic[ItemT]):
    """A queue of items that yields those that may run now.

    Of a lane, one item runs at a time, in the order they were pushed. An item runs when it has a slot of each of its
    limits; until then it waits at one that is full, first come, first served, and holds back only its own lane and
    later items with a limit in common. Otherwise items run in the order in which their lanes let them.

    Every item is popped eventually, if those that run finish and whatever is pushed meanwhile: an item keeps the slots
    that it has got while it waits for others. All items take slots in the same order (that of the ranks of the
    limits), so none wait for each other in a circle.
    """

    __slots__ = ("_full", "_granted", "_lanes", "_ready", "_size")

    def __init__(self) -> None:
        self._size = 0
        # The busy lanes: one item of each runs, is granted, ready or parked; the others wait here.
        self._lanes: dict[Hashable, deque[ItemT] | None] = {}
        # Items whose lane is theirs, and whose limits are to be taken.
        self._ready: deque[ItemT] = deque()
        # Items that were parked and have all their limits by now; they have been ready before all in ``_ready``.
        self._granted: deque[ItemT] = deque()
        # The limits at which items are parked (a dict, for its order).
        self._full: dict[Limit, None] = {}

    def push(self, item: ItemT) -> None:
        """Queue an item."""
        self._size += 1
        lane = item.lane
        if lane is not None:
            if lane in self._lanes:
                waiting = self._lanes[lane]
                if waiting is None:
                    self._lanes[lane] = deque((item,))
                else:
                    waiting.append(item)
                return
            self._lanes[lane] = None
        self._ready.append(item)

    def pop(self) -> ItemT | None:
        """Return the next item that may run now, which takes its lane and its limits; None if there is none."""
        if self._granted:
            self._size -= 1
            return self._granted.popleft()
        while self._ready:
            item = self._ready.popleft()
            if not item.limits or self._take(item):
                self._size -= 1
                return item
        return None

    def done(self, item: ItemT) -> None:
        """Free the lane and the limits of an item that was popped.

        Call it exactly once for each; for those that have neither there is nothing to do.
        """
        lane = item.lane
        if lane is not None:
            waiting = self._lanes[lane]
            if waiting:
                self._ready.append(waiting.popleft())
            else:
                del self._lanes[lane]
        self.free_limits(item)

    def free_limits(self, item: ItemT) -> None:
        """Free the limits of an item that was popped, but not its lane; the item must have none from then on."""
        if item.limits:
            for limit in _ordered(item.limits):
                self._free(limit)

    def drain(self) -> list[ItemT]:
        """Remove and return all items that are queued and do not run, those of a lane in order."""
        for item in self._granted:
            for limit in _ordered(item.limits):
                limit.running -= 1
        drained = [*self._granted, *self._ready]
        for full in self._full:
            for item in full.parked:
                for limit in _ordered(item.limits):
                    if limit.rank < full.rank:
                        limit.running -= 1
            drained += full.parked
            full.parked.clear()
        for item in drained[:]:
            if item.lane is not None:
                drained += self._lanes.pop(item.lane) or ()
        for lane, waiting in self._lanes.items():  # those with an item that runs
            drained += waiting or ()
            self._lanes[lane] = None
        self._granted.clear()
        self._ready.clear()
        self._full.clear()
        self._size = 0
        return drained

    def __len__(self) -> int:
        """How many items are queued and do not run."""
        return self._size

    @property
    def ready(self) -> bool:
        """Whether ``pop`` may return an item; if False, it returns None."""
        return bool(self._ready or self._granted)

    def _take(self, item: ItemT, after: int = -1) -> bool:
        """Take the limits of ranks greater than ``after``, or park the item at the first that is full."""
        for limit in _ordered(item.limits):
            if limit.rank <= after:
                continue
            if limit.running == limit.capacity:
                limit.parked.append(item)
                self._full[limit] = None
                return False
            limit.running += 1
        return True

    def _free(self, limit: Limit) -> None:
        """Free a slot, or hand it to the first item that is parked there."""
        if not limit.parked:
            limit.running -= 1
            return
        item = limit.parked.popleft()
        if not limit.parked:
            del self._full[limit]
        if self._take(item, limit.rank):
            self._granted.append(item)


def _ordered(limits: Sequence[Limit]) -> Iterable[Limit]:
    """Return the limits, each once, in the order in which all items take them."""
    return limits if len(limits) < 2 else sorted(set(limits), key=_rank)
