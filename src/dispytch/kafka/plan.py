"""What a reader is to do, and what its consumer remembers from one reader to the next."""

from __future__ import annotations

from dataclasses import dataclass, field

from dispytch.kafka.addresses import Topics
from dispytch.kafka.settings import Settings

__all__ = ["Beginnings", "Plan"]


@dataclass(slots=True)
class Beginnings:
    """Where a group begins that starts with what comes next.

    It outlives a connection: what is published while there is none comes next too.

    Attributes:
        existing: The partitions that there were at the first start; later ones are read from their start.
        positions: Where those began that nobody of the group had read.
    """

    existing: set[tuple[str, int]] | None = None
    positions: dict[tuple[str, int], int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a reader is to do; see `KafkaConsumer`.

    Attributes:
        beginnings: ``None`` for a group that starts with what the topics hold.
    """

    settings: Settings
    group_id: str
    beginnings: Beginnings | None
    max_uncommitted: int
    declare: bool
    topics: Topics
