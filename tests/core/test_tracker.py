"""The contiguous-completion tracker, against a naive model."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispytch._core.tracker import Tracker
from tests.support import examples


def test_prefix_advances_as_gaps_close() -> None:
    tracker = Tracker()
    tracker.add([3, 4])
    tracker.add([9, 10])
    assert tracker.advance() is None
    tracker.done([4])
    assert tracker.advance() is None
    tracker.done([3])
    assert tracker.advance() == 4
    assert tracker.advance() is None
    assert (tracker.pending, len(tracker)) == (2, 2)
    tracker.done([10])
    assert (tracker.pending, len(tracker)) == (1, 2)
    tracker.done([9])
    assert (tracker.pending, len(tracker)) == (0, 0)
    assert tracker.advance() == 10


def test_last_done_lies_behind_a_gap() -> None:
    tracker = Tracker()
    tracker.add([3, 4])
    tracker.add([9, 10])
    assert tracker.last_done is None
    tracker.done([9])
    assert tracker.last_done == 9
    tracker.done([3])
    assert tracker.last_done == 9
    tracker.done([4])
    assert tracker.last_done is None


def test_stale_acknowledgement_is_no_error() -> None:
    tracker = Tracker()
    tracker.done([1])
    tracker.add([1, 2])
    for positions, pending in (([0], 2), ([2], 1), ([2, 2, 7], 1), ([1, 1], 0), ([1], 0)):
        tracker.done(positions)
        assert tracker.pending == pending


def test_positions_must_increase() -> None:
    tracker = Tracker()
    tracker.add([5])
    tracker.add([])
    for position in (5, 4, -1):
        with pytest.raises(ValueError, match="after 5"):
            tracker.add([position, 6])
    tracker.done([5])
    with pytest.raises(ValueError, match="after 5"):
        tracker.add([5])
    tracker.add([6])
    assert tracker.advance() == 5


def test_positions_may_begin_at_zero() -> None:
    tracker = Tracker()
    tracker.add([0])
    tracker.done([0])
    assert tracker.advance() == 0
    with pytest.raises(ValueError, match="after 0"):
        tracker.add([0])


def test_clear_forgets_progress_too() -> None:
    tracker = Tracker()
    tracker.add([7, 8, 9])
    tracker.done([7, 9])
    tracker.clear()
    assert (tracker.advance(), tracker.pending, len(tracker)) == (None, 0, 0)
    tracker.done([8])
    tracker.add([2])
    tracker.done([2])
    assert tracker.advance() == 2


class Model:
    """All positions ever received, in order, and which of them are complete."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self.complete: set[int] = set()
        self.advanced = 0

    def prefix(self) -> list[int]:
        incomplete = [n for n, position in enumerate(self.received) if position not in self.complete]
        return self.received[: incomplete[0]] if incomplete else self.received

    def advance(self) -> int | None:
        prefix = self.prefix()
        before, self.advanced = self.advanced, len(prefix)
        return prefix[-1] if len(prefix) > before else None


operations = st.one_of(
    st.tuples(st.just("add"), st.integers(-1, 3)),
    st.tuples(st.just("done"), st.integers(0, 12)),
    st.tuples(st.just("done"), st.integers(0, 12)),
    st.tuples(st.just("oldest"), st.just(0)),
    st.tuples(st.sampled_from(["advance", "clear"]), st.integers(0, 9)),
)


@settings(max_examples=examples(2000), deadline=None)
@given(st.lists(operations, max_size=60))
def test_tracker_agrees_with_the_model(steps: list[tuple[str, int]]) -> None:
    tracker, model = Tracker(), Model()
    reached: int | None = None
    for name, number in steps:
        open_positions = [position for position in model.received if position not in model.complete]
        if name == "add":
            position = (model.received[-1] if model.received else 0) + number
            positions = list(range(position, position + 7, 3))[: 1 + number % 3]  # one, or some with gaps
            if model.received and number <= 0:
                with pytest.raises(ValueError, match="received after"):
                    tracker.add(positions)
            else:
                tracker.add(positions)
                model.received += positions
        elif name == "done":  # one that is open if there are so many, else any number
            position = open_positions[number] if number < len(open_positions) else number
            positions = [position, *open_positions[number + 2 : number + 4]]
            tracker.done(positions)
            model.complete.update(set(positions).intersection(open_positions))
        elif name == "oldest":  # completes it, or else gaps would close too rarely
            if open_positions:
                tracker.done(open_positions[:1])
                model.complete.add(open_positions[0])
        elif name == "advance":
            advanced = tracker.advance()
            assert advanced == model.advance()
            if advanced is not None:
                assert reached is None or advanced > reached
                assert all(position in model.complete for position in model.received if position <= advanced)
                reached = advanced
        elif number == 0:  # clear, but rarely
            tracker.clear()
            model, reached = Model(), None
        open_positions = [position for position in model.received if position not in model.complete]
        assert tracker.pending == len(open_positions)
        assert len(tracker) == len(model.received) - len(model.prefix())

    tracker.done(model.received)
    model.complete.update(model.received)
    assert tracker.advance() == model.advance()
    assert (tracker.pending, len(tracker)) == (0, 0)


@settings(max_examples=examples(1000), deadline=None)
@given(st.permutations(range(12)), st.sets(st.integers(0, 11)))
def test_everything_completed_is_acknowledged(order: list[int], looks: set[int]) -> None:
    """Whatever the order of completion, and however often one asks, the ranges cover all."""
    tracker = Tracker()
    tracker.add(range(12))
    covered: set[int] = set()
    for n, position in enumerate(order):
        tracker.done([position])
        if n in looks and (reached := tracker.advance()) is not None:
            covered.update(range(reached + 1))
        assert covered <= set(order[: n + 1])
    if (reached := tracker.advance()) is not None:
        covered.update(range(reached + 1))
    assert covered == set(range(12))


def cost(order: list[int]) -> int:
    """Count the lines that run while positions are received, completed in the given order, and acknowledged."""
    tracker, count = Tracker(), 0

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal count
        if frame.f_globals["__name__"] != Tracker.__module__:
            return None
        count += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        for position in range(len(order)):
            tracker.add([position])
        for position in order:
            tracker.done([position])
            tracker.advance()
    finally:
        sys.settrace(before)
    assert len(tracker) == 0
    assert count > len(order)
    return count


def shuffled(size: int) -> list[int]:
    return random.Random(size).sample(range(size), size)


@pytest.mark.parametrize("order", [lambda n: list(range(n)), lambda n: list(range(n))[::-1], shuffled])
def test_cost_is_linear(order: Callable[[int], list[int]]) -> None:
    assert cost(order(2000)) < 2.2 * cost(order(1000))
