"""When offsets are committed, and what came of it. All but `Commits.count` is for the reader's thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from dispytch.kafka.failures import packed
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
        self._tells_failures = True

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
            self._told(one for one in partitions if one.key in found)
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
                if partition is not None:
                    self._not_told([partition])
                failure = failure or one.error
                self._has_failed = True
                self._do_without_failures(failure)
        known = import_confluent().KafkaError
        passing = (known.REBALANCE_IN_PROGRESS, known.ILLEGAL_GENERATION, known.UNKNOWN_MEMBER_ID, known._NO_OFFSET)
        return None if failure is None or failure.code() in passing else failure

    def now(self, consumer: Any, partitions: Iterable[Partition]) -> Any | None:
        """Commits what is done of some partitions, and waits for the answer; the error, if it was one."""
        confluent = import_confluent()
        with self._lock:
            wanted = [(one, offset) for one in partitions if (offset := one.to_commit) is not None]
            self._told(one for one, _ in wanted)
        if not wanted:
            return None
        failure: Any = None
        for _ in range(2):
            offsets = [self.offset_of(one, offset) for one, offset in wanted]
            try:
                answers = consumer.commit(offsets=offsets, asynchronous=False) or ()
            except confluent.KafkaException as error:
                failure = error.args[0]
            else:
                failure = next((one.error for one in answers if one.error is not None), None)
            if failure is None or not self._do_without_failures(failure):
                break
        if failure is not None:
            self._has_failed = True
            self._not_told(one for one, _ in wanted)
            return failure
        for one, offset in wanted:
            one.committed = offset
        return None

    def offset_of(self, partition: Partition, offset: int) -> Any:
        """What to commit of a partition: the offset, and what is known of failures of events that come after it."""
        text = ""
        if self._tells_failures:
            with self._lock:  # the loop takes out what is done
                text = packed({one: counts for one, counts in partition.failures.items() if one >= offset})
        return import_confluent().TopicPartition(*partition.key, offset, text)

    def _told(self, partitions: Iterable[Partition]) -> None:
        """Failures are about to be committed; those that come from now on are news again. Under the lock."""
        for partition in partitions:
            partition.has_news = False

    def _not_told(self, partitions: Iterable[Partition]) -> None:
        with self._lock:
            for partition in partitions:
                partition.has_news = bool(partition.failures)

    def _do_without_failures(self, failure: Any) -> bool:
        """Whether a commit may work if it leaves out the failures."""
        if failure.code() != import_confluent().KafkaError.OFFSET_METADATA_TOO_LARGE or not self._tells_failures:
            return False
        self._tells_failures = False
        return True
