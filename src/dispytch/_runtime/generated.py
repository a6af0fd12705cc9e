"""The code that calls a handler, written out for its plan: what a loop over the plan would do, without the loop."""

from __future__ import annotations

import linecache
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType, MethodType
from typing import Any, Literal

from pydantic import ValidationError

from dispytch._bridge import ENDED
from dispytch._core.context import EventHandlerContext
from dispytch._core.envelope import CURRENT
from dispytch._core.events import Event
from dispytch._core.params import ParamNeed
from dispytch._core.plan import Kind, Plan
from dispytch.errors import DecodeError

__all__ = ["generate", "read_param"]

_ANY_TEXT = {"type": "str"}
_CALL = """\
{async_}def call(ctx):
    opened = ctx._opened
{fill}
    return {await_}{handler}
"""
_BEGIN = """\
def begin(ctx, opened):
    set_current(opened)
{fill}
    steps = {handler}.__await__()
    awaited = next(steps, ended)
    return None if awaited is ended else (steps, awaited)
"""


def generate(plan: Plan, app: Mapping[Callable[..., Any], Any], form: Literal["call", "begin"]) -> Callable[..., Any]:
    """A function that gets a handler its arguments and calls it.

    Args:
        plan: One without anything to clean up, of a handler of single events that is async.
        app: The application's instances, by provider.
        form: What to make: ``call(ctx)``, which returns an awaitable; or ``begin(ctx, opened)``, which also steps the
            coroutine once, for plans that await nothing before the handler.
    """
    names: dict[str, Any] = {
        "Event": Event,
        "read_param": read_param,
        "set_current": CURRENT.set,
        "ended": ENDED,
        "handler": plan.func,
    }
    lines: list[str] = []
    for slot, body in plan.bodies:
        names[f"read_{slot}"] = body.body.read
        read = f"read_{slot}(opened)"
        lines.append(f"v{slot} = Event({read}, ctx)" if body.wrapped else f"v{slot} = {read}")
    for slot, param in plan.params:
        if param.adapter.core_schema == _ANY_TEXT:  # which every segment is
            lines.append(f"v{slot} = ctx.params[{param.name!r}]")
            continue
        names[f"param_{slot}"] = param
        lines.append(f"v{slot} = read_param(param_{slot}, ctx)")
    for slot, provider in plan.app:
        names[f"v{slot}"] = app[provider]
    for step in plan.steps:
        names[f"step_{step.slot}"] = step.call
        wait = "await " if step.kind is Kind.AWAIT else ""
        lines.append(f"v{step.slot} = {wait}{_written(f'step_{step.slot}', step.call, step.args)}")
    waits = any(step.kind is Kind.AWAIT for step in plan.steps)
    source = (_CALL if form == "call" else _BEGIN).format(
        async_="async " if plan.steps else "",
        await_="await " if plan.steps else "",
        fill="\n".join(f"    {line}" for line in lines),
        handler=_written("handler", plan.func, plan.args),
    )
    assert form == "call" or not waits  # noqa: S101 - see above
    file = f"<dispytch {form} of {plan.name}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)  # for tracebacks
    exec(compile(source, file, "exec"), names)  # noqa: S102 - of nothing but names of parameters, which are identifiers
    made: Callable[..., Any] = names[form]
    return made


def _written(name: str, func: Callable[..., Any], args: Sequence[tuple[str, int]]) -> str:
    """A call; by place where that does the same, since it costs less."""
    by_place = _first_places(func, len(args)) == tuple(name for name, _ in args)
    return f"{name}({', '.join(f'v{slot}' if by_place else f'{one}=v{slot}' for one, slot in args)})"


def _first_places(func: Callable[..., Any], count: int) -> tuple[str, ...]:
    """The names of what a function takes by place.

    Of the code itself: a decorator's signature may be that of what it wraps, and itself take anything by name only.
    """
    function, skipped = (func.__func__, 1) if isinstance(func, MethodType) else (func, 0)
    if not isinstance(function, FunctionType):
        return ()
    code = function.__code__
    return code.co_varnames[skipped : min(skipped + count, code.co_argcount)]


def read_param(need: ParamNeed, ctx: EventHandlerContext) -> Any:
    """A segment of the event's route, validated.

    Raises:
        DecodeError: it does not fit.
    """
    try:
        return need.adapter.validate_strings(ctx.params[need.name])
    except ValidationError as error:
        kinds = ", ".join(sorted({detail["type"] for detail in error.errors()}))
    raise DecodeError(
        f"the segment {need.name!r} of the route does not fit parameter {need.parameter!r} of {ctx.handler} ({kinds})"
    )
