"""The in-process broker: topics that keep their messages, consumer groups, acknowledgement, redelivery, dead letters.

All methods may be called from any thread. The lock is held for lists and dictionaries only, never across a wait.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from dispytch._core.deadletters import read_dead_letter
from dispytch._core.patterns import Matcher
from dispytch._core.tracker import Tracker
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
)

__all__ = ["FaultHook", "FaultPoint", "MemoryBroker", "Record"]

FaultPoint = Literal["reject", "lose_reply", "unreachable", "disconnect", "settle", "dead_letter", "duplicate"]


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


class _Entry:
    __slots__ = ("failures", "headers", "key", "offset", "payload", "timestamp_ms", "topic")

    def __init__(
        self, topic: str, offset: int, key: bytes | None, headers: Headers, payload: bytes | None, timestamp_ms: int
    ) -> None:
        self.topic = topic
        self.offset = offset
        self.key = key
        self.headers = headers
        self.payload = payload
        self.timestamp_ms = timestamp_ms
        self.failures: Mapping[str, int] = {}


class _Topic:
    def __init__(self, name: str, is_dead: bool) -> None:
        self.name = name
        self.is_dead = is_dead
        self.base = 0
        """The offset of the first entry that is still kept."""
        self.log: list[_Entry] = []
        self.readers: list[_Cursor] = []

    @property
    def end(self) -> int:
        return self.base + len(self.log)


class _Cursor:
    """How far a group has come in a topic."""

    __slots__ = ("group", "next", "returned", "settled", "topic", "tracker")

    def __init__(self, group: _Group, topic: _Topic, start: int) -> None:
        self.group = group
        self.topic = topic
        self.next = start
        self.settled = start
        self.tracker = Tracker()
        self.returned: list[_Entry] = []
        """Handed back, in order of offset: delivered again before anything new."""


class Member:
    """A consumer of a group, as the broker knows it."""

    def __init__(self, group: _Group, wake: Callable[[], None]) -> None:
        self.group = group
        self.wake = wake
        self.subscriptions: tuple[Subscription, ...] = ()
        self.matchers: dict[str | None, Matcher[None]] = {}
        """Its patterns, by their delimiter."""
        self.cursors: deque[_Cursor] = deque()
        self.held: dict[tuple[str, int], tuple[_Cursor, _Entry]] = {}
        self.inbox: deque[tuple[_Cursor, _Entry]] = deque()
        """Entries whose key this member has in hand already: they wait for it, others of the group skip them."""


class _Group:
    def __init__(self, name: str) -> None:
        self.name = name
        self.subscribed = False
        self.cursors: dict[str, _Cursor] = {}
        self.members: list[Member] = []
        self.owners: dict[tuple[str, bytes], tuple[Member, int]] = {}
        """Which member holds a key's entries, and how many; kept while the group has several members."""


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
        self.faults = faults
        self.retention = retention
        self._lock = threading.Lock()
        self._topics: dict[str, _Topic] = {}
        self._groups: dict[str, _Group] = {}

    @classmethod
    def named(cls, name: str) -> MemoryBroker:
        """The broker that the URL ``memory://name`` means, made on first use."""
        with cls._naming:
            return cls._named.setdefault(name, cls())

    def records(self, topic: str) -> list[Record]:
        """What a topic keeps, oldest first."""
        with self._lock:
            found = self._topics.get(topic)
            return [] if found is None else [_record(entry) for entry in found.log]

    @property
    def dead_letters(self) -> list[Record]:
        """What all dead-letter topics keep."""
        with self._lock:
            return [_record(entry) for topic in self._topics.values() if topic.is_dead for entry in topic.log]

    # --- for producers

    def publish(self, messages: Sequence[Message]) -> list[Receipt | DispytchError]:
        """Appends messages; the outcomes are aligned with them."""
        faults = self.faults
        if faults is not None:
            return [self._publish_faulty(message, faults) for message in messages]
        with self._lock:
            touched: dict[str, _Topic] = {}
            now = int(self.clock.time() * 1000)
            outcomes: list[Receipt | DispytchError] = [
                self._append(message, False, touched, now) for message in messages
            ]
        self._wake_readers(touched)
        return outcomes

    def _publish_faulty(self, message: Message, faults: FaultHook) -> Receipt | DispytchError:
        if faults.take("unreachable"):
            return EmitRejectedError("the memory broker is unreachable: a fault that the test asked for")
        if faults.take("reject"):
            return EmitRejectedError("the memory broker refused the event: a fault that the test asked for")
        touched: dict[str, _Topic] = {}
        with self._lock:
            now = int(self.clock.time() * 1000)
            receipt = self._append(message, False, touched, now)
            if faults.take("duplicate"):
                self._append(message, False, touched, now)
        self._wake_readers(touched)
        if faults.take("lose_reply"):
            return EmitTimeoutError("no confirmation came from the memory broker: a fault that the test asked for")
        return receipt

    def _append(self, message: Message, is_dead: bool, touched: dict[str, _Topic], now: int) -> Receipt:
        name = message.route.address
        topic = self._topics.get(name)
        if topic is None:
            topic = self._add_topic(name, is_dead)
        offset = topic.base + len(topic.log)
        topic.log.append(_Entry(name, offset, message.key, message.headers, message.payload, now))
        touched[name] = topic
        return Receipt(message.id, name, None, offset)

    def _wake_readers(self, touched: dict[str, _Topic]) -> None:
        for topic in touched.values():
            for cursor in list(topic.readers):
                for member in list(cursor.group.members):
                    member.wake()

    def _add_topic(self, name: str, is_dead: bool) -> _Topic:
        topic = self._topics[name] = _Topic(name, is_dead)
        for group in self._groups.values():
            for member in group.members:
                if _wants(member, topic):
                    self._attach(member, topic, 0)
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
            group = self._groups.setdefault(group_id, _Group(group_id))
            skip_old = not from_start and not group.subscribed
            group.subscribed = group.subscribed or bool(subscriptions)
            if member is None or member not in group.members:
                member = Member(group, wake)
                group.members.append(member)
                if len(group.members) == 2:
                    group.owners = _owners(group.members[0])
            member.wake = wake
            for subscription in subscriptions:
                for route in subscription.dead_letters:
                    if route.address not in self._topics:
                        self._add_topic(route.address, True)
                    self._topics[route.address].is_dead = True
            member.subscriptions = tuple(subscriptions)
            member.matchers = {}
            for subscription in subscriptions:
                delimiter = subscription.pattern.delimiter
                member.matchers.setdefault(delimiter, Matcher(delimiter)).add(subscription.pattern, None)
                if subscription.pattern.is_literal and subscription.pattern.source not in self._topics:
                    self._topics[subscription.pattern.source] = _Topic(subscription.pattern.source, False)
            for topic in self._topics.values():
                if _wants(member, topic):
                    self._attach(member, topic, topic.end if skip_old else topic.base)
            return member

    def _attach(self, member: Member, topic: _Topic, start: int) -> None:
        cursors = member.group.cursors
        cursor = cursors.get(topic.name)
        if cursor is None:
            cursor = cursors[topic.name] = _Cursor(member.group, topic, start)
            topic.readers.append(cursor)
        if cursor not in member.cursors:
            member.cursors.append(cursor)

    def leave(self, member: Member) -> None:
        """Ends a membership; what the member holds goes to others of its group, or to the next one that joins."""
        with self._lock:
            group = member.group
            if member not in group.members:
                return
            group.members.remove(member)
            for cursor, entry in [*member.held.values(), *member.inbox]:
                cursor.returned.append(entry)
            for cursor in member.cursors:
                cursor.returned.sort(key=_offset)
            member.held.clear()
            member.inbox.clear()
            group.owners = (
                _owners(group.members[0])
                if len(group.members) == 1
                else {key: owner for key, owner in group.owners.items() if owner[0] is not member}
            )
            others = list(group.members)
        for other in others:
            other.wake()

    def fetch(self, member: Member, limit: int) -> list[Delivery]:
        """The next entries for a member, at most ``limit``; none if there are none now."""
        if self.faults is not None and self.faults.take("disconnect"):
            self.leave(member)
            raise BrokerUnreachableError("the memory broker broke off: a fault that the test asked for")
        taken: list[Delivery] = []
        others: set[Member] = set()
        with self._lock:
            while member.inbox and len(taken) < limit:
                cursor, entry = member.inbox.popleft()
                taken.append(_deliver(member, cursor, entry))
            for _ in range(len(member.cursors)):
                if len(taken) >= limit:
                    break
                cursor = member.cursors[0]
                member.cursors.rotate(-1)
                self._fetch_from(member, cursor, limit, taken, others)
        for other in others:
            other.wake()
        return taken

    def _fetch_from(
        self, member: Member, cursor: _Cursor, limit: int, taken: list[Delivery], others: set[Member]
    ) -> None:
        alone = len(member.group.members) == 1
        while cursor.returned and len(taken) < limit:
            entry = cursor.returned.pop(0)
            if alone or self._claim(member, cursor, entry, others):
                taken.append(_deliver(member, cursor, entry))
        topic = cursor.topic
        if cursor.next < topic.base:
            cursor.next = topic.base
        while len(taken) < limit and cursor.next < topic.end:
            start = cursor.next - topic.base
            for entry in topic.log[start : start + limit - len(taken)]:
                cursor.tracker.add(entry.offset)
                cursor.next = entry.offset + 1
                if alone or self._claim(member, cursor, entry, others):
                    taken.append(_deliver(member, cursor, entry))

    def _claim(self, member: Member, cursor: _Cursor, entry: _Entry, others: set[Member]) -> bool:
        """Whether the entry is for this member; otherwise it goes to the one that has its key in hand."""
        if entry.key is None:
            return True
        key = (entry.topic, entry.key)
        owners = member.group.owners
        owner, count = owners.get(key, (member, 0))
        owners[key] = (owner, count + 1)
        if owner is member:
            return True
        owner.inbox.append((cursor, entry))
        others.add(owner)
        return False

    def settle(self, member: Member, settlements: Iterable[Settlement]) -> list[tuple[Settlement, DispytchError]]:
        """Acknowledges, hands back, or writes dead letters and then acknowledges; returns what failed."""
        failed: list[tuple[Settlement, DispytchError]] = []
        faults = self.faults
        touched: dict[str, _Topic] = {}
        advanced: dict[_Cursor, None] = {}
        with self._lock:
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
                held = member.held.pop(delivery.token, None)
                if held is None:
                    continue  # acknowledged before, or no longer this member's
                cursor, entry = held
                self._disown(member, entry)
                if settlement.outcome is Outcome.RELEASE:
                    entry.failures = settlement.failures
                    cursor.returned.append(entry)
                    cursor.returned.sort(key=_offset)
                    touched[entry.topic] = cursor.topic
                else:
                    cursor.tracker.done(entry.offset)
                    advanced[cursor] = None
            for cursor in advanced:
                self._advance(cursor)
        self._wake_readers(touched)
        return failed

    def _disown(self, member: Member, entry: _Entry) -> None:
        owners = member.group.owners
        if owners and entry.key is not None:
            key = (entry.topic, entry.key)
            owner, count = owners.get(key, (member, 0))
            if count > 1:
                owners[key] = (owner, count - 1)
            else:
                owners.pop(key, None)

    def _advance(self, cursor: _Cursor) -> None:
        last = cursor.tracker.advance()
        if last is None:
            return
        cursor.settled = last + 1
        topic = cursor.topic
        surplus = min(reader.settled for reader in topic.readers) - topic.base - self.retention
        if surplus > self.retention:  # trimmed in large steps, since cutting a list's head moves the rest
            del topic.log[:surplus]
            topic.base += surplus

    def backlog(self, member: Member) -> int:
        """How many entries wait for a member."""
        with self._lock:
            waiting = sum(
                len(cursor.returned) + max(0, cursor.topic.end - max(cursor.next, cursor.topic.base))
                for cursor in member.cursors
            )
            return waiting + len(member.inbox)


