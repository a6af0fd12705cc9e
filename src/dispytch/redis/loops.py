"""Publishing from an event loop: by redis.asyncio, by sockets that the blocking client has connected, or in threads."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import Any, Generic, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread

from dispytch.errors import BrokerError, UnconfirmedError
from dispytch.redis.batches import Batch
from dispytch.redis.blocking import BlockingDriver, interrupt
from dispytch.redis.feed import PING
from dispytch.redis.replies import Replies
from dispytch.redis.sockets import LoopSocket, connect_socket, has_news
from dispytch.redis.source import CONNECT_TIMEOUT, Source, connect_error, import_redis

__all__ = ["AsyncioDriver", "LoopDriver", "SocketDriver", "ThreadDriver", "close_asyncio", "connect_asyncio"]

ConnectionT = TypeVar("ConnectionT")

_CONNECTIONS = 16
"""How many batches may be under way at once; further ones wait for their turn."""
_READ_SIZE = 64 * 1024
_FLUSH_TIMEOUT = 5.0
_GRACE = 0.5
"""Seconds beyond its time that a thread may take before it is left to itself, for instance when a name is looked up."""


class LoopDriver(ABC):
    """Sends batches, for one event loop."""

    @abstractmethod
    async def start(self) -> None:
        """Connects, unless there is a connection, and waits until the server has answered on it."""

    @abstractmethod
    async def send(self, batch: Batch, timeout: float | None) -> None: ...

    @abstractmethod
    async def stop(self) -> None: ...


async def connect_asyncio(source: Source) -> Any:
    """A new connection.

    Raises:
        BrokerError: none could be made.
    """
    redis = import_redis()
    connection = source.asyncio()
    connection.socket_connect_timeout = CONNECT_TIMEOUT  # for closing; the scope below is what counts
    try:
        with anyio.fail_after(source.connect_timeout):
            await connection.connect()
        return connection
    except (redis.RedisError, OSError, ValueError) as error:
        problem = connect_error(error, source.address)
    except BaseException:
        await close_asyncio(connection)
        raise
    await close_asyncio(connection)
    raise problem  # here, where the client's error, which may quote what was sent, is not its context


async def close_asyncio(connection: Any) -> None:
    redis = import_redis()
    writer = connection._writer
    with anyio.CancelScope(shield=True):
        with suppress(redis.RedisError, OSError):  # gone already
            await connection.disconnect(nowait=True)
        if writer is not None:
            writer.transport.abort()  # TLS says goodbye and waits for the answer, longer than the loop may last
        await anyio.lowlevel.checkpoint()  # lets the transport close its socket


class _Pool(LoopDriver, Generic[ConnectionT]):
    """Each batch has a connection to itself; connections are kept for the next ones."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._slots = anyio.Semaphore(source.max_connections or _CONNECTIONS, fast_acquire=True)
        self._idle: list[ConnectionT] = []
        self._under_way: dict[Batch, ConnectionT] = {}
        self._closings = 0
        self._done = anyio.Event()

    @abstractmethod
    async def _connect(self) -> ConnectionT:
        """Makes a connection; raises BrokerError if it cannot."""

    @abstractmethod
    async def _is_fresh(self, connection: ConnectionT) -> bool:
        """Whether the server has kept an idle connection open: there must be nothing to read, not even its end."""

    @abstractmethod
    async def _greet(self, connection: ConnectionT) -> None:
        """Has the server say something; see `dispytch.redis.blocking`. Raises errors that it answers with."""

    @abstractmethod
    async def _publish(self, connection: ConnectionT, batch: Batch) -> None:
        """Sends a batch and tells it the replies."""

    @abstractmethod
    async def _break(self, connection: ConnectionT) -> None:
        """Ends what another task does on a connection; that task closes it."""

    @abstractmethod
    async def _close(self, connection: ConnectionT) -> None:
        """Lets go of a connection that nobody uses."""

    async def start(self) -> None:
        redis = import_redis()
        closings = self._closings
        connection = await self._take()
        problem: BrokerError | None = None
        has_answered = False
        try:
            with anyio.fail_after(self._source.connect_timeout):
                with suppress(redis.ResponseError):  # what it refuses, it refuses of the events, too
                    await self._greet(connection)
            has_answered = True
        except (redis.RedisError, OSError) as error:
            problem = connect_error(error, self._source.address)
        finally:
            if not has_answered:
                await self._close(connection)
        if problem is not None:
            raise problem
        await self._give_back(connection, closings)

    async def send(self, batch: Batch, timeout: float | None) -> None:
        redis = import_redis()
        closings = self._closings
        with anyio.move_on_after(timeout):
            async with self._slots:
                try:
                    connection = await self._take()
                except BrokerError as error:
                    batch.fail(error)
                    return
                self._under_way[batch] = connection
                is_usable = False
                try:
                    await self._publish(connection, batch)
                    is_usable = True
                except (redis.RedisError, OSError, AttributeError) as error:  # AttributeError: closed by a stop
                    batch.fail(error)
                finally:
                    del self._under_way[batch]
                    self._done.set()
                    self._done = anyio.Event()
                    if is_usable:
                        await self._give_back(connection, closings)
                    else:
                        await self._close(connection)

    async def stop(self) -> None:
        self._closings += 1
        idle, self._idle = self._idle, []
        last = set(self._under_way)
        with anyio.move_on_after(_FLUSH_TIMEOUT):
            while last & self._under_way.keys():
                await self._done.wait()
        for connection in idle:
            await self._close(connection)
        late = last & self._under_way.keys()
        count = sum(batch.unconfirmed for batch in late)
        for batch in late:
            await self._break(self._under_way[batch])
        if count:
            raise UnconfirmedError(
                f"{count} events were sent to Redis at {self._source.address} and not confirmed before the close", count
            )

    async def _take(self) -> ConnectionT:
        while self._idle:
            connection = self._idle.pop()
            is_fresh = False
            try:
                is_fresh = await self._is_fresh(connection)
            finally:
                if not is_fresh:
                    await self._close(connection)
            if is_fresh:
                return connection
        return await self._connect()

    async def _give_back(self, connection: ConnectionT, closings: int) -> None:
        if closings == self._closings:
            self._idle.append(connection)
        else:
            await self._close(connection)


