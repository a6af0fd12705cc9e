"""Messages on their way to Kafka, and what became of each."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import anyio

from dispytch._bridge import Loop
from dispytch.abc import Message, Receipt
from dispytch.errors import (
    BrokerError,
    BrokerUnreachableError,
    DispytchError,
    EmitRejectedError,
    EmitTimeoutError,
    EmitUnreachableError,
)
from dispytch.kafka.settings import import_confluent

__all__ = ["Batch", "BlockingBatch", "LoopBatch", "finish_all", "report_error", "unreachable"]

# After these reports a message may be in the log of a broker, or reach it yet.
_UNKNOWN = (
    "_MSG_TIMED_OUT",
    "_TIMED_OUT",
    "_TIMED_OUT_QUEUE",
    "_TRANSPORT",
    "_PURGE_INFLIGHT",
    "_PURGE_QUEUE",
    "_FATAL",
    "_FENCED",
    "_INCONSISTENT",
    "_GAPLESS_GUARANTEE",
    "_DESTROY",
    "_FAIL",
    "REQUEST_TIMED_OUT",
    "NETWORK_EXCEPTION",
    "NOT_ENOUGH_REPLICAS_AFTER_APPEND",
    "OUT_OF_ORDER_SEQUENCE_NUMBER",
    "DUPLICATE_SEQUENCE_NUMBER",
    "UNKNOWN_PRODUCER_ID",
    "UNKNOWN",
    "KAFKA_STORAGE_ERROR",
)
_ADVICE = {
    "MSG_SIZE_TOO_LARGE": "raise the topic's max.message.bytes and message.max.bytes here, or send less",
    "TOPIC_AUTHORIZATION_FAILED": "allow the user to write to the topic",
    "CLUSTER_AUTHORIZATION_FAILED": "allow the user to write idempotently (IdempotentWrite on the cluster)",
    "_UNKNOWN_PARTITION": "the topic has no such partition",
    "_UNKNOWN_TOPIC": "create the topic",
    "UNKNOWN_TOPIC_OR_PART": "create the topic",
}


def report_error(error: Any, address: str, why: str | None, text: str) -> EmitRejectedError | EmitTimeoutError:
    """A delivery report's error.

    Args:
        why: What is known of the connections' trouble.
        text: What the report says.
    """
    found: EmitRejectedError | EmitTimeoutError
    name = error.name()
    if name in _UNKNOWN:
        trouble = "" if why is None else f" ({why})"
        found = EmitTimeoutError(f"Kafka at {address} did not confirm the event{trouble}: {text}; it may have gone")
    else:
        advice = f"; {_ADVICE[name]}" if name in _ADVICE else ""
        found = EmitRejectedError(f"Kafka at {address} refused the event: {text}{advice}")
    found.__cause__ = import_confluent().KafkaException(error)
    return found


def unreachable(error: BrokerError) -> EmitRejectedError:
    """What a failure to connect means for an event that waited for it."""
    kind = EmitUnreachableError if isinstance(error, BrokerUnreachableError) else EmitRejectedError
    found = kind(f"{error}; the event was not sent")
    found.__cause__ = error.__cause__
    return found


class Batch(ABC):
    """The messages of one ``send``. Filled by who sends them, and by the thread that serves the reports.

    Attributes:
        next: How many of them, from the first one on, were handed to the client or refused.
        is_given_up: Nobody waits for it any more.
    """

    def __init__(self, messages: Sequence[Message]) -> None:
        self.messages: Sequence[Message] = messages
        self.next: int = 0
        self.is_given_up: bool = False
        self._outcomes: list[Receipt | DispytchError | None] = [None] * len(messages)
        # Each is counted in one thread only, and who counts last sees that it is the last.
        self._reported = 0
        self._refused = 0

    @property
    def is_complete(self) -> bool:
        return self._reported + self._refused >= len(self.messages)

    @property
    def unconfirmed(self) -> int:
        """How many were handed over, and have no report."""
        return self.next - self._reported - self._refused

    def report(self, number: int, outcome: Receipt | DispytchError) -> bool:
        """A report has come; whether it was the last."""
        self._outcomes[number] = outcome
        self._reported += 1
        return self._reported + self._refused >= len(self.messages)

    def refuse(self, number: int, error: DispytchError) -> None:
        """A message was not handed over."""
        self._outcomes[number] = error
        self._refused += 1

    def outcomes(self, unknown: DispytchError, unsent: DispytchError) -> list[Receipt | DispytchError]:
        """The outcomes, aligned with the messages.

        Args:
            unknown: The outcome of those handed over and not reported.
            unsent: The outcome of those never handed over.
        """
        return [
            outcome if outcome is not None else unknown if number < self.next else unsent
            for number, outcome in enumerate(self._outcomes)
        ]

    @abstractmethod
    def finish(self) -> None:
        """Wakes who waits for it. In any thread."""


class BlockingBatch(Batch):
    """A batch that a thread waits for."""

    def __init__(self, messages: Sequence[Message]) -> None:
        super().__init__(messages)
        self.done: threading.Event = threading.Event()

    def finish(self) -> None:
        self.done.set()


class LoopBatch(Batch):
    """A batch that a task waits for."""

    def __init__(self, messages: Sequence[Message], loop: Loop) -> None:
        super().__init__(messages)
        self.loop: Loop = loop
        self.done: anyio.Event = anyio.Event()

    def finish(self) -> None:
        self.loop.post(self.done.set)


def finish_all(batches: Iterable[Batch]) -> None:
    """Wakes who waits for some batches, with one post to each loop."""
    by_loop: dict[Loop, list[Callable[[], object]]] = {}
    for batch in batches:
        if isinstance(batch, LoopBatch):
            by_loop.setdefault(batch.loop, []).append(batch.done.set)
        else:
            batch.finish()
    for loop, wakes in by_loop.items():
        loop.post(lambda wakes=wakes: [wake() for wake in wakes])  # type: ignore[misc]  # called at once
