"""How a consumer receives through the blocking client: a thread reads, and hands over batches to the loop."""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from abc import abstractmethod
from collections import deque
from typing import Any

import anyio

from dispytch._bridge import Waker
from dispytch.abc import Delivery
from dispytch.errors import BrokerError, BrokerUnreachableError
from dispytch.redis.blocking import connect_blocking, interrupt
from dispytch.redis.channels import Channels
from dispytch.redis.feed import PING, Feed, closed_error, deliveries_of, silent_error
from dispytch.redis.links import READ_SIZE, Link, pubsub_reply, warn_of_gap
from dispytch.redis.source import CONNECT_TIMEOUT, Source, connect_error, import_redis

__all__ = ["PubSubThreadLink", "ThreadLink"]

logger: logging.Logger = logging.getLogger("dispytch")

_MOST_WAITING = 16
"""Batches that wait for the loop before the thread stops reading; a batch is what came in at most 64 KiB."""
_MOST_AT_ONCE = 100
_STOP_TIMEOUT = 5.0


class _Reader(Link):
    """The thread, and what it shares with the loop. Methods with a leading underscore run in the thread."""

    def __init__(self, channels: Channels, address: str) -> None:
        self.channels: Channels = channels
        self.address: str = address
        self.stopping: bool = False
        self.heard_at: float = 0.0
        self._batches: deque[list[Delivery]] = deque()
        self._room = threading.Condition()
        self._is_open = False
        self._ended = False
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._waker: Waker

    async def open(self) -> None:
        self._waker = Waker()
        self._thread = threading.Thread(target=self._run, name="dispytch redis reader", daemon=True)
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

    async def read(self) -> list[Delivery]:
        while not self._batches:
            if self._ended:
                self._raise()
            await self._waker.wait()
        batch = self._batches.popleft()
        if len(self._batches) < _MOST_WAITING:
            with self._room:
                self._room.notify()
        return batch

    async def close(self) -> None:
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self.stopping = True
        with self._room:
            self._room.notify()
        self.interrupt()
        with anyio.move_on_after(_STOP_TIMEOUT, shield=True):
            while not self._ended:
                await self._waker.wait()
        if self._ended:
            thread.join()
        else:
            logger.warning(
                "The thread that reads from Redis at %s is left to itself: it does not return.", self.address
            )

    @abstractmethod
    def interrupt(self) -> None:
        """Has the thread look at `stopping`. Called from the loop."""

    @abstractmethod
    def _open(self) -> list[Delivery]:
        """Connects and subscribes; what comes meanwhile is returned."""

    @abstractmethod
    def _next(self) -> list[Delivery]:
        """Waits for something to come."""

    @abstractmethod
    def _close(self) -> None: ...

    def _run(self) -> None:
        try:
            batch = self._open()
            self._is_open = True
            self._waker.wake()
            while not self.stopping:
                if batch:
                    self._batches.append(batch)
                    self._waker.wake()
                    with self._room:
                        while len(self._batches) >= _MOST_WAITING and not self.stopping:
                            self._room.wait()
                        if self.stopping:
                            break
                batch = self._next()
                self.heard_at = time.monotonic()
        except BaseException as error:
            self._error = error
        finally:
            try:
                self._close()
            finally:
                self._ended = True
                self._waker.wake()

    def _raise(self) -> None:
        if isinstance(self._error, BrokerError):
            raise self._error
        if self._error is not None:
            raise BrokerError(f"reading from Redis at {self.address} failed: {self._error}") from self._error
        raise closed_error(self.address)


