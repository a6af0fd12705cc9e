"""What becomes of a failure: another try and when, or the end."""

from __future__ import annotations

import math
from typing import NamedTuple

from dispytch.errors import ConfigurationError, DecodeError

__all__ = ["MOST_DELIVERIES", "Decision", "Redeliver", "Reject", "check_delay", "decide"]

MOST_DELIVERIES = 100
"""Where a broker counts, what it has delivered so often is not handled again: its handling seems to end the process."""
_FIRST_DELAY = 0.1
_LONGEST_DELAY = 30.0


class Redeliver(Exception):
    """Raised by a handler that wants the event again.

    Args:
        delay: Seconds until then; with ``None`` the usual back-off.

    Raises:
        ConfigurationError: the delay is no number of seconds.
    """

    def __init__(self, reason: str = "", *, delay: float | None = None) -> None:
        super().__init__(reason)
        check_delay(delay, "Redeliver")
        self.delay: float | None = delay


def check_delay(delay: object, owner: str) -> None:
    """Raises ConfigurationError for a delay that nobody can wait for."""
    if delay is not None and not (isinstance(delay, int | float) and 0 <= delay < math.inf):
        raise ConfigurationError(
            f"{owner}(delay={delay!r}): a delay is in seconds, from 0 on; None is the usual back-off"
        )


class Reject(Exception):
    """Raised by a handler that will never be able to handle the event: it is dead-lettered without another try."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)


class Decision(NamedTuple):
    """``delay`` seconds until the next try, or ``None``: give up."""

    delay: float | None


_GIVE_UP = Decision(None)


def decide(error: BaseException, failed: int, max_deliveries: int, at_most_once: bool, jitter: float) -> Decision:
    """What to do about a failure that outlived the middleware.

    Args:
        failed: How many deliveries have failed, this one included.
        max_deliveries: After how many to give up.
        at_most_once: The event is already acknowledged, so only an explicit Redeliver brings it again.
        jitter: A random number between 0 and 1, which spreads the delays over the upper half of the back-off.
    """
    if isinstance(error, DecodeError | Reject):
        return _GIVE_UP
    if failed >= max_deliveries:
        return _GIVE_UP
    if isinstance(error, Redeliver):
        if error.delay is not None:
            return Decision(error.delay)
    elif at_most_once:
        return _GIVE_UP
    longest = min(_LONGEST_DELAY, _FIRST_DELAY * 2.0 ** min(failed - 1, 20))
    return Decision(longest * (0.5 + jitter / 2))
