"""What the tests of the Redis transport share."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any
from uuid import uuid4

import anyio
import hiredis
import redis

from dispytch._core.patterns import Pattern
from dispytch.abc import EventSubscription, Message, Subscription
from dispytch.redis import RedisEventRoute, RedisEventSubscription
from tests.support import PATIENCE

_numbers = count()


def unique(name: str = "channel") -> str:
    return f"{name}-{uuid4().hex[:8]}-{next(_numbers)}"


async def until(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Waits for a condition."""
    with anyio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - of what happens elsewhere there is no event
            await anyio.sleep(0.002)


def blocking_until(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def client_of(url: str, **options: Any) -> Any:
    """A plain client for looking at the server, and for publishing what Dispytch would not."""
    return redis.Redis.from_url(url, **options)


def subscription(pattern: str, delimiter: str | None = None) -> Subscription:
    declared: EventSubscription = RedisEventSubscription(pattern)
    return Subscription(Pattern.parse(pattern, delimiter), declared)


def message(channel: str, payload: bytes = b"{}") -> Message:
    return Message(unique("id"), RedisEventRoute(channel), payload)


def reader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("dispytch redis")]


class FakeServer:
    """Accepts connections and answers as told: a function from the words of a command to the bytes of the reply."""

    def __init__(self, answer: Callable[[list[bytes]], bytes | None]) -> None:
        self.answer = answer
        self.commands: list[list[bytes]] = []
        self._connections: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def named(self, name: bytes) -> list[list[bytes]]:
        return [command for command in list(self.commands) if command[0].upper() == name]

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        reader = hiredis.Reader()
        try:
            while data := connection.recv(65536):
                reader.feed(data)
                while isinstance(command := reader.gets(), list):
                    self.commands.append(command)
                    reply = self.answer(command)
                    if reply is not None:
                        connection.sendall(reply)
        except OSError:
            pass

    def cut(self) -> None:
        """Closes all connections, as a restarted server does."""
        connections, self._connections = self._connections, []
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def close(self) -> None:
        with suppress(OSError):  # closed already
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(5)


@contextmanager
def fake_server(answer: Callable[[list[bytes]], bytes | None]) -> Iterator[FakeServer]:
    server = FakeServer(answer)
    try:
        yield server
    finally:
        server.close()


def swallow_publish(command: list[bytes]) -> bytes | None:
    return None if command[0] == b"PUBLISH" else b"+OK\r\n"


def swallow_all(command: list[bytes]) -> bytes | None:
    return None


def subscribe_only(command: list[bytes]) -> bytes | None:
    """Confirms subscriptions, and is silent otherwise: a connection that has died half-way."""
    if command[0] in (b"SUBSCRIBE", b"PSUBSCRIBE"):
        kind = command[0].lower()
        return b"".join(
            b"*3\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n:%d\r\n" % (len(kind), kind, len(name), name, number + 1)
            for number, name in enumerate(command[1:])
        )
    return None


def is_trio(anyio_backend: tuple[str, Any]) -> bool:
    return anyio_backend[0] == "trio"
