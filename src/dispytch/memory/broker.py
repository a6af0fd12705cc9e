"""The in-process broker: topics that keep their messages, consumer groups, acknowledgement, redelivery, dead letters.

All methods may be called from any thread. The lock is held for lists and dictionaries only, never across a wait.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from dispytch._core.deadletters import read_dead_letter
from dispytch._core.messages import new_receipt
from dispytch.abc import (
    SYSTEM_CLOCK,
    Clock,
    DeadLetter,
    Delivery,
    Headers,
    Message,
    Outcome,
    Receipt,
    Settlement,
    Subscription,
)
from dispytch.errors import (
    BrokerUnreachableError,
    DeliveryError,
    DispytchError,
    EmitRejectedError,
    EmitTimeoutError,
    EmitUnreachableError,
)
from dispytch.memory.groups import Cursor, Group, Member, Place, Topic

__all__ = ["FaultHook", "FaultPoint", "MemoryBroker", "Record"]


FaultPoint = Literal["reject", "lose_reply", "unreachable", "disconnect", "settle", "dead_letter", "duplicate"]
"""What can go wrong: see `dispytch.testing.Faults`."""


class FaultHook(Protocol):
    """Decides whether something goes wrong; `dispytch.testing.Faults` is one."""

    def take(self, point: FaultPoint) -> bool:
        """Whether it goes wrong this time. Called from any thread."""
        ...


@dataclass(frozen=True, slots=True)
class Record:
    """A message as the broker keeps it, for looking at in tests."""

    topic: str
    offset: int
    key: bytes | None
    headers: Headers
    payload: bytes | None
    dead_letter: DeadLetter | None


class MemoryBroker:
    """A broker in this process.

    Args:
        clock: The time that timestamps and the back-offs of its consumers go by.
        faults: What is to go wrong, for tests.
        retention: How many events that every group has acknowledged are kept in each topic, for groups to come.
            What a group has not acknowledged yet is kept regardless.
    """

    _named: ClassVar[dict[str, MemoryBroker]] = {}
    _naming = threading.Lock()

    def __init__(self, clock: Clock | None = None, faults: FaultHook | None = None, *, retention: int = 10_000) -> None:
        self.clock: Clock = SYSTEM_CLOCK if clock is None else clock
        self.faults: FaultHook | None = faults
        self.retention: int = retention
        self._lock = threading.Lock()
        self._topics: dict[str, Topic] = {}
        self._groups: dict[str, Group] = {}

    @classmethod
    def named(cls, name: str) -> MemoryBroker:
        """The broker that the URL ``memory://name`` means, made on first use."""
        with cls._naming:
            return cls._named.setdefault(name, cls())

    def records(self, topic: str) -> list[Record]:
        """What a topic keeps, oldest first."""
        with self._lock:
            found = self._topics.get(topic)
            return [] if found is None else [_record(found, offset) for offset in range(found.base, found.end)]

    @property
    def dead_letters(self) -> list[Record]:
        """What all dead-letter topics keep."""
        with self._lock:
            dead = [topic for topic in self._topics.values() if topic.is_dead]
            return [_record(topic, offset) for topic in dead for offset in range(topic.base, topic.end)]

    # --- for producers

    def publish(self, messages: Sequence[Message]) -> list[Receipt | DispytchError]:
        """Appends messages; the outcomes are aligned with them."""
        faults = self.faults
        if faults is not None:
            return [self._publish_faulty(message, faults) for message in messages]
        with self._lock:
            touched: dict[str, Topic] = {}
            now = int(self.clock.time() * 1000)
            append = self._append
            outcomes: list[Receipt | DispytchError] = [append(message, False, touched, now) for message in messages]
            self._freshen(touched)
        self._wake_readers(touched)
        return outcomes

    def _publish_faulty(self, message: Message, faults: FaultHook) -> Receipt | DispytchError:
        if faults.take("unreachable"):
            return EmitUnreachableError("the memory broker is unreachable: a fault that the test asked for")
        if faults.take("reject"):
            return EmitRejectedError("the memory broker refused the event: a fault that the test asked for")
        touched: dict[str, Topic] = {}
        with self._lock:
            now = int(self.clock.time() * 1000)
            receipt = self._append(message, False, touched, now)
            if faults.take("duplicate"):
                self._append(message, False, touched, now)
            self._freshen(touched)
        self._wake_readers(touched)
        if faults.take("lose_reply"):
            return EmitTimeoutError("no confirmation came from the memory broker: a fault that the test asked for")
        return receipt

    def _append(self, message: Message, is_dead: bool, touched: dict[str, Topic], now: int) -> Receipt:
        name = message.route.address
        topic = self._topics.get(name)
        if topic is None:
            topic = self._add_topic(name, is_dead)
        log = topic.log
        log.append((message.key, message.headers, message.payload, now))
        touched[name] = topic
        return new_receipt(Receipt, (message.id, name, None, topic.base + len(log) - 1, None))

    def _freshen(self, touched: dict[str, Topic]) -> None:
        for topic in touched.values():
            for cursor in topic.readers:
                cursor.group.freshen(cursor)

    def _wake_readers(self, touched: dict[str, Topic]) -> None:
        for topic in touched.values():
            for cursor in list(topic.readers):
                for member in list(cursor.group.members):
                    member.wake()

    def _add_topic(self, name: str, is_dead: bool) -> Topic:
        topic = self._topics[name] = Topic(name, is_dead)
        for group in self._groups.values():
            for member in group.members:
                if member.wants(topic):
                    group.attach(member, topic, 0)
        return topic

    # --- for consumers

    def join(
        self,
        group_id: str,
        member: Member | None,
        subscriptions: Sequence[Subscription],
        wake: Callable[[], None],
        from_start: bool,
    ) -> Member:
        """Makes a consumer a member of a group, or gives a member its subscriptions."""
        if self.faults is not None and self.faults.take("unreachable"):
            raise BrokerUnreachableError("the memory broker is unreachable: a fault that the test asked for")
        with self._lock:
            group = self._groups.setdefault(group_id, Group(group_id))
            skip_old = not from_start and not group.subscribed
            group.subscribed = group.subscribed or bool(subscriptions)
            if member is None or member not in group.members:
                member = Member(group, wake)
                group.add(member)
            member.wake = wake
            for subscription in subscriptions:
                for route in subscription.dead_letters:
                    if route.address not in self._topics:
                        self._add_topic(route.address, True)
                    self._topics[route.address].is_dead = True
            member.subscribe(subscriptions)
            for subscription in subscriptions:
                if subscription.pattern.is_literal and subscription.pattern.source not in self._topics:
                    self._add_topic(subscription.pattern.source, False)
            for topic in self._topics.values():
                if member.wants(topic):
                    group.attach(member, topic, topic.end if skip_old else topic.base)
            return member

    def leave(self, member: Member) -> None:
        """Ends a membership; what the member holds goes to others of its group, or to the next one that joins."""
        with self._lock:
            group = member.group
            if member not in group.members:
                return
            group.remove(member)
            others = list(group.members)
        for other in others:
            other.wake()

    def fetch(self, member: Member, limit: int) -> list[Delivery]:
        """The next entries for a member, at most ``limit``; none if there are none now."""
        if self.faults is not None and self.faults.take("disconnect"):
            self.leave(member)
            raise BrokerUnreachableError("the memory broker broke off: a fault that the test asked for")
        others: set[Member] = set()
        with self._lock:
            taken = _deliveries(member.group.take(member, limit, others))
        for other in others:
            other.wake()
        return taken

    def settle(self, member: Member, settlements: Iterable[Settlement]) -> list[tuple[Settlement, DispytchError]]:
        """Acknowledges, hands back, or writes dead letters and then acknowledges; returns what failed."""
        failed: list[tuple[Settlement, DispytchError]] = []
        faults = self.faults
        touched: dict[str, Topic] = {}
        done: dict[Cursor, list[int]] = {}
        with self._lock:
            put_down = member.group.put_down
            for settlement in settlements:
                delivery = settlement.delivery
                if faults is not None and faults.take("settle"):
                    failed.append((settlement, DeliveryError("a settlement failed: a fault that the test asked for")))
                    continue
                if settlement.outcome is Outcome.DEAD_LETTER:
                    if faults is not None and faults.take("dead_letter"):
                        failed.append((settlement, DeliveryError("the dead letter could not be written: a fault")))
                        continue
                    for message in settlement.dead_letters:
                        self._append(message, True, touched, int(self.clock.time() * 1000))
                place: Place = delivery.token
                if not put_down(member, place):
                    continue  # acknowledged before, or no longer this member's
                cursor, offset = place
                if settlement.outcome is Outcome.RELEASE:
                    cursor.failures[offset] = settlement.failures
                    member.group.give_back([place])
                    touched[cursor.topic.name] = cursor.topic
                elif cursor in done:
                    done[cursor].append(offset)
                else:
                    done[cursor] = [offset]
            self._freshen(touched)
            for cursor, offsets in done.items():
                cursor.done(offsets)
                self._trim(cursor)
        self._wake_readers(touched)
        return failed

    def _trim(self, cursor: Cursor) -> None:
        if not cursor.acknowledged_to():
            return
        topic = cursor.topic
        surplus = min(reader.settled for reader in topic.readers) - topic.base - self.retention
        if surplus > self.retention:  # trimmed in large steps, since cutting a list's head moves the rest
            del topic.log[:surplus]
            topic.base += surplus

    def backlog(self, member: Member) -> int:
        """How many entries wait for a member."""
        with self._lock:
            return sum(cursor.waiting for cursor in member.fresh) + len(member.inbox)

    def lag(self, member: Member) -> dict[str, int]:
        """How many entries nobody of a member's group has been given yet, by topic."""
        with self._lock:
            return {cursor.topic.name: cursor.waiting for cursor in member.cursors}


def _deliveries(places: Sequence[Place]) -> list[Delivery]:
    found: list[Delivery] = []
    for place in places:
        cursor, offset = place
        topic = cursor.topic
        name = topic.name
        key, headers, payload, timestamp_ms = topic.log[offset - topic.base]
        delivery = Delivery(name, payload, headers, timestamp_ms, key, f"{name}/{offset}", None, place)
        if cursor.failures:
            delivery.failures = cursor.failures.get(offset, delivery.failures)
        found.append(delivery)
    return found


def _record(topic: Topic, offset: int) -> Record:
    key, headers, payload, _ = topic.row(offset)
    return Record(topic.name, offset, key, headers, payload, read_dead_letter(headers))
