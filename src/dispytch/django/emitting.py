"""Emitting from views, at once or when the transaction is committed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any
from weakref import WeakSet

from asgiref.sync import sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.transaction import TransactionManagementError

from dispytch._core.events import EventBase
from dispytch._core.messages import Receipt
from dispytch._runtime.urls import producer_from_url
from dispytch.abc import Message
from dispytch.django import conf
from dispytch.django.failures import report
from dispytch.django.loading import named
from dispytch.errors import DispytchError
from dispytch.sync import EventEmitter

__all__ = ["aemit", "aemit_many", "emit", "emit_many", "emit_on_commit", "emitter", "replaced"]

logger: logging.Logger = logging.getLogger("dispytch")

_made: dict[str, EventEmitter] = {}
_replacements: dict[str, EventEmitter] = {}
_named: WeakSet[EventEmitter] = WeakSet()


def emitter(alias: str = conf.DEFAULT) -> EventEmitter:
    """The emitter of the settings with this alias; it is made, and connects, when it is first used.

    All threads share it. A forked child connects anew, and at the exit of the process it is flushed and closed.

    Raises:
        ImproperlyConfigured: there is none, or the setting ``DISPYTCH`` is wrong.
        ConfigurationError: its URL is wrong.
        MissingExtraError: the client of its transport is not installed.
    """
    found = _replacements.get(alias) or _made.get(alias)
    # Two threads may make one at the same time: one of them is kept, and the other one has not connected yet.
    return _made.setdefault(alias, make_emitter(alias)) if found is None else found


def make_emitter(alias: str) -> EventEmitter:
    """A new emitter as the settings have it."""
    config = conf.current()
    if alias not in config.emitters:
        known = ", ".join(map(repr, config.emitters)) or "none"
        raise ImproperlyConfigured(
            f"there is no emitter {alias!r} in DISPYTCH (there are: {known}); set DISPYTCH['URL'] for "
            f"{conf.DEFAULT!r}, or DISPYTCH['EMITTERS'] for others"
        )
    one = config.emitters[alias]
    if isinstance(one, str):
        found = named(one, EventEmitter, f"DISPYTCH['EMITTERS'][{alias!r}]")
        _named.add(found)
        return found
    return EventEmitter(producer_from_url(one.url), source=one.source, timeout=one.timeout)


def emit(event: EventBase, *, emitter: str = conf.DEFAULT, id: str | None = None) -> Receipt | None:
    """Emits an event now, transaction or not, and waits until the broker has confirmed it.

    Args:
        event: The event.
        emitter: The alias of the emitter.
        id: The event's id; by default one is made.

    Raises:
        EmitRejectedError, EmitTimeoutError, ConfigurationError: see `dispytch.sync.EventEmitter.emit`.
    """
    _emit_earlier()
    return _emitter(emitter).emit(event, id=id)


def emit_many(events: Iterable[EventBase], *, emitter: str = conf.DEFAULT) -> list[Receipt | None]:
    """Emits events now, in order; see `dispytch.sync.EventEmitter.emit_many`."""
    _emit_earlier()
    return _emitter(emitter).emit_many(events)


async def aemit(event: EventBase, *, emitter: str = conf.DEFAULT, id: str | None = None) -> Receipt | None:
    """`emit` for asynchronous views: it waits in a thread."""
    receipt: Receipt | None = await _in_thread(emit)(event, emitter=emitter, id=id)
    return receipt


async def aemit_many(events: Iterable[EventBase], *, emitter: str = conf.DEFAULT) -> list[Receipt | None]:
    """`emit_many` for asynchronous views: it waits in a thread."""
    receipts: list[Receipt | None] = await _in_thread(emit_many)(events, emitter=emitter)
    return receipts


def emit_on_commit(*events: EventBase, using: str | None = None, emitter: str = conf.DEFAULT) -> None:
    """Emits events when the transaction is committed; never if it, or a savepoint around this call, is rolled back.

    They are checked and serialized now, so one that cannot be emitted raises here, where the transaction can still be
    rolled back. After the commit all events of the transaction, and of one emitter, go as one `emit_many`, in the order
    of the calls. What fails then is logged, and handed to the function of ``DISPYTCH["ON_FAILURE"]``; nothing is
    raised, since the commit stands.

    With ``DISPYTCH["OUTBOX"]`` they are written to the outbox of the database instead, and so are part of the
    transaction; ``manage.py dispytch_outbox`` emits them.

    Args:
        events: The events.
        using: The alias of the database; that of the default one.
        emitter: The alias of the emitter.

    Raises:
        ConfigurationError, EmitRejectedError: one of them cannot be emitted.
        TransactionManagementError: autocommit is off, and there is no ``atomic`` block, or it is off for good.
        DatabaseError: the outbox cannot be written to.
    """
    _refuse_others(events)
    chosen = _emitter(emitter)
    messages = chosen._factory.make_many(events)
    using = DEFAULT_DB_ALIAS if using is None else using
    if emitter not in _replacements and conf.current().outbox:
        from dispytch.django.outbox.writing import write  # which has a model: only where the app is installed

        write(events, messages, emitter, using)
        return
    connection = connections[using]
    if not connection.in_atomic_block:
        pending = _Pending(chosen, emitter)
        connection.on_commit(_Part(pending, events, messages))
        connection.on_commit(_Last(_Commit(), pending))
        return
    if not connection.settings_dict["AUTOCOMMIT"]:
        raise TransactionManagementError(
            f"DATABASES[{using!r}] has AUTOCOMMIT = False, so Django calls nothing at a commit; leave it out, or set "
            "DISPYTCH['OUTBOX'] to True"
        )
    commit, kept = _take_over(connection.run_on_commit)
    pending = commit.pendings.setdefault((emitter, chosen), _Pending(chosen, emitter))
    connection.on_commit(_Part(pending, events, messages))
    connection.on_commit(_Last(commit, pending))
    # What emits goes with a savepoint only if all does that it is there for.
    sids, last, robust = connection.run_on_commit[-1]
    connection.run_on_commit[-1] = (sids if kept is None else kept & sids, last, robust)


class _Commit:
    """What the callbacks of one transaction share."""

    def __init__(self) -> None:
        self.pendings: dict[tuple[str, EventEmitter], _Pending] = {}
        self.last: _Last | None = None
        self.error: BaseException | None = None

    def emit(self) -> None:
        """Emits what the callbacks that were called so far have left."""
        for pending in list(self.pendings.values()):
            pending.emit()


_during: ContextVar[tuple[_Commit, ...]] = ContextVar("dispytch_during", default=())
"""The transactions, the outer one first, of which a callback runs."""


def _emit_earlier() -> None:
    """In a callback: emits what its transaction has committed before, since what the callback emits comes later."""
    commits = _during.get()
    if not commits:
        return
    token = _during.set(())
    try:
        for commit in commits:
            commit.emit()
    finally:
        _during.reset(token)


class _Pending:
    """The events of one transaction for one emitter, as far as they were committed."""

    def __init__(self, chosen: EventEmitter, alias: str) -> None:
        self.emitter = chosen
        self.alias = alias
        self.events: list[EventBase] = []
        self.messages: list[Message] = []
        self.last: _Last | None = None

    def emit(self) -> None:
        """Emits them, and reports those that fail."""
        if not self.events:
            return
        _emit_earlier()
        events, self.events = self.events, []
        messages, self.messages = self.messages, []
        try:
            self.emitter._send(events, messages)
        except Exception as error:
            report(events, messages, error, self.alias)
        except BaseException as error:  # the process is to end, and nobody else will tell of these events
            report(events, messages, error, self.alias)
            raise


class _Part:
    """What was given to one call: a callback that Django drops with its savepoint."""

    def __init__(self, pending: _Pending, events: Sequence[EventBase], messages: Sequence[Message]) -> None:
        self._pending = pending
        self._events = events
        self._messages = messages

    def __call__(self) -> None:
        self._pending.events += self._events
        self._pending.messages += self._messages


class _Last:
    """Emits what the parts before it have left, if it is the last one of its transaction.

    Each call of `emit_on_commit` registers one, since none can be moved behind parts that come later, and Django drops
    parts with their savepoints, but this only when nothing is left before it.
    """

    def __init__(self, commit: _Commit, pending: _Pending) -> None:
        self.commit = commit
        self.pending = pending
        commit.last = pending.last = self

    def __call__(self) -> None:
        if self.pending.last is self:
            self.pending.emit()
        error = self.commit.error
        if error is not None and self.commit.last is self:
            self.commit.error = None
            raise error


class _Earlier:
    """A callback of somebody else that comes before events: what it raises is raised once they are emitted.

    After one that raises Django calls no other, and events would be lost that are committed. Callbacks between it and
    the events are not called here either.
    """

    def __init__(self, commit: _Commit, func: Callable[[], object], robust: bool) -> None:
        self._commit = commit
        self._func = func
        self._robust = robust
        self.__qualname__ = getattr(func, "__qualname__", repr(func))  # Django logs it

    def __call__(self) -> None:
        if self._commit.error is not None:
            return
        token = _during.set((*_during.get(), self._commit))
        try:
            self._func()
        except BaseException as error:
            if self._robust and isinstance(error, Exception):
                raise
            self._commit.error = error
        finally:
            _during.reset(token)


def _take_over(registered: list[Any]) -> tuple[_Commit, set[str] | None]:
    """Has the callbacks that are registered already go before events.

    Returns:
        What they share, and the savepoints that all of them are in; ``None`` if there are no callbacks yet.
    """
    commit, start, kept = None, len(registered), None
    while commit is None and start:
        start -= 1
        sids, func, _ = registered[start]
        kept = sids if kept is None else kept & sids
        if isinstance(func, _Last):
            commit = func.commit
    commit = commit or _Commit()
    for number in range(start, len(registered)):
        sids, func, robust = registered[number]
        if not isinstance(func, _Part | _Last | _Earlier):
            registered[number] = (sids, _Earlier(commit, func, robust), robust)
    return commit, kept


_in_thread = partial(sync_to_async, thread_sensitive=False)
_emitter = emitter  # under its own name it is an argument of those above


def _refuse_others(events: Sequence[EventBase]) -> None:
    for event in events:
        if isinstance(event, list | tuple):
            raise TypeError("emit_on_commit() takes events one by one: emit_on_commit(*events)")


@contextmanager
def replaced(alias: str, other: EventEmitter) -> Iterator[None]:
    """Has another emitter take the place of one, for tests."""
    before = _replacements.get(alias)
    _replacements[alias] = other
    try:
        yield
    finally:
        if before is None:
            del _replacements[alias]
        else:
            _replacements[alias] = before


def _forget(*, setting: str, **_: object) -> None:
    """Emitters of a setting that a test has changed are closed, but not those that are the project's own."""
    if setting != "DISPYTCH":
        return
    while _made:
        one = _made.popitem()[1]
        if one in _named:
            continue
        try:
            one.close()
        except DispytchError as error:
            logger.warning("An emitter was not closed when the setting DISPYTCH changed: %s", error)


setting_changed.connect(_forget, dispatch_uid="dispytch.django.emitting")
