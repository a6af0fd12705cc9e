"""The thread that owns a confluent consumer: it polls, commits and closes, and hands over batches to the loop."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import anyio

from dispytch._bridge import Loop, Waker
from dispytch.abc import Delivery
from dispytch.errors import BrokerError, BrokerUnreachableError, ConfigurationError
from dispytch.kafka.assignment import Assignment
from dispytch.kafka.commits import Commits
from dispytch.kafka.deliveries import delivery_of
from dispytch.kafka.inbox import Inbox
from dispytch.kafka.membership import Membership
from dispytch.kafka.partitions import Partition
from dispytch.kafka.plan import Plan
from dispytch.kafka.settings import import_confluent
from dispytch.kafka.trouble import Trouble
from dispytch.kafka.watermarks import Watermarks

__all__ = ["Reader"]

logger: logging.Logger = logging.getLogger("dispytch")

_POLL = 0.1
"""Seconds that the thread waits for a message; a stop waits as long, at most."""
_SHORT_POLL = 0.005
"""The same where events are acknowledged first, since their handlers wait for the commit."""
_MOST_AT_ONCE = 499
_MOST_QUEUED = 1000
"""Messages that wait for the loop before the thread stops fetching."""
_PAUSE_AFTER = 1.0
"""Seconds without room after which partitions are paused, which costs what the client has prefetched."""
_ASSIGNED_WITHIN = 60.0
_LOOK_EVERY = 1.0
_SAY_DOWN_AFTER = 3.0
_SAY_AGAIN_AFTER = 30.0
_STOP_TIMEOUT = 8.0


class _Flush:
    """Somebody in the loop waits until what is done has been committed."""

    def __init__(self, loop: Loop) -> None:
        self.done: anyio.Event = anyio.Event()
        self.is_committed = False
        self.failure: str | None = None
        self._loop = loop

    def finish(self) -> None:
        self._loop.post(self.done.set)


class Reader:
    """One membership of the group, from joining to leaving. Methods with a leading underscore run in the thread."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._settings = plan.settings
        self._trouble = Trouble(plan.settings)
        self._consumer: Any = None
        self._lock = threading.Lock()
        self._commits = Commits(self._lock)
        self._assignment = Assignment(plan, self._commits, self._lock, self._say)
        self._membership = Membership(plan, self._trouble, self._assignment, lambda: self._stopping, self._complain)
        # What waits is uncommitted too: it alone must not bring a partition to its limit.
        self._inbox = Inbox(min(_MOST_QUEUED, max(plan.max_uncommitted // 2, 1)), self._lock)
        self._flushes: deque[_Flush] = deque()
        self._poll_seconds = _POLL
        self._stopping = False
        self._is_open = False
        self._ended = False
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._waker: Waker
        self._loop: Loop
        self._full_since: float | None = None
        self._looked_at = 0.0
        self._is_down_said = False
        self._said: dict[str, float] = {}
        self.polled_at: float = time.monotonic()
        """When the thread last looked after the consumer."""
        self.watermarks: Watermarks = Watermarks(self._lock)

    # --- in the loop

    async def open(self) -> None:
        """Joins the group, and waits until nothing that is published from now on will be missed.

        Raises:
            BrokerError, ConfigurationError: it did not work.
        """
        self._waker, self._loop = Waker(), Loop()
        self._thread = threading.Thread(target=self._run, name="dispytch kafka consumer", daemon=True)
        self._thread.start()
        try:
            while not self._is_open and not self._ended:
                await self._waker.wait()
        except BaseException:
            await self.close()
            raise
        if not self._is_open:
            await self.close()
            self._raise()

    async def read(self, limit: int) -> list[Delivery]:
        """The next deliveries, at most ``limit``; waits for one. May be cancelled.

        Raises:
            BrokerError: there will be no more.
        """
        while not (found := self._inbox.take(limit)):
            if self._ended:
                self._raise()
            await self._waker.wait()
        return found

    @property
    def is_assigned(self) -> bool:
        """Whether the group has told which partitions are ours."""
        return self._assignment.is_known

    def done(self, offsets: Mapping[Partition, Collection[int]]) -> None:
        """Notes that events need nothing more; those of lost partitions are ignored."""
        count = 0
        with self._lock:
            for partition, found in offsets.items():
                if not partition.is_lost:
                    partition.done(found)
                    count += len(found)
        self._commits.count(count)

    def last_done(self, partitions: Iterable[Partition]) -> list[tuple[Partition, int]]:
        """The last offset of each that needs nothing more, though one before it does."""
        with self._lock:
            found = [(partition, partition.tracker.last_done) for partition in partitions]
        return [(partition, offset) for partition, offset in found if offset is not None]

    def release(self, deliveries: Sequence[Delivery]) -> None:
        """Events are to come again, here or, if this is the end, where their partitions go."""
        with self._lock:
            for delivery in deliveries:
                partition, offset = delivery.token
                if delivery.failures and not partition.is_lost:
                    partition.failed(offset, delivery.failures)
        self._inbox.put_back(deliveries)
        self._waker.wake()

    async def flush(self) -> None:
        """Waits until what is done has been committed.

        Raises:
            BrokerUnreachableError: this reader will not commit any more.
            BrokerError: it could not be committed now.
        """
        flush = _Flush(self._loop)
        self._flushes.append(flush)
        self._inbox.tell_room()
        if not self._ended:  # or nobody would look at it
            await flush.done.wait()
        if self._ended and not flush.is_committed:
            raise BrokerUnreachableError(f"there is no connection to Kafka at {self._settings.address}")
        if flush.failure is not None:
            raise BrokerError(f"offsets could not be committed at Kafka at {self._settings.address}: {flush.failure}")

    async def close(self) -> None:
        """Commits, leaves the group, and ends the thread. Idempotent."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._stopping = True
        self._inbox.tell_room()
        with anyio.move_on_after(_STOP_TIMEOUT, shield=True):
            while not self._ended:
                await self._waker.wait()
        if self._ended:
            thread.join()
        else:
            self._assignment.without(list(self._assignment.partitions))  # what is settled from now on is in vain
            logger.warning(
                "The thread that consumes from Kafka at %s is left to itself: it does not return.",
                self._settings.address,
            )

    @property
    def assignment(self) -> tuple[str, ...]:
        """The partitions that are ours."""
        with self._lock:
            return tuple(f"{topic}[{number}]" for topic, number in sorted(self._assignment.partitions))

    @property
    def is_cut_off(self) -> bool:
        """Whether no broker has answered for a while; the client goes on trying."""
        return self._is_down_said

    @property
    def queued(self) -> int:
        """How many messages wait to be read."""
        return len(self._inbox)

    def _raise(self) -> None:
        error = self._error
        if isinstance(error, BrokerError | ConfigurationError):
            raise error
        address = self._settings.address
        if error is not None:
            text = f"consuming from Kafka at {address} failed: {self._settings.without_secrets(str(error))}"
            if isinstance(error, import_confluent().KafkaException):  # those that end it for good have been told apart
                raise BrokerUnreachableError(text) from error
            raise BrokerError(text) from error
        raise BrokerUnreachableError(f"there is no connection to Kafka at {address}")

    # --- in the thread: from the beginning to the end

    def _run(self) -> None:
        try:
            self._open()
            while not self._stopping:
                self._step()
        except BaseException as error:
            self._error = error
        finally:
            try:
                self._leave()
            except BaseException as error:
                if self._error is None:
                    self._error = error
            finally:
                self._ended = True
                self._waker.wake()
                while self._flushes:
                    self._flushes.popleft().finish()

    def _open(self) -> None:
        membership = self._membership
        self._consumer = membership.client(self._committed)
        membership.join(self._consumer)
        if self._plan.beginnings is not None and membership.is_subscribed:
            self._await_assignment()
        self._is_open = True
        self._waker.wake()

    def _await_assignment(self) -> None:
        end = time.monotonic() + _ASSIGNED_WITHIN
        while not self._stopping and not self._assignment.is_known:
            if time.monotonic() > end:
                raise BrokerUnreachableError(
                    f"Kafka at {self._settings.address} has assigned no partitions within {_ASSIGNED_WITHIN:g} s; "
                    f"check the other members of the group {self._plan.group_id!r}"
                )
            self._poll(_POLL)

    def _leave(self) -> None:
        consumer, self._consumer = self._consumer, None
        try:
            if consumer is not None:
                self._membership.leave(consumer)
        finally:
            self._assignment.without(list(self._assignment.partitions))

    # --- in the thread: receiving

    def _step(self) -> None:
        self.polled_at = time.monotonic()
        self._assignment.look_after(self._consumer)
        self._look_after_connection()
        if (offsets := self._commits.due(self._assignment.partitions.values())) is not None:
            self._commit(offsets)
        if self._flushes:
            self._flush()
        self.watermarks.measure(self._consumer, self._assignment.partitions.values(), self.polled_at)
        if self._has_room():
            self._poll(self._poll_seconds)
        elif self._assignment.is_paused:
            self._poll(self._poll_seconds)  # nothing comes, but the group sees that we are alive
        else:
            self._inbox.wait_for_room(_POLL / 2)

    def _has_room(self) -> bool:
        if self._assignment.is_paused:
            if not self._inbox.is_half_empty:
                return False
            self._full_since = None
            self._assignment.resume(self._consumer)
            return True
        if not self._inbox.is_full:
            self._full_since = None
            return True
        now = time.monotonic()
        if self._full_since is None:
            self._full_since = now
        elif now - self._full_since > _PAUSE_AFTER:
            self._assignment.pause(self._consumer)
        return False

    def _poll(self, seconds: float) -> None:
        message = self._consumer.poll(seconds)
        if (error := self._assignment.error) is not None:
            raise error
        if message is None:
            self.watermarks.look_whether_caught_up(self._consumer, self._assignment.partitions.values())
            return
        self.watermarks.is_caught_up = False
        self._hand_over([message, *self._consumer.consume(min(_MOST_AT_ONCE, self._inbox.most), 0)])

    def _hand_over(self, messages: Sequence[Any]) -> None:
        deliveries: list[Delivery] = []
        size = 0
        offsets: dict[Partition, list[int]] = {}
        with self._lock:
            partitions = self._assignment.partitions
            for message in messages:
                if (error := message.error()) is not None:
                    self._complain(error)
                    continue
                partition = partitions.get((message.topic(), message.partition()))
                if partition is None or not partition.is_taken:
                    continue
                offset = message.offset()
                if offset <= partition.last:
                    if partition in offsets:
                        partition.add(offsets.pop(partition))
                    partition = self._assignment.rewound(partition)
                partition.last = offset
                if partition in offsets:
                    offsets[partition].append(offset)
                else:
                    offsets[partition] = [offset]
                delivery = delivery_of(message, partition, offset)
                if partition.failures and (known := partition.failures.get(offset)):
                    delivery.failures = known
                if delivery.payload is not None:
                    size += len(delivery.payload)
                deliveries.append(delivery)
            for partition, found in offsets.items():
                partition.add(found)
                self._assignment.is_held(partition)
            if deliveries:
                self._inbox.put(deliveries, size)
        if deliveries:
            self._waker.wake()

    def _complain(self, error: Any) -> None:
        known = import_confluent().KafkaError
        words = self._trouble.words(error)
        address = self._settings.address
        if error.fatal():
            raise BrokerError(f"consuming from Kafka at {address} has ended: {words}")
        if error.code() in (known.TOPIC_AUTHORIZATION_FAILED, known.GROUP_AUTHORIZATION_FAILED):
            raise BrokerError(
                f"Kafka at {address} refused the group {self._plan.group_id!r} or one of its topics: {words}; allow "
                "the user to read both"
            )
        # What begins with ^ is a pattern, which no topic needs to fit yet.
        is_expected = error.code() == known.UNKNOWN_TOPIC_OR_PART and ": ^" in words
        self._say("Consuming from Kafka at %s: %s", words, logging.INFO if is_expected else logging.WARNING)

    def _say(self, text: str, words: str, level: int = logging.WARNING) -> None:
        now = time.monotonic()
        if now - self._said.get(words, -_SAY_AGAIN_AFTER) >= _SAY_AGAIN_AFTER:
            self._said[words] = now
            logger.log(level, text, self._settings.address, words)

    # --- in the thread: committing, and the connection

    def _flush(self) -> None:
        self._poll_seconds = _SHORT_POLL
        waiting = [self._flushes.popleft() for _ in range(len(self._flushes))]
        try:
            failure = self._commits.now(self._consumer, self._assignment.partitions.values())
            words = None if failure is None else self._trouble.words(failure)
            for flush in waiting:
                flush.failure, flush.is_committed = words, failure is None
        finally:
            for flush in waiting:
                flush.finish()

    def _commit(self, offsets: dict[tuple[str, int], int]) -> None:
        confluent = import_confluent()
        chosen = [self._commits.offset_of(self._assignment.partitions[key], offset) for key, offset in offsets.items()]
        try:
            self._consumer.commit(offsets=chosen, asynchronous=True)
        except confluent.KafkaException as error:
            self._committed(error.args[0], chosen)

    def _committed(self, error: Any, offsets: Sequence[Any]) -> None:
        failure = self._commits.came_back(error, offsets, self._assignment.partitions)
        if failure is not None:
            self._say(
                "Offsets could not be committed at Kafka at %s, and will be again: %s", self._trouble.words(failure)
            )

    def _look_after_connection(self) -> None:
        trouble = self._trouble
        if trouble.fatal is not None:
            raise BrokerError(f"consuming from Kafka at {self._settings.address} has ended: {trouble.fatal}")
        if trouble.since is None:
            return
        now = time.monotonic()
        if now - self._looked_at < _LOOK_EVERY:
            return
        self._looked_at = now
        began = trouble.since
        try:
            self._consumer.list_topics(*self._plan.topics.literal[:1], timeout=_POLL)
        except import_confluent().KafkaException as error:
            if trouble.is_final or now - began > float(self._settings.get("session.timeout.ms", 45_000)) / 1000:
                raise trouble.error(error) from error
            if now - began > _SAY_DOWN_AFTER and not self._is_down_said:
                self._is_down_said = True
                logger.warning("The connection is lost: %s. It is tried again.", trouble.error())
        else:
            trouble.clear()
            if self._is_down_said:
                self._is_down_said = False
                logger.info("Kafka at %s answers again.", self._settings.address)