class ThreadLink(_Reader):
    """A connection of its own.

    Args:
        heartbeat: After how many silent seconds the server is asked for a sign of life, and given up after as many.
    """

    def __init__(self, source: Source, channels: Channels, heartbeat: float) -> None:
        super().__init__(channels, source.address)
        self._source = source
        self._heartbeat = heartbeat
        self._feed = Feed(channels, source.address)
        self._connection: Any = None

    def interrupt(self) -> None:
        if self._connection is not None:
            interrupt(self._connection)

    def _open(self) -> list[Delivery]:
        early: list[Delivery] = []
        self._connection = connect_blocking(self._source, None)
        if self.stopping:
            return early
        sock = self._connection._sock
        sock.settimeout(CONNECT_TIMEOUT)
        try:
            for command in self._feed.commands():
                sock.sendall(command)
            while not self._feed.is_confirmed:
                early += self._feed.take(self._bytes(sock))
        except TimeoutError:
            raise BrokerUnreachableError(
                f"Redis at {self.address} did not confirm the subscriptions within {CONNECT_TIMEOUT:g} s"
            ) from None
        except OSError as error:
            raise closed_error(self.address) from error
        sock.settimeout(self._heartbeat)
        return early

    def _next(self) -> list[Delivery]:
        sock = self._connection._sock
        try:
            try:
                data = self._bytes(sock)
            except TimeoutError:
                sock.sendall(PING)
                data = self._bytes(sock)
        except TimeoutError:
            raise silent_error(self.address, self._heartbeat) from None
        except OSError as error:
            raise closed_error(self.address) from error
        return self._feed.take(data)

    def _bytes(self, sock: Any) -> bytes:
        data: bytes = sock.recv(READ_SIZE)
        if not data:
            raise closed_error(self.address)
        return data

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.disconnect()


class PubSubThreadLink(_Reader):
    """A PubSub object of the blocking client that was handed in, with the subscriptions that it has."""

    def __init__(self, pubsub: Any, channels: Channels, address: str) -> None:
        super().__init__(channels, address)
        self._pubsub = pubsub
        self._watched: Any = None
        self._is_anew = False
        self._bell: tuple[int, int] | None = None

    def interrupt(self) -> None:
        # Its socket is not ours to shut down, so the thread waits for a pipe as well.
        if self._bell is not None:
            os.write(self._bell[1], b"!")

    async def open(self) -> None:
        self._bell = os.pipe()
        await super().open()

    async def close(self) -> None:
        await super().close()
        bell, self._bell = self._bell, None
        if bell is not None and self._ended:
            for end in bell:
                os.close(end)

    def _open(self) -> list[Delivery]:
        redis = import_redis()
        connection = self._pubsub.connection
        if connection is None:
            raise BrokerError("the PubSub object was closed; make a new one, subscribe it, and hand that in")
        try:
            connection.connect()  # does nothing where it is connected
        except (redis.RedisError, OSError) as error:
            raise connect_error(error, self.address) from error
        connection.register_connect_callback(self._reconnected)
        self._watched = connection
        return []

    def _next(self) -> list[Delivery]:
        redis = import_redis()
        replies: list[list[Any]] = []
        self._is_anew = False
        try:
            while len(replies) < _MOST_AT_ONCE and not self.stopping:
                response = self._pubsub.parse_response(block=False, timeout=0)
                if response is None:
                    if replies:
                        break
                    self._wait()
                    continue
                reply = pubsub_reply(self._pubsub, response)
                if reply is not None:
                    replies.append(reply)
                    if reply[0].endswith(b"subscribe"):
                        self._pubsub.handle_message(response)
        except (redis.RedisError, OSError) as error:
            if self._is_anew:  # the client has connected and subscribed again before it raised
                return deliveries_of(replies, self.channels)
            if (connection := self._pubsub.connection) is not None:
                connection.disconnect()  # it is broken; its owner's subscriptions are kept, and made again
            raise connect_error(error, self.address) from error
        except UnicodeDecodeError as error:
            raise BrokerError(f"the PubSub object cannot be read: {error}") from error
        return deliveries_of(replies, self.channels)

    def _wait(self) -> None:
        connection, bell = self._pubsub.connection, self._bell
        if connection is None or connection._sock is None or bell is None:
            return
        poll = select.poll()
        poll.register(connection._sock, select.POLLIN)
        poll.register(bell[0], select.POLLIN)
        poll.poll(1000)  # not longer, for the sake of the client's own health checks

    def _close(self) -> None:
        if self._watched is not None:
            self._watched.deregister_connect_callback(self._reconnected)

    def _reconnected(self, connection: Any) -> None:
        self._is_anew = True
        warn_of_gap(self.channels)
