"""What many tests need: waiting for a condition, and names of their own."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from uuid import uuid4

import anyio

from tests.brokers import free_port

CANARY = "canary-9f3e"
"""A password that must turn up nowhere."""

PATIENCE = 60.0
"""Seconds after which something that was waited for will not come any more, however busy the machine is."""


async def until(condition: Callable[[], object]) -> None:
    """Waits until a condition holds; fails if it does not within `PATIENCE`."""
    with anyio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110 - conditions of all kinds, some met by threads
            await anyio.sleep(0.005)


def blocking_until(condition: Callable[[], object]) -> None:
    """The same without an event loop."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


async def at_best(seconds: float, attempt: Callable[[], Awaitable[float]]) -> None:
    """Fails unless one of five attempts takes less.

    On a busy machine anything may come late, but not each time.

    Args:
        seconds: What one of them must stay below.
        attempt: Does it once, and returns how many seconds that took.
    """
    took: list[float] = []
    while len(took) < 5 and not any(one < seconds for one in took):
        took.append(await attempt())
    assert min(took) < seconds, took


def blocking_at_best(seconds: float, attempt: Callable[[], float]) -> None:
    """The same without an event loop."""
    took: list[float] = []
    while len(took) < 5 and not any(one < seconds for one in took):
        took.append(attempt())
    assert min(took) < seconds, took


def examples(number: int) -> int:
    """How many generated inputs a property is tested with.

    A fifth of ``number`` if ``DISPYTCH_FEW_EXAMPLES`` is set: tox sets it but for one interpreter, since properties of
    pure code hardly depend on it.
    """
    return number // 5 if os.environ.get("DISPYTCH_FEW_EXAMPLES") else number


def unique(name: str) -> str:
    """A name that no other test uses."""
    return f"{name}-{uuid4().hex[:12]}"


def closed_port() -> int:
    """A port where nobody listens, and that no client takes: a server may be started on it later."""
    return free_port()


def texts(error: BaseException | None) -> str:
    """Everything that an error and what it came from say."""
    found = ""
    seen: set[int] = set()
    queue = [error]
    while queue:
        one = queue.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        found += f"{one!r} {one} "
        queue += [one.__cause__, one.__context__]
    return found
