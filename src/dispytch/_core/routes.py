"""Routes (where an event goes), subscriptions (what a handler wants), and the templates in both."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, fields
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from typing import Any, ClassVar, TypeVar
from uuid import UUID

from dispytch._core.patterns import Pattern
from dispytch.errors import ConfigurationError, EmitRejectedError

__all__ = ["EventConfig", "EventRoute", "EventSubscription", "PortableRoute", "Template", "compile_route"]

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_SURROGATE = re.compile("[\ud800-\udfff]")
_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")

RouteT = TypeVar("RouteT", bound="EventRoute")
TargetT = TypeVar("TargetT")


class EventRoute(ABC):
    """Where an event goes on one transport; each transport has its own dataclass.

    String fields may be templates such as ``"tenant.{tenant_id}.users"``. ``delimiter`` tells what separates the
    segments of the address; with ``None`` any of ``.``, ``:`` and ``/`` does.
    """

    delimiter: str | None

    @property
    @abstractmethod
    def address(self) -> str:
        """The route as one string, for receipts and logs."""


@dataclass(frozen=True, slots=True)
class PortableRoute(EventRoute):
    """An event class's ``__topic__``, before a producer has made it its own kind of route."""

    topic: str
    delimiter: str | None = field(default=None, kw_only=True)

    @property
    def address(self) -> str:
        return self.topic


class EventConfig:
    """Options of one transport for an event class (``__backend_config__``); strings in it may be templates."""


@dataclass(frozen=True, slots=True)
class EventSubscription:
    """What a handler wants to receive, from every consumer of the dispatcher.

    Args:
        topic: A topic, or a pattern: ``{name}`` and ``*`` match one segment, ``#`` any number; ``None`` for any.
        event: The event type; ``None`` for any.
    """

    topic: str | None = None
    event: str | None = None

    transport: ClassVar[str | None] = None
    """The transport that the subscription is for; ``None`` for every one."""

    @property
    def pattern(self) -> str:
        """The address pattern, ``"#"`` for any."""
        return "#" if self.topic is None else self.topic

    @property
    def delimiter(self) -> str | None:
        """What separates the segments of the pattern; ``None`` for the dispatcher's own."""
        return None

    def takes(self, scope: Hashable) -> bool:
        """Whether it is for deliveries of this scope, if their source matches; see `Delivery`."""
        return True


def _text(value: Any) -> str | None:
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | UUID | float | Decimal):
        return str(value)
    if isinstance(value, datetime | date):
        return value.isoformat()
    return None


def _getter(path: str) -> Callable[[Any], Any]:
    names = path.split(".")

    def get(event: Any) -> Any:
        value = event
        for name in names:
            value = value[name] if isinstance(value, dict) else getattr(value, name)
        return value

    return get


@lru_cache(maxsize=256)
def _forbidden(delimiter: str | None) -> re.Pattern[str]:
    if delimiter is None:
        return re.compile(r"[.:/*#\s\0]")
    # Nor may a value end in the beginning of a longer delimiter, which with what follows would be one too early.
    beginnings = "".join(rf"|{re.escape(delimiter[:length])}\Z" for length in range(1, len(delimiter)))
    return re.compile(rf"{re.escape(delimiter)}|[*#\s\0]{beginnings}")


