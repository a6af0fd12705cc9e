"""When offsets are committed, and what came of it. All but `Commits.count` is for the reader's thread."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from dispytch.kafka.partitions import Partition
from dispytch.kafka.settings import import_confluent

__all__ = ["Commits"]

logger: logging.Logger = logging.getLogger("dispytch")

_EVERY = 1.0
"""Seconds between two commits."""
_AFTER = 5000
"""Events after which a commit does not wait for its time."""
_AT_MOST_EVERY = 0.1
_ANSWER_WITHIN = 15.0


class Commits:
    """One asynchronous commit at a time, since closing waits for every one that is under way."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._count = 0
        self._at = time.monotonic()
        self._is_under_way = False
        self._has_failed = False

    def count(self, events: int) -> None:
        """So many events more are done. In the loop."""
        self._count += events

    def due(self, partitions: Collection[Partition], lock: threading.Lock) -> dict[tuple[str, int], int] | None:
        """The offsets to commit now."""
        if not self._count and not self._has_failed:
            return None
        now = time.monotonic()
        elapsed = now - self._at
        if elapsed < (_AT_MOST_EVERY if self._count >= _AFTER else _EVERY):
            return None
        if self._is_under_way and elapsed < _ANSWER_WITHIN:
            return None
        self._count, self._has_failed = (
            0,
            False,
        )  # what is counted meanwhile by the loop, and lost here, is committed with the next
        with lock:
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

    def now(self, consumer: Any, offsets: list[Any]) -> None:
        """Commits, and waits for it: the partitions are about to change hands."""
        confluent = import_confluent()
        try:
            for one in consumer.commit(offsets=offsets, asynchronous=False) or ():
                if one.error is not None:
                    raise confluent.KafkaException(one.error)
        except confluent.KafkaException as error:
            logger.warning(
                "Offsets could not be committed before their partitions were given up, so some events will come again "
                "from Kafka at %s: %s",
                self._address,
                error.args[0].str(),
            )
