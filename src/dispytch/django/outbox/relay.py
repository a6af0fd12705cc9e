"""From the outbox to the broker."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from time import monotonic
from typing import Any
from uuid import uuid4

from django.core.exceptions import ImproperlyConfigured
from django.db import IntegrityError, transaction
from django.db.models import DateTimeField, ExpressionWrapper, F, Q
from django.db.models.functions import Now

from dispytch._core.messages import Message, Receipt
from dispytch.django.emitting import emitter
from dispytch.django.outbox.messages import unpack
from dispytch.django.outbox.models import OutboxEvent, OutboxLease
from dispytch.errors import (
    BrokerUnreachableError,
    ConfigurationError,
    DispytchError,
    EmitRejectedError,
    EmitTimeoutError,
)
from dispytch.sync import EventEmitter

__all__ = ["Relay"]

logger: logging.Logger = logging.getLogger("dispytch")

_LEASE = "relay"
_MOST_TRIES = 10
"""After how many refusals by the broker an event is given up: about five minutes, with the pauses between them."""
_LONGEST_PAUSE = 60.0
_LONGEST_TIMEOUT = 30.0
_LONGEST_ERROR = 1000
_LONGEST_DETOUR = 5.0
"""For how many seconds events of other emitters go on, before one whose broker is down is tried again."""


class Relay:
    """Emits what is in the outbox of one database, in the order in which it was written.

    Only one relay of a database does so at a time; others stand by, and take over when its lease has run out.

    Args:
        using: The alias of the database.
        batch: How many events are emitted at once; fewer while the broker does not confirm so many within the time-out.
    """

    def __init__(self, using: str, batch: int = 500) -> None:
        self.using: str = using
        self._batch = self._largest_batch = batch
        self._owner = f"{socket.gethostname()[:20]}-{os.getpid()}-{uuid4().hex[:12]}"
        self._lease_time = 15.0

    def run_once(self) -> int | None:
        """Emits a batch.

        Returns:
            How many events were confirmed; ``None`` if another relay has the lease.

        Raises:
            DispytchError: the broker cannot be reached, or does not confirm; the events stay.
        """
        if not self._hold():
            return None
        done, trouble = 0, None
        until = monotonic() + _LONGEST_DETOUR
        stuck: list[str] = []
        while rows := self._due(stuck):
            for alias, of_alias in _by_emitter(rows).items():
                try:
                    emitted = self._emit(alias, of_alias)
                except DispytchError as error:  # the others have brokers of their own
                    trouble = trouble or error
                    stuck.append(alias)
                    continue
                if emitted is None:
                    return done
                done += emitted
            if not stuck or monotonic() > until:
                break
        if trouble is not None:
            raise trouble
        return done

    def _due(self, stuck: Sequence[str]) -> list[Any]:
        """The next batch, without what goes by these emitters."""
        # What was never tried is due whatever the clocks say: that of its writer may be ahead, or in another time zone.
        is_due = Q(tries=0) | Q(due_at__lte=Now()) | Q(due_at__gt=_from_now(2 * _LONGEST_PAUSE))
        kept = OutboxEvent.objects.using(self.using).filter(is_due, due_at__isnull=False).exclude(emitter__in=stuck)
        return list(kept.order_by("id")[: self._batch])

    def revive(self) -> int:
        """Has events that were given up tried again; tells how many."""
        given_up = OutboxEvent.objects.using(self.using).filter(due_at__isnull=True)
        number: int = given_up.update(due_at=Now(), tries=0, error="")
        return number

    def release(self) -> None:
        """Lets another relay take over at once."""
        OutboxLease.objects.using(self.using).filter(name=_LEASE, owner=self._owner).update(owner="", until=Now())

    def _hold(self) -> bool:
        """Takes the lease or prolongs it, by the clock of the database, if nobody else has it."""
        until = _from_now(self._lease_time)
        leases = OutboxLease.objects.using(self.using)
        # None reaches so far, unless the clock was put back after it was taken.
        is_over = Q(until__lte=Now()) | Q(until__gt=_from_now(4 * _LONGEST_TIMEOUT))
        mine = leases.filter(Q(owner=self._owner) | is_over, name=_LEASE)
        if mine.update(owner=self._owner, until=until):
            return True
        if leases.filter(name=_LEASE).exists():
            return False
        try:
            with transaction.atomic(using=self.using):
                leases.create(name=_LEASE, owner=self._owner, until=until)
        except IntegrityError:  # another relay was faster
            return False
        return True

    def _emit(self, alias: str, rows: Sequence[Any]) -> int | None:
        """Emits rows of one emitter; ``None`` if another relay has taken over meanwhile."""
        try:
            chosen = emitter(alias)
        except ImproperlyConfigured as error:  # the settings had it when they were written
            for row in rows:
                self._refused(row, error)
            return 0
        timeout = min(chosen.timeout or _LONGEST_TIMEOUT, _LONGEST_TIMEOUT)
        # Whatever the time-outs, this relay has ended or its lease is prolonged before another one begins.
        self._lease_time = 3 * timeout
        if not self._hold():
            return None
        good: list[Any] = []
        messages: list[Message] = []
        for row in rows:
            try:
                message = unpack(row.event_id, row.payload, row.message)
                _check(chosen, message)
            except DispytchError as error:
                self._refused(row, error)
            else:
                good.append(row)
                messages.append(message)
        outcomes = chosen.producer.send(messages, timeout) if messages else ()
        if any(isinstance(outcome, EmitTimeoutError) for outcome in outcomes):
            self._batch = max(1, self._batch // 2)  # all of it may come again
        else:
            self._batch = min(self._largest_batch, self._batch * 2)
        confirmed = [row.pk for row, outcome in zip(good, outcomes, strict=True) if isinstance(outcome, Receipt)]
        OutboxEvent.objects.using(self.using).filter(pk__in=confirmed).delete()
        trouble: DispytchError | None = None
        for row, outcome in zip(good, outcomes, strict=True):
            if isinstance(outcome, Receipt):
                continue
            if isinstance(outcome, EmitRejectedError) and not isinstance(outcome, BrokerUnreachableError):
                self._refused(row, outcome)
            else:
                trouble = trouble or outcome
        if trouble is not None:
            raise trouble
        return len(confirmed)

    def _refused(self, row: Any, error: Exception) -> None:
        tries = row.tries + 1
        is_given_up = tries >= _MOST_TRIES
        pause = min(_LONGEST_PAUSE, 2.0 ** (tries - 1))
        OutboxEvent.objects.using(self.using).filter(pk=row.pk).update(
            tries=F("tries") + 1,
            error=f"{type(error).__name__}: {error}"[:_LONGEST_ERROR],
            due_at=None if is_given_up else _from_now(pause),
        )
        say: Callable[..., None] = logger.error if is_given_up else logger.warning
        say(
            "Event %s (%s) of the outbox was refused %d times%s: %s",
            row.event_id,
            row.event_type,
            tries,
            ", and is given up; manage.py dispytch_outbox --retry tries it again" if is_given_up else "",
            error,
            extra={"event_id": row.event_id, "event_type": row.event_type, "emitter": row.emitter},
        )


def _from_now(seconds: float) -> Any:
    """A time by the clock of the database."""
    return ExpressionWrapper(Now() + timedelta(seconds=seconds), output_field=DateTimeField())


def _check(chosen: EventEmitter, message: Message) -> None:
    """What the emitter that wrote it has checked, once more: it may have been another one."""
    if (problem := chosen.producer.accepts(message.route, message.config)) is not None:
        raise ConfigurationError(problem)
    chosen.producer.check(message)


def _by_emitter(rows: Iterable[Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for row in rows:
        found.setdefault(row.emitter, []).append(row)
    return found
