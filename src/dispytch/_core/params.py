"""Signatures: the markers that users write, and what each parameter of a handler or a provider is to be filled with."""

from __future__ import annotations

import functools
import inspect
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import Field, TypeAdapter

from dispytch._core.bodies import BodyType
from dispytch._core.events import EventBase, event_argument
from dispytch.errors import RegistrationError

__all__ = [
    "BodyNeed",
    "Dependency",
    "Need",
    "ParamNeed",
    "Provider",
    "Scope",
    "SubscriptionParam",
    "callable_name",
    "caller_locals",
    "needs_of",
    "signature_for_wrapper",
    "unwrapped",
]

Scope = Literal["event", "app"]


@dataclass(frozen=True, slots=True)
class Provider:
    """The marker that `Dependency` makes."""

    func: Callable[..., Any]
    use_cache: bool
    scope: Scope


@dataclass(frozen=True, slots=True)
class _Segment:
    """The marker that `SubscriptionParam` makes."""

    alias: str | None
    field: Any


def Dependency(func: Callable[..., Any], *, use_cache: bool = True, scope: Scope = "event") -> Any:
    """Declares a parameter that a provider fills: ``Annotated[Service, Dependency(get_service)]``, or as its default.

    Args:
        func: A function, async function, generator or async generator function (what follows its ``yield`` is clean-up
            and sees the handler's exception), a context manager class or function, or a class. It may declare
            dependencies, ``Event[...]`` and ``SubscriptionParam()`` itself.
        use_cache: Whether all who ask for the provider during one try of a handler share one instance.
        scope: ``"event"`` makes an instance for each try of a handler, ``"app"`` one for the life of the dispatcher.

    Raises:
        RegistrationError: ``func`` cannot be called or hashed, or the scope is neither of the two.
    """
    if not callable(func):
        raise RegistrationError(
            f"Dependency() needs something callable, not {type(func).__name__}; pass the provider without calling it"
        )
    try:
        hash(func)
    except TypeError:
        raise RegistrationError(
            f"Dependency() knows providers apart by their hash, and {type(func).__name__} objects have none; pass a "
            "function, or give the class a __hash__"
        ) from None
    if scope not in ("event", "app"):
        raise RegistrationError(f"Dependency(scope={scope!r}): the scope is 'event' or 'app'")
    return Provider(func, use_cache, scope)


def SubscriptionParam(*, alias: str | None = None, **field: Any) -> Any:
    """Declares a parameter that a segment of the route fills: ``order_id: Annotated[int, SubscriptionParam()]``.

    Args:
        alias: The name in the subscription's pattern, where it differs from the parameter's.
        field: Arguments of pydantic's ``Field``, such as ``gt=0`` or ``pattern=...``; the value is validated.
    """
    return _Segment(alias, Field(**field) if field else None)


@dataclass(frozen=True, slots=True)
class BodyNeed:
    """A parameter that takes the event: wrapped in ``Event``, or its body alone; or a list of them, for a batch."""

    body: BodyType
    wrapped: bool
    many: bool = False


@dataclass(frozen=True, slots=True)
class ParamNeed:
    """A parameter that takes a captured segment."""

    name: str
    adapter: TypeAdapter[Any]
    parameter: str


Need = BodyNeed | ParamNeed | Provider


def unwrapped(func: Callable[..., Any]) -> Callable[..., Any]:
    """What partials and static methods call in the end."""
    while True:
        if isinstance(func, functools.partial):
            func = func.func
        elif isinstance(func, staticmethod):
            func = func.__func__
        else:
            return func


def callable_name(func: Callable[..., Any]) -> str:
    """The qualified name of any callable, for messages."""
    func = unwrapped(func)
    name = getattr(func, "__qualname__", None)
    if name is None:
        func = type(func)
        name = func.__qualname__
    return f"{getattr(func, '__module__', '?')}.{name}"


def caller_locals(depth: int) -> Mapping[str, Any]:
    """The local names of the frame ``depth`` calls above the caller's, where a decorator is applied."""
    frame = sys._getframe(depth + 1)
    # At the top of a module the locals are the globals, which the function knows itself.
    return {} if frame.f_locals is frame.f_globals else dict(frame.f_locals)


def needs_of(func: Callable[..., Any], owner: str, frame: Mapping[str, Any]) -> dict[str, Need]:
    """What each parameter of a callable is to be filled with, those with a plain default left out.

    Args:
        owner: Who declares it, for messages.
        frame: Local names that string annotations may refer to.

    Raises:
        RegistrationError: a parameter cannot be filled, or its annotation cannot be read.
    """
    try:
        signature = inspect.signature(func)
    except (TypeError, ValueError):
        # Some classes written in C have none; such a provider is called without arguments.
        return {}
    names = _names(func, frame)
    bound = func.keywords if isinstance(func, functools.partial) else {}
    found: dict[str, Need] = {}
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or parameter.name in bound:
            continue
        where = f"{owner}: parameter {parameter.name!r}"
        need = _need(parameter, names, where)
        if need is None:
            continue
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise RegistrationError(f"{where} is positional-only and cannot be filled by name; remove the '/' after it")
        found[parameter.name] = need
    return found


