"""What must hold for every document."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft7Validator

from dispytch.asyncapi import to_html, to_json
from tests.support import CANARY

OFFICIAL = Path(__file__).parent / "official" / "asyncapi-3.1.0.json"
_SAFE = re.compile(r"[A-Za-z0-9._-]+")
_NAME = re.compile(r"[A-Za-z0-9_-]+")


@cache
def official() -> Any:
    return Draft7Validator(json.loads(OFFICIAL.read_text()))


def check(document: dict[str, Any]) -> dict[str, Any]:
    """Fails if a document is not valid, by the official schema and by what that does not say; returns it."""
    problems = [
        f"{'/'.join(map(str, one.absolute_path))}: {one.message[:300]}" for one in official().iter_errors(document)
    ]
    problems += [f"dangling: {reference}" for reference in references(document) if find(document, reference) is None]
    for name, channel in document["channels"].items():
        expressions = re.findall(r"\{([^{}]*)\}", channel["address"])
        declared = channel.get("parameters", {})
        if sorted(expressions) != sorted(declared):
            problems.append(f"channel {name}: {channel['address']!r} has the parameters {expressions}, not {declared}")
        problems += [f"channel {name}: {one!r} is no name" for one in declared if not _NAME.fullmatch(one)]
    for kind in ("channels", "operations"):
        problems += [f"{kind}: {one!r}" for one in document[kind] if not _SAFE.fullmatch(one)]
    for things in document["components"].values():
        problems += [f"components: {one!r}" for one in things if not _SAFE.fullmatch(one)]
    for name, operation in document["operations"].items():
        channel = find(document, operation["channel"]["$ref"])
        for message in operation["messages"]:
            if message["$ref"].rpartition("/")[2] not in channel["messages"]:
                problems.append(f"operation {name}: {message} is not of its channel")
    places = [
        (one["address"], one.get("x-transport"), json.dumps(one.get("bindings", {}).get("amqp")))
        for one in document["channels"].values()
    ]
    problems += [f"two channels of one address: {one}" for one in set(places) if places.count(one) > 1]
    if CANARY in to_json(document):
        problems.append("it tells a password")
    assert not problems, "\n".join(problems)
    return document


def references(value: Any, is_map: bool = False) -> Iterator[str]:
    """All that is referred to; a property of a schema may be named ``$ref`` too."""
    if isinstance(value, dict):
        for name, one in value.items():
            if name == "$ref" and isinstance(one, str) and not is_map:
                yield one
            elif name not in ("default", "examples", "const", "enum") or is_map:
                yield from references(one, name in ("properties", "parameters") and not is_map)
    elif isinstance(value, list):
        for one in value:
            yield from references(one)


def find(document: dict[str, Any], reference: str) -> Any:
    """What a reference refers to; ``None`` for nothing."""
    found: Any = document
    for part in reference.removeprefix("#/").split("/"):
        if not isinstance(found, dict) or part not in found:
            return None
        found = found[part]
    return found


def check_page(document: dict[str, Any]) -> str:
    """Fails if the page of a document could do anything, or links to nothing; returns it."""
    page = to_html(document)
    elements = set(re.findall(r"<([a-zA-Z][^\s/>]*)", page))
    assert elements <= _ELEMENTS, elements - _ELEMENTS
    attributes = set(re.findall(r'\s([a-z-]+)="', page.partition("</style>")[2]))
    assert attributes <= _ATTRIBUTES, attributes - _ATTRIBUTES
    ids = re.findall(r'\sid="([^"]*)"', page)
    assert len(ids) == len(set(ids)), [one for one in ids if ids.count(one) > 1]
    for link in re.findall(r'\shref="([^"]*)"', page):
        assert link.startswith("#"), link
        assert link[1:] in ids, link
    return page


_ELEMENTS = {
    *("html", "head", "meta", "title", "style", "body", "header", "nav", "main", "section", "article", "footer"),
    *("h1", "h2", "h3", "h4", "p", "a", "span", "div", "ul", "li", "dl", "dt", "dd", "details", "summary", "wbr"),
    *("table", "caption", "thead", "tbody", "tr", "th", "td", "code", "var", "pre"),
}
_ATTRIBUTES = {"aria-label", "class", "colspan", "href", "id", "role", "scope", "tabindex"}
