"""A dead letter as whoever looks after them sees it."""

from __future__ import annotations

from dataclasses import dataclass, field

from dispytch._core.deadletters import own_header, read_dead_letter
from dispytch._core.messages import Delivery, Headers

__all__ = ["Letter", "letter_of"]

_ID_NAMES = ("ce_id", "ce-id", "cloudEvents_id", "cloudEvents:id")


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter, as it was read.

    Attributes:
        id: The event's id, where CloudEvents headers tell it, else its position in its source.
        error: The error's type and text, at most 1 KiB; empty if this is no dead letter of Dispytch.
        handler: The handler that failed; ``None`` if the event reached none.
        group: The consumer group of the handler.
        attempts: How many tries ended in failure.
        source: The topic, stream or routing key that the event came from; ``None`` if this is no dead letter of
            Dispytch.
        scope: What beside the source is needed to publish it there again: on RabbitMQ its exchange.
        position: The event's position in its source, where the broker has positions.
        failed_at: When it was given up, ISO 8601, UTC.
        key: The event's ordering key.
        headers: The event's own headers, without those of the dead letter.
        payload: The event's bytes.
        message: The letter itself, raw; its ``position`` is the one in the dead-letter topic.
    """

    id: str
    error: str
    handler: str | None
    group: str | None
    attempts: int
    source: str | None
    scope: str | None
    position: str | None
    failed_at: str
    key: bytes | None
    headers: Headers
    payload: bytes | None = field(repr=False)
    message: Delivery = field(repr=False)


def letter_of(delivery: Delivery) -> Letter:
    """What was received from a dead-letter topic, be it a dead letter of Dispytch or not."""
    told = read_dead_letter(delivery.headers)
    own = tuple((name, value) for name, value in delivery.headers if not own_header(name))
    id = next((value.decode("utf-8", "backslashreplace") for name, value in own if name in _ID_NAMES), None)
    # A Streams entry that had fields only has no payload of its own.
    payload = None if delivery.as_json else delivery.payload
    if told is None:
        id = id or delivery.position or ""
        return Letter(id, "", None, None, 0, None, None, None, "", delivery.key, own, payload, delivery)
    return Letter(
        id or told.position or delivery.position or "",
        told.error,
        told.handler,
        told.group,
        told.attempts,
        told.source,
        told.scope,
        told.position,
        told.failed_at,
        delivery.key,
        own,
        payload,
        delivery,
    )
