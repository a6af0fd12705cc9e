"""How a reader's client joins its group, and leaves it so that the others hear of it at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from dispytch.errors import ConfigurationError
from dispytch.kafka.assignment import Assignment
from dispytch.kafka.plan import Plan
from dispytch.kafka.settings import LibraryLog
from dispytch.kafka.topics import missing_topics
from dispytch.kafka.trouble import CONNECT_TIMEOUT, Trouble, reach

__all__ = ["OWN_SETTINGS", "USUAL_SETTINGS", "Membership"]

_SETTLES_WITHIN = 3.0
_DEAD_LETTER_BYTES = "10485760"

OWN_SETTINGS: dict[str, str | bool] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "earliest",
    "allow.auto.create.topics": False,
}
USUAL_SETTINGS = {
    "fetch.queue.backoff.ms": 10,
    "queued.max.messages.kbytes": 16 * 1024,
    "queued.min.messages": 20_000,
}


class Membership:
    """One membership of a group. For the reader's thread.

    Args:
        is_stopped: Whether it is of no use any more.
        complain: Takes the errors that the client gives in place of messages; may raise.

    Attributes:
        is_subscribed: Whether the group has been asked for a share.
    """

    def __init__(
        self,
        plan: Plan,
        trouble: Trouble,
        assignment: Assignment,
        is_stopped: Callable[[], bool],
        complain: Callable[[Any], None],
    ) -> None:
        self.is_subscribed: bool = False
        self._plan = plan
        self._trouble = trouble
        self._assignment = assignment
        self._is_stopped = is_stopped
        self._complain = complain
        self._log = LibraryLog()

    def client(self, committed: Callable[[Any, Sequence[Any]], None]) -> Any:
        """A client for it.

        Args:
            committed: Is told of offsets that were committed in the background.

        Raises:
            ConfigurationError: librdkafka does not take the settings.
        """
        plan, settings, topics = self._plan, self._plan.settings, self._plan.topics
        own: dict[str, Any] = {**OWN_SETTINGS, "group.id": plan.group_id}
        own.update((name, value) for name, value in USUAL_SETTINGS.items() if settings.get(name) is None)
        own["error_cb"] = self._trouble.note
        own["on_commit"] = committed
        if not self._assignment.is_decided_by_brokers:
            own["partition.assignment.strategy"] = self._assignment.strategy
        if topics.blacklist is not None and settings.get("topic.blacklist") is None:
            own["topic.blacklist"] = topics.blacklist
        if topics.patterns and settings.get("topic.metadata.refresh.interval.ms") is None:
            own["topic.metadata.refresh.interval.ms"] = 3000
        own["debug"] = ",".join(filter(None, (settings.get("debug"), "cgrp")))  # see `_settle_down`
        return settings.make("Consumer", own, log=self._log)

    def join(self, consumer: Any) -> None:
        """Connects, makes sure of the topics, and asks for a share of them.

        Raises:
            BrokerError, ConfigurationError: it did not work.
        """
        topics, beginnings = self._plan.topics, self._plan.beginnings

        def serve() -> None:
            # The client may learn now, and say but once, that the group is not for us.
            if (message := consumer.poll(0)) is not None and message.error() is not None:
                self._complain(message.error())

        existing = reach(consumer, self._trouble, CONNECT_TIMEOUT, None, serve, self._is_stopped)
        if beginnings is not None and beginnings.existing is None:
            topics_there = existing.topics.items()
            beginnings.existing = {(name, number) for name, topic in topics_there for number in topic.partitions}
        self._declare(consumer, serve, topics.literal, None)
        self._declare(consumer, serve, topics.dead, {"max.message.bytes": _DEAD_LETTER_BYTES})
        names = [*topics.literal, *topics.patterns]
        if names:
            self.is_subscribed = True
            self._assignment.subscribe(consumer, names)

    def _declare(
        self, consumer: Any, serve: Callable[[], None], topics: Sequence[str], options: dict[str, str] | None
    ) -> None:
        if not topics:
            return
        settings = self._plan.settings
        missing = missing_topics(
            consumer,
            settings,
            self._trouble,
            topics,
            CONNECT_TIMEOUT,
            creates="us" if self._plan.declare else None,
            options=options,
            serve=serve,
            is_stopped=self._is_stopped,
        )
        hint = "" if self._plan.declare else ", or leave out declare=False"
        for name, why in missing.items():
            raise ConfigurationError(f"the topic {name} of Kafka at {settings.address} cannot be used: {why}{hint}")

    def leave(self, consumer: Any) -> None:
        """Has the partitions revoked, which commits, and closes the client."""
        self._settle_down(consumer)
        if self.is_subscribed and not self._assignment.partitions:
            # A cooperative member without partitions would leave without a word when it closes.
            consumer.unsubscribe()
        consumer.close()

    def _settle_down(self, consumer: Any) -> None:
        # Who leaves in the midst of a rebalance is not heard, since the broker answers the request to join first; the
        # others would wait for the member until its session times out.
        end = time.monotonic() + _SETTLES_WITHIN
        while self.is_subscribed and self._log.join_state != "steady" and time.monotonic() < end:
            if self._trouble.since is not None or self._trouble.fatal is not None:
                break
            consumer.poll(0.02)