def signature_for_wrapper(func: Callable[..., Any], frame: Mapping[str, Any]) -> inspect.Signature:
    """The signature for a function that takes the place of a handler and calls it: with no string left in it.

    Args:
        frame: See `needs_of`.
    """
    names = _names(func, frame)
    bound = func.keywords if isinstance(func, functools.partial) else {}
    found = []
    for parameter in inspect.signature(func).parameters.values():
        if parameter.name in bound:
            continue
        if isinstance(parameter.annotation, str):
            with suppress(Exception):  # registration has accepted it, since there is a default
                parameter = parameter.replace(annotation=names.evaluate(parameter.annotation))
        found.append(parameter)
    return inspect.Signature(found)


def _need(parameter: inspect.Parameter, names: _Names, where: str) -> Need | None:
    default = parameter.default
    if isinstance(default, Provider):
        return default
    if default is Dependency or default is SubscriptionParam:
        raise RegistrationError(f"{where}: {_CALL[default]}")
    annotation = parameter.annotation
    if annotation is parameter.empty:
        if isinstance(default, _Segment):
            return _segment(parameter.name, Any, default, where)
        if default is not parameter.empty:
            return None
        raise RegistrationError(f"{where} has no annotation; {_HOW}")
    if isinstance(annotation, str):
        try:
            annotation = names.evaluate(annotation)
        except Exception as error:
            if default is not parameter.empty and not isinstance(default, _Segment):
                return None
            raise RegistrationError(
                f"{where}: its annotation {annotation!r} cannot be evaluated ({type(error).__name__}: {error}); import "
                "the names that it uses at run time, not under TYPE_CHECKING alone"
            ) from error
    if isinstance(default, _Segment):
        return _segment(parameter.name, annotation, default, where)
    if get_origin(annotation) is Annotated:
        base, *metadata = get_args(annotation)
        markers = [item for item in metadata if isinstance(item, Provider | _Segment)]
        if len(markers) > 1:
            raise RegistrationError(f"{where} has {len(markers)} markers in its annotation; keep one")
        if markers:
            marker = markers[0]
            if isinstance(marker, Provider):
                return marker
            rest = tuple(item for item in metadata if item is not marker)
            return _segment(parameter.name, Annotated[(base, *rest)] if rest else base, marker, where)
        for item in metadata:
            if item is Dependency or item is SubscriptionParam:
                raise RegistrationError(f"{where}: {_CALL[item]}")
        annotation = base  # others' metadata is no concern of ours
    if (need := _body_need(annotation, where)) is not None:
        return need
    if get_origin(annotation) in (list, Sequence) and (need := _body_need(get_args(annotation)[0], where)) is not None:
        return BodyNeed(need.body, need.wrapped, many=True)
    if default is not parameter.empty:
        return None
    raise RegistrationError(f"{where} ({_show(annotation)}) cannot be filled; {_HOW}")


def _body_need(annotation: Any, where: str) -> BodyNeed | None:
    is_event, body = event_argument(annotation)
    if is_event:
        return BodyNeed(_body_type(body, where), wrapped=True)
    if isinstance(annotation, type) and issubclass(annotation, EventBase):
        return BodyNeed(_body_type(annotation, where), wrapped=False)
    return None


_HOW = (
    "annotate it with Event[...], an EventBase class, Annotated[..., Dependency(...)] or "
    "Annotated[..., SubscriptionParam()], with batch= also with list[Event[...]], or give it a default"
)


_CALL: Mapping[Any, str] = {
    Dependency: "Dependency lacks its provider; write Dependency(provider)",
    SubscriptionParam: "SubscriptionParam lacks its parentheses; write SubscriptionParam()",
}


def _body_type(annotation: Any, where: str) -> BodyType:
    try:
        return BodyType(annotation)
    except Exception as error:
        raise RegistrationError(f"{where}: pydantic cannot validate {_show(annotation)}: {error}") from error


def _segment(name: str, annotation: Any, marker: _Segment, where: str) -> ParamNeed:
    full: Any = annotation if marker.field is None else Annotated[annotation, marker.field]
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(full)
    except Exception as error:
        raise RegistrationError(f"{where}: pydantic cannot validate {_show(annotation)}: {error}") from error
    return ParamNeed(marker.alias or name, adapter, name)


def _show(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


class _Names:
    """Where the names of string annotations are looked up: the closure, the decorating frame, the globals."""

    def __init__(self, scope: dict[str, Any], local: dict[str, Any]) -> None:
        self._globals = scope
        self._locals = local

    def evaluate(self, annotation: str) -> Any:
        holder = type("holder", (), {"__annotations__": {"value": annotation}})
        hints = typing.get_type_hints(holder, self._globals, self._locals, include_extras=True)
        return hints["value"]


def _names(func: Callable[..., Any], frame: Mapping[str, Any]) -> _Names:
    func = unwrapped(func)
    target: Any = func
    if inspect.isclass(func):
        target = func.__init__
    elif not inspect.isroutine(func):
        target = type(func).__call__
    target = inspect.unwrap(getattr(target, "__func__", target))
    scope = dict(
        getattr(target, "__globals__", None) or vars(sys.modules.get(getattr(target, "__module__", ""), typing))
    )
    local: dict[str, Any] = {}
    if "<locals>" in getattr(target, "__qualname__", ""):
        local.update(frame)  # names of the function around it hide its globals
    else:
        scope = {**frame, **scope}  # it was defined elsewhere, and means its own module's names
    code, cells = getattr(target, "__code__", None), getattr(target, "__closure__", None)
    if code is not None and cells:
        for name, cell in zip(code.co_freevars, cells, strict=True):
            with suppress(ValueError):  # not bound yet: a name that is assigned further down
                local[name] = cell.cell_contents
    return _Names(scope, local)
