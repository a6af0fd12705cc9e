"""The plain values that cross between the core and the transports."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from dispytch._core.routes import EventConfig, EventRoute

__all__ = [
    "DeadLetter",
    "Delivery",
    "Features",
    "Headers",
    "Message",
    "Outcome",
    "Receipt",
    "Settlement",
    "new_receipt",
]

Headers = Sequence[tuple[str, bytes]]
"""Header names and values in the order of the message; a name may come more than once."""

_NO_FAILURES: Mapping[str, int] = {}


class Receipt(NamedTuple):
    """What the broker confirmed.

    Attributes:
        id: The event's id.
        route: Where it went: topic, channel, stream, or exchange and routing key.
        partition: Its partition, on transports that have them.
        offset: Its offset or entry id, on transports that tell.
        receivers: How many subscribers it reached, where the broker tells: 0 means that nobody got it.
    """

    id: str
    route: str
    partition: int | None = None
    offset: int | str | None = None
    receivers: int | None = None


new_receipt = tuple.__new__
"""``new_receipt(Receipt, (id, route, ...))`` takes a third of the time of ``Receipt(...)``; of all five fields."""


@dataclass(frozen=True, slots=True)
class Features:
    """What a transport can do; the dispatcher, the emitter and the conformance suite go by it.

    Attributes:
        headers: Messages carry headers beside the payload.
        header_prefix: Before the CloudEvents attributes in header names.
        acknowledges: Deliveries are acknowledged, so that handling can be at least once.
        consumer_groups: Consumers of one group share the messages, each group gets all.
        persistent: Messages outlive the consumer that was not there.
        old_messages: A new group begins at the start of what the broker holds.
        patterns: Subscriptions may be patterns, with ``{name}``, ``*`` and ``#``.
    """

    headers: bool = True
    header_prefix: str = "ce_"
    acknowledges: bool = True
    consumer_groups: bool = True
    persistent: bool = True
    old_messages: bool = True
    patterns: bool = True


class Message:
    """An event on its way to the broker: everything is checked and serialized, only the sending is left."""

    __slots__ = ("config", "headers", "id", "key", "payload", "route")

    def __init__(
        self,
        id: str,
        route: EventRoute,
        payload: bytes | None,
        headers: Headers = (),
        key: bytes | None = None,
        config: EventConfig | None = None,
    ) -> None:
        self.id: str = id
        self.route: EventRoute = route
        self.payload: bytes | None = payload
        self.headers: Headers = headers
        self.key: bytes | None = key
        self.config: EventConfig | None = config

    def __repr__(self) -> str:
        size = "null" if self.payload is None else f"{len(self.payload)} bytes"
        return f"<Message {self.id} to {self.route.address}, {size}>"


class Delivery:
    """A message as a transport received it.

    Attributes:
        source: The topic, channel, stream or routing key that it came by; handlers are matched against it.
        payload: Its bytes; ``None`` where the broker has null values.
        headers: Names and values as received.
        key: The ordering key, if it has one.
        timestamp_ms: When the broker took it, or when it was received, in milliseconds since the epoch.
        position: Where it lies in the source, unique there, as text; ``None`` where the broker has no positions.
        partition: Its partition, if the source has several.
        failures: Failures known from earlier deliveries, by handler name.
        deliveries: How often the broker has delivered it before, hand-backs included; 0 where it does not count.
        unreadable: Why the transport could not read all of it, in words that quote nothing; it is dead-lettered.
        scope: What beside the source tells which subscriptions it is for, such as the queue that it came by; hashable,
            and shared by deliveries that are alike. See `EventSubscription.takes`.
        as_json: The payload is JSON that the transport made of a record that has fields and no payload; it is decoded
            as such, whatever the consumer's codec is.
        token: The transport's own handle for settling.
    """

    __slots__ = (
        "as_json",
        "deliveries",
        "failures",
        "headers",
        "key",
        "partition",
        "payload",
        "position",
        "scope",
        "source",
        "timestamp_ms",
        "token",
        "unreadable",
    )

    def __init__(
        self,
        source: str,
        payload: bytes | None,
        headers: Headers,
        timestamp_ms: int,
        key: bytes | None = None,
        position: str | None = None,
        partition: int | None = None,
        token: Any = None,
        *,
        failures: Mapping[str, int] = _NO_FAILURES,
        scope: Hashable = None,
        as_json: bool = False,
        deliveries: int = 0,
        unreadable: str | None = None,
    ) -> None:
        self.source: str = source
        self.payload: bytes | None = payload
        self.headers: Headers = headers
        self.key: bytes | None = key
        self.timestamp_ms: int = timestamp_ms
        self.position: str | None = position
        self.partition: int | None = partition
        self.failures: Mapping[str, int] = failures
        self.scope: Hashable = scope
        self.as_json: bool = as_json
        self.deliveries: int = deliveries
        self.unreadable: str | None = unreadable
        self.token: Any = token

    def __repr__(self) -> str:
        size = "null" if self.payload is None else f"{len(self.payload)} bytes"
        return f"<Delivery from {self.source} at {self.position or 'no position'}, {size}>"

    def __getstate__(self) -> tuple[Any, ...]:
        # The token belongs to a connection: a copy or a pickle is for reading, not for settling.
        return (
            self.source,
            self.payload,
            tuple(self.headers),
            self.key,
            self.timestamp_ms,
            self.position,
            self.partition,
            dict(self.failures),
            self.scope,
            self.as_json,
            self.deliveries,
            self.unreadable,
        )

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        (
            self.source,
            self.payload,
            self.headers,
            self.key,
            self.timestamp_ms,
            self.position,
            self.partition,
            self.failures,
            self.scope,
            self.as_json,
            self.deliveries,
            self.unreadable,
        ) = state
        self.token = None


class Outcome(Enum):
    """What becomes of a delivery."""

    ACK = "ack"
    """Handled: acknowledge it."""
    DEAD_LETTER = "dead_letter"
    """Write the settlement's dead letters, have them confirmed, then acknowledge."""
    RELEASE = "release"
    """Not handled: hand it back, so that it is delivered again."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """What a dead letter tells of the event that failed.

    Attributes:
        error: The error's type and text, at most 1 KiB.
        handler: The handler that failed; ``None`` if the message reached none.
        attempts: How many tries ended in failure.
        source: The topic, channel or stream that the event came from.
        position: Its position there.
        failed_at: When it was given up, ISO 8601, UTC.
        group: The consumer group that gave it up.
        scope: What beside the source is needed to publish it there again, where that is so: on RabbitMQ its exchange.
    """

    error: str
    handler: str | None
    attempts: int
    source: str
    position: str | None
    failed_at: str
    group: str | None = None
    scope: str | None = None


class Settlement:
    """A delivery with its outcome, for the transport to carry out.

    Attributes:
        is_acknowledged: It was acknowledged before it was handled, so nobody else gets it: its dead letters are written
            even where the delivery is stale by now.
    """

    __slots__ = ("dead_letters", "delivery", "failures", "is_acknowledged", "outcome")

    def __init__(
        self,
        delivery: Delivery,
        outcome: Outcome,
        dead_letters: Sequence[Message] = (),
        failures: Mapping[str, int] = _NO_FAILURES,
        is_acknowledged: bool = False,
    ) -> None:
        self.delivery: Delivery = delivery
        self.outcome: Outcome = outcome
        self.is_acknowledged: bool = is_acknowledged
        self.dead_letters: Sequence[Message] = dead_letters
        self.failures: Mapping[str, int] = failures

    def __repr__(self) -> str:
        return f"<Settlement {self.outcome.value} of {self.delivery!r}>"
