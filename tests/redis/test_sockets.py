"""Sockets that an event loop reads and writes itself."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import anyio.to_thread
import pytest

from dispytch.errors import BrokerUnreachableError
from dispytch.redis.blocking import connect_blocking
from dispytch.redis.sockets import LoopSocket, connect_socket
from dispytch.redis.source import Source
from tests.redis.helpers import fake_server, until

pytestmark = pytest.mark.anyio

LARGE = 20 * 1024 * 1024
"""Bytes, more than any socket takes at once."""


class Connection:
    """As much of a connection of the blocking client as is needed."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def disconnect(self) -> None:
        self._sock.close()


@contextmanager
def pair() -> Iterator[tuple[LoopSocket, socket.socket]]:
    ours, theirs = socket.socketpair()
    theirs.settimeout(30)
    with ours, theirs:
        yield LoopSocket(Connection(ours)), theirs


def echo(sock: socket.socket, count: int) -> None:
    """Reads so many bytes, and then sends them back."""
    parts: list[bytes] = []
    while count:
        parts.append(sock.recv(min(count, 1 << 20)))
        count -= len(parts[-1])
    sock.sendall(b"".join(parts))


async def received(found: LoopSocket, count: int) -> bytes:
    parts: list[bytes] = []
    while count:
        parts.append(await found.receive(min(count, 1 << 16)))
        count -= len(parts[-1])
    return b"".join(parts)


async def test_more_than_the_socket_takes_at_once() -> None:
    data = bytes(range(256)) * (LARGE // 256)
    with pair() as (ours, theirs), anyio.fail_after(60):
        ours.send(data[: LARGE // 2])
        ours.send(data[LARGE // 2 :])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, echo, theirs, LARGE)
            assert await received(ours, LARGE) == data


async def test_what_was_cancelled_goes_on() -> None:
    with pair() as (ours, theirs), anyio.fail_after(60):
        ours.send(bytes(LARGE))
        for _ in range(3):
            with anyio.move_on_after(0.01) as scope:
                await ours.receive(1)
            assert scope.cancelled_caught
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, echo, theirs, LARGE)
            assert await received(ours, LARGE) == bytes(LARGE)


async def test_others_of_the_loop_go_on_meanwhile() -> None:
    with pair() as (ours, theirs), anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:

            async def answer() -> None:
                await anyio.sleep(0.01)
                theirs.sendall(b"late")

            tasks.start_soon(answer)
            assert await ours.receive(100) == b"late"


@pytest.mark.parametrize("end", ["theirs", "ours"])
async def test_the_end(end: str) -> None:
    with pair() as (ours, theirs), anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:

            async def close() -> None:
                await anyio.sleep(0.01)
                theirs.close() if end == "theirs" else ours.interrupt()

            tasks.start_soon(close)
            with pytest.raises(ConnectionResetError):
                await ours.receive(100)
        with pytest.raises(OSError):  # noqa: PT011 - which one depends on the system
            for _ in range(2):
                ours.send(b"too late")
                await ours.receive(100)


async def test_a_connection_that_comes_when_nobody_waits_for_it_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    go, asked = threading.Event(), threading.Event()
    made: list[Any] = []

    def answer(command: list[bytes]) -> bytes:
        asked.set()
        go.wait(30)
        return b"+OK\r\n"

    def noted(source: Source, timeout: float | None) -> Any:
        made.append(connect_blocking(source, timeout))
        return made[-1]

    monkeypatch.setattr("dispytch.redis.sockets.connect_blocking", noted)
    with fake_server(answer) as server, anyio.fail_after(60):
        source = Source.from_url(server.url.replace("//", "//user:secret@"))
        async with anyio.create_task_group() as tasks:

            async def cancel() -> None:
                await anyio.to_thread.run_sync(asked.wait, 30)
                tasks.cancel_scope.cancel()

            tasks.start_soon(cancel)
            await connect_socket(source)
        assert tasks.cancel_scope.cancelled_caught
        assert not made
        go.set()
        await until(lambda: len(made) == 1 and made[0]._sock is None)


async def test_nobody_is_there() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))  # and nobody listens
        with pytest.raises(BrokerUnreachableError):
            await connect_socket(Source.from_url(f"redis://127.0.0.1:{sock.getsockname()[1]}"))
