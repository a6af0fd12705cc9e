"""Other providers in the place of the real ones, for the length of a block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from dispytch._runtime.dispatcher import EventDispatcher
from dispytch.errors import ConfigurationError
from dispytch.sync import EventDispatcher as BlockingEventDispatcher

__all__ = ["Overrides", "overriding"]

Overrides = Mapping[Callable[..., Any], Callable[..., Any]]
"""Providers, and those to call in their place."""


@contextmanager
def overriding(dispatcher: EventDispatcher | BlockingEventDispatcher, overrides: Overrides) -> Iterator[None]:
    """Has a dispatcher call other providers in the place of some; the previous ones are back at the end of the block.

    Args:
        dispatcher: The dispatcher. It is started inside the block, since it looks at overrides when it starts.
        overrides: Providers, and those to call in their place.

    Raises:
        ConfigurationError: the dispatcher is started already.
    """
    if dispatcher.health().state != "stopped":
        raise ConfigurationError(
            "the dispatcher is started, which is when it looks at overrides; enter overriding() before"
        )
    current = dispatcher.dependency_overrides
    before = dict(current)
    current.update(overrides)
    try:
        yield
    finally:
        current.clear()
        current.update(before)
