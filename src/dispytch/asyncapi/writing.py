"""Documents as JSON and as YAML."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["to_json", "to_yaml"]

_PLAIN = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*(?:[./-][A-Za-z0-9_$]+)*")
_RESERVED = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})
_BLOCK = re.compile(r"(?!\s)[^\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff\t]+(?<!\s)")
_STRANGE = re.compile(r"[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


def to_json(document: Mapping[str, Any]) -> str:
    """A document as JSON, indented, with a line break at its end."""
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def to_yaml(document: Mapping[str, Any]) -> str:
    """A document as YAML; it holds nothing but maps, lists, strings, numbers, booleans and null.

    What could be read as something else is in quotes, so that readers of YAML 1.1 and of 1.2 find the same in it.
    """
    return "\n".join(_lines(document, 0)) + "\n"


def _lines(value: Any, depth: int) -> Iterator[str]:
    indent = "  " * depth
    if isinstance(value, Mapping) and value:
        for name, one in value.items():
            yield from _entry(f"{indent}{_scalar(str(name))}:", one, depth)
    elif isinstance(value, list) and value:
        for one in value:
            if isinstance(one, Mapping | list) and one:
                first, *rest = _lines(one, depth + 1)
                yield f"{indent}- {first[len(indent) + 2 :]}"
                yield from rest
            else:
                yield from _entry(f"{indent}-", one, depth)
    else:
        yield f"{indent}{_scalar(value)}"


def _entry(start: str, value: Any, depth: int) -> Iterator[str]:
    if isinstance(value, Mapping | list) and value:
        yield start
        yield from _lines(value, depth + 1)
    elif isinstance(value, str) and "\n" in value and _is_block(value):
        yield f"{start} |-"
        yield from (f"{'  ' * (depth + 1)}{line}" if line else "" for line in value.split("\n"))
    else:
        yield f"{start} {_scalar(value)}"


def _is_block(text: str) -> bool:
    lines: Sequence[str] = text.split("\n")
    return not text[:1].isspace() and lines[-1] != "" and all(not line or _is_line(line) for line in lines)


def _is_line(line: str) -> bool:
    return line.strip() != "" and _BLOCK.fullmatch(line.lstrip(" ")) is not None


def _scalar(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{}"
    if isinstance(value, list):
        return "[]"
    if not isinstance(value, str):
        return re.sub(r"^(-?\d+)e", r"\1.0e", json.dumps(value, allow_nan=False))  # YAML 1.1 wants the dot
    if _PLAIN.fullmatch(value) and value.lower() not in _RESERVED:
        return value
    return _STRANGE.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))
