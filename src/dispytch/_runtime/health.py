"""How a dispatcher is doing, from its own progress."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from dispytch._runtime.links import Link
from dispytch._runtime.session import Session

__all__ = ["ConsumerHealth", "Health", "State", "health_of"]

State = Literal["stopped", "starting", "running", "draining"]


@dataclass(frozen=True, slots=True)
class ConsumerHealth:
    """How a consumer is doing.

    Attributes:
        name: The consumer, as its ``repr`` has it.
        connected: Whether it has its connection.
        unsettled: Events received from it and not yet acknowledged or handed back.
        is_full: It holds as many as it may, so it asks for no more, until half of them are settled.
        polled_ago: Seconds since it last asked its broker or heard from it; ``None`` if that cannot be told. It grows
            where nothing is asked, be it that the consumer is full, or that its thread is stuck.
        assignment: The partitions that are its own, such as ``"orders[3]"``; ``None`` where nothing is assigned.
        transport: Its transport's name, such as ``"kafka"``.
        group: Its consumer group.
        is_receiving: What there is comes; False while a group has not told a new member its share yet.
        lag: How many messages its group has not got yet, by topic, as it last knew; ``None`` if that cannot be told.
    """

    name: str
    connected: bool
    unsettled: int
    is_full: bool
    polled_ago: float | None
    assignment: tuple[str, ...] | None
    transport: str = ""
    group: str = ""
    is_receiving: bool = True
    lag: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Health:
    """How a dispatcher is doing.

    Attributes:
        state: Where in its life it is.
        connected: Whether every consumer has its connection.
        in_flight: Events that are being handled, back-offs included.
        queued: Events that were received and wait for their turn.
        oldest_in_flight: For how many seconds the oldest event in flight has been handled.
        unsettled: Events received and not yet acknowledged or handed back.
        handled: Events that were done with since the start.
        failed: Tries that failed.
        redelivered: Tries after a failed one.
        dead_lettered: Dead letters.
        unhandled: Events that no handler took.
        skipped_null: Null messages that no handler takes.
        not_addressed: Replayed events that are for a handler of another group.
        consumers: The consumers, in their order.
    """

    state: State
    connected: bool = False
    in_flight: int = 0
    queued: int = 0
    oldest_in_flight: float | None = None
    unsettled: int = 0
    handled: int = 0
    failed: int = 0
    redelivered: int = 0
    dead_lettered: int = 0
    unhandled: int = 0
    skipped_null: int = 0
    not_addressed: int = 0
    consumers: tuple[ConsumerHealth, ...] = ()


def health_of(session: Session | None, state: State) -> Health:
    """The health of a dispatcher; ``session`` is its run, if it has begun one."""
    if session is None:
        return Health(state)
    counts = session.counts
    consumers = tuple(map(_consumer_health, session.links))
    return Health(
        "draining" if session.stopping else state,
        connected=state == "running" and all(consumer.connected for consumer in consumers),
        in_flight=session.in_flight,
        queued=session.queued,
        oldest_in_flight=session.oldest_in_flight,
        unsettled=sum(link.held for link in session.links),
        handled=counts.handled,
        failed=counts.failed,
        redelivered=counts.redelivered,
        dead_lettered=counts.dead_lettered,
        unhandled=counts.unhandled,
        skipped_null=counts.skipped_null,
        not_addressed=counts.not_addressed,
        consumers=consumers,
    )


def _consumer_health(link: Link) -> ConsumerHealth:
    consumer = link.consumer
    progress = consumer.progress()
    polled_ago = progress.polled_ago
    if polled_ago is not None and not link.rests:
        # After a rest it was not asked for long, which is no sign that it is stuck.
        polled_ago = min(polled_ago, time.monotonic() - link.asked_since)
    return ConsumerHealth(
        repr(consumer),
        link.connected and not progress.is_cut_off,
        link.held,
        link.rests or link.held >= link.window,
        polled_ago,
        progress.assignment,
        consumer.transport,
        consumer.group_id,
        consumer.is_receiving(),
        None if progress.lag is None else dict(progress.lag),
    )
