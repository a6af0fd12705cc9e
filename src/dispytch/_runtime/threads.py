"""The worker threads in which plain handlers run."""

from __future__ import annotations

import queue
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import Context, copy_context
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from dispytch._bridge import Loop

__all__ = ["Threads"]


class Threads:
    """Worker threads for one run of a dispatcher, made as they are needed.

    Each is one long call of anyio's `to_thread.run_sync`, so that `anyio.from_thread` works in it, and takes calls from
    a queue. That costs a fraction of a call of anyio's own for each, and what is done meanwhile wakes the loop once.

    Args:
        most: How many there may be.

    Attributes:
        limiter: Bounds other calls in threads that are made for handlers.
    """

    def __init__(self, most: int) -> None:
        self.limiter = anyio.CapacityLimiter(most)
        self._most = most
        self._room = anyio.CapacityLimiter(most)
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._done: deque[_Call] = deque()
        self._is_told = False
        self._started = 0
        self._under_way = 0
        """Calls that wait or run, those among them that nobody waits for any more."""
        self._loop: Loop
        self._context: Context
        self._group: TaskGroup

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """The time in which `run` may be called; threads that still run something after it are left to themselves."""
        self._loop, self._context = Loop(), copy_context()
        async with anyio.create_task_group() as group:
            self._group = group
            try:
                yield
            finally:
                for _ in range(self._started):
                    self._calls.put(None)
                if self._under_way:
                    group.cancel_scope.cancel()

    async def run(self, func: Callable[..., Any], *args: Any) -> Any:
        """Calls ``func`` in a thread, in a copy of the context.

        If it is cancelled before the call has begun, it will not begin; a call that runs goes on, and is forgotten.
        """
        call = _Call(func, args)
        self._under_way += 1
        if self._started < min(self._under_way, self._most):
            self._started += 1
            # Not in the context of the call, which holds its event, and this is there for long.
            self._context.run(partial(self._group.start_soon, self._start, name="dispytch thread"))
        self._calls.put(call)
        try:
            await call.ended.wait()
        except BaseException:
            call.is_forgotten = True
            raise
        if call.error is not None:
            try:
                raise call.error
            finally:
                del call  # breaks the cycle of the error's traceback with this frame
        return call.result

    async def _start(self) -> None:
        try:
            await anyio.to_thread.run_sync(self._serve, abandon_on_cancel=True, limiter=self._room)
        except RuntimeError as error:  # the system has no thread left; nothing in the thread lets one escape
            self._started -= 1
            if not self._started:  # the others would make the calls; so without any they fail, and are tried again
                self._fail(error)

    def _fail(self, error: RuntimeError) -> None:
        while not self._calls.empty():
            if (call := self._calls.get()) is not None:
                call.error = error
                self._done.append(call)
        self._tell()

    def _serve(self) -> None:
        take, done = self._calls.get, self._done
        while (call := take()) is not None:
            call.make()
            done.append(call)
            call = None
            if not self._is_told:
                self._is_told = True
                self._loop.post(self._tell)

    def _tell(self) -> None:
        self._is_told = False
        done = self._done
        while done:
            self._under_way -= 1
            done.popleft().ended.set()


class _Call:
    """A call on its way to a thread, and its result on the way back."""

    __slots__ = ("_args", "_context", "_func", "ended", "error", "is_forgotten", "result")

    def __init__(self, func: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._func = func
        self._args = args
        self._context = copy_context()
        self.ended = anyio.Event()
        self.result: Any = None
        self.error: BaseException | None = None
        self.is_forgotten = False

    def make(self) -> None:
        if self.is_forgotten:
            return
        if (sniffio := sys.modules.get("sniffio")) is not None:  # as anyio has it: no loop runs in the thread
            self._context.run(sniffio.current_async_library_cvar.set, None)
        try:
            self.result = self._context.run(self._func, *self._args)
        except BaseException as error:
            self.error = error
