"""What a handler says of an event by ``ack()``, ``nack()`` and ``reject()``, and what that makes of how it ended."""

from __future__ import annotations

from typing import Final, Literal

from dispytch._core.redelivery import Redeliver, Reject, check_delay
from dispytch.errors import DeliveryError

__all__ = ["ACKED", "Said", "conclude", "nacked", "rejected"]

ACKED: Final = "acked"
Said = Literal["acked"] | Redeliver | Reject
"""Acknowledged, or what the handler might have raised instead."""


def nacked(delay: float | None) -> Redeliver:
    """What ``nack(delay)`` says."""
    check_delay(delay, "nack")
    return Redeliver("the handler called nack()", delay=delay)


def rejected(reason: str | None) -> Reject:
    """What ``reject(reason)`` says."""
    return Reject("the handler called reject()" if reason is None else reason)


def conclude(said: Said | None, error: BaseException | None, is_manual: bool) -> BaseException | None:
    """How a handler's try has ended; what it has said of the event stands, whatever it did afterwards.

    Args:
        said: The first thing that it said; ``None`` if it said nothing.
        error: What it raised; ``None`` if it returned.
        is_manual: To return without a word is a failure.

    Returns:
        The failure, or ``None`` for a success.
    """
    if said is None:
        if error is None and is_manual:
            return DeliveryError(
                "the handler returned without settling the event, which ManualAck asks of it: call event.ack(), "
                "event.nack() or event.reject() on every way out"
            )
        return error
    if said == ACKED:
        return None
    if error is not None:
        said.__cause__ = error
    return said
