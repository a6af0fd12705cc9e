"""How many messages wait in queues, by passive declarations on a channel that nothing else hangs on."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

__all__ = ["Gauge"]

_EVERY = 5.0


class Gauge:
    """Looks into queues, over a connection that is somebody else's; methods are for its thread but for `is_due`.

    Attributes:
        found: How many messages were ready in each queue when it last looked; ``None`` before, and where it may not.
    """

    def __init__(self, queues: Iterable[str]) -> None:
        self._queues = tuple(queues)
        self._channel: Any = None
        self._is_refused = False
        self._looked_at = 0.0
        self._counts: dict[str, int] = {}
        self.found: Mapping[str, int] | None = None

    def is_due(self) -> bool:
        """Whether it is time for another look; the next time is some seconds from now. In the loop."""
        now = time.monotonic()
        if self._is_refused or now < self._looked_at + _EVERY:
            return False
        self._looked_at = now
        return True

    def measure(self, connection: Any) -> None:
        """Looks into all queues; `found` is set when the answers are there."""
        if connection is None or not connection.is_open:
            return
        if self._channel is None:
            self._channel = connection.channel(on_open_callback=self._opened)
        elif self._channel.is_open:
            self._look()

    def _opened(self, channel: Any) -> None:
        channel.add_on_close_callback(self._closed)
        self._look()

    def _closed(self, channel: Any, reason: BaseException) -> None:
        # A queue is not there any more, which its consumer is told itself, or may not be looked at.
        self._channel, self.found = None, None
        self._is_refused = getattr(reason, "reply_code", None) == 403

    def _look(self) -> None:
        for queue in self._queues:
            self._channel.queue_declare(queue, passive=True, callback=partial(self._told, queue))

    def _told(self, queue: str, frame: Any) -> None:
        self._counts[queue] = frame.method.message_count
        if len(self._counts) == len(self._queues):
            self.found = dict(self._counts)
