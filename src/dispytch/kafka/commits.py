"""When offsets are committed, and what came of it. All but `Commits.count` is for the reader's thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from dispytch.kafka.partitions import Partition
from dispytch.kafka.settings import import_confluent

__all__ = ["Commits"]

_EVERY = 1.0
"""Seconds between two commits."""
_AFTER = 5000
"""Events after which a commit does not wait for its time."""
_AT_MOST_EVERY = 0.1
_ANSWER_WITHIN = 15.0


class Commits:
    """One asynchronous commit at a time, since closing waits for every one that is under way.

    Args:
        lock: The reader's, under which the loop changes partitions.
    """

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._count = 0
        self._at = time.monotonic()
        self._is_under_way = False
        self._has_failed = False

    def count(self, events: int) -> None:
        """So many events more are done. In the loop."""
        self._count += events

    def due(self, partitions: Collection[Partition]) -> dict[tuple[str, int], int] | None:
        """The offsets to commit now."""
        if not self._count and not self._has_failed:
            return None
        now = time.monotonic()
        elapsed = now - self._at
        if elapsed < (_AT_MOST_EVERY if self._count >= _AFTER else _EVERY):
            return None
        if self._is_under_way and elapsed < _ANSWER_WITHIN:
            return None
        # What is counted meanwhile by the loop, and lost here, is committed with the next.
        self._count, self._has_failed = 0, False
        with self._lock:
            found = {one.key: offset for one in partitions if (offset := one.to_commit) is not None}
        self._at = now
        if not found:
            return None
        self._is_under_way = True
        return found

    def came_back(
        self, error: Any, offsets: Sequence[Any], partitions: Mapping[tuple[str, int], Partition]
    ) -> Any | None:
        """A commit has ended; the error to tell of, if it failed."""
        self._is_under_way = False
        failure = error
        for one in offsets:
            partition = partitions.get((one.topic, one.partition))
            if error is None and one.error is None:
                if partition is not None:
                    partition.committed = one.offset
            else:
                failure = failure or one.error
                self._has_failed = True
        known = import_confluent().KafkaError
        passing = (known.REBALANCE_IN_PROGRESS, known.ILLEGAL_GENERATION, known.UNKNOWN_MEMBER_ID, known._NO_OFFSET)
        return None if failure is None or failure.code() in passing else failure

    def now(self, consumer: Any, partitions: Iterable[Partition]) -> Any | None:
        """Commits what is done of some partitions, and waits for the answer; the error, if it was one."""
        confluent = import_confluent()
        with self._lock:
            wanted = [(one, offset) for one in partitions if (offset := one.to_commit) is not None]
        if not wanted:
            return None
        offsets = [confluent.TopicPartition(*one.key, offset) for one, offset in wanted]
        failure: Any = None
        try:
            answers = consumer.commit(offsets=offsets, asynchronous=False) or ()
        except confluent.KafkaException as error:
            failure = error.args[0]
        else:
            failure = next((one.error for one in answers if one.error is not None), None)
        if failure is not None:
            self._has_failed = True
            return failure
        for one, offset in wanted:
            one.committed = offset
        return None
