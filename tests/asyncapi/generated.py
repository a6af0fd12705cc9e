"""Generated applications: odd topics, models and combinations of them."""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import make_dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Generic, Literal, Optional, TypeVar
from uuid import UUID

from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, RootModel, create_model

from dispytch import Event, EventBase, EventDispatcher, HandlerGroup, Router, SubscriptionParam, consumer_from_url
from dispytch.asyncapi import document

T = TypeVar("T")


class Node(BaseModel):
    left: Node | None = None
    right: Node | None = None
    others: dict[str, list[Node]] = {}


class Pair(BaseModel, Generic[T]):
    first: T
    second: tuple[T, int] | None = None


class Shade(Enum):
    LIGHT = "light"
    DARK = 2


class Round(BaseModel):
    shape: Literal["round"]
    radius: Annotated[float, Field(gt=0)]


class Square(BaseModel):
    shape: Literal["square", "box"]
    side: int
    inside: list[Figure] = []


Figure = Annotated[Round | Square, Field(discriminator="shape")]
Square.model_rebuild()


class Names(RootModel[list[str]]):
    """Names alone."""


Plain = make_dataclass("Plain", [("x", int), ("y", list[str])])


def _of(generic: Any, *arguments: Any) -> Any:
    return generic[arguments if len(arguments) > 1 else arguments[0]]


_LEAVES = st.sampled_from(
    [
        *(str, int, float, bool, bytes, Decimal, UUID, datetime, date, timedelta, Any, None, dict, list, set[int]),
        *(Shade, Node, Round, Figure, Names, Plain, Literal["a", 1, None], Pair[int], Pair[Node]),
    ]
)
_TYPES: st.SearchStrategy[Any] = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        inner.map(lambda one: _of(list, one)),
        inner.map(lambda one: _of(Optional, int if one is None else one)),
        inner.map(lambda one: _of(dict, str, one)),
        st.tuples(inner, inner).map(lambda two: _of(tuple, *two)),
        inner.filter(lambda one: one is not None).map(lambda one: _of(Pair, one)),
    ),
    max_leaves=4,
)
_FIELD = st.from_regex(r"[a-zA-Zéя][a-zA-Z0-9_]{0,8}", fullmatch=True).filter(
    lambda name: not name.startswith(("model_", "_")) and not hasattr(EventBase, name)
)
_TEXT = st.text(max_size=30)
_ALIAS = st.one_of(st.none(), st.sampled_from(["$ref", "a/b", "a~b", "type", "{x}", "ключ", "", "properties"]))


@st.composite
def _fields(draw: st.DrawFn) -> dict[str, Any]:
    found: dict[str, Any] = {}
    aliases: set[str] = set()
    for name in draw(st.lists(_FIELD, max_size=4, unique=True)):
        kind = draw(_TYPES)
        alias = draw(_ALIAS)
        options: dict[str, Any] = {"description": draw(_TEXT)} if draw(st.booleans()) else {}
        if alias and alias not in aliases and alias not in found:
            options["alias"] = alias
            aliases.add(alias)
        found[name] = (kind, Field(None if draw(st.booleans()) else ..., **options))
    return found


@st.composite
def models(draw: st.DrawFn) -> type[BaseModel]:
    """Models of all kinds; some have the same name."""
    name = draw(st.sampled_from(["Model", "Other", "Модель", "A-b c"]))
    config = ConfigDict(arbitrary_types_allowed=True, protected_namespaces=(), extra=draw(st.sampled_from(_EXTRA)))
    made: type[BaseModel] = create_model(name, __config__=config, **draw(_fields()))
    made.__doc__ = draw(_TEXT)
    return made


_EXTRA: list[Literal["allow", "forbid", "ignore"]] = ["allow", "forbid", "ignore"]
_SEGMENT = st.text(
    st.characters(codec="utf-8", exclude_characters="{}*#.:/", exclude_categories=["Cs"]), min_size=1, max_size=8
)
_ASCII = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=8)
_NAME = st.sampled_from(["shop", "order_id", "user.id", "naïve", "я", "any", "rest", "segment"])


