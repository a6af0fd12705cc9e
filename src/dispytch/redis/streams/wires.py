"""Connections of a stream consumer: bytes of commands go out, their replies come back, and a cancellation loses none.

A command is asked (`Wire.ask`), and its replies are taken (`Wire.take`), which may be cancelled and called again: the
replies of an XREADGROUP that nobody waits for any more are entries that are pending with us.
"""

from __future__ import annotations

import logging
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import anyio
import anyio.lowlevel

from dispytch._bridge import Waker
from dispytch.errors import BrokerError, BrokerUnreachableError
from dispytch.redis.blocking import connect_blocking, interrupt
from dispytch.redis.feed import closed_error
from dispytch.redis.loops import close_asyncio, connect_asyncio
from dispytch.redis.replies import Replies
from dispytch.redis.sockets import LoopSocket, connect_socket
from dispytch.redis.source import Source

__all__ = ["AsyncioWire", "SocketWire", "ThreadWire", "Wire", "packed"]

logger: logging.Logger = logging.getLogger("dispytch")

_READ_SIZE = 256 * 1024
_STOP_TIMEOUT = 5.0
_GRACE = 0.1
"""Seconds that follow a time-out: if the loop was held up, what has come in time has not been looked at."""


def packed(*words: bytes | str | int, ids: Sequence[bytes] = ()) -> bytes:
    """A command's bytes.

    Args:
        ids: What follows the words; many, and mostly of one length.
    """
    parts = [b"*%d\r\n" % (len(words) + len(ids))]
    for word in words:
        raw = word if isinstance(word, bytes) else str(word).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(raw), raw))
    for length, alike in groupby(ids, len):
        parts += (b"$%d\r\n" % length, (b"\r\n$%d\r\n" % length).join(alike), b"\r\n")
    return b"".join(parts)


class Wire(ABC):
    """One connection. One task uses it at a time."""

    def __init__(self, source: Source) -> None:
        self._source = source

    @abstractmethod
    async def open(self) -> None:
        """Connects.

        Raises:
            BrokerError: it did not work; the wire is closed.
        """

    @abstractmethod
    def ask(self, *commands: bytes) -> None:
        """Sends commands; those asked before must have been taken."""

    async def take(self, timeout: float) -> list[Any]:
        """The replies to what was asked, errors among them as hiredis.ReplyError.

        May be cancelled, and called again.

        Raises:
            BrokerUnreachableError: the connection is lost, or nothing came in ``timeout`` seconds.
        """
        for seconds in (timeout, _GRACE):
            with anyio.move_on_after(seconds):
                return await self._replied()
        raise BrokerUnreachableError(f"Redis at {self._source.address} has not answered for {timeout:g} s")

    @abstractmethod
    async def _replied(self) -> list[Any]:
        """The same, whenever they come."""

    @abstractmethod
    async def close(self) -> None:
        """Lets go of everything. Idempotent."""

    def _garbled(self, error: BaseException) -> BrokerUnreachableError:
        found = BrokerUnreachableError(
            f"what answers at {self._source.address} does not speak Redis's protocol; check the address and the port"
        )
        found.__cause__ = error
        return found


class _LoopWire(Wire):
    """A connection that the loop reads itself."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self._replies = Replies()

    async def _replied(self) -> list[Any]:
        replies = self._replies
        try:
            while not replies.are_all_there:
                replies.feed(await self._received())
        except replies.protocol_error as error:
            raise self._garbled(error) from None
        return replies.taken()

    @abstractmethod
    async def _received(self) -> bytes:
        """What has come. Raises BrokerUnreachableError at the end."""


class AsyncioWire(_LoopWire):
    """A connection of redis.asyncio, read below the client's own parser, which loses what it has when cancelled."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self._connection: Any = None

    async def open(self) -> None:
        self._connection = await connect_asyncio(self._source)

    def ask(self, *commands: bytes) -> None:
        writer = None if self._connection is None else self._connection._writer
        if writer is None:
            raise closed_error(self._source.address)
        self._replies.expect(len(commands))
        writer.write(b"".join(commands))

    async def _received(self) -> bytes:
        stream = None if self._connection is None else self._connection._reader
        try:
            data: bytes = b"" if stream is None else await stream.read(_READ_SIZE)
        except OSError as error:
            raise closed_error(self._source.address) from error
        if not data:
            raise closed_error(self._source.address)
        return data

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await close_asyncio(connection)


