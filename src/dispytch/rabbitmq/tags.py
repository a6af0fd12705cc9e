"""Which delivery tags to acknowledge how: in ranges as far as nothing is open before them, singly behind a gap."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["Tags", "Verdict"]


class Verdict(NamedTuple):
    """What to tell the broker, in this order.

    Attributes:
        release: Tags to hand back, one by one.
        up_to: Acknowledge this tag and all before it, with ``multiple``; ``None`` for none.
        single: Tags to acknowledge one by one.
    """

    release: list[int]
    up_to: int | None
    single: list[int]


class Tags:
    """The tags of one channel that are not settled.

    RabbitMQ closes the channel where a tag is settled twice, also as the end of a range. What is settled is forgotten
    here, so a range always ends at a tag that is open at the broker too; and however long the oldest event takes, no
    more is held than the prefetch window. (`Tracker` would keep everything behind it.)

    Args:
        ranges: Whether tags may be acknowledged in ranges: nobody else receives on the channel.
    """

    __slots__ = ("_open", "_ranges")

    def __init__(self, ranges: bool = True) -> None:
        self._open: dict[int, None] = {}
        self._ranges = ranges

    def add(self, tag: int) -> None:
        """Receive a tag; tags come in ascending order."""
        self._open[tag] = None

    def settle(self, acknowledged: Iterable[int], released: Iterable[int]) -> Verdict:
        """Tags are handled, or handed back; those that are settled already are ignored."""
        opened = self._open
        release = [tag for tag in released if opened.pop(tag, 0) is None]
        done = {tag for tag in acknowledged if tag in opened}
        up_to = None
        while done and self._ranges:
            oldest = next(iter(opened))
            if oldest not in done:
                break
            done.discard(oldest)
            del opened[oldest]
            up_to = oldest
        for tag in done:
            del opened[tag]
        return Verdict(release, up_to, sorted(done))

    def open(self) -> list[int]:
        """What is not settled, ascending."""
        return list(self._open)

    def __len__(self) -> int:
        return len(self._open)
