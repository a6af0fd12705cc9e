"""Consumer groups of the in-process broker: who gets what, in which order. Plain data; the broker holds the lock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from zlib import crc32

from dispytch._core.patterns import Matcher
from dispytch._core.tracker import Tracker
from dispytch.abc import Headers, Subscription

__all__ = ["Cursor", "Group", "Member", "Place", "Row", "Topic"]


Row = tuple[bytes | None, Headers, bytes | None, int]
"""A message in a topic's log: key, headers, payload, milliseconds since the epoch.

A plain tuple, which the garbage collector soon leaves alone: a backlog of a million messages costs it nothing.
"""

Place = tuple["Cursor", int]
"""An offset in a topic that a group reads."""


class Topic:
    """A topic's log, with what reads it."""

    def __init__(self, name: str, is_dead: bool) -> None:
        self.name: str = name
        self.is_dead: bool = is_dead
        self.base = 0
        """The offset of the first entry that is still kept."""
        self.log: list[Row] = []
        self.readers: list[Cursor] = []

    @property
    def end(self) -> int:
        return self.base + len(self.log)

    def row(self, offset: int) -> Row:
        return self.log[offset - self.base]


class Cursor:
    """How far a group has come in a topic."""

    __slots__ = ("failures", "group", "next", "returned", "settled", "topic", "tracker")

    def __init__(self, group: Group, topic: Topic, start: int) -> None:
        self.group: Group = group
        self.topic: Topic = topic
        self.next: int = start
        self.settled: int = start
        """Everything before this offset is acknowledged."""
        self.tracker: Tracker = Tracker()
        self.returned: deque[int] = deque()
        """Handed back, in order: delivered again before anything new."""
        self.failures: dict[int, Mapping[str, int]] = {}
        """What is known of the failures of what was handed back."""

    def give_back(self, offsets: Sequence[int]) -> None:
        """Takes entries back, so that they are delivered again."""
        self.returned = deque(sorted((*self.returned, *offsets)))

    def upcoming(self, limit: int) -> Sequence[int]:
        """Takes the next entries, at most ``limit``; what was handed back comes first."""
        if self.returned:
            return [self.returned.popleft() for _ in range(min(limit, len(self.returned)))]
        first = max(self.next, self.topic.base)
        fresh = range(first, min(first + limit, self.topic.end))
        self.tracker.add(fresh)
        self.next = fresh.stop
        return fresh

    def done(self, offsets: Sequence[int]) -> None:
        """Notes that entries are acknowledged."""
        self.tracker.done(offsets)
        if self.failures:
            for offset in offsets:
                self.failures.pop(offset, None)

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


class Member:
    """A consumer of a group."""

    def __init__(self, group: Group, wake: Callable[[], None]) -> None:
        self.group: Group = group
        self.wake: Callable[[], None] = wake
        self._matchers: dict[str | None, Matcher[None]] = {}
        self._named: set[str] = set()
        self.cursors: dict[Cursor, None] = {}
        """What it reads."""
        self.fresh: dict[Cursor, None] = {}
        """Those of them that may have something for it; the next one to look at comes first."""
        self.held: set[Place] = set()
        """What was delivered and is not settled."""
        self.inbox: deque[Place] = deque()
        """What another member came across, and is this one's by its key."""

    def subscribe(self, subscriptions: Sequence[Subscription]) -> None:
        self._matchers = {}
        self._named = {item.pattern.source for item in subscriptions if item.pattern.is_literal}
        for subscription in subscriptions:
            delimiter = subscription.pattern.delimiter
            self._matchers.setdefault(delimiter, Matcher(delimiter)).add(subscription.pattern, None)

    def wants(self, topic: Topic) -> bool:
        """Whether a subscription is for a topic; a dead-letter topic must be named, wildcards pass it by."""
        if topic.is_dead:
            return topic.name in self._named
        return any(matcher.match(topic.name) for matcher in self._matchers.values())