class SocketWire(_LoopWire):
    """A connection of the blocking client, whose socket any loop reads."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self._socket: LoopSocket | None = None

    async def open(self) -> None:
        self._socket = await connect_socket(self._source)

    def ask(self, *commands: bytes) -> None:
        if self._socket is None:
            raise closed_error(self._source.address)
        self._replies.expect(len(commands))
        try:
            self._socket.send(b"".join(commands))
        except OSError as error:
            raise closed_error(self._source.address) from error

    async def _received(self) -> bytes:
        if self._socket is None:
            raise closed_error(self._source.address)
        try:
            return await self._socket.receive(_READ_SIZE)
        except OSError as error:
            raise closed_error(self._source.address) from error

    async def close(self) -> None:
        found, self._socket = self._socket, None
        if found is not None:
            found.close()
        await anyio.lowlevel.checkpoint()


class ThreadWire(Wire):
    """A connection of the blocking client, in a thread of its own.

    Args:
        name: What the connection is for; names the thread.
    """

    def __init__(self, source: Source, name: str) -> None:
        super().__init__(source)
        self._name = name
        self._asked: queue.SimpleQueue[tuple[bytes, int] | None] = queue.SimpleQueue()
        self._taken: list[list[Any]] = []
        self._thread: threading.Thread | None = None
        self._connection: Any = None
        self._is_open = False
        self._ended = False
        self._stopping = False
        self._error: BaseException | None = None
        self._waker: Waker

    async def open(self) -> None:
        self._waker = Waker()
        self._thread = threading.Thread(target=self._run, name=f"dispytch redis stream {self._name}", daemon=True)
        self._thread.start()
        try:
            while not self._is_open and not self._ended:
                await self._waker.wait()
        except BaseException:
            await self.close()
            raise
        if not self._is_open:
            await self.close()
            self._raise()

    def ask(self, *commands: bytes) -> None:
        self._asked.put((b"".join(commands), len(commands)))

    async def _replied(self) -> list[Any]:
        while not self._taken:
            if self._ended:
                self._raise()
            await self._waker.wait()
        return self._taken.pop(0)

    async def close(self) -> None:
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._stopping = True
        self._asked.put(None)
        if self._connection is not None:
            interrupt(self._connection)
        with anyio.move_on_after(_STOP_TIMEOUT, shield=True):
            while not self._ended:
                await self._waker.wait()
        if self._ended:
            thread.join()
        else:
            logger.warning("The %s's thread for Redis at %s does not return.", self._name, self._source.address)

    def _raise(self) -> None:
        if isinstance(self._error, BrokerError):
            raise self._error
        if self._error is not None and not isinstance(self._error, OSError):
            raise BrokerError(f"talking to Redis at {self._source.address} failed: {self._error}") from self._error
        raise closed_error(self._source.address) from self._error

    # --- in the thread

    def _run(self) -> None:
        try:
            self._connection = connect_blocking(self._source, None)
            self._connection._sock.settimeout(None)
            self._is_open = True
            self._waker.wake()
            replies = Replies()
            while not self._stopping and (asked := self._asked.get()) is not None:
                self._taken.append(self._exchange(replies, *asked))
                self._waker.wake()
        except BaseException as error:
            self._error = error
        finally:
            try:
                if self._connection is not None:
                    self._connection.disconnect()
            finally:
                self._ended = True
                self._waker.wake()

    def _exchange(self, replies: Replies, data: bytes, count: int) -> list[Any]:
        sock = self._connection._sock
        replies.expect(count)
        sock.sendall(data)
        while not replies.are_all_there:
            if not (received := sock.recv(_READ_SIZE)):
                raise closed_error(self._source.address)
            try:
                replies.feed(received)
            except replies.protocol_error as error:
                raise self._garbled(error) from None
        return replies.taken()