class AsyncioDriver(_Pool[Any]):
    """Connections of redis.asyncio."""

    async def _connect(self) -> Any:
        return await connect_asyncio(self._source)

    async def _is_fresh(self, connection: Any) -> bool:
        redis = import_redis()
        # Before 8 the look for something to read was called after the bytes that it may take away.
        look = connection.can_read if hasattr(connection, "can_read") else connection.can_read_destructive
        try:
            # The socket may have something that the event loop has not got round to.
            sock = connection._writer and connection._writer.get_extra_info("socket")
            return connection.is_connected and not await look() and not (sock and has_news(sock))
        except (redis.RedisError, OSError):
            return False

    async def _greet(self, connection: Any) -> None:
        await connection.send_packed_command([PING], check_health=False)
        await connection.read_response()

    async def _publish(self, connection: Any, batch: Batch) -> None:
        response_error = import_redis().exceptions.ResponseError
        read = connection.read_response
        for count, data in batch.chunks():
            await connection.send_packed_command([data], check_health=False)
            for _ in range(count):
                try:
                    reply = await read()
                except response_error as error:
                    batch.refuse(error)
                else:
                    batch.confirm(reply)

    async def _break(self, connection: Any) -> None:
        await close_asyncio(connection)

    async def _close(self, connection: Any) -> None:
        await close_asyncio(connection)


class SocketDriver(_Pool[LoopSocket]):
    """Connections of the blocking client, whose sockets any loop reads and writes."""

    async def _connect(self) -> LoopSocket:
        return await connect_socket(self._source)

    async def _is_fresh(self, connection: LoopSocket) -> bool:
        await anyio.lowlevel.checkpoint()
        return not has_news(connection.connection._sock)

    async def _greet(self, connection: LoopSocket) -> None:
        replies = self._replies_of(connection)
        replies.expect(1)
        connection.send(PING)
        while not replies.are_all_there:
            replies.feed(await connection.receive(_READ_SIZE))
        (reply,) = replies.taken()
        if isinstance(reply, Exception):
            raise reply

    async def _publish(self, connection: LoopSocket, batch: Batch) -> None:
        known = import_redis().exceptions
        replies = self._replies_of(connection)
        for count, data in batch.chunks():
            replies.expect(count)
            connection.send(data)
            while not replies.are_all_there:
                replies.feed(await connection.receive(_READ_SIZE))
                for reply in replies.taken():
                    if isinstance(reply, known.ResponseError):
                        batch.refuse(reply)
                    elif isinstance(reply, Exception):
                        raise reply  # the client takes it for the end of the connection
                    else:
                        batch.confirm(reply)

    def _replies_of(self, connection: LoopSocket) -> Replies:
        """Replies whose errors are those of the client."""
        parse_error = connection.connection._parser.parse_error
        return Replies(protocolError=import_redis().exceptions.InvalidResponse, replyError=parse_error)

    async def _break(self, connection: LoopSocket) -> None:
        connection.interrupt()

    async def _close(self, connection: LoopSocket) -> None:
        connection.close()


class ThreadDriver(LoopDriver):
    """The blocking client, with a worker thread for each batch under way."""

    def __init__(self, source: Source) -> None:
        self._blocking = BlockingDriver(source)
        connections = source.max_connections or _CONNECTIONS
        self._slots = anyio.Semaphore(connections, fast_acquire=True)
        self._limiter = anyio.CapacityLimiter(float("inf"))  # private: the slots are what limits

    async def start(self) -> None:
        await anyio.to_thread.run_sync(self._blocking.start, abandon_on_cancel=True, limiter=self._limiter)

    async def send(self, batch: Batch, timeout: float | None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout

        def publish() -> None:
            left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            self._blocking.send(batch, left)

        has_slot = is_done = False
        try:
            with anyio.move_on_after(timeout):
                await self._slots.acquire()
                has_slot = True
            if has_slot:
                left = None if deadline is None else deadline - time.monotonic() + _GRACE
                with anyio.move_on_after(left):
                    await anyio.to_thread.run_sync(publish, abandon_on_cancel=True, limiter=self._limiter)
                    is_done = True
        finally:
            if has_slot:
                self._slots.release()
            if not is_done:  # the thread is left to itself: have it end at once
                batch.aborted = True
                if (connection := batch.connection) is not None:
                    interrupt(connection)

    async def stop(self) -> None:
        await anyio.to_thread.run_sync(self._blocking.stop, limiter=self._limiter)
