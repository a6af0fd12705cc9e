"""Which positions may be acknowledged: the prefix that is complete, however the completions were ordered."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

__all__ = ["Tracker"]


class Tracker:
    """Tracks the completion of positions (offsets, delivery tags), which increase but need not be consecutive.

    Every operation takes constant time, amortised, unless it says otherwise.
    """

    __slots__ = ("_last", "_open", "_order", "_reached")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything, including progress that ``advance`` has not returned: the assignment was lost.

        Positions may start anywhere afterwards. An acknowledgement from before is not told from one after, where a
        position is received again; use a new tracker for each assignment where that can be.
        """
        self._last: int | None = None
        self._reached: int | None = None
        # In order of receipt, beginning with the oldest incomplete position.
        self._order: deque[int] = deque()
        self._open: set[int] = set()

    def add(self, positions: Sequence[int]) -> None:
        """Receive positions, which must increase; ``ValueError`` if the first is not greater than the one before."""
        if not positions:
            return
        if self._last is not None and positions[0] <= self._last:
            raise ValueError(f"position {positions[0]} was received after {self._last}")
        self._last = positions[-1]
        self._order.extend(positions)
        self._open.update(positions)

    def done(self, positions: Iterable[int]) -> None:
        """Mark positions complete; those that are unknown, or were complete already, are no error."""
        still_open, order = self._open, self._order
        still_open.difference_update(positions)
        while order and order[0] not in still_open:
            self._reached = order.popleft()

    def advance(self) -> int | None:
        """Return the last position of the complete prefix, or None if it has not grown since the last call.

        That position and all received before it are complete.
        """
        reached, self._reached = self._reached, None
        return reached

    @property
    def last_done(self) -> int | None:
        """The last complete position that has an incomplete one before it, if any. Takes time linear in ``len``."""
        return next((position for position in reversed(self._order) if position not in self._open), None)

    @property
    def pending(self) -> int:
        """How many positions were received and are not complete."""
        return len(self._open)

    def __len__(self) -> int:
        """How many positions are held in memory: the oldest incomplete one and all received after it."""
        return len(self._order)
