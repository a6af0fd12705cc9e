"""The consumer of Kafka."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import anyio.lowlevel

from dispytch.abc import (
    Consumer,
    Delivery,
    EventRoute,
    EventSubscription,
    Message,
    Outcome,
    Progress,
    Settlement,
    Subscription,
)
from dispytch.errors import BrokerError, BrokerUnreachableError, ConfigurationError, DispytchError
from dispytch.kafka.addresses import Topics, check_pattern
from dispytch.kafka.membership import OWN_SETTINGS, USUAL_SETTINGS
from dispytch.kafka.partitions import Partition
from dispytch.kafka.plan import Beginnings, Plan
from dispytch.kafka.producer import FEATURES, KafkaProducer
from dispytch.kafka.reader import Reader
from dispytch.kafka.routes import KafkaEventRoute, topic_problem
from dispytch.kafka.settings import Settings, import_confluent

__all__ = ["KafkaConsumer"]

_LETTER_TIMEOUT = 5.0
_LETTER_MAX_BYTES = 100 * 1024 * 1024
"""What a dead letter may have: the broker decides, since what it took once it may take again."""


class KafkaConsumer(Consumer):
    """Receives from Kafka topics as a member of a group, at least once.

    Of each partition the contiguous prefix of handled events is committed, every second or 5,000 events, and before the
    partition goes to another member.

    Args:
        kafka: ``"host:9092"``, several separated by commas, or a URL; see `KafkaProducer`.
        group_id: Consumers of one group share the events; every group gets all.
        config: Settings of librdkafka. Committing and the group are the consumer's own affair.
        start_from: Where a new group begins: with what the topics hold, or with what comes next.
        max_uncommitted: A partition is paused once so many events lie behind its oldest unfinished one.
        declare: Whether to create topics and dead-letter topics that are missing.
        max_payload_bytes: Larger payloads are dead-lettered without being decoded.

    Raises:
        ConfigurationError: an address or a setting is wrong.
        MissingExtraError: confluent-kafka is not installed.
    """

    transport: ClassVar[str] = "kafka"
    features = FEATURES
    acknowledges_in_order: ClassVar[bool] = True

    def __init__(
        self,
        kafka: str,
        *,
        group_id: str,
        config: Mapping[str, Any] | None = None,
        start_from: Literal["earliest", "latest"] = "earliest",
        max_uncommitted: int = 10_000,
        declare: bool = True,
        max_payload_bytes: int = 1024 * 1024,
    ) -> None:
        if not isinstance(kafka, str) and isinstance(kafka, import_confluent().cimpl.Consumer):
            raise ConfigurationError(
                "KafkaConsumer takes no ready-made confluent Consumer: whether it commits by itself, and where its "
                "group begins, cannot be told of one, and events could be lost; give addresses, group_id= and config="
            )
        if start_from not in ("earliest", "latest"):
            raise ConfigurationError(f"start_from={start_from!r}: choose 'earliest' or 'latest'")
        if not isinstance(group_id, str) or not group_id:
            raise ConfigurationError("group_id names the consumer group: give a non-empty string")
        if max_uncommitted < 1:
            raise ConfigurationError(f"max_uncommitted={max_uncommitted}: give a number from 1 on")
        self.group_id: str = group_id
        self.max_payload_bytes: int = max_payload_bytes
        self._settings = Settings.of(kafka, config, "consumer")
        self._beginnings = Beginnings() if start_from == "latest" else None
        self._max_uncommitted = max_uncommitted
        self._declare = declare
        letters = self._settings.for_connecting({"message.max.bytes": _LETTER_MAX_BYTES})
        self._letters = KafkaProducer(letters)
        self._subscriptions: tuple[Subscription, ...] = ()
        self._is_started = False
        self._reader: Reader | None = None

    def __repr__(self) -> str:
        return f"<KafkaConsumer of {self._settings.address} in group {self.group_id}>"

    def subscription_for(self, declared: EventSubscription | EventRoute) -> EventSubscription | EventRoute | None:
        if isinstance(declared, EventRoute):
            if not isinstance(declared, KafkaEventRoute):
                return None
            check_pattern(declared.address)
        elif declared.transport not in (None, self.transport):
            return None
        else:
            check_pattern(declared.pattern)
        return declared

    def dead_letter_route(self, topic: str) -> EventRoute | None:
        if (problem := topic_problem(topic)) is not None:
            raise ConfigurationError(
                f"the dead-letter topic {topic!r} {problem}; give dead_letter= another one, or the group another name"
            )
        return KafkaEventRoute(topic)

    async def start(self, subscriptions: Sequence[Subscription] = ()) -> None:
        await anyio.lowlevel.checkpoint()
        wanted = tuple(subscriptions) or self._subscriptions
        if self._reader is not None and wanted == self._subscriptions:
            return
        await self._close()
        reader = Reader(
            Plan(self._settings, self.group_id, self._beginnings, self._max_uncommitted, self._declare, Topics(wanted))
        )
        await reader.open()
        self._reader = reader
        self._subscriptions = wanted
        self._is_started = True

    async def receive(self, limit: int) -> Sequence[Delivery]:
        await anyio.lowlevel.checkpoint()
        if self._reader is None:
            if self._is_started:
                raise BrokerUnreachableError(f"there is no connection to Kafka at {self._settings.address}")
            raise ConfigurationError("the consumer is not started; call start() first")
        try:
            return await self._reader.read(limit)
        except BrokerError:
            await self._close()
            raise

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[tuple[Settlement, DispytchError]]:
        letters: list[Message] = []
        owners: list[Settlement] = []
        for settlement in settlements:
            if settlement.dead_letters and (settlement.is_acknowledged or not _is_stale(settlement)):
                letters += settlement.dead_letters
                owners += [settlement] * len(settlement.dead_letters)
        failed: dict[Settlement, DispytchError] = {}
        if letters:
            outcomes = await self._letters.send(letters, _LETTER_TIMEOUT)
            for settlement, outcome in zip(owners, outcomes, strict=True):
                if isinstance(outcome, DispytchError):
                    failed.setdefault(settlement, outcome)
        else:
            await anyio.lowlevel.cancel_shielded_checkpoint()
        if self._reader is not None:
            done: dict[Partition, list[int]] = {}
            released: list[Delivery] = []
            for settlement in settlements:
                if settlement.delivery.token is None or (failed and settlement in failed):
                    continue
                if settlement.outcome is Outcome.RELEASE:
                    if not _is_stale(settlement):
                        released.append(_again(settlement))
                    continue
                partition, offset = settlement.delivery.token
                if partition in done:
                    done[partition].append(offset)
                else:
                    done[partition] = [offset]
            self._reader.done(done)
            if released:
                self._reader.release(released)
        return list(failed.items())

    def is_stale(self, delivery: Delivery) -> bool:
        return bool(delivery.token[0].is_lost)

    def overtaken(self, waiting: Sequence[Delivery], begun: Sequence[Delivery]) -> Sequence[Delivery]:
        furthest: dict[Partition, int] = {}
        for delivery in begun:
            partition, offset = delivery.token
            furthest[partition] = max(offset, furthest.get(partition, -1))
        if self._reader is not None:
            for partition, done in self._reader.last_done({delivery.token[0] for delivery in waiting}):
                furthest[partition] = max(done, furthest.get(partition, -1))
        return [delivery for delivery in waiting if delivery.token[1] < furthest.get(delivery.token[0], -1)]

    async def flush(self) -> None:
        await anyio.lowlevel.checkpoint()
        if self._reader is not None:
            await self._reader.flush()

    async def stop(self) -> None:
        self._is_started = False
        self._subscriptions = ()
        self._beginnings = None if self._beginnings is None else Beginnings()
        await self._close()
        await self._letters.stop()

    def configuration(self) -> Mapping[str, object]:
        return {
            "servers": self._settings.address,
            "group": self.group_id,
            "start_from": "earliest" if self._beginnings is None else "latest",
            "max_uncommitted": self._max_uncommitted,
            "declare": self._declare,
            **self._settings.shown(OWN_SETTINGS, USUAL_SETTINGS),
        }

    def progress(self) -> Progress:
        reader = self._reader
        if reader is None:
            return Progress()
        reader.watermarks.want_lag()
        lag = reader.watermarks.lag
        return Progress(time.monotonic() - reader.polled_at, reader.assignment, lag, reader.is_cut_off)

    def backlog(self) -> int | None:
        return None if self._reader is None else self._reader.queued or None

    def is_receiving(self) -> bool:
        return self._reader is not None and self._reader.is_assigned

    def is_caught_up(self) -> bool | None:
        return self._reader is not None and self._reader.watermarks.is_caught_up

    @property
    def most_unsettled(self) -> int | None:
        return self._max_uncommitted

    async def _close(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            await reader.close()
        else:
            await anyio.lowlevel.checkpoint()


def _is_stale(settlement: Settlement) -> bool:
    token = settlement.delivery.token
    return token is None or token[0].is_lost


def _again(settlement: Settlement) -> Delivery:
    """The delivery once more, with the failures that are known by now."""
    known = settlement.delivery
    return Delivery(
        known.source,
        known.payload,
        known.headers,
        timestamp_ms=known.timestamp_ms,
        key=known.key,
        position=known.position,
        partition=known.partition,
        failures=settlement.failures or known.failures,
        scope=known.scope,
        unreadable=known.unreadable,
        token=known.token,
    )
