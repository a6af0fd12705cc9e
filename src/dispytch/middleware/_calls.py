"""Calling what users give, sync or async."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

__all__ = ["call"]


async def call(func: Callable[..., Any], *args: Any) -> Any:
    """Calls a function, and awaits its result if that is awaitable."""
    result = func(*args)
    return await result if inspect.isawaitable(result) else result
