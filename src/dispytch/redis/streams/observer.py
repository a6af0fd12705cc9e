"""A reader of Redis Streams that is in no group: it takes nothing, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio.lowlevel

from dispytch.abc import Delivery, Settlement, Subscription
from dispytch.errors import BrokerError, BrokerUnreachableError, ConfigurationError, DispytchError
from dispytch.redis.streams.consumer import RedisStreamConsumer
from dispytch.redis.streams.entries import delivery_of
from dispytch.redis.streams.groups import is_error, refusal
from dispytch.redis.streams.wires import Wire, packed

__all__ = ["RedisStreamObserver"]

_BLOCK = 1.0
"""Seconds that a read waits at the server."""
_TIMEOUT = 5.0
_START = b"0-0"


class RedisStreamObserver(RedisStreamConsumer):
    """Receives what is added to streams. There is nothing to settle, and a connection that was lost costs nothing.

    Args:
        redis: The URL; see `RedisStreamProducer`.
        from_start: Whether it begins with what the streams hold, or with what comes next.
    """

    def __init__(self, redis: str, *, from_start: bool) -> None:
        super().__init__(redis, group_id="none", start_from="earliest" if from_start else "latest")
        self._positions: dict[bytes, bytes] = {}
        self._names: dict[bytes, str] = {}
        self._reading: Wire | None = None
        self._is_asked = False

    def __repr__(self) -> str:
        return f"<RedisStreamObserver of {self._source.address}>"

    async def start(self, subscriptions: Sequence[Subscription] = ()) -> None:
        await anyio.lowlevel.checkpoint()
        for item in subscriptions:
            self._names[item.pattern.source.encode()] = item.pattern.source
        await self._close_wire()
        wire = self._wire("observer")
        await wire.open()
        self._reading, self._is_asked = wire, False
        new = [key for key in self._names if key not in self._positions]
        if not new:
            return
        wire.ask(*(packed("XREVRANGE", key, "+", "-", "COUNT", 1) for key in new))
        for key, reply in zip(new, await wire.take(_TIMEOUT), strict=True):
            self._understood(reply)
            self._positions[key] = reply[0][0] if reply and self._origin == b"$" else _START

    async def receive(self, limit: int) -> Sequence[Delivery]:
        await anyio.lowlevel.checkpoint()
        if not self._positions:
            raise ConfigurationError("the observer is not started; call start() with subscriptions first")
        found: list[Delivery] = []
        while not found:
            wire = self._reading
            if wire is None:
                raise BrokerUnreachableError(f"there is no connection to Redis at {self._source.address}")
            try:
                if not self._is_asked:  # what was asked when a call was cancelled is answered to the next one
                    block = ("BLOCK", int(_BLOCK * 1000))
                    streams = (*self._positions, *self._positions.values())
                    wire.ask(packed("XREAD", "COUNT", limit, *block, "STREAMS", *streams))
                    self._is_asked = True
                (reply,) = await wire.take(_BLOCK + _TIMEOUT)
                self._is_asked = False
            except BrokerError:
                await self._close_wire()
                raise
            for key, entries in self._understood(reply) or ():
                found += [delivery_of(self._names[key], id, fields, None) for id, fields in entries]
                self._positions[key] = entries[-1][0]
        return found

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[tuple[Settlement, DispytchError]]:
        await anyio.lowlevel.cancel_shielded_checkpoint()
        return []

    async def stop(self) -> None:
        self._positions.clear()
        await self._close_wire()

    def _understood(self, reply: Any) -> Any:
        if is_error(reply):
            raise refusal(reply, self._source.address, "read the stream")
        return reply

    async def _close_wire(self) -> None:
        wire, self._reading = self._reading, None
        if wire is not None:
            await wire.close()
        else:
            await anyio.lowlevel.checkpoint()
