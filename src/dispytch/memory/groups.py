"""Consumer groups of the in-process broker: who gets what, in which order. Plain data; the broker holds the lock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from zlib import crc32

from dispytch._core.patterns import Matcher
from dispytch._core.tracker import Tracker
from dispytch.abc import Headers, Subscription

__all__ = ["Cursor", "Entry", "Group", "Member", "Topic"]

_NO_FAILURES: Mapping[str, int] = {}


class Entry:
    """A message in a topic's log."""

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
        self.failures = _NO_FAILURES


class Topic:
    """A topic's log, with what reads it."""

    def __init__(self, name: str, is_dead: bool) -> None:
        self.name = name
        self.is_dead = is_dead
        self.base = 0
        """The offset of the first entry that is still kept."""
        self.log: list[Entry] = []
        self.readers: list[Cursor] = []

    @property
    def end(self) -> int:
        return self.base + len(self.log)


class Cursor:
    """How far a group has come in a topic."""

    __slots__ = ("group", "next", "returned", "settled", "topic", "tracker")

    def __init__(self, group: Group, topic: Topic, start: int) -> None:
        self.group = group
        self.topic = topic
        self.next = start
        self.settled = start
        """Everything before this offset is acknowledged."""
        self.tracker = Tracker()
        self.returned: deque[Entry] = deque()
        """Handed back, in order of offset: delivered again before anything new."""

    def give_back(self, entries: Sequence[Entry]) -> None:
        """Takes entries back, so that they are delivered again."""
        self.returned = deque(sorted((*self.returned, *entries), key=_offset))

    def upcoming(self, limit: int) -> Iterator[Entry]:
        """The next entries, at most ``limit``; what was handed back comes first."""
        while self.returned and limit > 0:
            limit -= 1
            yield self.returned.popleft()
        self.next = max(self.next, self.topic.base)
        start = self.next - self.topic.base
        for entry in self.topic.log[start : start + limit]:
            self.tracker.add(entry.offset)
            self.next = entry.offset + 1
            yield entry

    @property
    def waiting(self) -> int:
        """How many entries nobody has been given yet."""
        return len(self.returned) + max(0, self.topic.end - max(self.next, self.topic.base))

    def acknowledged_to(self) -> bool:
        """Notes progress; False if there is none."""
        last = self.tracker.advance()
        if last is None:
            return False
        self.settled = last + 1
        return True


def _offset(entry: Entry) -> int:
    return entry.offset


class Member:
    """A consumer of a group."""

    def __init__(self, group: Group, wake: Callable[[], None]) -> None:
        self.group = group
        self.wake = wake
        self.subscriptions: tuple[Subscription, ...] = ()
        self._matchers: dict[str | None, Matcher[None]] = {}
        self.cursors: deque[Cursor] = deque()
        self.held: dict[tuple[str, int], tuple[Cursor, Entry]] = {}
        """What was delivered and is not settled."""
        self.inbox: deque[tuple[Cursor, Entry]] = deque()
        """What another member came across, and is this one's by its key."""

    def subscribe(self, subscriptions: Sequence[Subscription]) -> None:
        self.subscriptions = tuple(subscriptions)
        self._matchers = {}
        for subscription in subscriptions:
            delimiter = subscription.pattern.delimiter
            self._matchers.setdefault(delimiter, Matcher(delimiter)).add(subscription.pattern, None)

    def wants(self, topic: Topic) -> bool:
        """Whether a subscription is for a topic; a dead-letter topic must be named, wildcards pass it by."""
        if topic.is_dead:
            return any(item.pattern.is_literal and item.pattern.source == topic.name for item in self.subscriptions)
        return any(matcher.match(topic.name) for matcher in self._matchers.values())


