"""What runs beside a block of code, and ends with it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

import anyio
from anyio.abc import TaskGroup

__all__ = ["Background"]


class Background(ABC):
    """Something that runs in the event loop while it is entered. What the block raises goes on as it is."""

    _group: TaskGroup

    @abstractmethod
    async def _begin(self, group: TaskGroup) -> None:
        """Starts what is to run, in tasks that raise nothing."""

    async def _end(self) -> None:  # noqa: B027 - few have something to do
        """What is to be done when it has ended."""

    async def __aenter__(self) -> Self:
        self._group = anyio.create_task_group()
        await self._group.__aenter__()
        try:
            await self._begin(self._group)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        # Cancelled or not: it is a moment, and what was raised inside is no concern of the group.
        self._group.cancel_scope.shield = True
        self._group.cancel_scope.cancel()
        await self._group.__aexit__(None, None, None)
        with anyio.CancelScope(shield=True):
            await self._end()