def _offset(entry: _Entry) -> int:
    return entry.offset


def _wants(member: Member, topic: _Topic) -> bool:
    if not topic.is_dead:
        return any(matcher.match(topic.name) for matcher in member.matchers.values())
    # Wildcards never match a dead-letter topic: whoever wants it names it.
    return any(item.pattern.is_literal and item.pattern.source == topic.name for item in member.subscriptions)


def _owners(member: Member) -> dict[tuple[str, bytes], tuple[Member, int]]:
    owners: dict[tuple[str, bytes], tuple[Member, int]] = {}
    for _, entry in [*member.held.values(), *member.inbox]:
        if entry.key is not None:
            key = (entry.topic, entry.key)
            owners[key] = (member, owners.get(key, (member, 0))[1] + 1)
    return owners


def _deliver(member: Member, cursor: _Cursor, entry: _Entry) -> Delivery:
    token = (entry.topic, entry.offset)
    member.held[token] = (cursor, entry)
    return Delivery(
        entry.topic,
        entry.payload,
        entry.headers,
        timestamp_ms=entry.timestamp_ms,
        key=entry.key,
        position=f"{entry.topic}/{entry.offset}",
        failures=entry.failures,
        token=token,
    )


def _record(entry: _Entry) -> Record:
    return Record(entry.topic, entry.offset, entry.key, entry.headers, entry.payload, read_dead_letter(entry.headers))
