"""What becomes of events that could not be emitted after a commit: they are logged, and handed to a function."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from django.utils.module_loading import import_string

from dispytch._core.events import EventBase
from dispytch._core.messages import Receipt
from dispytch.abc import Message
from dispytch.django import conf
from dispytch.errors import EmitManyError

__all__ = ["EmitFailure", "failure_callback", "report"]

logger: logging.Logger = logging.getLogger("dispytch")


@dataclass(frozen=True, slots=True)
class EmitFailure:
    """An event whose transaction was committed, and that was not confirmed.

    Attributes:
        event: The event; it keeps its id when it is emitted again.
        id: Its id.
        topic: Where it was to go.
        error: Why it was not confirmed: with `EmitRejectedError` it did not go, with `EmitTimeoutError` it may have.
        emitter: The alias of the emitter.
    """

    event: EventBase
    id: str
    topic: str
    error: BaseException
    emitter: str


def failure_callback() -> Callable[[EmitFailure], Any] | None:
    """The function of the setting ``ON_FAILURE``.

    Raises:
        ImportError: its import string leads nowhere.
        TypeError: what it names cannot be called.
    """
    found: Any = conf.examine()[0].on_failure
    if isinstance(found, str):
        found = import_string(found.replace(":", "."))
    if found is not None and not callable(found):
        raise TypeError(f"DISPYTCH['ON_FAILURE'] names something of type {type(found).__name__}, which is no function")
    callback: Callable[[EmitFailure], Any] | None = found
    return callback


def report(events: Sequence[EventBase], messages: Sequence[Message], error: BaseException, emitter: str) -> None:
    """Logs each event that was not confirmed, and hands it to the callback. Raises nothing."""
    outcomes = error.results if isinstance(error, EmitManyError) else [error] * len(events)
    failures = [
        EmitFailure(event, message.id, message.route.address, outcome, emitter)
        for event, message, outcome in zip(events, messages, outcomes, strict=True)
        if outcome is not None and not isinstance(outcome, Receipt)
    ]
    for failure in failures:
        logger.error(
            "Event %s (%s) to %s was not emitted after its transaction was committed: %s: %s",
            failure.id,
            type(failure.event).__qualname__,
            failure.topic,
            type(failure.error).__name__,
            failure.error,
            extra={"event_id": failure.id, "event_type": type(failure.event).__qualname__, "emitter": emitter},
        )
    try:
        callback = failure_callback()
        if callback is None:
            return
    except Exception:
        logger.exception("DISPYTCH['ON_FAILURE'] failed, so it was not told of events that were not emitted.")
        return
    for failure in failures:
        try:
            callback(failure)
        except Exception:
            logger.exception("DISPYTCH['ON_FAILURE'] failed for event %s, which was not emitted.", failure.id)
