"""Between threads and event loops: what asyncio and trio do differently, in one place."""

from __future__ import annotations

import contextvars
import queue
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from types import coroutine
from typing import Any, Generic, TypeVar

import anyio

__all__ = [
    "ENDED",
    "Loop",
    "OwnerThread",
    "Suspended",
    "Waker",
    "begin",
    "begin_for_result",
    "finish",
    "in_event_loop",
    "running_backend",
    "was_cancelled",
]

T = TypeVar("T")

_MOMENT = 0.1
"""Seconds in which a cancellation of all tasks reaches the scopes of each."""


def running_backend() -> str:
    """``"asyncio"`` or ``"trio"``, whichever runs in this thread.

    Raises:
        RuntimeError: neither does.
    """
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        return "trio"
    asyncio = sys.modules.get("asyncio")  # which costs more to import than all of Dispytch
    if asyncio is None:
        raise RuntimeError("no running event loop")
    asyncio.get_running_loop()
    return "asyncio"


def in_event_loop() -> bool:
    """Whether an event loop runs in this thread."""
    try:
        running_backend()
    except RuntimeError:
        return False
    return True


class Loop:
    """The event loop that runs in the thread where this is made; other threads post callbacks to it."""

    __slots__ = ("_post", "_thread")

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._post: Callable[[Callable[[], object]], object]
        if running_backend() == "trio":
            self._post = sys.modules["trio"].lowlevel.current_trio_token().run_sync_soon
        else:
            self._post = sys.modules["asyncio"].get_running_loop().call_soon_threadsafe

    @property
    def is_here(self) -> bool:
        """Whether the caller is in the loop's own thread."""
        return threading.get_ident() == self._thread

    def post(self, callback: Callable[[], object]) -> bool:
        """Has the loop call ``callback`` soon, from any thread; False if the loop has ended."""
        try:
            self._post(callback)
        except RuntimeError:  # asyncio: the loop is closed; trio: RunFinishedError, a subclass
            return False
        return True


class Waker:
    """Wakes one waiting task, from any thread; wakes that come before it waits are one.

    Only one task may wait, and it must look again at what it waits for: a wake may be for what it has seen already.
    """

    __slots__ = ("_event", "_loop", "_woken")

    def __init__(self) -> None:
        self._loop = Loop()
        self._event = anyio.Event()
        self._woken = False

    def wake(self) -> None:
        if self._woken:
            return
        self._woken = True
        if self._loop.is_here:
            self._event.set()
        else:
            self._loop.post(self._fire)

    def _fire(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        """Returns at the next wake, or at once if one came since the last wait."""
        if not self._woken:
            await self._event.wait()
        self._event = anyio.Event()
        self._woken = False


class _Job(Generic[T]):
    """A call on its way to an owner thread, and its result on the way back."""

    def __init__(self, call: Callable[[], T]) -> None:
        self.call: Callable[[], T] = call
        self.context = contextvars.copy_context()
        self.done = anyio.Event()
        self.loop = Loop()
        self.result: T
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self.context.run(self.call)
        except BaseException as error:
            self.error = error
        self.loop.post(self.done.set)


class OwnerThread:
    """One thread that makes all calls to what must be used from one thread only."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    async def run(self, call: Callable[[], T]) -> T:
        """Calls in the thread and waits for the result; cancellation waits for it too."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        job = _Job(call)
        self._jobs.put(job)
        with anyio.CancelScope(shield=True):
            await job.done.wait()
        if job.error is not None:
            try:
                raise job.error
            finally:
                del job  # breaks the cycle of the error's traceback with this frame
        return job.result

    async def stop(self) -> None:
        """Ends the thread after the calls made so far. Idempotent."""
        if self._thread is not None:
            await self.run(lambda: None)  # from here on the thread has nothing left to wait for
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.run()


async def was_cancelled() -> bool:
    """Whether the cancellation that the running task has just caught comes from the scopes around it.

    On asyncio anybody can raise a CancelledError, or cancel the task itself; a task that ended with it would be missing
    without a word. A program that cancels all its tasks at the end cancels the scopes too, a moment later.
    """
    if running_backend() == "trio" or anyio.current_effective_deadline() == float("-inf"):
        return True
    task = sys.modules["asyncio"].current_task()
    if task is not None and task.cancelling():
        while task.uncancel():
            pass
        await anyio.sleep(_MOMENT)
    return False


Suspended = tuple[Coroutine[Any, Any, Any], Any]
"""A coroutine that waits, and what it waits for."""


ENDED: Any = object()
"""What ``next(coro.__await__(), ENDED)`` gives for a coroutine that has returned.

That costs a tenth of what it takes to catch a StopIteration, but the result is lost.
"""


def begin(call: Callable[[T], Awaitable[Any]], argument: T) -> Suspended | None:
    """Calls an async function, and steps its coroutine until it waits; ``None`` if it has returned without waiting."""
    coro: Any = call(argument)
    steps = coro.__await__() if hasattr(coro, "__await__") else coro  # as generators that are coroutines have none
    awaited = next(steps, ENDED)
    if awaited is ENDED:
        return None
    return steps, awaited  # the iterator that was stepped: without it, what it holds of others might be closed


def begin_for_result(call: Callable[[T], Awaitable[Any]], argument: T) -> tuple[Coroutine[Any, Any, Any] | None, Any]:
    """The same; ``(None, result)`` of a call that has returned without waiting."""
    try:
        coro: Any = call(argument)
    except StopIteration as error:  # from what makes the coroutine: it must not look like a return
        raise RuntimeError("a call raised StopIteration") from error
    if not hasattr(coro, "send"):  # another kind of awaitable
        coro = coro.__await__()
    try:
        return coro, coro.send(None)
    except StopIteration as returned:
        return None, returned.value


@coroutine
def finish(context: contextvars.Context, suspended: Suspended) -> Any:
    """Awaits the rest of a coroutine that was begun in ``context``, with every step of it run there."""
    coro, awaited = suspended
    send, throw = coro.send, coro.throw
    step: Callable[[Any], Any]
    while True:
        try:
            value = yield awaited
        except GeneratorExit:
            context.run(coro.close)
            raise
        except BaseException as error:
            step, value = throw, error
        else:
            step = send
        try:
            awaited = context.run(step, value)
        except StopIteration as stop:
            return stop.value