class Group:
    """Members that share the messages of their topics; each key is one member's at a time.

    While there are several members, a key belongs to one of them by its hash. When members come or go it may move: then
    its entries wait until the member that has some in hand is done with them, so that no two of a key are in hand at
    different members.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.subscribed = False
        self.cursors: dict[str, Cursor] = {}
        self.members: list[Member] = []
        self._in_hand: dict[tuple[str, bytes], tuple[Member, int]] = {}
        self._moving: dict[tuple[str, bytes], deque[tuple[Cursor, Entry]]] = {}

    def add(self, member: Member) -> None:
        self.members.append(member)
        self.give_back([])

    def remove(self, member: Member) -> None:
        self.members.remove(member)
        self.give_back([*member.held.values(), *member.inbox])
        member.held.clear()
        member.inbox.clear()

    def attach(self, member: Member, topic: Topic, start: int) -> None:
        """Has a member read a topic; a topic that is new to the group is read from an offset."""
        cursor = self.cursors.get(topic.name)
        if cursor is None:
            cursor = self.cursors[topic.name] = Cursor(self, topic, start)
            topic.readers.append(cursor)
        if cursor not in member.cursors:
            member.cursors.append(cursor)

    def take(self, member: Member, limit: int, others: set[Member]) -> list[tuple[Cursor, Entry]]:
        """The next entries for a member, at most ``limit``; members who got something meanwhile go to ``others``."""
        taken: list[tuple[Cursor, Entry]] = []
        while member.inbox and len(taken) < limit:
            taken.append(self._hand_over(member, *member.inbox.popleft()))
        alone = len(self.members) == 1
        for _ in range(len(member.cursors)):
            cursor = member.cursors[0]
            member.cursors.rotate(-1)  # the next time another topic is first
            while len(taken) < limit and cursor.waiting:
                for entry in cursor.upcoming(limit - len(taken)):
                    if alone or self._is_for(member, cursor, entry, others):
                        taken.append(self._hand_over(member, cursor, entry))
        return taken

    def put_down(self, member: Member, token: tuple[str, int]) -> tuple[Cursor, Entry] | None:
        """Ends a member's hold of an entry; ``None`` if it has none."""
        held = member.held.pop(token, None)
        if held is None or held[1].key is None or len(self.members) < 2:
            return held
        key = (held[1].topic, held[1].key)
        owner, count = self._in_hand.pop(key, (member, 1))
        if count > 1:
            self._in_hand[key] = (owner, count - 1)
        elif key in self._moving:
            moved = self._moving.pop(key)
            target = self._target(*moved[0])
            target.inbox.extend(moved)
            target.wake()
        return held

    def _hand_over(self, member: Member, cursor: Cursor, entry: Entry) -> tuple[Cursor, Entry]:
        member.held[entry.topic, entry.offset] = (cursor, entry)
        if entry.key is not None and len(self.members) > 1:
            key = (entry.topic, entry.key)
            self._in_hand[key] = (member, self._in_hand.get(key, (member, 0))[1] + 1)
        return cursor, entry

    def _is_for(self, member: Member, cursor: Cursor, entry: Entry, others: set[Member]) -> bool:
        if entry.key is None:
            return True
        target = self._target(cursor, entry)
        key = (entry.topic, entry.key)
        if self._in_hand.get(key, (target, 0))[0] is not target:
            self._moving.setdefault(key, deque()).append((cursor, entry))
            return False
        if target is member:
            return True
        target.inbox.append((cursor, entry))
        others.add(target)
        return False

    def _target(self, cursor: Cursor, entry: Entry) -> Member:
        readers = [member for member in self.members if cursor in member.cursors]
        return readers[crc32(entry.key or b"") % len(readers)]

    def give_back(self, entries: list[tuple[Cursor, Entry]]) -> None:
        """Takes entries back, and with them all that wait for a member, so that everything is handed out in order."""
        given_back = [*entries]
        for waiting in [*self._moving.values(), *(member.inbox for member in self.members)]:
            given_back += waiting
            waiting.clear()
        self._moving.clear()
        by_cursor: dict[Cursor, list[Entry]] = {}
        for cursor, entry in given_back:
            by_cursor.setdefault(cursor, []).append(entry)
        for cursor, returned in by_cursor.items():
            cursor.give_back(returned)
        self._in_hand.clear()
        if len(self.members) > 1:
            for member in self.members:
                for _, entry in member.held.values():
                    if entry.key is not None:
                        key = (entry.topic, entry.key)
                        self._in_hand[key] = (member, self._in_hand.get(key, (member, 0))[1] + 1)