class Group:
    """Members that share the messages of their topics; each key is one member's at a time.

    While there are several members, a key belongs to one of them by its hash. When members come or go it may move: then
    its entries wait until the member that has some in hand is done with them, so that no two of a key are in hand at
    different members.
    """

    def __init__(self, name: str) -> None:
        self.name: str = name
        self.subscribed = False
        self.cursors: dict[str, Cursor] = {}
        self.members: list[Member] = []
        self._in_hand: dict[tuple[str, bytes], tuple[Member, int]] = {}
        self._moving: dict[tuple[str, bytes], deque[Place]] = {}

    def add(self, member: Member) -> None:
        self.members.append(member)
        self.give_back([])

    def remove(self, member: Member) -> None:
        self.members.remove(member)
        self.give_back([*member.held, *member.inbox])
        member.held.clear()
        member.inbox.clear()

    def attach(self, member: Member, topic: Topic, start: int) -> None:
        """Has a member read a topic; a topic that is new to the group is read from an offset."""
        cursor = self.cursors.get(topic.name)
        if cursor is None:
            cursor = self.cursors[topic.name] = Cursor(self, topic, start)
            topic.readers.append(cursor)
        member.cursors[cursor] = None
        if cursor.waiting:
            self.freshen(cursor)

    def freshen(self, cursor: Cursor) -> None:
        """Something has come for those who read a topic, or has come back."""
        for member in self.members:
            if cursor in member.cursors:
                member.fresh[cursor] = None

    def take(self, member: Member, limit: int, others: set[Member]) -> list[Place]:
        """The next entries for a member, at most ``limit``; members who got something meanwhile go to ``others``."""
        taken: list[Place] = []
        while member.inbox and len(taken) < limit:
            taken.append(self._hand_over(member, member.inbox.popleft()))
        alone = len(self.members) == 1
        fresh = member.fresh
        while fresh and len(taken) < limit:
            cursor = next(iter(fresh))
            del fresh[cursor]
            while len(taken) < limit and cursor.waiting:
                places = [(cursor, offset) for offset in cursor.upcoming(limit - len(taken))]
                if alone:
                    member.held.update(places)
                    taken += places
                else:
                    taken += [self._hand_over(member, place) for place in places if self._is_for(member, place, others)]
            if cursor.waiting:
                fresh[cursor] = None  # the next time another topic is first
        return taken

    def put_down(self, member: Member, place: Place) -> bool:
        """Ends a member's hold of an entry; False if it has none."""
        if place not in member.held:
            return False
        member.held.remove(place)
        if len(self.members) > 1 and (key := _key(place)) is not None:
            owner, count = self._in_hand.pop(key, (member, 1))
            if count > 1:
                self._in_hand[key] = (owner, count - 1)
            elif key in self._moving:
                moved = self._moving.pop(key)
                target = self._target(moved[0], key)
                target.inbox.extend(moved)
                target.wake()
        return True

    def give_back(self, places: Sequence[Place]) -> None:
        """Takes entries back, and with them all that wait for a member, so that everything is handed out in order."""
        returned = [*places]
        for waiting in [*self._moving.values(), *(member.inbox for member in self.members)]:
            returned += waiting
            waiting.clear()
        self._moving.clear()
        by_cursor: dict[Cursor, list[int]] = {}
        for cursor, offset in returned:
            by_cursor.setdefault(cursor, []).append(offset)
        for cursor, offsets in by_cursor.items():
            cursor.give_back(offsets)
            self.freshen(cursor)
        if returned:  # of any topic: nobody else would tell those who read it
            for member in self.members:
                member.wake()
        self._in_hand.clear()
        if len(self.members) > 1:
            for member in self.members:
                for place in member.held:
                    self._note(member, place)

    def _hand_over(self, member: Member, place: Place) -> Place:
        member.held.add(place)
        if len(self.members) > 1:
            self._note(member, place)
        return place

    def _note(self, member: Member, place: Place) -> None:
        if (key := _key(place)) is not None:
            self._in_hand[key] = (member, self._in_hand.get(key, (member, 0))[1] + 1)

    def _is_for(self, member: Member, place: Place, others: set[Member]) -> bool:
        key = _key(place)
        if key is None:
            return True
        target = self._target(place, key)
        if self._in_hand.get(key, (target, 0))[0] is not target:
            self._moving.setdefault(key, deque()).append(place)
            return False
        if target is member:
            return True
        target.inbox.append(place)
        others.add(target)
        return False

    def _target(self, place: Place, key: tuple[str, bytes]) -> Member:
        readers = [member for member in self.members if place[0] in member.cursors]
        return readers[crc32(key[1]) % len(readers)]


def _key(place: Place) -> tuple[str, bytes] | None:
    cursor, offset = place
    key = cursor.topic.row(offset)[0]
    return None if key is None else (cursor.topic.name, key)
