"""The partitions that a reader has: given and taken away by the group, paused and resumed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from dispytch.kafka.commits import Commits
from dispytch.kafka.failures import unpacked
from dispytch.kafka.partitions import Partition
from dispytch.kafka.plan import Plan
from dispytch.kafka.settings import import_confluent
from dispytch.kafka.trouble import CONNECT_TIMEOUT

__all__ = ["Assignment"]

logger: logging.Logger = logging.getLogger("dispytch")

_FAILURES_WITHIN = 2.0


class Assignment:
    """The partitions that are ours. For the reader's thread; what the loop sees too is changed under the lock.

    Args:
        say: Logs a warning, with the address and some words, but not again and again.

    Attributes:
        partitions: By topic and number.
        is_known: Whether the group has told us of our partitions, be there any or not.
        is_paused: Whether all are paused, since there is no room for more.
        error: What went wrong in a callback, where it would end in the client.
    """

    def __init__(self, plan: Plan, commits: Commits, lock: threading.Lock, say: Callable[[str, str], None]) -> None:
        self._plan = plan
        self._commits = commits
        self._lock = lock
        self._say = say
        self.partitions: dict[tuple[str, int], Partition] = {}
        self.is_known: bool = False
        self.is_paused: bool = False
        self.error: BaseException | None = None
        self._new: list[Partition] = []
        self._to_pause: list[Partition] = []
        self._full: list[Partition] = []

    @property
    def strategy(self) -> str:
        return str(self._plan.settings.get("partition.assignment.strategy", "cooperative-sticky"))

    @property
    def is_decided_by_brokers(self) -> bool:
        """Whether the group has the protocol of KIP-848, where members have no strategy."""
        return bool(self._plan.settings.get("group.protocol") == "consumer")

    # --- what the client calls

    def subscribe(self, consumer: Any, names: list[str]) -> None:
        consumer.subscribe(names, on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost)

    def _assigned(self, consumer: Any, assigned: Sequence[Any]) -> None:
        try:
            begun = self._begin(consumer, assigned) if assigned else {}
            offsets, failures = self._committed(consumer, assigned) if assigned else ({}, {})
            with self._lock:
                for one in assigned:
                    partition = Partition(one.topic, one.partition, self._plan.topics.takes(one.topic))
                    # Whoever comes next would begin at a later end, and miss what is between, were it not committed.
                    partition.wanted = begun.get(partition.key)
                    partition.committed_before = offsets.get(partition.key)
                    partition.failures.update(failures.get(partition.key, {}))
                    self.partitions[partition.key] = partition
                    self._new.append(partition)
            if begun:
                self._commits.now(consumer, self.partitions.values())  # if it fails, it is done again later
            self.is_known = True
        except BaseException as error:
            self.error = error

    def _begin(self, consumer: Any, assigned: Sequence[Any]) -> dict[tuple[str, int], int]:
        """Has partitions that nobody of the group has read begin at their end, if the group starts with what comes."""
        beginnings = self._plan.beginnings
        if beginnings is None:
            return {}
        confluent = import_confluent()
        begun: dict[tuple[str, int], int] = {}
        for one in consumer.committed(list(assigned), timeout=CONNECT_TIMEOUT):
            if one.error is not None:
                raise confluent.KafkaException(one.error)
            key = (one.topic, one.partition)
            if one.offset < 0 and key in (beginnings.existing or ()):
                if key not in beginnings.positions:
                    beginnings.positions[key] = consumer.get_watermark_offsets(one, timeout=CONNECT_TIMEOUT)[1]
                begun[key] = beginnings.positions[key]
        for one in assigned:
            one.offset = begun.get((one.topic, one.partition), one.offset)
        is_incremental = self.is_decided_by_brokers or "cooperative" in self.strategy
        (consumer.incremental_assign if is_incremental else consumer.assign)(list(assigned))
        return begun

    def _committed(
        self, consumer: Any, assigned: Sequence[Any]
    ) -> tuple[dict[tuple[str, int], int], dict[tuple[str, int], dict[int, dict[str, int]]]]:
        """What those who had the partitions before have committed, and have left of failures.

        It is no reason to wait for long.
        """
        try:
            answers = consumer.committed(list(assigned), timeout=_FAILURES_WITHIN)
        except import_confluent().KafkaException as error:
            logger.debug("What was committed of %d partitions cannot be told: %s", len(assigned), error)
            return {}, {}
        told = [one for one in answers if one.error is None]
        offsets = {(one.topic, one.partition): one.offset for one in told}
        return offsets, {(one.topic, one.partition): unpacked(one.metadata) for one in told}

    def _revoked(self, consumer: Any, revoked: Sequence[Any]) -> None:
        failure = self._commits.now(consumer, self.without((one.topic, one.partition) for one in revoked))
        if failure is not None:
            self._say(
                "Offsets could not be committed at Kafka at %s before their partitions were given up, so some events "
                "will come again: %s",
                failure.str(),
            )

    def _lost(self, consumer: Any, lost: Sequence[Any]) -> None:
        count = len(self.without((one.topic, one.partition) for one in lost))
        self._say("Kafka at %s: %s", f"{count} partitions were lost to others of the group; their events come again")

    # --- what the reader calls

    def without(self, gone: Iterable[tuple[str, int]]) -> list[Partition]:
        """Notes that partitions are not ours any more; those that were."""
        found = []
        with self._lock:
            for key in gone:
                partition = self.partitions.pop(key, None)
                if partition is not None:
                    partition.is_lost = True
                    found.append(partition)
        return found

    def rewound(self, partition: Partition) -> Partition:
        """A partition was lost and assigned again within one call: what came before is not ours to settle."""
        partition.is_lost = True
        new = Partition(*partition.key, partition.is_taken)
        new.failures = partition.failures
        self.partitions[partition.key] = new
        return new

    def is_held(self, partition: Partition) -> None:
        """Notes that an event of a partition is held by us, and stops the partition if these are too many. Locked."""
        if len(partition.tracker) >= self._plan.max_uncommitted and not partition.is_full:
            partition.is_full = True
            self._full.append(partition)
            self._to_pause.append(partition)

    def look_after(self, consumer: Any) -> None:
        """Pauses and resumes single partitions."""
        if self._new:
            new, self._new = self._new, []
            # One that was paused when it was taken away would be so still.
            runs = [one.is_taken and not one.is_full and not self.is_paused for one in new]
            self._tell(consumer, "resume", [one for one, is_running in zip(new, runs, strict=True) if is_running])
            self._tell(consumer, "pause", [one for one, is_running in zip(new, runs, strict=True) if not is_running])
        if self._to_pause:
            paused, self._to_pause = self._to_pause, []
            self._tell(consumer, "pause", paused)
        if self._full:
            roomy = [one for one in self._full if len(one.tracker) <= self._plan.max_uncommitted // 2 or one.is_lost]
            for partition in roomy:
                self._full.remove(partition)
                partition.is_full = False
            if not self.is_paused:
                self._tell(consumer, "resume", roomy)

    def pause(self, consumer: Any) -> None:
        """Pauses all, which costs what the client has prefetched."""
        self.is_paused = True
        self._tell(consumer, "pause", self.partitions.values())

    def resume(self, consumer: Any) -> None:
        """Ends what `pause` began."""
        self.is_paused = False
        self._tell(consumer, "resume", [one for one in self.partitions.values() if one.is_taken and not one.is_full])

    def _tell(self, consumer: Any, what: Literal["pause", "resume"], partitions: Iterable[Partition]) -> None:
        confluent = import_confluent()
        chosen = [confluent.TopicPartition(*one.key) for one in partitions if self.partitions.get(one.key) is one]
        if chosen:
            getattr(consumer, what)(chosen)
