"""Middleware that ships with Dispytch."""

from dispytch.abc import Middleware
from dispytch.middleware.async_lock import AsyncLock
from dispytch.middleware.exception_interceptor import ExceptionInterceptor
from dispytch.middleware.filter import Filter
from dispytch.middleware.retry import ExponentialBackoffWithFullJitter, FixedDelay, Retry, RetryPolicy
from dispytch.middleware.timeout import Timeout

__all__ = [
    "AsyncLock",
    "ExceptionInterceptor",
    "ExponentialBackoffWithFullJitter",
    "Filter",
    "FixedDelay",
    "Middleware",
    "Retry",
    "RetryPolicy",
    "Timeout",
]
