"""A clock that stands still until a test advances it."""

from __future__ import annotations

import threading

import anyio.lowlevel

from dispytch._bridge import Waker

__all__ = ["TestClock"]


class TestClock:
    """The time of a `MemoryBroker` and of the back-offs of its consumers; it moves only when told to.

    Args:
        now: The time it starts at, in seconds since the epoch.
    """

    __test__ = False  # not a test case of pytest

    def __init__(self, now: float = 1_000_000_000.0) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._sleepers: list[tuple[float, Waker]] = []

    def time(self) -> float:
        """Seconds since the epoch."""
        return self._now

    @property
    def sleepers(self) -> int:
        """How many tasks wait for this clock to be advanced; a test can wait for one before it does."""
        with self._lock:
            return sum(deadline > self._now for deadline, _ in self._sleepers)

    async def sleep(self, seconds: float) -> None:
        """Waits until the clock has been advanced by so much."""
        await anyio.lowlevel.checkpoint()
        if seconds <= 0:
            return
        sleeper = (self._now + seconds, Waker())
        with self._lock:
            self._sleepers.append(sleeper)
        try:
            while self._now < sleeper[0]:
                await sleeper[1].wait()
        finally:
            with self._lock:
                self._sleepers.remove(sleeper)

    def advance(self, seconds: float) -> None:
        """Moves the time forward, and wakes who has waited long enough. From any thread."""
        if seconds < 0:
            raise ValueError(f"time does not go back: advance({seconds})")
        with self._lock:
            self._now += seconds
            due = [waker for deadline, waker in self._sleepers if deadline <= self._now]
        for waker in due:
            waker.wake()

    def advance_to_next(self) -> bool:
        """Moves the time forward to when the first sleeper is due; False if nobody sleeps. From any thread."""
        with self._lock:
            ahead = [deadline for deadline, _ in self._sleepers if deadline > self._now]
        if not ahead:
            return False
        self.advance(max(0.0, min(ahead) - self._now))
        return True
