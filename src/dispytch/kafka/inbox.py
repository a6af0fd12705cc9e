"""What a reader's thread has fetched and the loop has not taken yet, bounded in number and in bytes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence

from dispytch.abc import Delivery

__all__ = ["Inbox"]

_MOST_BYTES = 16 * 1024 * 1024


class Inbox:
    """Batches on their way from the thread to the loop.

    Args:
        most: Messages that wait before the thread stops fetching.
        lock: The reader's, under which the thread puts batches in.
    """

    def __init__(self, most: int, lock: threading.Lock) -> None:
        self.most: int = most
        self._lock = lock
        self._batches: deque[tuple[list[Delivery], int]] = deque()
        self._count = 0
        self._bytes = 0
        self._head: list[Delivery] = []
        self._head_at = 0
        self._again: list[Delivery] = []
        self._room = threading.Event()

    def __len__(self) -> int:
        return self._count + len(self._again)

    # --- in the thread

    @property
    def is_full(self) -> bool:
        return self._count >= self.most or self._bytes >= _MOST_BYTES

    @property
    def is_half_empty(self) -> bool:
        return self._count <= self.most // 2 and self._bytes <= _MOST_BYTES // 2

    def put(self, deliveries: list[Delivery], size: int) -> None:
        """Adds a batch. Under the lock."""
        self._count += len(deliveries)
        self._bytes += size
        self._batches.append((deliveries, size))

    def wait_for_room(self, seconds: float) -> None:
        self._room.wait(seconds)
        self._room.clear()

    # --- in the loop

    def take(self, limit: int) -> list[Delivery]:
        """The next deliveries, less those of partitions that were lost meanwhile."""
        found: list[Delivery] = []
        if self._again:
            self._again, again = self._again[limit:], self._again[:limit]
            found += [delivery for delivery in again if not delivery.token[0].is_lost]
        while len(found) < limit:
            if self._head_at >= len(self._head) and not self._next_head():
                break
            part = self._head[self._head_at : self._head_at + limit - len(found)]
            self._head_at += len(part)
            found += [delivery for delivery in part if not delivery.token[0].is_lost]
        return found

    def put_back(self, deliveries: Sequence[Delivery]) -> None:
        """Has deliveries come again."""
        self._again += deliveries

    def tell_room(self) -> None:
        """Wakes the thread, if it waits for room."""
        if not self._room.is_set():
            self._room.set()

    def _next_head(self) -> bool:
        self._head, self._head_at = [], 0
        if not self._batches:
            return False
        with self._lock:
            self._head, size = self._batches.popleft()
            self._count -= len(self._head)
            self._bytes -= size
        self.tell_room()
        return True