@st.composite
def topics(draw: st.DrawFn, segment: st.SearchStrategy[str], wild: bool = True) -> tuple[str, list[str]]:
    """A pattern and the names that it captures."""
    parts: list[str] = []
    names: list[str] = []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["text", "text", "name", "*", "#"] if wild else ["text"]))
        if kind == "name":
            name = draw(_NAME.filter(lambda one: one not in names))
            names.append(name)
            parts.append(f"{{{name}}}")
        else:
            parts.append(draw(segment) if kind == "text" else kind)
    separator = draw(st.sampled_from([".", ":", "/"])) if segment is _SEGMENT else "."
    return separator.join(parts), names


_URLS = {
    "memory://generated": (_SEGMENT, True),
    "kafka://ada:canary-9f3e@broker": (_ASCII, True),
    "amqp://ada:canary-9f3e@broker": (_ASCII, True),
    "redis://ada:canary-9f3e@broker": (_SEGMENT, True),
    "redis+stream://ada:canary-9f3e@broker": (_SEGMENT, False),
}


def _function(name: str, parameters: dict[str, Any]) -> Callable[..., Any]:
    """A handler of a name, with parameters of such annotations."""
    scope: dict[str, Any] = {}
    exec(f"async def handler({', '.join(parameters)}): ...", scope)
    made: Callable[..., Any] = scope["handler"]
    made.__annotations__.update(parameters)
    made.__qualname__ = name
    return made


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """The document of a generated application."""
    urls = draw(st.lists(st.sampled_from(sorted(_URLS)), min_size=1, max_size=3, unique=True))
    segment = _SEGMENT if all(_URLS[url][0] is _SEGMENT for url in urls) else _ASCII
    wild = all(_URLS[url][1] for url in urls)
    dispatcher = EventDispatcher(*(consumer_from_url(url, "group") for url in urls))
    router = Router(tags=draw(st.lists(st.text(min_size=1, max_size=5), max_size=2)))
    group = HandlerGroup()
    dispatcher.add_router(router)
    dispatcher.add_handler_group(group)
    for _ in range(draw(st.integers(1, 6))):
        topic, names = draw(topics(segment, wild))
        body = draw(st.one_of(models(), _TYPES.filter(lambda one: one is not None)))
        parameters: dict[str, Any] = {
            "event": draw(st.sampled_from([_of(Event, body), Event, _of(Event, _of(Optional, body))]))
        }
        for number, name in enumerate(names):
            kind = draw(st.sampled_from([int, str, Literal["a", "b"], Shade, UUID]))
            parameters[f"p{number}"] = Annotated[kind, SubscriptionParam(alias=name, description=draw(_TEXT))]
        if batch := draw(st.one_of(st.none(), st.integers(1, 9))):
            parameters = {"event": _of(list, parameters["event"])}
        handler = _function(draw(st.sampled_from(["app.one", "app.two", "f.<locals>.g", "обработчик"])), parameters)
        handler.__doc__ = draw(st.one_of(st.none(), _TEXT))
        event = draw(st.one_of(st.none(), st.sampled_from(["Placed", "Событие", "a/b~c", "Other"])))
        if batch is None and draw(st.booleans()):
            group.handler(topic, event)(handler)
        else:
            router.handler(topic=topic, event=event, batch=batch)(handler)
    emits = []
    for number in range(draw(st.integers(0, 3))):
        topic, _ = draw(topics(segment, wild=False))
        kind = create_model(f"Event{number}", __base__=EventBase, **draw(_fields()))
        emits.append(type(f"Sent{number % 2}", (kind,), {"__topic__": topic, "__module__": __name__}))
    return document(
        dispatcher,
        title=draw(_TEXT) or "t",
        version=draw(_TEXT),
        description=draw(_TEXT),
        emits=emits,
        servers={"main": "kafka://ada:canary-9f3e@a:1,b:2"} if draw(st.booleans()) else None,
    )
