"""Examples of what a schema describes: its own, or one that is made up."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from dispytch.asyncapi.schemas import Schema, referred, resolve

__all__ = ["sample"]

_DEEPEST = 6
_GUESSES = ("text", "9.50", "1", "1234", "ABC-123", "ABC", "A1", "2026-01-31", "a-b")
"""What many patterns take, one or the other."""
_FORMATS = {
    "date-time": "2026-01-31T09:30:00Z",
    "date": "2026-01-31",
    "time": "09:30:00Z",
    "duration": "PT1H30M",
    "email": "ada@example.com",
    "uuid": "0b8f3e52-6d1c-4c1a-9f57-2f1f5f0e8a11",
    "uuid4": "0b8f3e52-6d1c-4c1a-9f57-2f1f5f0e8a11",
    "uri": "https://example.com/",
    "uri-reference": "shop",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "hostname": "example.com",
    "password": "********",
    "binary": "c2VjcmV0",
    "base64": "c2VjcmV0",
    "path": "/var/data",
}


def sample(schema: Any, components: Mapping[str, Schema]) -> tuple[Any, bool]:
    """An example, and whether it is one that the schema gives rather than one that was made up."""
    resolved = resolve(schema, components)
    examples = resolved.get("examples")
    if isinstance(examples, list) and examples:
        return examples[0], True
    return _Maker(components).make(schema, "", 0), False


class _Maker:
    def __init__(self, components: Mapping[str, Schema]) -> None:
        self._components = components
        self._inside: list[str] = []

    def make(self, schema: Any, name: str, depth: int) -> Any:
        target = referred(schema)
        if target is None:
            return self._made(resolve(schema, self._components), name, depth)
        if target in self._inside:
            return None
        self._inside.append(target)
        try:
            return self._made(resolve(schema, self._components), name, depth)
        finally:
            self._inside.pop()

    def _made(self, schema: Schema, name: str, depth: int) -> Any:
        for key in ("examples", "enum"):
            if isinstance(listed := schema.get(key), list) and listed:
                return listed[0]
        for key in ("const", "default"):
            if key in schema and schema[key] is not None:
                return schema[key]
        if isinstance(parts := schema.get("allOf"), list) and parts:
            return self._whole(schema, parts, name, depth)
        for key in ("oneOf", "anyOf"):
            if isinstance(choices := schema.get(key), list) and choices:
                return self.make(self._best(choices), name, depth)
        kind = schema.get("type")
        if isinstance(kind, list):
            kind = next((one for one in kind if one != "null"), "null")
        if kind == "object" or (kind is None and "properties" in schema):
            return self._object(schema, depth)
        if kind == "array":
            return self._array(schema, name, depth)
        if kind in ("integer", "number"):
            return _number(schema, kind)
        if kind == "boolean":
            return True
        return _text(schema, name) if kind == "string" else None if kind == "null" else {}

    def _whole(self, schema: Schema, parts: list[Any], name: str, depth: int) -> Any:
        made = [self.make(part, name, depth) for part in parts]
        if "properties" in schema:
            made.append(self._object(schema, depth))
        if not all(isinstance(one, dict) for one in made):
            return made[0]
        return {key: value for one in made for key, value in one.items()}

    def _best(self, choices: list[Any]) -> Any:
        """The first that is neither null nor what is being made already."""
        for choice in choices:
            if referred(choice) not in self._inside and choice != {"type": "null"}:
                return choice
        return {"type": "null"}

    def _object(self, schema: Schema, depth: int) -> Any:
        properties = schema.get("properties", {})
        required = schema.get("required", ())
        found = {}
        for name, one in properties.items():
            if name in required or (depth < _DEEPEST and referred(one) not in self._inside):
                found[name] = self.make(one, name, depth + 1)
        more = schema.get("additionalProperties")
        if not properties and isinstance(more, dict) and more and depth < _DEEPEST:
            found["key"] = self.make(more, "value", depth + 1)
        return found

    def _array(self, schema: Schema, name: str, depth: int) -> Any:
        items = schema.get("items", {})
        if isinstance(items, list):
            return [self.make(one, name, depth + 1) for one in items]
        if depth >= _DEEPEST or referred(items) in self._inside or schema.get("maxItems") == 0:
            return []
        first = self.make(items, name.removesuffix("s"), depth + 1)
        return [first] * min(max(1, int(schema.get("minItems", 1))), 3)


def _number(schema: Schema, kind: str) -> int | float:
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    step = schema.get("multipleOf")
    value: int | float = 1 if kind == "integer" else 9.5
    if low is not None and value < low:
        value = low
    if above is not None and value <= above:
        value = above + 1
    if high is not None and value > high:
        value = high
    if below is not None and value >= below:
        value = below - 1 if above is None or below - 1 > above else (above + below) / 2
    if step:
        value = math.ceil(value / step) * step
    return value


def _fits(pattern: str, text: str) -> bool:
    try:
        return re.search(pattern, text) is not None
    except re.error:  # it is one of JavaScript's
        return False


def _text(schema: Schema, name: str) -> str:
    if (form := schema.get("format")) in _FORMATS:
        return _FORMATS[form]
    text = name.replace("_", " ").strip() or "text"
    if isinstance(pattern := schema.get("pattern"), str):
        return next((one for one in (text, *_GUESSES) if _fits(pattern, one)), text)
    if (least := schema.get("minLength")) is not None and len(text) < least:
        text = (text * (int(least) // len(text) + 1))[: int(least)] if least <= 64 else text
    if (most := schema.get("maxLength")) is not None:
        text = text[: int(most)]
    return text
