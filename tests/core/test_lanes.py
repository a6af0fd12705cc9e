"""The lanes, against a naive model that checks every step."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import cycle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dispytch._core.lanes import Lanes, Limit
from tests.support import examples


@dataclass(eq=False)
class Work:
    name: str
    lane: Hashable | None = None
    limits: Sequence[Limit] = ()


def pushed(*items: Work) -> Lanes[Work]:
    lanes: Lanes[Work] = Lanes()
    for item in items:
        lanes.push(item)
    return lanes


def pop_all(lanes: Lanes[Work]) -> list[Work]:
    return list(iter(lanes.pop, None))


def names(items: Sequence[Work]) -> str:
    return "".join(item.name for item in items)


def assert_empty(lanes: Lanes[Work], limits: Sequence[Limit]) -> None:
    assert len(lanes) == 0
    assert not lanes.ready
    assert lanes.pop() is None
    assert not lanes._lanes
    assert not lanes._full
    assert [(limit.running, len(limit.parked)) for limit in limits] == [(0, 0)] * len(limits)


def test_items_without_lane_or_limits_are_a_queue() -> None:
    lanes = pushed(Work("a"), Work("b"), Work("c"))
    assert len(lanes) == 3
    assert lanes.ready
    items = pop_all(lanes)
    assert names(items) == "abc"
    assert not lanes.ready
    for item in items:
        lanes.done(item)
    assert_empty(lanes, [])


def test_a_lane_runs_one_at_a_time_in_order() -> None:
    a, b, c, other = Work("a", 1), Work("b", 1), Work("c", 1), Work("x", 2)
    lanes = pushed(a, b, c, other)
    assert pop_all(lanes) == [a, other]
    assert not lanes.ready
    lanes.done(a)
    assert lanes.ready
    assert pop_all(lanes) == [b]
    lanes.done(b)
    lanes.done(other)
    assert pop_all(lanes) == [c]
    lanes.done(c)
    assert_empty(lanes, [])


def test_any_hashable_but_none_is_a_lane() -> None:
    items = [Work("a", 0), Work("b", 0), Work("c", ""), Work("d", ""), Work("e", ()), Work("f", ())]
    assert names(pop_all(pushed(*items))) == "ace"


def test_a_full_limit_holds_back_only_its_own() -> None:
    limit, other = Limit(1), Limit(1)
    a, b, c = Work("a", 1, [limit]), Work("b", 2, [limit]), Work("c", 2)
    lanes = pushed(a, b, c, Work("d", 3), Work("e", None, [other]))
    assert names(pop_all(lanes)) == "ade"  # c is behind b in its lane
    lanes.done(a)
    assert pop_all(lanes) == [b]
    lanes.done(b)
    assert pop_all(lanes) == [c]


def test_parked_items_go_first_in_order() -> None:
    limit = Limit(2)
    items = [Work(name, None, [limit]) for name in "abcdef"]
    lanes = pushed(*items)
    assert names(pop_all(lanes)) == "ab"
    late = Work("x", None, [limit])
    lanes.push(late)
    lanes.done(items[0])
    assert lanes.pop() is items[2]
    assert lanes.pop() is None  # and x is parked
    lanes.done(items[1])
    lanes.done(items[2])
    assert lanes.ready
    assert names(pop_all(lanes)) == "de"
    assert not lanes.ready
    lanes.done(items[3])
    lanes.done(items[4])
    assert names(pop_all(lanes)) == "fx"


def test_a_slot_is_handed_over_and_not_snatched() -> None:
    limit = Limit(1)
    a, b = Work("a", None, [limit]), Work("b", None, [limit])
    lanes = pushed(a, b)
    assert pop_all(lanes) == [a]
    lanes.done(a)
    lanes.push(Work("c", None, [limit]))
    assert lanes.pop() is b
    assert lanes.pop() is None


def test_limits_named_in_any_order_or_twice() -> None:
    one, two = Limit(1), Limit(1)
    items = [Work("a", None, [one, two]), Work("b", None, [two, one]), Work("c", None, [one, one])]
    lanes = pushed(*items)
    for item in items:
        assert pop_all(lanes) == [item]
        lanes.done(item)
    assert_empty(lanes, [one, two])


def test_an_item_of_two_busy_limits_is_not_starved() -> None:
    """Each of two limits always has a new item at hand, and never are both free at the same time."""
    one, two = Limit(1), Limit(1)
    lanes: Lanes[Work] = Lanes()
    running = deque[Work]()
    for n in range(20):
        lanes.push(Work("1", None, [one]))
        lanes.push(Work("2", None, [two]))
        if n == 5:
            lanes.push(Work("x", None, [one, two]))
        running.extend(pop_all(lanes))
        if any(item.name == "x" for item in running):
            return
        lanes.done(running.popleft())
    pytest.fail("starved")


def test_a_limit_lets_something_run() -> None:
    with pytest.raises(ValueError, match="nothing"):
        Limit(0)


def test_drain_takes_what_does_not_run() -> None:
    kept, one, two = Limit(1), Limit(1), Limit(1)
    running = Work("a", 1, [two])
    granted, holding = Work("g", 2, [one]), Work("h", 3, [kept, two])
    first = Work("f", None, [one])
    lanes = pushed(first, running, granted, holding, Work("b", 1), Work("c", 2), Work("d", 2), Work("e", 3))
    assert pop_all(lanes) == [first, running]
    lanes.done(first)
    lanes.push(Work("r"))
    assert (kept.running, one.running, two.running) == (1, 1, 1)
    drained = lanes.drain()
    assert len(lanes) == 0
    assert sorted(names(drained)) == list("bcdeghr")
    order = names(drained)
    assert order.index("g") < order.index("c") < order.index("d")
    assert order.index("h") < order.index("e")
    assert (kept.running, one.running, two.running) == (0, 0, 1)
    lanes.push(Work("z", 1))
    assert lanes.pop() is None  # its lane still runs
    lanes.done(running)
    last = lanes.pop()
    assert last is not None
    assert last.name == "z"
    lanes.done(last)
    assert_empty(lanes, [kept, one, two])


def test_memory_does_not_grow_with_keys() -> None:
    lanes: Lanes[Work] = Lanes()
    for n in range(1000):
        items = [Work("a", n), Work("b", n)]
        for item in items:
            lanes.push(item)
        for item in items:
            assert lanes.pop() is item
            lanes.done(item)
    assert_empty(lanes, [])


class LanesMachine(RuleBasedStateMachine):
    @initialize(capacities=st.lists(st.integers(1, 3), min_size=3, max_size=3), multiple=st.booleans())
    def start(self, capacities: list[int], multiple: bool) -> None:
        self.limits = [Limit(capacity) for capacity in capacities]
        self.multiple = multiple
        self.lanes: Lanes[Work] = Lanes()
        self.queued: list[Work] = []
        self.running: list[Work] = []
        self.heads: list[Work] = []  # queued and next in their lane, in the order in which they became so

    def promote(self) -> None:
        """Enter the items whose lane has become free; at most one lane becomes free in a step."""
        for item in self.queued:
            if item not in self.heads and (item.lane is None or self.first_of_lane(item)):
                self.heads.append(item)

    def first_of_lane(self, item: Work) -> bool:
        if any(other.lane == item.lane for other in self.running):
            return False
        return next(other for other in self.queued if other.lane == item.lane) is item

    @rule(
        lane=st.sampled_from([None, 1, 2, 3]), which=st.lists(st.integers(0, 2), max_size=3), repeat=st.integers(1, 3)
    )
    def push(self, lane: int | None, which: list[int], repeat: int) -> None:
        for _ in range(repeat):
            limits = [self.limits[n] for n in which][: None if self.multiple else 1]
            item = Work(str(len(self.queued)), lane, limits)
            self.lanes.push(item)
            self.queued.append(item)
            self.promote()

    def pop_one(self) -> Work | None:
        ready = self.lanes.ready
        item = self.lanes.pop()
        if item is None:
            # Nothing is held back that could run: at least one limit of each is full.
            for head in self.heads:
                assert any(limit.running == limit.capacity for limit in head.limits)
            assert self.running or not self.queued
            return None
        assert ready
        assert item in self.heads
        alike = [head for head in self.heads if set(head.limits) == set(item.limits)]
        assert alike[0] is item  # first come, first served, among those that wait for the same
        self.queued.remove(item)
        self.heads.remove(item)
        self.running.append(item)
        if item.lane is not None:
            assert [other.lane for other in self.running].count(item.lane) == 1
        for limit in self.limits:
            assert sum(limit in other.limits for other in self.running) <= limit.capacity
        return item

    @rule()
    def pop(self) -> None:
        self.pop_one()

    @rule()
    def pop_all(self) -> None:
        while self.pop_one():
            pass

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        item = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.lanes.done(item)
        self.promote()

    @precondition(lambda self: len(self.queued) > 3)
    @rule()
    def drain(self) -> None:
        drained = self.lanes.drain()
        assert len(drained) == len(self.queued)
        assert set(drained) == set(self.queued)
        for lane in (1, 2, 3):
            assert [item for item in drained if item.lane == lane] == [
                item for item in self.queued if item.lane == lane
            ]
        self.queued.clear()
        self.heads.clear()

    @invariant()
    def counts(self) -> None:
        assert len(self.lanes) == len(self.queued)
        for limit in self.limits:
            assert sum(limit in item.limits for item in self.running) <= limit.running <= limit.capacity
            assert not limit.parked or limit.running == limit.capacity
            if not self.queued:
                assert limit.running == sum(limit in item.limits for item in self.running)
        assert set(self.lanes._lanes) == {item.lane for item in self.queued + self.running} - {None}

    def teardown(self) -> None:
        while self.running or self.queued:
            while self.pop_one():
                pass
            assert self.running, "items are queued, nothing runs, and yet nothing may run"
            self.lanes.done(self.running.pop(0))
            self.promote()
        assert_empty(self.lanes, self.limits)


TestLanes = LanesMachine.TestCase
TestLanes.settings = settings(max_examples=examples(1000), stateful_step_count=30, deadline=None)

kinds = st.tuples(st.sampled_from([None, 1, 2]), st.lists(st.integers(0, 2), max_size=3))


@settings(max_examples=examples(1000), deadline=None)
@given(
    capacities=st.lists(st.integers(1, 2), min_size=3, max_size=3),
    before=st.lists(kinds, max_size=6),
    wanted=kinds,
    after=st.lists(kinds, min_size=1, max_size=4),
)
def test_none_starves_while_more_keep_coming(
    capacities: list[int],
    before: list[tuple[int | None, list[int]]],
    wanted: tuple[int | None, list[int]],
    after: list[tuple[int | None, list[int]]],
) -> None:
    """Whatever is pushed again and again: if the oldest that runs finishes each time, each item gets its turn."""
    limits = [Limit(capacity) for capacity in capacities]

    def work(name: str, kind: tuple[int | None, list[int]]) -> Work:
        return Work(name, kind[0], [limits[n] for n in kind[1]])

    item = work("x", wanted)
    lanes = pushed(*(work("before", kind) for kind in before), item)
    running = deque[Work]()
    for round_, kind in enumerate(cycle(after)):
        running.extend(pop_all(lanes))
        if item in running:
            return
        lanes.done(running.popleft())
        lanes.push(work("after", kind))
        assert round_ < 300
