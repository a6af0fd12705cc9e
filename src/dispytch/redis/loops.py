"""Publishing from an event loop: through redis.asyncio, or through the blocking client in worker threads."""

from __future__ import annotations

import select
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread

from dispytch.errors import BrokerError, UnconfirmedError
from dispytch.redis.batches import Batch
from dispytch.redis.blocking import PING, BlockingDriver, interrupt
from dispytch.redis.source import CONNECT_TIMEOUT, Source, connect_error, import_redis

__all__ = ["AsyncioDriver", "LoopDriver", "ThreadDriver", "close_asyncio", "connect_asyncio"]

_CONNECTIONS = 16
"""How many batches may be under way at once; further ones wait for their turn."""
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


class AsyncioDriver(LoopDriver):
    """Each batch has a connection of redis.asyncio to itself; connections are kept for the next ones."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._slots = anyio.Semaphore(source.max_connections or _CONNECTIONS, fast_acquire=True)
        self._idle: list[Any] = []
        self._under_way: dict[Batch, Any] = {}
        self._closings = 0
        self._done = anyio.Event()

    async def start(self) -> None:
        closings = self._closings
        connection = await self._take()
        try:
            await _greet(connection, self._source)
        except BaseException:
            await close_asyncio(connection)
            raise
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
                    await _publish(connection, batch)
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
                        await close_asyncio(connection)

    async def stop(self) -> None:
        self._closings += 1
        idle, self._idle = self._idle, []
        last = set(self._under_way)
        with anyio.move_on_after(_FLUSH_TIMEOUT):
            while last & self._under_way.keys():
                await self._done.wait()
        for connection in idle:
            await close_asyncio(connection)
        late = last & self._under_way.keys()
        count = sum(batch.unconfirmed for batch in late)
        for batch in late:
            await close_asyncio(self._under_way[batch])
        if count:
            raise UnconfirmedError(
                f"{count} events were sent to Redis at {self._source.address} and not confirmed before the close", count
            )

    async def _take(self) -> Any:
        while self._idle:
            connection = self._idle.pop()
            if await _is_fresh(connection):
                return connection
            await close_asyncio(connection)
        return await connect_asyncio(self._source)

    async def _give_back(self, connection: Any, closings: int) -> None:
        if closings == self._closings:
            self._idle.append(connection)
        else:
            await close_asyncio(connection)


async def _is_fresh(connection: Any) -> bool:
    """Whether the server has kept an idle connection open: there must be nothing to read on it, not even its end."""
    redis = import_redis()
    # Before 8 the look for something to read was called after the bytes that it may take away.
    look = connection.can_read if hasattr(connection, "can_read") else connection.can_read_destructive
    try:
        return connection.is_connected and not await look() and not _has_news(connection)
    except (redis.RedisError, OSError):
        return False


def _has_news(connection: Any) -> bool:
    """Whether something has come that the event loop has not got round to."""
    sock = connection._writer.get_extra_info("socket")
    if sock is None or not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return bool(poll.poll(0))


async def _greet(connection: Any, source: Source) -> None:
    """Has the server say something; see `dispytch.redis.blocking`."""
    redis = import_redis()
    try:
        with anyio.fail_after(source.connect_timeout):
            await connection.send_packed_command([PING], check_health=False)
            with suppress(redis.ResponseError):  # what it refuses, it refuses of the events, too
                await connection.read_response()
        return
    except (redis.RedisError, OSError) as error:
        problem = connect_error(error, source.address)
    raise problem


async def _publish(connection: Any, batch: Batch) -> None:
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
