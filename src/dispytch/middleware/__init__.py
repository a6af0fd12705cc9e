"""Middleware that ships with Dispytch."""

from dispytch.abc import Claim, Middleware, Store
from dispytch.middleware.async_lock import AsyncLock
from dispytch.middleware.deduplicate import Deduplicate
from dispytch.middleware.exception_interceptor import ExceptionInterceptor
from dispytch.middleware.filter import Filter
from dispytch.middleware.memory_store import MemoryStore
from dispytch.middleware.retry import ExponentialBackoffWithFullJitter, FixedDelay, Retry, RetryPolicy
from dispytch.middleware.timeout import Timeout

__all__ = [
    "AsyncLock",
    "Claim",
    "Deduplicate",
    "ExceptionInterceptor",
    "ExponentialBackoffWithFullJitter",
    "Filter",
    "FixedDelay",
    "MemoryStore",
    "Middleware",
    "Retry",
    "RetryPolicy",
    "Store",
    "Timeout",
]
