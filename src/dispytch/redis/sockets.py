"""Connections of the blocking client whose sockets an event loop reads and writes: no thread for each exchange.

The client connects, with TLS and passwords, in a worker thread. From then on the loop waits for the socket itself,
which works on every loop, and is for those that redis.asyncio does not know.
"""

from __future__ import annotations

import select
import ssl
from contextlib import suppress
from typing import Any

import anyio
import anyio.to_thread

from dispytch.redis.blocking import connect_blocking, interrupt
from dispytch.redis.source import Source

__all__ = ["LoopSocket", "connect_socket", "has_news"]


class LoopSocket:
    """A connected socket. One task uses it at a time; what is awaited may be cancelled, and called again.

    Args:
        connection: A connection of the blocking client, on which nothing is under way.
    """

    def __init__(self, connection: Any) -> None:
        self.connection: Any = connection
        self._sock: Any = connection._sock
        self._unsent = memoryview(b"")
        self._sock.setblocking(False)

    def send(self, data: bytes) -> None:
        """Sends as much as goes without waiting; the rest goes while something is awaited.

        Raises:
            OSError: the connection is lost.
        """
        self._unsent = memoryview(bytes(self._unsent) + data if self._unsent else data)
        with suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            self._send()

    async def receive(self, most: int) -> bytes:
        """What has come, at most so many bytes; waits for something to come.

        Raises:
            OSError: the connection is lost.
        """
        sock = self._sock
        while True:
            try:
                if self._unsent:
                    self._send()
                data: bytes = sock.recv(most)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as want:
                must_write = isinstance(want, ssl.SSLWantWriteError)
            except BlockingIOError:
                must_write = bool(self._unsent)
            else:
                if not data:
                    raise ConnectionResetError("the server has closed the connection")
                return data
            await (anyio.wait_writable(sock) if must_write else anyio.wait_readable(sock))

    def interrupt(self) -> None:
        """Has whoever waits for it see its end."""
        interrupt(self.connection)

    def close(self) -> None:
        """Nobody may wait for it any more. Idempotent."""
        self.connection.disconnect()

    def _send(self) -> None:
        while self._unsent:
            self._unsent = self._unsent[self._sock.send(self._unsent) :]


async def connect_socket(source: Source) -> LoopSocket:
    """A new connection.

    Raises:
        BrokerError: none could be made.
    """
    is_wanted = True

    def connect() -> Any:
        connection = connect_blocking(source, None)
        if not is_wanted:
            connection.disconnect()
        return connection

    try:
        limiter = anyio.CapacityLimiter(1)
        connection = await anyio.to_thread.run_sync(connect, abandon_on_cancel=True, limiter=limiter)
        return LoopSocket(connection)
    except BaseException:
        is_wanted = False
        raise


def has_news(sock: Any) -> bool:
    """Whether there is something to read on a socket, be it its end."""
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return bool(poll.poll(0))
