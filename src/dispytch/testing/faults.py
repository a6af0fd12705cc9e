"""Faults of the in-process broker, on request."""

from __future__ import annotations

import random
import threading
from collections import Counter

from dispytch.memory.broker import FaultPoint

__all__ = ["Faults"]


class Faults:
    """What is to go wrong at a `MemoryBroker`: a number of times, or with a probability.

    The points are ``"unreachable"`` (no connection for an emit or a start), ``"reject"`` (an emit is refused),
    ``"lose_reply"`` (an emit is stored, its confirmation lost), ``"duplicate"`` (it is stored twice), ``"disconnect"``
    (a consumer's connection breaks off), ``"settle"`` (an outcome cannot be carried out) and ``"dead_letter"`` (a dead
    letter cannot be written).

    Args:
        seed: Makes what happens by probability the same in every run.
    """

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)  # noqa: S311 - no secret
        self._lock = threading.Lock()
        self._times: Counter[FaultPoint] = Counter()
        self._probabilities: dict[FaultPoint, float] = {}
        self.taken: Counter[FaultPoint] = Counter()
        """How often each fault has happened."""

    def fail(self, point: FaultPoint, times: int = 1) -> None:
        """The next ``times`` occasions fail."""
        with self._lock:
            self._times[point] += times

    def sometimes(self, point: FaultPoint, probability: float) -> None:
        """Every occasion fails with a probability between 0 and 1; 0 ends it."""
        if not 0 <= probability <= 1:
            raise ValueError(f"a probability is between 0 and 1, not {probability}")
        with self._lock:
            self._probabilities[point] = probability

    def take(self, point: FaultPoint) -> bool:
        """Whether this occasion fails. Called by the broker."""
        with self._lock:
            if self._times[point] > 0:
                self._times[point] -= 1
            elif not (self._probabilities.get(point, 0.0) > self._random.random()):
                return False
            self.taken[point] += 1
            return True
