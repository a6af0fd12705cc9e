"""How a reader takes what comes, where the order in which replies are looked at matters."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest

from dispytch.abc import Delivery
from dispytch.redis.streams.groups import Group, Stream
from dispytch.redis.streams.producer import stream_source
from dispytch.redis.streams.reading import Reader
from dispytch.redis.streams.wires import Wire

pytestmark = pytest.mark.anyio


class Answering(Wire):
    """A server that has one entry pending, until it is acknowledged: just after it was read for the first time."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream_source("redis://localhost", "a test"))
        self._stream = stream
        self._asked: tuple[bytes, ...] = ()
        self.pages = 0

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    def ask(self, *commands: bytes) -> None:
        self._asked = commands

    async def _replied(self) -> list[Any]:
        if not any(b"XREADGROUP" in command for command in self._asked):
            return [b"" for _ in self._asked]
        self.pages += 1
        if self.pages > 1:
            return [None]
        self._stream.held.pop(b"1-1", None)
        return [[(self._stream.key, [(b"1-1", [b"data", b"1"]), (b"1-2", [b"data", b"2"])])]]


async def test_what_is_acknowledged_while_a_page_is_on_its_way_is_not_handled_again() -> None:
    group = Group("group", "me", 60.0)
    stream = Stream("s", b"0")
    group.streams[stream.key] = stream
    stream.held[b"1-1"] = 0.0  # by the connection before this one
    inbox: deque[Delivery] = deque()
    wire = Answering(stream)
    reader = Reader(wire, group, inbox, "here", declare=True)
    await reader.open()
    while wire.pages < 2:
        await reader.fill(10)
    assert [delivery.payload for delivery in inbox] == [b"2"]
    assert list(stream.held) == [b"1-2"]
