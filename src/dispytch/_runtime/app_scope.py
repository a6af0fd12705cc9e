"""The application's dependencies: entered before consuming starts, exited after the drain, in the task that entered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any

import anyio

from dispytch._bridge import OwnerThread
from dispytch._core.plan import Kind, Step
from dispytch._runtime.invoke import Entered, unwind_async

__all__ = ["AppScope"]


class AppScope:
    """Enters the providers of ``scope="app"``; plain ones have one thread of their own.

    Args:
        steps: From `make_app_plan`: each provider with its step, dependencies first.
    """

    def __init__(self, steps: Sequence[tuple[Callable[..., Any], Step]]) -> None:
        self._steps = steps
        self._scope: anyio.CancelScope
        self._thread = OwnerThread("dispytch app scope")
        self._entered: list[Entered] = []

    async def __aenter__(self) -> Mapping[Callable[..., Any], Any]:
        values: dict[Callable[..., Any], Any] = {}
        by_slot: dict[int, Any] = {}
        self._scope = anyio.CancelScope()
        self._scope.__enter__()
        try:
            for func, step in self._steps:
                call = partial(step.call, **{name: by_slot[slot] for name, slot in step.args})
                by_slot[step.slot] = values[func] = await self._enter(step, call)
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        return values

    async def _enter(self, step: Step, call: Callable[[], Any]) -> Any:
        if step.kind is Kind.AWAIT:
            return await call()
        if step.kind is Kind.ENTER_ASYNC:
            manager = call()
            value = await manager.__aenter__()
            self._entered.append((step, manager))
            return value
        made = await self._thread.run(call)
        if step.kind is not Kind.ENTER:
            return made
        value = await self._thread.run(made.__enter__)
        self._entered.append(
            (Step(step.name, step.call, Kind.ENTER_ASYNC, step.slot, ()), _InThread(self._thread, made))
        )
        return value

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            failure = await unwind_async(self._entered, error, self._scope)
        finally:
            await self._thread.stop()
            self._scope.__exit__(None, None, None)
        if failure is not None and failure is not error:
            raise failure


class _InThread:
    """Exits a context manager in the thread that entered it."""

    def __init__(self, thread: OwnerThread, manager: Any) -> None:
        self._thread = thread
        self._manager = manager

    async def __aexit__(self, *details: Any) -> None:
        await self._thread.run(partial(self._manager.__exit__, *details))
