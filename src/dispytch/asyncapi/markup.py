"""HTML in which every text is escaped, wherever it comes from."""

from __future__ import annotations

import re
from html import escape

__all__ = ["Markup", "breakable", "escaped", "name_of", "prose", "tag"]

_EMPTY = frozenset({"meta", "br", "wbr"})
_BLOCKS = frozenset(
    {
        *("head", "title", "style", "header", "nav", "main", "section", "article", "footer", "h1", "h2", "h3", "h4"),
        *("p", "div", "ul", "li", "dl", "details", "summary", "table", "caption", "thead", "tbody", "tr", "td", "pre"),
    }
)
_BETWEEN = re.compile(r"(?<=[.:/_])(?=.)", re.DOTALL)
_ITEM = re.compile(r"^[ \t]*[-*] ", re.MULTILINE)
_CODE = re.compile(r"``(.+?)``|`([^`\n]+)`")


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def escaped(text: str) -> Markup:
    """A text as HTML; `Markup` stays as it is."""
    return text if isinstance(text, Markup) else Markup(escape(text))


def tag(element: str, /, *children: str | None, **attributes: str | None) -> Markup:
    """An element. Children that are no `Markup` are escaped, as are all values of attributes.

    Args:
        attributes: With ``_`` for ``-``, and one at the end of Python's own words: ``class_``. ``None`` leaves one out.
    """
    text = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if element in _EMPTY:
        return Markup(f"<{element}{text}>")
    end = "\n" if element in _BLOCKS else ""  # so that what changes in a page is a few lines
    inner = "".join(escaped(child) for child in children if child is not None)
    return Markup(f"<{element}{text}>{inner}</{element}>{end}")


def prose(text: object, **attributes: str | None) -> Markup:
    """Paragraphs and lists, with what is between backticks as code."""
    found = re.split(r"\n\s*\n", str(text).strip())
    return Markup("".join(_block(one, attributes) for one in found if one.strip()))


def _block(text: str, attributes: dict[str, str | None]) -> Markup:
    before, *items = _ITEM.split(text)
    made = tag("p", _spans(before.strip()), **attributes) if before.strip() else Markup()
    return Markup(made + tag("ul", *(tag("li", _spans(one.strip())) for one in items))) if items else made


def _spans(text: str) -> Markup:
    made, start = "", 0
    for code in _CODE.finditer(text):
        made += escape(text[start : code.start()]) + tag("code", (code[1] or code[2]).strip())
        start = code.end()
    return Markup(made + escape(text[start:]))


def breakable(text: str) -> Markup:
    """A name that may be broken between its parts, where it is too long for its place."""
    return Markup(tag("wbr").join(map(escaped, _BETWEEN.split(text))))


def name_of(text: object) -> Markup:
    """A name of the program or of the broker."""
    return tag("code", breakable(str(text)))
