"""From a signature to a plan: which providers run, in which order, and where their values go. Compiled once."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from dispytch._core.params import BodyNeed, Need, ParamNeed, Provider, callable_name, needs_of, unwrapped
from dispytch.errors import RegistrationError

__all__ = ["Kind", "Plan", "Step", "is_async_callable", "make_plan"]


class Kind(Enum):
    """How a provider is called, and what is to be done with what it returns."""

    VALUE = auto()
    """A plain call; its result is the value."""
    AWAIT = auto()
    """The result of the call is awaited."""
    ENTER = auto()
    """The call makes a context manager: entered for the value, exited as clean-up."""
    ENTER_ASYNC = auto()
    """The same with an asynchronous context manager."""


@dataclass(frozen=True, slots=True)
class Step:
    """One call of a provider.

    Attributes:
        name: The provider, for messages.
        call: What to call; for generators already the context manager's maker.
        kind: What to do with the result.
        slot: Where the value goes.
        args: The slots that its arguments are taken from, by parameter.
    """

    name: str
    call: Callable[..., Any]
    kind: Kind
    slot: int
    args: tuple[tuple[str, int], ...]

    @property
    def is_async(self) -> bool:
        return self.kind in (Kind.AWAIT, Kind.ENTER_ASYNC)

    @property
    def cleans_up(self) -> bool:
        return self.kind in (Kind.ENTER, Kind.ENTER_ASYNC)


@dataclass(slots=True)
class Plan:
    """How a handler is called.

    Slots are filled in the order: what the event gives (``bodies``, ``params``), the application's instances
    (``app``), the steps. ``args`` are the handler's own arguments.
    """

    func: Callable[..., Any]
    name: str
    is_async: bool
    is_batch: bool = False
    args: tuple[tuple[str, int], ...] = ()
    bodies: list[tuple[int, BodyNeed]] = field(default_factory=list)
    params: list[tuple[int, ParamNeed]] = field(default_factory=list)
    app: list[tuple[int, Callable[..., Any]]] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    slots: int = 0


def is_async_callable(func: Callable[..., Any]) -> bool:
    """Whether calling ``func`` makes a coroutine: async functions, methods, partials and objects with such a call."""
    func = unwrapped(func)
    return inspect.iscoroutinefunction(func) or (
        not inspect.isclass(func) and not inspect.isroutine(func) and inspect.iscoroutinefunction(type(func).__call__)
    )


def _underlying(func: Callable[..., Any]) -> Callable[..., Any]:
    func = unwrapped(func)
    if not inspect.isclass(func) and not inspect.isroutine(func):
        return type(func).__call__
    return func


# The functions that contextlib's decorators return share these code objects, which tells them from plain functions.
def _code_of(func: Any) -> Any:
    return getattr(func, "__code__", None)


@contextlib.contextmanager
def _manager() -> Iterator[None]:
    yield


@contextlib.asynccontextmanager
async def _async_manager() -> AsyncIterator[None]:
    yield


_MANAGER_CODE = _code_of(_manager)
_ASYNC_MANAGER_CODE = _code_of(_async_manager)


def _classify(func: Callable[..., Any]) -> tuple[Callable[..., Any], Kind]:
    plain = _underlying(func)
    if inspect.isclass(plain):
        if hasattr(plain, "__aenter__") and hasattr(plain, "__aexit__"):
            return func, Kind.ENTER_ASYNC
        if hasattr(plain, "__enter__") and hasattr(plain, "__exit__"):
            return func, Kind.ENTER
        return func, Kind.VALUE
    code = _code_of(plain)
    if code is _MANAGER_CODE:
        return func, Kind.ENTER
    if code is _ASYNC_MANAGER_CODE:
        return func, Kind.ENTER_ASYNC
    if inspect.isasyncgenfunction(plain):
        return contextlib.asynccontextmanager(func), Kind.ENTER_ASYNC
    if inspect.isgeneratorfunction(plain):
        return contextlib.contextmanager(func), Kind.ENTER
    if inspect.iscoroutinefunction(plain):
        return func, Kind.AWAIT
    return func, Kind.VALUE


class _Planner:
    def __init__(
        self, plan: Plan, overrides: Mapping[Callable[..., Any], Callable[..., Any]], frame: Mapping[str, Any]
    ):
        self.plan: Plan = plan
        self.overrides: Mapping[Callable[..., Any], Callable[..., Any]] = overrides
        self.frame: Mapping[str, Any] = frame
        self.by_app: dict[Callable[..., Any], int] = {}
        self.by_provider: dict[Callable[..., Any], int] = {}
        self.path: list[Callable[..., Any]] = []

    def slot(self) -> int:
        self.plan.slots += 1
        return self.plan.slots - 1

    def fill(self, needs: Mapping[str, Need], owner: str) -> tuple[tuple[str, int], ...]:
        return tuple((name, self.place(need, f"{owner}: parameter {name!r}")) for name, need in needs.items())

    def place(self, need: Need, where: str) -> int:
        if isinstance(need, BodyNeed):
            _check_many(need, self.plan.is_batch, where)
            # Compared one by one, since some annotations cannot be hashed.
            for number, known in self.plan.bodies:
                if known.wrapped == need.wrapped and known.body.annotation == need.body.annotation:
                    return number
            number = self.slot()
            self.plan.bodies.append((number, need))
            return number
        if isinstance(need, ParamNeed):
            if self.plan.is_batch:
                raise RegistrationError(
                    f"{where} wants a segment of one event's route, but the handler gets batches, whose events may "
                    "come by different ones; read event.meta.params of each"
                )
            number = self.slot()
            self.plan.params.append((number, need))
            return number
        return self.provide(need, where)

    def provide(self, provider: Provider, where: str) -> int:
        func = self.overrides.get(provider.func, provider.func)
        if func in self.path:
            circle = " -> ".join(callable_name(step) for step in [*self.path[self.path.index(func) :], func])
            raise RegistrationError(f"{where}: the dependencies go in a circle: {circle}; break it at one of them")
        if provider.scope == "app":
            if func not in self.by_app:
                check_app_provider(func, self.overrides, self.frame, where)
                self.by_app[func] = self.slot()
                self.plan.app.append((self.by_app[func], func))
            return self.by_app[func]
        if provider.use_cache and func in self.by_provider:
            return self.by_provider[func]
        name = callable_name(func)
        self.path.append(func)
        owner = f"dependency {name} (of {where})"
        args = self.fill(needs_of(func, owner, self.frame), owner)
        self.path.pop()
        call, kind = _classify(func)
        number = self.slot()
        self.plan.steps.append(Step(name, call, kind, number, args))
        if provider.use_cache:
            self.by_provider[func] = number
        return number


def make_plan(
    func: Callable[..., Any],
    name: str,
    frame: Mapping[str, Any],
    overrides: Mapping[Callable[..., Any], Callable[..., Any]] | None = None,
    is_batch: bool = False,
) -> Plan:
    """The plan of a handler.

    Args:
        name: The handler's qualified name, for messages.
        frame: Local names of the place where it was decorated, for string annotations.
        overrides: Providers to call instead of others.
        is_batch: It takes lists of events.

    Raises:
        RegistrationError: a parameter cannot be filled, or dependencies go in a circle.
    """
    plan = Plan(func, name, is_async_callable(func), is_batch)
    if inspect.isgeneratorfunction(_underlying(func)) or inspect.isasyncgenfunction(_underlying(func)):
        raise RegistrationError(f"handler {name} is a generator; a handler returns, only dependencies may yield")
    owner = f"handler {name}"
    plan.args = _Planner(plan, overrides or {}, frame).fill(needs_of(func, owner, frame), owner)
    if is_batch and not plan.bodies:
        raise RegistrationError(f"{owner} has batch= and takes no events; give it a parameter such as list[Event[...]]")
    return plan


def _check_many(need: BodyNeed, is_batch: bool, where: str) -> None:
    if need.many and not is_batch:
        raise RegistrationError(
            f"{where} takes a list of events, which only handlers of batches get; give the handler batch=, for "
            "instance batch=100, or annotate the parameter with Event[...]"
        )
    if is_batch and not need.many:
        kind = "Event[...]" if need.wrapped else need.body.name
        raise RegistrationError(
            f"{where} takes one event, but the handler has batch= and gets many; annotate it with list[{kind}]"
        )


def make_app_plan(
    providers: list[Callable[..., Any]],
    overrides: Mapping[Callable[..., Any], Callable[..., Any]],
    frame: Mapping[str, Any],
) -> list[tuple[Callable[..., Any], Step]]:
    """The steps that make the application's instances, dependencies first; each provider comes once."""
    plan = Plan(_nothing, "the application", True)
    planner = _Planner(plan, overrides, frame)
    order: list[tuple[Callable[..., Any], Step]] = []

    def add(func: Callable[..., Any]) -> int:
        if func in planner.by_provider:
            return planner.by_provider[func]
        name = callable_name(func)
        args = tuple(
            (parameter, add(overrides.get(need.func, need.func)))
            for parameter, need in needs_of(func, f"dependency {name}", frame).items()
            if isinstance(need, Provider)
        )
        call, kind = _classify(func)
        planner.by_provider[func] = planner.slot()
        order.append((func, Step(name, call, kind, planner.by_provider[func], args)))
        return planner.by_provider[func]

    for func in providers:
        add(func)
    return order


def check_app_provider(
    func: Callable[..., Any],
    overrides: Mapping[Callable[..., Any], Callable[..., Any]],
    frame: Mapping[str, Any],
    where: str,
    path: tuple[Callable[..., Any], ...] = (),
) -> None:
    """Raises RegistrationError if an application's provider, or one that it needs, depends on an event."""
    name = callable_name(func)
    if func in path:
        circle = " -> ".join(callable_name(step) for step in [*path[path.index(func) :], func])
        raise RegistrationError(f"{where}: the dependencies go in a circle: {circle}; break it at one of them")
    for parameter, need in needs_of(func, f"dependency {name} (of {where})", frame).items():
        if isinstance(need, Provider):
            check_app_provider(overrides.get(need.func, need.func), overrides, frame, where, (*path, func))
        else:
            raise RegistrationError(
                f"{where}: dependency {name} needs an event for its parameter {parameter!r}, but it has scope='app', "
                "which is entered before any event comes; use scope='event'"
            )


def _nothing() -> None: ...
