"""An assigned partition: what was received of it, what of that is done, and what of that was committed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from dispytch._core.tracker import Tracker

__all__ = ["Partition", "Token"]


class Partition:
    """One partition for as long as it is assigned.

    Shared by the loop and the thread: those methods that both call are called under the reader's lock.

    Attributes:
        is_lost: It is somebody else's now; what is settled of it is dropped.
        is_full: So many events lie behind its oldest unfinished one that no more are to be fetched.
        last: The last offset that was handed over to the loop; kept by the thread.
        wanted: The offset to commit, the next one that somebody else would begin with; ``None`` if there is none.
        committed: The one that was committed last, or is being committed.
        failures: What is known of the failures of events that are not done, by offset; committed with the offset.
    """

    __slots__ = (
        "_first",
        "committed",
        "committed_before",
        "failures",
        "has_news",
        "is_full",
        "is_lost",
        "is_taken",
        "key",
        "last",
        "tracker",
        "wanted",
    )

    def __init__(self, topic: str, number: int, is_taken: bool) -> None:
        self.key: tuple[str, int] = (topic, number)
        self.is_taken: bool = is_taken
        """Whether its topic is for us at all; a pattern may match more than it should."""
        self.tracker: Tracker = Tracker()
        self.is_lost: bool = False
        self.is_full: bool = False
        self.last: int = -1
        self.wanted: int | None = None
        self.committed: int | None = None
        self.committed_before: int | None = None
        """What others had committed when it was assigned; negative for nothing, ``None`` if that is not known."""
        self.failures: dict[int, Mapping[str, int]] = {}
        self.has_news: bool = False
        """There are failures that were not committed."""
        self._first: int | None = None

    def add(self, offsets: Sequence[int]) -> None:
        """Notes that events were received."""
        self.last = offsets[-1]
        self.tracker.add(offsets)
        if self._first is None:
            self._first = offsets[0]

    def failed(self, offset: int, failures: Mapping[str, int]) -> None:
        """Notes the failures of an event that is to come again."""
        self.failures[offset] = failures
        self.has_news = True

    def done(self, offsets: Collection[int]) -> None:
        """Notes that events need nothing more."""
        self.tracker.done(offsets)
        if (reached := self.tracker.advance()) is not None:
            self.wanted = reached + 1
        if self.failures:
            for offset in offsets:
                self.failures.pop(offset, None)

    def lag(self, low: int, high: int) -> int | None:
        """How many messages lie behind what is done, between the offsets that there are; ``None`` if that is not known.

        Args:
            low, high: The first offset that there is, and the one after the last; negative if they are not known.
        """
        done = self._done
        if done is None or high < 0:
            return None
        return max(0, high - (max(low, 0) if done < 0 else done))

    def has_come(self, low: int, high: int) -> bool:
        """Whether all that lies between the offsets that there are was received, be it earlier; see `lag`."""
        if high < 0:
            return False
        done = self._done
        begins = low if done is None or done < 0 else done
        return (self.last + 1 if self.last >= 0 else begins) >= high

    @property
    def _done(self) -> int | None:
        return next((at for at in (self.wanted, self.committed, self.committed_before) if at is not None), None)

    @property
    def to_commit(self) -> int | None:
        if self.has_news:  # which go with an offset, be it the same again
            return self._first if self.wanted is None else self.wanted
        return None if self.wanted == self.committed else self.wanted


Token = tuple[Partition, int]
"""A delivery's partition, while it was assigned, and its offset."""
