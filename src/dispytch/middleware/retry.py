"""Trying a failed handler again, at once or after a while, before the failure counts as one."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from dispytch._core.context import EventHandlerContext, Middleware, NextCall
from dispytch._core.redelivery import Redeliver, Reject
from dispytch.errors import ConfigurationError, DecodeError

__all__ = ["ExponentialBackoffWithFullJitter", "FixedDelay", "Retry", "RetryPolicy"]


class RetryPolicy(ABC):
    """Decides whether, and after how long, a failed handler is tried again."""

    @abstractmethod
    def next_delay(self, failures: int, error: Exception) -> float | None:
        """Seconds until the next try; ``None`` to give up.

        Args:
            failures: How many tries have failed during this delivery, this one included.
            error: What the last one raised.
        """


class _Listed(RetryPolicy):
    """A number of retries on certain exceptions."""

    def __init__(self, retries: int, retry_on: Sequence[type[Exception]] | None) -> None:
        if retries < 0:
            raise ConfigurationError(f"retries cannot be negative: {retries}")
        if isinstance(retry_on, type):
            raise ConfigurationError(f"retry_on takes a list of exception classes: retry_on=[{retry_on.__name__}]")
        self.retries: int = retries
        self.retry_on: tuple[type[Exception], ...] = (Exception,) if retry_on is None else tuple(retry_on)
        for kind in self.retry_on:
            if not (isinstance(kind, type) and issubclass(kind, Exception)):
                raise ConfigurationError(f"retry_on takes exception classes, not {kind!r}")

    def next_delay(self, failures: int, error: Exception) -> float | None:
        if failures > self.retries or not isinstance(error, self.retry_on):
            return None
        return self._delay(failures)

    @abstractmethod
    def _delay(self, failures: int) -> float: ...


class ExponentialBackoffWithFullJitter(_Listed):
    """A random delay between 0 and a bound that doubles with every failure.

    See "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.

    Args:
        retries: How often to try again.
        retry_on: The exceptions to try again on; by default all.
        base_delay_sec: The bound of the first delay, in seconds.
        max_delay_sec: What the bound never exceeds, in seconds.
    """

    def __init__(
        self,
        retries: int = 3,
        retry_on: Sequence[type[Exception]] | None = None,
        base_delay_sec: float = 1.0,
        max_delay_sec: float = 60.0,
    ) -> None:
        super().__init__(retries, retry_on)
        if base_delay_sec < 0 or max_delay_sec < 0:
            raise ConfigurationError("delays are in seconds and cannot be negative")
        self.base_delay_sec: float = base_delay_sec
        self.max_delay_sec: float = max_delay_sec

    def _delay(self, failures: int) -> float:
        bound = min(self.max_delay_sec, self.base_delay_sec * 2.0 ** min(failures - 1, 60))
        return random.uniform(0, bound)  # noqa: S311 - no secret


class FixedDelay(_Listed):
    """The same delay before every retry.

    Args:
        retries: How often to try again.
        retry_on: The exceptions to try again on; by default all.
        delay_sec: The delay, in seconds.
    """

    def __init__(
        self, retries: int = 3, retry_on: Sequence[type[Exception]] | None = None, delay_sec: float = 1.25
    ) -> None:
        super().__init__(retries, retry_on)
        if delay_sec < 0:
            raise ConfigurationError("delays are in seconds and cannot be negative")
        self.delay_sec: float = delay_sec

    def _delay(self, failures: int) -> float:
        return self.delay_sec


class Retry(Middleware):
    """Tries what it wraps again while its policy says so.

    Decoding errors are never tried again, nor is what a handler has decided itself by ``Redeliver`` or ``Reject``. When
    the dispatcher stops, a back-off ends at once and the last failure stands.

    Args:
        policy: Decides on each failure.
    """

    def __init__(self, policy: RetryPolicy) -> None:
        if not isinstance(policy, RetryPolicy):
            raise ConfigurationError(
                f"Retry needs a policy, not {policy!r}; for instance Retry(ExponentialBackoffWithFullJitter(retries=5))"
            )
        self.policy: RetryPolicy = policy

    async def dispatch(self, ctx: EventHandlerContext, call_next: NextCall) -> Any:
        failures = 0
        while True:
            try:
                return await call_next(ctx)
            except (DecodeError, Redeliver, Reject):
                raise
            except Exception as error:
                failures += 1
                delay = self.policy.next_delay(failures, error)
                if delay is None or not await ctx.back_off(delay):
                    raise
