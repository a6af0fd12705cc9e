"""The page, as text: everything is escaped, every link leads somewhere."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Annotated, Any, Literal

import pytest
from jsonschema import Draft7Validator
from pydantic import BaseModel, ConfigDict, Field, create_model

from dispytch import Event, EventBase, EventDispatcher, SubscriptionParam
from dispytch.asyncapi import document, to_html
from dispytch.asyncapi.markup import Markup, prose, tag
from dispytch.asyncapi.samples import sample
from dispytch.memory import MemoryBroker, MemoryConsumer
from tests.asyncapi.checks import check, check_page
from tests.asyncapi.showcase import showcase

HOSTILE = [
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg onload=alert(1)>",
    "</style><style>*{display:none}</style>",
    "</title><script>alert(1)</script>",
    "<!--",
    "]]>",
    "javascript:alert(1)",
    "`</code><script>alert(1)</script>`",
    "&lt;script&gt;&#60;",
]


def hostile() -> dict[str, Any]:
    """A document that says such things wherever it can."""
    every = " ".join(HOSTILE)
    nested = create_model("Nested", text=(str, Field(HOSTILE[0], description=every, examples=[*HOSTILE], alias=every)))
    nested.__doc__ = every
    fields: dict[str, Any] = {
        f"field_{number}": (str, Field(text, alias=text, title=text, description=text, pattern=re.escape(text)))
        for number, text in enumerate(HOSTILE)
    }
    body = create_model(HOSTILE[1], nested=(nested, Field(description=every)), **fields)
    base = create_model("Base", __base__=EventBase, x=(str, Field(HOSTILE[2], description=every)))
    kind = type("Sent", (base,), {"__topic__": "sent", "__event_type__": HOSTILE[0], "__doc__": every})
    dispatcher = EventDispatcher(MemoryConsumer(MemoryBroker(), every))

    async def handler(event: Any, part: Any) -> None: ...

    handler.__annotations__ = {"event": Event[body], "part": SubscriptionParam}
    handler.__annotations__["part"] = _param(every)
    handler.__doc__ = f"{every}\n\n{every}\n\n- {every}\n- {every}"
    handler.__qualname__ = HOSTILE[1]
    dispatcher.handler(topic="<img src=x onerror=alert(1)>.{part}", event=every, dead_letter=HOSTILE[0])(handler)
    return document(
        dispatcher,
        title=every,
        version=every,
        description=every,
        emits=[kind],
        servers={"a": {"host": every, "protocol": every, "pathname": every}},
    )


def _param(text: str) -> Any:
    return Annotated[Literal[HOSTILE[0]], SubscriptionParam(description=text)]


def test_nothing_that_is_said_becomes_a_part_of_the_page() -> None:
    page = check_page(check(hostile()))
    for dangerous in ("<script", "<img", "<svg", "</script", "<!--"):
        assert dangerous not in page.lower()
    assert page.count("<style>") == page.count("</style>") == 1
    assert "&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_the_showcase() -> None:
    page = check_page(showcase())
    assert '<meta http-equiv="Content-Security-Policy" content="default-src &#x27;none&#x27;' in page
    assert "http" not in page.replace("http-equiv", "").replace("https://example.com/", "").replace("w3.org", "")
    said = page.replace("<wbr>", "")
    for text in ("Lamp shop", "night shift", "refunds.failed", "after processing", "of up to 500", "Fields of Money"):
        assert text in said
    assert "<li>look at it with <code>dispytch dead show</code>,</li>" in page


@pytest.mark.parametrize(
    "found",
    [
        {},
        {"asyncapi": "3.0.0", "info": {"title": "t", "version": "1"}},
        {"info": {}, "channels": {"a b": {"address": None}}, "operations": {"x": {"action": "send"}}},
        {
            "components": {
                "schemas": {"a": True, "b": {"$ref": "#/components/schemas/b"}, "c": {"type": ["string", "null"]}}
            }
        },
        {"components": {"messages": {"a": {"payload": False}, "b": {"payload": {"anyOf": [True]}}, "c": {}}}},
        {"components": {"schemas": {"a": {"items": [True, {"not": {}}], "type": "array", "if": {}}}}},
    ],
)
def test_other_documents(found: dict[str, Any]) -> None:
    check_page(found)


def test_headings_are_in_order() -> None:
    levels = [int(level) for level in re.findall(r"<h([1-6])[ >]", to_html(showcase()))]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


# --- markup


def test_markup() -> None:
    assert tag("p", "<", Markup("<br>"), None, class_="a&b", id=None) == '<p class="a&amp;b">&lt;<br></p>\n'
    assert prose("one `<x>` two\nthree\n\n* a\n* ``b``", class_="x") == (
        '<p class="x">one <code>&lt;x&gt;</code> two\nthree</p>\n<ul><li>a</li>\n<li><code>b</code></li>\n</ul>\n'
    )


# --- examples


class Inner(BaseModel):
    code: str = Field(pattern=r"^[A-Z]{3}-\d{3}$")
    more: Inner | None = None
    others: list[Inner] = Field(max_length=0)


class Everything(BaseModel):
    least: int = Field(ge=7, multiple_of=5)
    most: float = Field(lt=3)
    between: float = Field(gt=0, lt=1)
    short: str = Field(max_length=3)
    long_name: str = Field(min_length=40)
    inner: Inner
    many: list[Inner] = Field(min_length=2)
    map: dict[str, Inner]
    pair: tuple[int, str]


def test_examples_that_are_made_up_fit() -> None:
    kind = type("Sent", (create_model("Base", __base__=EventBase, everything=(Everything, ...)),), {"__topic__": "x"})
    for found in (document(title="t", version="1", emits=[kind]), showcase()):
        components = found["components"]["schemas"]
        for message in found["components"]["messages"].values():
            value, is_given = sample(message["payload"], components)
            assert not is_given
            Draft7Validator({**message["payload"], "components": {"schemas": components}}).validate(value)


def test_examples_of_the_model_come_first() -> None:
    class Shown(EventBase):
        __topic__ = "shown"
        model_config = ConfigDict(json_schema_extra={"examples": [{"x": 42}]})
        x: int

    page = check_page(check(document(title="t", version="1", emits=[Shown])))
    assert '<h4>Example</h4>\n<pre tabindex="0" role="region" aria-label="Example of Shown">' in page
    assert '<span class="k">&quot;x&quot;</span>: <span class="n">42</span>' in page
