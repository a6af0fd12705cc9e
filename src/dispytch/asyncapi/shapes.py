"""Schemas as tables: a row for each field, with nested objects folded into it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dispytch.asyncapi.markup import Markup, escaped, prose, tag
from dispytch.asyncapi.schemas import Schema, referred, resolve

__all__ = ["Shapes", "code_block", "inline_json"]

_DEEPEST = 4
_MOST_SHOWN = 120
_LIMITS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "multipleOf": "a multiple of {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "minProperties": "at least {} members",
    "maxProperties": "at most {} members",
    "pattern": "matches {}",
    "contentEncoding": "encoded as {}",
    "contentMediaType": "holds {}",
}


class Shapes:
    """Renders schemas of one document.

    Args:
        components: What the schemas refer to.
        link: The address of a component on the page; ``None`` if it is not there.
    """

    def __init__(self, components: Mapping[str, Schema], link: Callable[[str], str | None]) -> None:
        self._components = components
        self._link = link

    def table(self, schema: Any, caption: str) -> Markup:
        """All that a schema says: a table if it has fields, else a line."""
        resolved = self._resolved(schema)
        return Markup(prose_of(resolved) + self._facts(resolved) + self._inside(resolved, caption, 0, ()))

    def type_of(self, schema: Any) -> Markup:
        """A type in a few words, with links."""
        return Markup(Markup(" ").join(self._words(schema, 0)))

    # --- words

    def _words(self, schema: Any, depth: int) -> Iterator[str]:
        if schema is True or schema == {}:
            yield "anything"
            return
        if not isinstance(schema, dict):
            yield "nothing"
            return
        name = referred(schema)
        if name is not None:
            title = self._components.get(name, {}).get("title", name)
            href = self._link(name)
            yield tag("a", str(title), href=href) if href else tag("span", str(title))
            return
        if depth > _DEEPEST:
            yield "…"
            return
        for key, joint in (("oneOf", "or"), ("anyOf", "or"), ("allOf", "and")):
            parts = schema.get(key)
            if isinstance(parts, list) and parts:
                for number, part in enumerate(parts):
                    if number:
                        yield joint
                    yield from self._words(part, depth + 1)
                return
        yield from self._own_words(schema, depth)

    def _own_words(self, schema: Schema, depth: int) -> Iterator[str]:
        if "const" in schema:
            yield inline_json(schema["const"])
            return
        kind = schema.get("type")
        if isinstance(kind, list):
            yield escaped(" or ".join(map(str, kind)))
        elif kind == "array":
            items = schema.get("items", {})
            if isinstance(items, list):
                yield "list of"
                for number, one in enumerate(items):
                    if number:
                        yield "and"
                    yield from self._words(one, depth + 1)
            else:
                yield "list of"
                yield from self._words(items, depth + 1)
        elif kind == "object" and isinstance(schema.get("additionalProperties"), dict) and not schema.get("properties"):
            yield "map of"
            yield from self._words(schema["additionalProperties"], depth + 1)
        else:
            yield escaped(
                str(kind or ("one of" if "enum" in schema else "object" if "properties" in schema else "anything"))
            )
        if isinstance(form := schema.get("format"), str):
            yield tag("span", form, class_="format")

    # --- facts

    def _facts(self, schema: Schema) -> Markup:
        """What limits a value, and what it is by default."""
        found: list[Markup] = []
        if isinstance(listed := schema.get("enum"), list):
            found.append(_fact("one of", *(inline_json(one) for one in listed)))
        if "default" in schema:
            found.append(_fact("default", inline_json(schema["default"])))
        for key, words in _LIMITS.items():
            if key in schema:
                before, after = words.split("{}")
                value = schema[key]
                shown = Markup(
                    escaped(before)
                    + tag("code", str(value))
                    + escaped(after.removesuffix("s") if value == 1 else after)
                )
                found.append(tag("li", shown))
        if schema.get("uniqueItems"):
            found.append(tag("li", "no item twice"))
        if schema.get("additionalProperties") is False and "properties" in schema:
            found.append(tag("li", "no other members"))
        for key, word in (("deprecated", "deprecated"), ("readOnly", "only sent"), ("writeOnly", "never sent back")):
            if schema.get(key):
                found.append(tag("li", word))
        if isinstance(examples := schema.get("examples"), list) and examples and "properties" not in schema:
            found.append(_fact("for example", *(inline_json(one) for one in examples[:3])))
        return tag("ul", *found, class_="facts") if found else Markup()

    # --- fields

    def _resolved(self, schema: Any) -> Schema:
        """A schema with its parts in one, where all of them are objects."""
        resolved = resolve(schema, self._components)
        parts = resolved.get("allOf")
        if not isinstance(parts, list):
            return resolved
        merged: Schema = {name: value for name, value in resolved.items() if name != "allOf"}
        for part in map(self._resolved, parts):
            if part.get("type", "object") != "object":
                return resolved
            for name, value in part.items():
                if name == "properties":
                    known = merged.setdefault("properties", {})
                    merged["properties"] = {**known, **{key: _both(known.get(key), one) for key, one in value.items()}}
                elif name == "required":
                    merged["required"] = [*merged.get("required", ()), *value]
                else:
                    merged.setdefault(name, value)
        return merged

    def _inside(self, schema: Schema, caption: str, depth: int, path: tuple[str, ...]) -> Markup:
        """The fields of an object, or what is inside a list, a map or a choice."""
        properties = schema.get("properties")
        if isinstance(properties, dict) and properties:
            required = schema.get("required", ())
            rows = [
                row
                for name, one in properties.items()
                for row in self._rows(str(name), one, name in required, depth, path)
            ]
            return tag(
                "table",
                tag("caption", caption),
                tag("thead", tag("tr", tag("th", "Field", scope="col"), tag("th", "What it holds", scope="col"))),
                tag("tbody", *rows),
                class_="fields",
            )
        if depth == 0 and not properties:
            nested = "".join(self._nested(one, depth, path) for one in self._parts(schema))
            return Markup(tag("p", self.type_of(schema), class_="type") + nested)
        return Markup()

    def _rows(self, name: str, schema: Any, is_required: bool, depth: int, path: tuple[str, ...]) -> Iterator[Markup]:
        resolved = self._resolved(schema)
        mark = tag("span", "required", class_="required") if is_required else None
        yield tag(
            "tr",
            tag("th", tag("code", name), mark, scope="row"),
            tag("td", tag("p", self.type_of(schema), class_="type"), prose_of(resolved), self._facts(resolved)),
        )
        if nested := "".join(self._nested(one, depth, path) for one in self._parts(schema)):
            yield tag("tr", tag("td", Markup(nested), colspan="2"), class_="more")

    def _parts(self, schema: Any) -> Iterator[Any]:
        """The objects that a field holds, wherever they are in it."""
        resolved = resolve(schema, self._components)
        if isinstance(resolved.get("properties"), dict) and resolved["properties"]:
            yield schema
            return
        items = resolved.get("items")
        inner = items if isinstance(items, list) else [items]
        for one in (
            *inner,
            resolved.get("additionalProperties"),
            *(
                part
                for key in ("allOf", "anyOf", "oneOf")
                if isinstance(resolved.get(key), list)
                for part in resolved[key]
            ),
        ):
            if isinstance(one, dict) and one:
                yield from self._parts_once(one)

    def _parts_once(self, schema: Schema) -> Iterator[Any]:
        resolved = resolve(schema, self._components)
        if isinstance(resolved.get("properties"), dict) and resolved["properties"]:
            yield schema
        elif isinstance(items := resolved.get("items"), dict) and items and referred(items) is not None:
            yield items

    def _nested(self, schema: Any, depth: int, path: tuple[str, ...]) -> Markup:
        name = referred(schema)
        if (name is not None and name in path) or depth >= _DEEPEST:
            return Markup()  # the link to it is in the type
        resolved = self._resolved(schema)
        title = str(resolved.get("title") or name or "object")
        inside = self._inside(resolved, f"Fields of {title}", depth + 1, path if name is None else (*path, name))
        return tag("details", tag("summary", f"Fields of {title}"), inside, class_="nested")


def prose_of(schema: Mapping[str, Any]) -> Markup:
    text = schema.get("description")
    return prose(text) if isinstance(text, str) and text.strip() else Markup()


def _both(known: Any, added: Any) -> Any:
    return {**known, **added} if isinstance(known, dict) and isinstance(added, dict) else added


def _fact(word: str, *values: Markup) -> Markup:
    return tag("li", Markup(escaped(f"{word} ") + Markup(", ").join(values)))


# --- JSON


def inline_json(value: Any) -> Markup:
    """A value in a line."""
    text = json.dumps(value, ensure_ascii=False)
    return tag("code", text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…")


def code_block(value: Any, label: str) -> Markup:
    """A value over several lines, in colour, that can be scrolled by keyboard."""
    return tag("pre", tag("code", Markup("".join(_coloured(value, "")))), tabindex="0", role="region", aria_label=label)


def _coloured(value: Any, indent: str) -> Iterator[str]:
    inner = indent + "  "
    if isinstance(value, dict) and value:
        yield "{\n"
        for number, (name, one) in enumerate(value.items()):
            yield inner + tag("span", json.dumps(str(name), ensure_ascii=False), class_="k") + ": "
            yield from _coloured(one, inner)
            yield ",\n" if number < len(value) - 1 else "\n"
        yield indent + "}"
    elif isinstance(value, list) and value:
        yield "[\n"
        for number, one in enumerate(value):
            yield inner
            yield from _coloured(one, inner)
            yield ",\n" if number < len(value) - 1 else "\n"
        yield indent + "]"
    else:
        kind = "s" if isinstance(value, str) else "n"
        yield tag("span", json.dumps(value, ensure_ascii=False), class_=kind)
