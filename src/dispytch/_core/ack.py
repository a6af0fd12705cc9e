"""When an event is acknowledged."""

from __future__ import annotations

__all__ = ["AckAfterProcessing", "AckBeforeProcessing", "AckPolicy", "ManualAck"]


class AckPolicy:
    """When an event is acknowledged; policies of one kind are equal."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class AckAfterProcessing(AckPolicy):
    """Acknowledged when every matching handler is done with it: at least once."""


class AckBeforeProcessing(AckPolicy):
    """Acknowledged before the first handler of its batch starts: at most once, no redelivery."""


class ManualAck(AckPolicy):
    """Settled by the handler, with ``event.ack()``, ``nack()`` or ``reject()``; to return without is a failure."""
