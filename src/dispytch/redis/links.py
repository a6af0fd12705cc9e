"""How a consumer receives on asyncio: what every link offers, and the two that use redis.asyncio."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from typing import Any

import anyio
import anyio.lowlevel

from dispytch.abc import Delivery
from dispytch.errors import BrokerError, BrokerUnreachableError
from dispytch.redis.channels import Channels
from dispytch.redis.feed import PING, Feed, closed_error, deliveries_of, silent_error
from dispytch.redis.loops import close_asyncio, connect_asyncio
from dispytch.redis.source import CONNECT_TIMEOUT, Source, connect_error, import_redis

__all__ = ["READ_SIZE", "AsyncioLink", "AsyncioPubSubLink", "Link", "pubsub_reply", "warn_of_gap"]

logger: logging.Logger = logging.getLogger("dispytch")

READ_SIZE = 64 * 1024
_PUBSUB_WAIT = 5.0


def warn_of_gap(channels: Channels) -> None:
    logger.warning(
        "The connection to Redis is made anew: what was published meanwhile on %s is lost here, since Pub/Sub keeps "
        "nothing.",
        channels,
    )


class Link(ABC):
    """One connection that is subscribed."""

    @abstractmethod
    async def open(self) -> None:
        """Connects, subscribes, and waits for the confirmations.

        Raises:
            BrokerError: it did not work; the link is closed.
        """

    heard_at: float = 0.0
    """When a thread of its own has last heard from the server, in monotonic time; 0 without one."""

    @abstractmethod
    async def read(self) -> list[Delivery]:
        """What has come; waits for something to come, which may be nothing that is wanted. May be cancelled.

        Raises:
            BrokerError: the connection is lost.
        """

    @abstractmethod
    async def close(self) -> None:
        """Lets go of everything. Idempotent."""


class AsyncioLink(Link):
    """A connection of its own, through redis.asyncio.

    Args:
        heartbeat: After how many silent seconds the server is asked for a sign of life, and given up after as many.
    """

    def __init__(self, source: Source, channels: Channels, heartbeat: float) -> None:
        self._source = source
        self._feed = Feed(channels, source.address)
        self._heartbeat = heartbeat
        self._connection: Any = None
        self._early: list[Delivery] = []
        self._pinged = False

    async def open(self) -> None:
        self._connection = await connect_asyncio(self._source)
        try:
            with anyio.fail_after(CONNECT_TIMEOUT):
                await self._connection.send_packed_command(self._feed.commands(), check_health=False)
                while not self._feed.is_confirmed:
                    self._early += self._feed.take(await self._bytes())
        except TimeoutError:
            await self.close()
            raise BrokerUnreachableError(
                f"Redis at {self._source.address} did not confirm the subscriptions within {CONNECT_TIMEOUT:g} s"
            ) from None
        except BaseException:
            await self.close()
            raise

    async def read(self) -> list[Delivery]:
        if self._early:
            early, self._early = self._early, []
            return early
        data: bytes | None = None
        with anyio.move_on_after(self._heartbeat):
            data = await self._bytes()
        if data is not None:
            self._pinged = False
            return self._feed.take(data)
        if self._pinged:
            raise silent_error(self._source.address, self._heartbeat)
        self._pinged = True
        redis = import_redis()
        try:
            await self._connection.send_packed_command([PING], check_health=False)
        except (redis.RedisError, OSError) as error:
            raise closed_error(self._source.address) from error
        return []

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await close_asyncio(connection)

    async def _bytes(self) -> bytes:
        # Below the client's own parser, which gives one message at a time, and loses it where it is cancelled.
        stream = None if self._connection is None else self._connection._reader
        if stream is None:
            raise closed_error(self._source.address)
        try:
            data: bytes = await stream.read(READ_SIZE)
        except OSError as error:
            raise closed_error(self._source.address) from error
        if not data:
            raise closed_error(self._source.address)
        return data


def pubsub_reply(pubsub: Any, response: Any) -> list[Any] | None:
    """A reply as a PubSub object gave it, as bytes; ``None`` if it is no list."""
    if not isinstance(response, list | tuple):
        return None
    encode = pubsub.encoder.encode
    kind, *rest = response
    return [encode(kind), *(encode(item) if isinstance(item, str | bytes) else item for item in rest)]


class AsyncioPubSubLink(Link):
    """A PubSub object of redis.asyncio that was handed in, with the subscriptions that it has."""

    def __init__(self, pubsub: Any, channels: Channels, address: str) -> None:
        self._pubsub = pubsub
        self._channels = channels
        self._address = address
        self._watched: Any = None
        self._is_anew = False
        self._closed = False

    async def open(self) -> None:
        redis = import_redis()
        connection = self._pubsub.connection
        if connection is None:
            raise BrokerError("the PubSub object was closed; make a new one, subscribe it, and hand that in")
        try:
            if not connection.is_connected:
                with anyio.fail_after(CONNECT_TIMEOUT):
                    await connection.connect()
        except (redis.RedisError, OSError) as error:
            raise connect_error(error, self._address) from error
        connection.register_connect_callback(self._reconnected)
        self._watched = connection

    async def read(self) -> list[Delivery]:
        redis = import_redis()
        replies: list[list[Any]] = []
        self._is_anew = False
        try:
            response = await self._pubsub.parse_response(block=False, timeout=_PUBSUB_WAIT)
            if response is None:
                await anyio.lowlevel.checkpoint()
                return []
            reply = pubsub_reply(self._pubsub, response)
            if reply is not None:
                replies.append(reply)
                if reply[0].endswith(b"subscribe"):
                    await self._pubsub.handle_message(response)
        except (redis.RedisError, OSError) as error:
            if self._is_anew:
                return []  # the client has connected and subscribed again before it raised
            connection = self._pubsub.connection
            if connection is not None:
                await close_asyncio(connection)  # it is broken; its owner's subscriptions are kept, and made again
            raise connect_error(error, self._address) from error
        except (RuntimeError, UnicodeDecodeError) as error:
            raise BrokerError(f"the PubSub object cannot be read: {error}") from error
        return deliveries_of(replies, self._channels)

    async def close(self) -> None:
        if self._watched is not None:
            self._watched.deregister_connect_callback(self._reconnected)
            self._watched = None
        await anyio.lowlevel.checkpoint()

    def _reconnected(self, connection: Any) -> None:
        self._is_anew = True
        warn_of_gap(self._channels)
