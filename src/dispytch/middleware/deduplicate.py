"""Handling each event once, where it comes more than once."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Awaitable
from hashlib import sha256
from typing import Any, ClassVar
from uuid import uuid4

import anyio

from dispytch._core.context import EventHandlerContext, Middleware, NextCall
from dispytch._core.deduplication import Claim, Store
from dispytch._core.redelivery import Redeliver
from dispytch.errors import ConfigurationError

__all__ = ["Deduplicate"]

logger: logging.Logger = logging.getLogger("dispytch")

_FIRST_LOOK = 0.05
_LOOK_EVERY = 1.0
_LAST_WORD = 5.0
"""Seconds that a store is given to note the end of an event while everything else is being cancelled."""
_LONGEST_KEY = 256


class Deduplicate(Middleware):
    """Lets each event through to a handler once: a repeat of one that it has handled is dropped, as handled.

    Events are told apart by consumer group, handler, topic and event id. Before a handler is called the event is
    claimed; when it has succeeded that is noted, for the ``ttl`` of the store; when it has failed the claim is
    released.

    - While somebody else has the claim, the event is kept waiting, unacknowledged and in flight, and is looked at again
      every second or so: it is dropped once the other has succeeded, and handled once the other has failed, or has died
      and its claim has expired. That uses up none of ``max_deliveries``. A stop of the dispatcher hands it back.
    - While the store cannot be asked, the event is kept waiting in the same way, and a warning is logged.
    - After ``claim_ttl`` seconds of that in one delivery, it fails: with ``Redeliver``, or with the store's error. It
      is then redelivered like any failure, and in the end dead-lettered, never dropped.
    - If it cannot be noted that a handler has succeeded, that is tried for as long, and then logged as an error: the
      event is acknowledged, and a repeat of it would be handled again.

    It cannot make effects exactly-once: a process that dies after a handler's effect and before the note leaves an
    event that is handled again. Inside of it, `Retry` repeats under one claim; a `Timeout` belongs inside too, since
    outside it would count the waiting.

    On handlers of batches it is refused: it decides on single events.

    Args:
        store: Remembers; `MemoryStore`, ``dispytch.redis.RedisStore``, or one of your own.
        claim_ttl: Seconds after which a claim is void. It must be longer than the handler takes, retries inside
            included: otherwise a repeat is let in beside it. The longer it is, the longer the events of a process that
            died have to wait.

    Raises:
        ConfigurationError: ``store`` is none, or ``claim_ttl`` is not positive.
    """

    takes_batches: ClassVar[bool] = False

    def __init__(self, store: Store, *, claim_ttl: float = 300.0) -> None:
        if not isinstance(store, Store):
            what = f"the class {store.__name__}" if isinstance(store, type) else type(store).__name__
            raise ConfigurationError(
                f"Deduplicate needs a store, not {what}; for instance Deduplicate(MemoryStore(ttl=3600))"
            )
        if not (isinstance(claim_ttl, int | float) and claim_ttl > 0):
            raise ConfigurationError(f"claim_ttl={claim_ttl!r}: give the seconds after which a claim is void")
        self.store: Store = store
        self.claim_ttl: float = claim_ttl
        self._name = uuid4().hex
        self._running: set[str] = set()

    async def dispatch(self, ctx: EventHandlerContext, call_next: NextCall) -> Any:
        key = _key(ctx)
        # One for the instance, so that what this process has claimed without hearing of it is its own; a forked child
        # is another process.
        token = f"{self._name}-{os.getpid()}"
        if not await self._claim(ctx, key, token):
            return None
        try:
            try:
                result = await call_next(ctx)
            except BaseException:
                if ctx.is_acked:  # cut off afterwards, which changes nothing
                    await self._complete(ctx, key)
                else:
                    await self._release(ctx, key, token)
                raise
            await self._complete(ctx, key)
            return result
        finally:
            self._running.discard(key)

    async def _claim(self, ctx: EventHandlerContext, key: str, token: str) -> bool:
        """Waits until the event may be handled (True), or has been (False)."""
        waited, delay = 0.0, _FIRST_LOOK
        while True:
            problem: Exception | None = None
            try:
                claim = await self._ask(ctx, key, token)
            except Exception as error:  # whatever a store may raise: it is told, and raised in the end
                problem, claim = error, Claim.BUSY
            if claim is not Claim.BUSY:
                return claim is Claim.GRANTED
            if problem is not None:
                logger.warning(
                    "Event %s waits for handler %s, since it cannot be told whether it was handled: %s",
                    ctx.meta.id,
                    ctx.handler,
                    problem,
                    extra=ctx.log_fields,
                )
            seconds = delay * (0.5 + random.random() / 2)  # noqa: S311 - no secret
            if waited > self.claim_ttl + 2 * _LOOK_EVERY or not await ctx.back_off(seconds):
                raise problem or Redeliver("somebody else has been handling this event all the time")
            waited += seconds
            delay = min(delay * 2, _LOOK_EVERY)

    async def _ask(self, ctx: EventHandlerContext, key: str, token: str) -> Claim:
        if key in self._running:
            return Claim.BUSY
        self._running.add(key)
        claim = Claim.BUSY
        try:
            claim = await self.store.claim(key, token, self.claim_ttl)
        except anyio.get_cancelled_exc_class():
            await self._release(ctx, key, token)  # it may have been granted
            raise
        finally:
            if claim is not Claim.GRANTED:
                self._running.discard(key)
        return claim

    async def _complete(self, ctx: EventHandlerContext, key: str) -> None:
        waited, delay = 0.0, _FIRST_LOOK
        while True:
            problem = await self._last_word(self.store.complete(key))
            if problem is None:
                return
            # Also if the event is somebody else's by now: they are to learn that it was handled.
            if waited > self.claim_ttl or not await ctx.pause(delay):
                logger.error(
                    "Handler %s has handled event %s, and that could not be noted, so a repeat of it would be handled "
                    "again: %s",
                    ctx.handler,
                    ctx.meta.id,
                    problem,
                    extra=ctx.log_fields,
                )
                return
            waited += delay
            delay = min(delay * 2, _LOOK_EVERY)

    async def _release(self, ctx: EventHandlerContext, key: str, token: str) -> None:
        problem = await self._last_word(self.store.release(key, token))
        if problem is not None:
            logger.warning(
                "The claim on event %s for handler %s could not be released; others wait until it expires, %g s after "
                "it was made: %s",
                ctx.meta.id,
                ctx.handler,
                self.claim_ttl,
                problem,
                extra=ctx.log_fields,
            )

    async def _last_word(self, telling: Awaitable[None]) -> object:
        """Tells the store something even while this is being cancelled; why it did not work, if so."""
        with anyio.CancelScope(shield=True, deadline=anyio.current_time() + _LAST_WORD):
            try:
                await telling
                return None
            except Exception as error:  # whatever a store may raise: the caller tells of it
                return error
        return f"no answer within {_LAST_WORD:g} s"


def _key(ctx: EventHandlerContext) -> str:
    """What tells an event at a handler from all others.

    The topic is part of it, since the id of a foreign event is its position there.
    """
    topic = ctx.meta.topic
    key = f"{ctx.identity}/{len(topic)}:{topic}/{ctx.meta.id}"
    return key if len(key) <= _LONGEST_KEY else sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
