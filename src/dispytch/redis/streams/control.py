"""The second connection of a stream consumer: acknowledgements, and what else may be said twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio

from dispytch.errors import BrokerUnreachableError
from dispytch.redis.streams.wires import Wire

__all__ = ["Control"]


class Control:
    """A connection for commands that may be repeated; it is made when it is needed, and made anew when it was lost.

    Several tasks may call at once.
    """

    def __init__(self, make_wire: Callable[[], Wire]) -> None:
        self._make_wire = make_wire
        self._wire: Wire | None = None
        self._lock = anyio.Lock(fast_acquire=True)

    async def open(self) -> None:
        """Connects, unless there is a connection.

        Raises:
            BrokerError: it did not work.
        """
        async with self._lock:
            await self._connected()

    async def call(self, *commands: bytes, timeout: float) -> list[Any]:
        """The replies to commands, errors among them.

        Raises:
            BrokerError: there is no connection, or it was lost, also the one that was made instead.
        """
        async with self._lock:
            while True:
                is_fresh = self._wire is None
                wire = await self._connected()
                try:
                    wire.ask(*commands)
                    return await wire.take(timeout)
                except BaseException as error:
                    await self._close()
                    if is_fresh or not isinstance(error, BrokerUnreachableError):
                        raise

    async def close(self) -> None:
        """Disconnects. Idempotent."""
        with anyio.CancelScope(shield=True):
            async with self._lock:
                await self._close()

    async def _connected(self) -> Wire:
        if self._wire is None:
            wire = self._make_wire()
            await wire.open()
            self._wire = wire
        return self._wire

    async def _close(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            await wire.close()
