"""From a handler's plan to one function that calls it: dependencies, the handler, clean-up. Made once per handler."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import copy_context
from dataclasses import replace
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread

from dispytch._bridge import Suspended, begin, begin_for_result, finish
from dispytch._core.batch_context import BatchContext
from dispytch._core.context import EventHandlerContext, Middleware
from dispytch._core.envelope import CURRENT, Opened
from dispytch._core.events import Event
from dispytch._core.params import BodyNeed, ParamNeed
from dispytch._core.plan import Kind, Plan, Step
from dispytch._runtime.generated import generate, read_param
from dispytch._runtime.threads import Threads

__all__ = [
    "CLEANUP_TIMEOUT",
    "Begin",
    "Call",
    "Entered",
    "concluded",
    "make_begin",
    "make_call",
    "unwind_async",
    "wrap",
]

logger = logging.getLogger("dispytch")

Call = Callable[[EventHandlerContext], Awaitable[Any]]
Begin = Callable[[EventHandlerContext, Opened | None], Suspended | None]
Values = list[Any]
Entered = tuple[Step, Any]

CLEANUP_TIMEOUT = 30.0
"""Seconds that the asynchronous clean-up of one handler call may take; cancellation cannot cut it shorter."""


def make_call(plan: Plan, app: Mapping[Callable[..., Any], Any], threads: Threads) -> Call:
    """The function that makes one try of a handler.

    Args:
        app: The application's instances, by provider.
        threads: Where plain functions run.
    """
    if plan.is_async and not plan.is_batch and not any(step.cleans_up for step in plan.steps):
        return generate(plan, app, "call")
    fill = _make_fill(plan, app)
    if not plan.is_async:
        return _make_thread_call(plan, fill, threads)
    func, args, steps = plan.func, plan.args, plan.steps
    if any(step.kind is Kind.ENTER_ASYNC for step in steps):

        async def call_with_cleanup(ctx: EventHandlerContext) -> Any:
            values = fill(ctx)

            async def body(entered: list[Entered]) -> Any:
                await _take_all(steps, values, entered)
                return await func(**{name: values[slot] for name, slot in args})

            return await _with_cleanup(body)

        return call_with_cleanup

    async def call_with_plain_cleanup(ctx: EventHandlerContext) -> Any:
        values = fill(ctx)
        entered: list[Entered] = []
        try:
            await _take_all(steps, values, entered)
            result = await func(**{name: values[slot] for name, slot in args})
        except BaseException as error:
            failure = unwind(entered, error)
            if failure is not None and failure is not error:
                await _let_cancellation_pass(error, failure)
                raise failure  # noqa: B904 - it has a cause of its own, or none
            raise
        if (late := unwind(entered, None)) is not None:
            raise late
        return result

    return call_with_plain_cleanup


def make_begin(call: Call, plan: Plan, app: Mapping[Callable[..., Any], Any], *, has_middleware: bool) -> Begin:
    """The function that begins one try, in the context that is its own, and steps it until it waits.

    What is emitted meanwhile comes from the event that it is given. The function returns ``None`` if the try has
    returned without waiting.
    """
    is_simple = inspect.iscoroutinefunction(plan.func) and all(step.kind is Kind.VALUE for step in plan.steps)
    if is_simple and not has_middleware and not plan.is_batch:
        return generate(plan, app, "begin")

    def begin_call(ctx: EventHandlerContext, opened: Opened | None) -> Suspended | None:
        if opened is not None:
            CURRENT.set(opened)
        return begin(call, ctx)

    return begin_call


def _make_fill(plan: Plan, app: Mapping[Callable[..., Any], Any]) -> Callable[[EventHandlerContext], Values]:
    template: Values = [None] * plan.slots
    for slot, provider in plan.app:
        template[slot] = app[provider]
    bodies: Sequence[tuple[int, BodyNeed]] = plan.bodies
    params: Sequence[tuple[int, ParamNeed]] = plan.params

    if plan.is_batch:

        def fill_many(ctx: EventHandlerContext) -> Values:
            assert isinstance(ctx, BatchContext)  # noqa: S101 - what a handler of batches is called with
            values = template.copy()
            for slot, need in bodies:
                values[slot] = ctx.read(need.body, need.wrapped)
            return values

        return fill_many

    def fill(ctx: EventHandlerContext) -> Values:
        values = template.copy()
        for slot, need in bodies:
            body = need.body.read(ctx._opened)
            values[slot] = Event(body, ctx) if need.wrapped else body  # type: ignore[arg-type]  # ctx makes the meta
        for slot, param in params:
            values[slot] = read_param(param, ctx)
        return values

    return fill


async def _take(step: Step, values: Values, entered: list[Entered]) -> None:
    made = step.call(**{name: values[slot] for name, slot in step.args})
    if step.kind is Kind.AWAIT:
        made = await made
    elif step.kind is Kind.ENTER:
        manager, made = made, made.__enter__()
        entered.append((step, manager))
    elif step.kind is Kind.ENTER_ASYNC:
        manager, made = made, await made.__aenter__()
        entered.append((step, manager))
    values[step.slot] = made


async def _take_all(steps: Sequence[Step], values: Values, entered: list[Entered]) -> None:
    for step in steps:
        await _take(step, values, entered)


def _take_plain(steps: Sequence[Step], values: Values, entered: list[Entered]) -> None:
    for step in steps:
        made = step.call(**{name: values[slot] for name, slot in step.args})
        if step.kind is Kind.ENTER:
            manager, made = made, made.__enter__()
            entered.append((step, manager))
        values[step.slot] = made


def unwind(entered: list[Entered], error: BaseException | None) -> BaseException | None:
    """Exits what was entered, the last first; each sees ``error``, or what an earlier exit made of it.

    An exit cannot make a failure a success: it cleans up, and the event must not be acknowledged for it.

    Returns:
        What to raise: ``error``, or what an exit raised in its place; ``None`` for neither.
    """
    while entered:
        _, manager = entered.pop()
        try:
            manager.__exit__(*_details(error))
        except BaseException as raised:
            error = raised
    return error


async def unwind_async(
    entered: list[Entered], error: BaseException | None, scope: anyio.CancelScope
) -> BaseException | None:
    """The same where some exits are asynchronous: they cannot be cancelled, but have CLEANUP_TIMEOUT seconds in all.

    Args:
        scope: A scope that was opened before anything was entered, since scopes must nest and what was entered may
            hold some; from now on it is a shield.
    """
    if not entered:
        return error
    scope.shield = True
    scope.deadline = anyio.current_time() + CLEANUP_TIMEOUT
    while entered:
        step, manager = entered.pop()
        try:
            if step.kind is Kind.ENTER_ASYNC:
                await manager.__aexit__(*_details(error))
            else:
                manager.__exit__(*_details(error))
        except anyio.get_cancelled_exc_class() as raised:
            if not scope.cancel_called:
                error = raised
                continue
            text = f"the clean-up of dependency {step.name} took over {CLEANUP_TIMEOUT:g} s and was cut off"
            logger.error("In %s", text)
            error = error or TimeoutError(text)
        except BaseException as raised:
            error = raised
    return error


def _details(error: BaseException | None) -> tuple[Any, Any, Any]:
    return (None, None, None) if error is None else (type(error), error, error.__traceback__)


async def _with_cleanup(body: Callable[[list[Entered]], Awaitable[Any]]) -> Any:
    """Awaits ``body`` and then exits what it has entered, in this task, whatever happens."""
    entered: list[Entered] = []
    result: Any = None
    error: BaseException | None = None
    with anyio.CancelScope() as scope:
        try:
            result = await body(entered)
        except BaseException as raised:
            error = raised
        failure = await unwind_async(entered, error, scope)
    try:
        if failure is not error:
            await _let_cancellation_pass(error, failure)
        if failure is not None:
            raise failure
        return result
    finally:
        del error, failure  # which hold this frame


async def _let_cancellation_pass(error: BaseException | None, failure: BaseException | None) -> None:
    """Goes on with a cancellation that an error of the clean-up has taken the place of."""
    if isinstance(error, anyio.get_cancelled_exc_class()) and anyio.current_effective_deadline() == -math.inf:
        logger.error("The clean-up after a cancelled handler failed.", exc_info=failure)
        await anyio.lowlevel.checkpoint_if_cancelled()


def _make_thread_call(plan: Plan, fill: Callable[[EventHandlerContext], Values], threads: Threads) -> Call:
    before, inside = _split(plan.steps)
    func, args = plan.func, plan.args
    needs_no_unwinding = not any(step.cleans_up for step in inside)

    def run(values: Values) -> Any:
        result = func(**{name: values[slot] for name, slot in args})
        if inspect.iscoroutine(result):
            result.close()
            raise TypeError(f"{plan.name} is a plain function that returns a coroutine; declare it with async def")
        return result

    def in_thread(values: Values) -> Any:
        if needs_no_unwinding:
            _take_plain(inside, values, [])
            return run(values)
        entered: list[Entered] = []
        try:
            _take_plain(inside, values, entered)
            result = run(values)
        except BaseException as error:
            failure = unwind(entered, error)
            if failure is not None and failure is not error:
                raise failure  # noqa: B904 - it has a cause of its own, or none
            raise
        if (late := unwind(entered, None)) is not None:
            raise late
        return result

    if not before:

        async def call(ctx: EventHandlerContext) -> Any:
            values = fill(ctx)
            return await threads.run(in_thread, values)

        return call

    async def call_after(ctx: EventHandlerContext) -> Any:
        values = fill(ctx)

        async def body(entered: list[Entered]) -> Any:
            for step in before:
                if step.is_async:
                    await _take(step, values, entered)
                    continue
                plain: list[Entered] = []
                await anyio.to_thread.run_sync(_take_plain, [step], values, plain, limiter=threads.limiter)
                entered += [
                    (replace(step, kind=Kind.ENTER_ASYNC), _ExitInThread(manager, threads.limiter))
                    for _, manager in plain
                ]
            return await threads.run(in_thread, values)

        return await _with_cleanup(body)

    return call_after


class _ExitInThread:
    """A context manager that was entered in a worker thread, and is exited in one."""

    def __init__(self, manager: Any, limiter: anyio.CapacityLimiter) -> None:
        self._manager = manager
        self._limiter = limiter

    async def __aexit__(self, *details: Any) -> None:
        await anyio.to_thread.run_sync(self._manager.__exit__, *details, limiter=self._limiter)


def _split(steps: Sequence[Step]) -> tuple[list[Step], list[Step]]:
    """What must be done before a thread is entered (asynchronous providers and what they need), and what in it."""
    needed: set[int] = set()
    for step in reversed(steps):
        if step.is_async or step.slot in needed:
            needed.update(slot for _, slot in step.args)
            needed.add(step.slot)
    return [step for step in steps if step.slot in needed], [step for step in steps if step.slot not in needed]


def wrap(call: Call, middlewares: Sequence[Middleware], is_manual: bool) -> Call:
    """The handler's call with its middleware around it, the first one outermost.

    What the handler says of an event is for middleware what it has done: see `conclude`.
    """
    if not middlewares:
        return call

    async def counted(ctx: EventHandlerContext) -> Any:
        result: Any = None
        error: BaseException | None = None
        if ctx.has_word:  # an earlier call was cut off after it had settled the event, and its word stands
            if (said := ctx.conclude(None, is_manual)) is not None:
                raise said
            return None
        try:
            # A middleware may call it several times, and each try has a context of its own.
            context = copy_context()
            coro, result = context.run(begin_for_result, call, ctx)
            if coro is not None:
                result = await finish(context, (coro, result))
            if not is_manual and not ctx.has_word:
                return result
        except Exception as raised:
            error = raised
        except BaseException:  # a middleware may have cancelled it
            ctx.failed()
            raise
        failure = concluded(ctx, error, is_manual)
        if failure is None:
            return result
        ctx.failed()
        try:
            raise failure
        finally:
            del error, failure  # which hold this frame

    wrapped: Call = counted
    for middleware in reversed(middlewares):
        wrapped = _around(middleware, wrapped)
    return wrapped


def concluded(ctx: EventHandlerContext, error: BaseException | None, is_manual: bool) -> BaseException | None:
    """How a try has failed, by what the handler has raised and what it has said; ``None`` if it has not.

    Args:
        is_manual: To return without a word is a failure.
    """
    failure = ctx.conclude(error, is_manual)
    if failure is None and error is not None:
        logger.error(
            "Handler %s has failed after it had settled what it was given.",
            ctx.handler,
            exc_info=error,
            extra=ctx.log_fields,
        )
    return failure


def _around(middleware: Middleware, inner: Call) -> Call:
    dispatch = middleware.dispatch

    def call(ctx: EventHandlerContext) -> Awaitable[Any]:
        return dispatch(ctx, inner)

    return call
