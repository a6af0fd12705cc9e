"""What any in-process broker costs at least: a deque, and the validation."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import ClassVar

from benchmarks.bodies import validate
from benchmarks.plans import Message


class Memory:
    consuming: ClassVar[str] = "a deque of bytes, read by a thread"
    emitting: ClassVar[str] = "append to a deque"

    def __init__(self, url: str, topic: str) -> None:
        self._queue: deque[bytes] = deque()
        self._more = threading.Event()
        self._is_stopping = False

    def one(self, message: Message) -> None:
        self._queue.append(message[0])
        self._more.set()

    def many(self, messages: Sequence[Message]) -> None:
        self._queue.extend([payload for payload, _ in messages])
        self._more.set()

    def receive(self, group: str, took: Callable[[int], object], ready: Callable[[], None]) -> None:
        ready()
        queue = self._queue
        while not self._is_stopping:
            self._more.wait()
            self._more.clear()
            while queue:
                took(validate(queue.popleft()).order_id)

    def stop(self) -> None:
        self._is_stopping = True
        self._more.set()

    def close(self) -> None: ...