class Template:
    """Text with ``{field}`` placeholders, dotted paths allowed, filled in from an event."""

    __slots__ = ("_parts", "paths", "source")

    def __init__(self, source: str, owner: str) -> None:
        """Raises ConfigurationError, naming ``owner``, if the braces or a path are wrong."""
        self.source: str = source
        parts: list[str | tuple[str, Callable[[Any], Any]]] = []
        end = 0
        for match in _PLACEHOLDER.finditer(source):
            parts.append(source[end : match.start()])
            path = match[1]
            if not _PATH.fullmatch(path):
                raise ConfigurationError(
                    f"{owner}: the placeholder {{{path}}} in {source!r} is not a field name; write {{field}} or "
                    "{field.attribute}"
                )
            parts.append((path, _getter(path)))
            end = match.end()
        parts.append(source[end:])
        if any(isinstance(part, str) and ("{" in part or "}" in part) for part in parts):
            raise ConfigurationError(f"{owner}: the braces in {source!r} do not pair up; write {{field}}")
        self._parts = [part for part in parts if part]
        self.paths: tuple[str, ...] = tuple(part[0] for part in parts if isinstance(part, tuple))

    def fill(self, event: Any) -> str | None:
        """The text for an event; any value will do. ``None`` if the template is one placeholder and its value None."""
        texts: list[str] = []
        for part in self._parts:
            if isinstance(part, str):
                texts.append(part)
                continue
            path, get = part
            value = self._value(event, path, get)
            if value is None and len(self._parts) == 1:
                return None
            text = _text(value)
            if text is None:
                raise self._refusal(event, path, f"is {type(value).__name__}; use a string, a number, a UUID or a date")
            self._check_utf8(event, path, text)
            texts.append(text)
        return "".join(texts)

    def fill_segments(self, event: Any, delimiter: str | None) -> str:
        """The address for an event; each value must stay within its segment, or EmitRejectedError is raised."""
        forbidden = _forbidden(delimiter)
        texts: list[str] = []
        for part in self._parts:
            if isinstance(part, str):
                texts.append(part)
                continue
            path, get = part
            text = _text(self._value(event, path, get))
            if text is None:
                raise self._refusal(event, path, "is not a string, a number, a UUID or a date")
            if not text:
                raise self._refusal(event, path, "is empty")
            if (hit := forbidden.search(text)) is not None:
                raise self._refusal(
                    event, path, f"holds {hit[0]!r}, which would leave its segment; encode or replace it first"
                )
            self._check_utf8(event, path, text)
            texts.append(text)
        return "".join(texts)

    def _value(self, event: Any, path: str, get: Callable[[Any], Any]) -> Any:
        try:
            return get(event)
        except (AttributeError, KeyError, TypeError):
            raise self._refusal(event, path, "is missing") from None

    def _check_utf8(self, event: Any, path: str, text: str) -> None:
        if not text.isascii() and _SURROGATE.search(text) is not None:
            raise self._refusal(event, path, "holds a lone surrogate, which is no text; replace it first")

    def _refusal(self, event: Any, path: str, why: str) -> EmitRejectedError:
        return EmitRejectedError(
            f"{type(event).__qualname__}: the value of {path!r}, which {self.source!r} needs, {why}"
        )


def route_templates(route: EventRoute, owner: str) -> dict[str, Template]:
    """The templates among a route's or config's string fields, by field name; their syntax is checked.

    Raises:
        ConfigurationError: a template is wrong, or a placeholder is only a part of a route's segment.
    """
    found: dict[str, Template] = {}
    for item in fields(route):  # type: ignore[arg-type]  # every route and config is a dataclass
        value = getattr(route, item.name)
        if item.name != "delimiter" and isinstance(value, str) and ("{" in value or "}" in value):
            found[item.name] = Template(value, owner)
            if isinstance(route, EventRoute):
                try:
                    Pattern.parse(value, route.delimiter)
                except ConfigurationError as error:
                    raise ConfigurationError(f"{owner}: {error}") from None
    return found


def compile_route(route: RouteT, owner: str) -> Callable[[Any], RouteT] | None:
    """A function from an event to the route with its placeholders filled in; ``None`` if it has none.

    Raises:
        ConfigurationError: see `route_templates`; the function raises EmitRejectedError for values that do not fit.
    """
    delimiter = route.delimiter
    return _filler(
        route, route_templates(route, owner), lambda template, event: template.fill_segments(event, delimiter)
    )


def compile_config(config: EventConfig | None, owner: str) -> Callable[[Any], EventConfig] | None:
    """The same for the options of a transport, where any text is allowed."""
    if config is None:
        return None
    return _filler(config, route_templates(config, owner), Template.fill)  # type: ignore[arg-type]  # a dataclass


def _filler(
    target: TargetT, templates: dict[str, Template], fill: Callable[[Template, Any], str | None]
) -> Callable[[Any], TargetT] | None:
    if not templates:
        return None
    kind: Callable[..., TargetT] = type(target)
    fixed = {item.name: getattr(target, item.name) for item in fields(target)}  # type: ignore[arg-type]  # a dataclass

    def filled(event: Any) -> TargetT:
        values = fixed.copy()
        for name, template in templates.items():
            values[name] = fill(template, event)
        return kind(**values)

    return filled
