"""A delivery on its way through the dispatcher, and what becomes of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from dispytch._core.context import Pause
from dispytch._core.deadletters import dead_letter_headers, error_text, utc_text
from dispytch._core.envelope import Opened
from dispytch._core.lanes import Limit
from dispytch._core.messages import DeadLetter, Message, Outcome, Settlement
from dispytch._runtime.ids import new_id
from dispytch._runtime.links import Link
from dispytch._runtime.wiring import Route
from dispytch.abc import Delivery, EventRoute

__all__ = ["DONE", "RELEASED", "Counts", "Verdict", "Work", "make_dead_letter"]


class Counts:
    """What has happened so far."""

    __slots__ = ("dead_lettered", "failed", "handled", "not_addressed", "redelivered", "skipped_null", "unhandled")

    def __init__(self) -> None:
        self.handled = 0
        self.failed = 0
        self.redelivered = 0
        self.dead_lettered = 0
        self.unhandled = 0
        self.skipped_null = 0
        self.not_addressed = 0


class Work(Settlement):
    """A delivery with the handlers that it is for; its own settlement, once its outcome is known.

    Attributes:
        lane: Of one lane, one runs at a time.
        failures: How often each handler has failed on it.
        is_settled: Its outcome is on its way to the broker, and stands.
    """

    __slots__ = ("is_settled", "lane", "limits", "link", "opened", "route", "started")

    def __init__(self, link: Link, opened: Opened, route: Route, lane: tuple[Any, ...] | None) -> None:
        # What the class it derives from sets, which a call of its own would cost more than all of this.
        self.delivery = delivery = opened.delivery
        self.outcome = Outcome.ACK
        self.dead_letters = ()
        self.failures = delivery.failures
        self.is_acknowledged = route.ack_first
        self.link: Link = link
        self.opened: Opened = opened
        self.route: Route = route
        self.lane: tuple[Any, ...] | None = lane
        self.limits: Sequence[Limit] = route.limits
        self.started = 0.0
        self.is_settled = False

    @property
    def pause(self) -> Pause:
        return self.link.pause

    @property
    def log_fields(self) -> dict[str, object]:
        """What log records about it have as ``extra``."""
        return {
            "topic": self.opened.delivery.source,
            "event_id": self.opened.id,
            "group": self.link.consumer.group_id,
        }

    @property
    def partition(self) -> object:
        """Of those of one, the order in which they came is that of the broker."""
        return self.link, self.opened.delivery.source, self.opened.delivery.partition

    @property
    def is_stale(self) -> bool:
        """Whether it has become somebody else's while it waited; see `Consumer.is_stale`."""
        ask = self.link.is_stale
        return ask is not None and not self.route.ack_first and ask(self.opened.delivery)

    def acknowledge(self) -> None:
        """See `InFlight`. Where it has other handlers, or is acknowledged already, there is nothing to do yet."""
        if len(self.route.matches) == 1 and not self.route.ack_first:
            self.link.in_loop(self._acknowledge)

    def _acknowledge(self) -> None:
        self.settle(Outcome.ACK)

    def settle(self, outcome: Outcome, letters: Sequence[Message] = ()) -> None:
        """Tells the consumer what became of it; only the first time counts."""
        if self.is_settled:
            return
        self.is_settled = True
        if self.is_acknowledged and outcome is not Outcome.DEAD_LETTER:
            self.link.let_go(1)  # acknowledged before it was handled
            return
        self.outcome = outcome
        self.dead_letters = letters
        self.link.settle(self)

    def forget(self) -> None:
        """It is somebody else's by now: nothing is to be told to the consumer. Only the first time counts."""
        if not self.is_settled:
            self.is_settled = True
            self.link.let_go(1)


class Verdict:
    """What became of an event at one handler: done with (perhaps with a dead letter), or to be handed back."""

    __slots__ = ("dead_letter", "released")

    def __init__(self, dead_letter: Message | None = None, released: bool = False) -> None:
        self.dead_letter: Message | None = dead_letter
        self.released: bool = released


DONE = Verdict()
RELEASED = Verdict(released=True)


def make_dead_letter(
    delivery: Delivery,
    route: EventRoute,
    error: BaseException,
    handler: str | None = None,
    tries: int = 0,
    *,
    group: str,
) -> Message:
    """The message that a dead-letter destination gets: the original, and what is known of its failure."""
    letter = DeadLetter(
        error_text(error), handler, tries, delivery.source, delivery.position, utc_text(time.time()), group
    )
    return Message(new_id(), route, delivery.payload, dead_letter_headers(delivery, letter), delivery.key)
