"""Messages on their way to the broker, and what became of each."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

from dispytch.abc import Message, Receipt
from dispytch.errors import (
    BrokerError,
    BrokerUnreachableError,
    DispytchError,
    EmitError,
    EmitRejectedError,
    EmitTimeoutError,
    EmitUnreachableError,
)
from dispytch.rabbitmq.properties import target_of

__all__ = ["Batch", "Sent", "missing_exchange", "surely_refused"]

_NO_EXCHANGE = re.compile(r"no exchange '(.*)' in vhost", re.DOTALL)
_TOO_LARGE = re.compile(r"message size (\d+) is larger")


class Batch:
    """The messages of one ``send``, shared by the caller and what publishes them.

    Args:
        exchange: Where messages go whose routes name none.
        notify: Called once when every message has its outcome, by whoever settles the last one.

    Attributes:
        obstacle: What holds it up at the moment, for errors.
        carrier: The connection that it was given to.
    """

    def __init__(
        self,
        messages: Sequence[Message],
        exchange: str,
        address: str,
        timeout: float | None,
        notify: Callable[[], object],
    ) -> None:
        self.messages: Sequence[Message] = messages
        self.exchange: str = exchange
        self.handed_over: int = 0
        self.obstacle: str | None = None
        self.carrier: object = None
        self._address = address
        self._in_time = "in time" if timeout is None else f"within {timeout:g} s"
        self._notify = notify
        self._outcomes: list[Receipt | EmitError | None] = [None] * len(messages)
        self._open = len(messages)
        self._lock = threading.Lock()
        self._closed = False

    @property
    def unconfirmed(self) -> int:
        """How many may have gone, and have no outcome."""
        with self._lock:
            return sum(outcome is None for outcome in self._outcomes[: self.handed_over])

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to publish."""
        return self._closed or self.handed_over == len(self.messages)

    def hand_over(self) -> bool:
        """Whether the next message may be written now; from then on it may have gone."""
        with self._lock:
            if self._closed:
                return False
            self.handed_over += 1
            return True

    def confirm(self, index: int) -> None:
        message = self.messages[index]
        exchange, key = target_of(message, self.exchange)
        self.settle(index, Receipt(message.id, f"{exchange}/{key}" if exchange else key))

    def reject(self, index: int, text: str, cause: BaseException | None = None) -> None:
        error = EmitRejectedError(text)
        error.__cause__ = cause
        self.settle(index, error)

    def reject_unroutable(self, index: int) -> None:
        exchange, key = target_of(self.messages[index], self.exchange)
        self.reject(
            index,
            f"no queue is bound to the exchange {exchange!r} for the routing key {key!r}, so RabbitMQ returned "
            "the event; bind a queue (a consumer does at its start), or give the producer mandatory=False",
        )

    def reject_nacked(self, index: int) -> None:
        self.reject(
            index,
            f"RabbitMQ at {self._address} did not take the event (nack): a queue is full and refuses more, or could "
            "not store it; emit it again later",
        )

    def lose(self, index: int, cause: BaseException) -> None:
        """It was written, and no answer will come any more."""
        self.settle(index, self._unknown(f"{cause}, before the confirmation came", cause))

    def refuse_rest(self, cause: BrokerError) -> None:
        """What has not been written never will be."""
        with self._lock:
            self._closed = True
            first = self.handed_over
        error: EmitRejectedError
        if isinstance(cause, BrokerUnreachableError):
            error = EmitUnreachableError(f"the event was not sent: {cause}")
        else:
            error = EmitRejectedError(f"the event was not sent: {cause}")
        error.__cause__ = cause.__cause__ or cause
        for index in range(first, len(self.messages)):
            self.settle(index, error)

    def settle(self, index: int, outcome: Receipt | EmitError) -> None:
        with self._lock:
            if self._outcomes[index] is not None:
                return
            self._outcomes[index] = outcome
            self._open -= 1
            if self._open:
                return
        self._notify()

    def outcomes(self) -> list[Receipt | DispytchError]:
        """The outcomes, aligned with the messages; what is not written by now never will be."""
        with self._lock:
            self._closed = True
            found = list(self._outcomes)
            handed_over = self.handed_over
        because = f" ({self.obstacle})" if self.obstacle else ""
        unknown = self._unknown(f"no confirmation came from RabbitMQ at {self._address} {self._in_time}{because}", None)
        unsent = EmitUnreachableError(
            f"RabbitMQ at {self._address} did not take the event {self._in_time}{because}: it was not sent; check the "
            "address, and that the server is running"
        )
        return [
            outcome if outcome is not None else unknown if index < handed_over else unsent
            for index, outcome in enumerate(found)
        ]

    def _unknown(self, why: str, cause: BaseException | None) -> EmitTimeoutError:
        error = EmitTimeoutError(f"{why}: the event may have gone")
        error.__cause__ = None if cause is None else cause.__cause__ or cause
        return error


class Sent(NamedTuple):
    """A message that was written to a channel, and has no answer yet."""

    batch: Batch
    number: int
    exchange: str
    size: int


def missing_exchange(text: str) -> str | None:
    """The exchange that is missing, if that is why the broker closed a channel."""
    found = _NO_EXCHANGE.search(text)
    return found[1] if found else None


def surely_refused(unanswered: Sequence[Sent], text: str) -> Sent | None:
    """The message of which it is certain that the broker did not take it, since it closed the channel; if any.

    The broker handles them in order, and none after the one that it refused. So of those that it may have refused, the
    last one is either that, or comes after it.
    """
    missing, large = missing_exchange(text), _TOO_LARGE.search(text)
    if missing is None and large is None:
        return unanswered[0] if len(unanswered) == 1 else None
    suspects = [
        sent
        for sent in unanswered
        if (sent.exchange == missing if missing is not None else large is not None and sent.size == int(large[1]))
    ]
    return suspects[-1] if suspects else None
