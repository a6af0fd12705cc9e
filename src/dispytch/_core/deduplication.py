"""What is remembered of events so that each is handled once: the contract of a store."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import Enum

__all__ = ["Claim", "Store"]


class Claim(Enum):
    """What a store says to somebody who wants to handle an event."""

    GRANTED = "granted"
    """Nobody has handled it: it is yours until you complete or release it, or the claim expires."""
    BUSY = "busy"
    """Somebody else has claimed it, and has neither completed nor released it."""
    DONE = "done"
    """It has been handled."""


class Store(ABC):
    """Remembers which events are being handled, and which have been; shared by all that must not handle one twice.

    Keys and tokens are text. All methods may be called by several tasks at once; none waits for a claim of others. What
    they raise counts as "it is not known": the event is not handled, and comes again.
    """

    @abstractmethod
    async def claim(self, key: str, token: str, claim_ttl: float) -> Claim:
        """Claims a key, in one step that cannot come between those of others.

        Args:
            token: Tells one claimant from others. A key that is claimed with the same token already is granted again:
                the reply to the first claim may have been lost.
            claim_ttl: Seconds after which the claim is void, since its claimant has died.
        """

    @abstractmethod
    async def complete(self, key: str) -> None:
        """Notes that the event of a key has been handled, whoever has claimed it by now."""

    @abstractmethod
    async def release(self, key: str, token: str) -> None:
        """Gives a claim up, so that the next one is granted; does nothing unless it is held with this token."""
