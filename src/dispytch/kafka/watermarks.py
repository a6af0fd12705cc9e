"""How far partitions are behind their ends, by what the client has learned when it fetched: the broker is not asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping
from typing import Any

from dispytch.kafka.partitions import Partition
from dispytch.kafka.settings import import_confluent

__all__ = ["Watermarks"]

_MEASURE_EVERY = 2.0
_MEASURED_FOR = 150.0
"""Seconds for which the lag is measured after somebody has wanted to know it."""


class Watermarks:
    """Compares the partitions that are ours with their ends. Its attributes are read in the loop.

    Args:
        lock: The reader's.

    Attributes:
        lag: How many messages lie behind what is done, by topic; ``None`` until somebody wants to know.
        is_caught_up: Whether nothing came any more, and all that the client knew of then had come.
    """

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self.lag: Mapping[str, int] | None = None
        self.is_caught_up: bool = False
        self._measures_until = self._measured_at = 0.0

    def want_lag(self) -> None:
        """Has `lag` measured now and then, for a while. In the loop."""
        self._measures_until = time.monotonic() + _MEASURED_FOR

    # --- in the thread

    def measure(self, consumer: Any, partitions: Collection[Partition], now: float) -> None:
        """Measures the lag, if that is due."""
        if not self._measured_at + _MEASURE_EVERY < now < self._measures_until:
            return
        self._measured_at = now
        found: dict[str, int] = {}
        for partition, ends in self._ends(consumer, partitions):
            with self._lock:
                behind = None if ends is None else partition.lag(*ends)
            if behind is not None:
                topic = partition.key[0]
                found[topic] = found.get(topic, 0) + behind
        self.lag = found

    def look_whether_caught_up(self, consumer: Any, partitions: Collection[Partition]) -> None:
        """Nothing came for a moment: perhaps since nothing is left."""
        if not self.is_caught_up:
            # A member may be told that it has no share, and get one once the group has learned of a new topic.
            self.is_caught_up = len(partitions) > 0 and all(
                ends is not None and partition.has_come(*ends) for partition, ends in self._ends(consumer, partitions)
            )

    def _ends(self, consumer: Any, partitions: Collection[Partition]) -> list[tuple[Partition, tuple[int, int] | None]]:
        """The first offset of each and the one after the last; those that nothing was fetched of yet have none."""
        confluent = import_confluent()
        with self._lock:  # a close that waits for the thread no more takes them away
            taken = [one for one in partitions if one.is_taken]
        return [(one, consumer.get_watermark_offsets(confluent.TopicPartition(*one.key), cached=True)) for one in taken]
